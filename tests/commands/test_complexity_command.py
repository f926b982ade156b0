"""`jaxwm complexity` on every kind of file, and what it says when it cannot."""

import json
import zipfile

import numpy as np
import pytest

from jaxwm import __main__ as cli
from jaxwm import measures
from jaxwm.commands import weights
from jaxwm.train import checkpoint, plots
from jaxwm.train.errors import ConfigError, RunError

LOSSES = '''
import jax.numpy as jnp
import numpy as np

TARGET = (1 + 0.1 * np.random.default_rng(0).normal(size=(9, 7))).astype(np.float32)

def loss(params):
    """A hundred times the mean squared distance from what was saved."""
    return 100 * jnp.mean((params["layer"]["kernel"] - TARGET) ** 2)

def vector(params):
    return params["layer"]["bias"]

def broken(params):
    return params["decoder"]

number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with losses and one network in every kind of file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text(LOSSES)
    rng = np.random.default_rng(0)
    kernel = (1 + 0.1 * rng.normal(size=(9, 7))).astype(np.float32)
    flat = {"layer/kernel": kernel, "layer/bias": np.zeros(7, np.float32)}
    np.savez("net.npz", **flat, note=np.array("text is no weight"))
    checkpoint.save("saved", 3, weights.nest(flat), config={})
    return tmp_path


def run(*arguments):
    return cli.main(["complexity", *map(str, arguments)])


def failed(capsys, *arguments):
    try:
        status = run(*arguments)
    except SystemExit as ended:
        status = ended.code
    return status, " ".join(capsys.readouterr().err.split())


def test_an_npz_file_gives_a_table_numbers_a_picture_and_a_file(folder, capsys):
    status = run(
        *("net.npz", "--loss", "my_losses:loss", "--epsilon", "0.5"),
        *("--json", "found.json", "--plot", "curve.png", "--out", "net.jxw"),
    )
    assert status == 0
    text = capsys.readouterr().out
    for part in ("layer/kernel", "9x7", "coded file, header included", "epsilon"):
        assert part in text
    found = json.loads((folder / "found.json").read_text())
    data = (folder / "net.jxw").read_bytes()
    assert found["bytes"]["file"] == len(data)
    assert found["loss"]["decoded"] <= found["loss"]["original"] + 0.5
    decoded = measures.decode(data)
    error = 100 * np.mean(
        (decoded["layer"]["kernel"] - np.load("net.npz")["layer/kernel"]) ** 2
    )
    assert error == pytest.approx(found["loss"]["decoded"], rel=1e-4)
    sizes = [row["bytes"] for row in found["curve"]]
    assert sizes == sorted(sizes)  # from the largest epsilon to the smallest
    assert sizes[0] < sizes[-1]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_jaxwm_is_read_with_and_without_its_step(folder):
    want = np.load("net.npz")["layer/kernel"]
    for path, options in (("saved", {}), ("saved/checkpoints/3", {"step": 3})):
        tree, where = weights.read(path, **options)
        np.testing.assert_array_equal(tree["layer"]["kernel"], want)
        assert "step 3" in where
    part, _ = weights.read("saved", part="layer")
    assert set(part) == {"kernel", "bias"}


def test_safetensors_and_names_with_dots_become_the_same_tree(folder):
    numpy = pytest.importorskip("safetensors.numpy")
    want = np.load("net.npz")
    numpy.save_file(
        {name.replace("/", "."): want[name] for name in ("layer/kernel", "layer/bias")},
        "net.safetensors",
    )
    tree, _ = weights.read("net.safetensors")
    np.testing.assert_array_equal(tree["layer"]["kernel"], want["layer/kernel"])
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(RunError, match=r"cannot be read as \.safetensors"):
        weights.read("cut.safetensors")


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"sizes\[a\] must be \(2,\)"):
        plots.rate_distortion([1.0, 2.0], {"a": [3.0]})


def test_names_that_clash_are_refused():
    for flat in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
        with pytest.raises(RunError, match="cannot hold others"):
            weights.nest(flat)
    assert weights.nest({"a.b/c": 1}) == {"a.b": {"c": 1}}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.npz", "--loss", "my_losses:loss"], 2, "none.npz does not exist"),
        (["my_losses.py", "--loss", "my_losses:loss"], 2, "weights are read from .npz"),
        (["net.npz"], 2, "--loss"),
        (["net.npz", "--loss", "my_losses"], 2, "must read module:function"),
        (["net.npz", "--loss", "no_module:loss"], 2, 'the module "no_module"'),
        (["net.npz", "--loss", "my_losses:los"], 2, "has no such function"),
        (["net.npz", "--loss", "my_losses:number"], 2, "has no such function"),
        (["net.npz", "--loss", "my_losses:vector"], 1, "must return one scalar"),
        (["net.npz", "--loss", "my_losses:broken"], 1, "the loss raised KeyError"),
        (["net.npz", "--loss", "my_losses:broken"], 1, "layer/kernel [9, 7]"),
        (["net.npz", "--loss", "my_losses:loss", "--epsilon", "0"], 2, "above 0 nats"),
        (["net.npz", "--loss", "my_losses:loss", "--epsilon", "x"], 2, "invalid float"),
        (["net.npz", "--loss", "my_losses:loss", "--plot", "a.gif"], 2, ".svg or .png"),
        (["net.npz", "--loss", "my_losses:loss", "--json", "no/a"], 2, "its folder"),
        (["net.npz", "--loss", "my_losses:loss", "--part", "head"], 2, 'part "head"'),
        (["net.npz", "--loss", "my_losses:loss", "--seed", "1"], 2, "no seeds"),
        (["saved", "--loss", "my_losses:loss", "--step", "9"], 2, "has steps [3]"),
        (["saved", "--loss", "my_losses:loss", "--part", "head"], 2, 'no part "head"'),
        ([".", "--loss", "my_losses:loss"], 2, "holds no checkpoints/<step>"),
    ],
)
def test_what_cannot_be_done_is_said(folder, capsys, arguments, status, message):
    got, text = failed(capsys, *arguments)
    assert got == status
    assert message in text


def test_a_broken_archive_is_named(folder):
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(RunError, match=r"broken\.npz cannot be read as \.npz"):
        weights.read("broken.npz")
    np.savez("objects.npz", w=np.array([{}], dtype=object))
    with pytest.raises(RunError, match="cannot be read"):
        weights.read("objects.npz")
    with zipfile.ZipFile("claims.npz", "w") as file, file.open("a.npy", "w") as part:
        head = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(part, head)
    with pytest.raises(RunError, match=r"claims shape .*more than it holds"):
        weights.read("claims.npz")


def test_names_that_nest_without_end_are_refused():
    with pytest.raises(RunError, match="nested more than 64 deep"):
        weights.nest({"a/" * 1000: 1})


def test_an_import_that_fails_inside_the_module_is_not_hidden(folder):
    from jaxwm.commands import complexity

    (folder / "half_losses.py").write_text("import missing_library\n")
    with pytest.raises(ModuleNotFoundError, match="missing_library"):
        complexity.load_loss("half_losses:loss")
    with pytest.raises(ConfigError, match="half_lossess"):
        complexity.load_loss("half_lossess:loss")
