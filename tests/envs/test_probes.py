"""Probe environments have the values that they are said to have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs import probes

GAMMA = 0.9


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("make", probes.PROBES, ids=lambda make: make.__name__)
def test_values_obey_the_bellman_equation(make, terminal, key):
    """V(s) = E[r + gamma d V(s')] for the best action; less by what others lose."""
    probe, off = make(terminal), jnp.linspace(0, 0.3, 400)

    @jax.jit
    @jax.vmap
    def gaps(key, off):
        def body(state, i):
            best = jnp.zeros(1) if probe.action is None else probe.action(state.obs)
            after = probe.env.step(jax.random.fold_in(key, i), state, best + off)
            future = GAMMA * after.discount * probe.value(after.obs, GAMMA)
            error = after.reward + future - probe.value(state.obs, GAMMA)
            return after, (error, after.discount)

        state = probe.env.reset(jax.random.fold_in(key, 99))
        return jax.lax.scan(body, state, jnp.arange(length))[1]

    # Nothing is said of what lies behind a terminal state.
    length = 20 if not terminal else 2 if make is probes.delayed_reward else 1
    error, discount = gaps(jax.random.split(key, 400), off)
    lost = 0 * off if probe.action is None else off**2
    if make is probes.obs_reward and not terminal:  # the next s is a coin
        np.testing.assert_allclose(np.abs(error), GAMMA, rtol=1e-5)
        assert abs(error.mean()) < 5 * GAMMA / np.sqrt(error.size)
    else:
        np.testing.assert_allclose(error, -lost[:, None] + 0 * error, atol=2e-5)
    assert np.all(discount[:, :-1] == 1) and np.all((discount[:, -1] == 0) == terminal)


def test_a_terminal_observation_is_one_that_is_never_acted_on(key):
    for make in probes.PROBES:
        env = make().env
        state = env.reset(jax.random.clone(key))
        while state.discount == 1:
            assert state.obs != probes.LAST
            state = env.step(jax.random.clone(key), state, jnp.zeros(1))
        assert state.obs == probes.LAST


def test_only_the_probes_that_say_so_depend_on_action_or_observation():
    def reward(probe, obs, action):
        # The coin needs a key, the reward does not.
        state = probe.env.reset_to(jnp.float32(obs))
        return float(
            probe.env.step(jax.random.key(0), state, jnp.array([action])).reward
        )

    for make in probes.PROBES:
        probe = make()
        by_action = reward(probe, 1, 0.1) != reward(probe, 1, 0.6)
        by_obs = reward(probe, 1, 0.1) != reward(probe, -1, 0.1)
        assert by_action == (probe.action is not None)
        assert by_obs == ("obs" in make.__name__ or make is probes.delayed_reward)


def test_probes_suit_agents_for_flat_observations_and_box_actions():
    for make in probes.PROBES:
        assert make().env.spec.flat_sizes("ppo") == (1, 1)
