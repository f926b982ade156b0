"""Every system has its row, its test file, and keeps the contract of its bundle."""

import dataclasses
import math
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm.types
from jaxwm import catalogue, envs
from jaxwm.catalogue import Above, All, Below, Between, Entry
from jaxwm.train import checkpoint
from jaxwm.types import Trajectory, Transition

ROOT = pathlib.Path(__file__).parents[1]
NAMES = [entry.name for entry in catalogue.ENTRIES]
MODELS = [entry.name for entry in catalogue.ENTRIES if entry.bundle == "WorldModel"]
BATCH, NUM_SEEDS = 4, 2


def test_rows_are_sorted_and_unique():
    assert sorted(set(NAMES)) == NAMES


def test_every_recipe_has_a_row_and_every_row_a_module():
    files = {path.stem for path in (ROOT / "jaxwm" / "recipes").glob("[a-z]*.py")}
    assert files == {e.name for e in catalogue.ENTRIES if e.room == "recipes"}
    for entry in catalogue.ENTRIES:
        assert (ROOT / "jaxwm" / entry.room / f"{entry.name}.py").is_file()


def is_tested(entry):
    """A recipe has a file of its name; blocks of other rooms may share files."""
    folder = ROOT / "tests" / entry.room
    if entry.room == "recipes":
        return (folder / f"test_{entry.name}.py").is_file()
    used = re.compile(rf"^from jaxwm\.{entry.room} import .*\b{entry.name}\b", re.M)
    return any(used.search(path.read_text()) for path in folder.glob("test_*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_row_keeps_the_form_of_a_system(name):
    entry = catalogue.find(name)
    assert is_tested(entry)
    assert entry.source
    assert entry.summary
    assert entry.family
    module = entry.load()
    assert "Source:" in module.__doc__
    assert callable(entry.builder())
    if entry.bundle is not None:
        assert hasattr(jaxwm.types, entry.bundle)
    for config in ("Config", "TINY", "PAPER"):
        found = getattr(module, config, None)
        if found is not None:
            found = found() if config == "Config" else found
            hash(found)
            assert dataclasses.replace(found) == found
    if entry.claim is not None:
        assert callable(module.experiment)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_setting_of_a_system_may_be_not_a_number(name, bad):
    config = getattr(catalogue.find(name).load(), "Config", None)
    for field in () if config is None else dataclasses.fields(config):
        if isinstance(field.default, float):
            with pytest.raises(ValueError, match=field.name):
                config(**{field.name: bad})


def rows(spec, *shape):
    """Random rows of an environment with those sizes."""
    obs_size, act_size = spec.flat_sizes("the catalogue's test")
    rng = np.random.default_rng(0)
    obs, following = rng.normal(size=(2, *shape, obs_size)).astype(np.float32)
    action = rng.uniform(-1, 1, (*shape, act_size)).astype(np.float32)
    ones = np.ones(shape, np.float32)
    return obs, action, rng.normal(size=shape).astype(np.float32), ones, following


@pytest.mark.parametrize("name", MODELS)
def test_a_world_model_keeps_the_common_contract(name, tmp_path):
    """Deterministic in its key, form kept, one trace, finite, vmapped, saved whole."""
    entry = catalogue.find(name)
    spec = envs.make("pendulum", "jax").spec
    model = entry.builder()(entry.load().TINY, spec)
    assert type(model).__name__ == entry.bundle
    assert model.spec.window >= 1

    obs, action, reward, one, following = rows(spec, BATCH, model.spec.window)
    windows = Trajectory(obs, action, reward, one, one, {"next_obs": following})
    obs, action, reward, one, following = rows(spec, 16)
    steps = Transition(obs, action, reward, one, one < 0, following, one, {})

    def first(seed):
        return model.adapt(model.init(jax.random.key(seed)), steps)

    @jax.jit
    def update(state, seed, iteration):
        def one(state, seed):
            key = jax.random.fold_in(jax.random.key(seed), iteration)
            return model.fit(key, state, windows)

        return jax.vmap(one)(state, seed)

    seeds = jnp.arange(NUM_SEEDS, dtype=jnp.uint32)
    begin = jax.jit(jax.vmap(first))
    start = begin(seeds)
    chex.assert_trees_all_equal(start, begin(seeds))
    assert any(
        not np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(start.params)
    )

    state, metrics = update(start, seeds, jnp.int32(0))
    state, metrics = update(state, seeds, jnp.int32(1))
    assert update._cache_size() == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert set(metrics) >= {"loss", "finite"}
    for value in metrics.values():
        assert value.shape == (NUM_SEEDS,)
        assert np.isfinite(value).all()

    checkpoint.save(tmp_path, 2, state, config={})
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, state)[1], state)


@pytest.mark.parametrize(
    ("claim", "metrics", "holds"),
    [
        (Below("a", 2.0), {"a": 1.0}, True),
        (Below("a", 2.0), {"a": 2.0}, False),
        (Below("a", 0.1, of="b"), {"a": 0.09, "b": 1.0}, True),
        (Below("a", 0.1, of="b"), {"a": 0.11, "b": 1.0}, False),
        (Above("a", 2.0), {"a": 3.0}, True),
        (Above("a", 2.0, of="b"), {"a": 3.0, "b": 2.0}, False),
        (Between("a", 0.8, 1.25), {"a": 1.0}, True),
        (Between("a", 0.8, 1.25), {"a": 1.3}, False),
        (All((Below("a", 2.0), Above("a", 0.5))), {"a": 1.0}, True),
        (All((Below("a", 2.0), Above("a", 1.5))), {"a": 1.0}, False),
        (Below("a", 2.0), {"a": float("nan")}, False),
        (Above("a", 2.0), {"a": float("nan")}, False),
        (Above("a", 2.0), {"a": float("inf")}, False),
        (Between("a", 0.0, 2.0), {"a": float("nan")}, False),
        (Below("a", 2.0, of="b"), {"a": 1.0, "b": float("nan")}, False),
    ],
)
def test_claims_are_checked_and_nan_never_holds(claim, metrics, holds):
    verdict = claim.check(metrics)
    assert verdict.holds is holds
    assert "a " in verdict.text


def test_a_claim_about_a_missing_metric_is_an_error():
    with pytest.raises(ValueError, match="returns no 'a', only \\['b'\\]"):
        Below("a", 1.0).check({"b": 1.0})
    entry = Entry("x", family="f", source="s", bundle=None)
    with pytest.raises(ValueError, match="x claims nothing"):
        catalogue.judge(entry, [{}])


def test_every_seed_is_judged():
    entry = Entry("x", family="f", source="s", bundle=None, claim=Below("a", 1.0))
    verdicts = catalogue.judge(entry, [{"a": 0.5}, {"a": 1.5}])
    assert [verdict.holds for verdict in verdicts] == [True, False]
