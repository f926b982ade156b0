"""Process noise as a given: one-step residuals, whitened, that a model is told.

A trajectory model trained on squared error smooths the noise of a stochastic system
away. Told the noise of every step as standard normal innovations xi, the trajectory is
a deterministic function of start, actions and xi; drawing xi once per trajectory then
gives the noise back, at any number of network calls.

    xi_t = whiten(s_{t+1} - mean(s_t, a_t)),   mean and spread from a Gaussian head

Made for noise that is nearly Gaussian within one step. What the head's mean gets wrong
is taken for noise, so the model inherits its bias.
Shapes: T rows of a window, O observation, A action; all normalised.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm import nn
from jaxwm.types import Params

_MOST = 6.0  # innovations are cut here while the head is young


def innovations(
    head: nn.GaussianHead,
    params: Params,
    obs: Float[Array, "T O"],
    action: Float[Array, "T A"],
    valid: Float[Array, " {obs.shape[0]-1}"],
) -> Float[Array, "T O"]:
    """Innovations of a window; 0 in the last row and where `valid` is 0."""

    def one(obs, action, after):
        mean, lower, scale = head.apply(params, jnp.concatenate([obs, action]))
        return nn.whiten(after - obs - mean, lower, scale)

    xi = jax.vmap(one)(obs[:-1], action[:-1], obs[1:])
    # Padding may hold anything: select, do not multiply.
    xi = jnp.where(valid[:, None] > 0, jnp.clip(xi, -_MOST, _MOST), 0.0)
    return jnp.concatenate([xi, jnp.zeros_like(xi[:1])])


def head_loss(
    key: Key[Array, ""],
    head: nn.GaussianHead,
    params: Params,
    obs: Float[Array, "T O"],
    action: Float[Array, "T A"],
    valid: Float[Array, " {obs.shape[0]-1}"],
    *,
    picks: int = 2,
) -> Float[Array, ""]:
    """Squared error of the mean, and negative log-likelihood of the spread in nats.

    The spread is fitted to residuals whose mean is held still: fitted together, a
    young mean is excused by a wide spread. Both are means over entries of `picks`
    transitions, drawn with `key`: neighbours tell the head little that is new.
    """

    def one(i):
        mean, lower, scale = head.apply(params, jnp.concatenate([obs[i], action[i]]))
        residual = obs[i + 1] - obs[i] - mean
        xi = nn.whiten(jax.lax.stop_gradient(residual), lower, scale)
        return jnp.mean(residual**2) + jnp.mean(0.5 * xi**2 + jnp.log(scale))

    index = jax.random.randint(key, (picks,), 0, valid.shape[0])
    return jnp.mean(jnp.where(valid[index] > 0, jax.vmap(one)(index), 0.0))


def roll_head(
    head: nn.GaussianHead,
    params: Params,
    obs: Float[Array, " O"],
    action: Float[Array, "T A"],
    innovation: Float[Array, "T O"],
) -> Float[Array, "T O"]:
    """The head alone, rolled out: the baseline for models conditioned on its noise."""

    def step(obs, row):
        action, xi = row
        mean, lower, scale = head.apply(params, jnp.concatenate([obs, action]))
        return obs + mean + nn.colour(xi, lower, scale), obs

    return jax.lax.scan(step, obs, (action, innovation))[1]
