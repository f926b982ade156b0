"""One update of PolyGRAD's world model on a batch that devices share.

In a process of its own, for the number of host devices must be set before jax starts.
"""

import os

from benchmarks import peer


def setup(config: dict) -> peer.Ready:
    flags = os.environ.get("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={config['devices']}"
    os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()

    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from benchmarks.bench_diffusion import ACTION, OBS, model_of
    from jaxwm.core import shard
    from jaxwm.recipes import polygrad
    from jaxwm.types import Trajectory

    size = polygrad.Config(width=config["width"])
    model, state = model_of(size)
    shape = (config["batch"], size.horizon)
    obs = jax.random.normal(jax.random.key(1), (*shape, OBS))
    windows = Trajectory(
        obs=obs,
        action=obs[..., :ACTION],
        reward=obs[..., 0],
        discount=jnp.ones(shape),
        mask=jnp.ones(shape),
        extras={},
    )
    mesh = jax.make_mesh((config["devices"],), (shard.AXIS,), (AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P(shard.AXIS)), NamedSharding(mesh, P())
    windows = jax.device_put(windows, cut)
    held = [jax.device_put(state, whole)]
    key = jax.device_put(jax.random.key(2), whole)
    with jax.set_mesh(mesh):
        fit = jax.jit(
            lambda key, state, windows: model.fit(key, state, shard.split(windows))[0],
            donate_argnums=1,
            out_shardings=whole,
        )
        fit = fit.lower(key, held[0], windows).compile()

    def update():
        held[0] = jax.block_until_ready(fit(key, held[0], windows))

    update()
    facts = {"devices": config["devices"]}
    return peer.Ready(f"{config['devices']} devices", update, facts)


if __name__ == "__main__":
    peer.serve(setup)
