"""Samplers as tables: parity, closed forms on Gaussian data, orders of convergence."""

import pathlib

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import diffusion
from jaxwm.diffusion import Level

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"


def run(steps, x):
    """Applies a table to Gaussian data in float64 on the host, without noise."""
    level = jax.tree.map(lambda c: np.asarray(c, np.float64), steps.level)
    before = 0.0
    for i in range(steps.num):
        x0 = gaussian.denoise(x, Level(*(c[i] for c in level)))
        x, before = (
            float(steps.x[i]) * x
            + float(steps.x0[i]) * x0
            + float(steps.previous[i]) * before,
            x0,
        )
    return x


def test_ancestral_coefficients_equal_the_reference():
    steps = diffusion.ancestral(diffusion.cosine_schedule(16, 0.1))
    with np.load(GOLDEN) as golden:
        for ours, name in (
            (steps.x0, "posterior_mean_coef1"),
            (steps.x, "posterior_mean_coef2"),
            (steps.spread**2, "posterior_variance"),
        ):
            np.testing.assert_allclose(
                ours[::-1], golden[f"schedule/{name}"], atol=1e-4
            )


@pytest.mark.parametrize("num", [1, 2, 5])
def test_every_sampler_ends_at_the_last_estimate_without_noise(num):
    levels = diffusion.karras(num, 0.05, 10.0)
    for make in (
        diffusion.ancestral,
        diffusion.ddim,
        diffusion.euler,
        diffusion.dpmpp_2m,
    ):
        steps = make(levels)
        assert steps.num == num
        assert steps.noise[-1] == 0
        np.testing.assert_allclose(
            [steps.x[-1], steps.x0[-1], steps.previous[-1]], [0, 1, 0], atol=1e-7
        )
    assert diffusion.heun(levels).num == 2 * num - 1


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (diffusion.ddim, 1),
        (diffusion.euler, 1),
        (diffusion.heun, 2),
        (diffusion.dpmpp_2m, 2),
    ],
)
def test_samplers_of_the_flow_converge_at_their_order(make, order):
    """Halving the steps in ln(sigma) divides the error by 2^order."""
    errors = []
    for num in (16, 32, 64):
        levels = diffusion.exponential(num, 1e-3, 20.0)
        exact = gaussian.flow_to_clean(31.0, Level(0, 1.0, 20.0))
        errors.append(abs(run(make(levels), 31.0) - exact))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.35)


def test_ddim_and_euler_are_one_sampler():
    levels = diffusion.karras(6)
    for a, b in zip(diffusion.ddim(levels), diffusion.euler(levels), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_samplers_do_not_depend_on_how_the_signal_is_scaled():
    """A variance-preserving run is the sigma run with every sample scaled."""
    vp = diffusion.stride(diffusion.cosine_schedule(64), 9)
    sigma = diffusion.sigma_level(vp.noise / vp.signal)
    for make in (diffusion.ancestral, diffusion.heun, diffusion.dpmpp_2m):
        x = 1.3 * vp.signal[-1]
        np.testing.assert_allclose(
            run(make(vp), x), run(make(sigma), 1.3), rtol=1e-4, err_msg=make.__name__
        )


def test_ancestral_noise_keeps_the_marginals_of_every_level():
    """With the exact denoiser the variance of each level is reproduced, at any N."""
    levels = diffusion.stride(diffusion.cosine_schedule(128), 128)
    steps = diffusion.ancestral(levels)
    variance = (levels.signal[-1] * gaussian.STD) ** 2 + levels.noise[-1] ** 2
    for i in range(steps.num):
        level = Level(*(c[i] for c in steps.level))
        gain = level.signal * gaussian.STD**2
        gain /= (level.signal * gaussian.STD) ** 2 + level.noise**2
        variance = (steps.x[i] + steps.x0[i] * gain) ** 2 * variance
        variance += steps.noise[i] ** 2
    # First order in the largest step of ln(sigma).
    np.testing.assert_allclose(np.sqrt(variance), gaussian.STD, rtol=0.05)


def test_the_sde_variant_adds_the_noise_it_removes():
    """Of a sample that is all noise, e^-2k is kept and 1 - e^-2h added: sigma'^2."""
    levels = diffusion.exponential(5, 0.1, 10.0)
    steps = diffusion.dpmpp_2m(levels, eta=1.0)
    sigma = levels.noise[::-1]
    kept = (steps.x[:-1] * sigma[:-1]) ** 2
    np.testing.assert_allclose(kept + steps.noise[:-1] ** 2, sigma[1:] ** 2, rtol=1e-5)


def test_churn_raises_the_level_and_adds_the_difference():
    levels = diffusion.karras(8, 0.01, 50.0)
    steps = diffusion.euler(levels, churn=4.0, churn_low=0.05, churn_high=10.0)
    sigma, wanted = steps.level.noise, levels.noise[::-1]
    inside = (wanted >= 0.05) & (wanted <= 10.0)
    assert 0 < inside.sum() < 8
    ratio = np.where(inside, 1 + min(4.0 / 8, np.sqrt(2) - 1), 1.0)
    np.testing.assert_allclose(sigma, wanted * ratio, rtol=1e-6)
    np.testing.assert_allclose(
        steps.noise[:-1] ** 2, (sigma**2 - wanted**2)[1:], rtol=1e-4, atol=1e-4
    )


def test_padding_changes_nothing_but_the_shape():
    steps = diffusion.heun(diffusion.karras(3))
    padded = diffusion.pad(steps, 9)
    assert padded.num == steps.num == 5
    assert padded.x.shape == padded.level.noise.shape == (9,)
    np.testing.assert_array_equal(padded.x[:5], steps.x)
    assert np.all(np.isfinite(jax.tree.leaves(padded)[0]))


def test_a_warm_start_finds_the_first_row_at_or_below_a_level():
    steps = diffusion.pad(diffusion.ddim(diffusion.karras(5, 0.1, 10.0)), 8)
    sigma = steps.level.noise[:5]
    assert diffusion.row_below(steps, 100.0) == 0
    assert diffusion.row_below(steps, float(sigma[2]) + 1e-6) == 2
    assert diffusion.row_below(steps, 1e-9) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda levels: diffusion.ancestral(levels, eta=1.5), "eta must be in"),
        (lambda levels: diffusion.dpmpp_2m(levels, eta=-1.0), "eta must be at least 0"),
        (
            lambda levels: diffusion.euler(levels, churn=-1.0),
            "churn must be at least 0",
        ),
        (
            lambda levels: diffusion.heun(levels, churn=1.0),
            "churn needs a sigma schedule",
        ),
        (
            lambda levels: diffusion.ddim(jax.tree.map(lambda c: c[::-1], levels)),
            "cleanest to the noisiest",
        ),
        (
            lambda levels: diffusion.pad(diffusion.ddim(levels), 3),
            "size must be at least the 8 rows",
        ),
    ],
)
def test_tables_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(diffusion.cosine_schedule(8))


def test_tables_are_finite_for_extreme_schedules():
    for tau in (0.05, 1.0, 3.0):
        for make in (diffusion.ancestral, diffusion.heun, diffusion.dpmpp_2m):
            steps = make(diffusion.cosine_schedule(128, tau))
            assert all(np.all(np.isfinite(c)) for c in jax.tree.leaves(steps))
    assert jnp.isfinite(diffusion.ddim(diffusion.karras(2, 1e-3, 1e3)).x).all()
