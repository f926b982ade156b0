"""Returns of the random policy and of the best controller known, task by task.

    python benchmarks/best_returns.py pendulum cartpole_balance cartpole_swingup
    python benchmarks/best_returns.py hopper --engine c --episodes 20 --horizon 60

The controllers know the true model, so they bound what learning can reach:
- pendulum: dynamic programming over the 200 steps, on a grid of theta and omega with
  bilinear interpolation, acting greedily against the stored values;
- cartpole_balance: linear-quadratic control around the upright pole, its cost 1 - r as
  in the task plus 0.1 theta^2 + 0.01 a^2;
- everything else: model-predictive control. At every step the cross-entropy method
  improves a plan of the next actions, linear between knots, by simulating it; the first
  action is taken and the rest is kept as the next step's first guess.

The means go into the specs as `random_return` and `best_return`.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import envs
from jaxwm.core import tree


def random_returns(key, env, num):
    """Returns of `num` episodes of uniform actions, `[num]`."""
    low, high = jnp.array(env.spec.action.low), jnp.array(env.spec.action.high)

    def act(key, state, t):
        del state, t
        return jax.random.uniform(key, low.shape, minval=low, maxval=high)

    return episodes(key, env, num, act)


def episodes(key, env, num, act):
    """Returns of `num` episodes under `act(key, state, t) -> action`, `[num]`."""

    @jax.jit
    @jax.vmap
    def play(key):
        reset_key, run_key = jax.random.split(key)

        def body(carry, t):
            state, alive = carry
            act_key, step_key = jax.random.split(jax.random.fold_in(run_key, t))
            state = env.step(step_key, state, act(act_key, state, t))
            return (state, alive * state.discount), alive * state.reward

        first = env.reset(reset_key, None), jnp.ones(())
        return jax.lax.scan(body, first, jnp.arange(env.spec.time_limit))[1].sum()

    return play(jax.random.split(key, num))


def pendulum_values(env, num_theta=401, num_omega=401, num_actions=41):
    """Best sum of rewards to come, by step and grid point `[T + 1, theta, omega]`."""
    from jaxwm.envs.tasks.pendulum import MAX_SPEED, Pendulum

    theta = jnp.linspace(-jnp.pi, jnp.pi, num_theta)  # the ends are the same angle
    omega = jnp.linspace(-MAX_SPEED, MAX_SPEED, num_omega)
    actions = jnp.linspace(-1, 1, num_actions)
    key = jax.random.key(0)  # the dynamics draw nothing

    def outcome(theta, omega, action):
        after = env.step(key, env.reset_to(Pendulum(theta, omega)), action[None])
        return after.reward, after.physics

    over_grid = jax.vmap(jax.vmap(outcome, (None, 0, None)), (0, None, None))

    def backup(value, _):
        def try_action(best, action):
            reward, physics = over_grid(theta, omega, action)
            return jnp.maximum(best, reward + interpolate(value, *physics)), None

        worst = jnp.full_like(value, -jnp.inf)
        value, _ = jax.lax.scan(try_action, worst, actions)
        return value, value

    zero = jnp.zeros((num_theta, num_omega))
    _, values = jax.jit(lambda v: jax.lax.scan(backup, v, length=env.spec.time_limit))(
        zero
    )
    return jnp.concatenate([zero[None], values])[::-1]


def interpolate(value, theta, omega):
    """Bilinear between grid points; theta is wrapped."""
    num_theta, num_omega = value.shape
    theta = (theta + jnp.pi) % (2 * jnp.pi) / (2 * jnp.pi) * (num_theta - 1)
    omega = (omega + 8) / 16 * (num_omega - 1)
    i = jnp.clip(theta.astype(int), 0, num_theta - 2)
    j = jnp.clip(omega.astype(int), 0, num_omega - 2)
    a, b = theta - i, omega - j
    low = (1 - b) * value[i, j] + b * value[i, j + 1]
    high = (1 - b) * value[i + 1, j] + b * value[i + 1, j + 1]
    return (1 - a) * low + a * high


def greedy_returns(key, env, num):
    """Returns of the pendulum under the dynamic programme, `[num]`."""
    values, actions = pendulum_values(env), jnp.linspace(-1, 1, 161)

    def act(key, state, t):
        after = jax.vmap(env.step, (None, None, 0))(key, state, actions[:, None])
        future = interpolate(values[t + 1], *after.physics)
        return actions[jnp.argmax(after.reward + future)][None]

    return episodes(key, env, num, act)


def regulated_returns(key, env, num):
    """Returns of the balancing cart-pole under linear-quadratic control, `[num]`."""
    from jaxwm.envs.tasks.cartpole import RAIL, Cartpole

    def move(x, action):
        state = env.step(jax.random.key(0), env.reset_to(Cartpole(*x)), action)
        return jnp.stack(state.physics)

    a, b = jax.jacfwd(move, (0, 1))(jnp.zeros(4), jnp.zeros(1))
    a, b = np.float64(a), np.float64(b)
    cost = np.diag([RAIL**-2, 0, 0.1, 0])
    value = cost
    for _ in range(env.spec.time_limit):  # Riccati, to its fixed point
        gain = np.linalg.solve(0.01 + b.T @ value @ b, b.T @ value @ a)
        value = cost + a.T @ value @ (a - b @ gain)
    gain = jnp.asarray(gain, jnp.float32)
    return episodes(key, env, num, lambda key, state, t: -gain @ state.obs)


def planned_returns(key, env, num, *, horizon, knots, samples, rounds, elites):
    """Returns of `num` episodes under model-predictive control, `[num]`."""
    low, high = jnp.array(env.spec.action.low), jnp.array(env.spec.action.high)
    middle, half = (low + high) / 2, (high - low) / 2
    at = jnp.linspace(0, knots - 1, horizon)
    weights = jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(knots)))  # [H, K]
    # The plan one step later, at the knots; its last action is repeated.
    later = jnp.minimum(jnp.arange(knots) + (knots - 1) / (horizon - 1), knots - 1)
    shift = jnp.maximum(0, 1 - jnp.abs(later[:, None] - jnp.arange(knots)))  # [K, K]

    def score(key, state, plan):
        def body(carry, action):
            state, alive = carry
            state = env.step(key, state, action)
            return (state, alive * state.discount), alive * state.reward

        actions = middle + half * jnp.clip(weights @ plan, -1, 1)
        _, reward = jax.lax.scan(body, (state, jnp.ones(())), actions)
        return jnp.where(jnp.isfinite(reward.sum()), reward.sum(), -jnp.inf)

    def improve(key, state, mean):
        def round_(carry, i):
            mean, std = carry
            draw_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            noise = jax.random.normal(draw_key, (samples, *mean.shape))
            plans = (mean + std * noise).at[0].set(mean)
            plans = jnp.clip(plans, -1, 1)
            scores = jax.vmap(score, (None, None, 0))(step_key, state, plans)
            _, best = jax.lax.top_k(scores, elites)
            mean, std = plans[best].mean(0), plans[best].std(0) + 0.02
            return (mean, std), (plans[best[0]], scores[best[0]])

        start = mean, jnp.full(mean.shape, 0.6)
        (mean, _), (plans, scores) = jax.lax.scan(round_, start, jnp.arange(rounds))
        return plans[jnp.argmax(scores)]

    @jax.jit
    @jax.vmap
    def play(key):
        reset_key, run_key = jax.random.split(key)

        def body(carry, t):
            state, alive, plan = carry
            plan_key, step_key = jax.random.split(jax.random.fold_in(run_key, t))
            plan = improve(plan_key, state, plan)
            action = middle + half * jnp.clip(plan[0], -1, 1)
            state = env.step(step_key, state, action)
            return (state, alive * state.discount, shift @ plan), alive * state.reward

        first = env.reset(reset_key, None)
        plan = jnp.zeros((knots, low.size))
        steps = jnp.arange(env.spec.time_limit)
        carry, reward = jax.lax.scan(body, (first, jnp.ones(()), plan), steps)
        return reward.sum(), tree.all_finite(carry[0].physics)

    returns, finite = play(jax.random.split(key, num))
    if not finite.all():
        raise FloatingPointError(f"{env.spec.name} diverged under the planner.")
    return returns


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="+", help="names of jaxwm.envs.TASKS")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random-episodes", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=20, help="of the planner")
    parser.add_argument("--horizon", type=int, default=80, help="steps it looks ahead")
    parser.add_argument("--knots", type=int, default=16)
    parser.add_argument("--samples", type=int, default=256, help="plans per round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--elites", type=int, default=16)
    args = parser.parse_args()
    print(f"{'task':20}{'policy':24}{'episodes':>9}{'mean':>10}{'s.e.':>8}{'s':>7}")
    for name in args.tasks:
        env = envs.make(name, engine=args.engine)
        key = jax.random.key(args.seed)

        def report(policy, function, *numbers, **options):
            start = time.perf_counter()
            returns = np.asarray(function(key, env, *numbers, **options))  # noqa: B023
            error = returns.std(ddof=1) / np.sqrt(len(returns))
            seconds = time.perf_counter() - start
            print(
                f"{env.spec.name:20}{policy:24}{len(returns):9}"  # noqa: B023
                f"{returns.mean():10.2f}{error:8.2f}{seconds:7.0f}",
                flush=True,
            )

        report("random", random_returns, args.random_episodes)
        if name == "pendulum" and args.engine == "jax":
            report("dynamic programming", greedy_returns, args.random_episodes)
        elif name == "cartpole_balance" and args.engine == "jax":
            report("linear-quadratic", regulated_returns, args.random_episodes)
        else:
            report(
                "planning, true model",
                planned_returns,
                args.episodes,
                horizon=args.horizon,
                knots=args.knots,
                samples=args.samples,
                rounds=args.rounds,
                elites=args.elites,
            )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
