"""What a gradient of a simulation costs, per contact model and per rematerialisation.

A planar hopper falls and bounces: 200 steps, a batch of 64. `forward` is steps a
second; `backward` is the time of value and gradient (of the actions) over that of the
value alone. `memory` is the scratch memory of the gradient at 1000 steps, one hopper.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.measure import Settings, compare, jitted, stopwatch, time_function
from benchmarks.record import Row, timed_row
from jaxwm.physics import bodies, contact, rigid, rollout

MODELS = (
    contact.compliant(),
    contact.smoothed(),
    contact.impulse(restitution=0.5),
    contact.time_of_impact(restitution=0.5),
    contact.complementarity(),
    contact.position_based(),
    contact.interior_point(),
)
START = bodies.State(jnp.array([0.0, 0.8, 0.1, 0.5]), jnp.zeros(4))


def rows(settings: Settings) -> Iterator[Row]:
    models = MODELS if settings.full else MODELS[:1] + MODELS[3:5]
    for model in models:
        yield from speed(settings, model)
    yield from memory(settings)


def final_height(model, actions, **options):
    dynamics = rigid(bodies.hopper(), model, dt=1e-3)
    final, _ = rollout(dynamics, dynamics.params, START, actions, **options)
    return final.q[1]


def speed(settings: Settings, model) -> Iterator[Row]:
    batch, length = settings.pick(64, 2), settings.pick(200, 4)
    name = model.name.replace(" ", "_")
    size = f"{batch} hoppers, {length} steps"

    def value(key, shift):
        actions = 0.1 * jax.random.normal(key, (batch, length, 2)) + shift
        return jnp.sum(jax.vmap(lambda u: final_height(model, u))(actions))

    def slope(key, shift):
        actions = 0.1 * jax.random.normal(key, (batch, length, 2)) + shift
        total = lambda u: jnp.sum(jax.vmap(lambda u: final_height(model, u))(u))
        return jax.value_and_grad(total)(actions)

    shift = jnp.zeros(())
    timing = time_function(value, shift, settings=settings)
    yield timed_row(
        f"gradients/forward_{name}", size, batch * length, "steps/s", timing
    )
    ratio = compare(
        stopwatch(jitted(value, shift)),
        stopwatch(jitted(slope, shift)),
        name="value and gradient",
        settings=settings,
    )
    yield Row(
        f"gradients/backward_{name}",
        size,
        ratio.median,
        "x the time of forward",
        higher_is_better=False,
        target=4.0,
        note=f"95 % interval {ratio.low:.2f} - {ratio.high:.2f}",
    )


def memory(settings: Settings) -> Iterator[Row]:
    length = settings.pick(1000, 9)
    scratch = {}
    for policy in ("none", "all", "sqrt"):
        slope = jax.grad(lambda u, p=policy: final_height(MODELS[0], u, checkpoint=p))
        compiled = jax.jit(slope).lower(jnp.zeros((length, 2))).compile()
        scratch[policy] = compiled.memory_analysis().temp_size_in_bytes
        less = scratch["none"] / scratch[policy]
        yield Row(
            f"gradients/memory_{policy}",
            f"{length} steps",
            scratch[policy] / 1e3,
            "kB",
            higher_is_better=False,
            note="" if policy == "none" else f"{less:.1f} times less than none",
        )
