"""`jaxwm run NAME`: a system's experiment against its claim."""

import argparse
import datetime
import pathlib

from jaxwm.commands import surroundings


def run(arguments: list[str]) -> int:
    """Runs an experiment on some seeds; exits with 1 where the claim fails."""
    parser = argparse.ArgumentParser(
        "jaxwm run",
        description="Run a system's experiment on its seeds and check its claim.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help="of a system, see `jaxwm list`")
    parser.add_argument("--seeds", type=int, help="None: as the catalogue says")
    parser.add_argument("--seed", type=int, default=0, help="the first one's number")
    parser.add_argument("--out", help="write the verdicts to this JSON file")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    surroundings.prepare(platform=options.platform)
    # All of it before the work: nothing may be missing when hours of it are to be kept.
    from jaxwm import catalogue
    from jaxwm.commands import conclude
    from jaxwm.train import settings
    from jaxwm.train.errors import ConfigError

    names = [entry.name for entry in catalogue.ENTRIES if entry.claim is not None]
    if options.name not in names:
        hint = settings.closest(options.name, names)
        raise ConfigError(f'no system with a claim is called "{options.name}"; {hint}')
    entry = catalogue.find(options.name)
    seeds = [options.seed + i for i in range(options.seeds or entry.seeds)]
    results = experiment(entry, seeds)
    verdicts = catalogue.judge(entry, results)
    for seed, verdict in zip(seeds, verdicts, strict=True):
        print(f"seed {seed}: {'holds' if verdict.holds else 'FAILS'}")
        for part in verdict.text.split("; "):
            print(f"  {part}")
    if options.out:
        conclude.write_json(
            pathlib.Path(options.out), _record(entry, seeds, results, verdicts)
        )
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def experiment(entry, seeds: list[int]) -> list[dict[str, float]]:
    """Metrics of a system's experiment, one dict per seed."""
    import jax

    module = entry.load()
    run = jax.jit(module.experiment)
    results = []
    for seed in seeds:
        metrics = jax.device_get(run(jax.random.key(seed)))
        results.append({name: float(value) for name, value in metrics.items()})
    return results


def _record(entry, seeds, results, verdicts) -> dict:
    """What `jaxwm list` shows and the docs quote."""
    import jax

    from jaxwm.train import run

    first = f" --seed {seeds[0]}" if seeds[0] else ""
    return {
        "name": entry.name,
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": f"jaxwm run {entry.name} --seeds {len(results)}{first}",
        "seeds": seeds,
        "versions": run.versions(),
        "metrics": results,
        "verdicts": [verdict._asdict() for verdict in verdicts],
    }
