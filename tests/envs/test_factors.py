"""Factors of variation, delayed actions, and building tasks by name."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import envs
from jaxwm.envs import factors

PURE = [row.name for row in envs.TASKS if row.jax]


@pytest.fixture(scope="module")
def pendulum():
    return envs.make("pendulum", engine="jax")


def test_params_default_to_the_spec_and_are_float32(pendulum):
    params = factors.resolve(pendulum.spec, None)
    assert {k: float(v) for k, v in params.items()} == {
        f.name: pytest.approx(f.default) for f in pendulum.spec.factors
    }
    assert all(v.dtype == jnp.float32 for v in params.values())
    doubled = factors.resolve(pendulum.spec, {k: 2.0 * v for k, v in params.items()})
    assert doubled["mass"] == 2 and doubled["mass"].dtype == jnp.float32


def test_params_must_be_complete_and_known(pendulum):
    with pytest.raises(ValueError, match=r"must name every factor.*'length'"):
        factors.resolve(pendulum.spec, {"mass": 1.0})
    with pytest.raises(ValueError, match="did you mean mass"):
        factors.resolve(pendulum.spec, {"maas": 1.0})


def test_drawn_factors_are_uniform_over_their_ranges(pendulum, key):
    ranges = factors.ranges(pendulum.spec, "range")
    draw = jax.jit(jax.vmap(lambda k: factors.sample(k, pendulum.spec, ranges)))
    drawn = draw(jax.random.split(key, 4000))
    for factor in pendulum.spec.factors:
        values, width = drawn[factor.name], factor.high - factor.low
        assert values.min() >= factor.low - 1e-6 and values.max() <= factor.high
        # Mean and spread of a uniform distribution; standard errors 0.5 % and 0.7 %.
        assert abs(values.mean() - factor.low - width / 2) < 0.025 * width
        assert abs(values.std() / width - 12**-0.5) < 0.01
    pairs = np.corrcoef(np.stack([drawn[f.name] for f in pendulum.spec.factors]))
    assert np.abs(pairs - np.eye(len(pairs))).max() < 0.08


def test_fixing_one_factor_leaves_the_draws_of_the_others(pendulum, key):
    everything = factors.sample(
        jax.random.clone(key), pendulum.spec, factors.ranges(pendulum.spec, "range")
    )
    length = {"length": (0.8, 1.2)}
    one = factors.sample(key, pendulum.spec, factors.ranges(pendulum.spec, length))
    assert one["length"] == everything["length"] and one["mass"] == 1.0


def test_fixed_factors_are_defaults_that_no_longer_vary(key):
    env = envs.make("pendulum", engine="jax", mass=3.0, friction=0.05)
    state = env.reset(jax.random.clone(key))
    assert state.params["mass"] == 3
    assert env.reset_to(state.physics).params["friction"] == np.float32(0.05)
    drawn = factors.sample(key, env.spec, factors.ranges(env.spec, "range"))
    assert drawn["mass"] == 3 and drawn["length"] != 1


@pytest.mark.parametrize(
    "chosen, match",
    [
        ({"mas": (1, 2)}, 'unknown factor of variation of pendulum: "mas"; .* mass'),
        ({"mass": (2, 1)}, "factor mass must have low <= high"),
        ({"mass": 2.0}, r"must be \(low, high\), got 2.0; one value for all is set by"),
        ({"mass": (1, 2, 3)}, r"must be \(low, high\), got \(1, 2, 3\)"),
        ({"mass": (0.0, 1.0)}, r"mass \(kg\) must be positive, got 0.0"),
        ({"length": (-1.0, 1.0)}, r"length \(m\) must be positive, got -1.0"),
        ({"friction": (-0.1, 0.1)}, "friction .* must not be negative, got -0.1"),
        ({"gain": (1.0, float("inf"))}, "gain .* must be finite, got inf"),
        ({"gain": (float("nan"), 1.0)}, "gain .* must be finite, got nan"),
        ({"gain": ("1", 2)}, "gain .* must be a number, got '1'"),
    ],
)
def test_ranges_without_physical_sense_are_refused(chosen, match, pendulum):
    with pytest.raises(ValueError, match=match):
        factors.ranges(pendulum.spec, chosen)


def test_delay_shifts_the_actions_by_whole_steps(pendulum, key):
    actions = jnp.array([[1.0], [-0.5], [0.3], [0.9], [-1.0], [0.2]])
    physics = pendulum.reset(key).physics

    def trace(env, state, actions):
        def body(state, action):
            state = env.step(key, state, action)
            return state, (state.obs, state.reward)

        return jax.jit(lambda s, a: jax.lax.scan(body, s, a)[1])(state, actions)

    late = envs.delayed(pendulum, 3)
    for delay in range(4):
        params = late.spec.default_params() | {"delay": np.float32(delay)}
        start = late.reset_to(
            {"body": physics, "queue": jnp.zeros((3, 1))}, params=params
        )
        shifted = jnp.concatenate([jnp.zeros((delay, 1)), actions])[:6]
        expected = trace(pendulum, pendulum.reset_to(physics), shifted)
        for a, b in zip(trace(late, start, actions), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_delayed_physics_is_markov(key):
    env = envs.make("pendulum", engine="jax", delay=2)
    step, state = jax.jit(env.step), env.reset(key)
    for action in (0.5, -1.0, 0.25):
        state = step(key, state, jnp.array([action]))
    np.testing.assert_allclose(state.physics["queue"][:, 0], [0.25, -1.0])
    again = env.reset_to(state.physics, state.params)
    one, two = (step(key, s, jnp.ones(1)) for s in (state, again))
    np.testing.assert_array_equal(one.obs, two.obs)


def test_delays_drawn_in_a_batch_are_whole_steps(key):
    env = envs.make("pendulum", engine="jax", max_delay=2)
    batch = envs.batch(env, 64, factors={"delay": (1, 2)})
    state = jax.jit(batch.reset)(key)
    np.testing.assert_array_equal(np.unique(state.env.params["delay"]), [1, 2])
    assert state.env.physics["queue"].shape == (64, 2, 1)
    step_key = jax.random.fold_in(key, 1)
    following, _ = jax.eval_shape(batch.step, step_key, state, jnp.ones((64, 1)))
    assert jax.tree.structure(following) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "delay, match",
    [
        (-1, "delay .* must not be negative, got -1"),
        (1.5, "delay .* must be a whole number up to 2, got 1.5"),
        (float("inf"), "delay .* must be finite"),
    ],
)
def test_delays_without_sense_are_refused(delay, match):
    with pytest.raises(ValueError, match=match):
        envs.make("pendulum", engine="jax", delay=delay)


def test_delaying_twice_or_not_at_all_is_refused(pendulum):
    with pytest.raises(ValueError, match="max_delay must be at least 1 step, got 0"):
        envs.delayed(pendulum, 0)
    with pytest.raises(ValueError, match="pendulum has a factor delay already"):
        envs.delayed(envs.delayed(pendulum, 1), 1)
    with pytest.raises(ValueError, match="whole number up to 2, got 3"):
        envs.make("pendulum", engine="jax", max_delay=2, delay=3)


def test_rows_are_sorted_and_each_offers_an_engine():
    names = [row.name for row in envs.TASKS]
    assert names == sorted(set(names))
    assert all(row.engines and row.doc for row in envs.TASKS)


@pytest.mark.parametrize("name", PURE)
def test_pure_tasks_are_made_by_name(name):
    env = envs.make(name, engine="jax")
    assert env.spec.name == name
    assert env.spec.random_return < env.spec.best_return


def test_a_task_may_be_seen_in_images():
    env = envs.make("dr_reach", images=True, gain=3.5)
    assert len(env.spec.obs.shape) == 3 and env.spec.obs.dtype == np.uint8
    assert env.spec.default_params()["gain"] == 3.5
    with pytest.raises(
        ValueError, match=r"images must be False for pendulum .*dr_reach"
    ):
        envs.make("pendulum", "jax", images=True)
    with pytest.raises(ValueError, match="for hopper with engine mjx, got True"):
        envs.make("hopper", images=True)


def test_cartpole_means_swing_up():
    assert envs.make("cartpole", engine="jax").spec.name == "cartpole_swingup"


@pytest.mark.parametrize(
    "args, match",
    [
        (("pendulm",), 'unknown environment: "pendulm"; did you mean pendulum'),
        (("xyz",), 'unknown environment: "xyz"; Known: .*pendulum'),
        (("hopper", "jax"), 'unknown engine of hopper: "jax"; .*Known: c, mjx, warp'),
        (("hopper", "mjxx"), 'unknown engine of hopper: "mjxx"; did you mean mjx'),
    ],
)
def test_unknown_names_are_refused_with_the_closest(args, match):
    with pytest.raises(ValueError, match=match):
        envs.make(*args)


def test_importing_the_room_and_a_pure_task_loads_no_simulator():
    code = (
        "import sys; from jaxwm import envs; envs.make('pendulum', 'jax');"
        "print([m for m in ('mujoco', 'brax', 'gymnasium') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_missing_attributes_are_named():
    with pytest.raises(AttributeError, match="no attribute 'batches'"):
        envs.batches  # noqa: B018
    assert {"make", "probes", "adapters"} <= set(dir(envs))
