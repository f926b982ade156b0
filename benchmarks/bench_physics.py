"""Environment steps a second, everything about them included, beside bare physics.

`mjx` stands beside a bare scan of `mjx.step`, `c` beside `mujoco.rollout` with as many
threads: same model, start states, controls drawn alike, batch and number of steps. The
full tier sweeps the batch to show where it stops paying.
"""

import importlib.resources
from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, num_cores, timed_row
from jaxwm import envs
from jaxwm.core import tree

STEPS = 32


def rows(settings: Settings) -> Iterator[Row]:
    usual = settings.pick((256,), (4,))
    sweep = (1, 16, 256, 1024, 4096) if settings.full else usual
    for num_envs in sweep:
        yield alone(settings, "pendulum", "jax", num_envs)
    for num_envs in sweep:
        yield mjx_row(settings, "cartpole_swingup", num_envs)
    for num_envs in (64, 256, 1024) if settings.full else settings.pick((1024,), (4,)):
        yield c_row(settings, "halfcheetah", num_envs)
    if settings.full:
        for num_envs in (16, 256):
            yield mjx_row(settings, "halfcheetah", num_envs)
    for name in ("cartpole_swingup", "halfcheetah"):
        yield bytes_row(name, settings.pick(1024, 8))


def setting(settings: Settings, name: str, engine: str, num_envs: int):
    """Environment, batch, start state and the rollout function."""
    env = envs.make(name, engine=engine)
    batch = envs.batch(env, num_envs)
    num_steps = settings.pick(STEPS, 2)
    state = jax.jit(batch.reset)(jax.random.key(0))

    def rollout(key, state):
        def body(i, state):
            act_key, env_key = jax.random.split(jax.random.fold_in(key, i))
            return batch.step(env_key, state, controls(act_key, env.spec, num_envs))[0]

        return jax.lax.fori_loop(0, num_steps, body, state)

    return env, state, rollout, num_steps


def controls(key, spec, num_envs):
    """Uniform random actions `[N, A]`."""
    low, high = jnp.array(spec.action.low), jnp.array(spec.action.high)
    return jax.random.uniform(key, (num_envs, low.size), minval=low, maxval=high)


def row_of(name, engine, num_envs, num_steps, timing, **more) -> Row:
    return timed_row(
        f"physics/{name}_{engine}",
        f"{num_envs} environments, {num_steps} steps",
        num_envs * num_steps,
        "steps/s",
        timing,
        **more,
    )


def alone(settings: Settings, name: str, engine: str, num_envs: int) -> Row:
    _, state, rollout, num_steps = setting(settings, name, engine, num_envs)
    timing = time_function(rollout, state, settings=settings)
    return row_of(name, engine, num_envs, num_steps, timing)


def mjx_row(settings: Settings, name: str, num_envs: int) -> Row:
    from mujoco import mjx

    env, state, rollout, num_steps = setting(settings, name, "mjx", num_envs)
    timing = time_function(rollout, state, settings=settings)

    model = model_of(name)
    num_substeps = round(env.spec.control_dt / model.opt.timestep)
    on_device = mjx.put_model(model)
    physics = state.env.physics
    data = jax.vmap(
        lambda qpos, qvel: mjx.make_data(on_device).replace(qpos=qpos, qvel=qvel)
    )(physics.qpos, physics.qvel)
    step = jax.vmap(mjx.step, (None, 0))

    def bare(key, data):
        def body(i, data):
            act_key = jax.random.split(jax.random.fold_in(key, i))[0]
            data = data.replace(ctrl=controls(act_key, env.spec, num_envs))
            return jax.lax.fori_loop(
                0, num_substeps, lambda _, data: step(on_device, data), data
            )

        return jax.lax.fori_loop(0, num_steps, body, data)

    ratio = compare(
        stopwatch(jitted(rollout, state)),
        stopwatch(jitted(bare, data)),
        name=f"bare mjx.step {metadata.version('mujoco-mjx')}",
        settings=settings,
    )
    return row_of(name, "mjx", num_envs, num_steps, timing, ratio=ratio, target=0.95)


def c_row(settings: Settings, name: str, num_envs: int) -> Row:
    import mujoco
    from mujoco import rollout as native

    env, state, rollout, num_steps = setting(settings, name, "c", num_envs)
    timing = time_function(rollout, state, settings=settings)

    model = model_of(name)
    num_substeps = round(env.spec.control_dt / model.opt.timestep)
    physics = jax.tree.map(np.asarray, state.env.physics)
    start = np.concatenate(
        [np.zeros((num_envs, 1)), physics.qpos, physics.qvel, physics.act], 1
    )
    rng = np.random.default_rng(0)
    shape = (num_envs, num_steps, model.nu)
    held = rng.uniform(env.spec.action.low, env.spec.action.high, shape)
    held = np.repeat(held, num_substeps, 1)
    out = np.empty((num_envs, num_steps * num_substeps, start.shape[1]))
    threads = num_cores()
    data = [mujoco.MjData(model) for _ in range(threads)]

    def bare():
        native.rollout(model, data, start, held, state=out, persistent_pool=True)

    bare()
    ratio = compare(
        stopwatch(jitted(rollout, state)),
        stopwatch(bare),
        name=f"mujoco.rollout {mujoco.__version__}",
        settings=settings,
    )
    row = row_of(name, "c", num_envs, num_steps, timing, ratio=ratio, target=0.8)
    return row._replace(note=f"{threads} threads on both sides")


def model_of(task: str):
    """The task's `mujoco.MjModel`."""
    import mujoco

    name = "cartpole" if task.startswith("cartpole") else task
    file = importlib.resources.files("jaxwm.envs.tasks") / "assets" / f"{name}.xml"
    return mujoco.MjModel.from_xml_string(file.read_text())


def bytes_row(name: str, num_envs: int) -> Row:
    """Bytes of the state that one environment keeps between steps, pool included."""
    batch = envs.batch(envs.make(name), num_envs)
    shapes = jax.eval_shape(batch.reset, jax.random.key(0))
    return Row(
        f"physics/{name}_bytes",
        f"{num_envs} environments, state of one",
        tree.num_bytes(shapes) / num_envs,
        "B",
        higher_is_better=False,
    )
