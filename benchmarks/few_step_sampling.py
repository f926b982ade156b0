"""Are few network calls enough? The default sampler beside the published one.

    python -m benchmarks.few_step_sampling --env arm --seeds 3

Both models have the same network and the same number of updates on the same recorded
episodes. The default makes 4 calls; the reference visits all 128 levels, scales the
actions that the network reads and lets them climb the policy's score, by a rate tuned
at these levels. Both imagine under a fixed random policy from held-out starts, and the
simulator replays the imagined actions. Prints, per seed, errors, their ratio, that of
repeating the start, and mean and spread of the actions' scores.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp

from jaxwm import envs
from jaxwm.core import dists
from jaxwm.dynamics import offline
from jaxwm.recipes import polygrad
from jaxwm.train import fidelity
from jaxwm.types import Env, Transition

# Gravity, stops at the joints and a floor that the tip touches.
ARM = """
<mujoco model="two-link arm">
  <option timestep="0.01" integrator="implicitfast"/>
  <default>
    <joint type="hinge" axis="0 1 0" damping="0.05" armature="0.01" limited="true"/>
    <geom type="capsule" size="0.03" density="300" contype="0" conaffinity="0"/>
    <motor ctrlrange="-1 1" ctrllimited="true"/>
  </default>
  <worldbody>
    <geom name="floor" type="plane" pos="0 0 -0.7" size="2 2 0.1" contype="1"/>
    <body name="upper">
      <joint name="shoulder" range="-120 120"/>
      <geom fromto="0 0 0 0 0 -0.5"/>
      <body name="fore" pos="0 0 -0.5">
        <joint name="elbow" range="-140 140"/>
        <geom fromto="0 0 0 0 0 -0.4"/>
        <geom name="tip" type="sphere" pos="0 0 -0.4" size="0.04" conaffinity="1"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder" gear="4"/>
    <motor joint="elbow" gear="2"/>
  </actuator>
</mujoco>
"""
EPISODES, LENGTH = {"pendulum": 400, "arm": 1000, "halfcheetah": 1000}, 50
HELD = 512  # starts that models imagine from


def arm() -> Env:
    """Two links in a vertical plane; angles as sine and cosine, speeds, the tip."""

    def observe(state):
        shoulder, elbow = state.qpos
        low = shoulder + elbow
        tip = jnp.stack(
            [
                -0.5 * jnp.sin(shoulder) - 0.4 * jnp.sin(low),
                -0.5 * jnp.cos(shoulder) - 0.4 * jnp.cos(low),
            ]
        )
        turned = jnp.concatenate([jnp.cos(state.qpos), jnp.sin(state.qpos)])
        return jnp.concatenate([turned, state.qvel, tip])

    def reward(before, action, after):
        del before
        height = observe(after)[-1]
        return height - 0.01 * jnp.sum(action**2)

    def start(key, params, reference):
        del params, reference
        angle, speed = jax.random.uniform(key, (2, 2), minval=-1.0)
        return 1.5 * angle, 2.0 * speed

    return envs.mjcf.from_mjcf(
        ARM, reward, observe=observe, start=start, num_substeps=5, name="arm"
    )


def make(name: str) -> Env:
    if name == "arm":
        return arm()
    return envs.make(name, engine="jax" if name == "pendulum" else "c")


def explore(key, env: Env, num: int, length: int) -> Transition:
    """Episodes `[num, length]` under actions `a <- 0.8 a + 0.6 eps`, clipped."""
    low, high = jnp.array(env.spec.action.low), jnp.array(env.spec.action.high)

    def episode(key):
        start_key, action_key, env_key = jax.random.split(key, 3)

        def body(carry, i):
            state, action = carry
            eps = jax.random.normal(jax.random.fold_in(action_key, i), low.shape)
            action = 0.8 * action + 0.6 * eps
            taken = jnp.clip(action, low, high)
            after = env.step(jax.random.fold_in(env_key, i), state, taken)
            row = Transition(
                state.obs,
                taken,
                after.reward,
                after.discount,
                i == length - 1,
                after.obs,
                jnp.ones(()),
                {"physics": state.physics},
            )
            return (after, action), row

        first = (env.reset(start_key, None), jnp.zeros(low.shape))
        return jax.lax.scan(body, first, jnp.arange(length))[1]

    return jax.vmap(episode)(jax.random.split(key, num))


def random_policy(key, obs_size: int, moments, act_size: int):
    """A fixed network of 32 tanh units on standardised input; deviation 0.3."""
    inner_key, outer_key = jax.random.split(key)
    inner = jax.random.normal(inner_key, (obs_size, 32)) / jnp.sqrt(obs_size)
    outer = jax.random.normal(outer_key, (32, act_size)) / jnp.sqrt(32.0)
    mean, scale = moments

    def policy(obs):
        hidden = jnp.tanh((obs - mean) / scale @ inner)
        return dists.Normal(jnp.tanh(hidden @ outer), jnp.full(act_size, 0.3))

    return policy


def compare(key, name: str, updates: int, calls: int) -> dict:
    """Both samplers on one seed; a jittable function of the key."""
    env = make(name)
    obs_size, act_size = env.spec.flat_sizes("the study")
    keys = jax.random.split(key, 8)
    steps = explore(keys[0], env, EPISODES[name], LENGTH)
    held = explore(keys[1], env, HELD, LENGTH)
    held = jax.tree.map(lambda x: x[:, LENGTH // 2], held)
    variance = jnp.var(steps.obs, (0, 1))
    moments = (jnp.mean(steps.obs, (0, 1)), jnp.sqrt(variance) + 1e-6)
    policy = random_policy(keys[2], obs_size, moments, act_size)
    config = dataclasses.replace(polygrad.Config(), calls=calls, decay_updates=updates)

    def imagine(key, model, state, num=HELD):
        one = lambda key, obs: model.imagine(key, state, obs, policy, config.horizon)
        return jax.vmap(one)(jax.random.split(key, num), held.obs[:num])

    def judge(model, state):
        rollouts = imagine(keys[3], model, state)
        error = fidelity.trajectory_error(
            keys[4], env, rollouts, held.extras["physics"], variance=variance
        )
        z = fidelity.on_policy(rollouts, policy)
        return (
            error.normalised[1:].mean(),
            error.persistence_normalised[1:].mean(),
            jnp.max(jnp.abs(z.mean)),
            jnp.min(z.std),
            jnp.max(z.std),
        )

    model = polygrad.polygrad(config, env.spec)
    state = offline.fitted(keys[5], model, steps, updates=updates)
    reference = polygrad.polygrad(polygrad.reference_mode(config), env.spec)

    def tune(state, i):
        key = jax.random.fold_in(keys[6], i)
        return reference.tune(state, imagine(key, reference, state, 64)), None

    tuned = offline.fitted(keys[5], reference, steps, updates=updates)
    tuned, _ = jax.lax.scan(tune, tuned, jnp.arange(100))
    error, persistence, z_mean, z_low, z_high = judge(model, state)
    reference_error, _, _, reference_low, reference_high = judge(reference, tuned)
    return {
        "error": error,
        "error/reference": reference_error,
        "ratio": error / reference_error,
        "error/persistence": persistence,
        "z/mean": z_mean,
        "z/std_least": z_low,
        "z/std_largest": z_high,
        "z/reference_std_least": reference_low,
        "z/reference_std_largest": reference_high,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=sorted(EPISODES), default="pendulum")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--calls", type=int, default=4)
    args = parser.parse_args()
    run = jax.jit(lambda key: compare(key, args.env, args.updates, args.calls))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        found = {k: round(float(v), 5) for k, v in run(jax.random.key(seed)).items()}
        print(json.dumps({"env": args.env, "seed": seed, **found}), flush=True)


if __name__ == "__main__":
    main()
