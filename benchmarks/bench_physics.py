"""Environment steps a second, everything about them included, beside bare physics.

`mjx` stands beside a bare scan of `mjx.step`, `c` beside `mujoco.rollout` with as many
threads: same model, start states and substeps, the same controls drawn beforehand; the
bare sides never reset. `overhead` is what observation, reward, clock and automatic
reset add to the time of a bare scan of the same steps (for `c`: of its callback; what
the callback costs is in the ratio to `mujoco.rollout`, which meets after the last step
alone). `memory` is the bytes a compiled rollout needs per environment.
`wrapped` compares what our batch and the wrappers of brax and Playground make of one
environment of ours. The full tier sweeps the batch to show where it stops paying.
"""

import importlib.resources
from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peer
from benchmarks.measure import Ratio, Settings, compare, stopwatch, timed
from benchmarks.record import Row, num_cores, timed_row
from jaxwm import envs
from jaxwm.core import tree
from jaxwm.envs import mujoco_c, mujoco_edits

STEPS = 32
SWEEP = (1, 16, 256, 1024, 4096, 16384)
CARTPOLE, CHEETAH = "cartpole_swingup", "halfcheetah"
OVERHEAD = 5.0  # per cent of bare stepping, at most


def rows(settings: Settings) -> Iterator[Row]:
    usual = settings.pick((256,), (4,))
    sweep = SWEEP if settings.full else usual
    for num_envs in sweep:
        yield alone(settings, "pendulum", "jax", num_envs)
    for num_envs in sweep:
        yield from beside_mjx(settings, CARTPOLE, num_envs)
    if settings.full or settings.smoke:
        for num_envs in sweep:
            yield alone(settings, CARTPOLE, "jax", num_envs)
        for num_envs in sweep if settings.full else ():
            yield from beside_c(settings, CARTPOLE, num_envs)
    for num_envs in SWEEP if settings.full else settings.pick((1024,), (4,)):
        yield from beside_c(settings, CHEETAH, num_envs)
    if settings.full:
        yield from beside_mjx(settings, CHEETAH, 256)
    if settings.full or settings.smoke:
        yield from wrapped(settings, usual[0])
    for name in (CARTPOLE, CHEETAH):
        yield bytes_row(name, settings.pick(1024, 8))


def setting(settings: Settings, name: str, engine: str, num_envs: int):
    """Environment, start state, controls `[T, N, A]` and the rollout function."""
    env = envs.make(name, engine=engine)
    batch = envs.batch(env, num_envs)
    # Large batches take fewer steps: a call should not last for many seconds.
    most = STEPS if engine != "c" else STEPS // 4
    num_steps = settings.pick(max(4, min(most, 131072 // num_envs)), 2)
    state = jax.jit(batch.reset)(jax.random.key(0))
    low, high = jnp.array(env.spec.action.low), jnp.array(env.spec.action.high)
    shape = (num_steps, num_envs, low.size)
    controls = jax.random.uniform(jax.random.key(1), shape, minval=low, maxval=high)

    def rollout(key, state, controls):
        def body(state, row):
            i, control = row
            return batch.step(jax.random.fold_in(key, i), state, control)[0], None

        return jax.lax.scan(body, state, (jnp.arange(num_steps), controls))[0]

    return env, state, controls, rollout


def size_of(num_envs: int, num_steps: int) -> str:
    return f"{num_envs} environments, {num_steps} steps"


def row_of(name, engine, controls, timing, **more) -> Row:
    num_steps, num_envs = controls.shape[:2]
    return timed_row(
        f"physics/{name}_{engine}",
        size_of(num_envs, num_steps),
        num_envs * num_steps,
        "steps/s",
        timing,
        **more,
    )


def alone(settings: Settings, name: str, engine: str, num_envs: int) -> Row:
    _, state, controls, rollout = setting(settings, name, engine, num_envs)
    timing, _ = timed(rollout, state, controls, settings=settings)
    return row_of(name, engine, controls, timing)


def overhead(row: Row, ratio: Ratio) -> Row:
    """What the environment adds to bare physics, in per cent of its time."""
    percent = [100 * (1 / r - 1) for r in (ratio.median, ratio.high, ratio.low)]
    return Row(
        row.name.replace("/", "/overhead_"),
        row.size,
        percent[0],
        "% of bare stepping",
        higher_is_better=False,
        target=OVERHEAD,
        note=f"95 % interval {percent[1]:.1f} to {percent[2]:.1f}",
    )


def beside_mjx(settings: Settings, name: str, num_envs: int) -> Iterator[Row]:
    from mujoco import mjx

    env, state, controls, rollout = setting(settings, name, "mjx", num_envs)
    timing, ours = timed(rollout, state, controls, settings=settings)

    model = model_of(name)
    num_substeps = round(env.spec.control_dt / model.opt.timestep)
    on_device = mjx.put_model(model)
    physics = state.env.physics
    data = jax.vmap(
        lambda qpos, qvel: mjx.make_data(on_device).replace(qpos=qpos, qvel=qvel)
    )(physics.qpos, physics.qvel)
    step = jax.vmap(mjx.step, (None, 0))

    def bare(key, data, controls):
        del key  # nothing is drawn

        def body(data, control):
            data = data.replace(ctrl=control)
            data = jax.lax.fori_loop(
                0, num_substeps, lambda _, data: step(on_device, data), data
            )
            return data, None

        return jax.lax.scan(body, data, controls)[0]

    brief = settings._replace(min_seconds=0.0, min_repeats=1)
    bare_timing, theirs = timed(bare, data, controls, settings=brief)
    peer_name = f"bare mjx.step {metadata.version('mujoco-mjx')}"
    ratio = compare(ours, theirs, name=peer_name, settings=settings)
    row = row_of(name, "mjx", controls, timing, ratio=ratio, target=0.95)
    yield row
    yield overhead(row, ratio)
    needs, bare_needs = (t.peak_bytes / num_envs for t in (timing, bare_timing))
    yield Row(
        f"physics/memory_{name}_mjx",
        row.size,
        needs / bare_needs,
        f"x the bytes of {peer_name}",
        higher_is_better=False,
        target=1.1,
        note=f"{needs:.0f} B an environment, bare {bare_needs:.0f} B",
    )


def beside_c(settings: Settings, name: str, num_envs: int) -> Iterator[Row]:
    import mujoco
    from mujoco import rollout as native

    env, state, controls, rollout = setting(settings, name, "c", num_envs)
    timing, ours = timed(rollout, state, controls, settings=settings)

    model = model_of(name)
    num_substeps = round(env.spec.control_dt / model.opt.timestep)
    physics = jax.tree.map(np.asarray, state.env.physics)
    start = np.concatenate(
        [np.zeros((num_envs, 1)), physics.qpos, physics.qvel, physics.act], 1
    )
    held = np.asarray(controls, np.float64).swapaxes(0, 1)
    held = np.repeat(held, num_substeps, 1)
    out = np.empty((num_envs, held.shape[1], start.shape[1]))
    threads = num_cores()
    data = [mujoco.MjData(model) for _ in range(threads)]

    def bare():
        native.rollout(model, data, start, held, state=out, persistent_pool=True)

    bare()
    peer_name = f"mujoco.rollout {mujoco.__version__}"
    ratio = compare(ours, stopwatch(bare), name=peer_name, settings=settings)
    row = row_of(name, "c", controls, timing, ratio=ratio, target=0.8)
    yield row._replace(note=f"{threads} threads on both sides")

    engine = mujoco_c.stepper(model, env.spec, (), num_substeps=num_substeps)
    values = jnp.array(mujoco_edits.defaults(env.spec))
    step = jax.vmap(engine, (0, 0, None))

    def scanned(key, state, controls):
        del key  # nothing is drawn
        body = lambda state, control: (step(state, control, values), None)
        return jax.lax.scan(body, state, controls)[0]

    brief = settings._replace(min_seconds=0.0, min_repeats=1)
    _, steps_alone = timed(scanned, state.env.physics, controls, settings=brief)
    yield overhead(
        row, compare(ours, steps_alone, name="its steps alone", settings=settings)
    )


def wrapped(settings: Settings, num_envs: int) -> Iterator[Row]:
    """Our batch beside the wrappers of brax and Playground, around one environment."""
    env, state, controls, rollout = setting(settings, CARTPOLE, "mjx", num_envs)
    timing, ours = timed(rollout, state, controls, settings=settings)
    for package, module, wrap in (
        ("brax", "brax", _in_brax),
        ("playground", "mujoco_playground", _in_playground),
    ):
        row = row_of(f"wrapped_{package}", "mjx", controls, timing)
        if reason := peer.missing(module):
            yield Row(row.name, row.size, status="skipped", note=reason)
            continue
        theirs = wrap(env)
        keys = jax.random.split(jax.random.key(0), num_envs)
        began = jax.jit(theirs.reset)(jax.random.key_data(keys))

        def unroll(key, began, controls, step=theirs.step):
            del key  # it lies in the state
            return jax.lax.scan(lambda s, a: (step(s, a), None), began, controls)[0]

        brief = settings._replace(min_seconds=0.0, min_repeats=1)
        _, other = timed(unroll, began, controls, settings=brief)
        name = f"{package} {metadata.version(package)}"
        ratio = compare(ours, other, name=name, settings=settings)
        yield row._replace(ratio=ratio, target=0.95)


def _in_brax(env):
    from brax.envs import training

    from jaxwm.envs.adapters import brax

    return training.wrap(brax.to_brax(env), episode_length=env.spec.time_limit)


def _in_playground(env):
    from mujoco_playground import wrapper

    from jaxwm.envs.adapters import playground

    inside = playground.to_playground(env)
    return wrapper.wrap_for_brax_training(inside, episode_length=env.spec.time_limit)


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
