"""Factors of variation of a MuJoCo model: which fields follow a factor, and how.

    field[i] = compiled[i] * Π_f (f / f_default) ** power + Σ_f slope * (f - f_default)

One table serves all engines: on the device the fields of `mjx.Model` are replaced, on
the host the rows of a `mujoco.batch.Batch` are rewritten. Shapes: F factors.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxwm.types import EnvSpec


class Edit(NamedTuple):
    """Entries of one model field that follow a factor."""

    field: str  # of MjModel, or "opt.gravity" and the like
    # Name of a body, joint, geom or actuator, or a number; None takes all rows.
    row: str | int | None = None
    column: int | slice = slice(None)
    power: float = 1.0
    slope: float = 0.0


class FieldEdits(NamedTuple):
    """All edits of one field; the factors' axis comes first."""

    field: str
    compiled: np.ndarray
    power: np.ndarray  # [F, *compiled.shape], 0 where a factor does not act
    slope: np.ndarray  # [F, *compiled.shape]


def resolve(
    model: Any, spec: EnvSpec, edits: Mapping[str, tuple[Edit, ...]]
) -> tuple[FieldEdits, ...]:
    """Looks up rows by name in a compiled `mujoco.MjModel`.

    Args:
        model: the compiled model.
        spec: its factors give the order F.
        edits: by factor name.

    Raises:
        ValueError: for edits of a factor that the spec does not have, a factor of the
            spec that nothing follows, scaling by a factor whose default is 0, and
            fields or rows that the model does not have.
    """
    names = [factor.name for factor in spec.factors]
    if set(names) != set(edits):
        raise ValueError(
            f"edits of {spec.name} must be given for the factors {sorted(names)}, "
            f"got {sorted(edits)}."
        )
    found = {}
    for f, factor in enumerate(spec.factors):
        for edit in edits[factor.name]:
            if edit.power and not factor.default:
                raise ValueError(
                    f"{edit.field} cannot scale with {factor.name}, whose default is "
                    "0; give `power=0` and a `slope`."
                )
            if edit.field not in found:
                compiled = _field(model, edit.field)
                blank = np.zeros((len(names), *compiled.shape), np.float32)
                found[edit.field] = FieldEdits(
                    edit.field, compiled.copy(), blank, blank.copy()
                )
            _, compiled, power, slope = found[edit.field]
            where = (f, _row(model, edit), edit.column)[: compiled.ndim + 1]
            power[where] += edit.power
            slope[where] += edit.slope
    return tuple(found.values())


def apply(
    edits: tuple[FieldEdits, ...], spec: EnvSpec, values: Float[ArrayLike, "*n F"]
) -> dict[str, Any]:
    """Fields of the model for one environment, or for many: `[*n, ...]` each.

    At the defaults they are exactly the compiled ones. NumPy in, NumPy out.
    """
    return {e.field: _follow(e, defaults(spec), values) for e in edits}


def varying(
    edits: tuple[FieldEdits, ...], spec: EnvSpec, params: Mapping[str, ArrayLike]
) -> tuple[FieldEdits, ...]:
    """The fields that can differ from the compiled ones.

    A factor given as a NumPy scalar equal to its default is known, while tracing, to
    change nothing: what only such factors act on stays a constant of the program.
    """
    acts = [
        not (isinstance(params[f.name], np.generic) and params[f.name] == default)
        for f, default in zip(spec.factors, defaults(spec), strict=True)
    ]
    return tuple(e for e in edits if (e.power[acts] != 0).any() or e.slope[acts].any())


def values(spec: EnvSpec, params: Mapping[str, ArrayLike]) -> Float[Array, " F"]:
    """The factors in the order of the spec."""
    rows = [jnp.asarray(params[f.name], jnp.float32) for f in spec.factors]
    return jnp.stack(rows) if rows else jnp.zeros(0)


def defaults(spec: EnvSpec) -> np.ndarray:
    """Defaults in the order of the spec, `[F]` float32."""
    return np.array([f.default for f in spec.factors], np.float32)


def _follow(edit: FieldEdits, default: np.ndarray, values):
    """The formula above, touching only what a factor acts on."""
    xp = np if isinstance(values, np.ndarray) else jnp
    last = (1,) * edit.compiled.ndim
    column = lambda f: values[..., f].reshape(*values.shape[:-1], *last)
    result = edit.compiled
    for f, power in enumerate(edit.power):
        for exponent in np.unique(power[power != 0]):
            # Whole exponents are products, which cost less than powers.
            whole = int(exponent) if exponent == int(exponent) else float(exponent)
            scale = (column(f) / default[f]) ** whole
            result = result * xp.where(power == exponent, scale, 1)
    for f, slope in enumerate(edit.slope):
        if slope.any():
            result = result + slope * (column(f) - default[f])
    return result


def _field(model, name: str) -> np.ndarray:
    holder, _, field = name.rpartition(".")
    found = getattr(model.opt if holder == "opt" else model, field, None)
    if not isinstance(found, np.ndarray):
        raise ValueError(f'"{name}" is not an array field of MjModel.')
    return found


def _row(model, edit: Edit):
    if not isinstance(edit.row, str):
        return slice(None) if edit.row is None else edit.row
    kind = edit.field.split("_")[0]
    try:
        if kind == "dof":
            joint = model.joint(edit.row)
            start = int(joint.dofadr[0])
            return slice(start, start + len(np.atleast_1d(joint.damping)))
        return getattr(model, {"jnt": "joint"}.get(kind, kind))(edit.row).id
    except (KeyError, AttributeError) as error:
        raise ValueError(f'{edit.field} has no row "{edit.row}".') from error
