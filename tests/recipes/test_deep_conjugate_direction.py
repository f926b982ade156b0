"""The loss, right-hand sides of both kinds, and a solver that cannot be misled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.physics import conjugate
from jaxwm.physics.poisson import eigenvalues, poisson, sine_transform
from jaxwm.recipes import deep_conjugate_direction as recipe
from jaxwm.recipes.deep_conjugate_direction import TINY, deep_conjugate_direction


def inverse(b):
    return sine_transform(sine_transform(b) / eigenvalues(b.shape).astype(b.dtype))


def test_the_loss_is_zero_for_the_inverse_and_blind_to_scales(key):
    b = jax.random.normal(key, (6, 6))
    loss = lambda f, b=b: recipe.direction_loss(poisson, f, b)
    np.testing.assert_allclose(loss(lambda b: -5 * inverse(b)), 0, atol=1e-6)
    np.testing.assert_allclose(loss(lambda b: b), loss(lambda b: 3 * b), rtol=1e-4)
    np.testing.assert_allclose(loss(lambda b: b), loss(lambda b: b, 100 * b), rtol=1e-4)
    # Of one eigenvector any multiple is right; orthogonal proposals gain nothing.
    wave = sine_transform(jnp.zeros((6, 6)).at[1, 2].set(1.0))
    np.testing.assert_allclose(loss(lambda b: b, wave), 0, atol=1e-6)
    other = sine_transform(jnp.zeros((6, 6)).at[0, 0].set(1.0))
    np.testing.assert_allclose(loss(lambda b: other, wave), 1, atol=1e-6)


def test_right_hand_sides_are_unit_and_mostly_smooth(key):
    b = recipe.smooth_noise(key, (8, 8), 300, low_gain=9.0)
    np.testing.assert_allclose(jnp.linalg.norm(b, axis=(1, 2)), 1, rtol=1e-5)
    power = np.mean(jax.vmap(sine_transform)(b) ** 2, 0).ravel()
    order = np.argsort(eigenvalues((8, 8)).ravel())
    ratio = power[order[:30]].mean() / power[order[34:]].mean()
    assert 60 < ratio < 110  # 81


@pytest.mark.slow
def test_ritz_values_of_all_unknowns_are_the_eigenvalues(key):
    shape = (3, 4)  # no eigenvalue twice: Lanczos sees each only once
    values, vectors = jax.jit(
        lambda key: recipe.ritz_vectors(key, poisson, jnp.ones(shape), 12)
    )(key)
    np.testing.assert_allclose(values, np.sort(eigenvalues(shape).ravel()), rtol=1e-4)
    image = jax.vmap(poisson)(vectors)
    np.testing.assert_allclose(image, values[:, None, None] * vectors, atol=1e-3)


@pytest.mark.slow
def test_ritz_right_hand_sides_stay_off_the_walls(key):
    mask = jnp.ones((4, 4)).at[2:, 2:].set(0)
    apply = lambda u: poisson(u, mask)

    @jax.jit
    def draw(key, low_gain):
        _, vectors = recipe.ritz_vectors(key, apply, mask, 6)
        b = recipe.ritz_noise(
            jax.random.fold_in(key, 1), vectors, 50, low_gain=low_gain
        )
        return b, jnp.mean(jax.vmap(lambda b: jnp.vdot(b, apply(b)))(b))

    b, curvature = draw(key, 9.0)
    np.testing.assert_allclose(jnp.linalg.norm(b, axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_array_equal(b * (1 - mask), 0)
    assert curvature < 0.8 * draw(jax.random.clone(key), 1.0)[1]


@pytest.mark.slow
def test_an_untrained_network_slows_the_solver_and_does_not_stop_it(key):
    start_key, b_key = jax.random.split(key)
    model = deep_conjugate_direction(TINY)
    b = jax.random.normal(b_key, (8, 8))
    x, info = jax.jit(model.predict)(model.init(start_key).params, b)
    assert info.converged
    assert not info.broken
    np.testing.assert_allclose(x, inverse(b), atol=2e-3)


@pytest.mark.slow
def test_nothing_on_the_right_gives_nothing_at_once(key):
    network = lambda r: jnp.tanh(r + 1)
    x, info = conjugate.solve(
        poisson, jnp.zeros((4, 4)), recipe.as_preconditioner(network)
    )
    np.testing.assert_array_equal(x, 0)
    assert info.iterations == 0
    assert np.isfinite(recipe.as_preconditioner(network)(jnp.zeros(3))).all()


@pytest.mark.slow
def test_an_update_lowers_the_loss_on_what_it_saw(key):
    model = deep_conjugate_direction(dataclasses.replace(TINY, steps=20))
    b = recipe.smooth_noise(key, (8, 8), 2)
    step = jax.jit(lambda state: model.step(None, state, b))
    state, first = step(model.init(jax.random.key(0)))
    for _ in range(5):
        state, last = step(state)
    assert first["finite"] == 1
    assert 0 <= last["loss"] < first["loss"]


@pytest.mark.slow
def test_the_error_never_grows_in_the_norm_of_the_matrix(key):
    with jax.enable_x64(True):
        start_key, b_key = jax.random.split(key)
        b = jax.random.normal(b_key, (8, 8))
        exact, errors = inverse(b), []
        for steps in range(1, 8):
            config = dataclasses.replace(TINY, max_iter=steps, tol=1e-12)
            model = deep_conjugate_direction(config)
            params = model.init(jax.random.clone(start_key)).params
            x, info = model.predict(params, b)
            assert not info.converged  # and says so
            errors.append(jnp.vdot(x - exact, poisson(x - exact)))
        assert (np.diff([jnp.vdot(exact, b), *errors]) <= 1e-12).all()


@pytest.mark.slow
def test_the_derivative_of_a_solve_is_that_of_the_solution(key):
    with jax.enable_x64(True):
        start_key, b_key = jax.random.split(key)
        config = dataclasses.replace(TINY, side=4, tol=1e-12, max_iter=400)
        model = deep_conjugate_direction(config)
        params = model.init(start_key).params
        b = jax.random.normal(b_key, (4, 4))

        def solution(stiffness, b):
            apply = lambda u: poisson(u) + stiffness * u
            solver = lambda apply, b: model.predict(params, b, apply)[0]
            return conjugate.differentiable(apply, b, solver)

        check_grads(solution, (jnp.float64(0.5), b), order=1, modes=("rev",))


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert metrics["l_shape/converged"] == 1
    assert all(np.isfinite(value) for value in metrics.values())


def test_grids_that_cannot_be_halved_are_refused():
    model = deep_conjugate_direction(TINY)
    with pytest.raises(ValueError, match=r"sides divisible by 2, got \(7, 8\)"):
        model.predict({}, jnp.ones((7, 8)))


def test_operators_that_are_not_symmetric_or_not_positive_are_refused():
    with pytest.raises(ValueError, match="apply must be symmetric"):
        deep_conjugate_direction(TINY, lambda u: poisson(u) + jnp.roll(u, 1, 0))
    with pytest.raises(ValueError, match="apply must be positive definite"):
        deep_conjugate_direction(TINY, lambda u: -u)
    # Where it shows only while solving, the flag tells.
    propose = recipe.as_preconditioner(jnp.tanh)
    x, info = conjugate.solve(lambda u: -u, jnp.ones((8, 8)), propose)
    assert info.broken
    assert not info.converged
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 9}, "side must be divisible by 2, .* got 9"),
        ({"keep": -1}, "keep must be at least 0, got -1"),
        ({"tol": 0.0}, "tol must be positive, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_more_ritz_vectors_than_unknowns_are_refused(key):
    with pytest.raises(ValueError, match=r"num must be in \[1, 4\] unknowns, got 5"):
        recipe.ritz_vectors(key, poisson, jnp.ones((2, 2)), 5)
