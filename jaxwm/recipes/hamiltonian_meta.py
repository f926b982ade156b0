"""One start for the Hamiltonians of many systems, a few gradient steps from each.

A graph network gives the energy, Hamilton's equations the rates, so that nothing that
is learnt can create or lose what it calls energy:

    H_θ(q, p) = Σ_i readout(h_i),   h = messages between bodies with features (q_i, p_i)
    dq/dt = ∂H_θ/∂p,   dp/dt = -∂H_θ/∂q

The start θ and one rate a per weight are learnt so that gradient descent on K states of
a law ends where other states of the law are predicted:

    φ_0 = θ,   φ_{k+1} = φ_k - a ∘ ∇L_support(φ_k);   min over θ, a: Σ_laws L_query(φ_n)

L is the mean squared error of the rates, in units of the law's own: q, p and the rates
have mean square 1, or else the fastest system would be all of the loss.

Three systems with constants 1 are nearly one law, and a start learnt on them alone
knows no other. The law of a task is therefore the system's potential in axes that are
turned and stretched, and its motions are small or large.

Source: Song and Jeong, "Towards Cross Domain Generalization of Hamiltonian
Representation via Meta Learning", ICLR 2024. Its network and its settings of
meta-learning were not at hand: those here are ours. Departs: constants vary (see
above); rates are learnt, after Li et al., "Meta-SGD", 2017; motions by leapfrog.
Shapes: L laws, S states of one law, N bodies, D coordinates of each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, inner, loop, optimise
from jaxwm.nn import MessagePassing
from jaxwm.physics import hamiltonian, integrate, ode
from jaxwm.physics.hamiltonian import PhaseData
from jaxwm.types import Metrics, ModelState, Params, Predictor

# A system, and the least and the largest radius of the ball that its motions start in.
# From 0.5, where the energy is 1/6, orbits of Hénon and Heiles begin to escape.
SYSTEMS = {
    "mass_spring": (hamiltonian.MASS_SPRING, 1.0, 1.0),
    "pendulum": (hamiltonian.PENDULUM, 0.5, 3.0),
    "henon_heiles": (hamiltonian.HENON_HEILES, 0.2, 0.5),
    "quartic": (hamiltonian.QUARTIC, 0.5, 2.5),
    "two_body": (hamiltonian.n_body(2), 0.5, 1.5),
    "three_body": (hamiltonian.n_body(3), 0.5, 1.5),
}
_SMOOTH = ("softplus", "tanh", "silu", "gelu", "swish")
# Of SGD and of Adam, from which starts that are compared with have the best.
_RATES = (
    *((rate, 0.0) for rate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)),
    *((0.0, rate) for rate in (1e-3, 3e-3, 1e-2, 2e-2, 5e-2)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A minute on one core: three systems of one body, a fourth to adapt to."""

    systems: tuple[str, ...] = ("mass_spring", "pendulum", "henon_heiles")
    target: str = "quartic"  # never seen before it is adapted to
    num_bodies: int = 1  # N, of the largest system; others are padded
    width: int = 32
    layers: int = 2  # of messages
    activation: str = "softplus"
    conserving: bool = True  # False: the network gives the rates, there is no H
    inner_steps: int = 10  # n; 0 trains one network for all laws
    first_order: bool = False  # leaves the Hessians out of the outer gradient
    checkpoint: bool = False  # recomputes inner steps: memory does not grow with them
    rate: float = 0.05  # a, at first
    support: int = 50  # K, states to adapt to; as many others are asked for
    laws: int = 128  # of every system, drawn once
    per_system: int = 2  # laws of every system in an update
    stretch: float = 1.5  # of axes, at most; 1: constants as they are
    updates: int = 800
    learning_rate: float = 3e-3  # outer, at first; falls to 0 as a cosine

    def __post_init__(self):
        checks.finite(self)
        names = ", ".join(SYSTEMS)
        for name in (*self.systems, self.target):
            if name not in SYSTEMS:
                raise ValueError(f"systems and target: {name!r} is none of {names}.")
            bodies = SYSTEMS[name][0].num_bodies
            if bodies > self.num_bodies:
                raise ValueError(
                    f"num_bodies must be at least {bodies} for {name!r}, got "
                    f"{self.num_bodies}."
                )
        if not self.systems or self.target in self.systems:
            raise ValueError(
                f"systems must name one or more of {names} beside the target "
                f"{self.target!r}, got {self.systems}."
            )
        if self.activation not in _SMOOTH:
            raise ValueError(
                f"activation must have a second derivative, got {self.activation!r}; "
                f"choose among {', '.join(_SMOOTH)}."
            )
        if self.inner_steps < 0:
            raise ValueError(f"inner_steps must be at least 0, got {self.inner_steps}.")
        if self.stretch < 1:
            raise ValueError(f"stretch must be at least 1, got {self.stretch}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and field.name not in _MAY_BE_ZERO
            if number and not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}.")


_MAY_BE_ZERO = ("inner_steps", "conserving", "first_order", "checkpoint")
# Laws as many as the paper's trajectories; the rest is ours.
PAPER = Config(
    width=64, layers=3, inner_steps=5, rate=1e-2, laws=10_000, updates=5000, stretch=1.0
)
TINY = Config(width=4, layers=1, inner_steps=2, support=6, laws=2, updates=2)


class Units(NamedTuple):
    """Roots of mean squares in a law's data."""

    q: Array
    p: Array
    rate: Array  # of (q, p), per unit of time


class _Network(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, q, p, mask):
        """Embedding of every body, and what is read off it."""
        config, exists = self.config, jnp.max(mask, -1)
        everyone = jnp.ones((q.shape[0], q.shape[0]))  # and oneself
        embed = MessagePassing(config.width, config.layers, config.activation)
        h = embed(jnp.concatenate([q, p], -1), everyone, exists)
        size = 1 if config.conserving else 2 * q.shape[-1]
        return h, nn.Dense(size)(h) * exists[:, None]


def hamiltonian_meta(config: Config) -> Predictor:
    """Builds the meta-learner.

    Args:
        config: its settings.

    Returns:
        `init(key, D=2) -> ModelState`, its params `{"start", "rates"}`; `step(key,
        state, laws) -> (state, metrics)`, one update on PhaseData of shape [L, 2 K, N,
        D] in `own_units`, half of the states to adapt to, drawn anew; `predict(params,
        support, q [N, D], p [N, D]) -> (dq, dp)`, rates of a law of which `support`,
        [K, N, D] in any units, is known. A network serves any N.

    Raises:
        ValueError: from `predict`, for q and p of different shapes and where there is
            nothing to adapt to.
    """
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    # Where descent on one law flies apart, the update is left out.
    optimiser = optax.apply_if_finite(optimiser, 10)

    def init(key: Key[Array, ""], size: int = 2) -> ModelState:
        x = jnp.zeros((config.num_bodies, size))
        start = _Network(config).init(key, x, x, x + 1)
        rates = jax.tree.map(lambda x: jnp.full(x.shape, config.rate), start)
        return optimise.init_state(optimiser, {"start": start, "rates": rates})

    def step(key, state: ModelState, laws: PhaseData):
        order = jax.random.permutation(key, laws.q.shape[1])
        laws = jax.tree.map(lambda x: x[:, order], laws)
        half = order.shape[0] // 2 if config.inner_steps else 0
        support = jax.tree.map(lambda x: x[:, :half] if half else x, laws)
        query = jax.tree.map(lambda x: x[:, half:], laws)
        options = {"first_order": config.first_order, "checkpoint": config.checkpoint}

        def loss(params):
            steps, rates = config.inner_steps, params["rates"]
            return inner.meta_loss(
                lambda phi, data: error(config, phi, data),
                *(params["start"], support, query, steps, rates),
                **options,
            )

        return optimise.gradient_step(loss, optimiser, state)

    def predict(params: Params, support: PhaseData, q: Array, p: Array):
        adapted = adapt(config, params, support, config.inner_steps)
        return field(config, adapted, q, p)

    return Predictor(init, step, predict)


def own_units(data: PhaseData) -> tuple[PhaseData, Units]:
    """States [S, N, D] of one law such that q, p and all rates have mean square 1.

    q / a and p / b in time t c obey Hamilton's equations again.

    Raises:
        ValueError: if there is no state.
    """
    if data.q.shape[0] == 0:
        raise ValueError(
            f"support must hold at least one state, got shape {data.q.shape}."
        )
    num = jnp.maximum(jnp.sum(data.mask), 1.0)
    size = lambda x: jnp.sqrt(jnp.maximum(jnp.sum(x**2 * data.mask) / num, 1e-12))
    a, b = size(data.q), size(data.p)
    units = Units(a, b, jnp.sqrt(size(data.dq / a) ** 2 + size(data.dp / b) ** 2))
    return in_units(data, units), units


def in_units(data: PhaseData, units: Units) -> PhaseData:
    """The same states in given units."""
    a, b, c = units
    return PhaseData(
        data.q / a, data.p / b, data.dq / a / c, data.dp / b / c, data.mask
    )


def rates(config: Config, params: Params, q: Array, p: Array, mask: Array):
    """What the network says of (dq/dt, dp/dt), in own units.

    Raises:
        ValueError: if q and p differ in shape.
    """
    energy = lambda q, p: jnp.sum(_Network(config).apply(params, q, p, mask)[1])
    if config.conserving:
        return hamiltonian.field(energy, q, p, mask)
    if q.shape != p.shape:
        raise ValueError(f"q and p must have the same shape, got {q.shape}, {p.shape}.")
    dq, dp = jnp.split(_Network(config).apply(params, q, p, mask)[1], 2, -1)
    return mask * dq, mask * dp


def error(config: Config, params: Params, data: PhaseData) -> Float[Array, ""]:
    """Mean squared error of the rates; 1 for a network that says 0, in own units."""
    predicted = jax.vmap(lambda *x: rates(config, params, *x))
    dq, dp = predicted(data.q, data.p, data.mask)
    squares = ((dq - data.dq) ** 2 + (dp - data.dp) ** 2) * data.mask
    return jnp.sum(squares) / jnp.maximum(jnp.sum(data.mask), 1.0)


def adapt(config: Config, params: Params, support: PhaseData, steps: int):
    """Descends at the learnt rates on a law's states [K, N, D]: its network, its units.

    Raises:
        ValueError: if there is no state.
    """
    support, units = own_units(support)
    loss = lambda phi: error(config, phi, support)
    phi, _ = inner.inner_loop(loss, params["start"], steps, params["rates"])
    return phi, units


def field(config: Config, adapted: tuple[Params, Units], q: Array, p: Array, mask=None):
    """(dq/dt, dp/dt) [N, D] in the law's units; without a mask all coordinates exist.

    Raises:
        ValueError: if q and p differ in shape.
    """
    (phi, (a, b, c)), mask = adapted, jnp.ones_like(q) if mask is None else mask
    dq, dp = rates(config, phi, q / a, p / b, mask)
    return a * c * dq, b * c * dp


def draw_laws(key: Key[Array, ""], config: Config, name: str) -> PhaseData:
    """`config.laws` laws of a system, [L, 2 K, N, D], each in its own units.

    V'(q) = V(A q) for every body, A a rotation whose rows are stretched or shortened by
    up to `stretch`. A system of one coordinate is taken twice: V(x) + V(y). States are
    uniform in time on motions of up to 10 units, which begin in a ball in (A q, p).
    """
    system, least, most = SYSTEMS[name]
    shape = (2 * config.support, system.num_bodies, 2)

    def draw(key):
        keys = loop.fold_in_each(key, 6)
        log = jax.random.uniform(keys[0], (2,), minval=-1.0) * jnp.log(config.stretch)
        angle = jax.random.uniform(keys[1], maxval=2 * jnp.pi) * (config.stretch > 1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        axes = jnp.exp(log)[:, None] * jnp.array([[cos, -sin], [sin, cos]])
        potential = lambda q: system.potential(q @ axes.T)
        force = lambda q, p: -jax.grad(potential)(q)
        x = jax.random.normal(keys[2], (*shape[:2], 4))
        share = jax.random.uniform(keys[3], (*shape[:2], 1)) ** (1 / 4)
        radius = jax.random.uniform(keys[4], minval=least, maxval=most)
        x = radius * share * x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        q, p = x[..., :2] @ jnp.linalg.inv(axes).T, x[..., 2:]
        ends = 10 * jax.random.uniform(keys[5], shape[:1])

        def move(q, p, end):
            body = lambda _, x: integrate.leapfrog(force, *x, end / 200)
            return jax.lax.fori_loop(0, 200, body, (q, p))

        q, p = jax.vmap(move)(q, p, ends)
        data = PhaseData(q, p, p, jax.vmap(force)(q, p), jnp.ones_like(q))
        return own_units(hamiltonian.pad(data, config.num_bodies, 2))[0]

    return jax.vmap(draw)(loop.fold_in_each(key, config.laws))


def train(key: Key[Array, ""], config: Config) -> tuple[ModelState, Metrics]:
    """Learns the start on laws of all systems; metrics per update."""
    laws_key, init_key, loop_key = jax.random.split(key, 3)
    model = hamiltonian_meta(config)
    pools = [
        draw_laws(jax.random.fold_in(laws_key, i), config, name)
        for i, name in enumerate(config.systems)
    ]

    def step(key, state, pools):
        rows_key, step_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (config.per_system,), 0, config.laws)
        laws = jax.tree.map(lambda *x: jnp.concatenate(x), *_rows(pools, rows))
        return model.step(step_key, state, laws)

    return optimise.repeat(step, model.init(init_key), loop_key, pools, config.updates)


def linear_cka(x: Float[Array, "S W"], y: Float[Array, "S V"]) -> Float[Array, ""]:
    """How alike two embeddings of S states are, 0 to 1; turning either changes nothing.

    `|Y'X|² / (|X'X| |Y'Y|)`, centred, Frobenius norms.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited",
    ICML 2019.

    Raises:
        ValueError: if they do not embed equally many states.
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x and y must embed the same states, got {x.shape[0]} and {y.shape[0]}."
        )
    x, y = x - jnp.mean(x, 0), y - jnp.mean(y, 0)
    norm = jnp.linalg.norm
    return norm(y.T @ x) ** 2 / jnp.maximum(norm(x.T @ x) * norm(y.T @ y), 1e-30)


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """The learnt start on a system never seen, beside starts that were not learnt so.

    Means over four draws of `support` states of the target, constants 1, and 1000 more
    to be judged by. `meta`: this system. `random`: a fresh network. `multi_task` and
    `multi_task_plain`: trained on the same laws, and on those with constants 1, without
    adapting, twice as many updates. These three descend by SGD or Adam, at the rate
    that proves best on the very states they are judged by. `network`: as `meta`, but
    rates are what the network says.

    Returns:
        `error/ARM` of the rates after `inner_steps` steps, 1 is the size of the rates;
        `error/meta_0` and `error/meta_50` after other numbers of steps. `rollout/ARM`:
        distance from the true motion over 5 units of time, relative; `drift/ARM`: the
        largest change of the true energy on the way, relative; medians over 16 motions.
        `cka`: how much of the embedding of the states stays while the start adapts.
    """
    keys = loop.fold_in_each(key, 3)
    but = dataclasses.replace
    learn = lambda config: train(jax.random.clone(keys)[0], config)[0].params
    free = but(config, conserving=False)
    meta, network = learn(config), learn(free)
    single = but(config, inner_steps=0, updates=2 * config.updates)
    starts = {
        "random": hamiltonian_meta(config).init(keys[1]).params["start"],
        "multi_task": learn(single)["start"],
        "multi_task_plain": learn(but(single, stretch=1.0))["start"],
    }
    several = jax.tree.map(lambda *x: jnp.stack(x), *starts.values())

    def judge(key):
        system, num = SYSTEMS[config.target][0], config.support
        data = hamiltonian.sample(key, system, num + 1000)
        data = hamiltonian.pad(data, config.num_bodies, 2)
        support, others = _rows(data, slice(num)), _rows(data, slice(num, None))
        units = own_units(support)[1]
        near, query = in_units(support, units), in_units(others, units)
        tuned = jax.lax.map(lambda x: _fine_tuned(config, x, near, query), several)
        arms = {name: (config, _rows(tuned, i)) for i, name in enumerate(starts)}
        after = lambda own, params, steps: (own, adapt(own, params, support, steps)[0])
        arms["network"] = after(free, network, config.inner_steps)
        arms["meta"] = after(config, meta, config.inner_steps)
        arms |= {f"meta_{steps}": after(config, meta, steps) for steps in (0, 50)}
        metrics = {}
        for name, (own, phi) in arms.items():
            metrics[f"error/{name}"] = error(own, phi, query)
            law = functools.partial(field, own, (phi, units))
            found = _rollout(system, law, _rows(others, slice(16)))
            metrics[f"rollout/{name}"], metrics[f"drift/{name}"] = found

        def embedded(phi):
            one = lambda *x: _Network(config).apply(phi, *x)[0].ravel()
            return jax.vmap(one)(query.q, query.p, query.mask)

        metrics["cka"] = linear_cka(*map(embedded, (meta["start"], arms["meta"][1])))
        return metrics

    metrics = jax.lax.map(judge, loop.fold_in_each(keys[2], 4))
    return jax.tree.map(lambda x: jnp.mean(x, 0), metrics)


def _rows(data, at):
    return jax.tree.map(lambda x: x[at], data)


def _fine_tuned(config: Config, start: Params, support: PhaseData, query: PhaseData):
    """The best network on `query` that SGD or Adam make of `start`, over `_RATES`."""
    adam = optax.adam(1.0)

    def descend(rates):
        def step(carry, _):
            phi, state = carry
            grads = jax.grad(lambda phi: error(config, phi, support))(phi)
            updates, state = adam.update(grads, state)
            move = lambda x, g, u: x - rates[0] * g + rates[1] * u
            return (jax.tree.map(move, phi, grads, updates), state), None

        carry = start, adam.init(start)
        (phi, _), _ = jax.lax.scan(step, carry, None, length=config.inner_steps)
        return phi, error(config, phi, query)

    phi, errors = jax.lax.map(descend, jnp.array(_RATES))
    return _rows(phi, jnp.argmin(jnp.where(jnp.isfinite(errors), errors, jnp.inf)))


def _rollout(system: hamiltonian.Hamiltonian, law: Callable, starts: PhaseData):
    """Median relative distance from the true motion and drift of the true energy."""
    n, d, ts = system.num_bodies, system.size, 0.25 * jnp.arange(21.0)
    energy = lambda q, p: system.energy(q[:n, :d], p[:n, :d])

    def one(q, p, mask):
        def move(law):
            vf = lambda t, x, _: law(*x, mask)
            return jnp.stack(ode.odeint(vf, None, (q, p), ts, step_size=0.05)[0])

        found, true = move(law), move(functools.partial(hamiltonian.field, energy))
        first = energy(q, p)
        drift = jnp.max(jnp.abs(jax.vmap(energy)(*found) - first)) / jnp.abs(first)
        return jnp.linalg.norm(found - true) / jnp.linalg.norm(true), drift

    far, drift = jax.vmap(one)(starts.q, starts.p, starts.mask)
    known = lambda x: jnp.where(jnp.isfinite(x), x, jnp.inf)  # NaN: it flew apart
    return jnp.median(known(far)), jnp.median(known(drift))
