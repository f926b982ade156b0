"""A sequence of classification tasks: one problem, its inputs in a new order each time.

Source: the permuted-input benchmark of continual learning (Goodfellow et al., "An
Empirical Investigation of Catastrophic Forgetting", 2013), on generated clusters.
Shapes: T tasks, P training and M test examples, N inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Tasks(NamedTuple):
    """Labelled examples of T tasks."""

    x: Float[Array, "T P N"]
    y: Int[Array, "T P"]
    x_test: Float[Array, "T M N"]
    y_test: Int[Array, "T M"]


def permuted_clusters(
    key: Key[Array, ""],
    num_tasks: int,
    num_train: int,
    *,
    num_test: int = 1000,
    num_inputs: int = 100,
    num_classes: int = 10,
    clusters_per_class: int = 3,
    separation: float = 0.45,
) -> Tasks:
    """Gaussian clusters, several to a class; every task permutes the inputs anew.

    Args:
        key: draws centres, examples and orders; examples are fresh for every task.
        num_tasks: T.
        num_train: P, examples to learn from per task.
        num_test: M.
        num_inputs: N.
        num_classes: labels 0 ... num_classes - 1.
        clusters_per_class: a linear map cannot tell the classes apart above 1.
        separation: standard deviation of the centres in each input; examples lie
            around them with standard deviation 1.

    Raises:
        ValueError: if there are no tasks, no examples or fewer than two classes.
    """
    for name, value, least in (
        ("num_tasks", num_tasks, 1),
        ("num_train", num_train, 1),
        ("num_test", num_test, 1),
        ("num_classes", num_classes, 2),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    centre_key, draw_key, order_key = jax.random.split(key, 3)
    num_clusters = num_classes * clusters_per_class
    centres = separation * jax.random.normal(centre_key, (num_clusters, num_inputs))
    num = num_train + num_test

    def task(i):
        index_key, noise_key = jax.random.split(jax.random.fold_in(draw_key, i))
        index = jax.random.randint(index_key, (num,), 0, num_clusters)
        x = centres[index] + jax.random.normal(noise_key, (num, num_inputs))
        order = jax.random.permutation(jax.random.fold_in(order_key, i), num_inputs)
        return x[:, order], index % num_classes

    x, y = jax.vmap(task)(jnp.arange(num_tasks))
    return Tasks(x[:, :num_train], y[:, :num_train], x[:, num_train:], y[:, num_train:])
