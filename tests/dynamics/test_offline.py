"""Training on recorded episodes alone."""

import functools

import jax
import jax.numpy as jnp
import linear_system
import numpy as np
import pytest

from jaxwm.dynamics import ensemble, offline
from jaxwm.types import Transition

NUM, LENGTH = 16, 8


@pytest.fixture(scope="module")
def steps():
    """Episodes of the linear system, cut by the clock; a physics of size 0 beside."""
    draw = np.random.default_rng(3)
    x, rows = draw.normal(size=(NUM, 3)), []
    for t in range(LENGTH):
        action = draw.normal(size=(NUM, 2))
        after, reward, _ = linear_system.advance(x, action)
        last = np.full(NUM, t == LENGTH - 1)
        rows.append((x, action, reward, last, after))
        x = after
    x, action, reward, last, after = (np.stack(c, 1) for c in zip(*rows, strict=True))
    observed = [linear_system.observe(s) for s in (x, after)]
    action, reward = action.astype(np.float32), reward.astype(np.float32)
    ones = np.ones((NUM, LENGTH), np.float32)
    empty = {"physics": np.zeros((NUM, LENGTH, 0), np.float32)}
    return Transition(observed[0], action, reward, ones, last, observed[1], ones, empty)


@pytest.mark.slow
def test_more_updates_predict_better_and_the_key_decides_everything(steps):
    model = ensemble.ensemble(ensemble.TINY, linear_system.SPEC)

    @functools.partial(jax.jit, static_argnums=1)
    def fitted(key, updates):
        return offline.fitted(key, model, steps, updates=updates, batch=32)

    def error(state):
        obs, action = steps.obs[:, 0], steps.action
        one = lambda key, obs, action: model.imagine(key, state, obs, action, 2).obs
        keys = jax.random.split(jax.random.key(5), NUM)
        found = jax.jit(jax.vmap(one))(keys, obs, jnp.asarray(action[:, :2]))
        return float(jnp.mean((found[:, 1] - steps.obs[:, 1]) ** 2))

    young, old, again = (fitted(jax.random.key(0), n) for n in (1, 800, 800))
    assert error(old) < 0.3 * error(young)
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
