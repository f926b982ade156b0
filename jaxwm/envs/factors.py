"""Factors of variation: physical numbers that may differ between environments.

A task lists its factors in `spec.factors`. An instance carries their values in
`EnvState.params`, a dict of float32 scalars by name, so that a batch of environments
may have as many different bodies as it has rows. A factor whose unit is `"steps"` is a
whole number.
"""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxwm.types import Env, EnvSpec, Factor


def resolve(spec: EnvSpec, params: Mapping | None) -> dict[str, Float[Array, "..."]]:
    """The factors' values: defaults for None, otherwise exactly those given.

    Raises:
        ValueError: if a name is missing or unknown.
    """
    if params is None:
        params = spec.default_params()
    names = [f.name for f in spec.factors]
    for name in params:
        if name not in names:
            unknown("factor of variation", name, names, spec.name)
    missing = [name for name in names if name not in params]
    if missing:
        raise ValueError(
            f"params of {spec.name} must name every factor, {missing} missing; "
            "start from `env.spec.default_params()`."
        )
    return {name: jnp.asarray(params[name], jnp.float32) for name in names}


def ranges(spec: EnvSpec, factors: str | Mapping | None) -> dict[str, tuple]:
    """What randomisation draws from: `(low, high)` for every factor that varies.

    Args:
        spec: of the task.
        factors: None, nothing varies; `"range"`, everything over the ranges of the
            spec; or `{name: (low, high)}`, these factors only.

    Raises:
        ValueError: for an unknown name (with the closest one), a range that is not two
            ordered numbers, or values without physical sense: not finite, of a sign
            that the factor cannot have, or a fraction of a step.
    """
    if factors is None:
        return {}
    if isinstance(factors, str):
        if factors != "range":
            raise ValueError(
                f'factors must be None, "range" or {{name: (low, high)}}, '
                f'got "{factors}".'
            )
        return {f.name: (f.low, f.high) for f in spec.factors}
    chosen = {}
    for name, ends in factors.items():
        factor = _find(spec, name)
        if not isinstance(ends, Sequence) or len(ends) != 2:
            raise ValueError(
                f"the range of factor {name} must be (low, high), got {ends!r}; one "
                f"value for all is set by envs.fixed(env, {{{name!r}: value}})."
            )
        low, high = (_sensible(factor, end) for end in ends)
        if low > high:
            raise ValueError(
                f"the range of factor {name} must have low <= high, got {ends}."
            )
        chosen[name] = (low, high)
    return chosen


def sample(key: Key[Array, ""], spec: EnvSpec, ranges: Mapping) -> dict[str, Array]:
    """Draws the factors of one environment, uniformly and independently.

    Args:
        key: folded with the factor's position in the spec, so that fixing one factor
            does not change the draws of the others.
        spec: of the task.
        ranges: as returned by `ranges`; factors that are not in it keep their default.

    Returns:
        Float32 scalars by name; whole numbers, both ends included, for `"steps"`.
    """
    params = {}
    for i, factor in enumerate(spec.factors):
        if factor.name not in ranges:
            params[factor.name] = jnp.float32(factor.default)
            continue
        low, high = ranges[factor.name]
        factor_key = jax.random.fold_in(key, i)
        if factor.unit == "steps":
            value = jax.random.randint(factor_key, (), int(low), int(high) + 1)
        else:
            value = jax.random.uniform(factor_key, (), jnp.float32, low, high)
        params[factor.name] = value.astype(jnp.float32)
    return params


def fixed(env: Env, overrides: Mapping) -> Env:
    """The same environment with other defaults; a factor so fixed no longer varies.

    Args:
        env: any environment.
        overrides: `{name: value}`, in the units of the spec.

    Raises:
        ValueError: for an unknown name or a value without physical sense.
    """
    values = {
        name: _sensible(_find(env.spec, name), value)
        for name, value in overrides.items()
    }
    rows = tuple(
        f._replace(default=values[f.name], low=values[f.name], high=values[f.name])
        if f.name in values
        else f
        for f in env.spec.factors
    )
    spec = env.spec._replace(factors=rows)

    def reset(key, params=None):
        return env.reset(key, resolve(spec, params))

    def reset_to(physics, params=None):
        return env.reset_to(physics, resolve(spec, params))

    return env._replace(spec=spec, reset=reset, reset_to=reset_to)


def unknown(what: str, name: str, names: Iterable[str], where: str = "") -> NoReturn:
    """Raises the error for a name that does not exist, naming the closest ones."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    of = f" of {where}" if where else ""
    known = ", ".join(names) or "none"
    raise ValueError(f'unknown {what}{of}: "{name}"; {hint}Known: {known}.')


def _find(spec: EnvSpec, name: str) -> Factor:
    for factor in spec.factors:
        if factor.name == name:
            return factor
    unknown("factor of variation", name, [f.name for f in spec.factors], spec.name)


def _sensible(factor: Factor, value: object) -> float:
    """The value, if a body can have it: the range of the spec tells the sign."""
    what = f"factor {factor.name} ({factor.unit})"
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{what} must be a number, got {value!r}.")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {value}.")
    if factor.low > 0 and value <= 0:
        raise ValueError(f"{what} must be positive, got {value}.")
    if factor.low >= 0 and value < 0:
        raise ValueError(f"{what} must not be negative, got {value}.")
    if factor.unit == "steps" and (value != round(value) or value > factor.high):
        raise ValueError(
            f"{what} must be a whole number up to {factor.high:g}, got {value}."
        )
    return value
