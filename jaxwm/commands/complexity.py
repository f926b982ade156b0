"""`jaxwm complexity`: how much a trained network knows, as the size of a file."""

import argparse
import importlib
import json
import math
import pathlib
import sys
from typing import Any

from jaxwm.commands import surroundings

# As the published curves have them.
_EPSILONS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)


def complexity(arguments: list[str]) -> int:
    """Codes a checkpoint within a rise of its loss and shows where the bits went."""
    parser = argparse.ArgumentParser(
        "jaxwm complexity",
        description="Code trained weights as small as their loss allows: low rank, "
        "bins, rounding by rate and distortion, arithmetic coding.",
        epilog="Names like a/b/c (or a.b.c, where none holds a slash) in .npz and "
        ".safetensors files become nested dicts; the loss gets that tree.",
    )
    parser.add_argument(
        "checkpoint",
        help=".npz or .safetensors file, a run's directory, or a checkpoint in it",
    )
    parser.add_argument(
        "--loss",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function (params) -> scalar, mean loss in nats on data that never "
        "change; modules are also looked for in the working directory",
    )
    parser.add_argument(
        "--epsilon", type=float, default=1.0, help="rise of the loss allowed, nats (1)"
    )
    parser.add_argument(
        "--part", metavar="A/B", help="part of the tree; of a run, its world model's"
    )
    parser.add_argument("--step", type=int, help="of a run; default: the newest")
    parser.add_argument("--seed", type=int, help="of a run; default: its first")
    parser.add_argument(
        "--stacked",
        default="",
        metavar="A,B",
        help="parts of names of leaves whose first axis counts layers",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw size over epsilon (.svg or .png)"
    )
    parser.add_argument("--out", metavar="FILE", help="write the coded weights")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    _check(options)
    surroundings.prepare(platform=options.platform)
    loss = load_loss(options.loss)
    from jaxwm.commands import weights
    from jaxwm.train.errors import RunError

    params, where = weights.read(
        options.checkpoint, part=options.part, step=options.step, seed=options.seed
    )
    try:
        found, data = measure(params, loss, options.epsilon, options.stacked)
    except ValueError as error:
        raise RunError(str(error)) from error
    _print(found, where)
    _write(found, data, options)
    return 0


def load_loss(name: str) -> Any:
    """The function that "module:function" names.

    Raises:
        ConfigError: where there is no such module or function.
    """
    from jaxwm.train.errors import ConfigError

    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ConfigError(
            f'--loss must read module:function, got "{name}"; for example '
            "my_losses:loss, with loss(params) -> scalar in my_losses.py."
        )
    folder = str(pathlib.Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # an import inside the module, not the module
        raise ConfigError(
            f'--loss names the module "{module_name}", which is neither installed nor '
            f"in {pathlib.Path.cwd()}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f'--loss names "{function_name}", but {module_name} has no such function.'
        )
    return function


def measure(
    params: Any, loss: Any, epsilon: float, stacked: str = ""
) -> tuple[dict[str, Any], bytes]:
    """Everything the command shows, as plain JSON, and the coded weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxwm import measures
    from jaxwm.train.errors import RunError

    params = jax.tree.map(jnp.asarray, params)
    layers = tuple(part for part in stacked.split(",") if part)

    def is_stacked(name: str) -> bool:
        return any(part in name for part in layers)

    def guarded(params):
        try:
            return loss(params)
        except Exception as error:  # the caller's code
            raise RunError(
                f"the loss raised {type(error).__name__}: {error}. It was given "
                f"{_outline(params)}."
            ) from error

    data = measures.encode(params, guarded, epsilon=epsilon, stacked=is_stacked)
    sizes = measures.report(params, data)
    decoded = jax.tree.map(jnp.asarray, measures.decode(data, like=params))
    grid = measures.Grid(
        taus=(0.4, 0.5, 0.6, 0.7, 1.0),
        deltas=tuple(np.geomspace(2e-3, 1.0, 48).tolist()),
    )
    curve = jax.jit(
        lambda p: measures.complexity(
            p, guarded, epsilon=jnp.asarray(_EPSILONS), grid=grid, stacked=is_stacked
        )
    )(params)
    found = {
        "epsilon": epsilon,
        "loss": {
            "original": float(guarded(params)),
            "decoded": float(guarded(decoded)),
        },
        "bytes": {
            "file": sizes.file,
            "header": sizes.header,
            "entropy": sizes.entropy,
            "bz2_integers": sizes.bz2_integers,
            "bz2_floats": sizes.bz2_floats,
            "gzip_floats": sizes.gzip_floats,
            "floats": sizes.floats,
        },
        "tensors": [tensor._asdict() for tensor in sizes.tensors],
        "curve": [
            {
                "epsilon": value,
                "bytes": float(curve.bits[i]) / 8,
                "tau": float(curve.tau[i]),
                "delta": float(curve.delta[i]),
                "loss": float(curve.loss[i]),
                "feasible": bool(curve.feasible[i]),
            }
            for i, value in enumerate(_EPSILONS)
        ],
    }
    return found, data


def _check(options) -> None:
    """Refuses what would only fail at the end."""
    from jaxwm.train.errors import ConfigError

    if not 0 < options.epsilon < math.inf:
        raise ConfigError(f"--epsilon must be above 0 nats, got {options.epsilon:g}.")
    if options.plot and pathlib.Path(options.plot).suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot must end in .svg or .png, got {options.plot}.")
    for name in ("json", "plot", "out"):
        path = getattr(options, name)
        if path and not pathlib.Path(path).resolve().parent.is_dir():
            raise ConfigError(f"--{name} {path}: its folder does not exist.")


def _outline(params: Any) -> str:
    """Names and shapes of a tree's first leaves."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(params)
    shown = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(leaf.shape)}"
        for path, leaf in leaves[:8]
    ]
    more = f" and {len(leaves) - 8} more" if len(leaves) > 8 else ""
    return ", ".join(shown) + more


def _print(found: dict, where: str) -> None:
    print(where)
    width = max(6, *(len(tensor["name"]) for tensor in found["tensors"]))
    print(
        f"{'tensor':<{width}}  {'shape':<14}{'rank':>6}{'bin':>10}{'bytes':>9}", end=""
    )
    print(f"{'bits/weight':>13}")
    for tensor in found["tensors"]:
        shape = "x".join(map(str, tensor["shape"])) or "1"
        rank = "-" if tensor["rank"] is None else tensor["rank"]
        width_of_bin = "-" if tensor["delta"] is None else f"{tensor['delta']:.4g}"
        per_weight = tensor["bits"] / max(math.prod(tensor["shape"]), 1)
        print(
            f"{tensor['name']:<{width}}  {shape:<14}{rank:>6}{width_of_bin:>10}"
            f"{tensor['bits'] / 8:>9,.0f}{per_weight:>13.3f}"
        )
    loss, sizes = found["loss"], found["bytes"]
    print(
        f"\nloss {loss['original']:.6g} -> {loss['decoded']:.6g} nats "
        f"(may rise by {found['epsilon']:g})"
    )
    for name, text in (
        ("file", "coded file, header included"),
        ("header", "of which header"),
        ("entropy", "order-0 entropy of the integers"),
        ("bz2_integers", "bz2 of the integers"),
        ("bz2_floats", "bz2 of the raw weights"),
        ("gzip_floats", "gzip of the raw weights"),
        ("floats", "raw weights"),
    ):
        times = f"{sizes['floats'] / max(sizes[name], 1):>9.1f}x"
        times = " " * len(times) if name == "header" else times
        print(f"{sizes[name]:>12,.0f} bytes{times}  {text}")
    print("\ncoarse-graining alone, by the rise of the loss allowed")
    print(f"{'epsilon':>9}{'bytes':>12}{'tau':>8}{'bin':>10}{'loss':>11}")
    for row in found["curve"]:
        note = "" if row["feasible"] else "  nothing keeps the loss"
        print(
            f"{row['epsilon']:>9.4g}{row['bytes']:>12,.0f}{row['tau']:>8.2f}"
            f"{row['delta']:>10.4g}{row['loss']:>11.4g}{note}"
        )


def _write(found: dict, data: bytes, options) -> None:
    from jaxwm.train import durable, plots

    if options.json:
        text = json.dumps(found, indent=1) + "\n"
        durable.write_text(pathlib.Path(options.json), text)
    if options.plot:
        curve = found["curve"]
        name = "coarse-graining (entropy)"
        picture = plots.rate_distortion(
            [row["epsilon"] for row in curve],
            {name: [r["bytes"] if r["feasible"] else math.nan for r in curve]},
            points={"coded file": (found["epsilon"], found["bytes"]["file"])},
            format=pathlib.Path(options.plot).suffix[1:],
        )
        durable.write_bytes(pathlib.Path(options.plot), picture)
    if options.out:
        durable.write_bytes(pathlib.Path(options.out), data)
