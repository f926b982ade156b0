"""Choosing among candidates: inside the reverse process, or among finished samples.

A cost need not be differentiable; a cost that is NaN counts as infinite.
Shapes: K candidates, each a sample `x` of any pytree; candidates are `[K, ...]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.diffusion.levels import standard_normal
from jaxwm.diffusion.sample import Best, Step, Term
from jaxwm.types import PyTree

# (key, cost [K], candidates [K, ...]) -> x
Reduce = Callable[[Key[Array, ""], Array, PyTree], PyTree]


def search(
    cost: Callable[[PyTree], Float[Array, ""]],
    num: int,
    *,
    when: Callable[[Step], Array] = lambda step: jnp.array(True),
    on_estimate: bool = True,
    reduce: Reduce | None = None,
    min_noise: float = 0.05,
) -> Term:
    """Draws several next samples in a row and continues from the best.

    Candidates come from the model's own transition, so they stay on its data while the
    choice drags the chain to low cost. The cheapest candidate of the whole run comes
    back in `info["best"]` and `info["best_cost"]`.

    Args:
        cost: of one sample.
        num: K, candidates per row.
        when: `(step) -> bool`, rows in which to search; others draw once.
        on_estimate: judge the denoised candidate rather than the noisy one.
        reduce: how the next sample follows from the costs; default `argmin`.
        min_noise: smallest standard deviation of the candidates; the transition's own
            vanishes in the last row, where all would coincide.

    Raises:
        ValueError: if `num` < 1.

    Source: Yamada et al., "D-Cubed", 2024; the options are ours.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1 candidate, got {num}.")
    reduce = argmin if reduce is None else reduce

    def select(key, mean, noise, cond, step: Step, denoise, best: Best):
        draw_key, reduce_key = jax.random.split(key)
        keys = jax.random.split(draw_key, num)

        def draw(key, scale):
            eps = standard_normal(key, mean)
            return jax.tree.map(lambda m, e: m + scale * e, mean, eps)

        def searched():
            scale = jnp.maximum(noise, min_noise)
            candidates = jax.vmap(draw, (0, None))(keys, scale)
            judged = candidates
            if on_estimate:
                # No network knows the clean level: the last row is judged as it is.
                level = jax.tree.map(
                    lambda a, b: jnp.where(step.is_last, b, a), step.after, step.level
                )
                clean = jax.vmap(lambda x: denoise(x, level, cond))(candidates)
                judged = jax.tree.map(
                    lambda c, d: jnp.where(step.is_last, c, d), candidates, clean
                )
            costs = _finite(jax.vmap(cost)(judged))
            i = jnp.argmin(costs)
            better = costs[i] < best.cost
            new_best = Best(
                jnp.where(better, costs[i], best.cost),
                jax.tree.map(lambda j, b: jnp.where(better, j[i], b), judged, best.x),
            )
            return reduce(reduce_key, costs, candidates), new_best

        return jax.lax.cond(when(step), searched, lambda: (draw(keys[0], noise), best))

    return Term(select=select)


def argmin(key: Key[Array, ""], cost: Float[Array, " K"], candidates: PyTree) -> PyTree:
    """The cheapest candidate."""
    del key  # nothing is random
    return _pick(candidates, jnp.argmin(cost))


def softmax(temperature: float | Array) -> Reduce:
    """One candidate, drawn with probability ∝ `exp(-cost / temperature)`."""

    def reduce(key, cost, candidates):
        return _pick(candidates, jax.random.categorical(key, -cost / temperature))

    return reduce


def elite(num: int) -> Reduce:
    """The mean of the `num` cheapest candidates."""

    def reduce(key, cost, candidates):
        del key  # nothing is random
        best = jax.lax.top_k(-cost, num)[1]
        return jax.tree.map(lambda c: jnp.mean(c[best], 0), candidates)

    return reduce


def best_of_k(
    key: Key[Array, ""],
    draw: Callable[[Key[Array, ""]], PyTree],
    score: Callable[[PyTree], Float[Array, ""]],
    num: int,
    *,
    temperature: float | Array | None = None,
) -> tuple[PyTree, Float[Array, " K"]]:
    """Draws K samples and keeps one by its score (higher is better).

    Args:
        key: split over the samples.
        draw: `(key) -> sample`.
        score: of one sample; NaN counts as the worst.
        num: K.
        temperature: None keeps the best; else one is drawn with probability
            proportional to `exp(score / temperature)`.

    Returns:
        The sample kept and all scores.

    Raises:
        ValueError: if `num` < 1.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1 sample, got {num}.")
    draw_key, pick_key = jax.random.split(key)
    samples = jax.vmap(draw)(jax.random.split(draw_key, num))
    scores = -_finite(-jax.vmap(score)(samples))
    reduce = argmin if temperature is None else softmax(temperature)
    return reduce(pick_key, -scores, samples), scores


def _finite(cost: Float[Array, " K"]) -> Float[Array, " K"]:
    return jnp.where(jnp.isnan(cost), jnp.inf, cost)


def _pick(candidates: PyTree, i) -> PyTree:
    return jax.tree.map(lambda c: c[i], candidates)
