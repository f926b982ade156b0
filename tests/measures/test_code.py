"""Files of weights: what comes back, how large they are, and what is refused."""

import functools
import json
import pathlib
import struct
import time
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import measures
from jaxwm.measures import code, container, range_coder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "grokking_checkpoints.npz"


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "layer": Layer(
            rng.normal(size=(3, 4, 6)).astype(np.float32), np.zeros(6, np.float32)
        ),
        "list": [rng.normal(size=(20, 7)).astype(np.float32), np.arange(3)],
        "tuple": (np.float32(0.3), None, np.zeros((0, 2), np.float32)),
        "other": {
            7: rng.normal(size=5).astype(np.float16),
            -3: {"flag": True, "text": "a"},
        },
    }


def signature(params):
    return [
        (np.shape(leaf), np.asarray(leaf).dtype) for leaf in jax.tree.leaves(params)
    ]


# --- what comes back ---


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-4, 3.0))
def test_dense_numbers_come_back_within_half_a_bin(seed, delta):
    params = tree(seed)
    data = measures.encode(params, delta=delta)
    got = measures.decode(data, like=params)
    assert signature(got) == signature(params)
    assert got["layer"].kernel.flags.writeable
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        if getattr(new, "dtype", None) == np.float32 and new.size:
            assert np.max(np.abs(new - old)) <= 0.5 * delta * (1 + 1e-3) + 1e-6
        elif getattr(new, "dtype", None) != np.float16:
            np.testing.assert_array_equal(new, old)
    again = measures.decode(data, like=params)
    for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(new, old)  # bit for bit


def test_without_a_template_containers_are_dicts_lists_and_tuples():
    params = tree()
    got = measures.decode(measures.encode(params, delta=0.01))
    assert set(got) == set(params) and set(got["other"]) == {7, -3}
    assert set(got["layer"]) == {"kernel", "bias"}  # a NamedTuple, by its names
    assert isinstance(got["list"], list) and isinstance(got["tuple"], tuple)
    assert got["tuple"][1] is None
    assert got["other"][-3] == {"flag": True, "text": "a"}


@pytest.mark.slow
def test_low_rank_is_what_coarse_grain_makes_of_it(key):
    one, two = jax.random.split(key)
    w = jax.random.normal(one, (30, 3)) @ jax.random.normal(two, (3, 24))
    got = measures.decode(measures.encode({"w": w}, tau=0.999, delta=0.05))["w"]
    cache = measures.svd_cache({"w": w})
    want = measures.coarse_grain({"w": w}, cache, 0.999, 0.05).params["w"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.linalg.matrix_rank(got) == 3


def test_stacked_layers_have_ranks_of_their_own(key):
    layers = jnp.stack([jnp.ones((20, 16)), jax.random.normal(key, (20, 16))])
    data = measures.encode(layers, tau=0.99, delta=0.05, stacked=True)
    rows = measures.report(layers, data).tensors
    assert [row.rank for row in rows] == [1, None]
    assert [row.name for row in rows] == ["[0]", "[1]"]
    np.testing.assert_allclose(measures.decode(data), layers, atol=0.13)


def test_random_keys_and_functions_come_back():
    params = {
        "key": jax.random.key(3),
        "act": jax.nn.relu,
        "w": np.ones((3, 2), np.float32),
    }
    data = measures.encode(params, delta=0.5)
    got = measures.decode(data, like=params)
    assert got["act"] is jax.nn.relu
    assert jax.random.key_data(got["key"]).tolist() == [0, 3]
    with pytest.raises(ValueError, match="pass a tree that has them as `like`"):
        measures.decode(data)


def test_states_of_flax_nnx_come_back_into_their_template():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    data = measures.encode(state, delta=0.01)
    got = measures.decode(data, like=state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert np.shape(jax.tree.leaves(measures.decode(data))[1]) == (6, 5)


def test_a_template_may_be_shapes_only():
    params = tree()["other"][7], np.arange(3, dtype=np.int32)
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    assert signature(measures.decode(measures.encode(params), like=like)) == signature(
        params
    )


def test_format_one_is_read_for_ever():
    """Bytes as the first version wrote them."""
    data = bytes.fromhex(FORMAT_ONE)
    want = np.arange(-6, 6).reshape(3, 4) / 2
    np.testing.assert_array_equal(measures.decode(data)["w"], want)
    assert measures.encode({"w": want.astype(np.float32)}, delta=0.5) == data


FORMAT_ONE = (
    "6a78776d01bcfc52ff1000000001000177040002030400000000003f5c0bc407ce42ce9e76066b85"
)


# --- the coder ---


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.sampled_from([0.05, 0.7, 4.0, 300.0, 1e6]),
)
def test_any_integers_come_back(rows, columns, seed, scale):
    rng = np.random.default_rng(seed)
    matrices = [
        np.clip(np.rint(x * scale), 1 - range_coder.LARGEST, range_coder.LARGEST - 1)
        for x in (
            rng.standard_cauchy((rows, columns)),
            rng.laplace(size=(columns, rows)),
            np.zeros((rows, 1)),
        )
    ]
    coder = range_coder.Encoder()
    for q in matrices:
        coder.matrix(q.astype(np.int32))
    stream = range_coder.Decoder(coder.data())
    for q in matrices:
        np.testing.assert_array_equal(stream.matrix(*q.shape), q)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_the_coder_is_within_four_per_cent_of_the_entropy(scale):
    q = np.rint(np.random.default_rng(0).laplace(size=(256, 64)) * scale)
    coder = range_coder.Encoder()
    coder.matrix(q.astype(np.int32))
    assert len(coder.data()) <= 1.04 * range_coder.order_0_bits(q) / 8 + 8


def test_rows_and_columns_of_different_size_cost_less_than_the_order_0_entropy():
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(size=(200, 1))) * np.exp(rng.normal(size=80))
    q = np.rint(rng.normal(size=(200, 80)) * size)
    coder = range_coder.Encoder()
    coder.matrix(q.astype(np.int32))
    assert len(coder.data()) < 0.85 * range_coder.order_0_bits(q) / 8


def test_frequencies_are_whole_numbers_that_fill_the_range():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 10**7, (50, 16))
    counts[0] = 1
    counts[1, 3] = 10**12
    found = range_coder._frequencies(counts)
    assert found.dtype == np.int64 and found.min() >= 1
    assert (found.sum(-1) == 1 << 16).all()


# --- against the reference ---


@functools.cache
def golden():
    data = np.load(GOLDEN)
    reference = json.loads(str(data["meta"]))["reference"]
    networks = {
        int(step): {k: data[f"step{step}/{k}"] for k in ("E", "W1", "W2", "b1")}
        for step in reference
    }
    x, y = jnp.asarray(data["train_x"]), jnp.asarray(data["train_y"])

    @jax.jit
    def loss(p):
        h = jax.nn.relu(p["E"][x].reshape(len(x), -1) @ p["W1"] + p["b1"])
        log_p = jax.nn.log_softmax(h @ p["W2"])
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], 1))

    return networks, loss, {int(k): v["bzip2"] for k, v in reference.items()}


@functools.cache
def golden_file(step):
    networks, loss, _ = golden()
    return measures.encode(networks[step], loss, epsilon=1.0)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (60, 0.6),
        pytest.param(2000, 0.4, marks=pytest.mark.slow),
        pytest.param(340, 0.6, marks=pytest.mark.slow),
        pytest.param(1140, 0.4, marks=pytest.mark.slow),
    ],
)
def test_golden_files_are_small_and_decode_within_epsilon(step, share):
    """Measured 0.58, 0.33, 0.53, 0.32 of the reference's bytes."""
    networks, loss, reference = golden()
    data, params = golden_file(step), networks[step]
    assert len(data) <= share * reference[step]
    decoded = measures.decode(data)
    assert loss(decoded) <= loss(params) + 1.0


def test_integers_stay_within_one_bin_of_their_weights():
    networks, _, _ = golden()
    decoded = measures.decode(golden_file(60))
    rows = measures.report(networks[60], golden_file(60)).tensors
    for row in rows:
        assert row.rank is None  # every direction matters before grokking
        error = np.abs(decoded[row.name] - networks[60][row.name])
        assert np.max(error) <= row.delta * (1 + 1e-5)


def test_a_report_adds_up():
    networks, _, _ = golden()
    data = golden_file(2000)
    found = measures.report(networks[2000], data)
    assert found.file == len(data) and found.header < 100
    assert [row.name for row in found.tensors] == ["E", "W1", "W2", "b1"]
    assert all(row.rank < 30 for row in found.tensors[:3])
    coded = sum(row.bits for row in found.tensors) / 8
    assert abs(coded + found.header - found.file) <= 16
    assert found.file <= 1.05 * found.entropy + found.header
    assert found.file < found.bz2_integers < found.bz2_floats < found.floats
    assert found.floats == 4 * 27840 and found.gzip_floats > 0.9 * found.floats


def bowl(params):
    """Distance from the network that the tests below begin with."""
    return sum(jnp.sum((params[name] - start()[name]) ** 2) for name in ("w", "b"))


def start(scale=1.0):
    rng = np.random.default_rng(5)
    w, b = rng.normal(size=(16, 12)), rng.normal(size=12)
    return {"w": (scale * w).astype(np.float32), "b": (scale * b).astype(np.float32)}


@pytest.mark.slow
def test_a_loss_is_kept_and_a_finer_epsilon_costs_more():
    sizes = []
    for epsilon in (0.2, 2.0, 20.0):
        data = measures.encode(start(), bowl, epsilon=epsilon, num_steps=30)
        assert bowl(measures.decode(data)) <= bowl(start()) + epsilon
        sizes.append(len(data))
    assert sizes[0] > sizes[1] > sizes[2]


def test_refining_never_makes_a_file_larger():
    plain = measures.encode(start(), bowl, epsilon=2.0, num_steps=0)
    refined = measures.encode(start(), bowl, epsilon=2.0, num_steps=30)
    assert len(refined) <= len(plain)


def test_where_no_bin_keeps_the_loss_floats_are_stored_as_they_are():
    params = start()

    def exact(p):
        return jnp.where(bowl(p) > 0, jnp.inf, 0.0)

    data = measures.encode(params, exact, epsilon=0.1)
    got = measures.decode(data)
    for name in params:
        np.testing.assert_array_equal(got[name], params[name])
    rows = measures.report(params, data).tensors
    assert all(row.delta is None for row in rows)
    assert len(data) >= 0.8 * 4 * (16 * 12 + 12)


def test_leaves_beside_the_weights_reach_the_loss():
    params = {"w": start()["w"], "scale": np.int32(3), "act": jnp.tanh}

    def loss(p):
        return jnp.mean(
            (p["act"](p["scale"] * p["w"]) - jnp.tanh(3 * start()["w"])) ** 2
        )

    data = measures.encode(params, loss, epsilon=0.01, num_steps=5)
    got = measures.decode(data, like=params)
    assert got["scale"] == 3 and loss(got) <= 0.01


def test_stacked_layers_are_told_apart_while_the_loss_is_kept():
    rng = np.random.default_rng(1)
    params = {
        "a_bias": rng.normal(size=5).astype(np.float32),  # before, without layers
        "layers": rng.normal(size=(2, 12, 8)).astype(np.float32),
    }

    def loss(p):
        return jnp.sum((p["layers"] - params["layers"]) ** 2)

    data = measures.encode(
        params, loss, epsilon=2.0, num_steps=5, stacked=lambda name: name == "layers"
    )
    assert loss(measures.decode(data)) <= 2.0
    names = [row.name for row in measures.report(params, data).tensors]
    assert names == ["a_bias", "layers[0]", "layers[1]"]


# --- what is refused ---


@pytest.fixture(scope="module")
def small():
    return measures.encode(tree(), delta=0.1)


def test_every_truncation_is_refused(small):
    for length in range(len(small)):
        with pytest.raises(ValueError, match="data cannot be decoded"):
            measures.decode(small[:length])


def test_every_flipped_byte_is_refused(small):
    for i in range(len(small)):
        for mask in (1, 128, 255):
            changed = bytearray(small)
            changed[i] ^= mask
            with pytest.raises(ValueError, match="data cannot be decoded"):
                measures.decode(bytes(changed))


def forged(body: bytes) -> bytes:
    """A file with a right checksum."""
    head = struct.pack("<BI", container.VERSION, zlib.crc32(body))
    return container.MAGIC + head + body


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_forged_files_either_decode_or_raise_value_error(small, data):
    body = bytearray(small[9:])
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(body) - 1))
        body[i] = data.draw(st.integers(0, 255))
    began = time.process_time()
    try:
        measures.decode(forged(bytes(body)), max_bytes=1 << 16)
    except ValueError as error:
        assert "data cannot be decoded" in str(error)
    assert time.process_time() - began < 5


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_forged_headers_either_decode_or_raise_value_error(header):
    body = bytes([len(header), 0, 0]) + header + b"\x37\xa1\x55\x02"
    try:
        measures.decode(forged(body), max_bytes=1 << 16)
    except ValueError as error:
        assert "data cannot be decoded" in str(error)


def test_a_bomb_is_refused_before_memory_is_taken():
    huge = np.broadcast_to(np.float32(0), (1 << 14, 1 << 14))
    record = container.Leaf(
        container.CODED, shape=huge.shape, parts=(container.Part(0, 1.0),)
    )
    data = container.pack({"w": huge}, [record], b"")
    assert len(data) < 60
    began = time.process_time()
    with pytest.raises(ValueError, match="more than max_bytes"):
        measures.decode(data)
    deflated = zlib.compress(b"\0" * (1 << 25), 9)
    body = bytearray()
    container._write_varint(body, len(deflated))
    with pytest.raises(ValueError, match="larger than it may be"):
        measures.decode(forged(bytes(body) + b"\0\1" + deflated))
    assert time.process_time() - began < 1


def test_a_nest_of_lists_is_refused():
    header = bytes([container.LIST, 1]) * 200
    body = bytearray()
    container._write_varint(body, len(header))
    with pytest.raises(ValueError, match="too deep"):
        measures.decode(forged(bytes(body) + b"\0\0" + header))


def test_another_version_is_named(small):
    changed = bytearray(small)
    changed[4] = 9
    with pytest.raises(ValueError, match="its format is 9, this version reads 1"):
        measures.decode(bytes(changed))


def test_a_template_of_another_tree_is_refused(small):
    with pytest.raises(ValueError, match="like has 1 leaves, the file 9"):
        measures.decode(small, like=np.zeros(3))
    other = tree()
    other["list"][0] = other["list"][0].T
    with pytest.raises(ValueError, match=r"like\[list/0\] is float32\(7, 20\)"):
        measures.decode(small, like=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0 nats, got 0.0"),
        ({"epsilon": -1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"tau": 1.1}, "tau must lie in"),
        ({"delta": 0.0}, "delta must be above 0"),
        ({"delta": 1e-9}, "makes integers of"),
        ({"reach": 0.4}, "reach must be at least 0.5"),
        ({"num_steps": -1}, "num_steps"),
        ({"loss": lambda p: p["w"]}, "loss must return one scalar"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measures.encode(start(), **options)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "must hold floating-point arrays"),
        ({"w": np.array([1.0, np.nan])}, r"params\[w\] must be finite"),
        ({"w": np.array([1.0, np.inf])}, r"params\[w\] must be finite"),
        ({(1, 2): np.ones(2)}, "keys of dicts must be"),
    ],
)
def test_trees_that_cannot_be_coded_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        measures.encode(params)


def test_a_code_within_the_exact_range_is_exact():
    """Products of integers are exact in float64; a file beyond that is refused."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30))
    data = measures.encode(w.astype(np.float32), tau=0.99999, delta=1e-4)
    q = code.planes(data)[0].astype(object)
    exact = (q[:40] @ q[40:].T).astype(np.float64) * float(np.float32(1e-4)) ** 2
    np.testing.assert_array_equal(measures.decode(data), exact.astype(np.float32))
