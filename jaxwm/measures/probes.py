"""How much a frozen representation knows about labels: linear and k-NN probes.

Shapes: P training and M test examples, F features, C classes.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def linear_probe(
    features: Float[Array, "P F"],
    labels: Int[Array, " P"],
    test_features: Float[Array, "M F"],
    test_labels: Int[Array, " M"],
    num_classes: int,
    *,
    num_steps: int = 400,
    learning_rate: float = 0.03,
    weight_decay: float = 1e-4,
) -> Float[Array, ""]:
    """Test accuracy of multinomial logistic regression on standardised features.

    Mean and spread for standardising come from the training features alone. Fitted by
    AdamW on all examples at every step, from zero: no randomness.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    _check(num_classes)
    features, test_features = _standardised(features, test_features)
    optimiser = optax.adamw(learning_rate, weight_decay=weight_decay)
    size = features.shape[1]
    params = (jnp.zeros((size, num_classes)), jnp.zeros(num_classes))

    def loss(params):
        logits = features @ params[0] + params[1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, optimiser.init(params))
    (params, _), _ = jax.lax.scan(step, carry, length=num_steps)
    predicted = jnp.argmax(test_features @ params[0] + params[1], 1)
    return jnp.mean(predicted == test_labels)


def knn_probe(
    features: Float[Array, "P F"],
    labels: Int[Array, " P"],
    test_features: Float[Array, "M F"],
    test_labels: Int[Array, " M"],
    num_classes: int,
    *,
    k: int = 20,
) -> Float[Array, ""]:
    """Test accuracy of the vote of the k nearest examples, standardised features.

    Ties go to the smaller label.

    Raises:
        ValueError: if there are fewer than two classes, or not 1 ... P neighbours.
    """
    _check(num_classes)
    if not 1 <= k <= features.shape[0]:
        raise ValueError(
            f"k must be in 1 ... {features.shape[0]}, the number of examples, got {k}."
        )
    features, test_features = _standardised(features, test_features)
    # |x - t|^2 without |t|^2, which is the same for all neighbours of t.
    distance = jnp.sum(features**2, 1) - 2 * test_features @ features.T
    _, nearest = jax.lax.top_k(-distance, k)  # [M, k]
    votes = jnp.sum(jax.nn.one_hot(labels[nearest], num_classes), 1)
    return jnp.mean(jnp.argmax(votes, 1) == test_labels)


def _standardised(features, test_features):
    mean, spread = jnp.mean(features, 0), jnp.std(features, 0) + 1e-6
    return (features - mean) / spread, (test_features - mean) / spread


def _check(num_classes: int):
    if num_classes < 2:
        raise ValueError(
            f"num_classes must be at least 2, got {num_classes}; one class is always "
            "right."
        )
