"""Marks values whose derivative exists in forward mode only.

Reverse mode through a `while_loop` fails deep inside JAX with a message about loops.
An identity that refuses to be transposed comes first on the way back, and names the
remedy.
"""

from jax import tree
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxwm.types import PyTree

_mark = Primitive("forward_only")
_mark.def_impl(lambda x, *, message: x)
_mark.def_abstract_eval(lambda x, *, message: x)


def _refuse(cotangent, x, *, message):
    raise ValueError(message)


ad.deflinear2(_mark, _refuse)
batching.primitive_batchers[_mark] = lambda xs, axes, *, message: (
    _mark.bind(xs[0], message=message),
    axes[0],
)
mlir.register_lowering(_mark, lambda context, x, *, message: [x])


def forward_only(values: PyTree, message: str) -> PyTree:
    """The same values; taking their derivative in reverse mode raises `message`.

    Args:
        values: arrays.
        message: of the ValueError: what is not differentiable, and what to do.
    """
    return tree.map(lambda x: _mark.bind(x, message=message), values)
