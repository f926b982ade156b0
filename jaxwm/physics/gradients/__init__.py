"""Gradients of simulated objectives: several estimators, and whether to believe them.

Estimators share one signature, `(theta, key) -> GradEstimate`, and are made from an
objective `(theta, key) -> scalar`:

    first_order   E[∇f(θ + w)]: one backward pass per sample; blind to jumps of f
    zeroth_order  E[(f(θ + w) - f(θ - w)) w] / 2σ²: values only; noisy, unbiased
    alpha_order   the mixture of both that trusts the first while it agrees
    finite_difference, forward_mode   of f itself, for a few parameters

`check_gradient` reports on an objective, `check_rollout` on a simulation.
"""

from jaxwm.physics.gradients.estimators import (
    GradEstimate,
    alpha_order,
    finite_difference,
    first_order,
    forward_mode,
    zeroth_order,
)
from jaxwm.physics.gradients.report import (
    GradReport,
    RolloutReport,
    check_gradient,
    check_rollout,
)

__all__ = [
    "GradEstimate",
    "GradReport",
    "RolloutReport",
    "alpha_order",
    "check_gradient",
    "check_rollout",
    "finite_difference",
    "first_order",
    "forward_mode",
    "zeroth_order",
]
