"""Facts of the distilled world model: what is shared, what learns, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.core import tree
from jaxwm.dynamics import rssm
from jaxwm.envs.tasks import dr_reach
from jaxwm.recipes import twist as recipe
from jaxwm.types import Trajectory
from tests.dynamics import quick

CONFIG = dataclasses.replace(
    recipe.TINY, model=dataclasses.replace(recipe.TINY.model, channels=(2,))
)
SPEC = dr_reach.SPEC
IMAGES = SPEC._replace(obs=jax.ShapeDtypeStruct((4, 6, 3), np.dtype("uint8")))
TEACHER = rssm.rssm(CONFIG.model, SPEC)
STUDENT = recipe.twist(CONFIG, IMAGES, SPEC)


@quick.jit
def fresh(key):
    return TEACHER.init(key), STUDENT.init(jax.random.fold_in(key, 1))


@pytest.fixture(scope="module")
def both():
    """Weights large enough to tell things apart, statistics far from 0 and 1."""
    teacher, student = fresh(jax.random.key(0))
    draw = np.random.default_rng(0)
    move = lambda x: x + (0.4 * draw.normal(size=x.shape)).astype(x.dtype)
    moments = teacher.buffers["statistics"]
    count = jnp.float32(100.0)
    shifted = [m._replace(count=count, mean=m.mean + 3, m2=m.m2 + 400) for m in moments]
    buffers = {"statistics": type(moments)(*shifted)}
    params = jax.tree.map(move, teacher.params)
    teacher = teacher._replace(params=params, buffers=buffers)
    return teacher, recipe.taught(student, teacher)


@pytest.fixture(scope="module")
def student(both):
    return both[1]


@pytest.fixture(scope="module")
def window():
    draw = np.random.default_rng(1)
    obs = draw.integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    action = draw.uniform(-1, 1, (5, 2)).astype(np.float32)
    reward, ones = draw.uniform(size=5).astype(np.float32), np.ones(5, np.float32)
    state = 3 + 2 * draw.normal(size=(5, 6)).astype(np.float32)
    return Trajectory(obs, action, reward, ones, ones, {"state": state})


@quick.jit
def loss_and_grads(state, window):
    loss = lambda p: STUDENT.loss(jax.random.key(2), state._replace(params=p), window)
    return jax.value_and_grad(loss, has_aux=True)(state.params)


def test_the_student_imagines_what_its_teacher_imagines(both):
    """Transition and heads are shared: the same latent has the same future."""
    draw = np.random.default_rng(3)
    latent = rssm.empty(rssm.networks(CONFIG.model, SPEC))
    latent = jax.tree.map(lambda x: x + draw.normal(size=x.shape), latent)
    actions = draw.uniform(-1, 1, (6, 2)).astype(np.float32)

    @quick.jit
    def imagine(teacher, student):
        key = jax.random.key(4)
        return [
            model.imagine(key, state, latent, actions, 6)
            for model, state in ((TEACHER, teacher), (STUDENT, student))
        ]

    one, two = imagine(*both)
    for name in ("feature", "reward", "discount"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert np.ptp(one.reward) > 0
    assert two.obs is None and "decode" not in STUDENT.spec.abilities
    assert STUDENT.spec.feature_size == TEACHER.spec.feature_size


def test_where_the_observation_says_nothing_the_student_agrees(student, window):
    """Its posterior is the teacher's: without embeddings the divergence is 0."""
    (_, (_, metrics)), _ = loss_and_grads(student, window)
    assert metrics["kl"] > 0.01

    def deaf(params):
        """Weights of the embedding, which stands behind h, are 0."""
        size = CONFIG.model.deter
        cut = lambda x: x.at[size:].set(0) if x.shape[0] == size + 8 else x
        return jax.tree.map(cut, params)

    told = student.buffers["teacher"]
    told = {**told, "posterior": deaf(told["posterior"])}
    params = {**student.params, "posterior": told["posterior"]}
    buffers = {**student.buffers, "teacher": told}
    equal = student._replace(params=params, buffers=buffers)
    (_, (_, metrics)), _ = loss_and_grads(equal, window)
    np.testing.assert_allclose(metrics["kl"], 0, atol=1e-6)


def test_encoder_and_posterior_learn_and_the_teacher_does_not(student, window):
    (_, (buffers, _)), grads = loss_and_grads(student, window)
    same = jax.tree.map(np.array_equal, buffers, student.buffers)
    assert jax.tree.all(same)
    assert set(grads) == {"encoder", "posterior"}
    for part in grads.values():
        assert any(np.any(g != 0) for g in jax.tree.leaves(part))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(part))


def test_every_state_and_image_is_read_at_its_own_row(student, window):
    """Row t of the loss knows images up to t and the state at t, no later one."""
    kl = lambda window: loss_and_grads(student, window)[0][1][1]["kl"]
    whole, short = kl(window), {}
    for field, value in (("obs", window.obs), ("action", window.action)):
        changed = value.copy()
        changed[-1] = 0 if field == "obs" else -changed[-1]
        short[field] = kl(window._replace(**{field: changed}))
    assert short["obs"] != whole
    assert short["action"] == whole  # the last action leads to no row
    states = window.extras["state"].copy()
    states[-1] += 1
    other = window._replace(extras={"state": states})
    assert kl(other) != whole
    # Nor is a row read that no step reached.
    mask = np.array([1, 1, 1, 0, 0], np.float32)
    one, two = (loss_and_grads(student, w._replace(mask=mask)) for w in (window, other))
    assert one[0][0] == two[0][0]


def test_an_episode_keeps_its_domain_and_another_has_another():
    here = jnp.array([0.5, -0.4, 0.0, 0.0, -0.6, 0.5])
    states = jnp.broadcast_to(here, (2, 3, 6))
    paint = quick.jit(lambda key: recipe._painted(key, states, dr_reach.TRAINING))
    images = np.asarray(paint(jax.random.key(0)))
    assert images.shape == (2, 3, 24, 24, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, :1].repeat(3, 1), images)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5


def test_what_does_not_fit_is_refused(student, window):
    with pytest.raises(ValueError, match=r'must hold "state", .* got \[\]'):
        STUDENT.loss(jax.random.key(0), student, window._replace(extras={}))
    wider = dataclasses.replace(CONFIG.model, deter=12)
    other = jax.eval_shape(rssm.rssm(wider, SPEC).init, jax.random.key(0))
    with pytest.raises(
        ValueError, match="teacher must have the latent and state sizes"
    ):
        recipe.taught(student, other)
    with pytest.raises(ValueError, match="spec must be that of an environment in im"):
        recipe.twist(CONFIG, SPEC, SPEC)
    with pytest.raises(ValueError, match="twist's teacher needs one flat observation"):
        recipe.twist(CONFIG, IMAGES, IMAGES)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": -1.0}, "heads must not be negative, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_settings_without_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(recipe.Config(), **change)


@pytest.mark.slow
def test_every_number_of_the_experiment_is_finite(key):
    metrics = jax.jit(lambda key: recipe.experiment(key, recipe.TINY))(key)
    assert tree.all_finite(metrics)
    for who in ("teacher", "student", "scratch"):
        assert 0 <= metrics[f"success/{who}"] <= 1
