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
    parser.add_argument("--out", help="write the verdicts to this JSON file")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    surroundings.prepare(platform=options.platform)
    from jaxwm import catalogue
    from jaxwm.train import settings
    from jaxwm.train.errors import ConfigError

    names = [entry.name for entry in catalogue.ENTRIES if entry.claim is not None]
    if options.name not in names:
        hint = settings.closest(options.name, names)
        raise ConfigError(f'no system with a claim is called "{options.name}"; {hint}')
    entry = catalogue.find(options.name)
    results = experiment(entry, options.seeds or entry.seeds)
    verdicts = catalogue.judge(entry, results)
    for seed, verdict in enumerate(verdicts):
        print(f"seed {seed}: {'holds' if verdict.holds else 'FAILS'}")
        for part in verdict.text.split("; "):
            print(f"  {part}")
    if options.out:
        from jaxwm.commands import conclude

        conclude.write_json(
            pathlib.Path(options.out), _record(entry, results, verdicts)
        )
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def experiment(entry, num_seeds: int) -> list[dict[str, float]]:
    """Metrics of a system's experiment, one dict per seed 0, 1, ..."""
    import jax

    module = entry.load()
    run = jax.jit(module.experiment)
    results = []
    for seed in range(num_seeds):
        metrics = jax.device_get(run(jax.random.key(seed)))
        results.append({name: float(value) for name, value in metrics.items()})
    return results


def _record(entry, results, verdicts) -> dict:
    """What `jaxwm list` shows and the docs quote."""
    import jax

    from jaxwm.train import run

    return {
        "name": entry.name,
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": f"jaxwm run {entry.name} --seeds {len(results)}",
        "versions": run.versions(),
        "metrics": results,
        "verdicts": [verdict._asdict() for verdict in verdicts],
    }
