"""Layers whose weights are functions of hyperparameters: a gated response Jacobian.

Source: MacKay et al., "Self-Tuning Networks: Bilevel Optimization of Hyperparameters
using Structured Best-Response Functions", ICLR 2019, and its reference code.
Shapes: U hyperparameters, I inputs, O output units or channels. A module reads ONE
example and ONE vector of hyperparameters; `jax.vmap` over both gives every example of
a batch its own weights at the price of one matrix product.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def _uniform(fan_in: int):
    """Uniform within 1 / sqrt(fan in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(
        key, shape, minval=-bound, maxval=bound
    )


class ResponseDense(nn.Module):
    """A dense layer and, to first order, how it answers to hyperparameters.

        y = e (x W + b) + (C_w u) * (x V) + (C_b u) * c

    with one gate per output unit: its row of the response Jacobian has rank one.
    """

    features: int  # O
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, " I"], u: Float[Array, " U"]
    ) -> Float[Array, " O"]:
        """Maps one example under its own hyperparameters."""
        shape, init = (x.shape[-1], self.features), _uniform(x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, ())  # e
        y = scale * (x @ self.param("kernel", init, shape))
        gates = _gates(self, u, self.features, 1 + self.use_bias)
        y = y + gates[0] * (x @ self.param("response_kernel", init, shape))
        if self.use_bias:
            y = y + scale * self.param("bias", init, shape[1:])
            y = y + gates[1] * self.param("response_bias", init, shape[1:])
        return y


class ResponseConv(nn.Module):
    """The same for a convolution over space with same padding; gates per channel."""

    features: int  # O
    kernel_size: Sequence[int]
    strides: int | Sequence[int] = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "*space I"], u: Float[Array, " U"]
    ) -> Float[Array, "*_ O"]:
        """Maps one example, channels last, under its own hyperparameters."""
        fan_in = math.prod(self.kernel_size) * x.shape[-1]
        init = _uniform(fan_in)
        convolve = lambda name: nn.Conv(
            self.features,
            self.kernel_size,
            self.strides,
            use_bias=False,
            kernel_init=lambda key, shape, dtype: init(key, shape).astype(dtype),
            name=name,
        )(x)
        gates = _gates(self, u, self.features, 2)
        scale = self.param("scale", nn.initializers.ones, ())
        bias = self.param("bias", init, (self.features,))
        response_bias = self.param("response_bias", init, (self.features,))
        y = scale * (convolve("kernel") + bias)
        return y + gates[0] * convolve("response_kernel") + gates[1] * response_bias


def _gates(module: nn.Module, u: Array, features: int, num: int) -> Array:
    """`C u`, one row of gates per thing gated, `[num, O]`."""
    if u.ndim != 1 or u.size == 0:
        raise ValueError(
            f"u must be a vector of at least one hyperparameter, got {u.shape}; "
            "`jax.vmap` adds the batch."
        )
    normal = nn.initializers.normal(0.01)
    return (u @ module.param("gate", normal, (u.size, num * features))).reshape(num, -1)


def dropout(
    key: Key[Array, ""], x: Float[Array, "..."], rate: Float[Array, ""]
) -> Float[Array, "..."]:
    """Inverted dropout at a traced rate, clipped to [0, 0.95].

    `nn.Dropout` takes a Python float, the same for a whole batch. No gradient reaches
    the rate through the mask.
    """
    keep = 1 - jnp.clip(jax.lax.stop_gradient(rate), 0.0, 0.95)
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)
