"""Datasets in memory: rows of episodes one after another, on the host.

A dataset is a `Transition` of numpy arrays `[M, ...]`. Episodes follow each other; the
last row of each has discount 0 (terminal) or is `truncated` (time limit, or the data
end there), so no list of lengths is needed. Shapes: M rows, T rows of one episode, N
environments, C columns of a replay.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxwm.data.replay import as_stored
from jaxwm.types import Transition


def concatenate(episodes: Iterable[Transition]) -> Transition:
    """One dataset of several episodes `[T, ...]`; checks and ends each of them.

    An episode whose last row is neither terminal nor truncated is marked truncated.

    Raises:
        ValueError: without episodes, or naming the episode (counted from 0) whose
            rows differ in number, are none, or are not finite.
    """
    checked = [end_episode(checked_episode(e, i)) for i, e in enumerate(episodes)]
    if not checked:
        raise ValueError("episodes must hold at least one episode, got none.")
    return jax.tree.map(lambda *rows: np.concatenate(rows), *checked)


def split_episodes(rows: Transition) -> Iterator[Transition]:
    """The episodes of a dataset one by one, as views `[T, ...]`.

    Raises:
        ValueError: naming a field that has not as many rows as `discount`.
    """
    num = np.shape(rows.discount)[:1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        if not num or np.shape(leaf)[:1] != num:
            raise ValueError(
                f"{field_name(path)} must have as many rows as discount, {list(num)}, "
                f"got shape {list(np.shape(leaf))}."
            )
    ended = (np.asarray(rows.discount) == 0) | np.asarray(rows.truncated)
    stops = np.flatnonzero(ended) + 1
    if not stops.size or stops[-1] != ended.size:
        stops = np.append(stops, ended.size)
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        yield jax.tree.map(lambda x, a=start, b=stop: x[a:b], rows)


def from_replay(buffer: Transition, index: int | Int[Array, ""]) -> Transition:
    """The stored rows of a replay as a dataset, environment after environment.

    Episodes that run on at the write head are marked truncated there; the oldest of
    each environment may lack its beginning.

    Args:
        buffer: of `replay`, one seed, `[N, C, ...]`.
        index: columns written so far.

    Raises:
        ValueError: if nothing is stored.
    """
    num_envs, capacity = buffer.reward.shape
    size = min(int(index), capacity)
    if size < 1:
        raise ValueError(f"index must be at least 1 column, got {index}.")
    columns = (int(index) - size + np.arange(size)) % capacity

    def stored(ring):
        rows = np.asarray(ring)[:, columns]
        return rows.reshape(num_envs * size, *rows.shape[2:])

    rows = jax.tree.map(stored, buffer)
    rows = rows._replace(mask=np.ones_like(rows.reward), truncated=rows.truncated >= 2)
    return _end_rows(rows, np.arange(1, num_envs + 1) * size - 1)


def to_replay(
    rows: Transition, num_envs: int, capacity: int
) -> tuple[Transition, Array]:
    """A replay's buffer and index that hold a dataset, for `replay(num_envs, ...)`.

    The rows are cut into N streams of equal length, one per environment; an episode
    cut by this is truncated there. The last `M mod N` rows are left out.

    Raises:
        ValueError: if there are fewer rows than environments, or more per environment
            than columns.
    """
    total = len(rows.reward)
    length = total // num_envs
    if not 1 <= length <= capacity:
        raise ValueError(
            f"rows must fill between 1 and capacity = {capacity} columns of "
            f"{num_envs} environments, got {total} rows, {length} columns; choose "
            f"capacity >= {length} and num_envs <= {total}."
        )
    kept = jax.tree.map(lambda x: np.asarray(x)[: num_envs * length], rows)
    kept = _end_rows(kept, np.arange(1, num_envs + 1) * length - 1)

    def ring(leaf):
        shape = leaf.shape[1:]
        columns = np.zeros((num_envs, capacity, *shape), leaf.dtype)
        columns[:, :length] = np.asarray(leaf).reshape(num_envs, length, *shape)
        return jnp.asarray(columns)

    return jax.tree.map(ring, as_stored(kept)), jnp.int32(length)


def checked_episode(episode: Transition, name: int | str) -> Transition:
    """The episode as numpy arrays, with a mask of ones.

    Raises:
        ValueError: naming the episode, the field and the row: if there are no rows, if
            fields differ in their number, or if an observation, action or reward is
            not finite.
    """
    episode = jax.tree.map(np.asarray, episode._replace(mask=None))
    num = episode.reward.shape[0] if episode.reward.ndim else 0
    if num == 0:
        raise ValueError(f"episode {name} must have at least one row, has none.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(episode):
        if leaf.dtype.kind not in "biufV":  # V: bfloat16
            raise ValueError(
                f"episode {name}: {field_name(path)} must hold numbers, got "
                f"{leaf.dtype}."
            )
        if leaf.ndim == 0 or leaf.shape[0] != num:
            raise ValueError(
                f"episode {name}: {field_name(path)} must have as many rows as "
                f"rewards, {num}, got shape {list(leaf.shape)}."
            )
    for field in ("obs", "action", "reward", "next_obs"):
        row = first_bad_row(getattr(episode, field))
        if row is not None:
            raise ValueError(
                f"episode {name}, row {row}: {field} is not finite; drop or repair "
                "the row, models are not trained on NaN or infinity."
            )
    return episode._replace(mask=np.ones_like(episode.reward))


def end_episode(episode: Transition) -> Transition:
    """The episode `[T, ...]` with its last row truncated unless it ended there."""
    return _end_rows(episode, np.array([len(episode.reward) - 1]))


def first_bad_row(leaves) -> int | None:
    """The first row in which some floating-point entry is not finite."""
    rows = [
        np.flatnonzero(~np.isfinite(leaf.reshape(len(leaf), -1)).all(1))
        for leaf in jax.tree.leaves(leaves)
        if np.issubdtype(leaf.dtype, np.floating) and leaf.size
    ]
    bad = [row[0] for row in rows if row.size]
    return int(min(bad)) if bad else None


def field_name(path) -> str:
    """A tree path as `obs/camera`; positions in tuples read `_index_0`."""
    names = (
        getattr(entry, "name", None)
        or str(getattr(entry, "key", f"_index_{getattr(entry, 'idx', '')}"))
        for entry in path
    )
    return "/".join(names)


def _end_rows(rows: Transition, last: np.ndarray) -> Transition:
    """Marks rows as truncated unless they are terminal."""
    truncated = np.array(rows.truncated, bool)
    truncated[last] |= np.asarray(rows.discount)[last] != 0
    return rows._replace(truncated=truncated)
