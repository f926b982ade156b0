"""Tasks, mechanisms and scores of the transfer harness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import catalogue
from jaxwm.recipes import transfer_taxonomy as recipe

ENTRY = catalogue.find("transfer_taxonomy")
HOME = recipe.Task(jnp.array([0.6, 0.0]), jnp.ones(2))
FLIPPED = recipe.Task(jnp.array([0.6, 0.0]), jnp.array([-1.0, 1.0]))
ENV = recipe.navigation(HOME)


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


def test_motors_turn_with_the_place(key):
    """In the middle action 1 pushes to the right, a quarter turn further on upwards."""
    state = ENV.reset(key)
    push = jnp.array([1.0, 0.0])

    def pushed(x):
        physics = state.physics._replace(x=jnp.array([x, 0.0]), v=jnp.zeros(2))
        return ENV.step(key, ENV.reset_to(physics), push).obs[2:]

    with jax.debug_key_reuse(False):  # deterministic
        found = jax.jit(jax.vmap(pushed))(jnp.array([0.0, jnp.pi / 2 / recipe.TURN]))
    assert found[0, 0] > 0.1
    np.testing.assert_allclose(found[1], found[0, ::-1], atol=1e-6)


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


def made_up():
    """Curves of five seeds: all at 0.5 but data at 0.75 and frozen at 0."""
    names = ("scratch", "ppo_scratch", *recipe.MODEL_ROWS, *recipe.POLICY_ROWS)
    level = {"data": 0.75, "frozen": 0.0}
    shape = (5, len(recipe.AXES), 4)
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
        ({"seeds": 4}, "seeds must be at least 5, got 4"),
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
