"""Facts that neural constitutive laws rest on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import physics
from jaxwm.physics import mpm
from jaxwm.recipes import nclaw as recipe

JELLY = recipe.Laws(mpm.elasticity.corotated(), mpm.plasticity.identity())
EXACT = {"elastic": JELLY.elastic.params, "plastic": {}}


def falling(config):
    body = mpm.block((0.5,) * config.dim, (0.3,) * config.dim, (4,) * config.dim)
    return mpm.moving(body, (1.0, -1.5, 0.0)[: config.dim])


@pytest.mark.slow
@pytest.mark.parametrize("dim", (2, 3))
def test_the_law_is_free_of_stress_at_rest_and_turns_with_the_body(dim, key):
    config = dataclasses.replace(recipe.TINY, dim=dim)
    model, plastic = recipe.nclaw(config), recipe.laws(config).plastic
    init_key, key = jax.random.split(key)
    params = model.init(init_key).params
    one = jnp.eye(dim)
    assert np.array_equal(model.predict(params, one), np.zeros((dim, dim)))
    assert np.array_equal(plastic.apply(params["plastic"], one), one)

    F = one + 0.2 * jax.random.normal(key, (dim, dim))
    Q = mpm.decompose.rotation(F[::-1])
    assert np.abs(Q - one).max() > 0.1
    stress = model.predict(params, F)
    scale = np.abs(stress).max()
    assert scale > 0
    turned = model.predict(params, Q @ F)
    np.testing.assert_allclose(turned / scale, Q @ stress @ Q.T / scale, atol=1e-5)
    kept = plastic.apply(params["plastic"], F)
    turned = plastic.apply(params["plastic"], Q @ F)
    np.testing.assert_allclose(turned, Q @ kept, atol=1e-5)


def test_the_plain_network_does_not_turn_with_the_body(key):
    model = recipe.nclaw(dataclasses.replace(recipe.TINY, invariant=False))
    params = model.init(key).params
    assert np.array_equal(model.predict(params, jnp.eye(2)), np.zeros((2, 2)))
    Q = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    assert np.abs(model.predict(params, Q)).max() > 0  # a turn alone makes stress


@pytest.mark.slow
def test_features_vanish_at_rest_and_have_finite_slopes_there():
    for d in (2, 3):
        z = recipe.features(jnp.eye(d))
        assert z.shape == (d + d * d + 1,) and np.array_equal(z, np.zeros_like(z))
        assert np.isfinite(jax.jacrev(recipe.features)(jnp.eye(d))).all()


def test_a_recording_holds_the_start_and_every_step(key):
    config = recipe.TINY
    body = falling(config)
    recording = jax.jit(lambda: recipe.record(config, body, JELLY, EXACT))()
    assert recording.states.x.shape == (config.steps + 1, 16, 2)
    np.testing.assert_allclose(recording.states.x[0], body.x)
    moved = recording.states.x[-1] - body.x
    t = config.steps * config.dt
    fallen = -1.5 * t - 9.8 * t * (t + config.dt) / 2
    np.testing.assert_allclose(
        moved, jnp.broadcast_to(jnp.array([t, fallen]), moved.shape), atol=1e-5
    )


@pytest.mark.slow
def test_an_epoch_on_the_laws_own_recording_costs_nothing_and_another_does(key):
    config = recipe.TINY
    model, neural = recipe.nclaw(config), recipe.laws(config)
    state = model.init(key)
    body = falling(config)
    jelly = mpm.mpm(body, *JELLY, cells=config.cells, dt=config.dt)
    start = jelly.init(key, jelly.params)
    bent = start._replace(F=start.F @ jnp.diag(jnp.array([1.2, 0.9])))

    def metrics(known, params):
        """Loss of the first epoch on a bent body's recording."""
        dyn = mpm.mpm(body, *known, cells=config.cells, dt=config.dt)
        _, path = physics.rollout(
            dyn, {**dyn.params, **params}, bent, jnp.zeros((config.steps, 0))
        )
        states = jax.tree.map(
            lambda a, b: jnp.concatenate([a[None], b]), bent, path.state
        )
        return model.step(key, state, recipe.Recording(body, states))

    own_state, own = jax.jit(lambda: metrics(neural, state.params))()
    new_state, other = jax.jit(lambda: metrics(JELLY, EXACT))()
    assert own["loss"] < 1e-9 < 1e-6 < other["loss"]
    assert other["finite"] == 1 and other["grad_norm"] > 0
    assert new_state.buffers["epoch"] == own_state.buffers["epoch"] == 1
    moved = [
        np.abs(a - b).max() > 0
        for a, b in zip(
            jax.tree.leaves(state.params),
            jax.tree.leaves(new_state.params),
            strict=True,
        )
    ]
    assert all(moved)


@pytest.mark.slow
def test_every_number_of_the_experiment_is_finite(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, recipe.TINY))(key)
    assert all(np.isfinite(x) for x in metrics.values())
    assert metrics["stress/turned"] < 1e-4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dim": 4}, "dim must be 2 or 3, got 4"),
        ({"window": 150}, "window must divide steps = 200, got 150"),
        ({"first_window": 0}, r"first_window must be in \[1, window = 50\], got 0"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"stress_scale": -1.0}, "stress_scale must be positive, got -1.0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)
