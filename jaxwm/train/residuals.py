"""Whether a world model keeps the noise of a stochastic system.

Shapes: B starts, N samples of one start, H rows of a trajectory, O observation. An
imagined one-step residual is what is left of an observation after the noise-free step
from the one before it:

    r_k = s_{k+1} - f(s_k, a_k),   k = 0 ... H - 2

with f the simulator's mean step in observation space. One number is not enough: noise
added independently at the end passes on its size but is autocorrelated (-0.5) and does
not propagate, and smoothed noise turns into drift. Judge the ratio, the
autocorrelation, the unexplained part and one of CRPS and energy distance together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.core import loop
from jaxwm.train import fidelity
from jaxwm.types import Env, PyTree

_TINY = 1e-12


class NoiseFidelity(NamedTuple):
    """How an imagined noise compares with the simulator's, per observation entry `[O]`.

    An entry whose residual is zero in the simulator (no noise reaches it within one
    step) has a ratio of infinity if the model is noisy there, else NaN.
    """

    ratio: Array  # residual standard deviation, imagined / true; 1 is right
    autocorrelation: Array  # lag 1, of imagined residuals; the truth's own beside it
    true_autocorrelation: Array
    crps_ratio: Array  # CRPS / that of the simulator itself, fixed actions; 1 is right
    energy_distance: Array  # [] between whole trajectories; 0 is right


def residuals(
    mean_step: Callable, obs: Float[Array, "H O"], action: Float[Array, "H A"]
) -> Float[Array, "{obs.shape[0]-1} O"]:
    """`obs[k + 1] - mean_step(obs[k], action[k])` of one trajectory.

    Args:
        mean_step: `(obs [O], action [A]) -> [O]`, the system's noise-free step.
        obs: H observations.
        action: H actions; the last one leads out of the trajectory.
    """
    return obs[1:] - jax.vmap(mean_step)(obs[:-1], action[:-1])


def autocorrelation(residual: Float[Array, "... T O"]) -> Float[Array, " O"]:
    """Lag-1 autocorrelation over time, pooled over all leading axes.

        sum r_k r_{k+1} / sum r_k^2,   r centred per entry

    with the denominator the mean of the two windows' sums. NaN where nothing varies.
    """
    axes = tuple(range(residual.ndim - 1))
    centred = residual - jnp.mean(residual, axes)
    before, after = centred[..., :-1, :], centred[..., 1:, :]
    power = 0.5 * (jnp.sum(before**2, axes) + jnp.sum(after**2, axes))
    return jnp.sum(before * after, axes) / power


def unexplained(
    residual: Float[Array, "... O"], true: Float[Array, "... O"], driver: int
) -> Float[Array, " O"]:
    """Residual that the noisy entry does not explain, in units of the true residual.

    Where the noise enters through one entry (a velocity, say), every other residual is
    a function of that one's to first order; what is left over is model error. Give
    coordinates in which the slope is the same everywhere: an angle, not its cosine.

        off_i = std(r_i - b_i r_driver) / std(r_i^true),  b_i by least squares

    Args:
        residual: imagined residuals.
        true: the simulator's, of any leading shape.
        driver: index of the entry where the noise enters; its own value is 0.

    Returns:
        One number per entry; the simulator's own residuals give 0.
    """
    flat = residual.reshape(-1, residual.shape[-1])
    flat = flat - jnp.mean(flat, 0)
    source = flat[:, driver]
    slope = source @ flat / jnp.maximum(source @ source, _TINY)
    left = jnp.std(flat - source[:, None] * slope, 0)
    return left / jnp.std(true.reshape(-1, true.shape[-1]), 0)


def crps(samples: Float[Array, " N"], truth: Float[Array, " M"]) -> Float[Array, ""]:
    """Continuous ranked probability score, mean over M true outcomes.

        CRPS = E|X - y| - 1/2 E|X - X'|

    with the unbiased ("fair") estimate of the second term, so N may be small.

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules", 2007, eq. 21; fair
    form: Ferro, "Fair scores for ensemble forecasts", 2014.
    """
    return jnp.mean(_distance(samples, truth)) - 0.5 * _spread(samples)


def crps_of_both(
    model: Float[Array, "N *rest"], simulator: Float[Array, "M *rest"]
) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
    """CRPS of the model and of the simulator itself, entry by entry.

    Both are scored on the simulator's samples; the simulator's own forecast of one
    sample is the set of the others. Divide after averaging, not before.

    Args:
        model: N samples from one start under fixed actions.
        simulator: M samples from the same start and actions, at least 2.
    """

    def one(x, y):
        return crps(x, y), 0.5 * _spread(y)

    shape = model.shape[1:]
    of_model, of_simulator = jax.vmap(one, (1, 1))(
        model.reshape(len(model), -1), simulator.reshape(len(simulator), -1)
    )
    return of_model.reshape(shape), of_simulator.reshape(shape)


def energy_distance(x: Float[Array, "N D"], y: Float[Array, "M D"]) -> Float[Array, ""]:
    """`2 E|x - y| - E|x - x'| - E|y - y'|`, unbiased, Euclidean; 0 if equal in law.

    Source: Szekely and Rizzo, "Energy statistics", 2013.
    """
    return 2 * jnp.mean(_distance(x, y)) - _spread(x) - _spread(y)


def compare(
    key: Key[Array, ""],
    env: Env,
    imagine: Callable,
    mean_step: Callable,
    physics: PyTree,
    params: PyTree,
    action: Float[Array, "B H A"],
    *,
    num_samples: int = 64,
) -> NoiseFidelity:
    """Draws model and simulator from the same starts under the same actions.

    Args:
        key: samples of both.
        env: the truth: one environment with process noise, a flat observation and no
            termination within H steps.
        imagine: `(key, obs [O], action [H, A]) -> obs [H, O]`, one sample of the model.
        mean_step: `(obs, action) -> obs`, the noise-free step.
        physics: B stored start states.
        params: factors of variation `[B, ...]`, or None for the defaults.
        action: fixed actions per start, within the bounds.
        num_samples: N, of each start and of either side, at least 2.

    Returns:
        `NoiseFidelity`; observations are divided by the standard deviation of the
        simulator's before the energy distance, which is averaged over starts.

    Raises:
        ValueError: if `num_samples` is below 2.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}.")

    def draw(key, physics, params, action):
        true_key, model_key = jax.random.split(key)
        true = jax.vmap(lambda k: fidelity.replay(k, env, physics, params, action).obs)(
            loop.fold_in_each(true_key, num_samples)
        )
        start = env.reset_to(physics, params).obs
        model = jax.vmap(lambda k: imagine(k, start, action))(
            loop.fold_in_each(model_key, num_samples)
        )
        return true, model  # [N, H, O] each

    keys = loop.fold_in_each(key, action.shape[0])
    true, model = jax.vmap(draw)(keys, physics, params, action)
    each = jax.vmap(jax.vmap(residuals, (None, 0, None)), (None, 0, 0))
    true_residual = each(mean_step, true, action)  # [B, N, H - 1, O]
    residual = each(mean_step, model, action)
    over = (0, 1, 2)
    of_model, of_simulator = jax.vmap(crps_of_both)(model, true)  # [B, H, O]
    scale = jnp.maximum(jnp.std(true, over), _TINY)

    def whole(x, y):
        x, y = x / scale, y / scale
        return energy_distance(x.reshape(len(x), -1), y.reshape(len(y), -1))

    return NoiseFidelity(
        ratio=jnp.std(residual, over) / jnp.std(true_residual, over),
        autocorrelation=autocorrelation(residual),
        true_autocorrelation=autocorrelation(true_residual),
        crps_ratio=jnp.mean(of_model, (0, 1)) / jnp.mean(of_simulator, (0, 1)),
        energy_distance=jnp.mean(jax.vmap(whole)(model, true)),
    )


def _distance(x: Array, y: Array) -> Array:
    """Distances between all pairs, `[N, M]`; absolute differences for `[N]`."""
    gap = x[:, None] - y[None]
    return jnp.abs(gap) if gap.ndim == 2 else jnp.linalg.norm(gap, axis=-1)


def _spread(x: Array) -> Array:
    """Mean distance between two different samples."""
    num = x.shape[0]
    return jnp.sum(_distance(x, x)) / (num * (num - 1))
