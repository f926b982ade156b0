"""A small learner with everything a real one has: network, optimiser, replay, noise."""

import jax
import jax.numpy as jnp
import optax

from jaxwm.types import Learner

CAPACITY = 2000


def make(*, bad_iteration=-1, bad_seed_above=10.0, work=1):
    """Fits a line to noisy rows that it collects; `work` repeats its update.

    At `bad_iteration` its loss becomes NaN where the state's draw exceeds
    `bad_seed_above`.
    """
    optimiser = optax.adam(1e-2)

    def init(key):
        params = {"w": jax.random.normal(key, (8,)), "b": jnp.zeros(())}
        return {
            "params": params,
            "slow": params,  # the same arrays twice
            "opt": optimiser.init(params),
            "replay": jnp.zeros((4, CAPACITY, 8)),
            "nothing": jnp.zeros((0, 3)),
            "weak": 1.0 * jnp.asarray(2),  # weakly typed
            "draw": jax.random.uniform(jax.random.fold_in(key, 1)),
        }

    def step(key, state, iteration):
        row_key, pick_key, noise_key = jax.random.split(key, 3)
        rows = jax.random.normal(row_key, (4, 1, 8))
        replay = jax.lax.dynamic_update_slice(
            state["replay"], rows, (0, iteration % CAPACITY, 0)
        )

        def loss(params, x, noise):
            target = jnp.sum(x, -1) + 0.1 * noise
            return jnp.mean((x @ params["w"] + params["b"] - target) ** 2)

        def update(i, carry):
            params, opt, _ = carry
            key = jax.random.fold_in(pick_key, i)
            at = jax.random.randint(key, (16,), 0, iteration + 1)
            x = replay[i % 4, at]
            noise = jax.random.normal(jax.random.fold_in(noise_key, i), (16,))
            value, grads = jax.value_and_grad(loss)(params, x, noise)
            updates, opt = optimiser.update(grads, opt, params)
            return optax.apply_updates(params, updates), opt, value

        params, opt, value = jax.lax.fori_loop(
            0, work, update, (state["params"], state["opt"], jnp.zeros(()))
        )
        bad = (iteration == bad_iteration) & (state["draw"] > bad_seed_above)
        value = jnp.where(bad, jnp.nan, value)
        params = jax.tree.map(lambda p: jnp.where(bad, jnp.nan, p), params)
        slow = jax.tree.map(lambda s, p: 0.9 * s + 0.1 * p, state["slow"], params)
        state = {**state, "params": params, "slow": slow, "opt": opt, "replay": replay}
        return state, {
            "loss": value,
            "even": jnp.where(iteration % 2 == 0, 1.0 * iteration, jnp.nan),
            "model/finite": jnp.isfinite(value).astype(jnp.float32),
        }

    def axes(state):
        return {**jax.tree.map(lambda _: -1, state), "replay": 0}

    return Learner(init, step, axes)


def evaluate(key, state):
    """A number and a row, with noise of the evaluation's own key."""
    noise = jax.random.normal(key)
    return {"return": jnp.sum(state["params"]["w"]), "noise": jnp.stack([noise, noise])}
