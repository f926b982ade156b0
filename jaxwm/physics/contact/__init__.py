"""How bodies touch: interchangeable models of one step with contact.

Every model is a `Contact`: parameters of its own and `advance(system, params, state,
action, dt) -> State`. They answer one question differently: what happens where a gap
`phi(q)` closes. J_n and J_t are the Jacobians of gaps and slides, M the mass matrix.

| model | contact is | gradient | known defect |
|---|---|---|---|
| `compliant` | a spring and damper | of the force | stiff: wants small steps |
| `smoothed` | a spring that is felt before touch | of the force | acts at a distance |
| `impulse` | a jump of v after penetration | WRONG | forgets when it happened |
| `time_of_impact` | a jump of v when touching | exact | few bounces per step |
| `complementarity` | impulses that solve an LCP | implicit | forgets when, too |
| `position_based` | moves out of overlap | of the sweeps | stiffness by sweeps |
| `interior_point` | impulses on the central path | implicit, smooth | kappa biases |
| `straight_through` | one model's values | another model's | not of its own values |

Source: Newbury et al., "A Review of Differentiable Simulators", 2024, and Zhong et al.,
"Differentiable Physics Simulations with Contacts: Do They Have Correct Gradients w.r.t.
Position, Velocity and Control?", 2022. Shapes: Q coordinates, C contacts.
"""

from jaxwm.physics.contact.complementarity import complementarity, interior_point
from jaxwm.physics.contact.impact import collide, impulse, time_of_impact
from jaxwm.physics.contact.model import Contact, none
from jaxwm.physics.contact.penalty import compliant, smoothed
from jaxwm.physics.contact.position import position_based
from jaxwm.physics.contact.straight_through import straight_through

__all__ = [
    "Contact",
    "collide",
    "complementarity",
    "compliant",
    "impulse",
    "interior_point",
    "none",
    "position_based",
    "smoothed",
    "straight_through",
    "time_of_impact",
]
