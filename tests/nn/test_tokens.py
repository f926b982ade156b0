"""Tokenisers against their closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.nn import tokens


def test_a_scalar_moves_by_at_most_half_a_bin():
    tokenizer = tokens.ScalarTokenizer(bins=256, mu=100.0, limit=256.0)
    x = np.r_[np.linspace(-256, 256, 999), np.linspace(-1, 1, 999)].astype(np.float32)
    ids = tokenizer.encode(jnp.asarray(x))
    assert ids.min() == 0 and ids.max() == 255
    law = lambda x: np.sign(x) * np.log1p(100 * abs(x)) / np.log1p(25600)
    moved = abs(law(np.float64(tokenizer.decode(ids))) - law(np.float64(x)))
    assert moved.max() <= 1 / 256 + 1e-5
    assert np.array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    assert (np.diff(ids[:999]) >= 0).all()


def test_the_mu_law_has_its_closed_form_and_inverse():
    x = np.array([-256.0, -1.0, 0.0, 0.01, 256.0], np.float32)
    y = np.asarray(tokens.mu_law(jnp.asarray(x)))
    np.testing.assert_allclose(y[[0, 2, 4]], [-1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(y[3], np.log(2) / np.log(25601), rtol=1e-5)
    np.testing.assert_allclose(tokens.inverse_mu_law(jnp.asarray(y)), x, rtol=1e-4)


def test_what_lies_outside_is_clipped_and_counted():
    tokenizer = tokens.ScalarTokenizer(bins=16, limit=2.0)
    x = jnp.array([-5.0, 1.0, 3.0, np.nan])
    ids = tokenizer.encode(x)
    assert ids[0] == 0 and ids[2] == 15 and 0 <= ids[3] <= 15
    assert np.array_equal(tokenizer.clipped(x), [1, 0, 1, 0])


def test_each_dimension_of_a_box_has_its_own_bins():
    tokenizer = tokens.BoxTokenizer(low=(-1.0, 0.0), high=(1.0, 10.0), bins=4)
    x = np.array([[-1.0, 0.0], [0.1, 4.9], [1.0, 10.0], [9.0, -9.0]], np.float32)
    ids = tokenizer.encode(jnp.asarray(x))
    assert np.array_equal(ids, [[0, 0], [2, 1], [3, 3], [3, 0]])
    centres = np.asarray(tokenizer.decode(ids))
    np.testing.assert_allclose(centres[:2], [[-0.75, 1.25], [0.25, 3.75]])
    assert (abs(centres[:3] - x[:3]) <= [0.25, 1.25 + 1e-6]).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tokens.ScalarTokenizer(bins=1), "bins must be at least 2, got 1"),
        (lambda: tokens.ScalarTokenizer(mu=0.0), "mu must be positive, got 0.0"),
        (
            lambda: tokens.BoxTokenizer(low=(0.0,), high=(np.inf,)),
            "low must be below high and both finite",
        ),
        (
            lambda: tokens.BoxTokenizer(low=(0.0,), high=(1.0, 2.0)),
            "as many entries, got 1 and 2",
        ),
    ],
)
def test_tables_without_sense_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
