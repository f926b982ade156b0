"""Values that can be differentiated forwards and say why not backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics.forward_only import forward_only


def cube(x):
    """x ** 3 by a loop that has no reverse mode."""
    keep = lambda carry: carry[1] < 3
    value, _ = jax.lax.while_loop(
        keep, lambda c: (c[0] * x, c[1] + 1), (1.0 + 0 * x, 0)
    )
    return forward_only(value, "use another engine")


def test_values_and_forward_derivatives_pass():
    x = jnp.arange(3.0)
    np.testing.assert_allclose(jax.jit(jax.vmap(cube))(x), x**3)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(cube))(x), 3 * x**2)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_reverse_mode_is_refused_with_the_remedy(wrap):
    def twice(x):
        return jax.lax.scan(lambda c, _: (cube(c), None), x, None, length=2)[0]

    with pytest.raises(ValueError, match="use another engine"):
        jax.grad(wrap(twice))(1.5)
