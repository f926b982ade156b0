"""Generated weights: their form, their size, and that all of them can be moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import nn
from jaxwm.nn.hypernetwork import hypernetwork

NETWORK = nn.MLP((32, 3), activation="silu")
TARGET = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros(16))


@pytest.mark.parametrize("chunk", (None, 100))
def test_weights_have_the_target_s_form_and_differ_between_tasks(chunk, key):
    hyper = hypernetwork(TARGET, 4, (8,), chunk=chunk)
    assert hyper.num_weights == 16 * 32 + 32 + 32 * 3 + 3
    theta = hyper.init(key)
    made = hyper.generate(theta, jnp.array([1.0, 0.0, 0.0, 0.0]))
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert form(made) == form(TARGET)
    other = hyper.flat(theta, jnp.array([0.0, 1.0, 0.0, 0.0]))
    flat = hyper.flat(theta, jnp.array([1.0, 0.0, 0.0, 0.0]))
    assert np.abs(flat - other).max() > 1e-3
    leaves = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(made)])
    np.testing.assert_array_equal(leaves, flat)
    assert NETWORK.apply(made, jnp.ones(16)).shape == (3,)


def test_a_generated_network_starts_at_the_scale_of_a_drawn_one(key):
    """Kernels have a spread of about 1 / sqrt(fan-in), over embeddings."""
    theta_key, embedding_key = jax.random.split(key)
    hyper = hypernetwork(TARGET, 8, (64, 64))
    theta = hyper.init(theta_key)
    embeddings = jax.random.normal(embedding_key, (64, 8))
    made = jax.jit(jax.vmap(hyper.generate, (None, 0)))(theta, embeddings)
    for layer, fan_in in (("Dense_0", 16), ("Dense_1", 32)):
        spread = np.std(made["params"][layer]["kernel"]) * np.sqrt(fan_in)
        assert 0.3 < spread < 2.0


def test_every_weight_can_be_reached(key):
    """Least squares on the weights themselves goes to zero: no bias is forgotten."""
    hyper = hypernetwork({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, 2, (8,))
    wanted = jnp.linspace(-1.0, 1.0, 9)
    gap = lambda theta: jnp.sum((hyper.flat(theta, jnp.ones(2)) - wanted) ** 2)

    @jax.jit
    def descend(theta):
        step = lambda t, _: (
            jax.tree.map(lambda x, g: x - 0.1 * g, t, jax.grad(gap)(t)),
            None,
        )
        return gap(jax.lax.scan(step, theta, None, length=2000)[0])

    assert descend(hyper.init(key)) < 1e-4


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: hypernetwork({}, 2), "target must hold at least one weight"),
        (lambda: hypernetwork(TARGET, 0), "embedding_size must be at least 1, got 0"),
        (lambda: hypernetwork(TARGET, 2, chunk=0), "chunk must be at least 1"),
    ],
)
def test_targets_without_sense_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_an_embedding_of_another_size_is_refused(key):
    hyper = hypernetwork(TARGET, 4, (8,))
    theta = hyper.init(key)
    with pytest.raises(ValueError, match=r"embedding must have shape \(4,\)"):
        hyper.generate(theta, jnp.zeros(3))
