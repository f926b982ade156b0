"""The environment itself as a world model: what planning with the truth can reach.

Shapes: O observation. Everything is in raw units; functions take ONE trajectory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxwm.dynamics.from_step import Step, from_step
from jaxwm.types import Env, ModelSpec, ModelState, PyTree, WorldModel


def from_env(env: Env, locate: Callable) -> WorldModel:
    """A world model that steps the environment; it learns nothing.

    Its state's `buffers` hold the factors of variation of the system at hand: at first
    the defaults, otherwise `state._replace(buffers=factors)`.

    Args:
        env: a task whose observation determines its state.
        locate: `(obs) -> physics`, the state that shows this observation.

    Returns:
        The model. Rollouts are exact and differentiable where `env.step` is.
    """

    def init(key: Key[Array, ""]) -> ModelState:
        del key  # nothing is drawn
        defaults = env.spec.default_params()
        return ModelState({}, jax.tree.map(jnp.asarray, defaults), ())

    def loss(key, state: ModelState, window):
        del key, window  # the truth does not err
        return jnp.zeros(()), (state.buffers, {})

    def fit(key, state: ModelState, windows):
        del key, windows  # nothing to learn
        return state, {"finite": jnp.ones(())}

    def step(key, state: ModelState, obs: PyTree, action: Array) -> Step:
        before = env.reset_to(locate(obs), state.buffers)
        after = env.step(key, before, action)
        return Step(after.obs, after.reward, after.discount, {})

    spec = ModelSpec(
        obs=env.spec.obs,
        action=env.spec.action,
        feature_size=sum(leaf.size for leaf in jax.tree.leaves(env.spec.obs)),
        horizon=1,
        context=1,
        abilities=frozenset({"reward", "discount", "gradient"}),
        window=2,
        name=f"environment {env.spec.name}",
    )
    return from_step(spec, step, init=init, loss=loss, fit=fit)
