"""Questions asked of settings and world models, so that a mismatch says who and what.

Source of the list of abilities: `ModelSpec.abilities`.
"""

import dataclasses
import math

from jaxwm.types import WorldModel

ABILITIES = {
    "reward": "imagines rewards",
    "discount": "imagines terminations",
    "policy": "imagines under a policy",
    "actions": "imagines under given actions",
    "gradient": "its rollouts can be differentiated by actions and start",
    "decode": "its rollouts hold observations",
    "graph": 'returns the graph it used, info["graph"]',
    "log_prob": 'returns log-densities of its draws in raw units, info["log_prob"]',
    "stochastic": "draws from a distribution over futures, also for given actions",
}


def finite(config: object) -> None:
    """Raises where a number among a config's fields is NaN or infinite.

    NaN fails no comparison like `x <= 0`, and would be found a training run later.

    Args:
        config: a dataclass; numbers in tuples count as well.

    Raises:
        ValueError: naming the field.
    """
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{field.name} must be finite, got {value}.")


def at_least(least: float, config: object, *names: str) -> None:
    """Raises where one of these fields of a config is below `least`.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        if not getattr(config, name) >= least:
            raise ValueError(
                f"{name} must be at least {least}, got {getattr(config, name)}."
            )


def positive(config: object, *names: str) -> None:
    """Raises where one of these fields of a config is not above 0.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}.")


def fraction(config: object, *names: str) -> None:
    """Raises where one of these fields of a config is not within 0 and 1.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}.")


def require(model: WorldModel, *abilities: str, who: str) -> None:
    """Raises unless the model has every ability named.

    Args:
        model: any world model.
        *abilities: keys of `ABILITIES`.
        who: asks, e.g. "imagination agent"; named in the message.

    Raises:
        ValueError: naming who needs what and which model lacks it; also for an ability
            that does not exist.
    """
    unknown = [ability for ability in abilities if ability not in ABILITIES]
    if unknown:
        raise ValueError(
            f"abilities must be among {', '.join(ABILITIES)}, got "
            f"{', '.join(unknown)}; {who} asks for something no model declares."
        )
    missing = [ability for ability in abilities if ability not in model.spec.abilities]
    if missing:
        lacks = "; ".join(f"{name} ({ABILITIES[name]})" for name in missing)
        has = ", ".join(sorted(model.spec.abilities)) or "nothing"
        raise ValueError(
            f"{who} needs {', '.join(missing)}, which the {model.spec.name} lacks: "
            f"{lacks}. It has {has}; choose another world model"
            + (" or add a known one by with_reward." if "reward" in missing else ".")
        )
