"""A finished or stopped run as objects: model, policy, environment."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import dynamics
from jaxwm.commands import assemble
from jaxwm.train import checkpoint, run
from jaxwm.train.errors import ConfigError
from jaxwm.types import Env, PyTree, WorldModel


class TrainedPolicy(NamedTuple):
    """A policy that acts: `action = policy(obs)`, or with its memory `policy.act`.

    act:    (key, memory, obs, is_first) -> (action, memory), deterministic
    memory: before the first observation of an episode
    """

    act: Callable
    memory: PyTree
    reads: int  # observations its action depends on; 1 needs no memory

    def __call__(self, obs: Any) -> jax.Array:
        """The deterministic action for one observation `[A]`.

        Raises:
            ValueError: for a policy that needs the observations before.
        """
        if self.reads > 1:
            raise ValueError(
                f"this policy reads {self.reads} observations; keep its memory: "
                "action, memory = policy.act(key, memory, obs, is_first)."
            )
        return self.act(jax.random.key(0), self.memory, obs, True)[0]


class Trained(NamedTuple):
    """`model, policy, env = load(path)`.

    model:  the world model as it was learnt; its `init(key)` returns the learnt state
    policy: of the agent
    env:    the task it was trained on, with its factors
    """

    model: WorldModel
    policy: TrainedPolicy
    env: Env


def load(path: str | pathlib.Path, *, seed: int | None = None) -> Trained:
    """Reads a run.

    Args:
        path: of the run.
        seed: one of its seeds; by default the first.

    Raises:
        ConfigError: where there is no such run or seed.
        CheckpointError: where no checkpoint verifies.
    """
    assembly, _, state = read(path)
    state = select(assembly, state, seed)
    act, memory = act_of(assembly, state)
    model = dynamics.frozen(assembly.model, state.agent.model)
    policy = TrainedPolicy(act, memory, assembly.model.spec.context)
    return Trained(model, policy, assembly.env)


def read(path: str | pathlib.Path) -> tuple[assemble.Assembly, int, PyTree]:
    """A run's parts, the iteration of its newest sound checkpoint, and the state."""
    document = run.read(path)
    assembly = assemble.assemble(*assemble.parts_of(document))
    num_seeds = len(assembly.seeds)
    one = jax.eval_shape(assembly.learner.init, jax.random.key(0))
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_seeds, *x.shape), x.dtype), one
    )
    step, state, _ = checkpoint.restore(path, template, below="learner")
    return assembly, step, state


def select(assembly: assemble.Assembly, state: PyTree, seed: int | None) -> PyTree:
    """One seed's state.

    Raises:
        ConfigError: for a seed the run does not have.
    """
    seed = assembly.seeds[0] if seed is None else seed
    if seed not in assembly.seeds:
        raise ConfigError(f"the run has seeds {assembly.seeds}, not {seed}.")
    index = assembly.seeds.index(seed)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), state)


def act_of(assembly: assemble.Assembly, state: PyTree) -> tuple[Callable, PyTree]:
    """The deterministic policy of one seed and its first memory."""

    def act(key, memory, obs, is_first):
        return assembly.agent.act(key, state.agent, memory, obs, is_first, False)

    return act, assembly.agent.begin(state.agent)
