"""Returns and advantages: by hand on three steps, as properties, and by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxwm import rl

REWARD = jnp.array([1.0, 2.0, 4.0])
DISCOUNT = jnp.array([0.5, 0.5, 0.5])
REACHED = jnp.array([10.0, 20.0, 40.0])  # v_1 v_2 v_3
LEFT = jnp.array([8.0, 10.0, 20.0])  # v_0 v_1 v_2
LENGTH = 6

# Compiled once, called for every drawn example.
discounted_returns = jax.jit(rl.discounted_returns)
lambda_returns = jax.jit(rl.lambda_returns)
gae = jax.jit(rl.gae)
vtrace = jax.jit(rl.vtrace)


@st.composite
def trajectories(draw):
    """Rewards, discounts with terminations, values left and reached; one length."""
    number = st.floats(-3, 3, width=32)
    rows = lambda: jnp.array(draw(st.lists(number, min_size=LENGTH, max_size=LENGTH)))
    discount = draw(
        st.lists(st.sampled_from([0.0, 0.9, 1.0]), min_size=LENGTH, max_size=LENGTH)
    )
    value = jnp.array(draw(st.lists(number, min_size=LENGTH + 1, max_size=LENGTH + 1)))
    return rows(), jnp.array(discount), value[:-1], value[1:]


examples = settings(max_examples=20, deadline=None)


def test_discounted_returns_by_hand():
    # 4 + .5*40 = 24; 2 + .5*24 = 14; 1 + .5*14 = 8
    np.testing.assert_allclose(
        rl.discounted_returns(REWARD, DISCOUNT, 40.0), [8, 14, 24]
    )
    np.testing.assert_allclose(rl.discounted_returns(REWARD, DISCOUNT), [3, 4, 4])


def test_lambda_returns_by_hand():
    # 24; 2 + .5(.5*20 + .5*24) = 13; 1 + .5(.5*10 + .5*13) = 6.75
    got = rl.lambda_returns(REWARD, DISCOUNT, REACHED, 0.5)
    np.testing.assert_allclose(got, [6.75, 13, 24])


def test_gae_by_hand():
    # deltas -2, 2, 4; 4; 2 + .25*4 = 3; -2 + .25*3 = -1.25
    got = rl.gae(REWARD, DISCOUNT, LEFT, REACHED, 0.5)
    np.testing.assert_allclose(got, [-1.25, 3, 4])


def test_vtrace_by_hand():
    # ratios 2, .5, 1 -> rho, c = 1, .5, 1
    # errors: 4; .5*2 + .5*.5*4 = 2; -2 + .5*2 = -1
    log_ratio = jnp.log(jnp.array([2.0, 0.5, 1.0]))
    got = rl.vtrace(REWARD, DISCOUNT, LEFT, REACHED, log_ratio)
    np.testing.assert_allclose(got.target, [7, 12, 24], rtol=1e-6)
    # advantages: 1 + .5*12 - 8 = -1; .5(2 + .5*24 - 10) = 2; 4 + .5*40 - 20 = 4
    np.testing.assert_allclose(got.advantage, [-1, 2, 4], rtol=1e-6)


def test_survival_by_hand():
    discount = jnp.array([1.0, 0.5, 0.0, 1.0])
    np.testing.assert_allclose(rl.survival(discount), [1, 1, 0.5, 0])
    np.testing.assert_allclose(rl.survival(discount, inclusive=True), [1, 0.5, 0, 0])


@examples
@given(trajectories(), st.sampled_from([0.0, 0.3, 1.0]))
def test_gae_plus_value_is_the_lambda_return(trajectory, lambda_):
    reward, discount, left, reached = trajectory
    advantage = gae(reward, discount, left, reached, lambda_)
    target = lambda_returns(reward, discount, reached, lambda_)
    np.testing.assert_allclose(advantage + left, target, rtol=1e-4, atol=1e-4)


@examples
@given(trajectories())
def test_lambda_one_is_monte_carlo_and_zero_is_one_step(trajectory):
    reward, discount, _, reached = trajectory
    one = lambda_returns(reward, discount, reached, 1.0)
    monte_carlo = discounted_returns(reward, discount, reached[-1])
    np.testing.assert_allclose(one, monte_carlo, rtol=1e-5, atol=1e-5)
    zero = lambda_returns(reward, discount, reached, 0.0)
    np.testing.assert_allclose(zero, reward + discount * reached, rtol=1e-5, atol=1e-5)


@examples
@given(trajectories(), st.sampled_from([0.3, 1.0]))
def test_vtrace_of_the_acting_policy_is_the_lambda_return(trajectory, lambda_):
    reward, discount, left, reached = trajectory
    got = vtrace(reward, discount, left, reached, jnp.zeros(LENGTH), lambda_)
    target = lambda_returns(reward, discount, reached, lambda_)
    np.testing.assert_allclose(got.target, target, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.advantage, target - left, rtol=1e-4, atol=1e-4)


@examples
@given(trajectories(), st.integers(0, LENGTH - 1))
def test_nothing_behind_a_termination_or_a_time_limit_matters(trajectory, end):
    """A changed future leaves everything up to the end as it was."""
    reward, discount, left, reached = trajectory
    later = jnp.arange(LENGTH) > end
    others = jax.tree.map(lambda x: jnp.where(later, x + 7, x), (reward, left, reached))
    ratio = jnp.full(LENGTH, -0.1)
    stop = jnp.arange(LENGTH) == end
    for terminal in (True, False):
        d = jnp.where(stop & terminal, 0.0, discount)
        lambda_ = jnp.where(stop & (not terminal), 0.0, 0.9)

        def estimates(reward, left, reached, d=d, lambda_=lambda_):
            return (
                lambda_returns(reward, d, reached, lambda_),
                gae(reward, d, left, reached, lambda_),
                *vtrace(reward, d, left, reached, ratio, lambda_),
            )

        before, after = estimates(reward, left, reached), estimates(*others)
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x[: end + 1], y[: end + 1])


def test_several_critics_ride_on_a_trailing_axis():
    stack = lambda x: jnp.stack([x, 2 * x], -1)
    got = rl.gae(stack(REWARD), DISCOUNT, stack(LEFT), stack(REACHED), 0.5)
    one = rl.gae(REWARD, DISCOUNT, LEFT, REACHED, 0.5)
    np.testing.assert_allclose(got, stack(one))
    got = rl.vtrace(
        stack(REWARD), DISCOUNT, stack(LEFT), stack(REACHED), jnp.zeros(3), 0.5
    )
    np.testing.assert_allclose(got.target, stack(one + LEFT))
    got = rl.discounted_returns(stack(REWARD), DISCOUNT, jnp.array([40.0, 80.0]))
    np.testing.assert_allclose(got, stack(jnp.array([8.0, 14.0, 24.0])))


def test_batches_by_vmap_equal_a_loop():
    reward = jnp.stack([REWARD, -REWARD])
    got = jax.jit(jax.vmap(rl.lambda_returns, (0, None, None, None)))(
        reward, DISCOUNT, REACHED, 0.5
    )
    for row, each in zip(reward, got, strict=True):
        one = rl.lambda_returns(row, DISCOUNT, REACHED, 0.5)
        np.testing.assert_allclose(each, one, rtol=1e-6)


def arrays(estimate, *options):
    """Finite differences hand numpy arrays in."""
    return lambda *x: estimate(*map(jnp.asarray, x), *options)


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64():
        cast = lambda x: jnp.asarray(x, jnp.float64)
        args = tuple(map(cast, (REWARD, DISCOUNT, LEFT, REACHED)))
        r, d, v0, v1 = args
        check_grads(arrays(rl.gae, 0.7), args, 1, ("fwd", "rev"))
        check_grads(arrays(rl.lambda_returns, 0.7), (r, d, v1), 1, ("fwd", "rev"))
        # Ratios away from the clips, where the target has a kink.
        ratio = cast(jnp.array([-0.5, -0.2, 0.3]))
        check_grads(arrays(rl.vtrace), (r, d, v0, v1, ratio), 1, ("fwd", "rev"))


def test_lambda_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"lambda_ must be in \[0, 1\], got 1.5"):
        rl.lambda_returns(REWARD, DISCOUNT, REACHED, 1.5)
    with pytest.raises(ValueError, match="lambda_"):
        rl.gae(REWARD, DISCOUNT, LEFT, REACHED, -0.1)
