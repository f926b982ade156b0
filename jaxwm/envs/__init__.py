"""Environments: tasks, batches, factors of variation, probes and adapters.

`make(name)` builds a task, `batch(env, num_envs)` runs many copies of it. Importing
this package loads neither MuJoCo nor brax nor Gymnasium; tasks are imported on demand.
"""

import importlib
import math
from typing import TYPE_CHECKING, NamedTuple

from jaxwm.envs.batch import batch
from jaxwm.envs.delays import delayed
from jaxwm.envs.factors import fixed, unknown
from jaxwm.envs.from_dynamics import from_dynamics
from jaxwm.envs.shaping import shaped
from jaxwm.types import Env

if TYPE_CHECKING:
    from jaxwm.envs import (
        adapters,
        factors,
        mjcf,
        mujoco,
        probes,
        rendering,
        tasks,
    )

__all__ = [
    "TASKS",
    "Task",
    "adapters",
    "batch",
    "delayed",
    "factors",
    "fixed",
    "from_dynamics",
    "make",
    "mjcf",
    "mujoco",
    "probes",
    "rendering",
    "shaped",
    "tasks",
]

_LAZY = ("adapters", "factors", "mjcf", "mujoco", "probes", "rendering", "tasks")


class Task(NamedTuple):
    """A row of `TASKS`; light, so that listing them imports nothing."""

    name: str
    doc: str
    # Builders, "module:function" below `jaxwm.envs.tasks`; None where not offered.
    mujoco: str | None = None  # called as `function(engine="mjx" | "c" | "warp")`
    jax: str | None = None  # called as `function()`
    images: str | None = None  # the same observed in pictures, called as `function()`

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines offered; the first is the default."""
        mujoco = ("mjx", "c", "warp") if self.mujoco else ()
        return (*mujoco, "jax") if self.jax else mujoco


TASKS = (
    Task(
        "cartpole_balance",
        "keep a pole upright and the cart near the middle",
        mujoco="mujoco_cartpole:balance",
        jax="cartpole:cartpole_balance",
    ),
    Task(
        "cartpole_swingup",
        "swing a hanging pole up and hold it near the middle of the rail",
        mujoco="mujoco_cartpole:swingup",
        jax="cartpole:cartpole_swingup",
    ),
    Task(
        "dr_reach",
        "bring a point mass to a goal in the plane",
        jax="dr_reach:dr_reach",
        images="dr_reach:in_images",
    ),
    Task(
        "halfcheetah",
        "run with two legs in the plane",
        mujoco="halfcheetah:halfcheetah",
    ),
    Task(
        "hopper",
        "hop forward on one leg without falling",
        mujoco="hopper:hopper",
    ),
    Task(
        "inverted_pendulum",
        "keep a pole upright on a cart",
        mujoco="inverted_pendulum:inverted_pendulum",
    ),
    Task(
        "local_particles",
        "hold one of several repelling particles; the causal graph of a step is known",
        jax="local_particles:local_particles",
    ),
    Task(
        "pendulum",
        "swing a rod up and hold it with a weak motor",
        mujoco="mujoco_pendulum:pendulum",
        jax="pendulum:pendulum",
    ),
    Task(
        "rule_particles",
        "hold one of several discs that attract, repel or orbit each other by type",
        jax="rule_particles:rule_particles",
    ),
    Task(
        "walker2d",
        "walk forward on two legs without falling",
        mujoco="walker2d:walker2d",
    ),
)

ALIASES = {"cartpole": "cartpole_swingup"}


def make(
    name: str,
    engine: str | None = None,
    *,
    max_delay: int = 0,
    images: bool = False,
    **factors: float | int,
) -> Env:
    """Builds a task by name.

    Args:
        name: of a row of `TASKS`; `cartpole` means `cartpole_swingup`.
        engine: one of the row's, by default its first. `"jax"` is our own code in JAX;
            `"mjx"`, `"c"` and `"warp"` are MuJoCo's engines.
        max_delay: if above 0, the task gets the factor `delay` (in control steps) with
            this maximum; by default the delay in `factors`, if there is one.
        images: whether it is observed in pictures, uint8, instead of as its state.
        **factors: values of factors of variation, e.g. `mass=1.2`; the others keep
            their defaults.

    Raises:
        ValueError: for an unknown task, engine or factor, with the closest names, for
            values without physical sense, and for images of a task that has none.
    """
    row = _row(name)
    engine = row.engines[0] if engine is None else engine
    if engine not in row.engines:
        unknown("engine", engine, row.engines, row.name)
    if images and not (row.images and engine == "jax"):
        offered = ", ".join(task.name for task in TASKS if task.images)
        raise ValueError(
            f"images must be False for {row.name} with engine {engine}, got True; "
            f"seen in images, with engine jax: {offered}."
        )
    builder = row.jax if engine == "jax" else row.mujoco
    builder = row.images if images else builder
    module, function = builder.split(":")  # type: ignore
    build = getattr(importlib.import_module(f"{__name__}.tasks.{module}"), function)
    env = build() if engine == "jax" else build(engine=engine)
    if max_delay or "delay" in factors:
        delay = factors.get("delay", 0)
        longest = math.ceil(delay) if 1 <= delay < math.inf else 1
        env = delayed(env, max_delay or longest)
    return fixed(env, factors) if factors else env


def _row(name: str) -> Task:
    name = ALIASES.get(name, name)
    for row in TASKS:
        if row.name == name:
            return row
    unknown("environment", name, [row.name for row in TASKS])


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
