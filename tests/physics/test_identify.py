"""System identification: a sliding block, and what its motion does not tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import plan
from jaxwm.physics import bodies, contact, identify, rigid, rollout

BLOCK = rigid(
    bodies.sliding_block(),
    contact.compliant(stiffness=1e4, damping=1e5),
    dt=5e-3,
)
TRUE = {"friction": 0.3, "mass": 2.0}
START = {"friction": 0.1, "mass": 1.0}


def slide(params, pushes):
    """Positions of the block in several experiments `(speed, force)`."""

    def one(speed, force):
        own = {**BLOCK.params, **params}
        # at rest on the floor, pressed in by its weight
        depth = own["mass"] * own["gravity"] / own["stiffness"]
        start = bodies.State(
            jnp.stack([0.0 * depth, -depth]), jnp.stack([speed, 0.0 * speed])
        )
        _, path = rollout(BLOCK, own, start, jnp.full((200, 1), force))
        return path.state.q[:, 0]

    return jnp.stack([one(*map(jnp.asarray, push)) for push in pushes])


BOTH = ((2.0, 0.0), (1.0, 8.0))


@pytest.mark.slow
def test_friction_and_mass_are_found_with_fewer_simulations_than_by_search(key, x64):
    observed = slide(TRUE, BOTH)
    found = identify.identify(lambda p: slide(p, BOTH), observed, START, iterations=15)
    for name, value in TRUE.items():
        assert float(found.params[name]) == pytest.approx(value, rel=0.05)
    assert found.identifiable and found.error < 1e-8

    def cost(z):
        params = {"friction": jnp.exp(z[0]), "mass": jnp.exp(z[1])}
        return jnp.mean((slide(params, BOTH) - observed) ** 2)

    first = jnp.log(jnp.array([START["friction"], START["mass"]]))
    search = jax.jit(
        lambda key: plan.cem(key, cost, first, 1.0, num=16, elites=4, iterations=3)
    )(key)
    # as many simulations by search do not come as close
    assert search.calls >= found.calls
    assert search.cost > 100 * float(found.error)


@pytest.mark.slow
def test_a_block_that_slides_freely_has_no_mass():
    push = ((2.0, 0.0),)
    observed = slide(TRUE, push)
    with pytest.warns(UserWarning, match="does not determine all parameters.*mass"):
        found = identify.identify(lambda p: slide(p, push), observed, START)
    assert not found.identifiable
    assert float(found.params["friction"]) == pytest.approx(0.3, rel=0.05)
    assert abs(float(found.weakest["mass"])) > 0.9


def test_it_can_be_compiled_and_vmapped_over_recordings():
    def fit(scale):
        t = jnp.linspace(0, 1, 20)
        observed = 2.0 * scale * jnp.exp(-3.0 * t)
        simulate = lambda p: p["a"] * jnp.exp(-p["b"] * t)
        return identify.identify(simulate, observed, {"a": 1.0, "b": 1.0}).params

    found = jax.jit(jax.vmap(fit))(jnp.array([1.0, 5.0]))
    np.testing.assert_allclose(found["a"], [2, 10], rtol=1e-3)
    np.testing.assert_allclose(found["b"], 3, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(start={"a": -1.0}), r"start\[a\] must be positive, got -1"),
        (
            dict(observed=jnp.zeros(3)),
            r"shape of what is simulated, \(2,\), got \(3,\)",
        ),
        (dict(observed=jnp.array([0.0, jnp.nan])), "observed must be finite"),
        (dict(iterations=0), "iterations must be at least 1"),
        (dict(damping=0.0), "damping must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(change, match):
    options = dict(start={"a": 1.0}, observed=jnp.ones(2), iterations=2, damping=1e-2)
    options = {**options, **change}
    with pytest.raises(ValueError, match=match):
        identify.identify(lambda p: p["a"] * jnp.ones(2), **options)
