"""Families: what is drawn, and recordings of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.envs import families
from jaxwm.train import evaluate

MAKERS = (families.pendulum_family, families.cartpole_family)


@pytest.mark.parametrize("make", MAKERS)
def test_systems_lie_in_their_ranges_or_just_beyond(make, key):
    family = make()
    names = {f.name for f in family.env.spec.factors}
    keys = jax.random.split(key, 200)
    for outside, high in ((False, 1.0), (True, 1.3)):
        drawn = jax.jit(
            jax.vmap(lambda key, far=outside: family.draw(key, outside=far))
        )(keys)
        assert set(drawn) == names
        assert 60 < (drawn["gain"] < 0).sum() < 140  # a fair coin
        for trait in family.traits:
            if trait.name not in names:
                continue
            ends = (trait.high, trait.high) if outside else (trait.low, trait.high)
            assert (drawn[trait.name] >= ends[0] * (1 - 1e-6)).all()
            assert (drawn[trait.name] <= ends[1] * high * (1 + 1e-6)).all()
        assert len(np.unique(drawn["length"])) > 150


def test_the_motor_of_a_pendulum_is_measured_by_its_weight(key):
    family = families.pendulum_family()
    p = jax.jit(jax.vmap(family.draw))(jax.random.split(key, 100))
    share = abs(p["gain"]) / (p["mass"] * p["gravity"] * p["length"] / 2)
    assert (share >= 0.5 - 1e-5).all() and (share <= 2 + 1e-5).all()


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_that_shows_an_observation_goes_on_like_the_original(make, key):
    family = make()
    draw_key, reset_key, step_key = jax.random.split(key, 3)

    @jax.jit
    def both():
        params = family.draw(draw_key)
        state = family.env.reset(reset_key, params)
        twin = family.env.reset_to(family.locate(state.obs), params)
        step = lambda state: family.env.step(step_key, state, jnp.ones(1))
        return step(state), step(twin)

    one, other = both()
    np.testing.assert_allclose(one.obs, other.obs, atol=1e-5)
    np.testing.assert_allclose(one.reward, other.reward, atol=1e-4)


def test_episodes_are_rows_that_follow_each_other(key):
    family = families.pendulum_family()
    env = families.padded(family.env, 5)
    assert env.spec.obs.shape == (5,)
    act = evaluate.uniform(env.spec)
    draw_key, run_key = jax.random.split(key)
    record = lambda: families.episode(run_key, env, family.draw(draw_key), act, 6)
    rows = jax.jit(record)()
    assert rows.obs.shape == (6, 5) and rows.action.shape == (6, 1)
    assert np.array_equal(rows.obs[1:], rows.extras["next_obs"][:-1])
    assert np.array_equal(rows.obs[:, 3:], np.zeros((6, 2)))
    assert (rows.mask == 1).all() and len(np.unique(rows.action)) == 6


def test_padding_cannot_shorten():
    with pytest.raises(ValueError, match="obs_size must be at least 3"):
        families.padded(families.pendulum_family().env, 2)
