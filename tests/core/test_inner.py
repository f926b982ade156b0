"""Differentiable gradient descent against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwm.core import inner

pytestmark = pytest.mark.slow  # compiles for long; nothing is built on it yet

CURVATURE = jnp.array([1.0, 3.0])


def bowl(x):
    return 0.5 * jnp.sum(CURVATURE * x**2)


def test_descent_on_a_bowl_shrinks_each_axis_by_its_power():
    x = jnp.array([2.0, -1.0])
    end, losses = inner.inner_loop(bowl, x, 4, 0.1)
    np.testing.assert_allclose(end, x * (1 - 0.1 * CURVATURE) ** 4, rtol=1e-6)
    np.testing.assert_allclose(losses[0], bowl(x), rtol=1e-6)
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_derivative_goes_through_the_steps_unless_first_order(checkpoint):
    x = jnp.array([2.0, -1.0])

    def end(x, **options):
        return inner.inner_loop(bowl, x, 3, 0.1, checkpoint=checkpoint, **options)[0]

    exact = jnp.diag((1 - 0.1 * CURVATURE) ** 3)
    np.testing.assert_allclose(jax.jacrev(end)(x), exact, rtol=1e-5)
    short = jax.jacrev(lambda x: end(x, first_order=True))(x)
    np.testing.assert_allclose(short, np.eye(2), rtol=1e-6)


def test_the_gradient_of_a_network_agrees_with_finite_differences():
    def loss(params):
        return jnp.sum((jnp.tanh(params["w"] @ jnp.array([1.0, -0.5])) - 0.3) ** 2)

    def after(params, rate):
        return loss(inner.inner_loop(loss, params, 3, rate)[0])

    with jax.enable_x64(True):
        params = {"w": jnp.array([[0.3, -0.2], [0.7, 0.1]], jnp.float64)}
        rate = jnp.float64(0.2)
        check_grads(after, (params, rate), order=1, modes=("rev",))


def test_rates_may_differ_by_leaf():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    loss = lambda p: jnp.sum(p["a"]) + jnp.sum(p["b"])
    end, _ = inner.inner_loop(loss, params, 1, {"a": 0.5, "b": 0.0})
    np.testing.assert_allclose(end["a"], 0.5)
    np.testing.assert_allclose(end["b"], 1.0)


def test_no_steps_is_plain_training_on_all_tasks():
    loss = lambda x, data: jnp.mean((x - data) ** 2)
    support, query = jnp.zeros((2, 3)), jnp.array([[1.0], [3.0]])
    found = inner.meta_loss(loss, jnp.array(0.0), support, query, 0, 0.1)
    np.testing.assert_allclose(found, 5.0)


def test_the_meta_loss_is_that_of_the_query_after_adapting():
    loss = lambda x, data: 0.5 * jnp.mean((x - data) ** 2)
    support, query = jnp.array([[1.0], [-1.0]]), jnp.array([[2.0], [0.0]])
    found = inner.meta_loss(loss, jnp.array(0.0), support, query, 1, 0.5)
    # Each task moves halfway to its support: 0.5 and -0.5.
    np.testing.assert_allclose(found, 0.5 * np.mean([1.5**2, 0.5**2]), rtol=1e-6)


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        inner.inner_loop(bowl, jnp.ones(2), -1, 0.1)
    with pytest.raises(ValueError, match="support must hold data"):
        inner.meta_loss(bowl, jnp.ones(2), jnp.zeros((2, 0)), jnp.ones((2, 1)), 1, 0.1)
