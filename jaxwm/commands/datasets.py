"""`jaxwm data`: look into datasets, and make them from runs."""

import argparse
import json

from jaxwm.commands import surroundings


def data(arguments: list[str]) -> int:
    """Inspects a Minari dataset, or writes a run's replay as one."""
    parser = argparse.ArgumentParser(
        "jaxwm data", description="Datasets in Minari's HDF5 layout."
    )
    verbs = parser.add_subparsers(dest="what", required=True, metavar="VERB")
    inspect = verbs.add_parser("inspect", help="episodes, returns, sizes, digests")
    inspect.add_argument("dataset", help="directory of the dataset")
    convert = verbs.add_parser("convert", help="a run's replay as a dataset")
    convert.add_argument("run", help="directory of the run")
    convert.add_argument("dataset", help="directory to make")
    convert.add_argument("--seed", type=int, help="one of the run's; None: the first")
    options = parser.parse_args(arguments)
    surroundings.prepare()
    if options.what == "inspect":
        return _inspect(options)
    return _convert(options)


def _inspect(options) -> int:
    from jaxwm.data import minari
    from jaxwm.train.errors import RunError

    try:
        found = minari.inspect(options.dataset)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(str(error)) from error
    for name, value in found.items():
        print(f"{name:<20}{json.dumps(value) if isinstance(value, dict) else value}")
    return 0


def _convert(options) -> int:
    import jax
    import numpy as np

    from jaxwm import data
    from jaxwm.commands import trained
    from jaxwm.train.errors import RunError

    assembly, iteration, state = trained.read(options.run)
    state = trained.select(assembly, state, options.seed)
    buffer = jax.tree.map(np.asarray, state.buffer)
    rows = data.from_replay(buffer, iteration * assembly.parts.loop.steps)
    try:
        path = data.minari.save(options.dataset, rows, spec=assembly.env.spec)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(str(error)) from error
    print(path)
    return 0
