"""Episodes whose rows say where they belong."""

import numpy as np

from jaxwm.types import Transition


def episode(name, num, terminal=True, truncated=False):
    """Rows that name their episode and their place in it."""
    t = np.arange(num + 1, dtype=np.float32)
    obs = np.stack([np.full_like(t, name), t], -1)
    last = np.arange(num) == num - 1
    return Transition(
        obs=obs[:-1],
        action=obs[:-1, 1:] / 8,
        reward=t[:-1] + 1,
        discount=1 - (last & terminal).astype(np.float32),
        truncated=last & truncated,
        next_obs=obs[1:],
        mask=np.ones(num, np.float32),
        extras={"physics": {"q": obs[:-1] + 0.5}},
    )
