"""The search for the smallest coarse-graining."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import measures

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grokking_checkpoints.npz"
SMALL = measures.Grid(taus=(0.5, 0.9, 1.0), deltas=(0.02, 0.08, 0.3, 1.0))


@functools.partial(jax.jit, static_argnames=("loss", "grid"))
def find(params, loss, epsilon, grid=SMALL):
    return measures.complexity(params, loss, epsilon=epsilon, grid=grid)


def weights(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(scale * rng.normal(size=(12, 10)), jnp.float32),
        "b": jnp.asarray(scale * rng.normal(size=10), jnp.float32),
    }


def distance(params):
    """Mean squared distance from `weights()`."""
    w, b = (params[name] - weights()[name] for name in "wb")
    return jnp.mean(w**2) + jnp.mean(b**2)


def test_golden_networks_cost_less_than_the_reference_and_forget():
    """Reference: bytes that its search reports at the same ε on the same data."""
    data = np.load(GOLDEN)
    reference = json.loads(str(data["meta"]))["reference"]
    x, y = jnp.asarray(data["train_x"]), jnp.asarray(data["train_y"])

    def loss(p):
        h = jax.nn.relu(p["E"][x].reshape(len(x), -1) @ p["W1"] + p["b1"])
        log_p = jax.nn.log_softmax(h @ p["W2"])
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], 1))

    names = ("E", "W1", "W2", "b1")
    stacked = {
        name: jnp.stack([data[f"step{step}/{name}"] for step in reference])
        for name in names
    }
    grid = measures.Grid(taus=(0.45, 0.6, 1.0), deltas=(0.12, 0.187, 0.285, 0.433))
    got = jax.jit(lambda p: measures.complexity_trajectory(p, loss, (1.0, 0.25), grid))(
        stacked
    )
    assert got.bits.shape == (4, 2) and got.ranks.shape == (4, 2, 3)
    assert got.feasible[:, 0].all()
    base = np.array([row["base"] for row in reference.values()])
    np.testing.assert_allclose(got.base_loss[:, 0], base, rtol=1e-3, atol=1e-6)
    assert (got.loss <= got.base_loss + jnp.array([1.0, 0.25])).all()
    bytes_ = np.array([row["bzip2"] for row in reference.values()])
    ratio = got.bits[:, 0] / 8 / bytes_
    # Measured 0.69, 0.67, 0.46, 0.45.
    assert (ratio <= jnp.array([0.7, 0.7, 0.6, 0.6])).all(), ratio
    assert got.bits[0, 0] >= 2 * got.bits[3, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-4, 1.0), st.floats(0.05, 1.0))
def test_a_finer_epsilon_never_gives_a_smaller_code(seed, epsilon, share):
    epsilons = jnp.array([epsilon * share, epsilon])
    found = find(weights(seed), distance, epsilons)
    assert found.bits[0] >= found.bits[1]


@settings(max_examples=2, deadline=None)
@given(st.permutations("abc"))
@pytest.mark.slow
def test_the_order_of_the_tree_does_not_matter(names):
    w, b = weights(3).values()

    def search(names):
        """Trees are walked by sorted names; the loss sums in one order."""

        def loss(params):
            return sum(jnp.mean(params[name] ** 2) for name in names)

        params = dict(zip(names, (w, b, 2 * w[:4]), strict=True))
        return find(params, loss, 0.1)

    here, there = search("abc"), search(names)
    assert here.bits == pytest.approx(float(there.bits), rel=1e-6)
    assert (here.tau, here.delta) == (there.tau, there.delta)
    assert here.loss == pytest.approx(float(there.loss), rel=1e-6)


def test_the_choice_is_the_best_feasible_cell():
    params = weights()
    found = find(params, distance, 0.02)
    cache, best = measures.svd_cache(params), np.inf
    grain = jax.jit(measures.coarse_grain)
    for tau in SMALL.taus:
        for delta in SMALL.deltas:
            got = grain(params, cache, tau, delta)
            if got.ok and distance(got.params) <= 0.02:
                best = min(best, float(got.bits))
    assert bool(found.feasible)
    assert found.bits == pytest.approx(best, rel=1e-6)
    assert found.loss <= found.base_loss + 0.02


def test_a_loss_that_falls_is_within_every_epsilon():
    found = find(weights(), lambda p: -distance(p), 1e-6)
    assert bool(found.feasible) and found.loss < found.base_loss


def test_where_nothing_is_feasible_the_size_is_that_of_dense_floats():
    grid = measures.Grid(taus=(0.5,), deltas=(1.0,))
    params = {**weights(), "n": jnp.arange(3)}
    found = find(params, distance, 1e-9, grid)
    assert not bool(found.feasible)
    assert found.bits == 32 * (12 * 10 + 10 + 3)
    assert found.delta == 0 and found.loss == found.base_loss
    assert found.ranks.tolist() == [10]


def test_a_loss_of_nan_is_never_feasible():
    found = find(weights(), lambda p: jnp.log(-1 - distance(p)), 1.0)
    assert not bool(found.feasible)


def test_nan_in_compiled_searches_is_infeasible():
    params = {**weights(), "b": jnp.full(10, jnp.nan)}
    found = find(params, distance, 1.0)
    assert not bool(found.feasible)


@pytest.mark.slow
def test_a_trajectory_equals_one_search_each():
    epsilons = (0.01, 0.2)
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x), weights(0), weights(1), weights(2, 0.1)
    )
    got = measures.complexity_trajectory(stacked, distance, epsilons, SMALL)
    one = functools.partial(find, loss=distance, epsilon=jnp.array(epsilons))
    mapped = jax.vmap(one)(stacked)
    np.testing.assert_allclose(got.bits, mapped.bits, rtol=1e-5)
    for i in range(3):
        apart = one(jax.tree.map(lambda x, i=i: x[i], stacked))
        np.testing.assert_allclose(got.bits[i], apart.bits, rtol=1e-5)
        np.testing.assert_array_equal(got.ranks[i], apart.ranks)


@pytest.mark.slow
def test_actors_of_brax_are_measured_as_tuples():
    networks = pytest.importorskip("brax.training.agents.ppo.networks")
    made = networks.make_ppo_networks(3, 1, policy_hidden_layer_sizes=(8,))
    params = (jnp.zeros(()), made.policy_network.init(jax.random.key(0)))
    found = find(params, lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)), 9.0)
    assert bool(found.feasible)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), (0.1, -0.1), ()])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be above 0 nats"):
        measures.complexity(weights(), distance, epsilon=jnp.array(epsilon, float))


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: p["w"],
        lambda p: (distance(p), {}, jnp.zeros(2)),
        lambda p: jnp.zeros(1),
        lambda p: jnp.int32(3),
        lambda p: None,
    ],
)
def test_a_loss_that_is_not_a_scalar_is_refused(loss):
    with pytest.raises(ValueError, match="loss must return one scalar"):
        measures.complexity(weights(), loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taus": (0.5, 1.2)}, "taus must lie in"),
        ({"taus": ()}, "taus"),
        ({"deltas": (0.0,)}, "deltas must be above 0"),
        ({"deltas": (float("inf"),)}, "deltas"),
        ({"deltas": ()}, "deltas"),
        ({"mode": "both"}, "mode must be"),
    ],
)
def test_a_grid_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        measures.Grid(**settings)


def test_checkpoints_without_a_common_axis_are_refused():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="one leading axis"):
        measures.complexity_trajectory(params, distance, (1.0,))


def test_nan_in_one_checkpoint_is_refused():
    params = {"w": jnp.ones((3, 4, 4)).at[1].set(jnp.nan), "b": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"params\[w\] must be finite"):
        measures.complexity_trajectory(params, distance, (1.0,))
