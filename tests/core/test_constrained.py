"""A constraint is met with equality where the objective and the error disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import constrained


def test_descent_finds_the_constrained_minimum():
    """Minimise |x| subject to (x - 2)^2 <= 1/4: the answer is x = 3/2."""

    def step(carry, _):
        x, multiplier = carry
        error = lambda x: (x - 2) ** 2
        slope = jax.grad(
            lambda x: constrained.constrained_loss(
                jnp.abs(x), error(x), 0.25, multiplier
            )
        )(x)
        multiplier = constrained.update(multiplier, error(x), 0.25, rate=0.005)
        return (x - 0.02 * slope, multiplier), x

    begin = (jnp.float32(2.0), constrained.start())
    (_, multiplier), xs = jax.jit(
        lambda begin: jax.lax.scan(step, begin, None, length=8000)
    )(begin)
    np.testing.assert_allclose(xs[-1000:].mean(), 1.5, atol=0.02)
    # Stationary where d|x|/dx / lambda = -d error/dx: 1 / lambda = 2 (2 - 1.5).
    np.testing.assert_allclose(multiplier.value, 1.0, rtol=0.2)


def test_the_multiplier_rises_above_the_limit_falls_below_and_keeps_its_bounds():
    begin = constrained.start(10.0)
    up = constrained.update(begin, jnp.float32(3.0), 1.0, decay=0.0, rate=0.1)
    down = constrained.update(begin, jnp.float32(0.5), 1.0, decay=0.0, rate=0.1)
    # The gap is cut at one limit: from 3 the step is as large as from 2.
    np.testing.assert_allclose(up.value, 10 * np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(down.value, 10 * np.exp(-0.05), rtol=1e-6)
    top = constrained.update(begin, jnp.float32(3.0), 1.0, decay=0.0, high=10.0)
    assert top.value == 10 and constrained.saturated(top, 10.0) == 1
    assert constrained.saturated(down, 10.0) == 0


def test_the_gap_is_a_running_mean_and_its_step_has_no_scale():
    state, scaled = constrained.start(), constrained.start()
    for error in (2.0, 0.5, 0.7):
        state = constrained.update(state, jnp.float32(error), 1.0)
        scaled = constrained.update(scaled, jnp.float32(100 * error), 100.0)
    gap = 0.01 * (0.99**2 * 1.0 - 0.99 * 0.5 - 0.3)
    np.testing.assert_allclose(state.gap, gap, rtol=1e-4)
    np.testing.assert_allclose(state.value, scaled.value, rtol=1e-6)


def test_no_gradient_reaches_the_multiplier_or_the_limit():
    def loss(value, limit):
        multiplier = constrained.Multiplier(value, jnp.zeros(()))
        return constrained.constrained_loss(1.0, 2.0, limit, multiplier)

    slopes = jax.grad(loss, (0, 1))(jnp.float32(4.0), jnp.float32(0.5))
    np.testing.assert_array_equal(slopes, 0)
    np.testing.assert_allclose(loss(jnp.float32(4.0), 0.5), 2 - 0.5 + 0.25)


def test_settings_without_sense_are_refused():
    state, error = constrained.start(), jnp.float32(1.0)
    with pytest.raises(ValueError, match="value must be positive, got 0"):
        constrained.start(0.0)
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        constrained.update(state, error, 0.0)
    with pytest.raises(ValueError, match="decay must be in"):
        constrained.update(state, error, 1.0, decay=1.0)
    with pytest.raises(ValueError, match="rate must be positive"):
        constrained.update(state, error, 1.0, rate=0.0)
    with pytest.raises(ValueError, match="low and high"):
        constrained.update(state, error, 1.0, low=2.0, high=1.0)
