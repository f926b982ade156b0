"""MuJoCo Playground environments in and out, by contract: it is not imported."""

from typing import Any, NamedTuple

from jaxtyping import Array

from jaxwm.envs.adapters import state_contract
from jaxwm.types import Box, Env, Metrics, PyTree


class State(NamedTuple):
    """The fields and methods of Playground's `mjx_env.State`."""

    data: state_contract.Body
    obs: PyTree
    reward: Array
    done: Array
    metrics: Metrics
    info: dict

    def replace(self, **changes) -> "State":
        """A copy with other fields."""
        return self._replace(**changes)

    def tree_replace(self, params: dict) -> "State":
        """A copy with other leaves, `{"data.t": value}`."""
        state = self
        for path, value in params.items():
            state = _replace_at(state, path.split("."), value)
        return state


def from_playground(
    env: Any,
    *,
    name: str | None = None,
    time_limit: int = 1000,
    action: Box | None = None,
    control_dt: float | None = None,
) -> Env:
    """A Playground environment as ours.

    Args:
        env: an `MjxEnv` that is not wrapped for training.
        name: of the task; by default its class's.
        time_limit: steps per episode (Playground's `config.episode_length`).
        action: a `Box`; [-1, 1] by default, as most Playground tasks have it.
        control_dt: seconds per step; `env.dt` by default.

    Returns:
        The environment, its factors empty, `physics` Playground's whole `State`, whose
        `data` is MJX's and takes some kB. Its metrics are named `env/...`.

    Raises:
        ValueError: for an environment that resets itself, and bounds that do not fit.
    """
    return state_contract.to_env(
        env, name=name, time_limit=time_limit, action=action, control_dt=control_dt
    )


def to_playground(env: Env) -> "PlaygroundEnv":
    """Our environment with the methods of an `MjxEnv`.

    Actions in [-1, 1] are scaled to our bounds; the time limit is their wrapper's:
    `wrapper.wrap_for_brax_training(to_playground(env), episode_length=...)`. There is
    no MJX model to hand out, so `randomization_fn` cannot be used: choose the factors
    of variation by `envs.fixed`.

    Raises:
        ValueError: for discrete or unbounded actions.
    """
    return PlaygroundEnv(env, state_contract.bounds(env, "playground"))


class PlaygroundEnv:
    """One of our environments under Playground's contract; made by `to_playground`."""

    def __init__(self, env: Env, bounds: Box):
        self._env, self._bounds = env, bounds

    def reset(self, rng: Array) -> State:
        """A start state; `rng` is a legacy or a typed key."""
        return State(*state_contract.reset(self._env, rng))

    def step(self, state: State, action: Array) -> State:
        """One control step; never resets."""
        action = state_contract.scaled(self._bounds, action)
        return State(*state_contract.step(self._env, state.data, state, action))

    @property
    def observation_size(self):
        return state_contract.observation_size(self._env)

    @property
    def action_size(self) -> int:
        return self._bounds.size

    @property
    def dt(self) -> float:
        """Control period, s."""
        return self._env.spec.control_dt

    @property
    def sim_dt(self) -> float:
        """As `dt`: our substeps are not seen from outside."""
        return self.dt

    @property
    def n_substeps(self) -> int:
        return 1

    @property
    def unwrapped(self) -> "PlaygroundEnv":
        return self


def _replace_at(tree: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    child = tree[path[0]] if isinstance(tree, dict) else getattr(tree, path[0])
    changed = {path[0]: _replace_at(child, path[1:], value)}
    return {**tree, **changed} if isinstance(tree, dict) else tree._replace(**changed)
