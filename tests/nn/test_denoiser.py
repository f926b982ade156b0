"""The residual denoiser equals its reference; its time features are what they say."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def reference_params(golden, depth):
    """The reference's weights in our names; their Linear weights are `[out, in]`."""

    def get(name):
        return golden[f"params/denoiser/{name}"]

    def linear(name):
        return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

    def norm(name):
        return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}

    network = "residual_mlp.network"
    params = {
        "embed": linear("proj"),
        "time": {"inner": linear("time_mlp.1"), "outer": linear("time_mlp.3")},
        "time_features": {"weights": get("time_mlp.0.weights")},
        "enter": linear(f"{network}.0"),
        "norm_last": norm(f"{network}.{2 * depth + 1}"),
        "leave": linear("residual_mlp.final_linear"),
    }
    for i in range(depth):
        params[f"block_{i}"] = linear(f"{network}.{2 * i + 1}.linear")
        params[f"norm_{i}"] = norm(f"{network}.{2 * i + 1}.ln")
    return {"params": params}


def test_the_denoiser_equals_the_reference(golden):
    config = json.loads(str(golden["config"]))
    network = nn.ResidualDenoiser(
        config["width"], config["depth"], time_features=nn.RandomTime()
    )
    x, a, t = (golden[f"denoiser/{name}"] for name in "xat")
    params = reference_params(golden, config["depth"])
    ours = jax.eval_shape(network.init, jax.random.key(0), x[0], a[0], jnp.zeros(()))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    x0_hat = jax.vmap(network.apply, (None, 0, 0, 0))(params, x, a, t)
    np.testing.assert_allclose(x0_hat, golden["denoiser/x0_hat"], atol=1e-4)


def test_random_time_features_are_not_trained(key):
    features = nn.RandomTime(num=4)
    params = features.init(key, jnp.ones(()))
    grads = jax.grad(lambda p: features.apply(p, jnp.array(3.0)).sum())(params)
    assert not np.any(grads["params"]["weights"])


@pytest.mark.parametrize("features", [nn.RandomTime(), nn.FourierTime()])
def test_time_features_are_the_time_and_points_on_circles(features, key):
    time = jnp.array(0.37)
    out = features.apply(features.init(key, time), time)
    assert out.shape == (2 * features.num + 1,)
    assert out[0] == time
    sin, cos = jnp.split(out[1:], 2)
    np.testing.assert_allclose(sin**2 + cos**2, 1.0, atol=1e-5)


def test_fourier_features_tell_neighbouring_levels_apart_smoothly(key):
    """Levels of a 128-level cosine schedule: near in features, yet not equal."""
    features = nn.FourierTime()
    sigma = np.exp(np.linspace(np.log(0.01), np.log(80.0), 128))
    out = jax.vmap(lambda t: features.apply({}, t))(jnp.log(sigma) / 4)
    gap = np.linalg.norm(np.diff(out, axis=0), axis=-1)
    assert gap.min() > 0.1
    assert gap.max() < 1.0


@pytest.mark.slow
def test_a_wide_trajectory_widens_the_embedding(key):
    network = nn.ResidualDenoiser(8, 1, min_embed=4)
    params = network.init(key, jnp.zeros((5, 3)), jnp.zeros((5, 2)), jnp.zeros(()))
    assert params["params"]["embed"]["kernel"].shape == (25, 25)
    assert params["params"]["enter"]["kernel"].shape == (25, 8)
