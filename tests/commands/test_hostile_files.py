"""Files of strangers are refused: quickly, in little memory, without running anything.

Every kind of file that the library opens, read in a process of its own.
"""

import io
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest

from jaxwm import data
from jaxwm.data import layout, minari
from jaxwm.envs import mjcf
from jaxwm.train import checkpoint, manifest
from jaxwm.types import Box, EnvSpec
from tests.data.episodes import episode

pytestmark = pytest.mark.slow  # quick ones are with the readers' own tests
ROOT = pathlib.Path(__file__).parents[2]
SECONDS, MEGABYTES = 5, 512
most = {"seconds": 0.0, "megabytes": 0.0, "files": 0}  # that any of them took


class Exploit:
    """What unpickling runs."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def reader():
    """A function `(kind, path) -> answer`, see `reader.py`."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.commands.reader"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def read(kind, path):
            process.stdin.write(json.dumps([kind, str(path)]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield read
        process.stdin.close()
    print({name: round(value, 2) for name, value in most.items()})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint with one array, stored by itself."""
    directory = tmp_path_factory.mktemp("saved")
    checkpoint.save(directory, 1, {"a": np.ones(300_000)}, config={})
    return directory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    spec = EnvSpec(
        name="toy",
        obs=None,
        action=Box((-1.0,), (2.0,)),
        control_dt=0.1,
        time_limit=9,
        factors=(),
    )
    rows = data.concatenate([episode(0, 4), episode(1, 3)])
    return minari.save(tmp_path_factory.mktemp("sets") / "toy", rows, spec=spec)


def refused(answer, *words):
    """Checks an answer against all that is promised."""
    assert answer["status"] == 0, answer
    assert answer["error"], "it was not refused"
    assert {"ValueError", "RunError"} & set(answer["error"]), answer
    assert answer["seconds"] < SECONDS, answer
    assert answer["megabytes"] < MEGABYTES, answer
    most["seconds"] = max(most["seconds"], answer["seconds"])
    most["megabytes"] = max(most["megabytes"], answer["megabytes"])
    most["files"] += 1
    for word in words:
        assert word in answer["text"], answer


def resealed(root, change):
    """Changes a checkpoint's manifest and makes its seal fit again."""
    body = manifest.read(root)
    change(body)
    text = json.dumps({**body, "seal": manifest._seal(body)})
    (root / "manifest.json").write_text(text)


def relisted(root, change):
    """Lists the files of a checkpoint anew, as they are now."""
    body = manifest.read(root)
    change(body)
    (root / "manifest.json").unlink()
    manifest.write(
        root, {k: v for k, v in body.items() if k not in ("files", "format")}
    )


def store_of(root):
    """How tensorstore opens the array of `saved`."""
    base = {"driver": "file", "path": f"{root / 'state'}/"}
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base},
        "path": "00000",
    }


def write_array(root, metadata, values=None):
    """Replaces the array inside a checkpoint."""
    import tensorstore

    spec = {**store_of(root), "metadata": metadata}
    array = tensorstore.open(spec, create=True, delete_existing=True).result()
    if values is not None:
        array[...].write(values).result()


def a_link_to_a_file(root):
    target = root / "state" / "_METADATA"
    outside = root.parents[1] / "elsewhere"
    target.rename(outside)
    target.symlink_to(outside)


def a_link_to_a_directory(root):
    outside = root.parents[1] / "elsewhere"
    (root / "state" / "ocdbt.process_0").rename(outside)
    (root / "state" / "ocdbt.process_0").symlink_to(outside)


def a_step_that_is_a_link(root):
    outside = root.parents[1] / "elsewhere"
    root.rename(outside)
    root.symlink_to(outside)


def a_path_that_leads_out(root):
    (root.parent / "secret").write_bytes(b"x")
    entry = {"path": "../secret", "size": 1, "sha256": "0"}
    resealed(root, lambda body: body["files"].append(entry))


def an_absolute_path(root):
    entry = {"path": "/etc/hostname", "size": 1, "sha256": "0"}
    resealed(root, lambda body: body["files"].append(entry))


def a_manifest_without_end(root):
    (root / "manifest.json").write_text('{"a":' * 100_000)


def a_manifest_of_other_types(root):
    resealed(root, lambda body: body.update(files=3))


def an_array_of_objects(root):
    resealed(root, lambda body: body["arrays"][0].update(dtype="O"))


def an_array_beyond_its_file(root):
    metadata = {"shape": [10**12], "dtype": "<f8", "chunks": [10**6]}
    write_array(root, metadata)
    relisted(root, lambda body: None)


def an_array_that_unpacks(root):
    size = 3 * 10**8
    metadata = {"shape": [size], "dtype": "|u1", "chunks": [size]}
    metadata["compressor"] = {"id": "zlib", "level": 1}
    write_array(root, metadata, np.zeros(size, np.uint8))
    relisted(root, lambda body: body["arrays"][0].update(dtype="uint8"))


CHECKPOINTS = {
    a_link_to_a_file: "is a link, which is not followed",
    a_link_to_a_directory: "is a link, which is not followed",
    a_step_that_is_a_link: "is a link, which is not followed",
    a_path_that_leads_out: "lies outside",
    an_absolute_path: "lies outside",
    a_manifest_without_end: "cannot be read",
    a_manifest_of_other_types: "malformed",
    an_array_of_objects: "malformed",
    an_array_beyond_its_file: "its arrays differ",
    an_array_that_unpacks: "",  # refused by its dtype where it is read as doubles
}


@pytest.mark.parametrize("how", CHECKPOINTS, ids=lambda how: how.__name__)
def test_checkpoints_are_refused_and_set_aside(reader, saved, tmp_path, how):
    directory = shutil.copytree(saved, tmp_path / "run")
    how(directory / "checkpoints" / "1")
    refused(reader("checkpoint", directory), CHECKPOINTS[how])
    refused(reader("weights", directory / "checkpoints" / "1"))
    answer = reader("tidy", directory)
    assert (answer["error"], answer["status"]) == (None, 0)


def test_an_array_that_claims_more_than_all_files_hold_is_refused(
    reader, saved, tmp_path
):
    directory = shutil.copytree(saved, tmp_path / "run")

    def claim(body):
        body["arrays"][0].update(shape=[10**12], stored_shape=[10**12])

    resealed(directory / "checkpoints" / "1", claim)
    refused(reader("weights", directory), "which is more than")
    claim_zeros = lambda body: body["arrays"][0].update(stored_shape=[300_000])
    resealed(directory / "checkpoints" / "1", claim_zeros)
    refused(reader("weights", directory), "which is more than")


def pickled(path, canary):
    np.savez(path, a=np.array([Exploit(f"touch {canary}")], object))


def a_zip_bomb(path, canary):
    np.savez_compressed(path, a=np.zeros(3 * 10**8, np.uint8))


def a_header_that_claims_too_much(path, canary):
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", head.getvalue() + bytes(80))


def a_name_without_end(path, canary):
    with zipfile.ZipFile(path, "w") as file:
        content = io.BytesIO()
        np.save(content, np.ones(3))
        file.writestr("a/" * 30_000 + "b.npy", content.getvalue())


def no_array_at_all(path, canary):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../outside.npy", b"import os")


def a_torn_archive(path, canary):
    np.savez(path, a=np.ones(999))
    path.write_bytes(path.read_bytes()[:-200])


ARCHIVES = (
    pickled, a_zip_bomb, a_header_that_claims_too_much, a_name_without_end,
    no_array_at_all, a_torn_archive,
)  # fmt: skip


@pytest.mark.parametrize("how", ARCHIVES, ids=lambda how: how.__name__)
def test_archives_are_refused_and_run_nothing(reader, tmp_path, how):
    folder = tmp_path / "folder"
    folder.mkdir()
    how(folder / "x.npz", tmp_path / "canary")
    refused(reader("weights", folder / "x.npz"), "x.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def safetensors_file(header, size=None, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


SAFETENSORS = {
    "a header beyond the file": safetensors_file(b"{}", 1 << 60),
    "a header of a hundred megabytes": safetensors_file(b"{}", 99_000_000),
    "a header without end": safetensors_file(b'{"a":' * 100_000),
    "numbers beyond the file": safetensors_file(
        {"a": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 8 * 10**12]}}
    ),
    "a shape that does not fit": safetensors_file(
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, body=bytes(4)
    ),
    "a shape that overflows": safetensors_file(
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}
    ),
    "arrays that overlap": safetensors_file(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        body=bytes(12),
    ),
    "an unknown type": safetensors_file(
        {"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}, body=bytes(8)
    ),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie_are_refused(reader, tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(SAFETENSORS[name])
    refused(reader("weights", tmp_path / "x.safetensors"), "x.safetensors")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("run", "config.json"), ("dump", "dump.json"), ("minari", "data/metadata.json")],
)
def test_json_without_end_is_refused(reader, dataset, tmp_path, kind, name):
    directory = shutil.copytree(dataset, tmp_path / "x")
    (directory / "data" / "manifest.json").unlink()
    for text in ("[" * 100_000, '{"a":' * 100_000):
        (directory / name).write_text(text)
        refused(reader(kind, directory))


def test_rows_and_owners_without_end_are_left_out(reader, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n' + "[" * 100_000)
    (tmp_path / "run.lock").write_text("[" * 100_000)
    for kind, path in (("rows", tmp_path / "metrics.jsonl"), ("owner", tmp_path)):
        answer = reader(kind, path)
        assert (answer["error"], answer["status"]) == (None, 0)


def replace(file, name, make):
    del file[name]
    make(file, name)


def external_link(file, name):
    file[name] = h5py.ExternalLink("/etc/hostname", "/")


def soft_link(file, name):
    file[name] = h5py.SoftLink("/episode_0/rewards")


def outside_numbers(file, name):
    file.create_dataset(name, (3,), "f8", external=[("/etc/passwd", 0, 24)])


def outside_numbers_without_end(file, name):
    file.create_dataset(name, (3,), "f8", external=[("/dev/zero", 0, 1 << 40)])


def virtual(file, name):
    sheet = h5py.VirtualLayout((3,), "f8")
    sheet[:] = h5py.VirtualSource("/etc/other.hdf5", "x", (3,))
    file.create_virtual_dataset(name, sheet)


def absurd(file, name):
    file.create_dataset(name, (10**12,), "f8", chunks=(10**6,))


def bomb(file, name):
    file.create_dataset(name, (4, 10**8), "u1", chunks=(1, 10**6), compression="gzip")


def a_group_inside_itself(file, name):
    group = file.create_group(name)
    group["again"] = group
    group["more"] = group


def text(file, name):
    file[name] = [["rm"], ["-rf"], ["/"]]


HDF5 = {
    external_link: ("episode_1/rewards", "link"),
    soft_link: ("episode_1/rewards", "link"),
    outside_numbers: ("episode_1/rewards", "another file"),
    outside_numbers_without_end: ("episode_1/rewards", "another file"),
    virtual: ("episode_1/rewards", "another file"),
    absurd: ("episode_1/rewards", "total_steps says 3 rows"),
    bomb: ("episode_1/observations", "unpacks from"),
    a_group_inside_itself: ("episode_1/observations", "episode 1"),
    text: ("episode_1/actions", "must hold numbers"),
}


@pytest.mark.parametrize("listed", [False, True], ids=["strange", "with manifest"])
@pytest.mark.parametrize("how", HDF5, ids=lambda how: how.__name__)
def test_datasets_are_refused(reader, dataset, tmp_path, how, listed):
    """Also where a manifest is there and the damage is looked for in the file."""
    name, word = HDF5[how]
    directory = shutil.copytree(dataset, tmp_path / "x")
    with h5py.File(directory / "data" / layout.DATA, "a") as file:
        replace(file, name, how)
    if not listed:
        (directory / "data" / "manifest.json").unlink()
    refused(reader("minari", directory), "episode 1" if listed else word)
    if how is not a_group_inside_itself and "rewards" in name:
        refused(reader("inspect", directory))


@pytest.mark.parametrize(
    "changes",
    [
        {"total_episodes": 10**12},
        {"total_steps": 10**12},
        {"observation_space": '["Box"]'},
        {"observation_space": '{"type": "Dict", "subspaces": [3]}'},
        {"observation_space": '{"type": "Box", "shape": 7}'},
        {"action_space": "[" * 10_000},
    ],
    ids=str,
)
def test_metadata_that_lies_is_refused(reader, dataset, tmp_path, changes):
    directory = shutil.copytree(dataset, tmp_path / "x")
    (directory / "data" / "manifest.json").unlink()
    path = directory / "data" / layout.META
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(reader("minari", directory), "x/data")


def test_images_that_unpack_to_too_much_are_refused(reader, dataset, tmp_path):
    """An image says how large it is; it must be what metadata.json says."""
    from PIL import Image

    directory = shutil.copytree(dataset, tmp_path / "x")
    (directory / "data" / "manifest.json").unlink()
    content = io.BytesIO()
    Image.new("L", (9_000, 9_000)).save(content, "JPEG")
    path = directory / "data" / layout.META
    space = {"type": "Box", "dtype": "uint8", "low": 0, "high": 255}
    for size, word in ((32, "instead of"), (9_000, "unpack to far more")):
        body = json.loads(path.read_text()) | {"jpeg_encoding": True}
        body["observation_space"] = json.dumps({**space, "shape": [size, size]})
        path.write_text(json.dumps(body))
        with h5py.File(directory / "data" / layout.DATA, "a") as file:
            for i, num in ((0, 5), (1, 4)):
                del file[f"episode_{i}/observations"]
                kind = h5py.vlen_dtype(np.uint8)
                file.create_dataset(f"episode_{i}/observations", (num,), kind)
                for row in range(num):
                    image = np.frombuffer(content.getvalue(), np.uint8)
                    file[f"episode_{i}/observations"][row] = image
        refused(reader("minari", directory), word)


def test_coded_weights_that_lie_are_refused(reader, tmp_path):
    from jaxwm.measures import code

    good = code.encode({"w": np.ones((4, 4), np.float32)})
    rng, path = random.Random(5), tmp_path / "x.jxwm"
    for _ in range(20):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        refused(reader("code", path), "cannot be decoded")


BODY = "<mujoco><worldbody>{}</worldbody></mujoco>"
BALL = '<body><freejoint/><geom size="1"/></body>'
MODELS = {
    "a file elsewhere": '<mujoco><include file="/etc/passwd"/></mujoco>',
    "a file above": '<mujoco><include file="../../etc/hostname"/></mujoco>',
    "two million bodies": BODY.format(f'<replicate count="2000000">{BALL}</replicate>'),
    "a mass that is no number": BODY.format('<geom size="1" mass="nan"/>'),
    "a mass without end": BODY.format('<geom size="1" mass="1e400"/>'),
    "twenty thousand bodies in each other": BODY.format(
        "<body>" * 20_000 + "</body>" * 20_000
    ),
    "a terabyte": '<mujoco><size memory="1000G"/></mujoco>',
    "entities": '<!DOCTYPE m [<!ENTITY a "b">]><mujoco/>',
    "a body without mass": BODY.format("<body><freejoint/></body>"),
    "an unknown plugin": (
        '<mujoco><extension><plugin plugin="x.y"/></extension></mujoco>'
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_refused(reader, tmp_path, name):
    (tmp_path / "x.xml").write_text(MODELS[name])
    refused(reader("mjcf", tmp_path / "x.xml"), "is refused")


def test_compiled_models_are_refused_whatever_is_in_them(tmp_path):
    import mujoco

    path = tmp_path / "x.mjb"
    mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(BODY.format(BALL)), str(path))
    good, rng = path.read_bytes(), random.Random(6)
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="allow_binary"):
            mjcf.load(path)
