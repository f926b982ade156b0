"""A small linear system whose observations and rewards are far from zero and one.

    x' = M x + 0.3 B clip(a, -1, 1) + noise,  obs = 100 + 0.01 x,
    reward = 50 + x_0 + a_0

It terminates where |x_1| > 2. Shapes: O = 3, A = 2. Data are numpy: nothing to compile.
"""

import jax
import numpy as np

from jaxwm.types import Box, EnvSpec, Trajectory, Transition

OFFSET, SCALE, REWARD = 100.0, 0.01, 50.0
SPEC = EnvSpec(
    name="linear system",
    obs=jax.ShapeDtypeStruct((3,), np.dtype("float32")),
    action=Box((-1.0, -1.0), (1.0, 1.0)),
    control_dt=0.1,
    time_limit=50,
)
M = np.array([[0.95, 0.2, 0.0], [-0.2, 0.95, 0.1], [0.0, -0.1, 0.9]], np.float32)
B = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, -0.5]], np.float32)


def observe(x):
    return (OFFSET + SCALE * x).astype(np.float32)


def advance(x, action):
    """One step of states `[..., 3]`: next state, reward, discount."""
    action = action.clip(-1, 1)
    after = x @ M.T + 0.3 * action @ B.T
    reward = REWARD + x[..., 0] + action[..., 0]
    return after, reward, (abs(after[..., 1]) <= 2.0).astype(np.float32)


def replay(x, actions):
    """Truth from states `[N, 3]` under actions `[N, H, A]`, terminations ignored.

    Observations, rewards and discounts `[N, H, ...]`.
    """
    rows = []
    for t in range(actions.shape[1]):
        after, reward, discount = advance(x, actions[:, t])
        rows.append((observe(x), reward, discount))
        x = after
    return tuple(np.stack(column, 1) for column in zip(*rows, strict=True))


def episodes(draw, num, length, noise=0.0):
    """`num` episodes `[N, T, ...]` from a numpy generator; `physics` holds the states.

    Rows behind a termination are padding: they repeat the last state.
    """
    x, alive = draw.normal(size=(num, 3)), np.ones(num)
    rows = []
    for _ in range(length):
        action = draw.normal(size=(num, 2))
        after, reward, discount = advance(x, action)
        after = after + noise * draw.normal(size=(num, 3))
        after = np.where(alive[:, None] > 0, after, x)
        rows.append((x, action, reward * alive, discount * alive, alive, after))
        x, alive = after, alive * discount
    x, action, reward, discount, mask, after = (
        np.stack(column, 1).astype(np.float32) for column in zip(*rows, strict=True)
    )
    extras = {"next_obs": observe(after)}
    return Trajectory(observe(x), action, reward, discount, mask, extras, physics=x)


def transitions(data):
    """All rows as one batch of transitions, padding marked by the mask."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
    truncated = np.zeros(flat.reward.shape, bool)
    next_obs = flat.extras["next_obs"]
    return Transition(*flat[:4], truncated, next_obs, flat.mask, {})


def windows(draw, data, num, length, keep_next_obs=True):
    """Random windows `[B, T, ...]` that begin with a real row."""
    episode = draw.integers(0, data.mask.shape[0], num)
    real = data.mask[episode].sum(1)
    most = np.minimum(real - 1, data.mask.shape[1] - length)
    start = np.floor(draw.uniform(size=num) * (most + 1)).astype(int)
    at = start[:, None] + np.arange(length)
    cut = jax.tree.map(lambda x: x[episode[:, None], at], data)
    extras = cut.extras if keep_next_obs else {}
    return cut._replace(extras=extras, physics=cut.physics[:, 0])
