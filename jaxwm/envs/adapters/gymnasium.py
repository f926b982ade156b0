"""Our environments as a Gymnasium `VectorEnv`."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from jaxwm.envs.batch import batch
from jaxwm.types import Box, Env, PyTree


def to_gymnasium(
    env: Env, num_envs: int, seed: int = 0, **options: Any
) -> "JaxwmVectorEnv":
    """`num_envs` copies of our environment under Gymnasium's vector interface.

    Automatic reset happens within the step that ends an episode
    (`AutoresetMode.SAME_STEP`): the observation returned is the new episode's first,
    `infos["final_obs"][i]` the true last one of the old, where `infos["_final_obs"][i]`
    holds. Metrics of a step come as `infos[name]`, those of an episode's last step as
    `infos["final_info"][name]`, each with its mask `_name`. The environment is compiled
    for `num_envs` at the first call; arrays go to and come from the host at every step,
    so a loop inside JAX over `envs.batch` is much faster.

    Args:
        env: the environment.
        num_envs: N.
        seed: of the first `reset` that is given none.
        **options: of `envs.batch`: reset, pool_size, refresh, factors.

    Returns:
        The vector environment. The same seed and actions give the same numbers.

    Raises:
        ValueError: for observations that are neither arrays nor dicts of arrays, and as
            `envs.batch` does.
    """
    return JaxwmVectorEnv(env, num_envs, seed, **options)


class JaxwmVectorEnv(gymnasium.vector.VectorEnv):
    """Made by `to_gymnasium`."""

    def __init__(self, env: Env, num_envs: int, seed: int, **options: Any):
        self._batch = batch(env, num_envs, **options)
        self._reset = jax.jit(self._batch.reset)
        self._step = jax.jit(self._batch.step)
        self._state: Any = None
        self._seed, self._num_resets, self._num_steps = seed, 0, 0
        self.num_envs = num_envs
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": [],
            "render_fps": round(1 / env.spec.control_dt),
        }
        self.single_observation_space = _observation_space(env.spec.obs)
        self.single_action_space = _action_space(env.spec.action)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts all environments anew; without a seed, with new random numbers."""
        super().reset(seed=seed)
        if options:
            raise ValueError(
                f"reset takes no options, got {sorted(options)}; environments whose "
                "episodes end reset themselves."
            )
        if seed is not None:
            self._seed, self._num_resets = seed, 0
        key = jax.random.fold_in(jax.random.key(self._seed), self._num_resets)
        reset_key, self._step_key = jax.random.split(key)
        self._num_resets += 1
        self._num_steps = 0
        self._state = self._reset(reset_key)
        return _to_host(self._state.env.obs), {}

    def step(self, actions: Any):
        """One control step of every environment."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step.")
        key = jax.random.fold_in(self._step_key, self._num_steps)
        self._num_steps += 1
        dtype = self.single_action_space.dtype
        actions = jnp.asarray(np.asarray(actions, dtype))
        self._state, final_obs = self._step(key, self._state, actions)
        now = self._state.env
        terminated = np.asarray(now.discount) == 0
        truncated = np.array(now.truncated)
        metrics = {name: np.array(value) for name, value in now.metrics.items()}
        done = terminated | truncated
        infos: dict[str, Any] = _masked(metrics, ~done)
        if done.any():
            infos["final_obs"] = _rows(_to_host(final_obs), done)
            infos["_final_obs"] = done
            infos["final_info"] = _masked(metrics, done)
            infos["_final_info"] = done.copy()
        rewards = np.array(now.reward, np.float64)
        return _to_host(now.obs), rewards, terminated, truncated, infos


def _to_host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.array, tree)  # copies, so that they may be written to


def _masked(metrics: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Values where `mask` holds, else zeros, beside masks named as Gymnasium does."""
    infos = {}
    for name, value in metrics.items():
        infos[name] = np.where(mask, value, np.zeros_like(value))
        infos[f"_{name}"] = mask.copy()
    return infos


def _rows(obs: PyTree, mask: np.ndarray) -> np.ndarray:
    """An object array: one observation where `mask` holds, None elsewhere."""
    rows = np.full(len(mask), None, dtype=object)
    for i in np.flatnonzero(mask):
        rows[i] = jax.tree.map(lambda x, i=i: x[i], obs)
    return rows


def _action_space(action) -> spaces.Space:
    if isinstance(action, Box):
        low, high = (np.array(b, np.float32) for b in (action.low, action.high))
        return spaces.Box(low, high, dtype=np.float32)
    return spaces.Discrete(action.num)


def _observation_space(obs: PyTree) -> spaces.Space:
    if isinstance(obs, dict):
        return spaces.Dict({k: _observation_space(v) for k, v in obs.items()})
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(
            "to_gymnasium needs observations that are arrays or dicts of arrays, "
            f"got {type(obs).__name__}."
        )
    if np.issubdtype(obs.dtype, np.integer):
        ends = np.iinfo(obs.dtype)
        return spaces.Box(ends.min, ends.max, obs.shape, obs.dtype)
    return spaces.Box(-np.inf, np.inf, obs.shape, obs.dtype)
