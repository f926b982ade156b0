"""brax, Playground and Gymnasium, in and out."""

import warnings
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from jaxwm import envs
from jaxwm.core import loop
from jaxwm.envs import adapters, probes
from jaxwm.envs.batch import DIVERGED
from jaxwm.types import Box, Discrete

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of jaxopt, on being loaded by brax
    from brax.envs.base import Env as BraxBase
    from brax.envs.base import State as BraxState
    from brax.envs.fast import Fast
    from brax.envs.wrappers import training


def legacy(seed, num=None):
    """One or `num` uint32 keys, as brax passes them."""
    key = jax.random.key(seed)
    return jax.random.key_data(key if num is None else jax.random.split(key, num))


@pytest.fixture(scope="module")
def pendulum():
    return envs.make("pendulum", engine="jax", max_delay=1, delay=1)


class Walk(BraxBase):
    """A random walk that changes its records in place, as brax's environments do."""

    action_size = 2
    observation_size = 1
    backend = "none"
    dt = jnp.float32(0.1)

    def reset(self, rng):
        rng, start = jax.random.split(rng)
        x = jax.random.uniform(start)
        metrics, info = {"moved": jnp.zeros(())}, {"rng": rng, "count": 0}
        return BraxState({"x": x}, x[None], jnp.zeros(()), 0.0, metrics, info)

    def step(self, state, action):
        rng, noise = jax.random.split(state.info["rng"])
        move = action.sum() + 0.1 * jax.random.normal(noise)
        state.info.update(rng=rng, count=state.info["count"] + 1)
        state.metrics["moved"] = move
        x = state.pipeline_state["x"] + move
        done = jnp.where(x > 2, 1.0, 0.0)
        return state.replace(
            pipeline_state={"x": x}, obs=x[None], reward=move, done=done
        )


class PlaygroundState(NamedTuple):
    data: dict
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class PlaygroundWalk:
    """`Walk` under the contract of Playground's `MjxEnv`."""

    action_size = 2
    dt = 0.1

    def reset(self, rng):
        s = Walk().reset(rng)
        return PlaygroundState(*(getattr(s, f) for f in BraxState.__annotations__))

    def step(self, state, action):
        s = Walk().step(BraxState(*state), action)
        return PlaygroundState(*(getattr(s, f) for f in BraxState.__annotations__))


IN = {
    "brax": (adapters.from_brax, Walk),
    "playground": (adapters.from_playground, PlaygroundWalk),
}


@pytest.mark.parametrize("library", IN)
def test_theirs_steps_as_ours(library, key):
    adapt, theirs = IN[library]
    env = adapt(theirs(), time_limit=30)
    assert (
        env.spec.name == theirs.__name__.lower()
        and env.spec.control_dt == pytest.approx(0.1)
    )
    assert env.spec.flat_sizes("test") == (1, 2) and env.spec.time_limit == 30
    action = jnp.array([0.25, -0.5])
    state = env.reset(key)
    record = theirs().reset(jax.random.key_data(key))
    for t in range(3):
        np.testing.assert_array_equal(state.obs, record.obs)
        assert state.t == t and state.discount == 1 and not state.truncated
        before = jax.tree.map(np.array, state)
        after, again = (env.step(key, state, action) for _ in range(2))
        for a, b in zip(*(jax.tree.leaves(s) for s in (after, again)), strict=True):
            np.testing.assert_array_equal(a, b)  # in spite of the dicts they change
        for a, b in zip(*(jax.tree.leaves(s) for s in (before, state)), strict=True):
            np.testing.assert_array_equal(a, b)
        state, record = after, theirs().step(record, action)
        assert state.reward == record.reward == state.metrics["env/moved"]
    there = env.reset_to(state.physics)
    onward = [env.step(key, s, action) for s in (state, there)]
    np.testing.assert_array_equal(onward[0].obs, onward[1].obs)


@pytest.mark.parametrize("library", IN)
def test_theirs_runs_in_our_batches(library, key):
    adapt, theirs = IN[library]
    batch = envs.batch(adapt(theirs(), time_limit=20), 4)

    def run(key):
        reset_key, step_key = jax.random.split(key)

        def step(key, state):
            after, final_obs = batch.step(key, state, jnp.full((4, 2), 0.1))
            return after, (after.env, final_obs)

        return loop.unroll(step_key, batch.reset(reset_key), step, 40)

    _, (rows, final_obs) = jax.jit(run)(key)
    ended = np.asarray(rows.discount == 0)
    np.testing.assert_array_equal(ended, np.asarray(final_obs[..., 0] > 2))
    assert ended.sum() >= 4 and np.all(rows.t[ended] == 0)
    assert np.all(rows.obs[ended] < 1) and rows.metrics[DIVERGED].sum() == 0


def test_actions_for_theirs_are_clipped_to_the_given_bounds(key):
    env = adapters.from_brax(Walk(), action=Box((-1.0, 0.0), (1.0, 0.5)), name="walk")
    state = env.reset(key)
    one, two = (env.step(key, state, jnp.array(a)) for a in ([9.0, 9.0], [1.0, 0.5]))
    assert env.spec.name == "walk" and one.reward == two.reward
    with pytest.raises(ValueError, match=r"action must have 2 dimensions .* got 1"):
        adapters.from_brax(Walk(), action=Box((0.0,), (1.0,)))


def test_brax_truncation_becomes_ours(key):
    env = adapters.from_brax(training.EpisodeWrapper(Walk(), 3, 1), time_limit=100)
    state, step = env.reset(key), jax.jit(env.step)
    for _ in range(3):
        assert not state.truncated
        state = step(key, state, jnp.zeros(2))
    assert state.truncated and state.discount == 1


def test_brax_environments_that_reset_themselves_are_refused():
    wrapped = training.AutoResetWrapper(training.EpisodeWrapper(Walk(), 3, 1))
    with pytest.raises(ValueError, match="hides its final observation"):
        adapters.from_brax(wrapped)


def test_records_that_change_their_structure_are_refused(key):
    class Growing(Walk):
        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(metrics={**state.metrics, "late": jnp.zeros(())})

    env = adapters.from_brax(Growing())
    with pytest.raises(ValueError, match="step of growing changes the structure"):
        env.step(key, env.reset(key), jnp.zeros(2))


def test_dict_observations_and_branched_physics_of_brax_pass(key):
    env = adapters.from_brax(Fast(obs_mode="dict_pixels_state"), control_dt=0.02)
    assert env.spec.obs["state"].shape == (2,)
    state = jax.jit(env.step)(key, env.reset(key), jnp.ones(1))
    assert state.obs["pixels/view_0"].shape == (4, 4, 3) and state.reward > 0


def _brax_run(env, seed, num_envs, num_steps, episode_length):
    wrapped = training.wrap(adapters.to_brax(env), episode_length)

    def run(rng):
        first = wrapped.reset(rng)

        def body(state, _):
            state = wrapped.step(state, jnp.full((num_envs, 1), 0.5))
            return state, (state.obs, state.reward, state.done, state.info)

        return first, jax.lax.scan(body, first, length=num_steps)[1]

    return jax.jit(run)(legacy(seed, num_envs))


def test_brax_wrappers_run_ours(pendulum):
    first, (obs, reward, done, info) = _brax_run(pendulum, 3, 4, 7, 5)
    np.testing.assert_array_equal(done.T, np.tile([0, 0, 0, 0, 1, 0, 0], (4, 1)))
    np.testing.assert_array_equal(info["truncation"][4], np.ones(4))
    np.testing.assert_array_equal(obs[4], first.obs)  # brax's cached start
    state = jax.vmap(pendulum.reset_to)(
        first.pipeline_state.physics, first.pipeline_state.params
    )
    keys, step = (
        jax.random.split(jax.random.key(0), 4),
        jax.jit(jax.vmap(pendulum.step)),
    )
    for t in range(4):
        state = step(keys, state, jnp.full((4, 1), 0.5))
        np.testing.assert_allclose(obs[t], state.obs, atol=1e-6)
        np.testing.assert_allclose(reward[t], state.reward, atol=1e-5)
    # The action under way is part of the physics, so brax's reset clears it.
    np.testing.assert_array_equal(obs[5], obs[0])


def test_brax_evaluator_scores_ours(pendulum):
    """The returns that brax's trainers report, of a policy that gives 0.5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brax.training import acting

    def policy(params):
        return lambda obs, key: (jnp.full((*obs.shape[:-1], 1), 0.5), {})

    evaluator = acting.Evaluator(
        training.wrap(adapters.to_brax(pendulum), 10), policy, 8, 10, 1, legacy(2)
    )
    metrics = evaluator.run_evaluation(None, {})
    _, (_, reward, _, _) = _brax_run(pendulum, 5, 8, 10, 10)
    assert metrics["eval/avg_episode_length"] == 10
    # Other starts, the same distribution: within four standard errors of each.
    returns = reward.sum(0)
    spread = np.hypot(returns.std(), metrics["eval/episode_reward_std"]) / np.sqrt(8)
    assert abs(metrics["eval/episode_reward"] - returns.mean()) < 4 * spread


def test_termination_becomes_done_and_draws_differ_between_steps():
    env = probes.obs_reward(terminal=False).env
    _, (obs, _, done, _) = _brax_run(env, 1, 8, 40, 100)
    assert done.sum() == 0 and set(np.unique(obs)) == {-1.0, 1.0}
    assert abs(np.corrcoef(obs[1:].ravel(), obs[:-1].ravel())[0, 1]) < 0.3
    _, (_, _, done, info) = _brax_run(probes.obs_reward().env, 1, 8, 4, 100)
    assert done.min() == 1 and info["truncation"].max() == 0


OUT = {"brax": adapters.to_brax, "playground": adapters.to_playground}


@pytest.mark.parametrize("library", OUT)
def test_ours_takes_legacy_and_typed_keys_alike(library, pendulum, key):
    out = OUT[library](pendulum)
    one = out.reset(jax.random.key_data(key))
    two = out.reset(key)
    np.testing.assert_array_equal(one.obs, two.obs)
    assert one.info["rng"].dtype == jnp.uint32
    assert (out.observation_size, out.action_size) == (3, 1)
    assert out.dt == 0.05 and out.unwrapped is out


@pytest.mark.parametrize("library", OUT)
def test_there_and_back_again_is_the_same_environment(library, pendulum, key):
    back = IN[library][0](OUT[library](pendulum), name="back", time_limit=200)
    state = back.reset(key)
    body = getattr(state.physics, "pipeline_state", None) or state.physics.data
    ours, step = pendulum.reset_to(body.physics, body.params), jax.jit(pendulum.step)
    step_back = jax.jit(back.step)
    for t in range(5):
        action = jnp.array([0.3 * t - 0.7])
        state, ours = step_back(key, state, action), step(key, ours, action)
        np.testing.assert_allclose(state.obs, ours.obs, atol=1e-6)
        np.testing.assert_allclose(state.reward, ours.reward, atol=1e-5)


@pytest.mark.parametrize("library", OUT)
def test_actions_are_scaled_to_our_bounds(library, pendulum, key):
    wide = pendulum._replace(spec=pendulum.spec._replace(action=Box((-3.0,), (1.0,))))
    seen = []

    def step(key, state, action):
        seen.append(action)
        return pendulum.step(key, state, action)

    out = OUT[library](wide._replace(step=step))
    state = out.reset(key)
    for action in (-1.0, 0.0, 1.0):
        out.step(state, jnp.array([action]))
    np.testing.assert_allclose(np.concatenate(seen), [-3.0, -1.0, 1.0])


@pytest.mark.parametrize("library", OUT)
def test_discrete_and_unbounded_actions_are_refused(library, pendulum):
    for action in (Discrete(3), Box((-np.inf,), (np.inf,))):
        env = pendulum._replace(spec=pendulum.spec._replace(action=action))
        with pytest.raises(ValueError, match="continuous actions between finite"):
            OUT[library](env)


def test_playground_records_are_replaced_as_playground_does(pendulum, key):
    state = adapters.to_playground(pendulum).reset(key)
    other = state.replace(done=jnp.ones(())).tree_replace({"data.t": 3, "info.rng": 0})
    assert (other.done, other.data.t, other.info["rng"]) == (1, 3, 0)
    assert state.done == 0 and state.data.t == 0 and state.info["rng"].shape == (2,)


def test_playground_output_runs_under_the_wrappers_that_playground_uses(pendulum):
    """Playground's training wrapper is brax's vmap and episode, then its own reset."""
    out = training.EpisodeWrapper(
        training.VmapWrapper(adapters.to_playground(pendulum)), 3, 1
    )
    state = jax.jit(out.reset)(legacy(0, 2))
    step = jax.jit(out.step)
    for t in range(3):
        assert np.all(state.done == 0) and np.all(state.data.t == t)
        state = step(state, jnp.zeros((2, 1)))
    assert np.all(state.done == 1) and np.all(state.info["truncation"] == 1)


@pytest.fixture(scope="module")
def vector():
    env = envs.make("cartpole_balance", engine="jax")
    env = env._replace(spec=env.spec._replace(time_limit=25))
    return adapters.to_gymnasium(env, 6, seed=5)


def test_gymnasium_infos_look_like_gymnasiums_own(vector):
    """Same keys, types and masks as `SyncVectorEnv` in the same mode."""

    class Clock(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (2,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            self.left = self.every
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.left -= 1
            over = self.left == 0
            return np.ones(2, np.float32), 0.5, False, over, {"env/diverged": 0.0}

    def clock(every):
        env = Clock()
        env.every = every
        return env

    own = gymnasium.vector.SyncVectorEnv(
        [lambda k=k: clock(k) for k in (2, 3)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    own.reset(seed=0)
    vector.reset(seed=0)
    assert vector.metadata["autoreset_mode"] == own.metadata["autoreset_mode"]
    steps = [own.step(own.action_space.sample()) for _ in range(2)]
    while True:
        ours = vector.step(np.ones((6, 1), np.float32))
        if (ours[2] | ours[3]).any():
            break
    for theirs, mine in zip(steps[1][:4], ours[:4], strict=True):
        assert theirs.dtype == mine.dtype and type(theirs) is type(mine)
    theirs, mine = steps[1][4], ours[4]
    assert theirs.keys() == mine.keys()
    assert theirs["final_info"].keys() == mine["final_info"].keys()
    done = ours[2] | ours[3]
    for name in ("final_obs", "final_info"):
        np.testing.assert_array_equal(mine[f"_{name}"], done)
        assert theirs[f"_{name}"].dtype == mine[f"_{name}"].dtype
    assert mine["final_obs"].dtype == theirs["final_obs"].dtype == object
    for row, over in zip(mine["final_obs"], done, strict=True):
        assert (row is None) != over
        assert not over or row.shape == vector.single_observation_space.shape


def test_gymnasium_steps_are_those_of_the_batch(vector):
    env = envs.make("cartpole_balance", engine="jax")
    rng = np.random.default_rng(0)
    obs, _ = vector.reset(seed=2)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(60):
        actions = rng.uniform(-0.4, 0.4, (6, 1)).astype(np.float32)
        before = obs
        obs, reward, terminated, truncated, infos = vector.step(actions)
        states = jax.vmap(env.reset_to)(_cartpole(before))
        after = jax.vmap(env.step, (None, 0, 0))(jax.random.key(0), states, actions)
        done = terminated | truncated
        final = obs.copy()
        for i in np.flatnonzero(done):
            final[i] = infos["final_obs"][i]
        np.testing.assert_allclose(final, after.obs, atol=1e-6)
        np.testing.assert_allclose(reward, after.reward, atol=1e-6)
        np.testing.assert_array_equal(terminated, after.discount == 0)
        assert np.all(np.abs(obs[done]) <= 0.05)
        assert vector.observation_space.contains(obs)
        ends["terminated"] += terminated.sum()
        ends["truncated"] += truncated.sum()
    assert min(ends.values()) > 0


def _cartpole(obs):
    from jaxwm.envs.tasks.cartpole import Cartpole

    return Cartpole(*obs.T)


def test_gymnasium_seeds_repeat_and_unseeded_resets_go_on(vector):
    actions = np.full((6, 1), 0.2, np.float32)

    def episode(seed):
        rows = [vector.reset(seed=seed)]
        return rows + [vector.step(actions) for _ in range(30)]

    assert data_equivalence(episode(9), episode(9))
    assert not np.array_equal(vector.reset(seed=9)[0], vector.reset(seed=10)[0])
    assert not np.array_equal(vector.reset(seed=9)[0], vector.reset()[0])


def test_gymnasium_wrappers_and_registration_accept_it():
    gymnasium.register(
        "JaxwmPendulum-v0",
        vector_entry_point=lambda num_envs, **kwargs: adapters.to_gymnasium(
            envs.make("pendulum", engine="jax"), num_envs, **kwargs
        ),
    )
    try:
        vector = gymnasium.make_vec(
            "JaxwmPendulum-v0", 3, vectorization_mode="vector_entry_point", seed=1
        )
        vector = RecordEpisodeStatistics(vector)
        vector.reset(seed=1)
        total = np.zeros(3)
        for _ in range(200):
            vector.action_space.seed(0)
            _, reward, _, _, infos = vector.step(vector.action_space.sample())
            total += reward
        np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-6)
        np.testing.assert_array_equal(infos["episode"]["l"], [200, 200, 200])
        vector.close()
    finally:
        del gymnasium.registry["JaxwmPendulum-v0"]


def test_gymnasium_spaces_follow_the_spec(pendulum):
    image = jax.ShapeDtypeStruct((4, 4, 3), np.dtype("uint8"))
    spec = pendulum.spec._replace(
        obs={"image": image, "flat": pendulum.spec.obs}, action=Discrete(4)
    )
    vector = adapters.to_gymnasium(pendulum._replace(spec=spec), 2)
    single = vector.single_observation_space
    assert single["image"].dtype == np.uint8 and single["image"].high.max() == 255
    assert vector.single_action_space.n == 4
    assert vector.observation_space["flat"].shape == (2, 3)
    spec = pendulum.spec._replace(obs=(image,))
    with pytest.raises(ValueError, match="arrays or dicts of arrays, got tuple"):
        adapters.to_gymnasium(pendulum._replace(spec=spec), 2)


def test_gymnasium_misuse_is_named(pendulum):
    vector = adapters.to_gymnasium(pendulum, 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        vector.step(np.zeros((2, 1)))
    with pytest.raises(
        ValueError, match=r"reset takes no options, got \['reset_mask'\]"
    ):
        vector.reset(options={"reset_mask": np.ones(2, bool)})
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        adapters.to_gymnasium(pendulum, 0)


@pytest.mark.slow
def test_a_real_brax_environment_runs_without_false_alarms(key):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # brax warns of its own retirement
        from brax.envs.inverted_pendulum import InvertedPendulum

        env = adapters.from_brax(InvertedPendulum(backend="generalized"))
        batch = envs.batch(env, 8)

        def step(key, state):
            after, _ = batch.step(key, state, jnp.full((8, 1), 0.3))
            return after, (after.env.metrics[DIVERGED], after.env.discount)

        run = jax.jit(lambda k: loop.unroll(k, batch.reset(key), step, 50)[1])
        diverged, discount = run(jax.random.fold_in(key, 1))
    assert diverged.sum() == 0 and (discount == 0).any()
