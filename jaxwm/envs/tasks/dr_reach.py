"""Reach a goal with a point mass, seen as its state or in images of random looks.

    v' = (1 - drag) v + gain a dt,   x' = clip(x + v' dt, -1, 1),   dt = 0.1 s

A wall takes the speed across it. The reward is that of the state reached,
`exp(-|x' - goal|^2 / (2 0.3^2))`. The arena is 2 m wide; start and goal are uniform in
the inner 1.6 m, at rest; an episode has 20 steps. Success: the last position lies in
the goal's ring, 0.25 m.

`paint` shows a state under a `Domain`, how the world looks: colours of the background,
hues of agent and goal, brightness, the camera's shift, blobs that distract and noise of
the pixels. It is a pure, smooth function of both, without a key. The agent is a disc,
the goal a ring, the arena has an outline, so that the image says where things are.
`TRAINING` and `HELD_OUT` are families of domains that do not overlap.

Source: domain randomisation after Tobin et al., "Domain Randomization for Transferring
Deep Neural Networks from Simulation to the Real World", IROS 2017; the task is ours.
Shapes: S pixels a side, D blobs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from jaxwm.envs import tasks
from jaxwm.types import Box, Env, EnvSpec, Factor

DT = 0.1  # s
RADIUS = 0.25  # m, of the goal
NEAR = 0.3  # m, within which a state earns most
SIDE = 24  # S
MOST_BLOBS = 5  # D
_SCALE = 9.0  # pixels per metre: the arena leaves room for shifts of 3 pixels
_SOFT = 0.4  # pixels over which edges fade


class Reach(NamedTuple):
    """Physics: all that is Markov."""

    x: Float[Array, "2"]  # m from the middle
    v: Float[Array, "2"]  # m/s
    goal: Float[Array, "2"]  # m


class Domain(NamedTuple):
    """How the world looks; colours in [0, 1]."""

    background: Float[Array, "2 3"]  # colours at the two ends of a gradient
    slope: Float[Array, "2"]  # direction of the gradient, unit length
    agent: Float[Array, "3"]
    goal: Float[Array, "3"]
    brightness: Float[Array, ""]
    shift: Float[Array, "2"]  # pixels
    blobs: Float[Array, "D 2"]  # m
    blob_radius: Float[Array, " D"]  # m, 0 where there is none
    blob_colour: Float[Array, "D 3"]
    noise: Float[Array, ""]  # standard deviation of a pixel at brightness 1
    grain: Float[Array, ""]  # which noise


class Looks(NamedTuple):
    """A family of domains: what `draw_domain` draws from, uniformly."""

    hue: tuple[float, float]  # of the background, in turns
    brightness: tuple[tuple[float, float], ...]  # one interval is chosen first
    blobs: tuple[int, int]  # fewest and most
    shift: float = 3.0  # pixels, largest
    jitter: float = 0.05  # of the hues of agent and goal, in turns
    noise: float = 0.05  # largest


TRAINING = Looks(hue=(0.45, 1.15), brightness=((0.5, 1.5),), blobs=(0, 3))
HELD_OUT = Looks(
    hue=(0.2, 0.4), brightness=((0.3, 0.3), (1.8, 1.8)), blobs=(MOST_BLOBS, MOST_BLOBS)
)

FACTORS = (
    Factor("gain", 4.0, 3.0, 5.0, "m/s^2", "acceleration at action 1"),
    Factor("drag", 0.15, 0.05, 0.25, "1", "share of the speed lost per step"),
)

SPEC = EnvSpec(
    name="dr_reach",
    obs=jax.ShapeDtypeStruct((6,), np.dtype("float32")),
    action=Box((-1.0, -1.0), (1.0, 1.0)),
    control_dt=DT,
    time_limit=20,
    factors=FACTORS,
    random_return=2.66,
    best_return=16.33,
    doc="Bring a point mass to a goal in the plane. Best return: a proportional and "
    "derivative controller, 12 (goal - x) - 1.5 v, mean of 1000 episodes.",
)


def dr_reach() -> Env:
    """Reach as a state: observation (x, v, goal), `[6]`. Never terminates."""
    return tasks.assemble(SPEC, _start, _advance, _observe)


def in_images(looks: Looks = TRAINING) -> Env:
    """Reach in images: observation `[S, S, 3]` uint8, a domain per episode.

    Physics is `(Reach, Domain)`; the domain stays what it was drawn to at the reset.
    """
    spec = SPEC._replace(
        name="dr_reach in images",
        obs=jax.ShapeDtypeStruct((SIDE, SIDE, 3), np.dtype("uint8")),
    )

    def start(key, params):
        body_key, domain_key = jax.random.split(key)
        return _start(body_key, params), draw_domain(domain_key, looks)

    def advance(key, physics, params, action):
        body, reward, discount = _advance(key, physics[0], params, action)
        return (body, physics[1]), reward, discount

    return tasks.assemble(spec, start, advance, lambda p, params: as_bytes(paint(*p)))


def succeeded(state: Reach) -> Array:
    """Whether the position lies inside the goal's ring."""
    return jnp.sum((state.x - state.goal) ** 2) < RADIUS**2


def draw_domain(key: Key[Array, ""], looks: Looks) -> Domain:
    """A domain of a family."""
    keys = iter(jax.random.split(key, 17))

    def uniform(low, high, shape=()):
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    angle = uniform(0.0, 2 * jnp.pi)
    intervals = jnp.asarray(looks.brightness)
    low, high = intervals[jax.random.randint(next(keys), (), 0, len(intervals))]
    fewest, most = looks.blobs
    num = jax.random.randint(next(keys), (), fewest, most + 1)
    background = _rgb(
        uniform(*looks.hue, (2,)), uniform(0.2, 0.8, (2,)), uniform(0.2, 0.5, (2,))
    )
    one = jnp.ones(())
    jitter = looks.jitter
    return Domain(
        background=background,
        slope=jnp.stack([jnp.cos(angle), jnp.sin(angle)]),
        agent=_rgb(uniform(-jitter, jitter), 0.9 * one, 0.8 * one),
        goal=_rgb(0.16 + uniform(-jitter, jitter), 0.7 * one, 0.9 * one),
        brightness=uniform(low, high),
        shift=uniform(-looks.shift, looks.shift, (2,)),
        blobs=uniform(-1.0, 1.0, (MOST_BLOBS, 2)),
        blob_radius=uniform(0.08, 0.2, (MOST_BLOBS,)) * (jnp.arange(MOST_BLOBS) < num),
        # Neither the agent's red nor the goal's yellow.
        blob_colour=_rgb(
            uniform(0.3, 0.85, (MOST_BLOBS,)),
            uniform(0.3, 0.9, (MOST_BLOBS,)),
            uniform(0.3, 0.8, (MOST_BLOBS,)),
        ),
        noise=uniform(0.0, looks.noise),
        grain=uniform(0.0, 10.0),
    )


def plain() -> Domain:
    """The look without randomisation."""
    grey, zero = jnp.full((2, 3), 0.3), jnp.zeros(())
    red, yellow, full = (jnp.float32(v) for v in (0.0, 0.16, 0.9))
    return Domain(
        background=grey,
        slope=jnp.array([1.0, 0.0]),
        agent=_rgb(red, full, jnp.float32(0.8)),
        goal=_rgb(yellow, jnp.float32(0.7), full),
        brightness=jnp.ones(()),
        shift=jnp.zeros(2),
        blobs=jnp.zeros((MOST_BLOBS, 2)),
        blob_radius=jnp.zeros(MOST_BLOBS),
        blob_colour=jnp.zeros((MOST_BLOBS, 3)),
        noise=zero,
        grain=zero,
    )


def paint(state: Reach, domain: Domain) -> Float[Array, "S S 3"]:
    """The image of a state in a domain, values in [0, 1]; smooth in both."""
    middle = (SIDE - 1) / 2
    line = jnp.arange(SIDE, dtype=jnp.float32)
    # Row 0 is the top; positions in metres, seen by a camera that is shifted.
    across = (line - middle - domain.shift[0]) / _SCALE
    up = -(line - middle - domain.shift[1]) / _SCALE
    along = 0.5 + 0.35 * (
        across[None, :] * domain.slope[0] + up[:, None] * domain.slope[1]
    )
    low, high = domain.background
    image = low + jnp.clip(along, 0, 1)[..., None] * (high - low)

    def distance(centre):
        square = (across - centre[0])[None, :] ** 2 + (up - centre[1])[:, None] ** 2
        return jnp.sqrt(square + 1e-6)

    def inside(depth):
        """1 where `depth` (m) is positive, fading over the edge."""
        return jax.nn.sigmoid(depth * _SCALE / _SOFT)

    def over(image, cover, colour):
        return image + cover[..., None] * (colour - image)

    border = jnp.maximum(jnp.abs(across)[None, :], jnp.abs(up)[:, None])
    image = over(image, 0.7 * inside(0.06 - jnp.abs(border - 1.05)), jnp.zeros(3))
    for i in range(MOST_BLOBS):
        there = domain.blob_radius[i] > 0
        blob = inside(domain.blob_radius[i] - distance(domain.blobs[i]))
        image = over(image, there * blob, domain.blob_colour[i])
    ring = 0.07 - jnp.abs(distance(state.goal) - RADIUS)
    image = over(image, inside(ring), domain.goal)
    image = over(image, inside(0.14 - distance(state.x)), domain.agent)
    image = image + domain.noise * _grain(state, domain.grain)
    return jnp.clip(domain.brightness * image, 0.0, 1.0)


def as_bytes(image: Float[Array, "*B S S 3"]) -> UInt8[Array, "*B S S 3"]:
    """Values in [0, 1] as uint8."""
    return jnp.round(255 * image).astype(jnp.uint8)


def _grain(state: Reach, which: Array) -> Float[Array, "S S 3"]:
    """Noise of unit variance that looks new whenever the agent moves.

    Every pixel and colour is a sine of its own phase and frequency: a function, so
    images are reproducible from state and domain. No derivative flows through it.
    """
    draw = np.random.default_rng(0)
    phase = draw.uniform(0, 2 * np.pi, (SIDE, SIDE, 3)).astype(np.float32)
    frequency = draw.uniform(20, 60, (SIDE, SIDE, 3)).astype(np.float32)
    moved = jax.lax.stop_gradient(state.x[0] * 17.3 + state.x[1] * 31.7)
    return np.float32(np.sqrt(2)) * jnp.sin(phase + frequency * (which + moved))


def _rgb(hue: Array, saturation: Array, value: Array) -> Float[Array, "*B 3"]:
    """Red, green and blue of a hue in turns."""
    wheel = jnp.abs((hue[..., None] + jnp.array([0.0, 2 / 3, 1 / 3])) % 1.0 * 6 - 3) - 1
    pure = jnp.clip(wheel, 0, 1)
    return value[..., None] * (1 - saturation[..., None] * (1 - pure))


def _start(key, params):
    del params  # starts do not depend on the factors
    x, goal = jax.random.uniform(key, (2, 2), minval=-0.8, maxval=0.8)
    return Reach(x, jnp.zeros(2), goal)


def _advance(key, physics, params, action):
    del key  # deterministic
    v = (1 - params["drag"]) * physics.v + params["gain"] * DT * action
    x = physics.x + DT * v
    v = jnp.where(jnp.abs(x) > 1, 0.0, v)
    after = Reach(jnp.clip(x, -1, 1), v, physics.goal)
    square = jnp.sum((after.x - after.goal) ** 2)
    return after, jnp.exp(-0.5 * square / NEAR**2), 1.0


def _observe(physics, params):
    del params
    return jnp.concatenate([physics.x, physics.v, physics.goal])
