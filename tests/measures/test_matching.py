"""Groups whose names mean nothing, matched to true ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.measures import matching

TRUTH = jnp.array([0, 0, 1, 1, 2, 2])


def table(found, num_found=4, weight=None):
    return matching.counts(jnp.asarray(found), TRUTH, num_found, 3, weight)


def test_renamed_groups_match_fully_and_split_ones_lose_their_smaller_part():
    renamed = table([3, 3, 0, 0, 1, 1])
    assert matching.matched_accuracy(renamed) == 1
    np.testing.assert_allclose(matching.normalised_mutual_information(renamed), 1, 1e-6)
    split = table([3, 2, 0, 0, 1, 1])
    np.testing.assert_allclose(matching.matched_accuracy(split), 5 / 6, 1e-6)


def test_one_group_for_two_truths_is_right_for_one_of_them():
    merged = table([0, 0, 0, 0, 1, 1], num_found=2)
    np.testing.assert_allclose(matching.matched_accuracy(merged), 4 / 6, 1e-6)
    # I = H(found) = H(1/3), H(true) = log 3.
    found = -(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3)
    nmi = matching.normalised_mutual_information(merged)
    np.testing.assert_allclose(nmi, 2 * found / (found + np.log(3)), rtol=1e-5)


def test_a_constant_answer_says_nothing():
    constant = table([2] * 6)
    np.testing.assert_allclose(matching.matched_accuracy(constant), 1 / 3, 1e-6)
    np.testing.assert_allclose(
        matching.normalised_mutual_information(constant), 0, atol=1e-6
    )


def test_samples_count_by_their_weight_and_none_at_all_give_zero():
    weight = jnp.array([1.0, 0, 1, 1, 0, 0])
    cells = table([1, 0, 2, 1, 0, 0], weight=weight)
    assert cells.sum() == 3 and cells[0, 1] == 1 and cells[2].sum() == 0
    np.testing.assert_allclose(matching.matched_accuracy(cells), 2 / 3, rtol=1e-6)
    assert matching.matched_accuracy(table([0] * 6, weight=jnp.zeros(6))) == 0


def test_too_many_groups_are_refused():
    with pytest.raises(ValueError, match="12 x 12 have 479001600 matchings"):
        matching.matched_accuracy(jnp.zeros((12, 12)))
