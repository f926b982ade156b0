"""Planning at every step, with each planner, on models whose futures are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.agents import mpc
from jaxwm.dynamics import from_env
from jaxwm.envs import families
from jaxwm.train import evaluate
from jaxwm.types import Discrete, ModelState

FAMILY = families.pendulum_family()
ENV = FAMILY.env._replace(spec=FAMILY.env.spec._replace(time_limit=40))
TRUE = from_env(ENV, FAMILY.locate)
STRONG = {"mass": 1.0, "length": 1.0, "gravity": 10.0, "gain": -7.0, "friction": 0.0}
SIZES = {
    "random_shooting": {"num": 384},
    "cem": {},
    "mppi": {"temperature": 0.1},
    "descent": {"iterations": 12, "learning_rate": 0.1},
}


@pytest.mark.parametrize("planner", mpc.PLANNERS)
def test_every_planner_swings_the_pendulum_up(planner, key):
    """A strong motor of the other sign: random actions earn about -250."""
    config = mpc.Config(planner=planner, horizon=12, num=64, elites=8)
    agent = mpc.mpc(TRUE, dataclasses.replace(config, **SIZES[planner]))
    params = {name: jnp.float32(x) for name, x in STRONG.items()}
    state = mpc.MPCState(ModelState({}, params, ()))
    act, memory = evaluate.act_of(agent, state)

    @jax.jit
    def run(key):
        return evaluate.returns(key, ENV, act, 4, memory=memory, params=params)

    returns = run(key).returns
    assert returns.mean() > -90.0


def test_the_plan_moves_on_and_is_forgotten_between_episodes(key):
    config = dataclasses.replace(mpc.TINY, horizon=3)
    agent = mpc.mpc(TRUE, config)
    state = agent.init(key)
    plan = jnp.array([[0.1], [0.2], [0.3]])
    assert np.array_equal(mpc.move_on(plan), plan[jnp.array([1, 2, 2])])
    memory = agent.begin(state)
    assert np.array_equal(memory.plan, np.zeros((3, 1)))
    obs = jnp.array([1.0, 0.0, 0.1])
    act = jax.jit(agent.act)
    first, after = act(jax.random.key(1), state, memory, obs, True, False)
    assert np.array_equal(after.plan[0], first)
    again, _ = act(jax.random.key(1), state, after, obs, True, False)
    assert np.array_equal(again, first)
    drawn, _ = act(jax.random.key(1), state, memory, obs, True, True)
    assert not np.array_equal(drawn, first) and abs(drawn[0]) <= 1


def test_returns_count_until_the_imagined_end():
    def imagine(key, state, memory, actions, horizon):
        rollout = TRUE.imagine(key, state, memory, actions, horizon)
        ends = jnp.array([1.0, 0.0, 1.0])
        return rollout._replace(reward=jnp.array([1.0, 2.0, 4.0]), discount=ends)

    model = TRUE._replace(imagine=imagine)
    config = dataclasses.replace(mpc.TINY, horizon=3, gamma=0.5)
    state = model.init(jax.random.key(0))
    value = mpc.imagined_return(
        jax.random.key(0),
        model,
        state,
        jnp.array([1.0, 0, 0]),
        jnp.zeros((3, 1)),
        config,
    )
    np.testing.assert_allclose(value, 1.0 + 0.5 * 2.0)


def test_who_lacks_an_ability_is_refused_by_name():
    lacking = lambda *names: TRUE._replace(
        spec=TRUE.spec._replace(abilities=TRUE.spec.abilities - set(names))
    )
    with pytest.raises(ValueError, match="planning by cem needs reward, which"):
        mpc.mpc(lacking("reward"), mpc.Config())
    descent = mpc.Config(planner="descent")
    with pytest.raises(ValueError, match="planning by descent needs gradient, which"):
        mpc.mpc(lacking("gradient"), descent)
    spec = TRUE.spec._replace(action=Discrete(3))
    with pytest.raises(ValueError, match="needs bounded continuous actions"):
        mpc.mpc(TRUE._replace(spec=spec), mpc.Config())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"planner": "oracle"}, "planner must be among random_shooting, cem"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"elites": 500}, "elites must be in 1 ... num = 128, got 500"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"explore": -0.1}, "explore must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(mpc.Config(), **change)


def test_the_true_model_follows_the_environment(key):
    env = envs.make("pendulum", "jax")
    model = from_env(env, FAMILY.locate)
    actions = jnp.linspace(-1, 1, 5)[:, None]

    @jax.jit
    def both():
        start = env.reset(key, None)
        state = model.init(key)
        rollout = model.imagine(key, state, start.obs, actions, 5)
        step = lambda state, action: (env.step(key, state, action),) * 2
        return rollout, jax.lax.scan(step, start, actions)[1]

    with jax.debug_key_reuse(False):  # neither draws anything
        rollout, path = both()
    np.testing.assert_allclose(rollout.obs[1:], path.obs[:-1], atol=1e-5)
    np.testing.assert_allclose(rollout.reward, path.reward, atol=1e-4)
