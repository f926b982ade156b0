"""What a world model can do, asking for it, and models made from other models.

Shapes: H imagined steps, O observation, A action.
"""

from collections.abc import Callable

import jax

from jaxwm.core.checks import ABILITIES, require
from jaxwm.types import ModelState, WorldModel

__all__ = ["ABILITIES", "frozen", "require", "with_reward"]


def frozen(model: WorldModel, state: ModelState) -> WorldModel:
    """The model as it is now: `init` returns `state`, and nothing changes it again.

    For planners and agents that take a world model but shall not train it. The state
    stays an argument of every function (data, not a constant of the compiled program)
    and `loss` still measures, with a gradient of zero.
    """

    def init(key):
        del key  # nothing is drawn
        return state

    def loss(key, state, window):
        held = state._replace(params=jax.lax.stop_gradient(state.params))
        return model.loss(key, held, window)

    def fit(key, state, windows):
        del key, windows  # no update
        return state, {}

    return model._replace(
        init=init,
        loss=loss,
        fit=fit,
        adapt=lambda state, transitions: state,
        tune=lambda state, rollouts: state,
    )


def with_reward(model: WorldModel, reward_fn: Callable) -> WorldModel:
    """The model with imagined rewards computed by a known function.

    Args:
        model: must decode observations.
        reward_fn: `(obs, action) -> scalar` in raw units, for one step; gradients flow
            through it.

    Raises:
        ValueError: if the model does not decode observations.
    """
    require(model, "decode", who="with_reward")

    def imagine(key, state, memory, actor, horizon):
        rollout = model.imagine(key, state, memory, actor, horizon)
        reward = jax.vmap(reward_fn)(rollout.obs, rollout.action)
        return rollout._replace(reward=reward)

    spec = model.spec._replace(abilities=model.spec.abilities | {"reward"})
    return model._replace(spec=spec, imagine=imagine)
