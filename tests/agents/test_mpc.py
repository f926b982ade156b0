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
    "predictive_sampling": {},
    "cem": {},
    "mppi": {"temperature": 0.1},
    "descent": {"iterations": 12},
    "projected_gradient": {"iterations": 12},
    "ilqr": {"iterations": 5},
}
# A bound on rates leaves white noise hardly a plan that keeps it.
SMOOTH = {"std": 0.15, "colour": 2.0}
CHANGES = {"cem": SMOOTH, "mppi": SMOOTH, "predictive_sampling": {}, "descent": {}}
MAX_SPEED, MAX_CHANGE = 3.0, 0.5


def slow_but(quick, names):
    """The names as parameters, all slow but one."""
    marks = lambda name: () if name == quick else pytest.mark.slow
    return [pytest.param(name, marks=marks(name)) for name in names]


def play(planner, num_episodes, constraint=None, **changes):
    """Rows of episodes `[E, T, ...]` on the strong pendulum, planned with the truth."""
    config = mpc.Config(planner=planner, horizon=12, num=64, elites=8)
    config = dataclasses.replace(config, **SIZES[planner], **changes)
    agent = mpc.mpc(TRUE, config, constraint=constraint)
    params = {name: jnp.float32(x) for name, x in STRONG.items()}
    state = mpc.MPCState(ModelState({}, params, ()))
    act, memory = evaluate.act_of(agent, state)
    run = lambda key: families.episode(key, ENV, params, act, 40, memory=memory)
    keys = jax.random.split(jax.random.key(7), num_episodes)
    return jax.jit(jax.vmap(run))(keys)


def is_solved(rows):
    """A strong motor of the other sign: random actions earn about -250."""
    returns = rows.reward.sum(1)
    return returns.mean() > -90.0 and (rows.obs[:, -1, 0] > 0.95).mean() >= 0.9


@pytest.mark.parametrize("planner", slow_but("cem", mpc.PLANNERS))
def test_every_planner_swings_the_pendulum_up(planner):
    assert is_solved(play(planner, 4))


@pytest.mark.slow
@pytest.mark.parametrize("planner", [x for x in mpc.PLANNERS if x != "ilqr"])
def test_every_planner_keeps_a_bound_on_speed_and_still_swings_up(planner):
    """Without the bound the pendulum passes 4.5 rad/s or more."""
    fast = lambda rollout, previous: jnp.abs(rollout.obs[1:, 2]) - MAX_SPEED
    rows = play(planner, 16, fast)
    assert is_solved(rows)
    assert (np.abs(rows.obs[:, 1:, 2]) <= MAX_SPEED).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("planner", CHANGES)
def test_a_bound_on_the_change_of_torque_holds_from_step_to_step(planner):
    def abrupt(rollout, previous):
        change = jnp.diff(rollout.action, axis=0, prepend=previous[None])
        return jnp.abs(change) - MAX_CHANGE

    rows = play(planner, 16, abrupt, **CHANGES[planner])
    assert is_solved(rows)
    change = np.diff(rows.action[..., 0], axis=1, prepend=0.0)
    assert (np.abs(change) <= MAX_CHANGE).mean() >= 0.95
    free = play(planner, 16, **CHANGES[planner])
    assert np.abs(np.diff(free.action[..., 0])).max() > 1.5 * MAX_CHANGE


def test_a_constraint_bounds_the_action_that_is_taken(key):
    """Free, it would push with all its might."""
    abrupt = lambda rollout, previous: jnp.abs(rollout.action - previous) - 0.2
    config = dataclasses.replace(mpc.TINY, planner="descent", iterations=10)
    agent = mpc.mpc(TRUE, config, constraint=abrupt)
    state = agent.init(key)
    obs = jnp.array([-0.6, 0.8, 0.0])
    act = jax.jit(agent.act)
    action, memory = act(jax.random.key(1), state, agent.begin(state), obs, True, False)
    assert -0.2 <= action[0] < -0.1
    # From step to step: `previous` is what was taken.
    further, _ = act(jax.random.key(1), state, memory, obs, False, False)
    assert -0.2 <= further[0] - action[0] < 0


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
    with pytest.raises(ValueError, match="by projected_gradient needs gradient, which"):
        mpc.mpc(lacking("gradient"), mpc.Config(planner="projected_gradient"))
    spec = TRUE.spec._replace(action=Discrete(3))
    with pytest.raises(ValueError, match="needs bounded continuous actions"):
        mpc.mpc(TRUE._replace(spec=spec), mpc.Config())


def test_ilqr_refuses_what_it_cannot_expand():
    config = mpc.Config(planner="ilqr")
    drawn = TRUE.spec._replace(abilities=TRUE.spec.abilities | {"stochastic"})
    with pytest.raises(
        ValueError, match="needs a deterministic model, the environment"
    ):
        mpc.mpc(TRUE._replace(spec=drawn), config)
    window = TRUE._replace(initial=lambda state, context: jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"remembers arrays of shapes \[\(5, 3\)\]"):
        mpc.mpc(window, config)
    with pytest.raises(ValueError, match="ilqr takes no constraint"):
        mpc.mpc(TRUE, config, constraint=lambda rollout, previous: rollout.action)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"planner": "oracle"}, "planner must be among random_shooting, predictive"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"elites": 500}, "elites must be in 1 ... num = 128, got 500"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        (
            {"planner": "predictive_sampling", "knots": 21},
            r"knots must be in 1 \.\.\. horizon = 20, got 21",
        ),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"penalty": 0.0}, "penalty must be positive, got 0.0"),
        ({"growth": 0.5}, "growth must be at least 1, got 0.5"),
        ({"length": 0.0}, "length must be positive, got 0.0"),
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
