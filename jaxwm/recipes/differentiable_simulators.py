"""Differentiable simulators: which gradients can be trusted, and what they buy.

Source: Newbury et al., "A Review of Differentiable Simulators", 2024, and
what it builds on: Xu et al., "Accelerated Policy Learning with Parallel Differentiable
Simulation", ICLR 2022; Suh et al., "Do Differentiable Simulators Give Better Policy
Gradients?", ICML 2022; Hu et al., "DiffTaichi", ICLR 2020.
The survey's four parts (gradients, dynamics, contact, integrator) are the library's
`physics`; here they meet their tests. Shapes: T steps, A action, N environments.

1. A ball that bounces once lands on a target: descent through a simulator that
   resolves the time of impact, and through one that does not. Over several bounces:
   descent, search, and search first.
2. Friction and mass of a sliding block from its motion, against the cross-entropy
   method.
3. The smoothed gradient at a discontinuity: first, zeroth and alpha order; and which
   of them is noisier on soft ground and on stiff.
4. Swinging up a cart-pole: short-horizon actor-critic, back-propagation through time
   in short episodes and in long ones, and PPO, which uses no gradient of the simulator.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxwm import envs, physics, plan
from jaxwm.agents import ppo, shac
from jaxwm.core import checks, loop
from jaxwm.physics import bodies, contact, gradients, identify
from jaxwm.types import Env, Metrics, PolicyLearner, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reduced setting: minutes on two CPU cores."""

    starts: int = 8  # of trajectory optimisation
    descent_steps: int = 150
    calls: int = 400  # simulations of a search over several bounces
    samples: int = 1000  # of each stochastic estimator
    repeats: int = 400  # of each stochastic estimate
    num_envs: int = 4  # N, of SHAC; 8 and 16 need up to four times as many steps
    iterations: int = 600  # of SHAC, 32 steps of every environment each
    learning_rate: float = 1e-2  # of SHAC's actor
    bptt_learning_rate: float = 2e-2  # best of 5e-3, 2e-2
    long_episode: int = 960  # steps of the long ones, 16 s
    long_iterations: int = 2400  # of SHAC in them
    long_learning_rate: float = 2e-3
    long_std: float = 0.8  # of its policy at first: 0.4 explores too little there
    ppo_envs: int = 16
    ppo_iterations: int = 300  # 64 steps of every environment each
    ppo_learning_rate: float = 5e-4  # with 20 passes; 1e-3 to 3e-3 with 10 are worse
    learners: int = 3  # of each kind; medians over them are reported
    evaluations: int = 30  # of a policy while it learns

    def __post_init__(self):
        checks.finite(self)
        checks.at_least(
            1,
            self,
            "starts",
            "descent_steps",
            "repeats",
            "num_envs",
            "ppo_envs",
            "learners",
        )
        if self.calls < max(80, 6 * self.starts):
            raise ValueError(
                f"calls must be at least {max(80, 6 * self.starts)}, two rounds of "
                f"search and a step from each start, got {self.calls}."
            )
        for name in ("iterations", "long_iterations", "ppo_iterations"):
            if getattr(self, name) % self.evaluations:
                raise ValueError(
                    f"evaluations must divide {name} = {getattr(self, name)}, got "
                    f"{self.evaluations}."
                )


TINY = Config(
    starts=2,
    descent_steps=3,
    calls=80,
    samples=16,
    repeats=2,
    num_envs=2,
    iterations=2,
    long_iterations=2,
    ppo_envs=4,
    ppo_iterations=2,
    learners=2,
    evaluations=1,
    long_episode=32,
)

TARGET = np.array([1.0, 0.55])  # m, of the throws
_WINDOW, _EPISODE, _PPO_STEPS = 32, 240, 64  # steps
SOLVED = 0.9  # mean cosine of the pole over the last second


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
        exact simulator; `several/...` over several bounces, by search, by descent and
        by descent from what search found. `variance_ratio/...`: of the first order to
        the zeroth. `identify/...`: relative errors and simulations against CEM at
        as many simulations. `estimate/...`: share of many estimates at the
        discontinuity that lie within three standard errors (of the zeroth order) of the
        truth; the alpha order promises 97.5 %. `shac/...`, `bptt/...`, `ppo/...`:
        medians over several learners of the final mean cosine of the pole (`up`) and of
        the environment steps until it was above 0.9 in two evaluations in a row (the
        whole budget where it never was), and the share of them where it was (`solved`).
    """
    keys = jax.random.split(key, 6)
    bounce_key, several_key, identify_key, jump_key, ground_key, policy_key = keys
    return {
        **_bounce(bounce_key, config),
        **_several(several_key, config),
        **_identify(identify_key),
        **_jump(jump_key, config),
        **_ground(ground_key),
        **_policies(policy_key, config),
    }


def thrown(
    model: contact.Contact,
    velocity: Float[Array, " 2"],
    *,
    duration: float,
    dt: float,
) -> Float[Array, "T 2"]:
    """Places of a ball thrown from a height of 1 m over a floor that it bounces on."""
    ball = physics.rigid(bodies.point_mass(), model, dt=dt)
    start = bodies.State(jnp.array([0.0, 1.0]), velocity)
    rest = jnp.zeros((round(duration / dt), 2))  # nothing acts on it in flight
    return physics.rollout(ball, ball.params, start, rest)[1].state.q


def _bounce(key: Key[Array, ""], config: Config) -> Metrics:
    """Throws a ball over one bounce at a target, through two contact models."""
    start_speeds = jnp.stack(
        [
            jax.random.uniform(key, (config.starts,), minval=0.0, maxval=2.0),
            jnp.linspace(-3.0, 0.5, config.starts),
        ],
        -1,
    )
    end = lambda model, v: thrown(model, v, duration=0.9, dt=0.01)[-1]
    exact = contact.time_of_impact(restitution=0.8)
    schedule = optax.cosine_decay_schedule(0.1, config.descent_steps)

    def miss(model):
        cost = lambda v: jnp.sum((end(model, v) - TARGET) ** 2)

        def one(v):
            found = plan.descent(
                cost, v, optax.adam(schedule), steps=config.descent_steps
            )
            return jnp.linalg.norm(end(exact, found.x) - TARGET)

        return jnp.max(jax.vmap(one)(start_speeds))

    naive = contact.impulse(restitution=0.8)
    height = lambda model: jax.grad(lambda h: _drop(model, h))(0.7003)
    return {
        "miss/time_of_impact": miss(exact),
        "miss/impulse": miss(naive),
        "slope/time_of_impact": height(contact.time_of_impact()),
        "slope/impulse": height(contact.impulse()),
    }


def _several(key: Key[Array, ""], config: Config) -> Metrics:
    """Over several bounces: search, descent, and descent from what search found.

    The distance has kinks and dead ends where the number of bounces changes, so descent
    alone gets stuck, and search alone is slow at the end. All three may simulate
    equally often; a step of descent, forward and back, counts as three simulations.
    """
    exact, calls = contact.time_of_impact(restitution=0.8), config.calls
    low, high = jnp.array([0.0, -6.0]), jnp.array([2.0, 6.0])
    start_key, search_key, both_key = jax.random.split(key, 3)

    def cost(v):
        end = thrown(exact, v, duration=2.0, dt=0.02)[-1]
        return jnp.sum((end - TARGET) ** 2)

    def search(key, calls):
        num = 40
        return plan.cem(
            key,
            cost,
            (low + high) / 2,
            (high - low) / 2,
            num=num,
            elites=8,
            iterations=calls // num,
        )

    def descend(v, rate, calls):
        steps = calls // 3 - 1
        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
        return plan.descent(cost, v, adam, steps=steps)

    starts = jax.random.uniform(start_key, (config.starts, 2), minval=low, maxval=high)
    alone = jax.vmap(lambda v: descend(v, 0.3, calls // config.starts))(starts)
    coarse = search(both_key, calls // 2)
    fine = descend(coarse.x, 0.02, calls - coarse.calls)
    return {
        "several/search": jnp.sqrt(search(search_key, calls).cost),
        "several/descent": jnp.sqrt(jnp.min(alone.cost)),
        "several/both": jnp.sqrt(jnp.minimum(coarse.cost, fine.cost)),
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
        keys = loop.fold_in_each(jax.random.fold_in(key, i), config.repeats)
        repeated = lambda key, estimate=estimate: estimate(jnp.array(angle), key)
        found[make.__name__] = jax.lax.map(repeated, keys)
    error = jnp.sqrt(found["zeroth_order"].variance)
    within = lambda estimate: jnp.abs(estimate.grad - truth) <= 3 * error
    return {
        f"estimate/{name}": jnp.mean(within(estimate).astype(jnp.float32))
        for name, estimate in found.items()
    }


def _ground(key: Key[Array, ""]) -> Metrics:
    """A ball falls on a spring: which order is noisier, on soft ground and on stiff?"""

    def ratio(key, stiffness):
        model = contact.compliant(stiffness=stiffness)
        ball = physics.rigid(bodies.point_mass(), model, dt=1e-3)

        def height(first, key):
            del key
            start = bodies.State(jnp.stack([0.0 * first, first]), jnp.zeros(2))
            rest = jnp.zeros((900, 2))
            return physics.rollout(ball, ball.params, start, rest)[0].q[1]

        noise = [
            make(height, num=64, sigma=0.05)(jnp.array(1.0), own_key).variance
            for make, own_key in zip(
                (gradients.first_order, gradients.zeroth_order),
                jax.random.split(key),
                strict=True,
            )
        ]
        return noise[0] / noise[1]

    soft_key, stiff_key = jax.random.split(key)
    return {
        "variance_ratio/soft": ratio(soft_key, 1e3),
        "variance_ratio/stiff": ratio(stiff_key, 1e5),
    }


class Learning(NamedTuple):
    """A learner of the swing-up and how long it learns."""

    env: Env  # that it is judged on
    agent: PolicyLearner
    iterations: int
    steps: int  # of all environments together, per iteration
    evaluations: int  # that divide the iterations


def learners(config: Config) -> dict[str, Learning]:
    """SHAC, back-propagation through time and PPO on the same task.

    `shac` and `ppo` learn in episodes of 4 s and `bptt` through all of one: its
    gradients stay small there, and it needs no more steps than SHAC. In the long ones,
    of 16 s, `bptt_long` differentiates the plain sum of rewards, without a critic, a
    cut or a discount on the way back; `shac_long` makes as many steps in windows.
    """
    env, num_envs = differentiable_simulators(config), config.num_envs
    long = env._replace(spec=env.spec._replace(time_limit=config.long_episode))
    batch = lambda env, num: envs.batch(env, num, pool_size=256)
    per_window = _WINDOW * num_envs
    # Rewards are about -10 a step: unscaled, values would be in the hundreds.
    short = shac.Config(
        horizon=_WINDOW,
        actor_lr=config.learning_rate,
        reward_scale=0.02,
        critic_minibatches=2,
        decay_iterations=config.iterations,
    )
    explored = dataclasses.replace(
        short,
        actor_lr=config.long_learning_rate,
        init_std=config.long_std,
        decay_iterations=config.long_iterations,
    )
    without = ppo.Config(
        steps=_PPO_STEPS,
        epochs=20,
        learning_rate=config.ppo_learning_rate,
        decay_iterations=config.ppo_iterations,
    )

    def windows(env, iterations, settings):
        agent = shac.shac(batch(env, num_envs), settings)
        return Learning(env, agent, iterations, per_window, config.evaluations)

    def whole(env, iterations, settings, **changes):
        steps = env.spec.time_limit * num_envs
        rounds = max(1, iterations * per_window // steps)
        changes |= {"actor_lr": config.bptt_learning_rate, "decay_iterations": rounds}
        settings = dataclasses.replace(settings, **changes)
        agent = shac.bptt(batch(env, num_envs), settings)
        return Learning(env, agent, rounds, steps, rounds)

    return {
        "shac": windows(env, config.iterations, short),
        "bptt": whole(env, config.iterations, short),
        "shac_long": windows(long, config.long_iterations, explored),
        "bptt_long": whole(long, config.long_iterations, explored, gamma=1.0),
        "ppo": Learning(
            env,
            ppo.ppo(batch(env, config.ppo_envs), without),
            config.ppo_iterations,
            _PPO_STEPS * config.ppo_envs,
            config.evaluations,
        ),
    }


def learn(
    key: Key[Array, ""], learning: Learning
) -> tuple[Float[Array, " E"], Float[Array, " E"], PyTree]:
    """Trains, and judges after each of several equal parts.

    Returns:
        Scores: the mean cosine of the pole over the fourth second of 16 episodes
        without exploration; 1 is upright. Largest norm of the policy's gradient in each
        part, before it is clipped (0 where the learner does not say). The last state.
    """
    init_key, step_key, judge_key = jax.random.split(key, 3)
    agent, per_part = learning.agent, learning.iterations // learning.evaluations

    def judge(state):
        # The same starts whenever it is judged.
        keys = loop.fold_in_each(judge_key, 16)
        paths = jax.vmap(lambda key: episode(key, learning, state))(keys)
        return jnp.mean(jnp.cos(paths[:, -60:, 1]))

    def part(state, p):
        def step(state, i):
            i = p * per_part + i
            state, metrics = agent.learner.step(
                jax.random.fold_in(step_key, i), state, i
            )
            return state, metrics.get("actor/grad_norm", jnp.zeros(()))

        state, norms = jax.lax.scan(step, state, jnp.arange(per_part))
        return state, (judge(state), jnp.max(norms))

    first = agent.learner.init(init_key)
    parts = jnp.arange(learning.evaluations)
    state, (scores, norms) = jax.lax.scan(part, first, parts)
    return scores, norms, state


def episode(
    key: Key[Array, ""], learning: Learning, state: PyTree
) -> Float[Array, "T 2"]:
    """Places of cart and pole during 4 s without exploration."""
    start_key, loop_key = jax.random.split(key)
    env, act = learning.env, learning.agent.act

    def body(now, i):
        act_key, env_key = jax.random.split(jax.random.fold_in(loop_key, i))
        now = env.step(env_key, now, act(act_key, state, now.obs, False))
        return now, now.physics.q

    start = env.reset(start_key, None)
    return jax.lax.scan(body, start, jnp.arange(_EPISODE))[1]


def _policies(key: Key[Array, ""], config: Config) -> Metrics:
    """Scores, steps and gradients of all learners."""
    metrics = {}
    for i, (name, learning) in enumerate(learners(config).items()):
        keys = loop.fold_in_each(jax.random.fold_in(key, i), config.learners)
        scores, norms, _ = jax.vmap(lambda key, own=learning: learn(key, own))(keys)
        above = jnp.pad(scores >= SOLVED, ((0, 0), (0, 1)))
        twice = above[:, :-1] & above[:, 1:]
        solved, parts = jnp.any(twice, 1), learning.evaluations
        first = jnp.where(solved, jnp.argmax(twice, 1) + 1, parts)
        per_part = learning.iterations // parts * learning.steps
        metrics |= {
            f"{name}/up": jnp.median(scores[:, -1]),
            f"{name}/solved": jnp.mean(solved.astype(jnp.float32)),
            f"{name}/steps": jnp.median(first.astype(jnp.float32)) * per_part,
            f"{name}/steps_in_all": jnp.float32(learning.iterations * learning.steps),
            f"{name}/grad_norm": jnp.median(jnp.max(norms, 1)),
        }
    return metrics
