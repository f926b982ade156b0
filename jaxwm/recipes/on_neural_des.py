"""Neural differential equations: what is known, what drives, what rests.

    dy/dt = k(y, s f)                an ODE, k what is known     (`on_neural_des`)
    dz = g(z) dX_t                   driven by a series X        (`neural_cde`)
    z = tanh(W z + U x + b)          no time at all              (`equilibrium`)

f and g are networks. The thesis is a survey: solvers, adjoints, fixed points and
symbolic regression are the library's `physics`; here models use them. ODEs are solved
reversibly: their gradient is that of the steps taken.

Source: Kidger, "On Neural Differential Equations", doctoral thesis, Oxford, 2022.
Departs: the problems are ours. On our spirals a CDE is no better than a GRU.
Not here: neural SDEs (fitted to an Ornstein-Uhlenbeck process, a latent SDE missed its
variance by a fifth; `physics.sde` solves SDEs), latent ODEs, augmented states.
Shapes: B trajectories, T times, D state, I observed, C channels of a path.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, loop, optimise
from jaxwm.data import planar
from jaxwm.nn import MLP
from jaxwm.physics import fixed_point, identify, integrate, ode, sde, symbolic
from jaxwm.types import Metrics, ModelState, Params, Predictor

OPS = ("+", "-", "*", "sin", "cos", "exp")  # of the formulas


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A minute on one core for all four experiments, once they are compiled."""

    width: int = 32  # of every network, and of the equilibrium
    hidden: int = 16  # state of the CDE and of the recurrent network
    sub_steps: int = 2  # of the ODE's solver between two times
    cde_step: float = 0.025  # of the CDE's, in the series' unit of time
    learning_rate: float = 1e-2  # at first; falls to 0 as a cosine
    ode_updates: int = 4000
    problems: int = 16  # of predators and prey
    updates: int = 600  # of the classifiers
    batch: int = 64  # of the classifiers
    population: int = 256  # of formulas
    generations: int = 60
    searches: int = 4  # of which one may stop at a straight line

    def __post_init__(self):
        checks.finite(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}.")


TINY = Config(
    width=4,
    cde_step=0.25,
    ode_updates=2,
    problems=2,
    updates=2,
    population=16,
    generations=2,
)


def on_neural_des(
    config: Config,
    known: Callable = lambda y, network: network(y),
    *,
    inputs: int | None = None,
) -> Predictor:
    """A neural ODE, `dy/dt = k(y, s f)`; s is learnt and starts at 0.

    Args:
        config: its settings.
        known: k, `(y [D], network) -> dy/dt [D]`: the mechanics, and where in them the
            network, `[inputs] -> [D]`, stands for what is not known; by default all.
        inputs: numbers that the network reads; None: D.

    Returns:
        `init(key, D) -> ModelState`; `step(key, state, (ts [T], ys [B, T, D])) ->
        (state, metrics)`, one update on whole trajectories; `predict(params, y0 [D],
        ts [T]) -> [T, D]`.
    """
    optimiser = _adam(config, config.ode_updates)

    def init(key: Key[Array, ""], size: int) -> ModelState:
        first = jnp.zeros(size if inputs is None else inputs)
        field = _network(config, size).init(key, first)
        return optimise.init_state(optimiser, {"field": field, "scale": jnp.zeros(())})

    def predict(params: Params, y0: Float[Array, " D"], ts: Float[Array, " T"]):
        def field(t, y, params):
            network = lambda x: _network(config, y.shape[0]).apply(params["field"], x)
            return known(y, lambda x: params["scale"] * network(x))

        # There is no noise: the key is never used.
        return sde.reversible_heun(
            jax.random.key(0), field, None, params, y0, ts, sub_steps=config.sub_steps
        )

    def step(key, state: ModelState, data):
        del key  # trajectories are taken whole
        ts, ys = data

        def loss(params):
            found = jax.vmap(lambda y0: predict(params, y0, ts))(ys[:, 0])
            return jnp.mean((found - ys) ** 2)

        return optimise.gradient_step(loss, optimiser, state)

    return Predictor(init, step, predict)


def neural_cde(config: Config) -> Predictor:
    """A classifier of series with gaps: `dz = g(z) dX`, logit linear in the last z.

    X is a cubic path through time, the series, and how often it was observed so far.

    `init(key, I) -> ModelState`; `step(key, state, (ts [B, T], xs [B, T, I], label
    [B])) -> (state, metrics)` on rows that it draws; `predict(params, ts [T],
    xs [T, I]) -> logit`. Missing entries are NaN; `sde.cde_control` has the errors.
    """
    first = _network(config, config.hidden, 1)
    network = lambda channels: _network(config, config.hidden * channels, 1)

    def init(key, size: int):
        keys = loop.fold_in_each(key, 3)
        return {
            "first": first.init(keys[0], jnp.zeros(size)),
            "field": network(1 + 2 * size).init(keys[1], jnp.zeros(config.hidden)),
            "out": jax.random.normal(keys[2], (config.hidden,)) / config.hidden**0.5,
        }

    def predict(params: Params, ts: Float[Array, " T"], xs: Float[Array, "T I"]):
        def field(z, params):
            g = network(1 + 2 * xs.shape[1]).apply(params["field"], z)
            return jnp.tanh(g).reshape(config.hidden, -1)

        control = sde.cde_control(ts, xs, mask=True)
        z0 = first.apply(params["first"], xs[0])
        options = {"solver": "heun", "step_size": config.cde_step}
        return sde.cdeint(field, params, z0, control, **options)[0] @ params["out"]

    model = _classifier(config, init, jax.vmap(predict, (None, 0, 0)))
    return model._replace(predict=predict)


def equilibrium(config: Config) -> Predictor:
    """A classifier whose logit is linear in the fixed point of `rest`.

    `init(key, I) -> ModelState`; `step(key, state, (x [B, I], label [B])) ->
    (state, metrics)` on rows that it draws; `predict(params, x [B, I]) -> logits [B]`.
    """
    width = config.width

    def init(key, size: int):
        keys = loop.fold_in_each(key, 3)
        return {
            "W": jax.random.normal(keys[0], (width, width)) / width**0.5,
            "U": jax.random.normal(keys[1], (width, size)),
            "b": jnp.zeros(width),
            "out": jax.random.normal(keys[2], (width,)) / width**0.5,
        }

    logits = lambda params, x: rest(params, x).z @ params["out"]
    return _classifier(config, init, logits)


def rest(params: Params, x: Float[Array, "B I"]) -> fixed_point.FixedPoint:
    """The fixed point, and the residual that tells whether it was found."""
    zeros = jnp.zeros((x.shape[0], params["b"].shape[0]), x.dtype)
    return fixed_point.fixed_point_layer(contraction, params, x, zeros, tol=1e-6)


def contraction(params: Params, x: Float[Array, "B I"], z: Float[Array, "B W"]):
    """`tanh(W z + U x + b)`, the norm of W at most 0.9: it has one fixed point."""
    W = 0.9 * params["W"] / jnp.maximum(1.0, jnp.linalg.norm(params["W"]))
    return jnp.tanh(z @ W.T + x @ params["U"].T + params["b"])


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """The four experiments; see `_extrapolate` and what follows for their metrics."""
    metrics = {}
    for i, part in enumerate((_extrapolate, _gaps, _formula, _moons)):
        metrics |= part(jax.random.fold_in(key, i), config)
    return metrics


def _extrapolate(key: Key[Array, ""], config: Config) -> Metrics:
    """Predators and prey, three times as far as was seen; `problems` of them.

        x' = x - φ(x) y,   y' = -y + ψ(x) y

    How often a predator meets prey is not known, φ(x) = ψ(x) = x, all else is. Three
    motions of 2 units of time each, noise 0.002. Metrics: medians over the problems of
    rms errors beyond what was seen, with and without what is known, and of their ratio.

    Noise limits the hybrid model, above all that of the states where pieces start: its
    median error is 0.002, 0.006, 0.011 and 0.024 with noise 0, 0.002, 0.005 and 0.01.
    What knows nothing errs by 0.1, 0.01 to 3, whatever the noise. With noise 0.01 the
    ratio is above 0.3 in a fifth of 60 problems, their median is 0.15.
    """
    alone = lambda y: jnp.array([1.0, -1.0]) * y
    known = lambda y, network: alone(y) + network(y[:1]) * y[1]
    law = lambda t, y, _: known(y, lambda x: jnp.array([-1.0, 1.0]) * x)
    num, ts = 20, 0.1 * jnp.arange(60.0)  # times seen, all times

    def errors(key):
        keys = loop.fold_in_each(key, 3)
        start = jax.random.uniform(keys[0], (3, 2), minval=0.5, maxval=2.0)
        truth = jax.vmap(lambda y0: ode.odeint(law, None, y0, ts)[0])(start)
        seen = truth[:, :num] + 0.002 * jax.random.normal(keys[1], (3, num, 2))
        # Over short pieces nothing explodes while the network knows nothing.
        data = ts[:10], seen.reshape(-1, 10, 2)

        def error(model):
            key = jax.random.clone(keys)[2]
            params = _fit(key, model, 2, data, config.ode_updates)
            found = jax.vmap(lambda y0: model.predict(params, y0, ts))(start)
            return jnp.mean((found - truth)[:, num:] ** 2)

        models = on_neural_des(config, known, inputs=1), on_neural_des(config)
        return jnp.stack([error(model) for model in models])

    squares = jax.vmap(errors)(loop.fold_in_each(key, config.problems))
    hybrid, pure = jnp.sqrt(squares).T
    rows = {"hybrid": hybrid, "pure": pure, "ratio": hybrid / pure}
    return {f"extrapolate/{name}": jnp.median(row) for name, row in rows.items()}


def _gaps(key: Key[Array, ""], config: Config) -> Metrics:
    """Which way a spiral turns, from 30 to 70 % of its points; accuracy on fresh ones.

    Beside it a GRU that takes gaps for zeros and does not know the times.
    """
    train_key, test_key, fit_key = jax.random.split(key, 3)
    data, test = planar.spirals(train_key, 256), planar.spirals(test_key, 1024)
    last = lambda states: states[..., -1, :]
    gru = nn.Sequential([nn.RNN(nn.GRUCell(config.hidden)), last, nn.Dense(1)])
    init = lambda key, size: gru.init(key, jnp.zeros((2, size)))
    logits = lambda params, ts, xs: gru.apply(params, jnp.nan_to_num(xs))[..., 0]
    cde, rival = neural_cde(config), _classifier(config, init, logits)

    def accuracy(model, predict):
        params = _fit(jax.random.clone(fit_key), model, 2, data, config.updates)
        return jnp.mean((predict(params, *test[:2]) > 0) == test[2])

    return {
        "accuracy/cde": accuracy(cde, jax.vmap(cde.predict, (None, 0, 0))),
        "accuracy/gru": accuracy(rival, logits),
    }


def _formula(key: Key[Array, ""], config: Config) -> Metrics:
    """The law of a damped pendulum from 500 noisy points of ten motions.

        q' = v,   v' = -2 sin q - 0.3 v

    A hybrid neural ODE (q' = v is known) is fitted, formulas are bred on what its field
    says (on a quarter of the points), the best one's constants fitted once more through
    the solver.
    `formula/off`: what of the formula's variance on a wider square is neither sin q
    nor v; `formula/constants`: the largest relative error of the two constants.
    """
    keys = loop.fold_in_each(key, 4)
    true = jnp.array([-2.0, -0.3])
    basis = lambda y: jnp.stack([jnp.sin(y[..., 0]), y[..., 1]], -1)
    ts = 0.1 * jnp.arange(50.0)
    start = jax.random.uniform(keys[0], (10, 2), minval=-2.0, maxval=2.0)
    swing = lambda t, y, _: jnp.stack([y[1], basis(y) @ true])
    seen = jax.vmap(lambda y0: ode.odeint(swing, None, y0, ts)[0])(start)
    seen = seen + 0.01 * jax.random.normal(keys[1], seen.shape)
    pieces, points = seen.reshape(50, 10, 2), seen.reshape(500, 2)

    known = lambda y, network: jnp.stack([y[1], network(y)[1]])
    model, data = on_neural_des(config, known), (ts[:10], pieces)
    params = _fit(keys[2], model, 2, data, config.ode_updates // 2)
    slope = params["scale"] * _network(config, 2).apply(params["field"], points)[:, 1]
    data = points[::4], slope[::4], OPS
    sizes = {"population": config.population, "generations": config.generations}
    search = lambda key: symbolic.symbolic_regress(key, *data, **sizes)
    fronts = jax.lax.map(search, loop.fold_in_each(keys[3], config.searches))
    # The best search for every size of formula, then the best size.
    winner, size = jnp.argmin(fronts.loss, 0), jnp.arange(fronts.loss.shape[1])
    front = jax.tree.map(lambda leaf: leaf[winner, size], fronts)
    best = symbolic.knee(front, factor=2.0)
    tree = jax.tree.map(lambda leaf: leaf[best], front.tree)

    def simulate(factors):
        # Factors of 1 keep the signs of the constants, which may be any.
        own = tree._replace(constant=tree.constant * factors)
        law = lambda q, v: symbolic.evaluate(own, jnp.stack([q, v], 1), OPS)

        def move(y, _):
            y = integrate.runge_kutta_4(law, *y, 0.1)
            return y, jnp.stack(y, 1)

        first = pieces[:, 0, 0], pieces[:, 0, 1]
        return jax.lax.scan(move, first, None, length=9)[1].swapaxes(0, 1)

    ones = jnp.ones_like(tree.constant)
    factors = identify.identify(simulate, pieces[:, 1:], ones, iterations=10).params
    tree = tree._replace(constant=tree.constant * factors)
    axis = jnp.linspace(-3.0, 3.0, 21)
    square = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    formula = symbolic.evaluate(tree, square, OPS)
    constants = jnp.linalg.lstsq(basis(square), formula)[0]
    other = formula - basis(square) @ constants
    return {
        "formula/off": jnp.mean(other**2) / jnp.var(formula),
        "formula/constants": jnp.max(jnp.abs(constants / true - 1)),
    }


def _moons(key: Key[Array, ""], config: Config) -> Metrics:
    """Two moons by an equilibrium: accuracy on fresh points, its residual.

    `moons/gradient` is the distance from the gradient of 200 iterations, relative.
    """
    train_key, test_key, fit_key = jax.random.split(key, 3)
    x, label = planar.two_moons(train_key, 256)
    fresh, truth = planar.two_moons(test_key, 1024)
    model = equilibrium(config)
    params = _fit(fit_key, model, 2, (x, label), config.updates)

    def gradient(solve):
        loss = lambda params: jnp.mean(jnp.sin(solve(params) @ params["out"]))
        return ravel_pytree(jax.grad(loss)(params))[0]

    def iterated(params):
        body = lambda z, _: (contraction(params, x, z), None)
        return jax.lax.scan(body, jnp.zeros((256, config.width)), None, length=200)[0]

    implicit, exact = gradient(lambda params: rest(params, x).z), gradient(iterated)
    return {
        "moons/accuracy": jnp.mean((model.predict(params, fresh) > 0) == truth),
        "moons/residual": rest(params, fresh).residual,
        "moons/gradient": jnp.linalg.norm(implicit - exact) / jnp.linalg.norm(exact),
    }


def _network(config: Config, size: int, depth: int = 2) -> MLP:
    return MLP((*(config.width,) * depth, size), activation="softplus")


def _adam(config: Config, updates: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def _fit(key, model: Predictor, size: int, data, updates: int) -> Params:
    init_key, loop_key = jax.random.split(key)
    state = model.init(init_key, size)
    return optimise.repeat(model.step, state, loop_key, data, updates)[0].params


def _classifier(config: Config, init: Callable, logits: Callable) -> Predictor:
    """`init(key, I) -> params`; `logits(params, *inputs [B, ...]) -> [B]`."""
    optimiser = _adam(config, config.updates)

    def step(key: Key[Array, ""], state: ModelState, data):
        num = data[-1].shape[0]
        rows = jax.random.randint(key, (min(config.batch, num),), 0, num)
        *inputs, label = jax.tree.map(lambda x: x[rows], data)

        def loss(params):
            found = logits(params, *inputs)
            return jnp.mean(optax.sigmoid_binary_cross_entropy(found, 1.0 * label))

        return optimise.gradient_step(loss, optimiser, state)

    begin = lambda key, size: optimise.init_state(optimiser, init(key, size))
    return Predictor(begin, step, logits)
