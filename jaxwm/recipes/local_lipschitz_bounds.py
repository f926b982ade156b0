"""Local Lipschitz bounds: linear bound propagation through the Clarke Jacobian.

Certifies how fast a ReLU network can change near one input: an upper bound on the
l_1 norm of the gradient of `c · f` over a box of radius ε, which is the local Lipschitz
constant from l_inf inputs to that output. The backward pass is itself a network,

    v_L = c,   g_i = W_{i+1} v_{i+1},   v_i = d_i g_i,   d_i in [0, 1] or known,

so it is relaxed line by line, as the forward pass is, and so is |g_0| at its end.

Source: Shi et al., "Efficiently Computing Local Lipschitz Constants of Neural Networks
via Bound Propagation", NeurIPS 2022, and its reference code.
Shapes: X inputs, Y outputs, L layers, I units of a hidden layer, D domains of branch
and bound. Functions bound one box; `jax.vmap` adds boxes, outputs and networks.
Departs: the budget of branch and bound is a number of rounds, not seconds; leaky ReLU
and tanh are bounded too.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxwm.core import checks, loop, optimise
from jaxwm.measures import bound_propagation, lipschitz
from jaxwm.measures.bound_propagation import Interval, Layer, Lines
from jaxwm.types import Metrics

_INFLATE = 1 + 1e-5  # of every bound, for float32 rounding
_TINY = 1e-12
_INPUTS, _CLASSES = 16, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Networks of the experiment; seconds on one core."""

    # hidden widths of random networks, and the radii of the boxes they are bounded on
    networks: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = (
        ((32, 32), (0.05, 0.2)),
        ((64, 64, 64), (0.1,)),
    )
    num_networks: int = 5  # per pair of both, and as many trained at the first pair
    num_samples: int = 20_000  # gradients that every bound must cover
    train_steps: int = 300
    rounds: int = 24  # of branch and bound
    batch: int = 8  # domains split per round

    def __post_init__(self):
        checks.finite(self)
        checks.at_least(1, self, "num_networks", "num_samples", "rounds", "batch")
        if not self.networks:
            raise ValueError("networks must name at least one pair, got none.")
        for widths, radii in self.networks:
            if not widths or not radii or min(radii) < 0:
                raise ValueError(
                    "networks must be pairs of hidden widths and of radii of at least "
                    f"0, got {(widths, radii)}; linear maps need no bound."
                )


# The widest of the published synthetic study; the radius and the number of rounds
# (which fill its 200 000 domains) are ours.
PAPER = Config(networks=(((128, 128), (0.1,)),), batch=128, rounds=1562)
TINY = Config(
    networks=(((16,), (0.1,)),),
    num_networks=2,
    num_samples=200,
    train_steps=20,
    rounds=4,
)


def clarke_gradient_bounds(
    layers: Sequence[Layer],
    slopes: Sequence[Interval],
    c: Float[Array, " Y"],
    *,
    linear: bool = True,
) -> list[Interval]:
    """Intervals of g_0, g_1 ... g_{L-1}; g_0 is the gradient with respect to the input.

    Where g_0 has one sign, `c · f` is certified to be monotone in that input.

    Args:
        layers: the network.
        slopes: of the derivatives d_1 ... d_{L-1} over the box, see
            `bound_propagation.derivative_interval`.
        c: output functional.
        linear: whether g_i is bounded by lines down to c, or (False) from the interval
            of g_{i+1} alone, which is weaker and cheaper.
    """
    gradients, lines = [], []  # from the output to the input
    v = Interval(c, c)
    for i, layer in reversed(list(enumerate(layers))):
        up, down = jnp.maximum(layer.weight, 0), jnp.minimum(layer.weight, 0)
        low, high = up @ v.low + down @ v.high, up @ v.high + down @ v.low
        if linear:
            rest = (layers[i:], lines[::-1], c)
            low = jnp.maximum(low, _carry_back(layer.weight, *rest, upper=False)[0])
            high = jnp.minimum(high, _carry_back(layer.weight, *rest, upper=True)[0])
        g = Interval(low, jnp.maximum(low, high))  # rounding may cross them
        gradients.append(g)
        if i > 0:
            d = slopes[i - 1]
            lines.append(_product_lines(d, g))
            v = Interval(
                jnp.minimum(d.low * g.low, d.high * g.low),
                jnp.maximum(d.low * g.high, d.high * g.high),
            )
    return gradients[::-1]


def _product_lines(d: Interval, g: Interval) -> Lines:
    """Lines around v = d g: d_low g, and the rest of d as a share in [0, 1] of g."""
    slope, shift = bound_propagation.chord(g)
    free = d.high - d.low
    return Lines(
        d.low + free * (1 - slope), -free * shift, d.low + free * slope, free * shift
    )


def _carry_back(rows, layers, lines, c, *, upper: bool):
    """Bounds `rows v` for v behind the first of `layers`, down to the constant c.

    Also returns the coefficients that stood at every v_i on the way.
    """
    shift, met = jnp.zeros(rows.shape[0]), []
    for layer, line in zip(layers[1:], lines, strict=True):
        met.append(rows)
        rows, shift = bound_propagation.substitute(rows, shift, line, upper=upper)
        rows = rows @ layer.weight
    return rows @ c + shift, met


def _norm_bound(layers, slopes, c):
    """Bound on |g_0|_1, and per hidden unit how much splitting it could help ("area").

    Lines above |g_0,k| are summed before they are carried back, once and together.
    """
    gradients = clarke_gradient_bounds(layers, slopes, c)
    g = gradients[0]
    width = g.high - g.low
    is_wide = width > _TINY
    rise = jnp.abs(g.high) - jnp.abs(g.low)
    slope = jnp.where(is_wide, rise / jnp.where(is_wide, width, 1.0), 0.0)
    largest = jnp.maximum(jnp.abs(g.low), jnp.abs(g.high))
    shift = jnp.where(is_wide, jnp.abs(g.high) - slope * g.high, largest)
    lines = [_product_lines(d, h) for d, h in zip(slopes, gradients[1:], strict=True)]
    row = (slope @ layers[0].weight)[None]
    value, met = _carry_back(row, layers, lines, c, upper=True)
    bound = jnp.minimum(value[0] + jnp.sum(shift), jnp.sum(largest))
    scores = [
        jnp.where(
            d.high > d.low,
            (h.high * jnp.abs(h.high) - h.low * jnp.abs(h.low)) * jnp.abs(a[0]) + 1,
            0.0,
        )
        for d, h, a in zip(slopes, gradients[1:], met, strict=True)
    ]
    return bound * _INFLATE, jnp.concatenate(scores)


def _slopes(layers, x, eps, activation, slope_steps=0) -> list[Interval]:
    """Intervals of the activations' derivatives over the box."""
    if bound_propagation.is_known(eps) and not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}; it is a radius.")
    if len(layers) < 2:
        raise ValueError(
            "layers must hold a hidden layer, got one layer; the gradient of a linear "
            "map is constant."
        )
    hidden = bound_propagation.crown_preactivation_bounds(
        layers, x - eps, x + eps, activation=activation, slope_steps=slope_steps
    )
    return [bound_propagation.derivative_interval(z, activation) for z in hidden]


def local_lipschitz_bounds(
    layers: Sequence[Layer],
    x: Float[Array, " X"],
    eps: float | Float[Array, ""],
    c: Float[Array, " Y"] | None = None,
    *,
    method: str = "linear",
    activation: str = "relu",
    slope_steps: int = 0,
) -> Float[Array, ""]:
    """Upper bound on `|∇ (c · f)|_1` over `|x' - x|_inf <= eps`.

    Args:
        layers: the network, see `bound_propagation.dense_layers`.
        x: centre of the box.
        eps: its radius, at least 0.
        c: output functional: a row of the identity for one output, a difference of two
            for a margin; None for the largest over the outputs, the constant from l_inf
            to l_inf.
        method: "linear" is the paper's; "interval" propagates the gradient's interval
            layer by layer; "global" multiplies absolute matrices and needs no box.
        activation: a name in `bound_propagation.ACTIVATIONS`.
        slope_steps: of the optimisation of the forward bounds; 0 for none.

    Raises:
        ValueError: for a negative radius, an unknown method, shapes that do not fit.
        NotImplementedError: for an activation without known bounds.
    """
    if method not in ("linear", "interval", "global"):
        raise ValueError(
            f'method must be "linear", "interval" or "global", got {method!r}.'
        )
    size = layers[-1].weight.shape[1]
    if c is not None and c.shape != (size,):
        raise ValueError(
            f"c must have shape ({size},), one entry per output, got {c.shape}."
        )
    rows = jnp.eye(size) if c is None else c[None]
    with jax.default_matmul_precision("highest"):  # TF32 would not be sound
        if method == "global":
            bound = lambda c: lipschitz.global_lipschitz(layers, c) * _INFLATE
        else:
            slopes = _slopes(layers, x, eps, activation, slope_steps)
        if method == "linear":
            bound = lambda c: _norm_bound(layers, slopes, c)[0]
        elif method == "interval":

            def bound(c):
                g = clarke_gradient_bounds(layers, slopes, c, linear=False)[0]
                return jnp.sum(jnp.maximum(-g.low, g.high)) * _INFLATE

        return jnp.max(jax.vmap(bound)(rows))


def local_lipschitz_bab(
    layers: Sequence[Layer],
    x: Float[Array, " X"],
    eps: float | Float[Array, ""],
    c: Float[Array, " Y"],
    *,
    rounds: int = 24,
    batch: int = 8,
    activation: str = "relu",
) -> tuple[Float[Array, ""], Float[Array, " rounds"]]:
    """Tightens the linear bound by branch and bound over unstable units.

    Each round takes the `batch` domains with the largest bounds and splits each at its
    most promising unit ("area"), once on and once off. Work and memory grow with
    `rounds * batch`.

    Returns:
        The bound, and the bound after every round, which never increases.

    Raises:
        ValueError: as `local_lipschitz_bounds`; and for tanh, which has no branches.
    """
    if activation == "tanh":
        raise ValueError(
            'activation must be piecewise linear to be split, got "tanh"; '
            "use local_lipschitz_bounds."
        )
    slopes = _slopes(layers, x, eps, activation)
    ends = list(itertools.accumulate((d.low.size for d in slopes), initial=0))

    def evaluate(side):  # [I_1 + ... + I_{L-1}]: -1 off, 1 on, 0 free
        parts = [side[i:j] for i, j in itertools.pairwise(ends)]
        split = [
            Interval(
                jnp.where(part > 0, d.high, d.low), jnp.where(part < 0, d.low, d.high)
            )
            for part, d in zip(parts, slopes, strict=True)
        ]
        bound, score = _norm_bound(layers, split, c)
        return bound, jnp.argmax(score), jnp.max(score) > 0

    size = 1 + rounds * batch
    side = jnp.zeros((size, ends[-1]), jnp.int8)
    bound, unit, is_open = evaluate(side[0])
    domains = (
        side,
        jnp.full(size, -jnp.inf).at[0].set(bound),
        jnp.zeros(size, int).at[0].set(unit),
        jnp.zeros(size, bool).at[0].set(is_open),
    )

    def split_worst(domains, i):
        side, bound, unit, is_open = domains
        _, worst = jax.lax.top_k(jnp.where(is_open, bound, -jnp.inf), batch)
        where = jnp.concatenate([worst, 1 + i * batch + jnp.arange(batch)])
        parent = jnp.tile(worst, 2)
        sign = jnp.repeat(jnp.array([1, -1], jnp.int8), batch)
        children = side[parent].at[jnp.arange(2 * batch), unit[parent]].set(sign)
        child_bound, child_unit, child_open = jax.vmap(evaluate)(children)
        was_open = is_open[parent]
        # A parent that is closed stays as it is, its second child empty.
        kept = jnp.where(jnp.arange(2 * batch) < batch, bound[parent], -jnp.inf)
        child_bound = jnp.where(was_open, jnp.minimum(child_bound, bound[parent]), kept)
        new = (children, child_bound, child_unit, child_open & was_open)
        domains = tuple(
            old.at[where].set(value) for old, value in zip(domains, new, strict=True)
        )
        return domains, jnp.max(domains[1])

    with jax.default_matmul_precision("highest"):
        _, history = jax.lax.scan(split_worst, domains, jnp.arange(rounds))
    return history[-1], history


def random_network(key: Key[Array, ""], widths: Sequence[int]) -> tuple[Layer, ...]:
    """Gaussian weights of scale 1.4 / sqrt(fan in), biases of scale 0.1."""
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, i))
        weight = jax.random.normal(weight_key, (fan_in, fan_out)) * 1.4 / fan_in**0.5
        layers.append(Layer(weight, 0.1 * jax.random.normal(bias_key, (fan_out,))))
    return tuple(layers)


def _train(key, layers, centres, num_steps):
    """Fits a network to classify points around the centres of clusters."""
    optimiser = optax.adam(3e-3)

    def step(key, state, _):
        label_key, noise_key = jax.random.split(key)
        label = jax.random.randint(label_key, (128,), 0, _CLASSES)
        x = centres[label] + 0.5 * jax.random.normal(noise_key, (128, _INPUTS))

        def loss(layers):
            logits = jax.vmap(bound_propagation.apply, (None, 0))(layers, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        return optimise.gradient_step(loss, optimiser, state)

    state = optimise.init_state(optimiser, layers)
    return optimise.repeat(step, state, key, None, num_steps)[0].params


def experiment(key: Key[Array, ""], config: Config = Config()) -> Metrics:
    """Bounds on random and trained networks, relative to one another and to samples.

    `coverage` is the least bound over the largest sampled gradient: below 1 the bound
    would be refuted. Ratios are means over networks, with the worst beside them:
    `linear/interval`, `interval/global`, `linear/sampled` (how loose it is), and
    `branched/linear`, what branch and bound makes of the linear bound of the networks
    of the first widths.
    """
    c = jnp.eye(_CLASSES)[0]

    def compare(branch, task):
        key, layers, eps = task
        x_key, sample_key = jax.random.split(key)
        x = jax.random.normal(x_key, (_INPUTS,))
        linear, interval, global_ = (
            local_lipschitz_bounds(layers, x, eps, c, method=method)
            for method in ("linear", "interval", "global")
        )
        found = lipschitz.sampled_lipschitz(
            sample_key,
            lambda x: bound_propagation.apply(layers, x) @ c,
            x,
            eps,
            num_samples=config.num_samples,
        )
        tightest, ratios = linear, {}
        if branch:
            tightest, _ = local_lipschitz_bab(
                layers, x, eps, c, rounds=config.rounds, batch=config.batch
            )
            ratios = {"branched/linear": tightest / linear}
        return {
            **ratios,
            "coverage": tightest / found,
            "linear/interval": linear / interval,
            "interval/global": interval / global_,
            "linear/sampled": linear / found,
        }

    def draw(key, widths):
        keys = loop.fold_in_each(key, config.num_networks)
        network = lambda key: random_network(key, (_INPUTS, *widths, _CLASSES))
        return jax.vmap(network)(keys)

    def train(key, layers):
        centre_key, train_key = jax.random.split(key)
        centres = jax.random.normal(centre_key, (_CLASSES, _INPUTS))
        return _train(train_key, layers, centres, config.train_steps)

    results = {}
    for i, (widths, radii) in enumerate(config.networks):
        net_key, train_key, box_key = jax.random.split(jax.random.fold_in(key, i), 3)
        layers = draw(net_key, widths)
        families = {
            f"{len(widths)}x{widths[0]},{eps:g}": (layers, eps) for eps in radii
        }
        if i == 0:
            keys = loop.fold_in_each(train_key, config.num_networks)
            families["trained"] = (jax.vmap(train)(keys, layers), radii[0])
        count = len(families) * config.num_networks
        stacked = jax.tree.map(
            lambda *x: jnp.concatenate(x), *(nets for nets, _ in families.values())
        )
        eps = jnp.repeat(
            jnp.array([eps for _, eps in families.values()]), config.num_networks
        )
        keys = loop.fold_in_each(box_key, count)
        ratios = functools.partial(compare, i == 0)
        found = jax.lax.map(ratios, (keys, stacked, eps))
        for j, name in enumerate(families):
            part = slice(j * config.num_networks, (j + 1) * config.num_networks)
            results[name] = {metric: values[part] for metric, values in found.items()}

    def gather(metric):
        return jnp.concatenate([r[metric] for r in results.values() if metric in r])

    metrics = {"coverage": jnp.min(gather("coverage"))}
    for metric in ("linear/interval", "interval/global", "branched/linear"):
        metrics[metric] = jnp.mean(gather(metric))
        metrics[f"{metric}/worst"] = jnp.max(gather(metric))
    for name, result in results.items():
        for metric in ("linear/interval", "linear/sampled"):
            metrics[f"{metric}/{name}"] = jnp.mean(result[metric])
    return metrics
