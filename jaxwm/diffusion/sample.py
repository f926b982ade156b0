"""The one sampling loop: a table of coefficients, a denoiser and guidance terms.

For every row of the table, in this order:

 1. `x0 = denoise(x, level, cond)`, the denoiser wrapped by the terms' `wrap`;
 2. `on_x0` of every term, in order, edits the estimate;
 3. `mean = x * X + x0 * X0 + previous * X0_before`, then `on_mean` edits it;
 4. `on_cond` moves the condition (PolyGRAD's actions), knowing x, x0 and mean; where a
    term has `after_cond`, it edits the estimate and the mean is taken again;
 5. `x' = mean + noise * eps`, or the candidate that `select` chose; `on_x` edits it.

Draws: `start_key, loop_key = split(key)`; the first sample comes from `start_key`; row
i uses `row_key = fold_in(loop_key, i)`: eps from `fold_in(row_key, 0)`, the term j from
`fold_in(row_key, 1 + j)`. A draw for a pytree splits its key over the leaves.
Shapes: one sample `x`, any pytree; N rows of the table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxwm.diffusion.levels import Level, add_noise, standard_normal
from jaxwm.diffusion.precondition import Denoiser
from jaxwm.diffusion.steps import Steps
from jaxwm.types import PyTree


class Step(NamedTuple):
    """What is known in the middle of one row, handed to the terms."""

    row: Int[Array, ""]
    left: Int[Array, ""]  # rows that follow; 0 in the last
    level: Level
    after: Level
    spread: Float[Array, ""]  # posterior standard deviation between the two
    x: PyTree  # noisy sample
    x0: PyTree  # estimate, as edited so far
    mean: PyTree  # of the next noisy sample; None before it is known

    @property
    def is_last(self) -> Bool[Array, ""]:
        """Whether this is the last call."""
        return self.left == 0


class Term(NamedTuple):
    """A guidance rule: functions for the slots it uses."""

    wrap: Callable | None = None  # (denoise) -> denoise
    on_x0: Callable | None = None  # (x0, cond, step) -> x0
    on_mean: Callable | None = None  # (mean, step) -> mean
    on_cond: Callable | None = None  # (key, cond, step) -> cond
    after_cond: Callable | None = None  # (x0, cond, step) -> x0
    # (key, mean, noise scale, cond, step, denoise, best) -> (x, best)
    select: Callable | None = None
    on_x: Callable | None = None  # (x) -> x


class Noise(NamedTuple):
    """Draws to use instead of the key's: parity tests, common random numbers."""

    start: PyTree  # shaped like x
    rows: PyTree  # [N, ...], row by row of the table


class SampleResult(NamedTuple):
    """A sample, the condition it ended with, and what was recorded."""

    x: PyTree
    cond: PyTree
    info: dict


class Best(NamedTuple):
    """Cheapest candidate seen by a `select` term."""

    cost: Float[Array, ""]
    x: PyTree


def sample(
    key: Key[Array, ""],
    denoise: Denoiser,
    steps: Steps,
    shape: PyTree,
    *,
    cond: PyTree = None,
    terms: tuple[Term, ...] = (),
    init: PyTree = None,
    start: int | Int[Array, ""] = 0,
    noise: Noise | None = None,
    record: bool = False,
) -> SampleResult:
    """Draws one sample; `jax.vmap` draws many.

    Args:
        key: for the first sample, the noise of every row and the terms.
        denoise: `(x, level, cond) -> x0_hat`.
        steps: table of the sampler. Traced, padded tables share one compilation.
        shape: a tuple of ints for one array, else a pytree of arrays or shapes.
        cond: handed to the denoiser; `on_cond` of terms may move it between calls.
        terms: guidance, applied in order within each slot.
        init: clean sample for a warm start: it is noised to the level of row `start`.
            None starts from pure noise (standard deviation `hypot(signal, noise)`, the
            marginal of unit-variance data).
        start: first row; may be traced. See `row_below`.
        noise: replaces the key's draws of x.
        record: also return per-row values, `[N, ...]`: `x` (before the row), `x_after`,
            `x0`, `mean`, `std` and `log_prob` of `x_after` in nats (0 where std is 0).

    Returns:
        Sample, condition and info: what `record` asks for, and `best` and `best_cost`
        of a `select` term.
    """
    start_key, loop_key = jax.random.split(key)
    like = _shapes(shape)
    num_rows = steps.x.shape[0]
    for term in terms:  # the first is the innermost
        denoise = term.wrap(denoise) if term.wrap else denoise
    selects = [(j, term.select) for j, term in enumerate(terms) if term.select]
    columns = jax.tree.map(jnp.asarray, steps._replace(num=None))

    eps = standard_normal(start_key, like) if noise is None else noise.start
    first = jax.tree.map(lambda c: c[start], columns.level)
    if init is None:
        x = jax.tree.map(lambda e: jnp.hypot(first.signal, first.noise) * e, eps)
    else:
        x = add_noise(first, init, eps)
    for term in terms:
        x = term.on_x(x) if term.on_x else x

    def draw(row_key, i, scale):
        if noise is not None:
            return jax.tree.map(lambda e: jnp.asarray(e)[i], noise.rows)
        # Rows without noise cost no draw, which on a CPU is as dear as a small network.
        return jax.lax.cond(
            scale > 0,
            lambda: standard_normal(jax.random.fold_in(row_key, 0), like),
            lambda: jax.tree.map(lambda l: jnp.zeros(l.shape, l.dtype), like),
        )

    def body(i, carry):
        x, x0_before, cond, best, records = carry
        row: Steps = jax.tree.map(lambda c: c[i], columns)
        row_key = jax.random.fold_in(loop_key, i)
        left = steps.num - 1 - i
        step = Step(i, left, row.level, row.after, row.spread, x, None, None)

        def mean_of(x0):
            mean = jax.tree.map(
                lambda x, x0, before: row.x * x + row.x0 * x0 + row.previous * before,
                x,
                x0,
                x0_before,
            )
            for term in terms:
                if term.on_mean:
                    mean = term.on_mean(mean, step._replace(x0=x0))
            return mean

        x0 = denoise(x, row.level, cond)
        for term in terms:
            if term.on_x0:
                x0 = term.on_x0(x0, cond, step)
        mean = mean_of(x0)
        for j, term in enumerate(terms):
            if term.on_cond:
                term_key = jax.random.fold_in(row_key, 1 + j)
                cond = term.on_cond(term_key, cond, step._replace(x0=x0, mean=mean))
        for term in terms:
            if term.after_cond:
                x0 = term.after_cond(x0, cond, step._replace(x0=x0, mean=mean))
                mean = mean_of(x0)

        if selects:
            j, select = selects[0]
            term_key = jax.random.fold_in(row_key, 1 + j)
            known = step._replace(x0=x0, mean=mean)
            new_x, best = select(term_key, mean, row.noise, cond, known, denoise, best)
        else:
            eps = draw(row_key, i, row.noise)
            new_x = jax.tree.map(lambda m, e: m + row.noise * e, mean, eps)
        for term in terms:
            new_x = term.on_x(new_x) if term.on_x else new_x
        if record:
            values = _record(x, new_x, x0, mean, row.noise)
            records = jax.tree.map(lambda r, v: r.at[i].set(v), records, values)
        return new_x, x0, cond, best, records

    if len(selects) > 1:
        raise ValueError(f"only one term may select candidates, got {len(selects)}.")
    best = Best(jnp.array(jnp.inf), x) if selects else None
    records = None
    if record:
        values = _record(x, x, x, x, jnp.zeros(()))
        records = jax.tree.map(lambda v: jnp.zeros((num_rows, *v.shape)), values)
    nothing = jax.tree.map(jnp.zeros_like, x)
    x, _, cond, best, records = jax.lax.fori_loop(
        start, steps.num, body, (x, nothing, cond, best, records)
    )
    info = dict(records) if record else {}
    if selects:
        info |= {"best": best.x, "best_cost": best.cost}
    return SampleResult(x, cond, info)


def _record(x, new_x, x0, mean, std) -> dict:
    """One row of `record`."""
    safe = jnp.where(std > 0, std, 1.0)
    z = [
        jnp.sum(-0.5 * ((a - b) / safe) ** 2 - jnp.log(safe * jnp.sqrt(2 * jnp.pi)))
        for a, b in zip(jax.tree.leaves(new_x), jax.tree.leaves(mean), strict=True)
    ]
    log_prob = jnp.where(std > 0, sum(z), 0.0)
    return dict(x=x, x_after=new_x, x0=x0, mean=mean, std=std, log_prob=log_prob)


def _shapes(shape: PyTree) -> PyTree:
    """A pytree of shapes from what the caller gave."""
    if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shape)
