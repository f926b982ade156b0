"""Tables of group operations: every entry, the split, and what is refused."""

import itertools

import jax
import numpy as np
import pytest

from jaxwm import data


def whole(task):
    """The table, sorted by its inputs."""
    x = np.concatenate([task.train.x, task.test.x])
    y = np.concatenate([task.train.y, task.test.y])
    order = np.lexsort(x.T[::-1])
    return x[order], y[order]


RULES = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "squares": lambda a, b: a * a + b * b,
    "quadratic": lambda a, b: a * a + a * b + b * b,
}


@pytest.mark.parametrize("op", RULES)
def test_tables_hold_every_pair_with_its_result(op, key):
    x, y = whole(data.modular_task(key, 7, op))
    pairs = list(itertools.product(range(7), repeat=2))
    np.testing.assert_array_equal(x, pairs)
    np.testing.assert_array_equal(y, [RULES[op](a, b) % 7 for a, b in pairs])


def test_division_undoes_multiplication_and_leaves_zero_out(key):
    x, y = whole(data.modular_task(key, 7, "div"))
    assert len(x) == 42
    np.testing.assert_array_equal(y * x[:, 1] % 7, x[:, 0])


def test_the_split_is_random_complete_and_of_the_asked_size(key):
    first = data.modular_task(key, 59, "add", 0.4)
    assert first.train.x.shape == (1392, 2)
    assert len(np.unique(whole(first)[0], axis=0)) == 59**2
    again = data.modular_task(jax.random.key(1), 59, "add", 0.4)
    assert np.any(first.train.x != again.train.x)


def test_tokens_name_operation_and_equality():
    plain = data.modular_task(jax.random.key(1), 7, "mul")
    tokens = data.modular_task(jax.random.key(1), 7, "mul", tokens=True)
    np.testing.assert_array_equal(tokens.train.x[:, [0, 2]], plain.train.x)
    np.testing.assert_array_equal(tokens.train.x[:, 1], 7)
    np.testing.assert_array_equal(tokens.train.x[:, 3], 8)


def test_permutations_form_a_group(key):
    table = whole(data.permutation_task(key, 3))[1].reshape(6, 6)
    np.testing.assert_array_equal(table[0], np.arange(6))  # 0 is the identity
    np.testing.assert_array_equal(table[:, 0], np.arange(6))
    for row in (*table, *table.T):
        assert sorted(row) == list(range(6))
    a, b, c = np.meshgrid(*[np.arange(6)] * 3)
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert np.any(table != table.T)  # not commutative


def test_composition_applies_the_second_first(key):
    elements = list(itertools.permutations(range(3)))
    table = whole(data.permutation_task(key, 3))[1].reshape(6, 6)
    a, b = (1, 0, 2), (1, 2, 0)
    wanted = elements.index(tuple(a[b[i]] for i in range(3)))
    assert table[elements.index(a), elements.index(b)] == wanted


def test_five_things_have_14400_pairs(key):
    task = data.permutation_task(key, 5, 0.5)
    assert task.train.y.shape == task.test.y.shape == (7200,)


def test_tasks_can_be_made_inside_jit():
    labels = lambda key: data.modular_task(key, 11).train.y
    np.testing.assert_array_equal(
        jax.jit(labels)(jax.random.key(1)), labels(jax.random.key(1))
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: data.modular_task(k, 7, "pow"), "op must be one of add, .* 'pow'"),
        (lambda k: data.modular_task(k, 1), "p must be in 2 ... 2000 .* got 1"),
        (lambda k: data.modular_task(k, 8, "div"), "prime for division, got 8.* 11"),
        (lambda k: data.modular_task(k, 7, "add", 1.0), "fraction must be in .* 1.0"),
        (lambda k: data.modular_task(k, 7, "add", 0.001), "fraction must be .* 49"),
        (lambda k: data.permutation_task(k, 7), "k must be in 2 ... 6, got 7"),
    ],
)
def test_tables_that_make_no_sense_are_refused(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key)
