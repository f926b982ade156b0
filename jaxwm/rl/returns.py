"""Returns, advantages and weights of one trajectory.

Shapes: T steps, step t leads from state t - 1 to state t. `discount_t` is gamma times
0 at a true termination and 1 elsewhere. A trailing axis K (several rewards or
critics) is allowed in rewards and values.

Time limits: where step t ends an episode without terminating it, give the value of
the true last observation in `value_t` and `lambda_` 0 at that step. The estimate then
bootstraps there and nothing leaks in from the episode that follows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Mixing = float | int | Float[Array, ""] | Float[Array, " T"]


class VTrace(NamedTuple):
    """Off-policy targets of the values and advantages of the actions."""

    target: Float[Array, "T *K"]
    advantage: Float[Array, "T *K"]


def discounted_returns(
    reward_t: Float[Array, "T *K"],
    discount_t: Float[Array, " T"],
    last_value: float | int | Float[Array, "*K"] = 0.0,
) -> Float[Array, "T *K"]:
    """Monte Carlo returns G_0 ... G_{T-1}.

        G_{t-1} = r_t + γ_t G_t,  G_T = last value

    Args:
        reward_t: rewards r_1 ... r_T.
        discount_t: γ times 0 at termination and 1 elsewhere.
        last_value: value of the last state; 0 if the trajectory ended there.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., section 3.3.
    """

    def step(returns, row):
        reward, discount = row
        returns = reward + discount * returns
        return returns, returns

    last = jnp.broadcast_to(jnp.asarray(last_value, reward_t.dtype), reward_t.shape[1:])
    return jax.lax.scan(step, last, (reward_t, discount_t), reverse=True)[1]


def lambda_returns(
    reward_t: Float[Array, "T *K"],
    discount_t: Float[Array, " T"],
    value_t: Float[Array, "T *K"],
    lambda_: Mixing,
) -> Float[Array, "T *K"]:
    """λ-returns of one trajectory, bootstrapped from its last value.

        G_{t-1} = r_t + γ_t [(1 - λ_t) v_t + λ_t G_t],  G_T = v_T

    Args:
        reward_t: rewards r_1 ... r_T.
        discount_t: γ times 0 at termination and 1 elsewhere.
        value_t: values of the states reached, v_1 ... v_T.
        lambda_: mixing in [0, 1], one number or one per step; 0 is one-step TD, 1
            Monte Carlo.

    Returns:
        Targets G_0 ... G_{T-1} of the states left. Gradients flow through all inputs.

    Raises:
        ValueError: if `lambda_` is a Python number outside [0, 1].

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., section 12.1.
    """
    lambda_ = _per_step(lambda_, discount_t)

    def step(returns, row):
        reward, discount, value, mixing = row
        returns = reward + discount * ((1 - mixing) * value + mixing * returns)
        return returns, returns

    rows = (reward_t, discount_t, value_t, lambda_)
    return jax.lax.scan(step, value_t[-1], rows, reverse=True)[1]


def gae(
    reward_t: Float[Array, "T *K"],
    discount_t: Float[Array, " T"],
    value_tm1: Float[Array, "T *K"],
    value_t: Float[Array, "T *K"],
    lambda_: Mixing,
) -> Float[Array, "T *K"]:
    """Generalised advantage estimates A_0 ... A_{T-1}.

        δ_t = r_t + γ_t v_t - v_{t-1},  A_{t-1} = δ_t + γ_t λ_t A_t,  A_T = 0

    `gae + value_tm1` are the λ-returns. For values `[T + 1]` of successive states pass
    `value[:-1], value[1:]`.

    Args:
        reward_t: rewards r_1 ... r_T.
        discount_t: γ times 0 at termination and 1 elsewhere.
        value_tm1: values of the states acted in, v_0 ... v_{T-1}.
        value_t: values of the states reached, v_1 ... v_T.
        lambda_: as in `lambda_returns`.

    Raises:
        ValueError: if `lambda_` is a Python number outside [0, 1].

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized
    Advantage Estimation", ICLR 2016, equation 16.
    """
    lambda_ = _per_step(lambda_, discount_t)

    def step(advantage, row):
        reward, discount, left, reached, mixing = row
        delta = reward + discount * reached - left
        advantage = delta + discount * mixing * advantage
        return advantage, advantage

    rows = (reward_t, discount_t, value_tm1, value_t, lambda_)
    return jax.lax.scan(step, jnp.zeros_like(value_t[-1]), rows, reverse=True)[1]


def vtrace(
    reward_t: Float[Array, "T *K"],
    discount_t: Float[Array, " T"],
    value_tm1: Float[Array, "T *K"],
    value_t: Float[Array, "T *K"],
    log_ratio: Float[Array, " T"],
    lambda_: Mixing = 1.0,
    *,
    clip_rho: float | int | Float[Array, ""] = 1.0,
    clip_c: float | int | Float[Array, ""] = 1.0,
) -> VTrace:
    """V-trace targets and advantages, for actions of another policy.

        ρ_t = min(ρ̄, π/μ),  c_t = λ_t min(c̄, π/μ)
        e_{t-1} = ρ_t (r_t + γ_t v_t - v_{t-1}) + γ_t c_t e_t,  e_T = 0
        target = v_{t-1} + e_{t-1}
        advantage = ρ_t (r_t + γ_t (v_t + λ_t e_t) - v_{t-1})

    Args:
        reward_t: rewards r_1 ... r_T.
        discount_t: γ times 0 at termination and 1 elsewhere.
        value_tm1: values of the states acted in.
        value_t: values of the states reached.
        log_ratio: log π - log μ of the actions taken; μ is the policy that acted.
        lambda_: as in `lambda_returns`.
        clip_rho: ρ̄, decides which policy the values belong to.
        clip_c: c̄, bounds the variance.

    Raises:
        ValueError: if `lambda_` is a Python number outside [0, 1].

    Source: Espeholt et al., "IMPALA", ICML 2018, equation 1 and section 4.2.
    """
    lambda_ = _per_step(lambda_, discount_t)
    ratio = jnp.exp(log_ratio)
    rho = jnp.minimum(clip_rho, ratio)
    trace = lambda_ * jnp.minimum(clip_c, ratio)

    def step(error, row):
        reward, discount, left, reached, mixing, rho, trace = row
        advantage = rho * (reward + discount * (reached + mixing * error) - left)
        delta = rho * (reward + discount * reached - left)
        error = delta + discount * trace * error
        return error, VTrace(left + error, advantage)

    rows = (reward_t, discount_t, value_tm1, value_t, lambda_, rho, trace)
    return jax.lax.scan(step, jnp.zeros_like(value_t[-1]), rows, reverse=True)[1]


def survival(
    discount_t: Float[Array, " T"], *, inclusive: bool = False
) -> Float[Array, " T"]:
    """Probability that the episode still runs, the weight of each step in a loss.

        w_t = Π_{k<t} d_k,  or with `inclusive` Π_{k<=t} d_k

    The exclusive product counts the step that terminates; the inclusive one, which
    Rigter et al. (TMLR 2024) use, gives that step no weight.

    Args:
        discount_t: continuation of each step; with gamma in it, discounted weights.
        inclusive: whether a step's own discount counts.
    """
    product = jnp.cumprod(discount_t)
    if inclusive:
        return product
    return jnp.concatenate([jnp.ones_like(product[:1]), product[:-1]])


def _per_step(lambda_, discount_t):
    """λ as one number per step."""
    if isinstance(lambda_, int | float) and not 0 <= lambda_ <= 1:
        raise ValueError(
            f"lambda_ must be in [0, 1], got {lambda_}; 0 is one-step TD and "
            "1 Monte Carlo."
        )
    return jnp.broadcast_to(jnp.asarray(lambda_, discount_t.dtype), discount_t.shape)
