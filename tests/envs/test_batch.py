"""Batches: the clock, automatic reset, the pool of start states, blow-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.core import loop
from jaxwm.envs import tasks
from jaxwm.envs.batch import DIVERGED
from jaxwm.types import Box, EnvSpec, Factor

TO_INFINITY, TO_NAN = 1e9, 2e9  # actions that break the physics, or the reward alone


def counter(time_limit=4):
    """Counts up from a start uniform in (-2, 2); terminal above 4.5.

    Starts above 1.5 end by termination at the third step, those above 0.5 by both at
    the fourth, the others by the time limit. Reward and observation are the count.
    """
    spec = EnvSpec(
        name="counter",
        obs=jax.ShapeDtypeStruct((1,), np.dtype("float32")),
        action=Box((-1e10,), (1e10,)),
        control_dt=1.0,
        time_limit=time_limit,
        factors=(
            Factor("speed", 1.0, 0.5, 2.0, "1", "counted per step"),
            Factor("lag", 0.0, 0.0, 3.0, "steps", "nothing"),
        ),
    )

    def advance(key, physics, params, action):
        del key
        count = physics + params["speed"]
        broken = jnp.where(action[0] == TO_INFINITY, jnp.inf, count)
        reward = jnp.where(action[0] == TO_NAN, jnp.nan, count)
        return broken, reward, jnp.where(count > 4.5, 0.0, 1.0)

    return tasks.assemble(
        spec,
        lambda key, params: jax.random.uniform(key, minval=-2.0, maxval=2.0),
        advance,
        lambda physics, params: physics[None],
    )


def run(key, batch, num_steps):
    """First state, last state and rows `[N, T, ...]` without actions, as numpy."""
    reset_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)

    def step(key, state):
        following, final_obs = batch.step(key, state, jnp.zeros((batch.num_envs, 1)))
        return following, (following.env, final_obs)

    @jax.jit
    def everything(reset_key, step_key):
        state = batch.reset(reset_key)
        return state, *loop.unroll(step_key, state, step, num_steps)

    return jax.tree.map(np.asarray, everything(reset_key, step_key))


@pytest.fixture(scope="module", params=["pool", "full"])
def episodes(request):
    """16 environments for 40 steps of the counter."""
    batch = envs.batch(counter(), 16, reset=request.param)
    return run(jax.random.key(11), batch, 40)


def test_every_step_is_as_the_rules_say(episodes):
    """An oracle in plain Python, fed with the starts that were drawn."""
    first, _, (env, final_obs) = episodes
    kinds = set()
    for n in range(16):
        count, t = first.env.physics[n], 0
        for k in range(40):
            count, t = np.float32(count + 1), t + 1
            terminal, late = count > 4.5, t == 4
            kinds.add((bool(terminal), late))
            assert env.reward[n, k] == count == final_obs[n, k, 0]
            assert env.discount[n, k] == 1 - terminal
            assert env.truncated[n, k] == late
            if terminal or late:
                count, t = env.physics[n, k], 0
                assert -2 < count < 2
            assert (env.obs[n, k, 0], env.t[n, k]) == (count, t)
    # Neither, termination alone, time limit alone, and both: all were seen.
    assert len(kinds) == 4


def test_metrics_are_there_from_the_start_and_count_no_blow_up(episodes):
    first, last, (env, _) = episodes
    assert list(first.env.metrics) == list(last.env.metrics) == [DIVERGED]
    assert env.metrics[DIVERGED].sum() == 0


def test_full_resets_never_repeat_a_start_nor_depend_on_the_number_of_envs(key):
    few, many = (
        run(key, envs.batch(counter(), num, reset="full"), 40) for num in (3, 16)
    )
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b[:3])
    starts = many[2][0].obs[many[2][0].t == 0]
    assert len(np.unique(starts)) == len(starts) > 100


def test_starts_come_from_the_pool_when_it_is_not_refreshed(key):
    batch = envs.batch(counter(time_limit=1), 4, pool_size=3, refresh=False)
    first, last, (env, _) = run(key, batch, 50)
    np.testing.assert_array_equal(first.pool.obs, last.pool.obs)
    seen, counts = np.unique(env.obs, return_counts=True)
    np.testing.assert_array_equal(seen, np.sort(first.pool.obs[:, 0]))
    # 200 draws from 3 rows: 67 each, standard deviation 6.7.
    assert counts.min() > 33 and counts.max() < 100


def test_refreshing_replaces_the_row_just_used_and_every_row_in_time(key):
    batch = envs.batch(counter(time_limit=1), 2, pool_size=8)
    first, last, (env, _) = run(key, batch, 100)
    assert not np.isin(last.pool.obs, first.pool.obs).any()
    # Two starts a step, of which the first environment's never comes again.
    assert len(np.unique(env.obs[0])) == 100 and len(np.unique(env.obs)) > 100


def test_limit_is_that_of_the_spec_even_when_changed_later(key):
    env = counter()
    env = env._replace(spec=env.spec._replace(time_limit=2))
    _, _, (rows, _) = run(key, envs.batch(env, 1), 4)
    np.testing.assert_array_equal(rows.truncated[0], [0, 1, 0, 1])


def test_blow_ups_reset_their_environment_and_leave_1022_bitwise_alone(key):
    batch = envs.batch(counter(), 1024)
    reset_key, step_key, last_key = (jax.random.fold_in(key, i) for i in range(3))
    step, state = jax.jit(batch.step), jax.jit(batch.reset)(reset_key)
    quiet = jnp.zeros((1024, 1))
    again_key = jax.random.clone(step_key)  # the same draws, without the blow-ups
    good_state, good_final = step(again_key, state, quiet)
    actions = quiet.at[7].set(TO_INFINITY).at[500].set(TO_NAN)
    bad_state, bad_final = step(step_key, state, actions)

    others = ~np.isin(np.arange(1024), [7, 500])
    for a, b in zip(
        jax.tree.leaves((good_state.env, good_final)),
        jax.tree.leaves((bad_state.env, bad_final)),
        strict=True,
    ):
        np.testing.assert_array_equal(a[others], b[others])
    assert bad_state.env.metrics[DIVERGED].sum() == 2
    for row in (7, 500):
        broken = jax.tree.map(lambda x, row=row: x[row], bad_state.env)
        assert broken.metrics[DIVERGED] == 1
        assert broken.truncated and broken.discount == 1 and broken.reward == 0
        assert broken.t == 0 and -2 <= broken.physics < 2
        np.testing.assert_array_equal(bad_final[row], state.env.obs[row])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((bad_state, bad_final)))
    after, _ = step(last_key, bad_state, quiet)
    assert after.env.metrics[DIVERGED].sum() == 0


def test_factors_are_drawn_for_every_start_and_kept_within_an_episode(key):
    ranges = {"speed": (0.5, 1.0), "lag": (0, 3)}
    batch = envs.batch(counter(), 8, factors=ranges, reset="full")
    first, _, (env, _) = run(key, batch, 100)
    begun = env.t == 0
    before = np.concatenate(
        [first.env.params["speed"][:, None], env.params["speed"]], 1
    )
    np.testing.assert_array_equal(np.diff(before, axis=1) != 0, begun)
    speed, lag = env.params["speed"][begun], env.params["lag"][begun]
    assert speed.min() >= 0.5 and speed.max() <= 1
    np.testing.assert_array_equal(np.unique(lag), [0, 1, 2, 3])
    count = np.concatenate([first.env.obs, env.obs[..., 0]], 1)
    np.testing.assert_allclose(
        np.diff(count, axis=1)[~begun], env.params["speed"][~begun], rtol=1e-5
    )


@pytest.mark.slow
def test_factors_that_are_not_drawn_are_constants_of_the_step(key):
    batch = envs.batch(counter(), 2, factors={"lag": (0, 3)})
    state = batch.reset(jax.random.fold_in(key, 0))
    step_key = lambda: jax.random.fold_in(key, 1)
    odd = {**state.env.params, "speed": jnp.full(2, 7.0)}
    given = state._replace(env=state.env._replace(params=odd))
    after, _ = batch.step(step_key(), given, jnp.zeros((2, 1)))
    plain, _ = batch.step(step_key(), state, jnp.zeros((2, 1)))
    np.testing.assert_array_equal(after.env.obs, plain.env.obs)
    np.testing.assert_array_equal(after.env.params["speed"], 7)


def test_step_traces_once_and_does_not_change_its_input(key):
    traces = []
    batch = envs.batch(envs.make("pendulum", engine="jax"), 4, factors="range")

    def counted(key, state, actions):
        traces.append(1)
        return batch.step(key, state, actions)

    step, state = jax.jit(counted), jax.jit(batch.reset)(key)
    before, following = jax.tree.map(np.array, state), state
    for i in range(4):
        following, _ = step(jax.random.fold_in(key, i), following, jnp.zeros((4, 1)))
    assert len(traces) == 1
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_can_be_vmapped_and_gradients_reach_the_first_action(key):
    batch = envs.batch(envs.make("pendulum", engine="jax"), 3)

    def total_reward(actions, key):
        reset_key, step_key = jax.random.split(key)

        def step(key, state):
            following, _ = batch.step(key, state, actions)
            return following, following.env.reward

        return loop.unroll(step_key, batch.reset(reset_key), step, 5)[1].sum()

    slopes = jax.jit(jax.vmap(jax.grad(total_reward), (None, 0)))
    grads = slopes(jnp.zeros((3, 1)), jax.random.split(key, 2))
    assert grads.shape == (2, 3, 1)
    assert np.isfinite(grads).all() and len(np.unique(grads)) == 6


@pytest.mark.parametrize(
    "change, match",
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"reset": "cached"}, 'reset must be "pool" or "full", got "cached"'),
        ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
        ({"factors": "all"}, 'factors must be None, "range"'),
        ({"factors": {"spede": (1, 2)}}, 'unknown factor.*"spede"; did you mean speed'),
    ],
)
def test_bad_settings_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        envs.batch(counter(), **{"num_envs": 2, **change})


def test_actions_of_the_wrong_shape_are_refused(key):
    batch = envs.batch(counter(), 2)
    state = jax.eval_shape(batch.reset, key)
    with pytest.raises(ValueError, match=r"shape \(2, 1\), got \(2,\)"):
        jax.eval_shape(batch.step, key, state, jnp.zeros(2))
