"""Samplers as tables of coefficients, one row per network call.

    x' = x * X + x0 * X0 + previous * X0_before + noise * eps

where X0 is the estimate of this call and X0_before that of the call before. Tables are
computed on the host in float64 and used in float32.
Shapes: N rows, noisiest level first.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxwm.diffusion.levels import CLEAN, Level, sigma_level


class Steps(NamedTuple):
    """A sampler: coefficients of every row, and how many rows are used."""

    level: Level  # [N] of the network call
    after: Level  # [N] reached by the row
    x: Float[Array, " N"]
    x0: Float[Array, " N"]
    previous: Float[Array, " N"]
    noise: Float[Array, " N"]
    spread: Float[Array, " N"]  # posterior std between the levels, for any sampler
    num: int | Array  # rows used; padding follows


def ancestral(levels: Level, *, eta: float = 1.0) -> Steps:
    """Draws from the posterior q(x' | x, x0) of the levels; `eta` 0 is DDIM.

        x' = b x0 + sqrt(r^2 - v) (x - a x0) / s + sqrt(v) eps,
        v = eta^2 r^2 / s^2 (s^2 - (a / b)^2 r^2)

    for a step from (signal a, noise s) to (b, r). On sigma schedules it equals the
    Euler ancestral sampler.

    Args:
        levels: cleanest first, e.g. `stride(schedule, 4)`.
        eta: share of the posterior's standard deviation, in [0, 1].

    Raises:
        ValueError: if `eta` is outside [0, 1].

    Source: Ho et al., 2020, equation 7; Song et al., "Denoising Diffusion Implicit
    Models", 2021, equation 12.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}; 1 is ancestral, 0 DDIM.")
    nodes = _nodes(levels)
    rows = [
        _row(level, after, *_transition(level, after, eta))
        for level, after in itertools.pairwise(nodes)
    ]
    return _table(rows)


def ddim(levels: Level) -> Steps:
    """Deterministic first-order sampler: `ancestral` with `eta` 0."""
    return ancestral(levels, eta=0.0)


def euler(
    levels: Level,
    *,
    churn: float = 0.0,
    churn_low: float = 0.0,
    churn_high: float = float("inf"),
    churn_noise: float = 1.0,
) -> Steps:
    """First-order sampler of the probability flow, with optional churn.

    Args:
        levels: cleanest first; churn needs a sigma schedule.
        churn: total noise raised over the run; each level whose sigma lies in
            [`churn_low`, `churn_high`] is raised by min(churn / N, sqrt(2) - 1).
        churn_low: smallest sigma that is raised.
        churn_high: largest sigma that is raised.
        churn_noise: factor on the noise added.

    Raises:
        ValueError: if `churn` < 0, or > 0 on a schedule whose signal is not 1.

    Source: Karras et al., 2022, algorithm 2.
    """
    return _flow(levels, False, churn, churn_low, churn_high, churn_noise)


def heun(
    levels: Level,
    *,
    churn: float = 0.0,
    churn_low: float = 0.0,
    churn_high: float = float("inf"),
    churn_noise: float = 1.0,
) -> Steps:
    """Second-order sampler of the probability flow, 2 N - 1 calls for N levels.

    The second call of a step corrects the first: with q = sigma' / sigma,

        x'' = x' + signal' (1 - q) / (2 q) (X0_second - X0_first)

    It extrapolates far over the first gap of a Karras schedule: below 8 calls prefer a
    first-order sampler. Arguments and errors as `euler`.

    Source: Karras et al., 2022, algorithm 2.
    """
    return _flow(levels, True, churn, churn_low, churn_high, churn_noise)


def dpmpp_2m(levels: Level, *, eta: float = 0.0) -> Steps:
    """DPM-Solver++(2M), second order with one call a step; `eta` 1 is its SDE variant.

        h = ln(sigma / sigma'), k = h + eta h, r = h_before / h,
        x' / b = e^-k x / a + (1 - e^-k) (X0 + (X0 - X0_before) / (2 r)) + noise

    The first and the last step are of first order.

    Raises:
        ValueError: if `eta` < 0.

    Source: Lu et al., "DPM-Solver++", 2022, algorithm 2 and section 4.4.
    """
    if eta < 0:
        raise ValueError(f"eta must be at least 0, got {eta}; 0 is the ODE solver.")
    nodes = _nodes(levels)
    rows, h_before = [], None
    for level, after in itertools.pairwise(nodes):
        sigma, sigma_after = level.noise / level.signal, after.noise / after.signal
        if sigma_after == 0:
            rows.append(_row(level, after, 0.0, after.signal, 0.0))
            break
        h = np.log(sigma / sigma_after)
        gain = -np.expm1(-(1 + eta) * h)
        second = 0.0 if h_before is None else h / (2 * h_before)
        noise = after.signal * sigma_after * np.sqrt(-np.expm1(-2 * eta * h))
        rows.append(
            _row(
                level,
                after,
                after.signal / level.signal * (1 - gain),
                after.signal * gain * (1 + second),
                noise,
                previous=-after.signal * gain * second,
            )
        )
        h_before = h
    return _table(rows)


def pad(steps: Steps, size: int = 128) -> Steps:
    """Appends unused rows, so that tables of any length share one compilation.

    Raises:
        ValueError: if the table is longer than `size`.
    """
    rows = len(steps.x)
    if rows > size:
        raise ValueError(
            f"size must be at least the {rows} rows of the table, got {size}."
        )
    columns = steps._replace(num=None)
    # The last row is repeated: padding must be finite even where it is never used.
    padded = jax.tree.map(
        lambda c: np.append(c, np.repeat(c[-1:], size - rows)), columns
    )
    return padded._replace(num=steps.num)


def row_below(steps: Steps, sigma: float | Array) -> Int[Array, ""]:
    """First row whose network call sees a noise level of at most `sigma`.

    Where to begin a warm start; the last row if all are noisier.
    """
    below = steps.level.noise / steps.level.signal <= sigma
    is_last = jnp.arange(below.size) >= steps.num - 1
    return jnp.argmax(below | is_last)


def _transition(level: Level, after: Level, eta: float) -> tuple[float, float, float]:
    """Coefficients (x, x0, noise) of one first-order step."""
    a, s, b, r = level.signal, level.noise, after.signal, after.noise
    variance = eta**2 * (r / s) ** 2 * max(s**2 - (a / b * r) ** 2, 0.0)
    x = np.sqrt(max(r**2 - variance, 0.0)) / s
    return x, b - a * x, np.sqrt(variance)


def _flow(levels, second_order, churn, churn_low, churn_high, churn_noise) -> Steps:
    if churn < 0:
        raise ValueError(f"churn must be at least 0, got {churn}.")
    if churn > 0 and not np.allclose(levels.signal, 1.0):
        raise ValueError(
            "churn needs a sigma schedule (karras or exponential), got one whose "
            "signal is not 1; use ancestral for noise on variance-preserving schedules."
        )
    nodes = _nodes(levels)
    most = min(churn / (len(nodes) - 1), np.sqrt(2) - 1)

    def raised(level: Level) -> Level:
        if churn == 0 or not churn_low <= level.noise <= churn_high:
            return level
        return sigma_level(np.float64(level.noise * (1 + most)))

    rows, level = [], raised(nodes[0])
    for after in nodes[1:]:
        up = after if after.noise == 0 else raised(after)
        noise = churn_noise * np.sqrt(max(up.noise**2 - after.noise**2, 0.0))
        noise = 0.0 if up is after else noise
        x, x0, _ = _transition(level, after, eta=0.0)
        if second_order and after.noise > 0:
            q = (after.noise / after.signal) / (level.noise / level.signal)
            k = after.signal * (1 - q) / (2 * q)
            first = _row(level, after, x, x0, 0.0)
            rows.append(first._replace(spread=0.0))
            rows.append(Steps(after, up, 1.0, k, -k, noise, first.spread, 1))
        else:
            rows.append(_row(level, up, x, x0, noise))
        level = up
    return _table(rows)


def _row(level, after, x, x0, noise, previous=0.0) -> Steps:
    spread = _transition(level, after, eta=1.0)[2]
    return Steps(level, after, x, x0, previous, noise, spread, 1)


def _nodes(levels: Level) -> list[Level]:
    """The levels from the noisiest to the cleanest, then the clean sample."""
    signal = np.asarray(levels.signal, np.float64)
    if not np.all(np.diff(levels.noise / signal) > 0):
        raise ValueError("levels must be ordered from the cleanest to the noisiest.")
    fields = [np.asarray(field, np.float64)[::-1] for field in levels]
    return [Level(*row) for row in zip(*fields, strict=True)] + [CLEAN]


def _table(rows: list[Steps]) -> Steps:
    table = jax.tree.map(lambda *c: np.asarray(c, np.float32), *rows)
    return table._replace(num=len(rows))
