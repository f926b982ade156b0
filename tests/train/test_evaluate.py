"""Returns of episodes counted by hand, scores and statistics over seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import types
from jaxwm.train import evaluate
from tests.train import walk

# --- returns


def run(key, env, act, num_episodes, **options):
    """`evaluate.returns` as it is used: compiled."""
    program = lambda key: evaluate.returns(key, env, act, num_episodes, **options)
    return jax.jit(program)(key)


def test_a_terminated_episode_counts_its_last_reward_and_nothing_after(key):
    result = run(key, walk.make(end=2.0), walk.constant(1.0), 3)
    np.testing.assert_array_equal(result.returns, [10 + 11] * 3)  # x = 0, 1, then 2
    np.testing.assert_array_equal(result.lengths, [2] * 3)
    assert result.terminated.all()


def test_an_episode_at_the_time_limit_is_not_terminated(key):
    result = run(key, walk.make(), walk.constant(0.0), 2)
    np.testing.assert_array_equal(result.returns, [40, 40])
    np.testing.assert_array_equal(result.lengths, [4, 4])
    assert not result.terminated.any()


def test_the_limit_of_the_spec_ends_an_episode_without_a_clock(key):
    env = walk.make()

    def without_clock(key, state, action):
        return env.step(key, state, action)._replace(truncated=jnp.array(False))

    result = run(key, env._replace(step=without_clock), walk.constant(0.0), 1)
    assert int(result.lengths[0]) == 4


def test_episodes_of_different_length_end_by_themselves(key):
    env = walk.make(noise=0.5, start=-2.0, end=0.0)
    result = run(jax.random.clone(key), env, walk.constant(0.4), 16)
    assert len(set(result.lengths.tolist())) > 1
    assert result.terminated.any() and not result.terminated.all()
    assert np.isfinite(result.returns).all()
    # The first ones are the same whether or not others run beside them.
    fewer = evaluate.returns(key, env, walk.constant(0.4), 4)  # not compiled
    np.testing.assert_allclose(fewer.returns, result.returns[:4], rtol=1e-6)


def test_memory_is_carried_and_the_first_step_is_marked(key):
    def act(key, memory, obs, is_first):
        memory = jnp.where(is_first, 0.0, memory + 0.25)
        return memory[None], memory

    result = run(key, walk.make(), act, 1, memory=jnp.float32(99.0))
    # Actions 0, .25, .5, .75 put x at 0, 0, .25, .75 when rewards are given.
    np.testing.assert_allclose(result.returns, [40 + 1.0], rtol=1e-6)


def test_factors_reach_the_environment(key):
    result = run(
        key, walk.make(), walk.constant(0.5), 1, params={"gain": jnp.float32(2.0)}
    )
    np.testing.assert_array_equal(result.lengths, [3])  # x = 0, 1, 2, 3


def test_returns_vmap_over_seeds(key):
    seed = lambda k, a: evaluate.returns(k, walk.make(), walk.constant(a), 2).returns
    both = jax.jit(jax.vmap(seed))(jax.random.split(key), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(both, [[40, 40], [33, 33]])


def test_an_agent_is_asked_for_its_deterministic_action(key):
    def act(key, state, memory, obs, is_first, explore):
        assert explore is False
        return state + memory, memory

    unused = dict.fromkeys({*types.Agent._fields} - {"begin", "act"})
    agent = types.Agent(**unused, begin=lambda state: 0.5 * state, act=act)
    policy, memory = evaluate.act_of(agent, jnp.array([0.5]))
    result = run(key, walk.make(), policy, 1, memory=memory)
    np.testing.assert_allclose(result.returns, 40 + 0.75 * (1 + 2 + 3))


def test_returns_refuse_no_episode(key):
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        evaluate.returns(key, walk.make(), walk.constant(0.0), 0)


def test_uniform_actions_fill_the_bounds_and_only_them(key):
    keys = jax.random.split(key, (2, 500))

    def draw(keys, space):
        act = evaluate.uniform(walk.SPEC._replace(action=space))
        return jax.vmap(lambda k: act(k, (), None, False)[0])(keys)

    actions = draw(keys[0], types.Box((-1.0, 2.0), (1.0, 5.0)))
    np.testing.assert_allclose(actions.min(0), [-1, 2], atol=0.05)
    np.testing.assert_allclose(actions.max(0), [1, 5], atol=0.05)
    assert set(draw(keys[1], types.Discrete(3)).tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="finite bounds"):
        evaluate.uniform(walk.SPEC._replace(action=types.Box((-np.inf,), (1.0,))))


# --- recording


def record(key, env, act, **options):
    return jax.jit(lambda key: evaluate.record(key, env, act, **options))(key)


def test_a_record_holds_the_start_and_stops_at_the_end(key):
    states, length = record(key, walk.make(end=2.0), walk.constant(1.0))
    assert int(length) == 2
    np.testing.assert_array_equal(states.physics, [0, 1, 2, 2, 2])


def test_a_record_may_be_cut_short(key):
    states, length = record(key, walk.make(), walk.constant(0.5), num_steps=3)
    assert int(length) == 3
    np.testing.assert_array_equal(states.physics, [0, 0.5, 1, 1.5])


def test_a_record_shows_the_episode_that_returns_counts(key):
    env, act = walk.make(noise=0.5), walk.constant(0.1)
    states, length = record(key, env, act)
    assert int(length) == 4
    # Rewards are 10 + x of the state acted in, so they can be summed from the record.
    np.testing.assert_allclose(states.reward[1:], 10 + states.physics[:-1], rtol=1e-6)


# --- scores and tables


def test_score_is_0_at_random_and_1_at_best():
    np.testing.assert_allclose(
        evaluate.score([-1195, -144, -354.2], -1195.0, -144.0), [0, 1, 0.8]
    )
    with pytest.raises(ValueError, match="best_return=None"):
        evaluate.score(1.0, 0.0, None)
    with pytest.raises(ValueError, match="above random_return, got 1"):
        evaluate.score(1.0, 2.0, 1.0)


def test_over_seeds_averages_episodes_first():
    over = evaluate.over_seeds([[0, 2], [3, 5], [7, 9], [100, 102]])
    np.testing.assert_array_equal(over.per_seed, [1, 4, 8, 101])
    assert over.iqm == 6.0  # mean of the middle two
    assert 1 <= over.low < over.iqm < over.high <= 101
    assert over.mean == 28.5
    assert over.std == pytest.approx(np.std([1, 4, 8, 101], ddof=1))


def test_the_interval_shrinks_with_the_spread_and_holds_equal_seeds():
    wide = evaluate.over_seeds([0.0, 10, 20, 30, 40])
    narrow = evaluate.over_seeds([18.0, 19, 20, 21, 22])
    assert narrow.high - narrow.low < 0.2 * (wide.high - wide.low)
    same = evaluate.over_seeds([5.0, 5.0])
    assert (same.low, same.iqm, same.high) == (5, 5, 5)


def test_one_seed_has_no_interval():
    over = evaluate.over_seeds([[1.0, 3.0]])
    assert over.iqm == 2 and np.isnan([over.low, over.high, over.std]).all()


@pytest.mark.parametrize("values", [np.zeros((0,)), np.zeros((1, 2, 3)), 3.0])
def test_over_seeds_refuses_other_shapes(values):
    with pytest.raises(ValueError, match=r"\[S\] or \[S, E\]"):
        evaluate.over_seeds(values)


def test_over_seeds_refuses_a_level_outside_its_range():
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95.0"):
        evaluate.over_seeds([1.0, 2.0], level=95.0)
