"""Our steppers beside what others would use: diffrax for equations, numpy for MPM.

Both sides start from the same state, take the same steps of the same scheme and must
end in the same place, or the row fails.
"""

from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import numpy_mpm, peer
from benchmarks.measure import (
    Settings,
    compare,
    jitted,
    stopwatch,
    time_function,
)
from benchmarks.record import Row, timed_row
from jaxwm.physics import bodies, contact, integrate, mpm, rigid, rollout

RK4 = dict(  # the classical scheme as a tableau
    a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    b_sol=np.array([1, 2, 2, 1]) / 6,
    b_error=np.zeros(4),
    c=np.array([0.5, 0.5, 1.0]),
)


def rows(settings: Settings) -> Iterator[Row]:
    yield ode(settings)
    yield material_points(settings)


def same(ours, theirs, tolerance: float) -> None:
    """Refuses to compare the speed of things that differ."""
    off = float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))))
    if not off < tolerance:
        raise RuntimeError(f"both sides should end in one place, are {off:.2g} apart.")


def ode(settings: Settings) -> Row:
    """Cart-poles by Runge and Kutta's fourth-order scheme, fixed steps."""
    batch, length, dt = settings.pick(64, 2), settings.pick(200, 4), 0.01
    cartpole = bodies.cartpole()
    dynamics = rigid(cartpole, contact.none(integrate.runge_kutta_4), dt=dt)
    params = jax.tree.map(jnp.float32, dynamics.params)
    angles = jnp.linspace(0.5, 3.0, batch)
    start = bodies.State(jnp.stack([0 * angles, angles], 1), jnp.zeros((batch, 2)))

    def ours(key, params, start):
        del key
        still = jnp.zeros((length, 1))
        one = lambda state: rollout(dynamics, params, state, still)[0]
        return jax.vmap(one)(start)

    timing = time_function(ours, params, start, settings=settings)
    more = dict(note=peer.missing("diffrax"))
    if not more["note"]:
        theirs = diffrax_rk4(cartpole, length, dt)
        key = jax.random.key(0)
        ends = [jax.jit(f)(key, params, start) for f in (ours, theirs)]
        same(ends[0].q, ends[1].q, 1e-2)
        ratio = compare(
            stopwatch(jitted(ours, params, start)),
            stopwatch(jitted(theirs, params, start)),
            name=f"diffrax {metadata.version('diffrax')}",
            settings=settings,
        )
        more = dict(ratio=ratio, target=1.0)
    size = f"{batch} cart-poles, {length} steps"
    return timed_row(
        "simulators/runge_kutta_4", size, batch * length, "steps/s", timing, **more
    )


def diffrax_rk4(system, length: int, dt: float):
    """The same motion by diffrax, steps of constant size."""
    import diffrax

    class Classical(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(**RK4)
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 4

    def field(t, state, params):
        del t
        q, v = state
        return bodies.State(
            v, bodies.acceleration(system, params, q, v, jnp.zeros(system.action_size))
        )

    def one(params, state):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            Classical(),
            0.0,
            length * dt,
            dt,
            state,
            params,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.ConstantStepSize(),
            max_steps=length + 8,
        ).ys

    def solve(key, params, start):
        del key
        ends = jax.vmap(one, (None, 0))(params, start)
        return jax.tree.map(lambda x: x[:, -1], ends)

    return solve


def material_points(settings: Settings) -> Row:
    """A block of jelly thrown into a corner, 2-D."""
    side, cells = settings.pick(32, 4), settings.pick(64, 16)
    length, dt = settings.pick(100, 4), 2e-4
    body = mpm.moving(mpm.block((0.5, 0.3), (0.3, 0.3), (side, side)), (1.0, -2.0), 2.0)
    law = mpm.elasticity.corotated()
    dynamics = mpm.mpm(body, law, cells=cells, dt=dt)
    start = dynamics.init(jax.random.key(0), dynamics.params)

    def ours(key, start):
        del key
        return rollout(dynamics, dynamics.params, start, jnp.zeros((length, 0)))[0]

    timing = time_function(ours, start, settings=settings)
    mu, la = numpy_mpm.lame(**law.params)
    known = dict(mu=mu, la=la, cells=cells, dt=dt)
    known |= dict(
        mass=dynamics.params["density"] * body.volume,
        volume=body.volume,
        gravity=dynamics.params["gravity"],
    )
    known, first = jax.device_get((known, tuple(start)))
    theirs = lambda: numpy_mpm.simulate(first, length, **known)
    mine = jax.jit(ours)(jax.random.key(0), start)
    same(mine.x, theirs()[0], 1e-4)
    same(mine.F, theirs()[3], 1e-2)
    ratio = compare(
        stopwatch(jitted(ours, start)),
        stopwatch(theirs),
        name=f"numpy {np.__version__}",
        settings=settings,
    )
    num = side**2
    return timed_row(
        "simulators/mpm_2d",
        f"{num} particles, {cells} cells, {length} steps",
        num * length,
        "particle steps/s",
        timing,
        ratio=ratio,
        target=1.0,
    )
