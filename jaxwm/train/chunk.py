"""The compiled part of a run: some iterations of a learner, all seeds at once.

The number of iterations is an argument, not a constant, so one compiled program serves
chunks of every length and how a run is cut into chunks cannot change its numbers.

Keys: everything follows from (seed, iteration). With `run = key(seed)`: init uses
`fold_in(run, 0)`, iteration i `fold_in(fold_in(run, 1), i)`, the evaluation after i
iterations `fold_in(fold_in(run, 2), i)`.
"""

import concurrent.futures
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt

from jaxwm.train import layout
from jaxwm.types import Learner, Metrics, PyTree

_INIT, _LOOP, _EVALUATE = 0, 1, 2
FLAG = "finite"  # metrics whose name ends so are 1 while all is well


class Window(NamedTuple):
    """What happened since the last logged row; of one seed, `[]`, or of all, `[S]`."""

    total: Metrics  # sums; of flags the smallest value
    count: Metrics  # of values that are not NaN
    bad: Array  # int32, the first iteration with a flag below 1; -1 if none


class Run(NamedTuple):
    """What a chunk takes and returns; its memory is reused."""

    learner: PyTree
    window: Window


class Program(NamedTuple):
    """Compiled functions of all seeds. `evaluate` is None without an evaluation."""

    init: Callable  # () -> Run
    advance: Callable  # (Run, start, stop) -> Run; stops early at a bad iteration
    evaluate: Callable | None  # (learner state, iteration) -> metrics [S, ...]
    template: Run  # shapes, for reading checkpoints
    shardings: Run  # where each leaf lives
    num_bytes: int  # of state and working memory while training
    num_devices: int


def stream(seed: UInt[Array, ""], purpose: int) -> Key[Array, ""]:
    """The key of one purpose of one seed."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def start(learner: Learner, seed: UInt[Array, ""]) -> PyTree:
    """The learner's first state, with strong types."""
    state = learner.init(stream(seed, _INIT))
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def iterate(learner: Learner, seed, state: PyTree, iteration) -> tuple[PyTree, Metrics]:
    """One iteration of one seed."""
    key = jax.random.fold_in(stream(seed, _LOOP), iteration)
    return learner.step(key, state, iteration)


def build(
    learner: Learner,
    seeds: np.ndarray,
    *,
    log_every: int,
    evaluate: Callable | None = None,
    shard: str = "seeds",
) -> Program:
    """Traces and compiles everything that a run needs.

    Args:
        learner: its `step` keeps the structure, shapes and dtypes of its state.
        seeds: `[S]`.
        log_every: iterations that a window sums up.
        evaluate: `(key, state) -> metrics` of one seed; pure.
        shard: what devices share, see `layout`.

    Raises:
        ValueError: where `step` changes its state's form or returns metrics that are
            not scalars, naming the leaf; where devices cannot share the state.
    """
    devices = layout.choose(len(seeds), shard)
    one = jax.eval_shape(lambda: start(learner, jnp.uint32(0)))
    names = _metric_names(learner, one)
    template = jax.eval_shape(lambda: _first(learner, names, seeds))
    own, every = devices.per_seed, devices.everywhere
    shardings = Run(
        devices.of_state(template.learner, learner.axes),
        jax.tree.map(lambda _: own, template.window),
    )
    seed_shape = jax.ShapeDtypeStruct(seeds.shape, seeds.dtype, sharding=own)
    count = jax.ShapeDtypeStruct((), np.int32, sharding=every)
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        template,
        shardings,
    )

    def advance(run, seeds, start, stop):
        return _advance(learner, log_every, run, seeds, start, stop)

    first = layout.spread(devices, lambda seeds: _first(learner, names, seeds))
    # The state is large (a replay lies in it): it is updated where it is.
    program = jax.jit(
        layout.spread(devices, advance, shared=2),
        donate_argnums=0,
        out_shardings=shardings,
    )
    with jax.set_mesh(devices.mesh):
        init = jax.jit(first, in_shardings=own, out_shardings=shardings)
        lowered = [
            init.lower(seed_shape),
            program.lower(shapes, seed_shape, count, count),
        ]
        if evaluate is not None:

            def one(seed, state, iteration):
                key = jax.random.fold_in(stream(seed, _EVALUATE), iteration)
                return evaluate(key, state)

            judge = layout.spread(devices, layout.each(one, shared=1), shared=1)
            judge = jax.jit(judge, out_shardings=own)
            lowered.append(judge.lower(seed_shape, shapes.learner, count))

    # XLA compiles on one core each; there are two or three programs.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        init, program, *rest = pool.map(lambda program: program.compile(), lowered)
    judge = rest[0] if rest else None
    num_bytes = max(_num_bytes(init), _num_bytes(program))

    seeds_on = layout.place(seeds, own)

    def number(iteration):
        return layout.place(np.int32(iteration), every)

    return Program(
        init=lambda: init(seeds_on),
        advance=lambda run, start, stop: program(
            run, seeds_on, number(start), number(stop)
        ),
        evaluate=judge
        and (lambda state, iteration: judge(seeds_on, state, number(iteration))),
        template=template,
        shardings=shardings,
        num_bytes=num_bytes * devices.mesh.size,
        num_devices=devices.mesh.size,
    )


def flags(window: Window) -> Metrics:
    """The flags among a window's metrics."""
    return {name: v for name, v in window.total.items() if name.endswith(FLAG)}


def _num_bytes(compiled) -> int:
    """What a program needs at most; memory that it updates in place counts once."""
    memory = compiled.memory_analysis()
    if memory is None:  # not every device says
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _first(learner: Learner, names: tuple[str, ...], seeds) -> Run:
    """Every seed's first state and an empty window of the named metrics."""
    states = layout.each(lambda seed: start(learner, seed))(seeds)
    zeros = {name: jnp.zeros(seeds.shape) for name in names}
    total = {k: v + 1 if k.endswith(FLAG) else v for k, v in zeros.items()}
    bad = jnp.full(seeds.shape, -1, jnp.int32)
    return Run(states, Window(total, zeros, bad))


def _metric_names(learner: Learner, state: PyTree) -> tuple[str, ...]:
    """Names of the metrics, once `step` is known to keep the state's form."""
    number = jax.ShapeDtypeStruct((), np.int32)
    seed = jax.ShapeDtypeStruct((), np.uint32)
    after, metrics = jax.eval_shape(
        lambda seed, state, i: iterate(learner, seed, state, i), seed, state, number
    )
    before = dict(jax.tree_util.tree_leaves_with_path(state))
    new = dict(jax.tree_util.tree_leaves_with_path(after))
    for path in {**before, **new}:
        old_form, new_form = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "nothing"
            for x in (before.get(path), new.get(path))
        )
        if old_form != new_form:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"step must keep the form of its state: state{name} is {old_form} "
                f"before and {new_form} after it."
            )
    for name, value in metrics.items():
        if value.shape:
            raise ValueError(
                f"metrics of step must be scalars, {name} has shape {value.shape}; "
                "return its mean, or compute it in the evaluation."
            )
    return tuple(metrics)


def _advance(learner: Learner, log_every: int, run: Run, seeds, start, stop) -> Run:
    """Iterations start ... stop - 1 of the seeds of one device."""

    def one(seed, run: Run, i):
        state, metrics = iterate(learner, seed, run.learner, i)
        return Run(state, _log(run.window, metrics, i, i % log_every == 0))

    def body(carry):
        i, run = carry
        return i + 1, layout.each(one, shared=1)(seeds, run, i)

    def goes_on(carry):
        i, run = carry
        return (i < stop) & jnp.all(run.window.bad < 0)

    return jax.lax.while_loop(goes_on, body, (start, run))[1]


def _log(window: Window, metrics: Metrics, iteration, fresh) -> Window:
    """Adds one iteration's metrics; `fresh` begins a new window."""
    total, count, well = {}, {}, jnp.asarray(True)
    for name, value in metrics.items():
        value = jnp.asarray(value, jnp.float32)
        known = ~jnp.isnan(value)
        if name.endswith(FLAG):
            well = well & (value >= 1)
            total[name] = jnp.minimum(jnp.where(fresh, 1.0, window.total[name]), value)
        else:
            so_far = jnp.where(fresh, 0.0, window.total[name])
            total[name] = so_far + jnp.where(known, value, 0.0)
        count[name] = jnp.where(fresh, 0.0, window.count[name]) + known
    bad = jnp.where((window.bad < 0) & ~well, iteration, window.bad)
    return Window(total, count, bad)
