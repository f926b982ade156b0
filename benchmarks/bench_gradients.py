"""What a gradient of a simulation costs, per simulator, contact model and policy.

`forward` is steps a second; `backward` the time of value and gradient (by the actions;
of material points by Young's modulus) over that of the value alone. `memory` is the
scratch memory of the gradient of one system at 1000 steps, per rematerialisation.
`mjx` is MuJoCo with its contacts, differentiated implicitly.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, timed_row
from jaxwm.physics import bodies, contact, mjx_dynamics, mpm, rigid, rollout

MODELS = (
    contact.compliant(),
    contact.smoothed(),
    contact.impulse(restitution=0.5),
    contact.time_of_impact(restitution=0.5),
    contact.complementarity(),
    contact.position_based(),
    contact.interior_point(),
    contact.straight_through(contact.complementarity(), contact.smoothed()),
)
HOPPER = (bodies.hopper(), (0.0, 0.8, 0.1, 0.5), 1e-3)
BODIES = (  # system, where it starts, length of a step
    (bodies.pendulum(), (2.0,), 1e-2),
    (bodies.cartpole(), (0.0, 2.0), 1e-2),
    (bodies.two_link_arm(), (1.0, 0.5), 1e-2),
    (bodies.point_mass(), (0.0, 0.5), 5e-3),
    (bodies.sliding_block(), (0.0, 0.0), 5e-3),
    (bodies.pusher(), (0.0, 0.2), 5e-3),
)
E, STRENGTH = 1e5, 2e3  # Pa
MATERIALS = {
    "jelly": (mpm.elasticity.corotated(E), None),
    "plasticine": (
        mpm.elasticity.hencky(E),
        mpm.plasticity.von_mises(E, sigma_y=STRENGTH),
    ),
    "sand": (mpm.elasticity.hencky(E), mpm.plasticity.drucker_prager(E)),
    "water": (mpm.elasticity.fluid(E), mpm.plasticity.fluid()),
}
BOX = """<mujoco><option timestep="0.004"/><worldbody><geom type="plane" size="5 5 1"/>
<body pos="0 0 0.2"><freejoint/><geom type="box" size="0.1 0.12 0.08" mass="2"/></body>
</worldbody></mujoco>"""


class Case(NamedTuple):
    """A simulation: `value(key, x)` of what is differentiated, and how many steps."""

    name: str
    size: str
    num_steps: int
    value: Callable
    x: jax.Array


def rows(settings: Settings) -> Iterator[Row]:
    # Many rows, each of them steady: a third of the usual time is enough.
    settings = settings._replace(
        min_seconds=settings.min_seconds / 3, block_seconds=settings.block_seconds / 3
    )
    for case in cases(settings):
        yield from speed(settings, case)
    length = settings.pick(1000, 9)
    yield from memory("hopper", length, lambda **kept: hopping(length, **kept))
    yield from memory("jelly_2d", length, lambda **kept: falling(length, **kept))
    yield from mjx_rows(settings)


def cases(settings: Settings) -> Iterator[Case]:
    """Every planar body, every model of contact, every material."""
    free = [body for body in BODIES if not body[0].num_contacts]
    touching = [body for body in BODIES if body[0].num_contacts]
    models = MODELS if settings.full or settings.smoke else MODELS[:1] + MODELS[3:5]
    for body in free:
        yield planar(settings, body, None)
    for body in touching:
        yield planar(settings, body, MODELS[0])
    for model in models:
        yield planar(settings, HOPPER, model)
    for name in MATERIALS:
        yield material(settings, name, 2)
    yield material(settings, "jelly", 3)


def planar(settings: Settings, body, model) -> Case:
    system, start, dt = body
    batch, length = settings.pick(64, 2), settings.pick(200, 4)
    dynamics = rigid(system, model, dt=dt)
    start = bodies.State(jnp.array(start), jnp.zeros(len(start)))

    def value(key, shift):
        shape = (batch, length, system.action_size)
        actions = 0.1 * jax.random.normal(key, shape) + shift
        end = lambda u: rollout(dynamics, dynamics.params, start, u)[0]
        return jnp.sum(jax.vmap(end)(actions).q)

    name = system.name if model is None else f"{system.name} {model.name}"
    size = f"{batch} at once, {length} steps"
    shift = jnp.zeros((batch, length, system.action_size))
    return Case(name, size, batch * length, value, shift)


def material(settings: Settings, name: str, d: int) -> Case:
    side, length = settings.pick({2: 32, 3: 10}[d], 3), settings.pick(50, 4)
    cells = settings.pick({2: 64, 3: 24}[d], 12)

    def value(key, log_scale):
        return dropped(name, d, side, cells, length, E * jnp.exp(log_scale), key)

    size = f"{side**d} particles, {cells} cells, {length} steps"
    return Case(f"{name} {d}d", size, length * side**d, value, jnp.zeros(()))


def dropped(name, d, side, cells, length, stiffness, key=None, **kept):
    """Mean square of where a block of the material is after so many steps."""
    elastic, plastic = MATERIALS[name]
    body = mpm.block((0.5, 0.45, 0.5)[:d], (0.3,) * d, (side,) * d)
    body = mpm.moving(body, (1.0, -2.0, 0.0)[:d])
    dynamics = mpm.mpm(body, elastic, plastic, cells=cells, dt=2e-4)
    start = dynamics.init(None, dynamics.params)
    if key is not None:
        start = start._replace(v=start.v + 0.1 * jax.random.normal(key, (d,)))
    params = {**dynamics.params, "elastic": {**elastic.params, "E": stiffness}}
    final, _ = rollout(dynamics, params, start, jnp.zeros((length, 0)), **kept)
    return jnp.mean(final.x**2)


def speed(settings: Settings, case: Case) -> Iterator[Row]:
    name = case.name.replace(", ", " ").replace(" ", "_").replace("-", "_")
    slope = lambda key, x: jax.value_and_grad(case.value, 1)(key, x)
    timing = time_function(case.value, case.x, settings=settings)
    yield timed_row(
        f"gradients/forward_{name}", case.size, case.num_steps, "steps/s", timing
    )
    ratio = compare(
        stopwatch(jitted(case.value, case.x)),
        stopwatch(jitted(slope, case.x)),
        name="value and gradient",
        settings=settings,
    )
    yield Row(
        f"gradients/backward_{name}",
        case.size,
        ratio.median,
        "x the time of forward",
        higher_is_better=False,
        target=4.0,
        note=f"95 % interval {ratio.low:.2f} - {ratio.high:.2f}",
    )


def hopping(length: int, **kept):
    """A loss of actions `[T, 2]`, and where to take its gradient."""
    system, start, dt = HOPPER
    dynamics = rigid(system, MODELS[0], dt=dt)
    start = bodies.State(jnp.array(start), jnp.zeros(4))

    def loss(actions):
        return rollout(dynamics, dynamics.params, start, actions, **kept)[0].q[1]

    return loss, jnp.zeros((length, 2))


def falling(length: int, **kept):
    """A loss of Young's modulus, 144 particles."""
    return lambda E: dropped("jelly", 2, 12, 20, length, E, **kept), jnp.float32(E)


def memory(name: str, length: int, make: Callable) -> Iterator[Row]:
    scratch, seconds = {}, {}
    for policy in ("none", "all", "sqrt"):
        loss, x = make(checkpoint=policy)
        compiled = jax.jit(jax.grad(loss)).lower(x).compile()
        scratch[policy] = compiled.memory_analysis().temp_size_in_bytes
        run = stopwatch(lambda run=compiled, x=x: jax.block_until_ready(run(x)))
        seconds[policy] = min(run(1) for _ in range(5))
        less = scratch["none"] / scratch[policy]
        longer = seconds[policy] / seconds["none"]
        yield Row(
            f"gradients/memory_{name}_{policy}",
            f"{length} steps",
            scratch[policy] / 1e3,
            "kB",
            higher_is_better=False,
            note=""
            if policy == "none"
            else f"{less:.1f} times less than none, {longer:.1f} times its time",
        )
    yield Row(
        f"gradients/saved_{name}_sqrt",
        f"{length} steps",
        scratch["none"] / scratch["sqrt"],
        "x less memory than none",
        target=5.0,
    )


def mjx_rows(settings: Settings) -> Iterator[Row]:
    """A thrown box that lands and slides: derivatives by its first velocities."""
    import mujoco

    batch, length = settings.pick(64, 2), settings.pick(20, 2)
    dynamics = mjx_dynamics(mujoco.MjModel.from_xml_string(BOX))
    start = dynamics.init(None, dynamics.params)
    size = f"{batch} boxes, {length} steps"

    def value(key, speed):
        def end(speed):
            state = start._replace(qvel=speed)
            still = jnp.zeros((length, 0))
            return rollout(dynamics, {}, state, still, checkpoint="all")[0]

        speeds = speed + 0.1 * jax.random.normal(key, (batch, 6))
        return jnp.sum(jax.vmap(end)(speeds).qpos)

    speed = jnp.tile(jnp.array([0.5, -0.3, -1.0, 0.4, 0.6, -0.5]), (batch, 1))
    slope = lambda key, x: jax.value_and_grad(value, 1)(key, x)
    with fresh_cache():
        timing = time_function(slope, speed, settings=settings)
        jax.clear_caches()  # as a second process would start
        began = time.perf_counter()
        jax.jit(slope).lower(jax.random.key(0), speed).compile()
        again = time.perf_counter() - began
    first = timing.trace_s + timing.lower_s + timing.compile_s
    yield timed_row(
        "gradients/mjx",
        size,
        batch * length,
        "steps/s",
        timing,
        note=f"value and gradient; traced and compiled in {first:.1f} s, from the "
        f"compilation cache in {again:.1f} s",
    )


@contextlib.contextmanager
def fresh_cache():
    """A persistent compilation cache of its own, empty at first."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in zip(names, (folder, True, 0.0), strict=True):
            jax.config.update(name, setting)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            for name, setting in before.items():
                jax.config.update(name, setting)
            compilation_cache.reset_cache()
