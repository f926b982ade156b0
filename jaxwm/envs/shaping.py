"""Rewards shaped by a potential, which leaves the best policy as it was.

Source: Ng, Harada and Russell, "Policy Invariance under Reward Transformations", ICML
1999.
"""

from collections.abc import Callable

from jaxwm.types import Env


def shaped(env: Env, potential: Callable, gamma: float) -> Env:
    """A task whose reward says how much better the state reached is.

        r + gamma phi(s') - phi(s)

    Discounted by the same `gamma`, the extras of an episode sum to what the potential
    is at its two ends. A true termination counts as a state of potential 0.

    Args:
        env: any environment.
        potential: phi, `(obs) -> scalar`.
        gamma: the learner's discount per step, in [0, 1].

    Raises:
        ValueError: for a `gamma` outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}.")

    def step(key, state, action):
        after = env.step(key, state, action)
        ahead = gamma * after.discount * potential(after.obs)
        return after._replace(reward=after.reward + ahead - potential(state.obs))

    return env._replace(step=step)
