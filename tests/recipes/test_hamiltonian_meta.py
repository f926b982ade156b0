"""What the field of any network obeys, units, laws that are drawn, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.core import optimise
from jaxwm.physics.hamiltonian import PhaseData
from jaxwm.recipes import hamiltonian_meta as recipe
from jaxwm.recipes.hamiltonian_meta import TINY, Config, hamiltonian_meta

BODIES = dataclasses.replace(TINY, num_bodies=3, systems=("two_body", "pendulum"))


def network(config, key, size=2):
    """Parameters whose biases are not 0, so that a wrong mask would show."""
    init = jax.jit(lambda key: hamiltonian_meta(config).init(key, size).params["start"])
    return jax.tree.map(lambda x: x + np.float32(0.1), jax.device_get(init(key)))


def turned(angle, num):
    """States of a spring, one coordinate, at angles around `angle`."""
    t = np.float32(angle + np.arange(num) / num)[:, None, None]
    q, p = 2 * np.sin(t), 2 * np.cos(t)
    return PhaseData(q, p, p, -q, np.ones_like(q))


def test_a_field_is_divergence_free_and_moves_with_the_bodies(key):
    params = network(BODIES, key)
    x = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    mask, order = np.ones((3, 2), np.float32), np.array([2, 0, 1])
    mask[2] = 0
    rate = lambda x, mask: jnp.stack(recipe.rates(BODIES, params, *x, mask))
    found, jacobian, moved = jax.jit(
        lambda x: (
            rate(x, mask),
            jax.jacfwd(lambda x: rate(x, mask))(x),
            rate(x[:, order], mask[order]),
        )
    )(x)
    assert np.abs(found[:, :2]).min() > 1e-4
    np.testing.assert_array_equal(found[:, 2], 0)  # does not exist
    np.testing.assert_allclose(np.trace(jacobian.reshape(12, 12)), 0, atol=1e-5)
    assert np.abs(jacobian).max() > 1e-3
    np.testing.assert_allclose(moved, found[:, order], atol=1e-6)


def test_in_its_own_units_a_law_has_size_one():
    data = turned(0.3, 40)
    own, units = jax.device_get(jax.jit(recipe.own_units)(data))
    for x in (own.q, own.p):
        np.testing.assert_allclose(np.mean(x**2), 1, rtol=1e-5)
    np.testing.assert_allclose(np.mean(own.dq**2 + own.dp**2), 1, rtol=1e-5)
    np.testing.assert_allclose(
        own.dq * units.p / units.q,
        own.p * (units.p / units.q) ** 2 / units.rate,
        rtol=1e-5,
    )


def test_embeddings_are_alike_up_to_a_turn_and_unlike_without_a_common_cause():
    x = np.random.default_rng(0).normal(size=(500, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    cka = jax.jit(recipe.linear_cka)
    np.testing.assert_allclose(cka(x, 3 * x @ turn + 1), 1, rtol=1e-5)
    other = np.random.default_rng(1).normal(size=(500, 3))
    assert cka(x, other) < 0.05


@pytest.mark.slow
def test_predictions_do_not_depend_on_the_units_of_the_data(key):
    model = hamiltonian_meta(TINY)
    params = model.init(key, 1).params
    a, b, c = 3.0, 0.2, 5.0  # of q, p and 1 / time
    plain = turned(0.3, 10)
    large = PhaseData(
        a * plain.q, b * plain.p, a * c * plain.dq, b * c * plain.dp, plain.mask
    )
    predict = jax.jit(model.predict)
    dq, dp = predict(params, plain, plain.q[3], plain.p[3])
    scaled = predict(params, large, large.q[3], large.p[3])
    np.testing.assert_allclose(scaled[0], a * c * dq, rtol=1e-4)
    np.testing.assert_allclose(scaled[1], b * c * dp, rtol=1e-4)


@pytest.mark.slow
def test_the_outer_gradient_is_that_of_finite_differences(key):
    with jax.enable_x64(True):
        model = hamiltonian_meta(dataclasses.replace(TINY, inner_steps=3))
        params = jax.tree.map(
            lambda x: x.astype(jnp.float64), model.init(key, 1).params
        )
        support, query = (
            jax.tree.map(lambda x: x.astype(jnp.float64), turned(angle, 6))
            for angle in (0.0, 0.5)
        )

        def outer(params):
            phi, units = recipe.adapt(TINY, params, support, 3)
            return recipe.error(TINY, phi, recipe.in_units(query, units))

        check_grads(outer, (params,), order=1, modes=("rev",), eps=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"first_order": True}, {"checkpoint": True}])
def test_first_order_changes_the_gradient_and_checkpoints_do_not(change, key):
    laws = jax.tree.map(lambda x: x[None], recipe.own_units(turned(0.0, 12))[0])
    norms = []
    for config in (TINY, dataclasses.replace(TINY, **change)):
        model = hamiltonian_meta(config)
        state = model.init(jax.random.key(1), 1)
        step_key = jax.random.clone(key)
        norms.append(jax.jit(model.step)(step_key, state, laws)[1]["grad_norm"])
    different = abs(norms[0] / norms[1] - 1)
    assert different > 1e-3 if "first_order" in change else different < 1e-5


@pytest.mark.slow
def test_without_inner_steps_it_is_plain_training(key):
    config = dataclasses.replace(TINY, inner_steps=0)
    model = hamiltonian_meta(config)
    state = model.init(key, 1)
    laws = [recipe.own_units(turned(angle, 8))[0] for angle in (0.0, 2.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *laws)
    after, metrics = jax.jit(model.step)(jax.random.key(1), state, stacked)

    def plain(params):
        return (
            recipe.error(config, params, laws[0])
            + recipe.error(config, params, laws[1])
        ) / 2

    value, grads = jax.jit(jax.value_and_grad(plain))(state.params["start"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    before, now = state.params["rates"], after.params["rates"]
    jax.tree.map(np.testing.assert_array_equal, before, now)


@pytest.mark.slow
def test_laws_are_bounded_and_belong_to_their_systems(key):
    config = dataclasses.replace(Config(), laws=20, num_bodies=2)
    draw = lambda name, config: jax.jit(
        lambda key: recipe.draw_laws(key, config, name)
    )(jax.random.clone(key))
    escape = draw("henon_heiles", config)
    assert escape.q.shape == (20, 100, 2, 2)
    np.testing.assert_array_equal(escape.mask[:, :, 1], 0)
    assert np.abs(escape.q).max() < 10  # one that escaped would be at infinity
    plain = draw("mass_spring", dataclasses.replace(config, stretch=1.0))
    q, p, dq, dp = (x[:, :, 0] for x in plain[:4])
    ratio = np.stack([dq / p, -dp / q])
    per_law = np.median(ratio, (2, 3))
    per_state = np.broadcast_to(per_law[..., None, None], ratio.shape)
    np.testing.assert_allclose(ratio, per_state, rtol=1e-3)
    # In time of its own, the spring turns once in 2π √2 units.
    np.testing.assert_allclose(np.prod(per_law, 0), 0.5, rtol=0.1)


@pytest.mark.slow
def test_descent_fits_a_law_and_a_learnt_start_fits_it_sooner(key):
    config = dataclasses.replace(TINY, width=8, inner_steps=3, updates=150)
    model = hamiltonian_meta(config)
    laws = [recipe.own_units(turned(angle, 12))[0] for angle in (0.0, 1.0, 2.0, 3.0)]
    laws = jax.tree.map(lambda *x: jnp.stack(x), *laws)

    @jax.jit
    def losses(key):
        init_key, loop_key = jax.random.split(key)
        state = model.init(init_key, 1)
        after, _ = optimise.repeat(model.step, state, loop_key, laws, config.updates)
        fresh = turned(0.5, 40)

        def left(params, steps):
            phi, units = recipe.adapt(config, params, fresh, steps)
            return recipe.error(config, phi, recipe.in_units(fresh, units))

        fresh_start = [left(state.params, steps) for steps in (0, 3, 30)]
        return *fresh_start, left(after.params, 3)

    first, soon, late, learnt = losses(key)
    assert late < 0.5 * soon < 0.5 * first
    assert learnt < 0.5 * soon


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, BODIES], ids=["one", "several"])
def test_the_experiment_gives_numbers_from_a_tiny_setting(config, key):
    config = dataclasses.replace(
        config, target="three_body" if config is BODIES else "quartic"
    )
    metrics = jax.jit(lambda key: recipe.experiment(key, config))(key)
    assert {"error/meta", "error/random", "drift/network", "cka"} <= set(metrics)
    errors = [value for name, value in metrics.items() if name.startswith("error")]
    assert np.isfinite(errors).all()
    assert 0 <= metrics["cka"] <= 1.0001


def test_data_that_cannot_be_adapted_to_are_refused():
    model = hamiltonian_meta(TINY)
    x = np.ones((1, 2))
    empty = PhaseData(*[np.ones((0, 1, 2))] * 5)
    with pytest.raises(ValueError, match=r"at least one state, got shape \(0, 1, 2\)"):
        model.predict({}, empty, x, x)
    for conserving in (True, False):
        config = dataclasses.replace(TINY, conserving=conserving)
        with pytest.raises(ValueError, match="q and p must have the same shape"):
            recipe.rates(config, {}, x, x[:, :1], x)
    with pytest.raises(ValueError, match="must embed the same states, got 3 and 4"):
        recipe.linear_cka(np.ones((3, 1)), np.ones((4, 1)))


@pytest.mark.slow
def test_systems_of_more_bodies_than_there_is_room_for_are_refused(key):
    with pytest.raises(ValueError, match="at most 1 bodies of 2 coordinates, got 2"):
        recipe.draw_laws(key, TINY, "two_body")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "pendulum"}, "beside the target 'pendulum', got"),
        ({"systems": ()}, r"systems must name one or more of .*, got \(\)"),
        ({"systems": ("kepler",)}, "'kepler' is none of mass_spring, pendulum"),
        ({"target": "three_body"}, "num_bodies must be at least 3 for 'three_body'"),
        ({"activation": "relu"}, "must have a second derivative, got 'relu'"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"support": 0}, "support must be positive, got 0"),
        ({"stretch": 0.5}, r"stretch must be at least 1, got 0\.5"),
        ({"rate": float("nan")}, "rate must be finite, got nan"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
