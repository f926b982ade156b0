"""The grokking recipe: what it trains, what it records, and what it measures."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import measures
from jaxwm.recipes import complexity_grokking as recipe
from jaxwm.recipes.complexity_grokking import PAPER, TINY, Config, complexity_grokking

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grokking_checkpoints.npz"


@functools.cache
def trained(**options):
    config = dataclasses.replace(TINY, **options)
    task_key, train_key = jax.random.split(jax.random.key(0))
    task = recipe.task_of(task_key, config)
    run = jax.jit(lambda key: recipe.train_grok(key, config, task))
    return config, task, run(train_key)


@pytest.mark.slow
def test_records_follow_training():
    config, task, history = trained()
    np.testing.assert_array_equal(history.steps, [10, 20, 30, 40, 50, 60])
    predict = complexity_grokking(config).predict
    last = jax.tree.map(lambda x: x[-1], history.params)
    np.testing.assert_allclose(
        history.metrics["train/loss"][-1],
        recipe.cross_entropy(predict, last, task.train),
        rtol=1e-5,
    )
    assert history.metrics["train/loss"][-1] < history.metrics["train/loss"][0]
    assert history.metrics["train/accuracy"][-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"spectral": 0.1, "every": 5},
        {"noise": 0.05},
        {"batch_size": 8},
        {"op": "permutation", "p": 6},
        pytest.param({"network": "transformer"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_option_trains_and_matters(options):
    plain, (_, task, history) = trained()[2], trained(**options)
    for value in history.metrics.values():
        assert np.isfinite(value).all()
    assert history.metrics["train/loss"][-1] < np.log(task.train.y.max() + 1.0)
    assert np.any(history.metrics["train/loss"] != plain.metrics["train/loss"])


@pytest.mark.slow
def test_the_penalty_lowers_the_rank():
    rank = [
        measures.mean_effective_rank(jax.tree.map(lambda x: x[-1], h.params))
        for h in (trained()[2], trained(spectral=0.5, every=5)[2])
    ]
    assert rank[1] < 0.9 * rank[0]


@pytest.mark.slow
def test_seeds_side_by_side_equal_seeds_alone():
    config, task, _ = trained(spectral=0.1, every=5)
    run = lambda key: recipe.train_grok(key, config, task).metrics["train/loss"]
    of_seed = lambda seed: run(jax.random.key(seed))
    together = jax.jit(jax.vmap(of_seed))(jnp.arange(2, dtype=jnp.uint32))
    alone = jax.jit(of_seed)(jnp.uint32(1))
    np.testing.assert_allclose(together[1], alone, rtol=2e-3)


def test_measured_records_are_log_spaced_and_hold_the_last():
    at = recipe.measured_records(Config())
    assert at[0] == 0
    assert at[-1] == Config().steps // Config().record_every - 1
    assert np.all(np.diff(at) > 0)


@pytest.mark.slow
def test_the_published_setting_takes_its_first_step():
    shapes = jax.eval_shape(
        lambda key: recipe.train_grok(
            key, dataclasses.replace(PAPER, steps=500, num_measured=2), _task(key)
        ),
        jax.random.key(0),
    )
    assert shapes.params["params"]["up_0"]["kernel"].shape == (2, 128, 512)


def _task(key):
    return recipe.task_of(jax.random.fold_in(key, 1), PAPER)


def test_ranks_are_correlated_by_order_alone():
    x = jnp.array([3.0, 1.0, 2.0, 10.0])
    np.testing.assert_allclose(recipe.spearman(x, jnp.exp(x)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(recipe.spearman(x, -x), -1.0, rtol=1e-6)


def test_the_first_step_that_never_comes_is_nan():
    steps = jnp.array([10, 20, 30])
    assert recipe.first_step(steps, jnp.array([False, True, True])) == 20
    assert np.isnan(recipe.first_step(steps, jnp.zeros(3, bool)))


@pytest.mark.slow
def test_the_experiment_measures_both_arms(key):
    found = jax.jit(lambda key: recipe.experiment(key, TINY))(key)
    assert all(value.shape == () for value in found.values())
    assert found["complexity/feasible"] == 1
    assert found["complexity/peak"] >= found["complexity/final"] > 0
    assert found["step/peak"] in (10, 20, 30, 60, 40)
    assert found["integers/spearman"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden file is not there")
def test_known_checkpoints_have_known_losses_and_accuracies(key):
    """Weights trained elsewhere, read by our network on our table's pairs."""
    stored = np.load(GOLDEN)
    meta = json.loads(str(stored["meta"]))
    predict = complexity_grokking(Config()).predict
    pairs = recipe.data.Examples(stored["train_x"], stored["train_y"])
    others = recipe.data.Examples(stored["test_x"], stored["test_y"])
    whole = recipe.task_of(key, Config())
    assert whole.train.y.shape == pairs.y.shape
    np.testing.assert_array_equal(pairs.x.sum(1) % 59, pairs.y)
    for step, test_accuracy in ((60, 0.0), (1140, 0.998), (2000, 1.0)):
        weights = {n: stored[f"step{step}/{n}"] for n in ("E", "W1", "W2", "b1")}
        params = {
            "params": {
                "embed": weights["E"],
                "hidden_0": {"kernel": weights["W1"], "bias": weights["b1"]},
                "logits": {"kernel": weights["W2"]},
            }
        }
        loss = recipe.cross_entropy(predict, params, pairs)
        wanted = meta["reference"][str(step)]["base"]
        np.testing.assert_allclose(loss, wanted, rtol=1e-2, atol=1e-6)
        found = recipe.accuracy(predict, params, others)
        np.testing.assert_allclose(found, test_accuracy, atol=2e-3)
        assert recipe.accuracy(predict, params, pairs) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "cnn"}, 'network must be "mlp" or "transformer", got \'cnn\''),
        ({"op": "pow"}, "op must be one of add, .* got 'pow'"),
        ({"op": "permutation"}, "p must be k! .* got 59"),
        ({"steps": 15}, "record_every must divide steps = 15, got 20"),
        ({"num_measured": 1}, "num_measured must be in 2 ... .* got 1"),
        ({"epsilon": 0.0}, "epsilon must be positive, got 0"),
        ({"noise": -1.0}, "noise must be at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
