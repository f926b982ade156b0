"""`jaxwm list`, `jaxwm envs` and `jaxwm doctor`."""

import argparse
import json
import pathlib

from jaxwm.commands import surroundings

_CLAIMS = pathlib.Path(__file__).parents[2] / "benchmarks" / "claims"


def systems(arguments: list[str]) -> int:
    """Lists systems with their measured claims."""
    parser = argparse.ArgumentParser(
        "jaxwm list", description="List systems, and what was measured of them."
    )
    parser.add_argument("name", nargs="?", help="one system in full")
    parser.add_argument("--family", help="only systems of this family")
    options = parser.parse_args(arguments)
    from jaxwm import catalogue
    from jaxwm.train import settings
    from jaxwm.train.errors import ConfigError

    families = sorted({entry.family for entry in catalogue.ENTRIES})
    if options.family not in (None, *families):
        hint = settings.closest(options.family, families)
        raise ConfigError(f'unknown family "{options.family}"; {hint}')
    if options.name is not None:
        names = [entry.name for entry in catalogue.ENTRIES]
        if options.name not in names:
            hint = settings.closest(options.name, names)
            raise ConfigError(f'no system is called "{options.name}"; {hint}')
        _describe(catalogue.find(options.name))
        return 0
    width = max(len(entry.name) for entry in catalogue.ENTRIES) + 2
    for family in families:
        if options.family not in (None, family):
            continue
        print(f"{family}")
        for entry in catalogue.ENTRIES:
            if entry.family == family:
                held = measured(entry.name)[:1]
                print(f"  {entry.name:<{width}}{entry.summary}")
                for line in held:
                    print(f"  {'':<{width}}{line}")
    print("jaxwm list NAME shows one in full, jaxwm run NAME checks its claim.")
    return 0


def measured(name: str) -> list[str]:
    """What was measured of a system's claim, one line each; empty if nothing was."""
    file = _CLAIMS / f"{name}.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    held = sum(verdict["holds"] for verdict in found["verdicts"])
    head = f"claim held on {held} of {len(found['verdicts'])} seeds"
    head += f" ({found['date']}, {found['device']})"
    seeds = found.get("seeds", range(len(found["verdicts"])))
    texts = (verdict["text"] for verdict in found["verdicts"])
    return [head, *(f"seed {n}: {text}" for n, text in zip(seeds, texts, strict=True))]


def _describe(entry) -> None:
    """One system in full: where it comes from, and its claim seed by seed."""
    print(f"{entry.name}: {entry.summary}")
    print(f"family  {entry.family}")
    print(f"source  {entry.source}")
    print(f"module  {entry.module}")
    head, *verdicts = measured(entry.name) or ["nothing was measured yet"]
    print(head)
    for text in verdicts:
        seed, parts = text.split(": ", 1)
        print(seed)
        for part in parts.split("; "):
            print(f"  {part}")


def tasks(arguments: list[str]) -> int:
    """Lists tasks, and what may vary in them."""
    parser = argparse.ArgumentParser(
        "jaxwm envs",
        description="List tasks; with a name, its sizes and factors of variation.",
    )
    parser.add_argument("name", nargs="?", help="one task in full")
    parser.add_argument(
        "--factors", action="store_true", help="all tasks in full; builds them first"
    )
    options = parser.parse_args(arguments)
    surroundings.prepare()
    from jaxwm import envs

    if options.name is not None:
        _show(options.name)
    elif options.factors:
        for task in envs.TASKS:
            _show(task.name)
    else:
        for task in envs.TASKS:
            engines = ", ".join(task.engines)
            print(f"{task.name:<20}{engines:<18}{task.doc}")
        names = ", ".join(f"{a} = {b}" for a, b in envs.ALIASES.items())
        print(f"also: {names}. Factors of variation: jaxwm envs NAME, or --factors")
    return 0


def _show(name: str) -> None:
    """One task in full."""
    from jaxwm.commands import assemble

    spec = assemble.spec_of(name)
    print(f"{spec.name}: {spec.doc}")
    print(f"observation  {spec.obs}")
    print(f"action       {spec.action}")
    print(f"clock        {spec.control_dt:g} s a step, at most {spec.time_limit} steps")
    known = {"random": spec.random_return, "best known": spec.best_return}
    shown = [
        f"{name} {value:.4g}" for name, value in known.items() if value is not None
    ]
    print(f"return       {', '.join(shown) or 'not measured'}")
    for factor in spec.factors:
        ends = f"{factor.low:g} to {factor.high:g}"
        print(
            f"  --env.{factor.name:<18}{factor.default:<8g}{ends:<16}"
            f"{factor.unit:<8}{factor.doc}"
        )


def doctor(arguments: list[str]) -> int:
    """Examines the machine, or walks into a dumped failure again."""
    parser = argparse.ArgumentParser(
        "jaxwm doctor",
        description="Show versions, devices, drawing, caches and disk; or repeat a "
        "failure from the dump that a run left.",
    )
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    verbs = parser.add_subparsers(dest="what", metavar="")
    replay = verbs.add_parser("replay", help="run from the last good state into a dump")
    replay.add_argument("dump", help="directory below a run's dumps/")
    options = parser.parse_args(arguments)
    if options.what == "replay":
        return _replay(options)
    surroundings.prepare(platform=options.platform)
    from jaxwm.train import doctor

    for fact in doctor.examine():
        remedy = f"  [{fact.remedy}]" if fact.remedy else ""
        print(f"{fact.name:<20}{fact.value}{remedy}")
    return 0


def _replay(options) -> int:
    from jaxwm.train import guard, run

    entry = guard.read(options.dump)
    path = pathlib.Path(options.dump).resolve().parents[1]
    document = run.read(path)
    surroundings.prepare(platform=options.platform, seeds=len(document["seeds"]))
    from jaxwm.commands import assemble

    assembly = assemble.assemble(*assemble.parts_of(document))
    print(
        f"{', '.join(entry['metrics'])} fell below 1 at iteration "
        f"{entry['iteration']} of seed {entry['seed']}"
    )
    found = guard.retrace(assembly.learner, assembly.seeds, options.dump)
    bits = ", bit for bit" if found.same_bits else ""
    outcome = f"reproduced{bits}" if found.reproduced else "not reproduced"
    print(f"from iteration {found.start}: {outcome}")
    for when, leaves in (("before", found.before), ("after", found.after)):
        print(f"not finite {when}: {'' if leaves else 'nothing'}")
        for name, share in leaves.items():
            print(f"  {name}  {share}")
    return 0 if found.reproduced else 1
