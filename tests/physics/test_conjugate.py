"""Conjugate directions against numpy, with good, bad and no preconditioners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.physics import conjugate
from jaxwm.physics.poisson import multigrid, poisson

pytestmark = pytest.mark.slow  # compiles for long; nothing is built on it yet

N = 12


def matrix(seed=0):
    a = jax.random.normal(jax.random.key(seed), (N, N))
    return a @ a.T / N + jnp.eye(N)


def rhs(shape=(N,)):
    return jax.random.normal(jax.random.key(9), shape)


def test_conjugate_gradients_solve_in_as_many_steps_as_unknowns():
    with jax.enable_x64(True):
        a, b = matrix(), rhs()
        x, info = conjugate.solve(lambda u: a @ u, b, tol=1e-10, max_iter=N + 1)
        np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-8)
        assert info.converged
        assert info.iterations <= N
        assert not info.broken


def test_the_exact_inverse_solves_in_one_step_whatever_its_scale():
    a, b = matrix(), rhs()
    inverse = jnp.linalg.inv(a)
    x, info = conjugate.solve(lambda u: a @ u, b, lambda r: 7 * inverse @ r)
    assert info.iterations == 1
    np.testing.assert_allclose(a @ x, b, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_error_never_grows_in_the_norm_of_the_matrix(keep):
    """Also for proposals that know nothing of the matrix."""
    with jax.enable_x64(True):
        a, b = matrix(), rhs()
        exact = np.linalg.solve(a, b)
        mix = jax.random.normal(jax.random.key(4), (N, N))
        errors = []
        for steps in range(1, 8):
            x, _ = conjugate.solve(
                lambda u: a @ u,
                b,
                lambda r: jnp.tanh(mix @ r),
                tol=1e-12,
                max_iter=steps,
                keep=keep,
            )
            errors.append((x - exact) @ a @ (x - exact))
        assert (np.diff([exact @ a @ exact, *errors]) <= 1e-12).all()


def test_multigrid_needs_few_iterations_on_every_grid():
    def count(side, precondition):
        b = rhs((side, side))
        solve = jax.jit(lambda b: conjugate.solve(poisson, b, precondition))
        return int(solve(b)[1].iterations)

    small, large = count(16, multigrid), count(32, multigrid)
    assert large <= 9
    assert large <= small + 2
    assert count(32, lambda r: r) > 4 * large


def test_the_residuals_are_recorded_and_end_where_the_solve_ends():
    a, b = matrix(), rhs()
    _, info = conjugate.solve(lambda u: a @ u, b, max_iter=40)
    steps = int(info.iterations)
    assert info.residual[0] == 1
    assert info.residual[steps] <= 1e-4
    assert np.isnan(info.residual[steps + 1 :]).all()


def test_zero_gives_zero_at_once():
    x, info = conjugate.solve(poisson, jnp.zeros((4, 4)))
    np.testing.assert_array_equal(x, 0)
    assert info.converged
    assert info.iterations == 0


def test_too_few_steps_and_indefinite_matrices_are_reported():
    a, b = matrix(), rhs()
    _, info = conjugate.solve(lambda u: a @ u, b, tol=1e-6, max_iter=2)
    assert not info.converged
    assert not info.broken
    x, info = conjugate.solve(lambda u: -u, b)
    assert info.broken
    assert not info.converged
    np.testing.assert_array_equal(x, 0)


def test_the_derivative_is_that_of_the_solution():
    with jax.enable_x64(True):
        a, b = matrix(), rhs()

        def solution(scale, b):
            apply = lambda u: a @ u + scale * u
            solver = lambda apply, b: conjugate.solve(
                apply, b, tol=1e-12, max_iter=60, keep=3
            )[0]
            return conjugate.differentiable(apply, b, solver)

        exact = np.linalg.solve(a + 0.5 * np.eye(N), b)
        np.testing.assert_allclose(solution(0.5, b), exact, rtol=1e-8)
        check_grads(solution, (jnp.float64(0.5), b), order=1, modes=("fwd", "rev"))


def test_what_cannot_be_solved_is_refused():
    key = jax.random.key
    skew = jnp.eye(N) + 0.5 * jnp.eye(N, k=1)
    with pytest.raises(ValueError, match="apply must be symmetric"):
        conjugate.require_symmetric(key(0), lambda u: skew @ u, (N,))
    with pytest.raises(ValueError, match="must be positive definite"):
        conjugate.require_symmetric(key(1), lambda u: -u, (N,))
    conjugate.require_symmetric(key(2), poisson, (4, 4))
    with pytest.raises(ValueError, match="tol and max_iter must be positive"):
        conjugate.solve(poisson, jnp.ones(4), max_iter=0)
