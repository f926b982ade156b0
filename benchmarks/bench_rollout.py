"""Environment steps under a policy (an MLP of 64 x 64), beside brax and Playground.

brax's own `generate_unroll` steps the same environment of ours under brax's wrappers,
with the same network: loop and wrappers differ, physics do not. Playground steps its
own cart-pole swing-up under the same network, with its own model of the same task: the
row shows what one gets for choosing the one or the other.
"""

from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp

from benchmarks import peer
from benchmarks.measure import Settings, compare, timed
from benchmarks.record import Row, timed_row
from jaxwm import envs, nn
from jaxwm.core import loop

TASK = "cartpole_swingup"
STEPS = 32


def rows(settings: Settings) -> Iterator[Row]:
    num_envs = settings.pick(256, 4)
    num_steps = settings.pick(STEPS, 2)
    env = envs.make(TASK, engine="mjx")
    batch = envs.batch(env, num_envs)
    actor = nn.Actor(env.spec.action.size, hidden=(64, 64))
    state = jax.jit(batch.reset)(jax.random.key(0))
    params = actor.init(jax.random.key(1), state.env.obs[0])

    def rollout(key, state, params):
        def act(key, state):
            act_key, env_key = jax.random.split(key)
            dist = actor.apply(params, state.env.obs)
            action = jnp.clip(dist.sample(act_key), -1.0, 1.0)
            new, final_obs = batch.step(env_key, state, action)
            kept = (state.env.obs, action, new.env.reward, new.env.discount, final_obs)
            return new, kept

        return loop.unroll(key, state, act, num_steps)

    timing, ours = timed(rollout, state, params, settings=settings)
    size = f"{TASK}, {num_envs} environments, {num_steps} steps, MLP 64 x 64"
    brief = settings._replace(min_seconds=0.0, min_repeats=1)
    for package, module, build in (
        ("brax", "brax", _brax),
        ("playground", "mujoco_playground", _playground),
    ):
        name = f"rollout/{package}"
        if reason := peer.missing(module):
            yield Row(name, size, status="skipped", note=reason)
            continue
        unroll, began = build(env, actor, num_envs, num_steps)
        inputs = _params_for(actor, began), began
        _, theirs = timed(unroll, *inputs, settings=brief)
        ratio = compare(
            ours,
            theirs,
            name=f"{package} {metadata.version(package)}",
            settings=settings,
        )
        items = num_envs * num_steps
        yield timed_row(name, size, items, "steps/s", timing, ratio=ratio, target=1.0)


def _params_for(actor, began):
    """Weights for the size of the peer's observations."""
    return actor.init(jax.random.key(1), jnp.zeros(began.obs.shape[-1]))


def _brax(env, actor, num_envs, num_steps):
    """Brax's unroll of our environment, and its first state."""
    from brax.envs import training
    from brax.training import acting

    from jaxwm.envs.adapters import brax

    wrapped = training.wrap(brax.to_brax(env), episode_length=env.spec.time_limit)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), num_envs))

    def unroll(key, params, began):
        def policy(obs, key):
            dist = actor.apply(params, obs)
            return jnp.clip(dist.sample(key), -1.0, 1.0), {}

        raw = jax.random.key_data(key)
        return acting.generate_unroll(wrapped, began, policy, raw, num_steps)

    return unroll, jax.jit(wrapped.reset)(keys)


def _playground(env, actor, num_envs, num_steps):
    """Playground's own task under its wrappers, and its first state."""
    from mujoco_playground import dm_control_suite, wrapper

    del env  # Playground has its own
    theirs = dm_control_suite.load("CartpoleSwingup", config_overrides={"impl": "jax"})
    wrapped = wrapper.wrap_for_brax_training(theirs, episode_length=1000)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), num_envs))

    def unroll(key, params, began):
        def body(state, i):
            dist = actor.apply(params, state.obs)
            action = jnp.clip(dist.sample(jax.random.fold_in(key, i)), -1.0, 1.0)
            new = wrapped.step(state, action)
            return new, (state.obs, action, new.reward, new.done)

        return jax.lax.scan(body, began, jnp.arange(num_steps))

    return unroll, jax.jit(wrapped.reset)(keys)
