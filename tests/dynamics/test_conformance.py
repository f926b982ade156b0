"""What every world model promises, on statistics far from 0 and 1.

A new model is tested by one row in ROWS. The default part runs one compiled survey per
model, several times with other inputs; all checks read its results.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import linear_system
import numpy as np
import pytest
import quick
from linear_system import OFFSET, REWARD, SCALE, SPEC

from jaxwm.agents import dream
from jaxwm.core import dists, optimise
from jaxwm.dynamics import autoregressive_diffusion, ensemble, rssm, transformer
from jaxwm.recipes import comet, hypercrl, polygrad, spartan, tdm


class Row(NamedTuple):
    """One model, as the tests see it."""

    name: str
    build: object  # (spec) -> WorldModel, small
    # Rows of a rollout behind the first one whose action may change: 1 where steps
    # follow each other, None where all rows are imagined together.
    changes: int | None = 1
    # What the slow part trains, (spec) -> WorldModel, and for how many updates.
    trained: object = None
    updates: int = 2000
    # Most that its error over 4 steps may be, as a share of "repeat the first
    # observation": about three times what was measured.
    error: float = 0.1
    # Whether it knows the observation only through a code: what it decodes is then a
    # reconstruction.
    latent: bool = False


def row(module, name, tiny, trained, **rest):
    """A row of a module whose builder takes a config and a spec."""
    builder = getattr(module, module.__name__.rpartition(".")[2])
    return Row(
        name,
        lambda spec: builder(tiny, spec),
        trained=lambda spec: builder(trained, spec),
        **rest,
    )


ROWS = [
    row(
        polygrad,
        "polygrad",
        polygrad.TINY,
        polygrad.Config(horizon=5, decay_updates=2000),
        changes=None,
    ),
    row(
        polygrad,
        "polygrad_transformer",
        polygrad.Config(
            denoiser="transformer", horizon=4, levels=8, calls=2, width=16, depth=1
        ),
        polygrad.Config(
            denoiser="transformer", horizon=5, width=64, depth=2, decay_updates=2000
        ),
        changes=0,
    ),
    row(comet, "comet", comet.TINY, comet.Config(mechanisms=2, warm_up=200)),
    row(spartan, "spartan", spartan.TINY, spartan.Config(target=0.01)),
    row(
        autoregressive_diffusion,
        "autoregressive_diffusion",
        autoregressive_diffusion.TINY,
        autoregressive_diffusion.Config(),
    ),
    row(
        ensemble,
        "ensemble",
        ensemble.TINY,
        ensemble.Config(members=3, elites=2, width=64),
    ),
    row(
        rssm,
        "rssm",
        rssm.TINY,
        rssm.Config(length=6, context=1, groups=16, obs_std=0.03, learning_rate=2e-3),
        error=0.3,  # numbers pass through drawn codes; measured 0.11
        latent=True,
    ),
    row(hypercrl, "hypercrl", hypercrl.TINY, hypercrl.Config()),
    row(
        tdm,
        "tdm",
        tdm.TINY,
        tdm.Config(context=6, history=2, embed=32, decay_updates=2000),
    ),
    row(
        tdm,
        "tdm_scalar",
        dataclasses.replace(tdm.TINY, tokens="scalar"),
        tdm.Config(
            tokens="scalar",
            context=3,
            history=1,
            embed=32,
            bins=128,
            temperature=0.0,
            decay_updates=1500,
        ),
        updates=1500,
    ),
    row(
        transformer,
        "transformer",
        transformer.TINY,
        transformer.Config(context=5, embed=32),
    ),
]
NUM, HORIZON, HISTORY = 6, 4, 3
CHANGED = 2  # the step whose action is perturbed


def policy(feature):
    """Reads raw observations: normalised ones give means near -10000; or latents."""
    markov = feature.shape == SPEC.obs.shape
    x = (feature - OFFSET) / SCALE if markov else feature
    return dists.Normal(0.3 * jnp.tanh(x[:2]) - 0.1 * x[1:3], jnp.full(2, 0.1))


class Inputs(NamedTuple):
    """What a survey is asked; leading axis NUM but for the training data."""

    seeds: np.ndarray  # of the rollouts' keys
    obs: np.ndarray  # [NUM, HISTORY, O]
    prev_action: np.ndarray  # [NUM, HISTORY, A]
    is_first: np.ndarray  # [NUM, HISTORY]
    actions: np.ndarray  # [NUM, HORIZON, A]


def base_inputs():
    """Six cases: 0 and 1 differ in one action; 2 starts anew with what 3 ends with.

    Histories of 4 and 5 hold nothing but their last observation; 5 has other keys.
    """
    draw = np.random.default_rng(5)
    obs = linear_system.observe(draw.normal(size=(NUM, HISTORY, 3)))
    prev_action = draw.uniform(-1, 1, (NUM, HISTORY, 2))
    is_first = np.zeros((NUM, HISTORY), bool)
    is_first[:, 0] = True
    actions = draw.uniform(-1, 1, (NUM, HORIZON, 2))
    seeds = np.array([1, 1, 2, 2, 3, 4])
    for equal in (obs, prev_action, actions):
        equal[1], equal[5] = equal[0], equal[4]
    actions[1, CHANGED] += np.array([0.7, -0.6]) * np.where(
        actions[0, CHANGED] > 0, -1, 1
    )
    obs[3, -1], actions[3] = obs[2, -1], actions[2]
    is_first[2:, -1] = True
    f32 = lambda x: x.astype(np.float32)
    return Inputs(seeds, f32(obs), f32(prev_action), is_first, f32(actions))


def make_survey(model):
    """Everything the checks look at, in one function to compile."""

    def remember(key, state, obs, prev_action, is_first):
        def body(memory, step):
            i, *step = step
            step_key = jax.random.fold_in(key, i)
            return model.observe(step_key, state, memory, *step), None

        steps = (jnp.arange(HISTORY), obs, prev_action, is_first)
        return jax.lax.scan(body, model.initial(state, None), steps)[0]

    def survey(key, state, data, windows, inputs: Inputs):
        fit_key, loss_key, observe_key = jax.random.split(key, 3)
        state = model.adapt(state, linear_system.transitions(data))
        fitted, metrics = model.fit(fit_key, state, windows)

        def loss(params):
            one = jax.tree.map(lambda x: x[0], windows)
            return model.loss(loss_key, state._replace(params=params), one)

        (value, (buffers, loss_metrics)), grads = jax.value_and_grad(
            loss, has_aux=True
        )(state.params)
        memory = jax.vmap(remember, (None, None, 0, 0, 0))(
            observe_key, state, inputs.obs, inputs.prev_action, inputs.is_first
        )

        def imagine(seed, memory, actions):
            given_key, follow_key = jax.random.split(jax.random.key(seed))
            return (
                model.imagine(given_key, state, memory, actions, HORIZON),
                model.imagine(follow_key, state, memory, policy, HORIZON),
            )

        given, followed = jax.vmap(imagine)(inputs.seeds, memory, inputs.actions)
        return {
            "adapted": state,
            "fitted": fitted,
            "metrics": metrics,
            "loss": value,
            "loss_metrics": loss_metrics,
            "buffers": buffers,
            "grads": grads,
            "memory": memory,
            "feature": jax.vmap(model.feature, (None, 0))(state, memory),
            "decoded": jax.vmap(model.decode, (None, 0))(state, memory),
            "given": given,
            "followed": followed,
        }

    return survey


def stir(draw, state):
    """Moves all weights: fresh ones react too little to actions to show mistakes."""

    def move(leaf):
        return leaf + np.float32(0.1) * draw.normal(size=leaf.shape).astype(leaf.dtype)

    params = jax.tree.map(move, state.params)
    buffers = dict(state.buffers)
    if "ema" in buffers:
        buffers["ema"] = params
    return state._replace(params=params, buffers=buffers)


class Surveyed(NamedTuple):
    """A model and what its survey said."""

    row: Row
    model: object
    ask: object  # (state, inputs) -> results, numpy leaves
    traces: list  # one entry per tracing of the survey
    state: object
    inputs: Inputs
    base: dict


# What compiles longest; `tests/test_catalogue.py` looks at these models every time.
_LONG = ("polygrad_transformer", "spartan", "tdm", "tdm_scalar")
SURVEYED = [
    pytest.param(row, marks=[pytest.mark.slow] * (row.name in _LONG)) for row in ROWS
]


@pytest.fixture(scope="module", params=SURVEYED, ids=[row.name for row in ROWS])
def surveyed(request):
    model = request.param.build(SPEC)
    draw = np.random.default_rng(1)
    data = linear_system.episodes(draw, 8, 20)
    windows = linear_system.windows(draw, data, 4, model.spec.window)
    survey, traces = make_survey(model), []

    def counted(*args):
        traces.append(None)
        return survey(*args)

    compiled = quick.jit(counted)
    state = stir(draw, quick.jit(model.init)(jax.random.key(3)))
    inputs = base_inputs()

    def ask(state, inputs):
        results = compiled(jax.random.key(4), state, data, windows, inputs)
        return jax.tree.map(np.asarray, results)

    base = ask(state, inputs)
    return Surveyed(request.param, model, ask, traces, state, inputs, base)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def same(row, a, b):
    """Equal; up to rounding where a memory is computed and not noted down."""
    if not row.latent:
        return equal(a, b)
    return jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y, 0, 1e-4), a, b))


def observe_key():
    """The key with which a survey filters its histories."""
    return jax.random.split(jax.random.key(4), 3)[2]


def test_rollouts_have_the_shapes_and_types_of_the_spec(surveyed):
    spec = surveyed.model.spec
    for name in ("given", "followed"):
        rollout = surveyed.base[name]
        assert rollout.obs.shape == (NUM, HORIZON, *spec.obs.shape)
        assert rollout.obs.dtype == spec.obs.dtype
        assert rollout.feature.shape == (NUM, HORIZON, spec.feature_size)
        assert rollout.action.shape == (NUM, HORIZON, spec.action.size)
        assert rollout.reward.shape == rollout.discount.shape == (NUM, HORIZON)
        assert all(leaf.dtype == np.float32 for leaf in rollout[:5])
        assert rollout.info["finite"].all()


def test_loss_gradient_and_update_are_finite_and_keep_the_state_s_form(surveyed):
    base = surveyed.base
    assert np.isfinite(base["loss"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(base["grads"]))
    assert any(np.any(g != 0) for g in jax.tree.leaves(base["grads"]))
    assert all(np.ndim(m) == 0 for m in jax.tree.leaves(base["metrics"]))
    assert base["metrics"]["finite"] == 1
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert form(base["fitted"]) == form(base["adapted"]) == form(surveyed.state)
    assert form(base["buffers"]) == form(surveyed.state.buffers)
    assert not equal(base["fitted"].params, base["adapted"].params)


def test_rollouts_start_at_what_was_observed_in_raw_units(surveyed):
    last, atol = surveyed.inputs.obs[:, -1], 1e-6
    if surveyed.row.latent:
        last, atol = surveyed.base["decoded"], 3e-5
    for name in ("given", "followed"):
        # In float32, 100 + 0.01 x is known to 8e-6.
        np.testing.assert_allclose(surveyed.base[name].obs[:, 0], last, atol=3e-5)
    np.testing.assert_allclose(surveyed.base["decoded"], last, atol=atol)


def test_everything_imagined_is_in_raw_units(surveyed):
    for name in ("given", "followed"):
        rollout = surveyed.base[name]
        assert np.abs(rollout.obs - OFFSET).max() < 40 * SCALE
        assert np.abs(rollout.reward - REWARD).max() < 0.8 * REWARD
        assert np.abs(rollout.obs - OFFSET).max() > 0
        assert (rollout.discount >= 0).all() and (rollout.discount <= 1).all()


def test_given_actions_are_returned_as_they_are(surveyed):
    assert equal(surveyed.base["given"].action, surveyed.inputs.actions)


def test_followed_actions_are_the_policy_s_at_the_features_returned(surveyed):
    rollout = surveyed.base["followed"]
    dist = jax.vmap(jax.vmap(policy))(rollout.feature)
    z = np.asarray((rollout.action - dist.mean) / dist.stddev)
    assert np.abs(z).max() < 5
    assert 0.3 < z.std() < 2.5


def test_an_action_changes_only_what_comes_later(surveyed):
    changes, rollout = surveyed.row.changes, surveyed.base["given"]
    first = lambda leaf: leaf[0]
    if changes is None:
        assert equal(first(rollout.obs)[0], rollout.obs[1, 0])
        assert not equal(first(rollout.obs)[1:], rollout.obs[1, 1:])
        return
    same = CHANGED + changes
    for leaf in (rollout.obs, rollout.feature):
        assert equal(leaf[0, :same], leaf[1, :same])
        assert not equal(leaf[0, same:], leaf[1, same:])
    for leaf in (rollout.reward, rollout.discount):
        assert equal(leaf[0, :CHANGED], leaf[1, :CHANGED])
    assert rollout.reward[0, CHANGED] != rollout.reward[1, CHANGED]


def test_a_first_observation_forgets_everything_before(surveyed):
    memory = surveyed.base["memory"]
    second, third = (jax.tree.map(lambda x, i=i: x[i], memory) for i in (2, 3))
    assert equal(second, third)
    assert equal(surveyed.base["given"].obs[2], surveyed.base["given"].obs[3])
    fresh = surveyed.model.observe(
        jax.random.fold_in(observe_key(), HISTORY - 1),
        surveyed.base["adapted"],
        surveyed.model.initial(surveyed.base["adapted"], None),
        surveyed.inputs.obs[2, -1],
        np.zeros(2, np.float32),
        True,
    )
    assert same(surveyed.row, second, fresh)


def test_one_trajectory_does_not_see_its_neighbours(surveyed):
    inputs = jax.tree.map(np.copy, surveyed.inputs)
    inputs.obs[3:] += 0.5 * SCALE
    inputs.actions[3:] *= -0.5
    other = surveyed.ask(surveyed.state, inputs)
    for name in ("given", "followed"):
        own = lambda results, name=name: jax.tree.map(lambda x: x[:3], results[name])
        assert equal(own(surveyed.base), own(other))
    assert not equal(surveyed.base["given"].obs[3:], other["given"].obs[3:])


def test_other_keys_change_the_future_where_the_model_is_stochastic(surveyed):
    given = surveyed.base["given"].obs
    if "stochastic" in surveyed.model.spec.abilities:
        assert not equal(given[4, 1:], given[5, 1:])
    followed = surveyed.base["followed"].action
    assert not equal(followed[4], followed[5])


def test_declared_abilities_are_there(surveyed):
    abilities, info = surveyed.model.spec.abilities, surveyed.base["given"].info
    assert {"reward", "discount", "policy", "actions", "decode"} <= abilities
    assert ("log_prob" in abilities) == ("log_prob" in info)
    if "log_prob" in abilities:
        assert info["log_prob"].shape == (NUM, HORIZON)
        assert np.isfinite(info["log_prob"]).all()


def test_saving_and_restoring_changes_nothing(surveyed):
    leaves, structure = jax.tree.flatten(surveyed.base["fitted"])
    saved = [(leaf.tobytes(), leaf.dtype, leaf.shape) for leaf in leaves]
    restored = jax.tree.unflatten(
        structure, [np.frombuffer(*leaf[:2]).reshape(leaf[2]) for leaf in saved]
    )
    again = surveyed.ask(restored, surveyed.inputs)
    assert equal(again, surveyed.ask(surveyed.base["fitted"], surveyed.inputs))


def test_one_compilation_serves_every_state(surveyed):
    surveyed.ask(jax.device_put(surveyed.base["fitted"]), surveyed.inputs)
    assert len(surveyed.traces) == 1


# The slow part ---------------------------------------------------------------------


@pytest.mark.slow
def test_filtering_step_by_step_equals_the_sequence(surveyed):
    model, state, inputs = surveyed.model, surveyed.base["adapted"], surveyed.inputs
    key = observe_key()
    for case in range(NUM):
        memory = model.initial(state, None)
        for i in range(HISTORY):
            memory = model.observe(
                jax.random.fold_in(key, i),
                state,
                memory,
                inputs.obs[case, i],
                inputs.prev_action[case, i],
                inputs.is_first[case, i],
            )
        whole = jax.tree.map(lambda x, case=case: x[case], surveyed.base["memory"])
        assert same(surveyed.row, jax.tree.map(np.asarray, memory), whole)


@pytest.mark.slow
def test_vmap_over_keys_equals_a_loop(surveyed):
    model, state = surveyed.model, surveyed.base["adapted"]
    memory = jax.tree.map(lambda x: x[0], surveyed.base["memory"])

    def imagine(key):
        return model.imagine(key, state, memory, policy, HORIZON)

    keys = jax.random.split(jax.random.key(2), 3)
    batch = quick.jit(jax.vmap(imagine))(keys)
    alone = quick.jit(imagine)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            one,
            alone(keys[i]),
        )


@pytest.mark.slow
def test_seeds_can_be_vmapped(surveyed):
    model, draw = surveyed.model, np.random.default_rng(2)
    data = linear_system.episodes(draw, 8, 20)
    windows = linear_system.windows(draw, data, 4, model.spec.window)

    def learn(key):
        init_key, fit_key = jax.random.split(key)
        state = model.adapt(model.init(init_key), linear_system.transitions(data))
        return model.fit(fit_key, state, windows)[1]["loss"]

    keys = jax.random.split(jax.random.key(2), 2)
    batch = quick.jit(jax.vmap(learn))(keys)
    alone = quick.jit(learn)
    np.testing.assert_allclose(batch, [alone(key) for key in keys], rtol=1e-4)
    assert batch[0] != batch[1]


@pytest.mark.slow
def test_any_horizon_can_be_asked_for(surveyed):
    model, state = surveyed.model, surveyed.base["adapted"]
    memory = jax.tree.map(lambda x: x[0], surveyed.base["memory"])
    for horizon in (1, 2 * HORIZON + 3):
        imagine = quick.jit(
            lambda memory, horizon=horizon: model.imagine(
                jax.random.key(1), state, memory, policy, horizon
            )
        )
        rollout = imagine(memory)
        for leaf in jax.tree.leaves(rollout[:5]):
            assert leaf.shape[0] == horizon
            assert np.isfinite(leaf).all()
        assert rollout.info["chained"] == (horizon > model.spec.horizon)
    for horizon in (0, 2.0, True):
        with pytest.raises(ValueError, match="horizon must be a positive Python int"):
            model.imagine(jax.random.key(1), state, memory, policy, horizon)
    with pytest.raises(ValueError, match="actor must be a policy or 3 actions"):
        model.imagine(jax.random.key(1), state, memory, jnp.zeros((2, 2)), 3)


@pytest.mark.slow
def test_rollouts_are_differentiable_where_the_model_says_so(surveyed):
    model, state = surveyed.model, surveyed.base["adapted"]
    if "gradient" not in model.spec.abilities:
        pytest.skip("the model does not declare gradients")
    memory = jax.tree.map(lambda x: x[0], surveyed.base["memory"])

    def last_obs(actions):
        rollout = model.imagine(jax.random.key(1), state, memory, actions, HORIZON)
        return jnp.sum(rollout.obs[-1])

    grads = quick.jit(jax.grad(last_obs))(0.5 * surveyed.inputs.actions[0])
    assert np.isfinite(grads).all()
    assert (grads[: HORIZON - 1] != 0).all()


@pytest.mark.slow
def test_the_imagination_agent_makes_two_updates(surveyed):
    model, draw = surveyed.model, np.random.default_rng(2)
    agent = dream.dream(model, dream.TINY)
    data = linear_system.episodes(draw, 8, 20)
    pool = linear_system.windows(draw, data, 64, model.spec.window)

    def sample(key, batch_size):
        at = jax.random.randint(key, (batch_size,), 0, 64)
        return jax.tree.map(lambda x: jnp.asarray(x)[at], pool)

    rows = linear_system.transitions(data)
    begin = quick.jit(lambda key: agent.adapt(agent.init(key), rows))
    state = begin(jax.random.key(1))
    step = quick.jit(lambda key, state: agent.step(key, state, sample))
    first, metrics = step(jax.random.key(2), state)
    second, metrics = step(jax.random.key(3), first)
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert not equal(first.actor.params, second.actor.params)
    assert not equal(first.model.params, second.model.params)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_trained_models_beat_repeating_the_first_observation(row):
    draw, steps = np.random.default_rng(3), 5
    model = row.trained(SPEC)
    data = linear_system.episodes(draw, 400, 30)
    pool = linear_system.windows(draw, data, 8192, model.spec.window)
    pool = jax.tree.map(jnp.asarray, pool)
    rows = linear_system.transitions(data)
    begin = quick.jit(lambda key: model.adapt(model.init(key), rows))
    state = begin(jax.random.key(1))

    def update(key, state, pool):
        at_key, fit_key = jax.random.split(key)
        at = jax.random.randint(at_key, (128,), 0, 8192)
        return model.fit(fit_key, state, jax.tree.map(lambda x: x[at], pool))

    train = jax.jit(lambda *args: optimise.repeat(update, *args, row.updates))
    state, metrics = train(state, jax.random.key(2), pool)
    assert metrics["finite"].all()

    x = np.clip(draw.normal(size=(256, 3)), -1.5, 1.5).astype(np.float32)
    actions = draw.normal(size=(256, steps, 2)).astype(np.float32)
    truth, reward, discount = linear_system.replay(x, actions)

    def imagine(key, obs, actions):
        memory = model.observe(
            key, state, model.initial(state, None), obs, jnp.zeros(2), True
        )
        return model.imagine(jax.random.fold_in(key, 1), state, memory, actions, steps)

    keys = jax.random.split(jax.random.key(3), 256)
    rollout = jax.jit(jax.vmap(imagine))(keys, truth[:, 0], actions)
    # Behind a termination there is nothing to predict.
    runs = np.cumprod(np.append(np.ones((256, 1)), discount[:, :-1], 1), 1)

    def error(obs):
        return (runs[..., None] * (obs - truth) ** 2)[:, 1:].sum() / runs[:, 1:].sum()

    def linear():
        """Rollouts of the least-squares fit to the same transitions."""
        ones = np.ones_like(rows.reward[:, None])
        clipped = rows.action.clip(-1, 1)
        inputs = np.concatenate([(rows.obs - OFFSET) / SCALE, clipped, ones], 1)
        keep = rows.mask > 0
        fit, *_ = np.linalg.lstsq(inputs[keep], rows.next_obs[keep] - OFFSET)
        obs = [truth[:, 0]]
        for t in range(steps - 1):
            inputs = [(obs[-1] - OFFSET) / SCALE, actions[:, t].clip(-1, 1)]
            obs.append(np.concatenate([*inputs, np.ones((256, 1))], 1) @ fit + OFFSET)
        return np.stack(obs, 1)

    share = error(rollout.obs) / error(truth[:, :1])
    line = error(linear()) / error(truth[:, :1])
    print(f"{row.name}: error over copy-last {share:.1e}, linear baseline {line:.1e}")
    assert share < row.error

    # Rewards belong to (obs_t, action_t): one row off would miss by their own spread.
    last = steps - 1 if model.spec.horizon > 1 else steps  # see the model's window
    miss = (runs * (rollout.reward - reward) ** 2)[:, :last].sum()
    spread = (runs * (reward - reward.mean()) ** 2)[:, :last].sum()
    print(f"{row.name}: error of rewards over their spread {miss / spread:.1e}")
    assert miss < 0.05 * spread
    ends = (runs > 0) & (discount == 0)
    goes_on = (runs > 0) & (discount == 1)
    at_end, before = rollout.discount[ends].mean(), rollout.discount[goes_on].mean()
    print(f"{row.name}: discount at ends {at_end:.2f}, elsewhere {before:.2f}")
    assert at_end < before - 0.3
