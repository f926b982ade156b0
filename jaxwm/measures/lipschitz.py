"""Lipschitz constants of networks, bounded from above and found from below.

Source: Gouk et al., "Regularisation of Neural Networks by Enforcing Lipschitz
Continuity", Machine Learning 2021 (products of norms, power iteration).
Shapes: I inputs and O outputs of a layer, X inputs and Y outputs of the network, which
is a tuple of `bound_propagation.Layer`s. The tighter bound that holds near one input is
`jaxwm.recipes.local_lipschitz_bounds`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.measures.bound_propagation import Layer

_TINY = 1e-12


def global_lipschitz(
    layers: Sequence[Layer], c: Float[Array, " Y"]
) -> Float[Array, ""]:
    """`| |W_1| ... |W_L| |c| |_1`: bounds the l_inf constant of `c · f` everywhere.

    For activations with slopes in [-1, 1].
    """
    row = jnp.abs(c)
    for layer in reversed(layers):
        row = jnp.abs(layer.weight) @ row
    return jnp.sum(row)


def sampled_lipschitz(
    key: Key[Array, ""],
    function: Callable,
    x: Float[Array, " X"],
    eps: float | Array,
    *,
    num_samples: int = 10_000,
    ascent_steps: int = 50,
) -> Float[Array, ""]:
    """Largest `|∇ function|_1` found in the box `|x' - x|_inf <= eps`: from below.

    Half the samples are corners, half uniform; then a climb from the best of them,
    which redraws an eighth of its coordinates in 64 ways per step. (Piecewise linear
    networks have no second derivative that an ascent could follow.)

    Args:
        key: of the samples.
        function: `[X] -> []`.
        x: centre of the box.
        eps: its half width.
        num_samples: draws before the climb.
        ascent_steps: of the climb.
    """
    slope = jax.vmap(lambda x: jnp.sum(jnp.abs(jax.grad(function)(x))))

    def draw(key, num):
        inside = jax.random.uniform(key, (num, x.size), minval=-1.0)
        is_corner = (jnp.arange(num) % 2 == 0)[:, None]
        return x + eps * jnp.where(is_corner, jnp.sign(inside), inside)

    start_key, climb_key = jax.random.split(key)
    points = draw(start_key, num_samples)
    values = slope(points)
    best = jnp.argmax(values)

    def climb(carry, i):
        point, value = carry
        point_key, mask_key = jax.random.split(jax.random.fold_in(climb_key, i))
        redrawn = jax.random.bernoulli(mask_key, 0.125, (64, x.size))
        trials = jnp.where(redrawn, draw(point_key, 64), point)
        values = slope(trials)
        better = jnp.argmax(values)
        is_better = values[better] > value
        point = jnp.where(is_better, trials[better], point)
        return (point, jnp.maximum(value, values[better])), None

    (_, value), _ = jax.lax.scan(
        climb, (points[best], values[best]), jnp.arange(ascent_steps)
    )
    return value


def spectral_norm(weight: Float[Array, "I O"]) -> Float[Array, ""]:
    """Largest singular value, exactly: what a certificate may use."""
    return jnp.linalg.norm(weight, 2)


def power_iteration(
    weight: Float[Array, "I O"], vector: Float[Array, " O"], num_steps: int = 1
) -> tuple[Float[Array, ""], Float[Array, " O"]]:
    """A LOWER estimate of the spectral norm, and the vector to go on from.

    Cheap for training with one step per update; never a certificate. Gradients flow
    through the weight alone.
    """
    for _ in range(num_steps):
        vector = weight.T @ (weight @ vector)
        vector = vector / jnp.maximum(jnp.linalg.norm(vector), _TINY)
    vector = jax.lax.stop_gradient(vector)
    return jnp.linalg.norm(weight @ vector), vector


def spectral_lipschitz(layers: Sequence[Layer]) -> Float[Array, ""]:
    """Product of exact spectral norms: bounds the l_2 constant of the network.

    For activations with slopes in [-1, 1].
    """
    return jnp.prod(jnp.stack([spectral_norm(layer.weight) for layer in layers]))
