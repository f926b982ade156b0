"""MuJoCo's own C engine behind a callback: one host call steps a whole batch.

However many axes `vmap` adds (seeds x environments), and under `scan`, the host is
called once per step; there MuJoCo's threads share the rows. Results are bitwise
independent of the number of threads and of the size of the batch. State is kept in
JAX's precision (float32 by default) between steps, MuJoCo computes in float64.

Under `shard_map` every device calls for its own rows, concurrently. Under `jit` with
sharded inputs and no `shard_map`, each device would step all rows: use `shard_map`.
jaxlib 0.11.2 crashes where `shard_map` hands an empty array through, such as the `act`
of a model without activations: make it anew inside, as `train.layout.spread` does.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import buffer_callback
from jaxtyping import Array, Float

from jaxwm.envs import mujoco_edits
from jaxwm.physics.mjx import MjState, library
from jaxwm.types import EnvSpec

MAX_BATCHES = 8  # kept for re-use; a run sees few sizes (training, evaluation, shards)


class _Rows(NamedTuple):
    """A batch of MuJoCo's, with the factors that its models were last given."""

    batch: Any  # mujoco.batch.Batch
    qpos: np.ndarray  # views of its state, [n, Q]
    qvel: np.ndarray
    act: np.ndarray
    qacc_warmstart: np.ndarray
    ctrl: np.ndarray
    values: np.ndarray  # [n, F]


def stepper(
    model: Any,
    spec: EnvSpec,
    edits: tuple[mujoco_edits.FieldEdits, ...],
    *,
    num_substeps: int,
    num_threads: int = 0,
) -> Callable[[MjState, Float[Array, " A"], Float[Array, " F"]], MjState]:
    """Makes `step(state, ctrl, values of the factors) -> state` for one environment.

    Args:
        model: a compiled `mujoco.MjModel`; copied.
        spec: its factors give the order of the values.
        edits: of the model's fields.
        num_substeps: timesteps per call, a Python int.
        num_threads: of MuJoCo; 0 takes all processors.

    Returns:
        A pure function. A simulation that blows up comes back as NaN, the others do not
        notice. It has no derivatives: asking for them raises a ValueError.
    """
    advance = _host_stepper(model, spec, edits, num_substeps, num_threads)

    def on_host(*arrays):
        outs = _outputs(arrays)
        advance(arrays, outs)
        return outs

    def in_place(context, outs, *buffers):
        del context
        advance(tuple(map(np.asarray, buffers)), tuple(map(np.asarray, outs)))

    def call(state: MjState, ctrl, values):
        like = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in state)
        # `pure_callback` puts its arguments on a device first; on the CPU that waits
        # for a thread which the computation itself may hold: under `shard_map` over two
        # devices on two cores it never returned. Buffers are read where they lie.
        return jax.lax.platform_dependent(
            *state,
            ctrl,
            values,
            cpu=buffer_callback.buffer_callback(
                in_place, like, vmap_method="expand_dims"
            ),
            default=lambda *args: jax.pure_callback(
                on_host, like, *args, vmap_method="expand_dims"
            ),
        )

    @jax.custom_jvp
    def step(state: MjState, ctrl, values) -> MjState:
        return MjState(*call(state, ctrl, values))

    @step.defjvp
    def refuse(primals, tangents):
        del primals, tangents
        raise ValueError(
            f'{spec.name} with engine="c" has no derivatives: its physics are computed '
            'outside of JAX. Build it with engine="mjx", or put '
            "jax.lax.stop_gradient around the actions where only data are collected."
        )

    return step


def _outputs(arrays) -> tuple[np.ndarray, ...]:
    lead = np.broadcast_shapes(*(np.shape(x)[:-1] for x in arrays))
    return tuple(np.empty((*lead, x.shape[-1]), x.dtype) for x in arrays[:4])


def _host_stepper(model, spec, edits, num_substeps, num_threads):
    """`advance((qpos, qvel, act, warmstart, ctrl, values), outs)`, filling `outs`."""
    mujoco = library()
    from mujoco import batch as mujoco_batch

    # A simulation that blows up goes on from the reference pose, and counts these.
    blown_up = [
        mujoco.mjtWarning.mjWARN_BADQPOS.value,
        mujoco.mjtWarning.mjWARN_BADQVEL.value,
        mujoco.mjtWarning.mjWARN_BADQACC.value,
    ]
    default = mujoco_edits.defaults(spec)
    rewrites_constants = any(e.field in model._setconst_inputs for e in edits)
    idle: list[_Rows] = []
    lock = threading.Lock()

    def make(n) -> _Rows:
        batch = mujoco_batch.Batch(model, n, num_threads)
        bind = batch.bind
        views = [bind(name) for name in (*MjState._fields, "ctrl")]
        return _Rows(batch, *views, values=np.tile(default, (n, 1)))

    def take(n, values) -> _Rows:
        """The idle batch of n rows whose factors are closest, or a new one."""
        with lock:
            fitting = [rows for rows in idle if len(rows.qpos) == n]
            costs = [(rows.values != values).any(1).sum() for rows in fitting]
            # Few rows change between two steps: where most differ, the batch belongs
            # to another device, or to evaluation.
            if costs and (min(costs) <= n / 2 or len(idle) >= MAX_BATCHES):
                chosen = fitting[int(np.argmin(costs))]
                idle[:] = [rows for rows in idle if rows is not chosen]
                return chosen
        return make(n)

    def give_back(rows):
        with lock:
            idle.append(rows)
            del idle[:-MAX_BATCHES]

    def vary(rows: _Rows, values):
        """Rewrites the models of those rows whose factors changed."""
        changed = np.flatnonzero((rows.values != values).any(1)).astype(np.int32)
        if not len(changed):
            return
        values = np.broadcast_to(values, rows.values.shape)[changed]
        for field, value in mujoco_edits.apply(edits, spec, values).items():
            rows.batch.expand(field)[changed] = value
        if rewrites_constants:
            rows.batch.set_const(changed)
        rows.values[changed] = values

    def advance(arrays, outs):
        lead = outs[0].shape[:-1]
        n = int(np.prod(lead))
        *arrays, values = arrays
        if values.size != default.size:
            values = np.broadcast_to(values, (*lead, len(default)))
        values = values.reshape(int(np.prod(values.shape[:-1])), len(default))
        known = np.isfinite(values).all(1, keepdims=True)
        values = np.where(known, values, default)
        rows = take(n, values)
        views = (rows.qpos, rows.qvel, rows.act, rows.qacc_warmstart, rows.ctrl)
        for view, array in zip(views, arrays, strict=True):
            view[:] = np.broadcast_to(array, (*lead, array.shape[-1])).reshape(n, -1)
        # MuJoCo would complain on the console about numbers it cannot use.
        usable = np.broadcast_to(known[:, 0], (n,)).copy()
        for view in views:
            usable &= (np.abs(view) < mujoco.mjMAXVAL).all(1)
        vary(rows, values)
        failed = ~usable
        rows.batch.warning[:] = 0
        ids = None if usable.all() else np.flatnonzero(usable)
        try:
            rows.batch.step(ids, num_substeps)
        except mujoco_batch.SimulationError as error:
            failed[error.ids] = True
        failed |= rows.batch.warning[:, blown_up, 1].any(1)
        for out, view in zip(outs, views, strict=False):
            view[failed] = np.nan
            out[...] = view.reshape(out.shape)
        give_back(rows)

    return advance
