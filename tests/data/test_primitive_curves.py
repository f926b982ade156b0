"""Curves of primitives: closed, switched by the chain, and read back from the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.data.primitive_curves import (
    CHAIN,
    chain_distance,
    primitive_curves,
    switches,
)


def test_switches_follow_the_chain_and_can_be_read_off_the_curve(key):
    x, kind = primitive_curves(key, 60, 240)
    assert x.shape == (60, 240, 2)
    counts = jnp.sum(jax.vmap(switches)(x), 0)
    p = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(p, CHAIN, atol=0.06)
    assert chain_distance(counts) < 0.05
    changes = jnp.sum(kind[:, 1:] != kind[:, :-1])  # some 20 a curve, cut at its ends
    assert 0.9 < counts.sum() / changes < 1


def test_a_primitive_is_closed_and_leans_in_its_direction(key):
    x, kind = primitive_curves(key, 20, 48, noise=0.0, phase=(0.0, 0.01))
    np.testing.assert_allclose(x[:, ::12], 0, atol=1e-6)  # all start at the origin
    top = x[:, 6::12]  # half way along
    angle = 2 * np.pi * kind[:, 6::12] / 3
    expected = np.stack([np.cos(angle), np.sin(angle)], -1)
    np.testing.assert_allclose(top, expected, atol=1e-6)


def test_the_phase_of_the_first_step_stays_in_its_range(key):
    early, _ = primitive_curves(key, 200, 2, noise=0.0, phase=(0.0, 0.5))
    late, _ = primitive_curves(
        jax.random.clone(key), 200, 2, noise=0.0, phase=(0.5, 1.0)
    )
    outwards = lambda x: (
        jnp.linalg.norm(x[:, 1], axis=-1) - jnp.linalg.norm(x[:, 0], axis=-1)
    )
    assert (outwards(early) > 0).all()
    assert (outwards(late) < 0).all()


def test_the_distance_of_chains_knows_its_ends():
    assert chain_distance(10 * jnp.asarray(CHAIN)) < 1e-6
    assert chain_distance(jnp.zeros((3, 3))) == 1
    np.testing.assert_allclose(chain_distance(jnp.eye(3)), 1)  # always the same again
    certain = jnp.roll(jnp.eye(3), 1, 1)
    np.testing.assert_allclose(chain_distance(certain), 0.3, rtol=1e-6)


def test_what_is_no_curve_is_refused(key):
    with pytest.raises(ValueError, match="period must be at least 4 steps, got 3"):
        primitive_curves(key, 2, 10, period=3)
    with pytest.raises(ValueError, match="phase must be a range within"):
        primitive_curves(key, 2, 10, phase=(0.5, 0.5))
    with pytest.raises(ValueError, match="chain must have 2 rows of 2 probabilities"):
        primitive_curves(key, 2, 10, chain=((0.5, 0.5), (0.9, 0.2)))
