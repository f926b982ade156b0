"""Pages that are made from the code: systems, tasks and the reference of every room.

Read by mkdocs (`hooks` in mkdocs.yml); nothing here is published itself.
"""

import ast
import json
import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxwm"
CLAIMS = ROOT / "benchmarks" / "claims"
# Rooms in the order of the floors; what a reader of the reference looks for.
ROOMS = (
    "types",
    "core",
    "nn",
    "physics",
    "envs",
    "data",
    "diffusion",
    "rl",
    "plan",
) + ("measures", "train", "dynamics", "agents", "recipes", "catalogue")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and their places in the navigation."""
    pages = {"systems.md": systems(), "tasks.md": tasks()}
    reference = []
    for room in ROOMS:
        modules = modules_of(room)
        if modules:
            pages[f"reference/{room}.md"] = reference_page(room, modules)
            reference.append({room: f"reference/{room}.md"})
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    made = {"Systems": "systems.md"}, {"Tasks": "tasks.md"}, {"Reference": reference}
    known = {next(iter(entry)) for entry in config.nav}
    config.nav += [entry for entry in made if next(iter(entry)) not in known]
    return files


def modules_of(room: str) -> list[str]:
    """Dotted names of a room's public modules that have a docstring."""
    file = PACKAGE / f"{room}.py"
    paths = [file] if file.is_file() else sorted((PACKAGE / room).rglob("*.py"))
    found = []
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(p.startswith("_") for p in parts):
            continue
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            found.append(".".join(parts))
    return found


def reference_page(room: str, modules: list[str]) -> str:
    directives = "\n\n".join(f"::: {module}" for module in modules)
    return f"# jaxwm.{room}\n\n{directives}\n"


def systems() -> str:
    """The catalogue as a page: what there is, where it is from, what was measured."""
    from jaxwm import catalogue

    lines = ["# Systems", ""]
    for family in sorted({entry.family for entry in catalogue.ENTRIES}):
        lines += [f"## {family}", ""]
        for entry in catalogue.ENTRIES:
            if entry.family != family:
                continue
            room = entry.module.split(".")[1]
            lines += [
                f"### {entry.name}",
                "",
                f"{entry.summary}. Source: {entry.source}.",
                f"Code and settings: [{entry.module}](reference/{room}.md"
                f"#{entry.module}).",
                "",
                *(measured(entry.name) if entry.claim else ["No claim of its own."]),
                "",
            ]
    return "\n".join(lines)


def measured(name: str) -> list[str]:
    file = CLAIMS / f"{name}.json"
    if not file.is_file():
        return ["Claim: not measured yet."]
    found = json.loads(file.read_text(encoding="utf-8"))
    held = sum(verdict["holds"] for verdict in found["verdicts"])
    lines = [
        f"Claim held on {held} of {len(found['verdicts'])} seeds "
        f"({found['date']}, {found['device']}):",
        "",
    ]
    seeds = found.get("seeds", range(len(found["verdicts"])))
    pairs = zip(seeds, found["verdicts"], strict=True)
    return lines + [f"- seed {n}: {verdict['text']}" for n, verdict in pairs]


def tasks() -> str:
    """The tasks as a page: sizes, clock, known returns and factors of variation."""
    from jaxwm import envs

    lines = [
        "# Tasks",
        "",
        "Returns are undiscounted, per episode; `random` takes uniform actions, `best`",
        "is the best known.",
        "",
        "| task | random | best | obs, action | s a step | steps | engines |",
        "|---|---|---|---|---|---|---|",
    ]
    specs = []
    for task in envs.TASKS:
        engine = "jax" if "jax" in task.engines else "c"
        spec = envs.make(task.name, engine=engine).spec
        specs.append((task, spec))
        obs_size, act_size = spec.flat_sizes("the page of tasks")
        known = [
            "not measured yet" if value is None else f"{value:.4g}"
            for value in (spec.random_return, spec.best_return)
        ]
        cells = [task.name, *known, f"{obs_size}, {act_size}"]
        cells += [f"{spec.control_dt:g}", spec.time_limit, " ".join(task.engines)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for task, spec in specs:
        lines += [
            "",
            f"## {task.name}",
            "",
            spec.doc or task.doc,
            "",
            "| factor | default | range | unit | |",
            "|---|---|---|---|---|",
        ]
        for factor in spec.factors:
            lines.append(
                f"| `--env.{factor.name}` | {factor.default:g} "
                f"| {factor.low:g} to {factor.high:g} | {factor.unit} | {factor.doc} |"
            )
    return "\n".join(lines) + "\n"
