"""Differentiable simulators: which gradients can be trusted, and what they buy.

Source: Newbury et al., "A Review of Differentiable Simulators", 2024, and
what it builds on: Xu et al., "Accelerated Policy Learning with Parallel Differentiable
Simulation", ICLR 2022; Suh et al., "Do Differentiable Simulators Give Better Policy
Gradients?", ICML 2022; Hu et al., "DiffTaichi", ICLR 2020.
The survey's four parts (gradients, dynamics, contact, integrator) are the library's
`physics`; here they meet their tests. Shapes: T steps, A action, N environments.

1. A ball that bounces once lands on a target: descent through a simulator that
   resolves the time of impact, and through one that does not.
2. Friction and mass of a sliding block from its motion, against the cross-entropy
   method.
3. The smoothed gradient at a discontinuity: first, zeroth and alpha order.
4. Swinging up a cart-pole: short-horizon actor-critic, back-propagation through time,
   and PPO, which has no use for gradients of the simulator.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm import envs, physics, plan
from jaxwm.agents import ppo, shac
from jaxwm.physics import bodies, contact, gradients, identify
from jaxwm.types import Env, Metrics, PolicyLearner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores."""

    starts: int = 8  # of trajectory optimisation
    descent_steps: int = 150
    samples: int = 1000  # of each stochastic estimator
    num_envs: int = 16  # N, of SHAC and back-propagation through time
    iterations: int = 600  # of SHAC, 32 steps of every environment each
    learning_rate: float = 2e-3  # of SHAC
    ppo_envs: int = 64
    ppo_iterations: int = 300  # 32 steps of every environment each
    ppo_learning_rate: float = 3e-3  # best of 3e-4, 1e-3, 3e-3
    evaluations: int = 30  # of a policy while it learns

    def __post_init__(self):
        for name in ("starts", "descent_steps", "num_envs", "ppo_envs"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        for name in ("iterations", "ppo_iterations"):
            if getattr(self, name) % self.evaluations:
                raise ValueError(
                    f"evaluations must divide {name} = {getattr(self, name)}, got "
                    f"{self.evaluations}."
                )


TINY = Config(
    starts=2,
    descent_steps=3,
    samples=16,
    num_envs=2,
    iterations=2,
    ppo_envs=4,
    ppo_iterations=2,
    evaluations=1,
)

_WINDOW, _EPISODE = 32, 240  # steps
_SOLVED = 0.9  # mean cosine of the pole over the last second


def differentiable_simulators(config: Config = Config()) -> Env:
    """The cart-pole swing-up that policies learn: analytic, smooth, differentiable.

    Force of at most 10 N on a cart of 1 kg, a pole of 0.1 kg and 1 m, two semi-implicit
    substeps of 1/120 s per action, 240 actions per episode, hanging within 0.3 rad.

        reward = -(wrap(theta)² + 0.01 theta'² + 0.45 tanh(x²/9) + 0.01 x'²)
    """
    del config  # the task has no settings
    dynamics = physics.repeated(physics.rigid(bodies.cartpole(), dt=1 / 120), 2)

    def start(key, params):
        del params
        angle = jnp.pi + 0.3 * jax.random.uniform(key, minval=-1.0)
        return bodies.State(jnp.stack([0.0, angle]), jnp.zeros(2))

    def reward(before, action, after):
        del before, action
        (x, theta), (speed, spin) = after
        wrapped = (theta + jnp.pi) % (2 * jnp.pi) - jnp.pi
        away = 0.45 * jnp.tanh(x**2 / 9)
        return -(wrapped**2 + 0.01 * spin**2 + away + 0.01 * speed**2)

    def observe(params, state):
        # Bounded, so that a cart that runs away still has a gradient.
        del params
        (x, theta), (speed, spin) = state
        return jnp.stack(
            [
                jnp.tanh(x / 3),
                jnp.tanh(speed / 5),
                jnp.sin(theta),
                jnp.cos(theta),
                jnp.tanh(spin / 6),
            ]
        )

    return envs.from_dynamics(
        dynamics,
        name="cartpole swing-up, analytic",
        time_limit=_EPISODE,
        start=start,
        reward=reward,
        observe=observe,
    )


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """What gradients buy where they are right, and cost where they are not.

    Returns:
        `miss/...`: distance from the target, the worst of several starts, under the
        exact simulator. `identify/...`: relative errors and simulations against CEM at
        as many simulations. `estimate/...`: errors at the discontinuity in standard
        errors of the zeroth order. `shac/...`, `bptt/...`, `ppo/...`: final mean cosine
        of the pole, and environment steps until it was above 0.9 in two evaluations in
        a row (the whole budget where it never was).
    """
    bounce_key, identify_key, jump_key, policy_key = jax.random.split(key, 4)
    return {
        **_bounce(bounce_key, config),
        **_identify(identify_key),
        **_jump(jump_key, config),
        **_policies(policy_key, config),
    }


def _bounce(key: Key[Array, ""], config: Config) -> Metrics:
    """Throws a ball over one bounce at a target, through two contact models."""
    target, dt, duration = jnp.array([1.0, 0.55]), 0.01, 0.9
    length = round(duration / dt)
    start_speeds = jnp.stack(
        [
            jax.random.uniform(key, (config.starts,), minval=0.0, maxval=2.0),
            jnp.linspace(-3.0, 0.5, config.starts),
        ],
        -1,
    )

    def end(model, speed: Float[Array, " 2"]):
        dynamics = physics.rigid(bodies.point_mass(), model, dt=dt)
        start = bodies.State(jnp.array([0.0, 1.0]), speed)
        final, _ = physics.rollout(
            dynamics, dynamics.params, start, jnp.zeros((length, 2))
        )
        return final.q

    exact = contact.time_of_impact(restitution=0.8)
    schedule = optax.cosine_decay_schedule(0.1, config.descent_steps)

    def miss(model):
        cost = lambda speed: jnp.sum((end(model, speed) - target) ** 2)

        def one(speed):
            found = plan.descent(
                cost, speed, optax.adam(schedule), steps=config.descent_steps
            )
            return jnp.linalg.norm(end(exact, found.x) - target)

        return jnp.max(jax.vmap(one)(start_speeds))

    naive = contact.impulse(restitution=0.8)
    height = lambda model: jax.grad(lambda h: _drop(model, h))(0.7003)
    return {
        "miss/time_of_impact": miss(exact),
        "miss/impulse": miss(naive),
        "slope/time_of_impact": height(contact.time_of_impact()),
        "slope/impulse": height(contact.impulse()),
    }


def _drop(model, height):
    """Height after 1.5 s of a ball that starts downwards at 1 m/s, without gravity."""
    dynamics = physics.rigid(bodies.point_mass(gravity=0.0), model, dt=0.01)
    start = bodies.State(jnp.stack([0.0 * height, height]), jnp.array([0.0, -1.0]))
    final, _ = physics.rollout(dynamics, dynamics.params, start, jnp.zeros((150, 2)))
    return final.q[1]


def _identify(key: Key[Array, ""]) -> Metrics:
    """Friction and mass of a block from two pushes; mass alone leaves no trace."""
    model = contact.compliant(stiffness=1e4, damping=1e5)
    block = physics.rigid(bodies.sliding_block(), model, dt=5e-3)
    true = {"friction": jnp.array(0.3), "mass": jnp.array(2.0)}
    guess = {"friction": jnp.array(0.1), "mass": jnp.array(1.0)}

    def slide(params):
        def one(speed, force):
            own = {**block.params, **params}
            depth = own["mass"] * own["gravity"] / own["stiffness"]
            start = bodies.State(
                jnp.stack([0.0 * depth, -depth]), jnp.stack([speed, 0.0 * speed])
            )
            pushes = jnp.full((200, 1), force)
            return physics.rollout(block, own, start, pushes)[1].state.q[:, 0]

        return jax.vmap(one)(jnp.array([2.0, 1.0]), jnp.array([0.0, 8.0]))

    observed = slide(true)
    found = identify.identify(slide, observed, guess, iterations=15)
    worst = lambda params: jnp.max(
        jnp.stack([jnp.abs(params[k] / true[k] - 1) for k in true])
    )

    def cost(z):
        return jnp.mean((slide({"friction": z[0], "mass": z[1]}) - observed) ** 2)

    num = 16
    search = plan.cem(
        key,
        lambda z: cost(jnp.exp(z)),
        jnp.log(jnp.array([0.1, 1.0])),
        1.0,
        num=num,
        elites=4,
        iterations=math.ceil(found.calls / num),
    )
    by_search = dict(zip(("friction", "mass"), jnp.exp(search.x), strict=True))
    return {
        "identify/error": worst(found.params),
        "identify/error_cem": worst(by_search),
        "identify/simulations": jnp.float32(found.calls),
        "identify/simulations_cem": jnp.float32(search.calls),
    }


def _jump(key: Key[Array, ""], config: Config) -> Metrics:
    """Throws at a wall: the range jumps where the ball clears it."""
    sigma, angle = 0.1, 0.6

    def projectile(theta, key):
        del key
        speed, gravity, wall, height = 10.0, 9.81, 5.0, 2.2
        landing = speed**2 * jnp.sin(2 * theta) / gravity
        time = wall / (speed * jnp.cos(theta))
        above = speed * jnp.sin(theta) * time - 0.5 * gravity * time**2 > height
        return -jnp.where(above, landing, wall)

    w = np.linspace(-6 * sigma, 6 * sigma, 20001)
    density = np.exp(-0.5 * (w / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    grid = w[1] - w[0]
    truth = jnp.sum(projectile(angle + w, None) * w / sigma**2 * density) * grid

    found = {}
    for i, make in enumerate(
        (gradients.first_order, gradients.zeroth_order, gradients.alpha_order)
    ):
        estimate = make(projectile, num=config.samples, sigma=sigma)
        found[make.__name__] = estimate(jnp.array(angle), jax.random.fold_in(key, i))
    error = jnp.sqrt(found["zeroth_order"].variance)
    return {
        f"estimate/{name}": jnp.abs(estimate.grad - truth) / error
        for name, estimate in found.items()
    }


def _policies(key: Key[Array, ""], config: Config) -> Metrics:
    """SHAC, back-propagation through time and PPO on the same environments."""
    env = differentiable_simulators(config)
    batch = envs.batch(env, config.num_envs, pool_size=256)
    iterations = config.iterations
    full = max(1, round(iterations * _WINDOW / _EPISODE))
    # Rewards are about -10 a step: unscaled, values would be in the hundreds.
    through = shac.Config(
        horizon=_WINDOW,
        actor_lr=config.learning_rate,
        critic_lr=config.learning_rate,
        reward_scale=0.02,
        decay_iterations=iterations,
    )
    whole = dataclasses.replace(
        through,
        horizon=_EPISODE,
        bootstrap=False,
        actor_lr=5e-3,
        decay_iterations=full,
    )
    without = ppo.Config(
        steps=_WINDOW,
        learning_rate=config.ppo_learning_rate,
        decay_iterations=config.ppo_iterations,
    )
    many = envs.batch(env, config.ppo_envs, pool_size=256)
    parts, every = config.evaluations, _WINDOW * config.num_envs
    learners = {
        "shac": (shac.shac(batch, through), iterations, every, parts),
        "bptt": (shac.shac(batch, whole), full, _EPISODE * config.num_envs, 1),
        "ppo": (
            ppo.ppo(many, without),
            config.ppo_iterations,
            _WINDOW * config.ppo_envs,
            parts,
        ),
    }
    metrics = {}
    for i, (name, (agent, num, steps, evaluations)) in enumerate(learners.items()):
        scores = _learn(jax.random.fold_in(key, i), env, agent, num, evaluations)
        above = jnp.append(scores >= _SOLVED, False)
        twice = above[:-1] & above[1:]
        first = jnp.where(jnp.any(twice), jnp.argmax(twice) + 1, evaluations)
        metrics |= {
            f"{name}/up": scores[-1],
            f"{name}/steps": jnp.float32(first * (num // evaluations) * steps),
            f"{name}/steps_in_all": jnp.float32(num * steps),
        }
    return metrics


def _learn(
    key: Key[Array, ""], env: Env, agent: PolicyLearner, num: int, evaluations: int
) -> Float[Array, " E"]:
    """Score after each of several equal parts of training."""
    init_key, step_key, judge_key = jax.random.split(key, 3)

    def judge(state):
        def one(key):
            start_key, loop_key = jax.random.split(key)

            def body(now, i):
                act_key, env_key = jax.random.split(jax.random.fold_in(loop_key, i))
                action = agent.act(act_key, state, now.obs, False)
                now = env.step(env_key, now, action)
                return now, now.obs[3]

            start = env.reset(start_key, None)
            _, cosine = jax.lax.scan(body, start, jnp.arange(_EPISODE))
            return jnp.mean(cosine[-60:])

        keys = jax.random.split(jax.random.fold_in(judge_key, 0), 16)
        return jnp.mean(jax.vmap(one)(keys))

    def part(state, p):
        def step(state, i):
            i = p * (num // evaluations) + i
            return agent.learner.step(jax.random.fold_in(step_key, i), state, i)

        state, _ = jax.lax.scan(step, state, jnp.arange(num // evaluations))
        return state, judge(state)

    first = agent.learner.init(init_key)
    return jax.lax.scan(part, first, jnp.arange(evaluations))[1]
