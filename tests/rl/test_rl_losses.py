"""Losses of actor and critic, and agreement with the reference implementation.

tests/golden/polygrad_reference.npz was recorded from marc-rigter/polygrad-world-models
(PyTorch, float32) on random weights.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn, rl

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        config = json.loads(str(file["config"]))
        arrays = {k: jnp.asarray(v) for k, v in file.items() if k != "config"}
    return {**arrays, "config": config}


def params_of(golden, name):
    """A PyTorch state dict of two hidden layers with LayerNorm as this MLP's params."""
    weight = lambda i: golden[f"params/ac/{name}.model.{i}.weight"]
    bias = lambda i: golden[f"params/ac/{name}.model.{i}.bias"]
    params = {}
    for i, layer in enumerate((0, 3, 6)):
        params[f"Dense_{i}"] = {"kernel": weight(layer).T, "bias": bias(layer)}
    for i, layer in enumerate((1, 4)):
        params[f"LayerNorm_{i}"] = {"scale": weight(layer), "bias": bias(layer)}
    return {"MLP_0": params}


def networks(golden):
    sizes = (golden["config"]["actor_hidden"],) * 2
    style = {"hidden": sizes, "activation": "elu", "layer_norm": True}
    min_std = golden["config"]["min_std"]
    actor = nn.Actor(golden["config"]["act"], min_std=min_std, init_std=1.0, **style)
    return actor, nn.Critic(**style)


def test_actor_critic_agrees_with_the_reference(golden):
    each = lambda f: jax.vmap(jax.vmap(f))  # over trajectories and their steps
    config = golden["config"]
    actor, critic = networks(golden)
    obs, action = golden["a2c/states"], golden["a2c/actions"]
    alive = 1 - golden["a2c/terminals"][:, :-1]
    reward = golden["a2c/rewards"][:, :-1]
    close = lambda got, name: np.testing.assert_allclose(
        got, golden[f"a2c/{name}"], rtol=1e-4, atol=1e-4
    )

    slow = critic.apply({"params": params_of(golden, "critic_target")}, obs)
    advantage = jax.vmap(rl.gae, (0, 0, 0, 0, None))(
        reward, config["gamma"] * alive, slow[:, :-1], slow[:, 1:], config["lam"]
    )
    close(advantage, "advantage")
    close(advantage + slow[:, :-1], "value_target")

    weight = jax.vmap(lambda d: rl.survival(d, inclusive=True))(alive)
    close(weight, "weight")
    actor_params = {
        **params_of(golden, "actor"),
        "log_std": golden["params/ac/logstd._bias"],
    }
    dist = actor.apply({"params": actor_params}, obs[:, :-1])
    close(dist.stddev[0, 0], "std")
    log_prob = each(lambda d, a: d.log_prob(a))(dist, action[:, :-1])
    entropy = each(lambda d: d.entropy())(dist)
    close(log_prob, "log_prob")
    gain = rl.policy_gain(log_prob, rl.normalise_advantage(advantage))
    close(rl.actor_loss(gain, entropy, weight, config["entropy"]), "actor_loss")

    value = critic.apply({"params": params_of(golden, "critic")}, obs[:, :-1])
    target = advantage + slow[:, :-1]
    close(jnp.mean(weight * rl.value_loss(value, target)), "critic_loss")


def test_clipped_gain_by_hand():
    log_ratio = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5, 1.1]))
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0, 3.0])
    got = rl.clipped_gain(log_ratio, advantage, 0.2)
    np.testing.assert_allclose(got, [2.4, -3.0, 1.0, -1.6, 3.3], rtol=1e-6)


def test_clipped_gain_stops_pushing_outside_the_band_only_outwards():
    slope = jax.vmap(jax.grad(rl.clipped_gain), (0, 0, None))
    log_ratio = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5, 1.0]))
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0, 2.0])
    np.testing.assert_allclose(
        slope(log_ratio, advantage, 0.2), [0, -3, 1, 0, 2], rtol=1e-6
    )


def test_both_surrogates_have_the_policy_gradient_at_the_acting_policy():
    advantage = jnp.array([1.0, -2.0])
    log_prob = jnp.array([-0.3, -1.2])
    plain = jax.grad(lambda p: rl.policy_gain(p, advantage).sum())(log_prob)
    clipped = jax.grad(lambda p: rl.clipped_gain(p - log_prob, advantage, 0.2).sum())(
        log_prob
    )
    np.testing.assert_allclose(plain, clipped)


def test_no_gradient_flows_into_advantages_or_targets():
    one = jnp.float32(0.3)
    assert jax.grad(rl.policy_gain, 1)(one, one) == 0
    assert jax.grad(rl.clipped_gain, 1)(one, one, 0.2) == 0
    assert jax.grad(rl.value_loss, 1)(one, one + 1) == 0
    assert jax.grad(rl.clipped_value_loss, (1, 2))(one, one + 1, one - 1, 0.2) == (0, 0)


def test_clipped_value_loss_takes_the_larger_of_both():
    value, old, target = (
        jnp.array([1.0, 1.0]),
        jnp.array([0.0, 0.0]),
        jnp.array([2.0, 0.0]),
    )
    got = rl.clipped_value_loss(value, old, target, 0.2)
    np.testing.assert_allclose(got, [0.5 * 1.8**2, 0.5], rtol=1e-6)


def test_normalised_advantages_have_mean_zero_and_unit_spread():
    advantage = jnp.array([[1.0, 2.0], [3.0, 10.0]])
    got = rl.normalise_advantage(advantage)
    np.testing.assert_allclose(np.std(got, ddof=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.mean(got), 0, atol=1e-7)
    # With weights the last entry does not count.
    weight = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    got = rl.normalise_advantage(advantage, weight)
    np.testing.assert_allclose(got[weight > 0], [-(1.5**0.5), 0, 1.5**0.5], atol=1e-6)


def test_advantages_without_spread_or_weight_stay_finite():
    assert np.all(rl.normalise_advantage(jnp.ones(3)) == 0)
    assert np.all(np.isfinite(rl.normalise_advantage(jnp.ones(3), jnp.zeros(3))))


def test_a_clip_that_is_not_positive_is_refused():
    one = jnp.float32(1)
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        rl.clipped_gain(one, one, 0)
    with pytest.raises(ValueError, match="clip"):
        rl.clipped_value_loss(one, one, one, -0.1)
