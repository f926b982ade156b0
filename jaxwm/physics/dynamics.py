"""The contract of everything that is simulated and differentiated, and its rollout.

    x_{t+1} = step(params, x_t, u_t),   t = 0 ... T - 1

`params` holds what one may differentiate (masses, friction, stiffness, weights of a
network), `state` all that is Markov. Rigid bodies, material points, partial
differential equations and MuJoCo all fit. Shapes: T steps, A action, O observation.

Source: Newbury et al., "A Review of Differentiable Simulators", 2024; two-level
rematerialisation after Griewank, 1992; clipped adjoints after Pascanu et al., 2013.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params, PyTree


class Dynamics(NamedTuple):
    """A simulator: pure functions of ONE system; `jax.vmap` adds the batch."""

    init: Callable  # (key, params) -> state
    step: Callable  # (params, state, action [A]) -> state
    observe: Callable  # (params, state) -> obs [O]
    dt: float  # s, of one step
    action_size: int  # A; 0 where nothing acts
    params: Params  # defaults


class Path(NamedTuple):
    """What a rollout passed through."""

    state: PyTree  # [T, ...] after each step
    action: Float[Array, "T A"]


def rollout(
    dynamics: Dynamics,
    params: Params,
    state: PyTree,
    actions: Array | Callable,
    *,
    length: int | None = None,
    checkpoint: str | int = "none",
    truncate: int | None = None,
    grad_clip: float | None = None,
) -> tuple[PyTree, Path]:
    """Simulates T steps, differentiably wherever the step is.

    Args:
        dynamics: the simulator.
        params: as `dynamics.params`.
        state: where to start.
        actions: `[T, A]`, or a policy `obs [O] -> action [A]`, which needs `length`.
        length: T, for a policy; else None.
        checkpoint: what the backward pass keeps and what it computes again. `"none"`
            keeps everything: memory O(T). `"all"` keeps the states only. `"sqrt"` keeps
            the states at the ends of about sqrt(T) segments and everything of one
            segment: memory O(sqrt(T)) for one more forward pass. A whole number is the
            number of segments. Values and gradients are the same.
        truncate: cuts the gradient every so many steps (truncated back-propagation);
            values stay.
        grad_clip: largest norm of the state's cotangent after each step back; longer
            ones are shortened. Values stay.

    Returns:
        The last state, and the path.

    Raises:
        ValueError: for actions of another shape, a policy without `length`, an unknown
            `checkpoint`, segments that do not divide T, and limits that are not
            positive.
    """
    length = _length(dynamics, actions, length)
    if truncate is not None and truncate < 1:
        raise ValueError(f"truncate must be at least 1 step, got {truncate}.")
    if grad_clip is not None and not grad_clip > 0:
        raise ValueError(f"grad_clip must be positive, got {grad_clip}.")

    def body(state, t):
        if truncate is not None:
            cut = t % truncate == 0
            state = jax.tree.map(
                lambda x: jnp.where(cut, jax.lax.stop_gradient(x), x), state
            )
        if callable(actions):
            action = actions(dynamics.observe(params, state))
        else:
            action = actions[t]
        after = dynamics.step(params, state, action)
        if grad_clip is not None:
            after = clip_cotangent(after, grad_clip)
        return after, Path(after, action)

    return _scan(body, state, length, checkpoint)


def clip_cotangent(x: PyTree, limit: float) -> PyTree:
    """The identity, whose cotangent is scaled down to a norm of at most `limit`.

    A cotangent that is not finite becomes zero: what is behind it learns nothing from
    an exploded future, instead of NaN.
    """

    @jax.custom_vjp
    def identity(x):
        return x

    def forward(x):
        return x, None

    def backward(_, cotangent):
        leaves = [
            leaf
            for leaf in jax.tree.leaves(cotangent)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        squares = sum(jnp.sum(leaf**2) for leaf in leaves)
        finite = jnp.isfinite(squares)
        # Double where: the root at 0 has no slope, and this is differentiated no more.
        norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
        scale = jnp.minimum(1.0, limit / norm)

        def shorten(leaf):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            return jnp.where(finite, scale.astype(leaf.dtype) * leaf, 0.0)

        return (jax.tree.map(shorten, cotangent),)

    identity.defvjp(forward, backward)
    return identity(x)


def repeated(dynamics: Dynamics, num: int) -> Dynamics:
    """The same system with `num` steps per action, each of the old length."""
    if num < 1:
        raise ValueError(f"num must be at least 1 step per action, got {num}.")

    def step(params, state, action):
        body = lambda state, _: (dynamics.step(params, state, action), None)
        return jax.lax.scan(body, state, None, length=num)[0]

    return dynamics._replace(step=step, dt=num * dynamics.dt)


def _length(dynamics: Dynamics, actions, length: int | None) -> int:
    if callable(actions):
        if length is None or length < 1:
            raise ValueError(
                f"length must be given with a policy, at least 1 step, got {length}."
            )
        return length
    shape = jnp.shape(actions)
    if len(shape) != 2 or shape[1] != dynamics.action_size or not shape[0]:
        raise ValueError(
            f"actions must have the shape [T, {dynamics.action_size}] with T >= 1, got "
            f"{list(shape)}; a single action needs an axis of time in front."
        )
    if length is not None and length != shape[0]:
        raise ValueError(
            f"length must be the number of actions, {shape[0]}, or None, got {length}."
        )
    return shape[0]


def _scan(body: Callable, state: PyTree, length: int, checkpoint: str | int):
    """`lax.scan` over `range(length)` that keeps what `checkpoint` says."""
    steps = jnp.arange(length)
    if checkpoint == "none":
        return jax.lax.scan(body, state, steps)
    if checkpoint == "all":
        return jax.lax.scan(jax.checkpoint(body), state, steps)
    if checkpoint == "sqrt":
        size = math.isqrt(length)
    elif isinstance(checkpoint, int) and not isinstance(checkpoint, bool):
        if checkpoint < 1 or length % checkpoint:
            raise ValueError(
                f"checkpoint must divide the {length} steps, got {checkpoint} "
                'segments; "sqrt" takes any number of steps.'
            )
        size = length // checkpoint
    else:
        raise ValueError(
            'checkpoint must be "none", "all", "sqrt" or a number of segments, got '
            f"{checkpoint!r}."
        )

    @jax.checkpoint
    def segment(state, steps):
        return jax.lax.scan(body, state, steps)

    whole = length - length % size
    state, rows = jax.lax.scan(segment, state, steps[:whole].reshape(-1, size))
    rows = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), rows)
    if whole < length:
        state, rest = segment(state, steps[whole:])
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, rest)
    return state, rows
