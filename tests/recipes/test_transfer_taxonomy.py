"""Tasks, mechanisms and scores of the transfer harness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import catalogue
from jaxwm.recipes import transfer_taxonomy as recipe
from jaxwm.types import Trajectory

ENTRY = catalogue.find("transfer_taxonomy")
HOME = recipe.Task(jnp.array([0.6, 0.0]), jnp.ones(2))
FLIPPED = recipe.Task(jnp.array([0.6, 0.0]), jnp.array([-1.0, 1.0]))
ENV = recipe.navigation(HOME)


def windows(num=16):
    rng = np.random.default_rng(0)
    draw = lambda size: jnp.asarray(rng.uniform(-1, 1, (num, 1, size)), jnp.float32)
    obs, following = draw(4), draw(4)
    one = jnp.ones((num, 1))
    return Trajectory(obs, draw(2), draw(1)[..., 0], one, one, {"next_obs": following})


def test_the_goal_is_not_seen_and_earns_where_it_lies(key):
    state = jax.jit(ENV.reset)(key)
    assert state.obs.shape == ENV.spec.obs.shape == (4,)
    after = jax.jit(ENV.step)(key, state, jnp.array([0.3, -0.2]))
    np.testing.assert_allclose(
        after.reward, recipe.goal_reward(HOME)(after.obs), rtol=1e-5
    )
    assert recipe.goal_reward(HOME)(jnp.append(HOME.goal, jnp.ones(2))) == 1


def test_changed_dynamics_answer_the_opposite_action_alike(key):
    state = ENV.reset(key)
    action = jnp.array([0.5, 0.7])
    flipped = recipe.navigation(FLIPPED).step(key, state, action * FLIPPED.gain)
    np.testing.assert_allclose(ENV.step(key, state, action).obs, flipped.obs)


def test_each_axis_changes_what_it_says(key):
    source, targets = recipe.tasks_of(key)
    differs = lambda a, b: np.asarray(jnp.any(a != b, -1))
    rewards = differs(targets.goal, source.goal)
    dynamics = differs(targets.gain, source.gain)
    assert dict(zip(recipe.AXES, zip(rewards, dynamics, strict=True), strict=True)) == {
        "same": (False, False),
        "reward": (True, False),
        "dynamics": (False, True),
        "both": (True, True),
    }


def test_frozen_dynamics_stay_while_the_reward_is_learnt(key):
    model = recipe.modular(recipe.TINY, ENV.spec)
    first = model.init(key)
    frozen = first._replace(buffers={"frozen": jnp.ones(())})

    def moved(state, rows, part):
        pairs = zip(
            jax.tree.leaves(fit(state, rows).params[part]),
            jax.tree.leaves(first.params[part]),
            strict=True,
        )
        return any(not np.array_equal(a, b) for a, b in pairs)

    rows = windows()
    with jax.debug_key_reuse(False):  # the fit draws nothing, but splits its key
        fit = jax.jit(lambda state, rows: model.fit(key, state, rows)[0])
        assert moved(first, rows, "dynamics") and moved(first, rows, "reward")
        assert not moved(frozen, rows, "dynamics") and moved(frozen, rows, "reward")
        # Rows that are masked, as those of an empty buffer, teach nothing.
        blank = rows._replace(mask=jnp.zeros((16, 1)))
        assert not moved(first, blank, "dynamics")


def test_shaping_adds_no_more_than_the_potential_at_the_two_ends(key):
    """So it cannot change which policy is best."""
    gamma, potential = 0.9, lambda obs: 3.0 * obs[0] + obs[3]
    shaped = recipe._shaped(ENV, potential, gamma)
    actions = jnp.linspace(-1, 1, 12).reshape(6, 2)

    @jax.jit
    def extra(key):
        start = ENV.reset(key)

        def step(states, action):
            plain, other = states
            new = ENV.step(key, plain, action), shaped.step(key, other, action)
            return new, new[1].reward - new[0].reward

        (last, _), extras = jax.lax.scan(step, (start, start), actions)
        ends = gamma**6 * potential(last.obs) - potential(start.obs)
        return extras @ gamma ** jnp.arange(6.0), ends

    with jax.debug_key_reuse(False):  # deterministic
        found, ends = extra(key)
    np.testing.assert_allclose(found, ends, rtol=1e-4)


def made_up():
    """Curves of three seeds: all at 0.5 but data at 0.75 and frozen at 0."""
    names = ("scratch", "ppo_scratch", *recipe.MODEL_ROWS, *recipe.POLICY_ROWS)
    level = {"data": 0.75, "frozen": 0.0}
    shape = (3, len(recipe.AXES), 4)
    return {name: jnp.full(shape, level.get(name, 0.5)) for name in names}


def test_rows_are_judged_against_their_own_scratch(key):
    curves = made_up()
    curves["ppo_scratch"] = curves["ppo_scratch"] + 0.25
    metrics = jax.jit(recipe.gains)(key, curves)
    assert metrics["same/gain/data"] == pytest.approx(0.5)
    assert metrics["both/gain/frozen"] == pytest.approx(-1.0)
    assert metrics["both/high/frozen"] < 0  # negative transfer
    assert metrics["reward/gain/control"] == pytest.approx(0.0)
    assert metrics["reward/gain/policy"] == pytest.approx(-1.0)
    table = recipe.to_markdown(metrics).splitlines()
    assert len(table) == 2 + len(recipe.MODEL_ROWS) + len(recipe.POLICY_ROWS)
    assert "| 0.50 [0.50, 0.50] |" in table[2] and table[2].startswith("| data |")
    assert {line.count("|") for line in table} == {6}
    # Every number of the claim is there; these curves do not keep it.
    assert not ENTRY.claim.check({k: float(v) for k, v in metrics.items()}).holds


def test_what_cannot_be_compared_is_refused():
    build = lambda source, target, **references: recipe.transfer_taxonomy(
        recipe.TINY, source, target, recipe.goal_reward(HOME), **references
    )
    with pytest.raises(ValueError, match="both references of the target, got random=0"):
        build(ENV, ENV, random=0.0)
    longer = ENV.spec._replace(obs=jax.ShapeDtypeStruct((6,), np.dtype("float32")))
    with pytest.raises(ValueError, match="must agree in observations and actions"):
        build(ENV, ENV._replace(spec=longer), random=0.0, expert=1.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seeds": 2}, "seeds must be at least 3, got 2"),
        ({"points": 0}, "points must be at least 1, got 0; a budget of nothing"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)


@pytest.mark.slow
def test_the_whole_matrix_is_finite_and_scratch_stays_scratch(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, recipe.TINY))(key)
    assert all(np.isfinite(value) for value in metrics.values())
    ENTRY.claim.check({k: float(v) for k, v in metrics.items()})


@pytest.mark.slow
def test_what_is_learnt_at_home_does_not_know_the_target(key):
    """Seeds are not shared either: `run` draws from its own key."""

    def known(target):
        harness = recipe.transfer_taxonomy(
            recipe.TINY,
            ENV,
            recipe.navigation(target),
            recipe.goal_reward(target),
            random=0.0,
            expert=1.0,
        )
        return jax.jit(harness.extract)(key)

    with jax.debug_key_reuse(False):
        pairs = zip(
            jax.tree.leaves(known(HOME)), jax.tree.leaves(known(FLIPPED)), strict=True
        )
    assert all(np.array_equal(a, b) for a, b in pairs)
