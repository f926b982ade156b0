"""Trees are evaluated, counted and written right; a small law is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.physics import symbolic
from jaxwm.physics.symbolic import Tree

OPS = ("+", "*", "sin")
# (2 * sin(x)) + y: 7 nodes in 4 levels, 6 of them used
LAW = Tree(
    jnp.array([3, 4, 2, 0, 5, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
    jnp.array([0.0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
)


def test_a_tree_is_evaluated_counted_and_written(key):
    x = jax.random.normal(key, (10, 2))
    expected = 2 * jnp.sin(x[:, 0]) + x[:, 1]
    found = symbolic.evaluate(LAW, x, OPS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert symbolic.num_nodes(LAW, 2, OPS) == 6
    assert symbolic.expression(LAW, ("x", "y"), OPS) == "((2 * sin(x)) + y)"


@pytest.mark.slow
def test_a_law_is_found_with_its_constants(key):
    point_key, search_key = jax.random.split(key)
    x = jax.random.uniform(point_key, (60, 2), minval=-2.0, maxval=2.0)
    y = 3.0 * x[:, 0] + jnp.sin(x[:, 1])
    search = jax.jit(
        lambda key: symbolic.symbolic_regress(
            key, x, y, OPS, population=64, generations=25
        )
    )
    front = search(search_key)
    best = symbolic.knee(front)
    tree = jax.tree.map(lambda leaf: leaf[best], front.tree)
    assert best == symbolic.num_nodes(tree, 2, OPS)
    assert front.loss[best] < 1e-6
    far = jnp.array([[5.0, 4.0]])
    np.testing.assert_allclose(
        symbolic.evaluate(tree, far, OPS), 15 + np.sin(4.0), rtol=1e-3
    )


def test_wrong_settings_are_refused(key):
    x, y = jnp.ones((4, 1)), jnp.ones(4)
    with pytest.raises(ValueError, match=r"ops must be among .* got \['tan'\]"):
        symbolic.symbolic_regress(key, x, y, ("tan",))
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        symbolic.symbolic_regress(key, x, y, OPS, depth=1)
