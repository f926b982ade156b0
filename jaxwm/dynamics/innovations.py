"""Process noise as a given: one-step residuals, whitened, that a model is told.

A trajectory model trained on squared error smooths the noise of a stochastic system
away. Told the noise of every step as standard normal innovations xi, the trajectory is
a deterministic function of start, actions and xi; drawing xi once per trajectory then
gives the noise back, at any number of network calls. The head rolled out with xi is
close to that function already: a trajectory model that corrects it keeps what a model
of its own would smooth.

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
_FARTHEST = 10.0  # where a rolled out head is cut, in standard deviations of the data


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
    jitter: float = 0.02,
) -> Float[Array, ""]:
    """Squared error of the mean, and negative log-likelihood of the spread in nats.

    The mean is fitted from states that are moved a little, to where the true ones go:
    rolled out, it then leads back to the data instead of keeping an error (a cosine and
    sine that are no angle's) for ever, which looks like noise that never changes. The
    spread is fitted to residuals of the true states whose mean is held still: fitted
    together, a young mean is excused by a wide spread.

    Args:
        key: draws transitions and jitter.
        head: the network.
        params: its parameters.
        obs: rows of a window, normalised.
        action: likewise.
        valid: 1 where the step out of a row is known.
        picks: transitions looked at: neighbours tell the head little that is new.
        jitter: standard deviation of the moves, in standard deviations of the data.
    """
    pick_key, jitter_key = jax.random.split(key)

    def one(i, move):
        lower, scale, residual = predicted(obs[i], i)
        xi = nn.whiten(jax.lax.stop_gradient(residual), lower, scale)
        _, _, error = predicted(obs[i] + move, i)
        return jnp.mean(error**2) + jnp.mean(0.5 * xi**2 + jnp.log(scale))

    def predicted(before, i):
        mean, lower, scale = head.apply(params, jnp.concatenate([before, action[i]]))
        return lower, scale, obs[i + 1] - before - mean

    index = jax.random.randint(pick_key, (picks,), 0, valid.shape[0])
    moves = jitter * jax.random.normal(jitter_key, (picks, obs.shape[-1]))
    return jnp.mean(jnp.where(valid[index] > 0, jax.vmap(one)(index, moves), 0.0))


def roll_head(
    head: nn.GaussianHead,
    params: Params,
    obs: Float[Array, " O"],
    action: Float[Array, "T A"],
    innovation: Float[Array, "T O"],
) -> Float[Array, "T O"]:
    """The head rolled out from an observation, its noise given.

    What a model conditioned on the innovations corrects, and its baseline.
    """

    def step(obs, row):
        action, xi = row
        mean, lower, scale = head.apply(params, jnp.concatenate([obs, action]))
        after = obs + mean + nn.colour(xi, lower, scale)
        return jnp.clip(after, -_FARTHEST, _FARTHEST), obs

    return jax.lax.scan(step, obs, (action, innovation))[1]
