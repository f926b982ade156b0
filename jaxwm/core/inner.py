"""Learning inside learning: gradient descent that can itself be differentiated.

    φ_0 = θ,   φ_{k+1} = φ_k - a ∇L(φ_k),   k = 0 ... K - 1

The derivative of φ_K by θ (and by a) goes through every step: Hessians of L enter, by
Hessian-vector products. Tasks are data: `jax.vmap` adapts many at once.

Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks", ICML 2017; learnt rates after Li et al., "Meta-SGD", 2017.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxwm.types import Params, PyTree


def inner_loop(
    loss: Callable,
    params: Params,
    steps: int,
    lr: PyTree,
    *,
    first_order: bool = False,
    checkpoint: bool = False,
) -> tuple[Params, Float[Array, " {steps}"]]:
    """Adapts parameters by gradient descent, differentiably.

    Args:
        loss: `params -> scalar`, twice differentiable.
        params: θ, where to start.
        steps: K, a Python int; 0 returns θ.
        lr: a, one number, or one per leaf in a tree like `params`; may be learnt.
        first_order: leaves the Hessians out (FOMAML): dφ_K/dθ is the identity.
        checkpoint: keeps only the φ_k for the backward pass and computes the rest
            again: memory no longer grows with the size of the data times K.

    Returns:
        φ_K, and the loss before each step.

    Raises:
        ValueError: if `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}.")
    shared = jax.tree.structure(lr) == jax.tree.structure(0)
    rates = jax.tree.map(lambda _: lr, params) if shared else lr

    def descend(phi, _):
        value, grads = jax.value_and_grad(loss)(phi)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        phi = jax.tree.map(
            lambda x, a, g: (x - a * g).astype(x.dtype), phi, rates, grads
        )
        return phi, value

    body = jax.checkpoint(descend) if checkpoint else descend
    return jax.lax.scan(body, params, None, length=steps)


def meta_loss(
    loss: Callable,
    params: Params,
    support: PyTree,
    query: PyTree,
    steps: int,
    lr: PyTree,
    **options,
) -> Float[Array, ""]:
    """Mean over tasks of the loss on `query` after adapting on `support`.

    Args:
        loss: `(params, data of one task) -> scalar`.
        params: θ, shared by all tasks.
        support: data to adapt on, leading axis tasks.
        query: other data of the same tasks.
        steps: K; with 0 this is plain multi-task training.
        lr: as in `inner_loop`.
        **options: of `inner_loop`.

    Raises:
        ValueError: if a leaf of `support` holds nothing.
    """
    if any(jnp.size(leaf) == 0 for leaf in jax.tree.leaves(support)):
        raise ValueError(
            "support must hold data to adapt on, got an empty leaf; steps=0 trains "
            "without adapting."
        )

    def one(support, query):
        phi, _ = inner_loop(lambda x: loss(x, support), params, steps, lr, **options)
        return loss(phi, query)

    return jnp.mean(jax.vmap(one)(support, query))
