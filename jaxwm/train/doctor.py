"""What a machine has: for bug reports, and to see at once what is missing."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

from jaxwm.train import run

_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""


class Fact(NamedTuple):
    """One line: what, its state, and a remedy where something is missing."""

    name: str
    value: str
    remedy: str = ""


def examine(directory: str | pathlib.Path = ".") -> list[Fact]:
    """Looks at versions, devices, drawing, film, cache and disk.

    Args:
        directory: on the disk whose free space counts.
    """
    facts = [Fact(name, version) for name, version in run.versions().items()]
    return [
        *facts,
        _devices(),
        _cores(),
        _drawing(),
        _film(),
        _cache(),
        _disk(directory),
    ]


def _devices() -> Fact:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        return Fact("devices", text, "another --platform, or jax for your accelerator")
    return Fact("devices", f"{len(devices)} x {devices[0].device_kind}")


def _cores() -> Fact:
    return Fact("cpu cores", str(num_cores()))


def num_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _drawing() -> Fact:
    """Draws in a child process: a broken driver may end it."""
    backend = os.environ.get("MUJOCO_GL", "unset")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DRAW], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return Fact("drawing", f"MUJOCO_GL={backend}: no answer in 60 s", _GL)
    if done.returncode == 0:
        return Fact("drawing", f"MUJOCO_GL={backend}: works")
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return Fact("drawing", f"MUJOCO_GL={backend}: {lines[-1]}", _GL)


_GL = (
    "MUJOCO_GL=egl with libegl1 and libgl1-mesa-dri; without it reports show drawn "
    "figures instead"
)


def _film() -> Fact:
    path = shutil.which("ffmpeg")
    if path is None:
        return Fact("ffmpeg", "not found", "not needed for GIF; install it for MP4")
    return Fact("ffmpeg", path)


def _cache() -> Fact:
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not path:
        return Fact("compilation cache", "off", "set JAX_COMPILATION_CACHE_DIR")
    files = [p for p in pathlib.Path(path).glob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    return Fact("compilation cache", f"{path}: {len(files)} files, {size:.0f} MB")


def _disk(directory: str | pathlib.Path) -> Fact:
    usage = shutil.disk_usage(directory)
    free = usage.free / 1e9
    remedy = "a checkpoint needs the replay's size, twice" if free < 2 else ""
    return Fact("free disk", f"{free:.1f} GB in {pathlib.Path(directory)}", remedy)
