"""The step's length follows from how far it moves the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm import rl
from jaxwm.core import dists, optimise

MAX_LR = 0.1
ACTION = jnp.array([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.1]])


def log_prob(params):
    dist = dists.Normal(params["mean"], jnp.exp(params["log_std"]))
    return jax.vmap(dist.log_prob)(ACTION)


def loss(params, advantage):
    return -jnp.mean(log_prob(params) * advantage)


ADVANTAGE = jnp.array([1.0, -0.5, 0.7])
OPTIMISER = optax.adamw(MAX_LR)


def start(lr=MAX_LR):
    params = {"mean": jnp.array([0.1, 0.0]), "log_std": jnp.array([-0.3, 0.2])}
    return optimise.init_state(OPTIMISER, params, rl.trust_region(lr))


@jax.jit
def step(state, target, advantage=ADVANTAGE):
    return rl.trust_region_step(
        loss, log_prob, OPTIMISER, state, advantage, max_lr=MAX_LR, target=target
    )


def moved(old, new):
    return float(jnp.mean(jnp.abs(log_prob(new.params) - log_prob(old.params))))


@pytest.mark.parametrize("lr", [MAX_LR, 1e-3, 1e-6])
@pytest.mark.parametrize("target", [1e-3, 0.01, 0.03])
def test_the_policy_moves_by_the_target(lr, target):
    old = start(lr)
    new, metrics = step(old, target)
    assert 0.8 * target <= moved(old, new) <= 1.2 * target
    np.testing.assert_allclose(metrics["log_prob_change"], moved(old, new), rtol=1e-2)
    assert 0 < metrics["step_scale"] < 1
    assert metrics["tries"] <= 5


def test_the_step_has_the_direction_of_the_full_one():
    old = start()
    new, metrics = step(old, 0.01)
    full, _ = optimise.gradient_step(loss, OPTIMISER, old, ADVANTAGE)
    scaled = jax.tree.map(
        lambda a, b: a + metrics["step_scale"] * (b - a), old.params, full.params
    )
    for got, want in zip(
        jax.tree.leaves(new.params), jax.tree.leaves(scaled), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    # The moments advance once, however many scales were tried.
    assert new.opt_state[0].count == 1


def test_the_largest_step_is_the_full_one():
    old = start(1e-3)
    new, metrics = step(old, 100.0)  # out of reach
    full, _ = optimise.gradient_step(loss, OPTIMISER, old, ADVANTAGE)
    assert metrics["step_scale"] == 1
    for got, want in zip(
        jax.tree.leaves(new.params), jax.tree.leaves(full.params), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_zero_gradient_moves_nothing():
    optimiser = optax.adam(MAX_LR)
    old = optimise.init_state(optimiser, start().params, rl.trust_region(MAX_LR))
    new, _ = rl.trust_region_step(
        loss, log_prob, optimiser, old, jnp.zeros(3), max_lr=MAX_LR, target=0.01
    )
    assert moved(old, new) == 0


def test_a_gradient_that_is_not_finite_keeps_the_parameters_and_says_so():
    old = start()
    new, metrics = step(old, 0.01, ADVANTAGE.at[0].set(jnp.nan))
    assert moved(old, new) == 0
    assert metrics["step_scale"] == 0
    assert metrics["finite"] == 0
    assert metrics["tries"] == 50
    assert np.isfinite(new.buffers.log_lr)


def test_a_change_that_jumps_over_the_band_is_not_exceeded():
    """No scale lies in the band: the search ends, and never above it."""

    def jumping(params):
        far = jnp.abs(params["mean"] - old.params["mean"]).max() > 0.03
        return jnp.where(far, 1.0, 0.0) * jnp.ones(3)

    old = start()
    new, metrics = rl.trust_region_step(
        loss, jumping, OPTIMISER, old, ADVANTAGE, max_lr=MAX_LR, target=0.01
    )
    assert float(jumping(new.params)[0]) == 0
    assert metrics["tries"] == 50


@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_search_finds_the_band_when_the_change_is_not_linear(power):
    def curved(params):
        return 20 * (params["mean"] - old.params["mean"]) ** power

    old = start()
    new, metrics = rl.trust_region_step(
        loss, curved, OPTIMISER, old, ADVANTAGE, max_lr=MAX_LR, target=1e-3
    )
    assert 0.8e-3 <= float(jnp.mean(jnp.abs(curved(new.params)))) <= 1.2e-3
    assert metrics["tries"] <= 12


def test_the_learning_rate_rises_while_the_first_try_moves_too_little():
    state, rates = start(1e-4), []
    for _ in range(3):
        state, metrics = step(state, 0.05)
        rates.append(float(metrics["lr"]))
    assert 1e-4 < rates[0] < rates[1] < rates[2]
    # AdamW's first step is its rate, plus decay of a negative logarithm.
    np.testing.assert_allclose(
        np.log(rates[0] / 1e-4), 3e-4 * (1 + 0.01 * 9.21), rtol=0.02
    )


def test_the_learning_rate_falls_when_the_first_try_moves_too_far_and_is_bounded():
    _, metrics = step(start(MAX_LR), 1e-3)
    assert metrics["lr"] < MAX_LR
    _, metrics = step(start(MAX_LR), 100.0)
    np.testing.assert_allclose(metrics["lr"], MAX_LR, rtol=1e-6)


def test_batches_by_vmap_equal_single_steps():
    states = jax.tree.map(lambda *x: jnp.stack(x), start(MAX_LR), start(1e-4))
    got, _ = jax.vmap(step, (0, None))(states, 0.01)
    for i, lr in enumerate((MAX_LR, 1e-4)):
        one, _ = step(start(lr), 0.01)
        np.testing.assert_allclose(got.params["mean"][i], one.params["mean"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target must be positive, got 0"),
        ({"max_lr": -1.0}, "max_lr must be positive"),
        ({"tolerance": 1.0}, r"tolerance must be in \(0, 1\), got 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    options = {"target": 0.01, "max_lr": MAX_LR, **options}
    with pytest.raises(ValueError, match=message):
        rl.trust_region_step(loss, log_prob, OPTIMISER, start(), ADVANTAGE, **options)


def test_buffers_of_another_kind_are_refused():
    state = start()._replace(buffers=jnp.float32(0))
    with pytest.raises(
        ValueError, match=r"rl\.TrustRegion.*rl\.trust_region\(max_lr\)"
    ):
        step(state, 0.01)
    with pytest.raises(ValueError, match="lr must be positive"):
        rl.trust_region(0)
