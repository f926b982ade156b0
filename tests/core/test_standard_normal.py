"""Standard normal draws: the library's, closer to the exact value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxwm.core import dists


@pytest.fixture(scope="module")
def draws():
    key = lambda: jax.random.key(3)  # the same bits three times
    shape = (1 << 20,)
    least = np.nextafter(np.float32(-1), np.float32(0))
    u = jax.random.uniform(key(), shape, jnp.float32, least, 1.0)
    exact = np.sqrt(2) * special.erfinv(np.asarray(u, np.float64))
    return dists.standard_normal(key(), shape), jax.random.normal(key(), shape), exact


def test_draws_are_the_librarys_but_for_rounding(draws):
    ours, library, _ = draws
    np.testing.assert_allclose(ours, library, atol=3e-5)


def test_draws_lie_within_a_millionth_of_the_exact_value(draws):
    ours, library, exact = draws
    assert np.abs(ours - exact).max() < 2e-6
    assert np.abs(ours - exact).max() < np.abs(library - exact).max()


def test_the_tails_are_there(draws):
    ours = np.asarray(draws[0])
    assert np.isfinite(ours).all()
    beyond = np.mean(np.abs(ours) > 4)
    assert beyond == pytest.approx(special.erfc(4 / np.sqrt(2)), rel=0.4)


def test_other_types_are_the_librarys():
    ours = dists.standard_normal(jax.random.key(0), (5,), jnp.bfloat16)
    library = jax.random.normal(jax.random.key(0), (5,), jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, library)
