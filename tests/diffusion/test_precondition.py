"""Preconditionings: every network output stands for a clean sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.diffusion import Level

VP = Level(0.0, jnp.float32(0.6), jnp.float32(0.8))
SIGMA = Level(0.0, jnp.float32(1.0), jnp.float32(3.0))
X0, EPS = jnp.array([0.5, -2.0]), jnp.array([1.5, 0.3])


@pytest.mark.parametrize(
    ("scalings", "level", "output"),
    [
        (diffusion.predict_x0, VP, X0),
        (diffusion.predict_noise, VP, EPS),
        (diffusion.predict_noise, SIGMA, EPS),
        (diffusion.predict_velocity, VP, 0.6 * EPS - 0.8 * X0),
    ],
)
def test_a_perfect_output_gives_the_clean_sample(scalings, level, output):
    denoise = diffusion.denoiser(lambda z, level, cond: output, scalings)
    x = diffusion.add_noise(level, X0, EPS)
    np.testing.assert_allclose(denoise(x, level, None), X0, rtol=1e-5)


@pytest.mark.parametrize("level", [VP, SIGMA])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_edm_input_and_target_have_unit_variance(level, offset, key):
    """With data of the deviation it was told, and offset noise where it was told."""
    x0_key, eps_key, shift_key = jax.random.split(key, 3)
    x0 = 0.5 * jax.random.normal(x0_key, (200_000,))
    eps = jax.random.normal(eps_key, x0.shape)
    shift = level.signal * offset * jax.random.normal(shift_key, x0.shape)
    x = diffusion.add_noise(level, x0, eps) + shift
    skip, output, scale = diffusion.edm(0.5, offset)(level)
    np.testing.assert_allclose(jnp.std(scale * x), 1.0, atol=0.01)
    np.testing.assert_allclose(jnp.std((x0 - skip * x) / output), 1.0, atol=0.01)


def test_known_entries_enter_unscaled_and_come_out_exact():
    seen = []

    def network(z, level, cond):
        seen.append(z)
        return jnp.zeros_like(z)

    known = lambda x: x.at[0].set(7.0)
    denoise = diffusion.denoiser(network, diffusion.edm(1.0), known=known)
    out = denoise(jnp.array([1.0, 2.0]), SIGMA, None)
    assert seen[0][0] == 7.0
    np.testing.assert_allclose(seen[0][1], 2.0 / np.sqrt(10), rtol=1e-6)
    assert out[0] == 7.0


def test_samples_may_be_any_pytree():
    x = {"states": jnp.ones((3, 2)), "actions": jnp.ones(3)}
    network = lambda z, level, cond: jax.tree.map(lambda z: z * cond, z)
    out = diffusion.denoiser(network, diffusion.predict_velocity)(x, VP, 2.0)
    for leaf in jax.tree.leaves(out):
        np.testing.assert_allclose(leaf, 0.6 - 0.8 * 2.0, rtol=1e-5)


def test_impossible_data_scales_are_refused():
    with pytest.raises(
        ValueError, match="sigma_data must be positive and finite, got 0"
    ):
        diffusion.edm(0)
    with pytest.raises(
        ValueError, match="offset must be finite and at least 0, got -1"
    ):
        diffusion.edm(1.0, -1)
