"""Replay: a ring of rows per environment that gives back windows of one episode.

Shapes: N environments, C columns of the ring, T columns written at once, B batch,
W rows of a window. Column c of environment n is the row written c-th (modulo C), so
all environments share one write position. Counters are shared by all seeds: under
`jax.vmap` over seeds the buffer is batched and `index` is not, and writing stays in
place.

Cost: a stored step takes the bytes of its `obs`, `action`, `reward`, `discount`,
`truncated`, `next_obs` and `extras`, nothing else. Halfcheetah in float32 (obs 17,
action 6, physics 27) is 277 B, so a million steps take 0.28 GB.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxwm.core import tree
from jaxwm.types import PyTree, Trajectory, Transition


class Replay(NamedTuple):
    """Pure functions of one ring.

    init:   (example) -> buffer; `example` is the Transition of one step of one
            environment, arrays or shapes. Zeros of the same dtypes.
    add:    (buffer, index, transitions [N, T, ...]) -> buffer. `index` is the number
            of columns written before (int32, shared by all seeds); the caller adds T
            to it afterwards. Any T up to C may be written, at any position.
    sample: (key, buffer, index, batch_size, recency=1.0) -> Trajectory [B, W, ...],
            see `windows_at` for what a window holds. (environment, row) is drawn
            uniformly; with `recency` p the age of the row, as a fraction of what is
            stored, is u^p with u uniform: p > 1 favours recent rows. p may be traced.
            With nothing stored (`index` 0) the mask is 0 everywhere.
    """

    init: Callable
    add: Callable
    sample: Callable


def replay(num_envs: int, capacity: int, window: int) -> Replay:
    """Builds the functions of a ring of `num_envs * capacity` rows.

    Rows must follow each other in time within one environment. Whoever resets an
    environment before its episode has ended marks the last row `truncated`. The mask
    of transitions is not stored: rows of a ring are all real.

    Args:
        num_envs: N.
        capacity: C, columns; the oldest are overwritten.
        window: W, rows of every sampled window, at least 1 and at most C.

    Raises:
        ValueError: if a size is not positive, or the window longer than the ring;
            from `add`, if the transitions do not fit the buffer.
    """
    for name, value in (("num_envs", num_envs), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if capacity < window:
        raise ValueError(
            f"capacity must be at least window = {window} columns, got {capacity}; "
            "give the replay more columns or train on shorter windows."
        )

    def init(example: Transition) -> Transition:
        def zeros(leaf):
            return jnp.zeros((num_envs, capacity, *leaf.shape), leaf.dtype)

        return jax.tree.map(zeros, jax.eval_shape(as_stored, example))

    def add(buffer: Transition, index, transitions: Transition) -> Transition:
        new = as_stored(transitions)
        _check_rows(buffer, new, num_envs, capacity)
        return jax.tree.map(
            lambda ring, rows: _write(ring, index % capacity, rows), buffer, new
        )

    def sample(
        key: Key[Array, ""],
        buffer: Transition,
        index: Int[Array, ""] | int,
        batch_size: int,
        recency: float | int | Float[Array, ""] = 1.0,
    ) -> Trajectory:
        env_key, age_key = jax.random.split(key)
        env = jax.random.randint(env_key, (batch_size,), 0, num_envs)
        size = jnp.minimum(index, capacity)
        age = _draw_age(age_key, (batch_size,), size, recency)
        return windows_at(buffer, index, env, index - 1 - age, window)

    return Replay(init, add, sample)


def windows_at(
    buffer: Transition,
    index: Int[Array, ""] | int,
    env: Int[Array, " B"],
    row: Int[Array, " B"],
    window: int,
) -> Trajectory:
    """The windows of W rows that start at `row`, each within one episode.

    - Behind a termination (discount 0) rows are padding: `obs` is the episode's true
      last observation, the action repeats, reward and discount are 0, mask is 0.
    - A window that would run past a time limit or past the newest row is moved back
      to end there. Where its episode holds fewer than W rows it starts with the first
      one stored and the missing rows are padding as above but with discount 1: mask 0
      with discount 1 means "not known", mask 0 with discount 0 "over".

    Args:
        buffer: rows as `as_stored` gives them, `[N, C, ...]`.
        index: columns written so far.
        env: environments, in [0, N).
        row: first rows, counted since the first one written, among those stored.
        window: W.

    Returns:
        Windows `[B, W, ...]`; `extras["next_obs"]` and other extras by row, `physics`
        and `extras["params"]` (constant in an episode) of the first row, `[B, ...]`.
    """
    capacity = buffer.reward.shape[1]
    start, length = _place(buffer, index, env, row, window)
    offset = jnp.arange(window)
    real = offset < length[:, None]  # [B, W]
    # Padding repeats the last real row; only obs, reward and mask differ from it.
    source = start[:, None] + jnp.minimum(offset, length[:, None] - 1)
    at = env[:, None] * capacity + source % capacity
    first = at[:, 0]

    extras = dict(buffer.extras)
    physics = _take(extras.pop("physics", None), first)
    params = {k: _take(extras.pop(k), first) for k in ("params",) if k in extras}
    obs, next_obs = _take(buffer.obs, at), _take(buffer.next_obs, at)
    reward = _take(buffer.reward, at)
    real = real & (jnp.asarray(index) > 0)
    return Trajectory(
        obs=tree.where(real, obs, next_obs),
        action=_take(buffer.action, at),
        reward=tree.where(real, reward, jnp.zeros_like(reward)),
        discount=_take(buffer.discount, at),
        mask=real.astype(buffer.discount.dtype),
        extras={**_take(extras, at), **params, "next_obs": next_obs},
        physics=physics,
    )


def as_stored(rows: Transition) -> Transition:
    """Rows as a buffer keeps them: without mask, `truncated` as a code of the end.

    0 the episode goes on, 1 terminal, 2 time limit, 3 both. One byte, as before, but
    the search for an episode's ends then reads one array instead of two.
    """
    terminal = rows.discount == 0
    code = terminal.astype(jnp.uint8) + 2 * rows.truncated.astype(jnp.uint8)
    return rows._replace(mask=None, truncated=code)


def _place(buffer, index, env, row, window):
    """First row and number of real rows of each window, `[B]` each."""
    capacity = buffer.reward.shape[1]
    newest = index - 1
    oldest = index - jnp.minimum(index, capacity)
    offset = jnp.arange(1 - window, window)
    look = row[:, None] + offset  # [B, 2W - 1]
    code = _take(buffer.truncated, env[:, None] * capacity + look % capacity)

    # The first row at or behind `row` that ends the episode or what is stored of it,
    # and, in the same minimum, whether it is terminal (even) or not (odd).
    stops = (offset >= 0) & ((code > 0) | (look == newest))
    ordered = 2 * offset + (code % 2 == 0)
    stop = jnp.min(jnp.where(stops, ordered, 2 * window + 1), 1)
    num_ahead = jnp.minimum(stop // 2 + 1, window)
    over = stop % 2 == 0
    # The last row before `row` that belongs to something else.
    others = (offset < 0) & ((code > 0) | (look < oldest))
    num_behind = -1 - jnp.max(jnp.where(others, offset, -window), 1)

    shift = jnp.where(over, 0, jnp.minimum(window - num_ahead, num_behind))
    return row - shift, num_ahead + shift


def _take(rings: PyTree, at: Int[Array, "..."]) -> PyTree:
    """Rows of `[N, C, ...]` leaves by flat index, which is known to be in bounds."""

    def rows(ring):
        flat = ring.reshape(ring.shape[0] * ring.shape[1], *ring.shape[2:])
        return flat.at[at].get(mode="promise_in_bounds")

    return jax.tree.map(rows, rings)


def _write(ring, position, rows):
    """Writes `[N, T, ...]` at a column, going on at the front behind the last one.

    One slice, or two where the ring wraps. XLA updates a slice with an unbatched start
    in place; two in a row without the loop between them cost time in proportion to C.
    """
    num = rows.shape[1]
    start = jnp.minimum(position, ring.shape[1] - num)
    wrapped = position - start  # columns that belong to the front
    rows = jnp.roll(rows, wrapped, 1)
    in_front = (jnp.arange(num) < wrapped).reshape(1, num, *(1,) * (rows.ndim - 2))

    def write(i, ring):
        column = jnp.where(i == 0, start, 0)
        old = jax.lax.dynamic_slice_in_dim(ring, column, num, 1)
        new = jnp.where(in_front == (i == 1), rows, old)
        return jax.lax.dynamic_update_slice_in_dim(ring, new, column, 1)

    return jax.lax.fori_loop(0, jnp.where(wrapped > 0, 2, 1), write, ring)


def _draw_age(key, shape, size, recency):
    """Ages in [0, size): 0 is the newest row."""
    some = jnp.maximum(size, 1)
    if isinstance(recency, int | float):
        if recency <= 0:
            raise ValueError(
                f"recency must be positive, got {recency}; 1 draws uniformly, 2 "
                "favours recent rows."
            )
        if recency == 1:  # exact for any size, which a float32 fraction is not
            return jax.random.randint(key, shape, 0, some)
    fraction = jax.random.uniform(key, shape) ** recency
    return jnp.minimum((fraction * some).astype(jnp.int32), some - 1)


def _check_rows(buffer, new, num_envs, capacity):
    """Raises where new rows do not have the buffer's tree, dtypes or shapes."""
    want, got = jax.tree.structure(buffer), jax.tree.structure(new)
    if want != got:
        raise ValueError(
            f"transitions must have the tree the replay was made for, {want}, got "
            f"{got}; make the replay's example from the same collector."
        )
    rings = jax.tree_util.tree_leaves_with_path(buffer)
    num = new.reward.shape[1] if new.reward.ndim > 1 else 0  # of all leaves
    for (path, ring), rows in zip(rings, jax.tree.leaves(new), strict=True):
        name = jax.tree_util.keystr(path)
        shape = (num_envs, num, *ring.shape[2:])
        if rows.shape != shape or rows.dtype != ring.dtype:
            raise ValueError(
                f"transitions{name} must be {ring.dtype}{list(shape)} "
                f"([num_envs, steps, ...]), got {rows.dtype}{list(rows.shape)}."
            )
        if not 1 <= num <= capacity:
            raise ValueError(
                f"transitions must hold 1 to capacity = {capacity} steps, got {num}; "
                "add them in pieces or give the replay more columns."
            )
