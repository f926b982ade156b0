"""Complexity: the size of the smallest coarse-graining whose loss stays within ε.

    C_ε(θ) = min over (τ, δ) of bits(θ~)   subject to   L(θ~) <= L(θ) + ε

The minimum is taken over a fixed grid, so the search is one compiled loop; several
tolerances share it, and a smaller ε never gives a smaller size. Shapes: C checkpoints,
E tolerances, M matrices, T thresholds times bins. Losses and ε are in nats.

Source: DeMoss et al., "The Complexity Dynamics of Grokking", 2024.
Departs: a grid instead of Bayesian optimisation; the loss is the caller's, on data that
never change (the published code takes the last minibatch); the order-0 entropy instead
of bz2 of pickled floats; infeasible searches say so instead of reporting a size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxwm.measures import coarse, leaves
from jaxwm.types import PyTree


def _ladder(first: float, last: float, num: int) -> tuple[float, ...]:
    return tuple(np.geomspace(first, last, num).round(6).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Thresholds and bins to try: every pair of them."""

    taus: tuple[float, ...] = (0.45, 0.6, 0.7, 0.78, 0.85, 0.91, 0.96, 1.0)
    deltas: tuple[float, ...] = _ladder(1e-3, 1.0, 17)
    mode: str = "balanced"

    def __post_init__(self):
        if not self.taus or not all(0 <= tau <= 1 for tau in self.taus):
            raise ValueError(
                f"taus must lie in [0, 1] and be at least one, got {self.taus}; they "
                "are shares of the sum of singular values."
            )
        if not self.deltas or not all(0 < delta < np.inf for delta in self.deltas):
            raise ValueError(
                f"deltas must be above 0 and at least one, got {self.deltas}; they are "
                "widths of bins."
            )
        if self.mode not in ("balanced", "reference"):
            raise ValueError(
                f'mode must be "balanced" or "reference", got {self.mode!r}.'
            )

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs: thresholds `[T]` and bins `[T]`."""
        taus, deltas = np.meshgrid(self.taus, self.deltas, indexing="ij")
        return taus.ravel().astype(np.float32), deltas.ravel().astype(np.float32)


class Complexity(NamedTuple):
    """The smallest code found; axes [], [E] or [C, E] in front."""

    bits: Float[Array, "..."]  # of the dense floats where nothing is feasible
    tau: Float[Array, "..."]
    delta: Float[Array, "..."]  # 0 where nothing is feasible
    ranks: Int[Array, "... M"]
    loss: Float[Array, "..."]  # of the coarse-grained network, nats
    base_loss: Float[Array, "..."]  # of the network itself
    feasible: Bool[Array, "..."]


class Cells(NamedTuple):
    """Every cell of a grid; what all tolerances share."""

    tau: Float[Array, " T"]
    delta: Float[Array, " T"]
    bits: Float[Array, " T"]
    loss: Float[Array, " T"]
    ranks: Int[Array, "T M"]
    ok: Bool[Array, " T"]
    base_loss: Float[Array, ""]
    full_ranks: Int[Array, " M"]
    dense_bits: Float[Array, ""]


def complexity(
    params: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    *,
    epsilon: float | int | Float[Array, "..."] = 1.0,
    grid: Grid = Grid(),
    stacked: leaves.Stacked = False,
) -> Complexity:
    """Information content of trained weights. Pure: `jit` it, `vmap` it.

    Args:
        params: any pytree; leaves that are not floating-point are kept and counted.
        loss: `(params) -> scalar`, the mean loss in nats on data that never change.
        epsilon: how much the loss may rise; an array gives results of its shape from
            one search.
        grid: thresholds and bins to try.
        stacked: leaves whose first axis counts layers; see `svd_cache`.

    Returns:
        The smallest code within the tolerance. Where there is none, the size of the
        dense floats and `feasible` False.

    Raises:
        ValueError: for `epsilon` <= 0, a loss that is not a scalar, params that are
            empty, NaN or infinite (the last two only outside of `jit`).
    """
    leaves.check_epsilon(epsilon)
    return smallest(search(params, loss, grid=grid, stacked=stacked), epsilon)


def complexity_trajectory(
    stacked_params: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    epsilons: Float[Array, " E"] | Sequence[float],
    grid: Grid = Grid(),
    *,
    stacked: leaves.Stacked = False,
) -> Complexity:
    """Complexity of C checkpoints at E tolerances, `[C, E]`, one search each.

    Args:
        stacked_params: checkpoints of one network, stacked on a first axis C of every
            array; checkpoints go one after the other, so memory is that of one.
        loss: as in `complexity`; the same data for all checkpoints.
        epsilons: tolerances `[E]`, nats.
        grid: thresholds and bins to try.
        stacked: leaves whose first axis (behind C) counts layers.

    Raises:
        ValueError: as `complexity`, and for arrays without a common first axis.
    """
    leaves.check_epsilon(epsilons)
    epsilons = jnp.asarray(epsilons, jnp.float32)
    flat, structure = jax.tree.flatten(stacked_params)
    moving = [leaf if leaves.is_array(leaf) else None for leaf in flat]
    lengths = {jnp.shape(leaf)[:1] for leaf in moving if leaf is not None}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            "stacked_params must have one leading axis, the checkpoints, on every "
            f"array, got lengths {sorted(lengths)}; stack them with core.tree.stack."
        )
    leaves.flatten(stacked_params)  # refuses NaN, which cannot be seen in the loop

    def one(arrays):
        merged = [
            leaf if array is None else array
            for leaf, array in zip(flat, arrays, strict=True)
        ]
        params = structure.unflatten(merged)
        return smallest(search(params, loss, grid=grid, stacked=stacked), epsilons)

    return jax.lax.map(one, moving)


def search(
    params: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    *,
    grid: Grid = Grid(),
    stacked: leaves.Stacked = False,
) -> Cells:
    """Size and loss of every cell of the grid, one after the other."""
    found = leaves.flatten(params)
    loss_of = leaves.check_scalar(loss, found)
    cache = coarse.svd_cache(params, stacked=stacked)

    def cell(pair):
        got = coarse.coarse_grain(params, cache, *pair, grid.mode)
        value = loss_of(leaves.flatten(got.params).arrays)
        return got.bits, value.astype(jnp.float32), got.ranks, got.ok

    tau, delta = (jnp.asarray(x) for x in grid.cells())
    bits, value, ranks, ok = jax.lax.map(cell, (tau, delta))
    full = [
        jnp.full(svd.s.shape[0], svd.s.shape[1], jnp.int32)
        for svd in cache
        if svd is not None
    ]
    return Cells(
        tau,
        delta,
        bits,
        value,
        ranks,
        ok,
        loss_of(found.arrays).astype(jnp.float32),
        jnp.concatenate([*full, jnp.zeros(0, jnp.int32)]),
        jnp.float32(
            sum(8 * leaves.nbytes(a) for a in found.arrays) + found.kept_bits()
        ),
    )


def smallest(cells: Cells, epsilon: float | int | Float[Array, "..."]) -> Complexity:
    """The smallest cell whose loss lies within ε of the network's own."""
    limit = cells.base_loss + jnp.asarray(epsilon, jnp.float32)

    def choose(limit):
        # Comparisons with NaN are False, so non-finite losses are never chosen.
        within = cells.ok & (cells.loss <= limit) & jnp.isfinite(cells.loss)
        best = jnp.argmin(jnp.where(within, cells.bits, jnp.inf))
        feasible = within[best]
        return Complexity(
            jnp.where(feasible, cells.bits[best], cells.dense_bits),
            jnp.where(feasible, cells.tau[best], 1.0),
            jnp.where(feasible, cells.delta[best], 0.0),
            jnp.where(feasible, cells.ranks[best], cells.full_ranks),
            jnp.where(feasible, cells.loss[best], cells.base_loss),
            cells.base_loss,
            feasible,
        )

    for _ in range(limit.ndim):
        choose = jax.vmap(choose)
    return choose(limit)
