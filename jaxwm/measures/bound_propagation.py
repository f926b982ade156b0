"""Linear bounds of what a network computes over a box of inputs.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General
Activation Functions", NeurIPS 2018.
Shapes: I inputs and O outputs of a layer, K rows that are bounded at once, X inputs and
Y outputs of the network: a tuple of `Layer`s, z_i = a_{i-1} W_i + b_i, a_i = σ(z_i),
with no activation behind the last. Bounds are widened for float32 rounding.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxwm.types import Params

# Relative widening of bounds on pre-activations: some tens of float32 roundings.
ROUNDING = 3e-6
_LEAK = 0.01  # jax.nn.leaky_relu's slope
_TINY = 1e-12
ACTIVATIONS = {"relu": jax.nn.relu, "leaky_relu": jax.nn.leaky_relu, "tanh": jnp.tanh}


class Layer(NamedTuple):
    """The affine map `x @ weight + bias`."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"]


class Interval(NamedTuple):
    """Ends of an interval per entry."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]


class Lines(NamedTuple):
    """`low_slope z + low_shift <= y <= high_slope z + high_shift`, entry by entry."""

    low_slope: Float[Array, " O"]
    low_shift: Float[Array, " O"]
    high_slope: Float[Array, " O"]
    high_shift: Float[Array, " O"]


def dense_layers(params: Params) -> tuple[Layer, ...]:
    """Layers of a flax network that holds `Dense_0`, `Dense_1` ... and nothing else.

    Raises:
        NotImplementedError: naming a layer of another kind; `affine_layer` takes in
            convolutions.
        ValueError: for weights that are not finite.
    """
    params = params.get("params", params)
    for name in params:
        if not re.fullmatch(r"Dense_\d+", name):
            raise NotImplementedError(
                f"params must hold Dense layers alone, got {name!r}, whose bounds "
                "are not known here; convert affine layers by `affine_layer`."
            )
    order = sorted(params, key=lambda name: int(name.removeprefix("Dense_")))
    layers = [
        Layer(params[n]["kernel"], params[n].get("bias", jnp.zeros(1))) for n in order
    ]
    return check_layers([Layer(w, jnp.broadcast_to(b, w.shape[1:])) for w, b in layers])


def check_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, if they fit together and are finite.

    Raises:
        ValueError: naming the layer; values are looked at only outside `jit`.
    """
    for i, layer in enumerate(layers):
        if i and layers[i - 1].weight.shape[1] != layer.weight.shape[0]:
            raise ValueError(
                f"layer {i} must read {layers[i - 1].weight.shape[1]} values, what the "
                f"layer before gives, got weight of shape {layer.weight.shape}; "
                "weights are [inputs, outputs]."
            )
        if is_known(*layer) and not all(bool(jnp.isfinite(x).all()) for x in layer):
            raise ValueError(f"layer {i} holds NaN or infinity; nothing bounds it.")
    return tuple(layers)


def affine_layer(function: Callable, shape: tuple[int, ...]) -> Layer:
    """An affine function (a convolution, say) of an array as one dense `Layer`.

    Its matrix has as many entries as inputs times outputs: for small networks.
    """
    zero = jnp.zeros(shape)
    bias, linear = jax.linearize(lambda x: function(x.reshape(shape)).ravel(), zero)
    return Layer(jax.vmap(linear)(jnp.eye(zero.size).reshape(-1, *shape)), bias)


def apply(
    layers: Sequence[Layer], x: Float[Array, " X"], activation: str = "relu"
) -> Float[Array, " Y"]:
    """The network itself."""
    for layer in layers[:-1]:
        x = _activation(activation)(x @ layer.weight + layer.bias)
    return x @ layers[-1].weight + layers[-1].bias


def substitute(
    rows: Float[Array, "K O"], shift: Float[Array, " K"], lines: Lines, *, upper: bool
) -> tuple[Float[Array, "K O"], Float[Array, " K"]]:
    """Bounds `rows y + shift` from above (or below) by new rows and shift on z."""
    up, down = jnp.maximum(rows, 0.0), jnp.minimum(rows, 0.0)
    if not upper:
        up, down = down, up
    slope = up * lines.high_slope + down * lines.low_slope
    return slope, shift + up @ lines.high_shift + down @ lines.low_shift


def chord(z: Interval) -> tuple[Array, Array]:
    """Slope s and shift of the least line above relu on an interval.

    The same two numbers bound d z for a free d in [0, 1]: above by `s z + shift`, and
    below by `(1 - s) z - shift`.
    """
    low, high = jnp.minimum(z.low, 0.0), jnp.maximum(z.high, 0.0)
    slope = high / jnp.maximum(high - low, _TINY)
    return slope, -slope * low


def derivative_interval(z: Interval, activation: str = "relu") -> Interval:
    """Values of the (Clarke) derivative on an interval; both branches at a kink."""
    _activation(activation)
    if activation == "tanh":
        slope = lambda z: 1 - jnp.tanh(z) ** 2
        nearest = jnp.clip(0.0, z.low, z.high)
        return Interval(jnp.minimum(slope(z.low), slope(z.high)), slope(nearest))
    leak = _LEAK if activation == "leaky_relu" else 0.0
    on = lambda condition: jnp.where(condition, 1.0, leak)
    return Interval(on(z.low > 0), on(z.high >= 0))


def activation_lines(z: Interval, activation: str, slope: Array | None = None) -> Lines:
    """Linear bounds of an activation on intervals.

    Args:
        z: pre-activations, `[O]`.
        activation: a name in `ACTIVATIONS`.
        slope: of the lower line of unstable ReLUs, in [0, 1]; None: 1 where the
            interval reaches further up than down, else 0.
    """
    if activation == "tanh":  # minus its least slope it still rises
        least = derivative_interval(z, activation).low
        ends = (jnp.tanh(end) - least * end for end in z)
        return Lines(least, next(ends), least, next(ends))
    leak = _LEAK if activation == "leaky_relu" else 0.0
    if slope is None:
        slope = (z.high > -z.low).astype(z.low.dtype)
    slope = jnp.where(z.low > 0, 1.0, jnp.where(z.high < 0, 0.0, slope))
    high_slope, high_shift = chord(z)
    mix = lambda s: leak + (1 - leak) * s
    return Lines(
        mix(slope), jnp.zeros_like(slope), mix(high_slope), (1 - leak) * high_shift
    )


def crown_preactivation_bounds(
    layers: Sequence[Layer],
    low: Float[Array, " X"],
    high: Float[Array, " X"],
    *,
    activation: str = "relu",
    slope_steps: int = 0,
) -> list[Interval]:
    """Intervals of the hidden pre-activations z_1 ... z_{L-1} over a box of inputs.

    Each is bounded by linear functions of the input: rows are carried back through the
    `activation_lines` of the layers before.

    Args:
        layers: the network.
        low: smallest inputs.
        high: largest inputs.
        activation: a name in `ACTIVATIONS`.
        slope_steps: Adam steps (rate 0.5, decay 0.98) on the lower slopes of unstable
            ReLUs, which narrow the intervals; 0 for none.

    Raises:
        ValueError: for an empty box, or an input of another size.
        NotImplementedError: for an activation without known bounds.
    """
    _activation(activation)
    if low.shape != high.shape or low.shape != layers[0].weight.shape[:1]:
        raise ValueError(
            f"low and high must have shape ({layers[0].weight.shape[0]},), the "
            f"network's input, got {low.shape} and {high.shape}; `jax.vmap` adds boxes."
        )
    if is_known(low, high) and not bool((low <= high).all()):
        raise ValueError(
            f"low must not exceed high and neither may be NaN, got low {low} and high "
            f"{high}; an empty box has no bounds."
        )
    bounds = functools.partial(_bounds, layers, (low + high) / 2, (high - low) / 2)
    first = bounds([None] * (len(layers) - 1), activation)
    if slope_steps == 0 or activation == "tanh" or len(layers) < 3:
        return first
    optimiser = optax.adam(optax.exponential_decay(0.5, 1, 0.98))
    slopes = [(z.high > -z.low).astype(z.low.dtype) for z in first]
    width = lambda slopes: sum(
        jnp.sum(z.high - z.low) for z in bounds(slopes, activation)
    )

    def step(carry, _):
        slopes, opt_state = carry
        updates, opt_state = optimiser.update(jax.grad(width)(slopes), opt_state)
        slopes = jax.tree.map(lambda s, d: jnp.clip(s + d, 0.0, 1.0), slopes, updates)
        return (slopes, opt_state), None

    (slopes, _), _ = jax.lax.scan(
        step, (slopes, optimiser.init(slopes)), None, slope_steps
    )
    return [
        Interval(jnp.maximum(a.low, b.low), jnp.minimum(a.high, b.high))
        for a, b in zip(first, bounds(slopes, activation), strict=True)
    ]


def _bounds(layers, centre, radius, slopes, activation) -> list[Interval]:
    """Bounds of the hidden layers, whose lower slopes are given or None."""
    found, lines = [], []
    reach = jnp.abs(centre) + radius
    with jax.default_matmul_precision("highest"):
        for i, last in enumerate(layers[:-1]):
            ends = []
            for upper in (False, True):
                rows, shift = last.weight.T, last.bias
                for layer, line in zip(layers[:i][::-1], lines[::-1], strict=True):
                    rows, shift = substitute(rows, shift, line, upper=upper)
                    shift = shift + rows @ layer.bias
                    rows = rows @ layer.weight.T
                size = jnp.abs(rows)
                spread = size @ radius + ROUNDING * (size @ reach + jnp.abs(shift))
                ends.append(rows @ centre + shift + (spread if upper else -spread))
            found.append(Interval(*ends))
            lines.append(activation_lines(found[-1], activation, slopes[i]))
    return found


def is_known(*arrays: Array | float) -> bool:
    """Whether values can be looked at: none is being traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in arrays)


def _activation(name: str) -> Callable:
    if name not in ACTIVATIONS:
        raise NotImplementedError(
            f"activation must be one of {', '.join(ACTIVATIONS)}, whose bounds are "
            f"known, got {name!r}."
        )
    return ACTIVATIONS[name]
