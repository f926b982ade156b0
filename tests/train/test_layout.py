"""Devices that share seeds, batches or parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxwm import train
from jaxwm.core import shard
from jaxwm.train import cluster, layout
from tests.train import tiny


@pytest.fixture(scope="module")
def both():
    """The same run with the batch on one device and on both."""
    learner = tiny.make()
    options = {"seeds": [3], "num_iterations": 40}
    alone = train.fit(learner, **options)
    shared = train.fit(learner, **options, shard="batch")
    return alone.state, shared.state


def test_devices_that_share_the_batch_learn_the_same(both):
    alone, shared = both
    assert len(jax.devices()) == 2
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_counts_environments_is_cut_and_the_rest_copied(both):
    _, shared = both
    assert shared["replay"].sharding.spec == P(None, "data")
    assert shared["replay"].addressable_shards[0].data.shape == (1, 2, tiny.CAPACITY, 8)
    for leaf in jax.tree.leaves([shared["params"], shared["opt"]]):
        assert leaf.sharding.is_fully_replicated


def test_large_parameters_are_cut_where_devices_share_them():
    state = {"w": jnp.zeros((1, 300, 512)), "b": jnp.zeros((1, 512))}
    state |= {"odd": jnp.zeros((1, 333, 333))}
    axes = lambda state: jax.tree.map(lambda _: -1, state)
    found = layout.choose(1, "params").of_state(state, axes)
    assert found["w"].spec == P(None, None, "data")
    assert found["b"].spec == found["odd"].spec == P()  # small; not divisible


def test_parameters_on_several_devices_learn_the_same(both, monkeypatch):
    monkeypatch.setattr(layout, "_LARGE", 8)
    options = {"seeds": [3], "num_iterations": 40}
    cut = train.fit(tiny.make(), **options, shard="params").state
    assert cut["params"]["w"].sharding.spec == P(None, "data")
    for a, b in zip(jax.tree.leaves(both[0]), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_moves_between_layouts(both, tmp_path):
    learner = tiny.make()
    for iterations, way in ((10, "seeds"), (20, "batch"), (30, "seeds"), (40, "batch")):
        with train.open_run(tmp_path, {}) as run:
            found = train.fit(
                learner, seeds=[3], num_iterations=iterations, run=run, shard=way
            )
    leaves = zip(jax.tree.leaves(both[0]), jax.tree.leaves(found.state), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_without_a_mesh_nothing_is_cut():
    x = np.ones((4, 3))
    assert shard.num_devices() == 1
    assert shard.split(x) is x


def test_arrays_come_back_from_where_they_were_placed():
    where = layout.choose(1, "batch")
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    cut = jax.sharding.NamedSharding(where.mesh, P("data"))
    placed = layout.place({"x": x}, {"x": cut})
    np.testing.assert_array_equal(layout.fetch(placed)["x"], x)
    assert layout.place(np.int32(3), where.everywhere).sharding.is_fully_replicated


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="shard must be one of seeds, batch"):
        layout.choose(1, "rows")
    where = layout.choose(1, "batch")
    state = {"env": jnp.zeros((1, 3))}
    with pytest.raises(ValueError, match=r"state\['env'\] counts 3 .* multiple of 2"):
        where.of_state(state, lambda state: {"env": 0})
    with pytest.raises(ValueError, match="needs a learner with `axes`"):
        where.of_state(state, None)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "got only JAX_NUM_PROCESSES"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "localhost:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "below JAX_NUM_PROCESSES, got 2 of 2",
        ),
    ],
)
def test_half_an_address_is_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(train.errors.ConfigError, match=message):
        cluster.join()


def test_one_process_agrees_with_itself():
    assert cluster.leads()
    assert cluster.told(7) == 7
    assert cluster.agree(True, 3, False) == (True, 3, False)
    cluster.leave()  # nobody to wait for
