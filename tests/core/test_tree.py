"""Trees whose leaves have the types that are said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import tree


@pytest.mark.parametrize("double", [False, True])
def test_floats_get_the_usual_precision_and_nothing_else_changes(double):
    leaves = {
        "declared": np.zeros(2, np.float32),
        "simulated": np.ones(2, np.float64),
        "image": np.zeros((2, 2, 3), np.uint8),
        "flag": np.array(True),
    }
    with jax.enable_x64(double):
        found = jax.jit(tree.usual_floats)(leaves)
    usual = jnp.float64 if double else jnp.float32
    assert found["declared"].dtype == found["simulated"].dtype == usual
    assert found["image"].dtype == jnp.uint8 and found["flag"].dtype == bool
