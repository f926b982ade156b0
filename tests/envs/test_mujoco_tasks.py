"""Hopper, half-cheetah, walker and inverted pendulum against Gymnasium's own."""

import gymnasium
import jax
import numpy as np
import pytest

from jaxwm.envs.tasks import halfcheetah, hopper, inverted_pendulum, walker2d
from jaxwm.physics.mjx import MjState

TASKS = {
    "InvertedPendulum-v5": inverted_pendulum.inverted_pendulum,
    "Hopper-v5": hopper.hopper,
    "HalfCheetah-v5": halfcheetah.halfcheetah,
    "Walker2d-v5": walker2d.walker2d,
}


@pytest.fixture(params=TASKS)
def both(request):
    """Gymnasium's environment and ours, stepped by the same engine."""
    with gymnasium.make(request.param).unwrapped as theirs:
        yield theirs, TASKS[request.param](engine="c")


def random_state(rng, theirs, spread):
    model = theirs.model
    qpos = theirs.init_qpos + spread * rng.uniform(-1, 1, model.nq)
    return qpos, min(10 * spread, 3) * rng.normal(size=model.nv)


@pytest.mark.parametrize("spread", [0.05, 0.8])
def test_a_step_is_gymnasiums(both, spread):
    # Small spreads keep standing and touch the ground, large ones mostly fall. Physics
    # are kept in float32 between steps: 1e-4 of speeds near 10, hence 1e-4 of rewards
    # plus the rounding of x over dt.
    theirs, ours = both
    rng = np.random.default_rng(3)
    step, reset_to = jax.jit(jax.vmap(ours.step)), jax.jit(jax.vmap(ours.reset_to))
    states = [random_state(rng, theirs, spread) for _ in range(60)]
    qpos, qvel = (np.stack(x).astype(np.float32) for x in zip(*states, strict=True))
    low, high = np.array(ours.spec.action)
    actions = rng.uniform(low, high, (60, len(low))).astype(np.float32)
    warmstart = np.zeros_like(qvel)
    begin = reset_to(MjState(qpos, qvel, np.zeros((60, 0), np.float32), warmstart))
    after = step(jax.random.split(jax.random.key(0), 60), begin, actions)
    fell = 0
    for i in range(60):
        theirs.reset(seed=0)
        theirs.data.qacc_warmstart[:] = 0
        theirs.data.qpos[:], theirs.data.qvel[:] = qpos[i], qvel[i]
        np.testing.assert_allclose(begin.obs[i], theirs._get_obs(), atol=1e-6)
        obs, reward, terminated, _, _ = theirs.step(actions[i])
        np.testing.assert_allclose(after.obs[i], obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(after.reward[i], reward, rtol=1e-4, atol=1e-3)
        assert bool(after.discount[i] == 0) == terminated
        fell += terminated
    if ours.spec.name != "halfcheetah":
        assert (fell > 5) == (spread > 0.1) and fell < 60


def test_an_episode_is_gymnasiums(both):
    # Chaos multiplies the rounding of float32 between steps, so only 30 steps.
    theirs, ours = both
    rng = np.random.default_rng(5)
    obs, _ = theirs.reset(seed=1)
    begin = MjState(
        theirs.data.qpos.astype(np.float32),
        theirs.data.qvel.astype(np.float32),
        np.zeros(0, np.float32),
        theirs.data.qacc_warmstart.astype(np.float32),
    )
    state, step = ours.reset_to(begin), jax.jit(ours.step)
    low, high = np.array(ours.spec.action)
    rewards, total = 0.0, 0.0
    for _ in range(30):
        action = rng.uniform(0.3 * low, 0.3 * high).astype(np.float32)
        obs, reward, terminated, _, _ = theirs.step(action)
        state = step(jax.random.key(0), state, action)
        rewards, total = rewards + reward, total + float(state.reward)
        assert bool(state.discount == 0) == terminated
        np.testing.assert_allclose(state.obs, obs, rtol=1e-2, atol=1e-2)
        if terminated:
            break
    np.testing.assert_allclose(total, rewards, rtol=1e-3, atol=1e-2)


def test_sizes_clock_and_bounds_are_gymnasiums(both):
    theirs, ours = both
    spec = ours.spec
    assert spec.obs.shape == theirs.observation_space.shape
    np.testing.assert_array_equal(spec.action.low, theirs.action_space.low)
    np.testing.assert_array_equal(spec.action.high, theirs.action_space.high)
    assert spec.control_dt == pytest.approx(theirs.dt)
    assert spec.time_limit == gymnasium.spec(theirs.spec.id).max_episode_steps


def test_starts_spread_as_gymnasiums(key, both):
    theirs, ours = both
    keys = jax.random.split(key, 400)
    obs = np.asarray(jax.jit(jax.vmap(ours.reset))(keys).obs)
    reference = np.stack([theirs.reset(seed=i)[0] for i in range(400)])
    # Five standard errors of 400 draws with deviations up to 0.1.
    np.testing.assert_allclose(obs.mean(0), reference.mean(0), atol=0.035)
    np.testing.assert_allclose(obs.std(0), reference.std(0), rtol=0.2)
