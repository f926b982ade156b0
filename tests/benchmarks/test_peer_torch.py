"""The torch peer is the published denoiser: it reproduces recorded numbers."""

import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import peer_torch  # noqa: E402, only where torch is installed

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def sizes(golden):
    return json.loads(str(golden["config"]))


def test_denoiser_follows_the_reference(golden, sizes):
    network = peer_torch.denoiser(
        sizes["horizon"], sizes["obs"] + 2, sizes["act"], sizes["width"], sizes["depth"]
    )
    names = {
        "frequencies": "time_mlp.0.weights",
        "time.0": "time_mlp.1",
        "time.2": "time_mlp.3",
        "embed": "proj",
        "enter": "residual_mlp.network.0",
        "norm": "residual_mlp.network.5",
        "leave": "residual_mlp.final_linear",
    }
    for i in range(sizes["depth"]):
        theirs = f"residual_mlp.network.{1 + 2 * i}"
        names |= {f"blocks.{i}.norm": f"{theirs}.ln"}
        names |= {f"blocks.{i}.linear": f"{theirs}.linear"}
    state = {}
    for ours, theirs in names.items():
        for part in ("", ".weight", ".bias"):
            key = f"params/denoiser/{theirs}{part}"
            if key in golden:
                state[ours + part] = torch.tensor(golden[key])
    network.load_state_dict(state, strict=True)
    x, a, t = (torch.tensor(golden[f"denoiser/{name}"]) for name in "xat")
    with torch.no_grad():
        out = network(x, a, t.float()).numpy()
    np.testing.assert_allclose(out, golden["denoiser/x0_hat"], atol=1e-4)


def test_schedule_follows_the_reference(golden, sizes):
    abar, beta, c1, c2, variance = peer_torch.schedule(sizes["levels"], sizes["tau"])
    for ours, name in (
        (abar, "alphas_cumprod"),
        (beta, "betas"),
        (c1, "posterior_mean_coef1"),
        (c2, "posterior_mean_coef2"),
        (variance, "posterior_variance"),
    ):
        np.testing.assert_allclose(ours.numpy(), golden[f"schedule/{name}"], atol=1e-5)
