"""brax environments in and out.

brax's own environments are no longer maintained; its trainers are.
"""

from typing import Any

from jaxwm.envs.adapters import state_contract
from jaxwm.types import Box, Env


def from_brax(
    env: Any,
    *,
    name: str | None = None,
    time_limit: int = 1000,
    action: Box | None = None,
    control_dt: float | None = None,
) -> Env:
    """A brax environment as ours.

    Args:
        env: a `brax.envs.Env` without brax's automatic reset. Under its
            `EpisodeWrapper`, `info["truncation"]` becomes `truncated`.
        name: of the task; by default its class's.
        time_limit: steps per episode.
        action: a `Box`; [-1, 1] by default, as brax has it.
        control_dt: seconds per step; `env.dt` by default.

    Returns:
        The environment, its factors empty, `physics` brax's whole `State`. Its metrics
        are named `env/...`. Differentiable where the brax environment is.

    Raises:
        ValueError: for an environment that resets itself, and bounds that do not fit.
    """
    return state_contract.to_env(
        env, name=name, time_limit=time_limit, action=action, control_dt=control_dt
    )


def to_brax(env: Env) -> Any:
    """Our environment as a `brax.envs.Env`.

    (The trainers of brax 0.14 need a jax before 0.10, which dropped a function they
    call; its wrappers and evaluator run with any.)

    Actions in [-1, 1] are scaled to our bounds. The time limit is brax's to keep:
    `brax.envs.training.wrap(to_brax(env), episode_length=env.spec.time_limit)`. Our
    `discount` becomes `done = 1 - discount`, the physics lie in `pipeline_state`, the
    random key in `info["rng"]`, metrics keep their names.

    Raises:
        ValueError: for discrete or unbounded actions.
    """
    bounds = state_contract.bounds(env, "brax")
    base = _brax_base()

    class BraxEnv(base.Env):
        """One of our environments under brax's contract."""

        def reset(self, rng):
            return base.State(*state_contract.reset(env, rng))  # type: ignore

        def step(self, state, action):
            body: Any = state.pipeline_state
            action = state_contract.scaled(bounds, action)
            after = state_contract.step(env, body, state, action)
            return state.replace(  # type: ignore
                pipeline_state=after.body,
                obs=after.obs,
                reward=after.reward,
                done=after.done,
                metrics=after.metrics,
                info=after.info,
            )

        @property
        def observation_size(self):
            return state_contract.observation_size(env)

        @property
        def action_size(self):
            return bounds.size

        @property
        def dt(self):
            return env.spec.control_dt

        @property
        def backend(self):
            return "jaxwm"

    return BraxEnv()


def _brax_base():
    import warnings

    with warnings.catch_warnings():
        # brax loads jaxopt, whose notice of retirement is not for our users.
        warnings.simplefilter("ignore", DeprecationWarning)
        from brax.envs import base
    return base
