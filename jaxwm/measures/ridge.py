"""Linear models of features whose strength is chosen by cross-validation.

Shapes: n examples, m features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

GRID = tuple(4.0**-i for i in range(-2, 8))  # ridge strengths, relative to tr(K)/n
FOLDS = 5  # every example chooses once, by what was fitted to the other folds


class Ridge(NamedTuple):
    """A linear model of features, `mean + (features - centre) @ weights`.

    A path is several of them, stacked in front, from strong to weak.
    """

    weights: Float[Array, "*path m"]
    centre: Float[Array, "*path m"]
    mean: Float[Array, "*path"]
    strength: Float[Array, "*path"]  # of the ridge, or the number of steps

    def __call__(self, features: Float[Array, "n m"]) -> Float[Array, " n"]:
        """Predictions of one model."""
        return self.mean + (features - self.centre) @ self.weights


def ridge_path(
    features: Float[Array, "n m"],
    y: Float[Array, " n"],
    grid: tuple[float, ...] | Float[Array, " G"] = GRID,
) -> Ridge:
    """Ridge regressions on centred features, one per strength.

    Solved for the weights where m < n and for the dual coefficients elsewhere.

    Args:
        features: rows are examples.
        y: targets.
        grid: strengths relative to tr(K) / n, the mean square of a centred row; those
            that rounding would swallow act like the weakest that it does not.
    """
    n, m = features.shape
    centre, mean = jnp.mean(features, 0), jnp.mean(y)
    design, target = features - centre, y - mean
    # Both forms shift the spectrum by the same amount: strength tr(K) / n.
    unit = jnp.sum(design**2) / n
    gram = design.T @ design if m < n else design @ design.T
    # Below rounding of the largest eigenvalue a shift does not make gram definite.
    least = 2 * jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    right = design.T @ target if m < n else target

    def solve(strength) -> Ridge:
        shift = jnp.maximum(strength * unit, least)
        shifted = gram + shift * jnp.eye(len(gram))
        found = jax.scipy.linalg.solve(shifted, right, assume_a="pos")
        weights = found if m < n else design.T @ found
        return Ridge(weights, centre, mean, strength)

    return jax.lax.map(solve, jnp.asarray(grid))


def descent_path(
    features: Float[Array, "n m"], y: Float[Array, " n"], doublings: int = 11
) -> Ridge:
    """Gradient descent from zero on the square loss, stopped after 1, 2, 4 ... steps.

    The step size is the inverse of the largest curvature, found by power iteration.

    Args:
        features: rows are examples.
        y: targets.
        doublings: the last model is that after `2^doublings` steps.
    """
    centre, mean = jnp.mean(features, 0), jnp.mean(y)
    design, target = features - centre, y - mean

    def power(u, _):
        u = design.T @ (design @ u)
        return u / jnp.linalg.norm(u), None

    start = jnp.ones(features.shape[1])
    top, _ = jax.lax.scan(power, start / jnp.linalg.norm(start), length=30)
    step_size = 0.9 / jnp.sum((design @ top) ** 2)

    def descend(_, u):
        return u - step_size * design.T @ (design @ u - target)

    def stage(carry, stop):
        u, done = carry
        u = jax.lax.fori_loop(done, stop, descend, u)
        return (u, stop), Ridge(u, centre, mean, 1.0 * stop)

    stops = 2 ** jnp.arange(doublings + 1)
    return jax.lax.scan(stage, (jnp.zeros_like(start), 0 * stops[0]), stops)[1]


def held_out_errors(path: Ridge, features, y) -> Float[Array, " G"]:
    """Mean squared error of every model of a path on other examples."""
    return jax.lax.map(lambda model: jnp.mean((model(features) - y) ** 2), path)


def fit_ridge(
    features: Float[Array, "n m"],
    y: Float[Array, " n"],
    grid: tuple[float, ...] = GRID,
) -> tuple[Ridge, Float[Array, ""]]:
    """Ridge regression whose strength is chosen by cross-validation.

    Every fifth of the examples is held out once: where targets have heavy tails, a
    single fifth chooses by a handful of examples.

    Returns:
        The model, fitted to all examples, and its held-out error. Up to four examples,
        the last ones, take no part in the choice.
    """

    def fold_errors(k):
        kept, out = split(features, k), split(y, k)
        path = ridge_path(kept[0], out[0], grid)
        return held_out_errors(path, kept[1], out[1])

    errors = jnp.mean(jax.lax.map(fold_errors, jnp.arange(FOLDS)), 0)
    # Too weak a ridge on a singular matrix gives NaN, and is not chosen.
    best = jnp.nanargmin(errors)
    chosen = ridge_path(features, y, jnp.asarray(grid)[best][None])
    return jax.tree.map(lambda leaf: leaf[0], chosen), errors[best]


def split(x: Float[Array, "n *rest"], k) -> tuple[Array, Array]:
    """Examples outside and inside of fold k; k may be traced."""
    size = len(x) // FOLDS
    x = jnp.roll(x[: FOLDS * size], -k * size, 0)
    return x[size:], x[:size]


def r_squared(y: Float[Array, " n"], predicted: Float[Array, " n"]) -> Float[Array, ""]:
    """Share of the variance explained, `1 - MSE / var(y)`; at most 1."""
    return 1 - jnp.mean((y - predicted) ** 2) / jnp.var(y)
