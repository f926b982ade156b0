"""`jaxwm eval RUN`, `jaxwm report RUN` and `jaxwm export RUN`."""

import argparse
import pathlib

from jaxwm.commands import surroundings

_DEFAULTS = argparse.ArgumentDefaultsHelpFormatter


def evaluate(arguments: list[str]) -> int:
    """Evaluates the policies of a run's newest checkpoint."""
    parser = argparse.ArgumentParser(
        "jaxwm eval",
        description="Evaluate the policies of a run's newest sound checkpoint.",
        formatter_class=_DEFAULTS,
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--episodes", type=_positive, default=20, help="per seed")
    parser.add_argument("--key", type=int, default=0, help="seed of the episodes")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    assembly, step, state = _read(options)
    from jaxwm.commands import conclude

    row = _evaluate(assembly, state, options.episodes, options.key)
    print(conclude.table(assembly, row["eval/return"]))
    steps = step * assembly.steps_per_iteration
    content = {"step": steps, "episodes": options.episodes, "key": options.key}
    lists = {name: values.tolist() for name, values in row.items()}
    conclude.write_json(pathlib.Path(options.run) / "eval.json", content | lists)
    return 0


def report(arguments: list[str]) -> int:
    """Writes report.html from a run's newest checkpoint."""
    parser = argparse.ArgumentParser(
        "jaxwm report",
        description="Write report.html from a run's newest sound checkpoint.",
        formatter_class=_DEFAULTS,
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--episodes", type=_positive, default=20, help="per seed")
    parser.add_argument(
        "--baselines",
        type=int,
        default=0,
        metavar="UPDATES",
        help="train the other world models on the run's replay for so many updates "
        "and compare their errors",
    )
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    assembly, iteration, state = _read(options)
    from jaxwm.commands import conclude, rivals
    from jaxwm.train import run

    path = pathlib.Path(options.run)
    others = {}
    if options.baselines > 0:
        others = rivals.train(assembly, iteration, state, options.baselines)
    row = _evaluate(assembly, state, options.episodes, 0)
    document = run.read(path)
    page = conclude.write_report(
        path, document, assembly, iteration, state, row, others
    )
    print(page)
    return 0


def export(arguments: list[str]) -> int:
    """Writes the policy as StableHLO and all weights as safetensors."""
    parser = argparse.ArgumentParser(
        "jaxwm export",
        description="Write a policy as StableHLO (jax.export) that runs without "
        "jaxwm, and the weights as safetensors.",
        formatter_class=_DEFAULTS,
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--seed", type=int, help="one of the run's; None: the first")
    parser.add_argument("--out", help="directory; None: export/ in the run")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    surroundings.prepare(platform=options.platform)
    from jaxwm.commands import exporting

    for file in exporting.export(options.run, options.out, seed=options.seed):
        print(file)
    return 0


def _read(options):
    """A run's parts, iteration and state, once the devices are chosen."""
    from jaxwm.train import run

    seeds = len(run.read(options.run).get("seeds", [0]))
    surroundings.prepare(platform=options.platform, seeds=seeds)
    from jaxwm.commands import trained

    return trained.read(options.run)


def _evaluate(assembly, state, episodes: int, seed: int) -> dict:
    """Returns and lengths `[S, E]`."""
    import jax
    import numpy as np

    from jaxwm.commands import assemble

    judge = jax.jit(jax.vmap(assemble.evaluation(assembly, episodes)))
    keys = jax.random.split(jax.random.key(seed), len(assembly.seeds))
    found = judge(keys, state)
    return {f"eval/{name}": np.asarray(value) for name, value in found.items()}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
