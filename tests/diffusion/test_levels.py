"""Schedules of noise levels."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import diffusion

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "polygrad_reference.npz"


def test_the_cosine_schedule_equals_the_reference():
    with np.load(GOLDEN) as golden:
        schedule = diffusion.cosine_schedule(16, tau=0.1)
        wanted = golden["schedule/alphas_cumprod"]
        np.testing.assert_allclose(schedule.signal**2, wanted, atol=1e-7)


def test_the_small_last_term_of_the_cosine_is_kept():
    """Dropping f_T = cos(pi/2)^(2 tau) would move levels by up to 3.4e-4."""
    schedule = diffusion.cosine_schedule(128, tau=0.1)
    f = np.cos(np.arange(129) / 128 * np.pi / 2) ** 0.2
    off = np.abs(f[1:] / f[0] - schedule.signal**2)
    assert 3e-4 < off.max() < 4e-4


@settings(max_examples=20, deadline=None)
@given(num=st.integers(1, 60), tau=st.floats(0.05, 3.0))
def test_cosine_levels_get_noisier_and_keep_the_variance(num, tau):
    level = diffusion.cosine_schedule(num, tau)
    assert np.all(np.diff(level.signal) < 0)
    np.testing.assert_allclose(level.signal**2 + level.noise**2, 1.0)
    assert level.signal.dtype == np.float64


@pytest.mark.parametrize("make", [diffusion.karras, diffusion.exponential])
def test_sigma_schedules_run_between_their_ends(make):
    level = make(7, 0.01, 20.0)
    np.testing.assert_allclose(level.noise[[0, -1]], [0.01, 20.0])
    assert np.all(np.diff(level.noise) > 0)
    np.testing.assert_array_equal(level.signal, 1.0)
    np.testing.assert_allclose(level.time, np.log(level.noise) / 4)


def test_one_karras_level_is_the_noisiest():
    np.testing.assert_allclose(diffusion.karras(1, 0.01, 20.0).noise, [20.0])


def test_karras_is_even_in_the_root_and_exponential_in_the_logarithm():
    root = diffusion.karras(9, 0.01, 20.0, rho=5.0).noise ** (1 / 5)
    np.testing.assert_allclose(np.diff(root, 2), 0.0, atol=1e-12)
    log = np.log(diffusion.exponential(9, 0.01, 20.0).noise)
    np.testing.assert_allclose(np.diff(log, 2), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("calls", "index"), [(1, [15]), (2, [0, 15]), (4, [0, 5, 10, 15])]
)
def test_strides_keep_both_ends(calls, index):
    schedule = diffusion.cosine_schedule(16)
    np.testing.assert_array_equal(diffusion.stride(schedule, calls).time, index)


def test_snapping_gives_trained_levels_without_repeats():
    schedule = diffusion.cosine_schedule(32)
    snapped = diffusion.snap(schedule, diffusion.karras(24, 0.002, 80.0))
    assert set(snapped.time) <= set(schedule.time)
    assert 2 < len(snapped.time) < 24
    assert np.all(np.diff(snapped.time) > 0)


def test_noise_is_added_leaf_by_leaf():
    level = diffusion.Level(3.0, 0.6, 0.8)
    x = diffusion.add_noise(
        level,
        {"a": jnp.ones(2), "b": jnp.zeros(1)},
        {"a": jnp.ones(2), "b": jnp.ones(1)},
    )
    np.testing.assert_allclose(x["a"], 1.4, rtol=1e-6)
    np.testing.assert_allclose(x["b"], 0.8, rtol=1e-6)


def test_log_sigma_is_of_order_one_over_a_whole_schedule():
    level = jax.tree.map(jnp.asarray, diffusion.cosine_schedule(128))
    time = diffusion.log_sigma(level)
    assert jnp.max(jnp.abs(time)) < 2.5
    assert jnp.all(jnp.diff(time) > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffusion.cosine_schedule(0), "num must be at least 1"),
        (lambda: diffusion.cosine_schedule(4, tau=0.0), "tau must be positive"),
        (lambda: diffusion.karras(4, 0.0, 1.0), "0 < low < high"),
        (lambda: diffusion.karras(4, rho=0), "rho must be positive"),
        (lambda: diffusion.exponential(4, 2.0, 1.0), "0 < low < high"),
        (lambda: diffusion.stride(diffusion.cosine_schedule(8), 0), "calls .* got 0"),
        (
            lambda: diffusion.stride(diffusion.cosine_schedule(8), 9),
            "1 ... 8, .* got 9",
        ),
    ],
)
def test_levels_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
