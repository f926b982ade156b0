"""Policies and weights as files that other programs read."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.commands import trained
from jaxwm.train import durable
from jaxwm.train.errors import RunError
from jaxwm.types import Box

_PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    path: str | pathlib.Path,
    out: str | pathlib.Path | None = None,
    *,
    seed: int | None = None,
) -> list[pathlib.Path]:
    """Writes one seed's policy and weights.

        policy.stablehlo    portable StableHLO byte code, one observation `[O]` to its
                            action `[A]`, weights inside
        policy.jax          the same for batches: `jax.export.deserialize(data).call`
                            takes `[b, O]`; only where flatbuffers is installed, which
                            jax needs for it
        params.safetensors  weights of world model, actor and critic by path
        policy.json         shapes, bounds, units of time, and where it comes from

    Args:
        path: of the run.
        out: directory for the files; by default `export` in the run.
        seed: one of the run's; by default the first.

    Returns:
        The files.

    Raises:
        RunError: without safetensors, saying how to get it; for policies with memory.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise RunError(
            "weights are written by safetensors: pip install 'jaxwm[data]'."
        ) from error
    path = pathlib.Path(path)
    assembly, iteration, state = trained.read(path)
    state = trained.select(assembly, state, seed)
    spec = assembly.model.spec
    if spec.context > 1:
        raise RunError(
            f"{spec.name} reads {spec.context} observations; only policies of one "
            "observation can be exported."
        )
    if not isinstance(spec.action, Box):
        raise RunError(f"only continuous actions are exported, got {spec.action}.")
    act, memory = trained.act_of(assembly, state)

    def policy(obs):
        return act(jax.random.key(0), memory, obs, True)[0]

    one = jax.export.export(jax.jit(policy), platforms=["cpu"])(spec.obs)
    folder = pathlib.Path(out) if out else path / "export"
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "recipe": assembly.entry.name,
        "env": assembly.env.spec.name,
        "seed": assembly.seeds[0] if seed is None else seed,
        "step": iteration * assembly.steps_per_iteration,
        "obs": jax.tree.map(lambda x: [str(x.dtype), *x.shape], spec.obs),
        "action_low": list(spec.action.low),
        "action_high": list(spec.action.high),
        "control_dt_seconds": assembly.env.spec.control_dt,
        "jax": jax.__version__,
    }
    contents = {
        "policy.stablehlo": one.mlir_module_serialized,
        "params.safetensors": save(weights(state.agent)),
        "policy.json": (json.dumps(about, indent=1) + "\n").encode(),
    }
    if importlib.util.find_spec("flatbuffers") is not None:
        contents["policy.jax"] = _batched(policy, spec.obs)
    for name, content in contents.items():
        durable.write_bytes(folder / name, content)
    return [folder / name for name in contents]


def _batched(policy, obs) -> bytes:
    """The policy of any number of observations, as `jax.export` writes it."""
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), obs
    )
    exported = jax.export.export(jax.jit(jax.vmap(policy)), platforms=_PLATFORMS)
    return bytes(exported(shape).serialize())


def weights(agent_state) -> dict[str, np.ndarray]:
    """Arrays by path; bfloat16, which numpy lacks, as float32."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(agent_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "opt_state" in name:
            continue
        leaf = leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf
        found[name] = np.ascontiguousarray(leaf)
    return found
