"""Reinforcement-learning maths on arrays: returns, losses, trust region, guidance."""

from jaxwm.rl.guidance import action_spread, update_guidance
from jaxwm.rl.losses import (
    actor_loss,
    clipped_gain,
    clipped_value_loss,
    normalise_advantage,
    policy_gain,
    value_loss,
)
from jaxwm.rl.returns import (
    VTrace,
    discounted_returns,
    gae,
    lambda_returns,
    survival,
    vtrace,
)
from jaxwm.rl.trust_region import TrustRegion, trust_region, trust_region_step

__all__ = [
    "TrustRegion",
    "VTrace",
    "action_spread",
    "actor_loss",
    "clipped_gain",
    "clipped_value_loss",
    "discounted_returns",
    "gae",
    "lambda_returns",
    "normalise_advantage",
    "policy_gain",
    "survival",
    "trust_region",
    "trust_region_step",
    "update_guidance",
    "value_loss",
    "vtrace",
]
