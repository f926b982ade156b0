"""Compiles one MJCF file of unknown origin; run as a program, never imported.

Reads a request as JSON from standard input, limits its own time and memory as that
asks, writes the compiled model to the path in it, and answers with JSON `{"error": text
or null}`. It imports nothing of jaxwm, so that it starts fast and stays small.
"""

import importlib
import json
import math
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

FOLDERS = ("assetdir", "meshdir", "texturedir")
MAX_DEPTH = 20  # of files that include files


class RefusedError(Exception):
    """The model must not be used; the message says why."""


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    limit(request["seconds"], request["megabytes"])
    try:
        compile_model(request)
        error = None
    except RefusedError as refusal:
        error = str(refusal)
    except MemoryError:
        error = "it needs more memory than allowed"
    except Exception as failure:
        # MuJoCo's parser and compiler raise ValueError and errors of their own.
        error = f"MuJoCo cannot compile it: {failure}"
    json.dump({"error": error}, sys.stdout)


def limit(seconds: float, megabytes: int) -> None:
    """Ends this process when it takes more; only where the system can do that."""
    try:
        import resource
    except ImportError:
        return
    whole = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    size = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def compile_model(request: dict) -> None:
    """Checks every file that the model names, compiles it, and checks its numbers."""
    path, text = request["path"], request["text"]
    root = pathlib.Path(path).resolve().parent if path else None
    binary = bool(path) and path.lower().endswith(".mjb")
    if not binary:
        text = text if path is None else pathlib.Path(path).read_text("utf-8")
        check_files(text, root)
    mujoco: Any = importlib.import_module("mujoco")
    config = mujoco.MjLogConfig.get()
    config.logto_file = False
    config.set()
    if binary:
        model = mujoco.MjModel.from_binary_path(path)
    elif path:
        model = mujoco.MjModel.from_xml_path(path)
    else:
        model = mujoco.MjModel.from_xml_string(text)
    check_numbers(model)
    mujoco.mj_saveModel(model, request["result"])


def check_files(text: str, root: pathlib.Path | None, depth: int = 0) -> None:
    """Refuses files outside of the model's own folder, also through links."""
    if depth > MAX_DEPTH:
        raise RefusedError(f"its files include each other more than {MAX_DEPTH} deep")
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise RefusedError("it declares a document type, which MJCF has no use for")
    folders = [""]
    elements = list(ElementTree.fromstring(text).iter())
    for element in elements:
        for name in FOLDERS:
            if name in element.attrib:
                folders.append(element.attrib[name])
    for element in elements:
        for name, value in element.attrib.items():
            # MuJoCo reads NaN as "not given", which is not what the author meant.
            if name not in ("name", "class") and "nan" in value.lower().split():
                raise RefusedError(f'{name}="{value}" of <{element.tag}> is not finite')
            if not (name.startswith("file") or name in FOLDERS) or not value:
                continue
            if root is None:
                raise RefusedError(
                    f'it names the file "{value}", but is a text by itself'
                )
            for folder in folders if name.startswith("file") else [""]:
                check_inside(root, folder, value)
            inner = root / value
            if element.tag in ("include", "model") and inner.is_file():
                check_files(inner.read_text("utf-8"), root, depth + 1)


def check_inside(root: pathlib.Path, folder: str, value: str) -> None:
    """Refuses a path that leaves `root`."""
    place = pathlib.PurePosixPath(folder.replace("\\", "/")) / value.replace("\\", "/")
    outside = place.is_absolute() or ".." in place.parts or ":" in str(place)
    if outside or not (root / place).resolve().is_relative_to(root):
        raise RefusedError(f'it names the file "{value}" outside of its folder {root}')


def check_numbers(model) -> None:
    """Refuses models with numbers that are not finite."""
    import numpy as np

    for holder, prefix in ((model, ""), (model.opt, "opt."), (model.stat, "stat.")):
        for name in dir(holder):
            value = None if name.startswith("_") else getattr(holder, name)
            if not isinstance(value, (float, np.ndarray)):
                continue
            numbers = np.asarray(value)
            if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise RefusedError(f"{prefix}{name} is not finite")


if __name__ == "__main__":
    main()
