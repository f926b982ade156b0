"""Several processes that work on one run: who leads, and what they agree on.

Each process runs the same program on its devices. The first one leads: it owns the run
directory, writes files and shows progress. Between chunks all meet at a barrier, where
the leader says how long the next chunk is and any of them may ask to stop. A process
that dies ends the others (jax aborts them when a heartbeat fails); one that hangs is
named after a minute. Who restarts them is `jaxwm launch`, Slurm or Kubernetes.
"""

import itertools
import json
import os

import jax

from jaxwm.train.errors import ConfigError, RunError

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_MEET = 60  # seconds that processes wait for each other between chunks
_START = 1800  # the same after compiling, reading checkpoints and writing reports
_ROUNDS = itertools.count()


def join(*, heartbeat: int = HEARTBEAT) -> None:
    """Makes this process one of several; call it before anything uses jax.

    The others are found from `JAX_COORDINATOR_ADDRESS` (host:port of the first
    process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, and where these are not set,
    from Slurm, Open MPI, Kubernetes or a TPU pod, as jax finds them.

    Raises:
        ConfigError: where they are not found, or only some variables are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if found and len(found) < len(names):
        raise ConfigError(
            f"--distributed needs all of {', '.join(names)}, or none of them under "
            f"Slurm, Open MPI, Kubernetes and on TPU pods; got only {', '.join(found)}."
        )
    given = {}
    if found:
        address, num, index = (found[name] for name in names)
        if not (num.isdigit() and index.isdigit() and int(index) < int(num)):
            raise ConfigError(
                f"JAX_PROCESS_ID must be a number below JAX_NUM_PROCESSES, got {index} "
                f"of {num}."
            )
        given = {
            "coordinator_address": address,
            "num_processes": int(num),
            "process_id": int(index),
            # Others are not looked for: nothing is missing.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat, **given)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the other processes were not found: {str(error).splitlines()[0]} Start "
            "all of them with `jaxwm launch`, under Slurm, Open MPI or Kubernetes, or "
            f"set {', '.join(names)}."
        ) from error


def leave() -> None:
    """Waits for the others and ends the connection; nothing where there is none."""
    if jax.distributed.is_initialized():
        _exchange(None, _START)
        jax.distributed.shutdown()


def leads() -> bool:
    """Whether this process writes files and shows progress."""
    return jax.process_index() == 0


def told(value: int) -> int:
    """The leader's value, in all processes."""
    return _exchange(value, _START)[0]


def agree(stop: bool, size: int, save: bool, *, first: bool = False):
    """`(stop, size, save)` of the next chunk, the same in all processes.

    Args:
        stop: whether this process was asked to stop; one is enough.
        size: iterations; the leader's counts.
        save: whether a checkpoint is due; the leader's counts.
        first: after compiling, which takes some processes longer than others.

    Raises:
        RunError: naming processes that do not come.
    """
    rows = _exchange([stop, size, save], _START if first else _MEET)
    return any(row[0] for row in rows), rows[0][1], rows[0][2]


def _exchange(value, seconds: int) -> list:
    """What every process handed in, in their order."""
    num = jax.process_count()
    if num == 1:
        return [value]
    # The same service that jax and orbax meet at; it has no public name.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise RunError(
            f"{num} processes work on this run, but jax's service for them is not "
            "there; start them by `jaxwm launch` or with --distributed."
        )
    k = next(_ROUNDS)
    client.key_value_set(f"jaxwm/{k}/{jax.process_index():06}", json.dumps(value))
    try:
        client.wait_at_barrier(f"jaxwm/{k}", seconds * 1000)
    except RuntimeError as error:
        here = {int(key.rsplit("/")[-1]) for key, _ in _rows(client, k)}
        missing = sorted(set(range(num)) - here)
        raise RunError(
            f"processes {missing} did not come within {seconds} s ({num} work on this "
            "run); look at their output, then start all of them again: the run goes on "
            "from its last checkpoint."
        ) from error
    rows = sorted(_rows(client, k))
    if leads() and k:  # all have read what was handed in before
        client.key_value_delete(f"jaxwm/{k - 1}/")
    return [json.loads(text) for _, text in rows]


def _rows(client, k: int) -> list[tuple[str, str]]:
    return client.key_value_dir_get(f"jaxwm/{k}/")
