"""Distillation: losses, starts and a teacher that never moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.recipes import random_teachers as recipe
from jaxwm.recipes.random_teachers import TINY


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(5), (32, 8, 8, 1))


def test_cross_entropy_is_divergence_plus_the_teachers_entropy(key):
    student, teacher = 3 * jax.random.normal(key, (2, 5, 7))
    p = jax.nn.softmax(teacher / 0.5)
    entropy = -jnp.mean(jnp.sum(p * jnp.log(p), 1))
    ce = recipe.distill_loss(student, teacher, 2.0, 0.5, kind="ce")
    kl = recipe.distill_loss(student, teacher, 2.0, 0.5)
    np.testing.assert_allclose(ce, kl + entropy, rtol=1e-5)
    np.testing.assert_allclose(recipe.distill_loss(teacher, teacher), 0, atol=1e-6)
    assert kl > 0
    mse = recipe.distill_loss(student, teacher, kind="mse")
    np.testing.assert_allclose(mse, jnp.mean((student - teacher) ** 2), rtol=1e-6)


def test_no_gradient_reaches_the_teacher(key):
    student, teacher = jax.random.normal(key, (2, 5, 7))
    for kind in ("ce", "kl", "mse"):
        grad = jax.grad(
            lambda t, kind=kind: recipe.distill_loss(student, t, kind=kind)
        )(teacher)
        np.testing.assert_array_equal(grad, 0)


def test_starts_keep_the_variance_and_lie_where_they_say(key):
    draw = lambda key: {"w": jax.random.normal(key, (20_000,))}
    teacher = draw(jax.random.key(1))

    def start(name, alpha, **options):
        student_key = jax.random.clone(key)
        return recipe.init_student(student_key, teacher, draw, name, alpha, **options)[
            "w"
        ]

    for name in ("random", "interpolated", "neighbourhood"):
        np.testing.assert_allclose(jnp.std(start(name, 0.4)), 1, rtol=0.02)
    np.testing.assert_array_equal(start("teacher", 0.4), teacher["w"])
    far = start("random", 0.4)
    np.testing.assert_allclose(start("interpolated", 1.0), far, rtol=1e-6)
    plain = start("interpolated", 0.25, variance_preserving=False)
    np.testing.assert_allclose(plain, 0.75 * teacher["w"] + 0.25 * far, rtol=1e-5)
    near = start("neighbourhood", 1e-6)
    np.testing.assert_allclose(near, teacher["w"], atol=1e-4)


def test_logits_are_cosines(key):
    head_key, x_key = jax.random.split(key)
    head = recipe.L2BottleneckHead((8,), 4, 10)
    x = jax.random.normal(x_key, (5, 3))
    params = head.init(head_key, x)
    logits = head.apply(params, x)
    assert logits.shape == (5, 10)
    assert jnp.all(jnp.abs(logits) <= 1 + 1e-5)
    longer = jax.tree.map(lambda w: w, params)
    longer["params"]["directions"] = 7 * params["params"]["directions"]
    np.testing.assert_allclose(head.apply(longer, x), logits, rtol=1e-4)


@pytest.mark.slow
def test_training_lowers_the_divergence_and_leaves_the_teacher(key, images):
    init_key, step_key = jax.random.split(key)
    config = dataclasses.replace(TINY, learning_rate=1e-2, batch_size=32)
    system = recipe.random_teachers(config)
    before = state = system.init(init_key)
    step = jax.jit(system.step)
    found = []
    for i in range(60):
        state, metrics = step(jax.random.fold_in(step_key, i), state, images)
        found.append(float(metrics["kl"]))
    assert found[-1] < 0.3 * found[0]
    jax.tree.map(
        np.testing.assert_array_equal,
        state.buffers["teacher"],
        before.buffers["teacher"],
    )
    assert system.predict(state.params, images[0]).shape == (4,)


@pytest.mark.slow
def test_a_student_at_the_teacher_has_nothing_to_learn(key, images):
    """Up to rounding, which the short vectors of the head make larger."""
    norms = []
    for start in ("teacher", "random"):
        system = recipe.random_teachers(dataclasses.replace(TINY, start=start))
        init_key, step_key = jax.random.split(jax.random.clone(key))
        _, metrics = system.step(step_key, system.init(init_key), images)
        norms.append(float(metrics["grad_norm"]))
        if start == "teacher":
            np.testing.assert_allclose(metrics["kl"], 0, atol=1e-5)
    assert norms[0] < 1e-2 * norms[1]


@pytest.mark.slow
def test_the_experiment_gives_finite_numbers_from_a_tiny_setting(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert {"linear/student", "gain/noise", "kl/start"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["teacher/unchanged"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "l1"}, "loss must be one of ce, kl, mse, got 'l1'"),
        ({"start": "near"}, "start must be one of random, teacher"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], got 0"),
        ({"alpha": 1.5}, r"alpha must be in \(0, 1\], got 1.5"),
        ({"num_outputs": 1}, "num_outputs must be at least 2, got 1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_another_structure_or_an_unknown_start_is_refused(key):
    teacher = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="teacher's structure"):
        recipe.init_student(key, teacher, lambda key: {"v": jnp.ones(3)}, "random")
    with pytest.raises(ValueError, match="start must be one of"):
        recipe.init_student(key, teacher, lambda key: teacher, "elsewhere")
