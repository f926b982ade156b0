"""`jaxwm train NAME` and `jaxwm resume RUN`."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from jaxwm.commands import surroundings
from jaxwm.train import lock
from jaxwm.train.errors import ConfigError
from jaxwm.train.settings import RunConfig, default_out


def train(arguments: list[str]) -> int:
    """Trains a system in an environment, or goes on where the same command stopped."""
    name, rest = _split(arguments)
    first = _peek(rest)
    if not first.distributed:
        lock.refuse_if_held(first.out or default_out(name, first.env))
    device = _surround(vars(first), first.seeds)
    from jaxwm.commands import assemble
    from jaxwm.train import run as runs

    entry = assemble.system(name)
    run, parts = _parse(entry, first, rest)
    run = assemble.resolve(entry, run)
    assembly = assemble.assemble(entry, run, parts)
    document = runs.document(
        entry.name,
        dataclasses.asdict(run),
        dataclasses.asdict(parts),
        seeds=assembly.seeds,
        device=device,
    )
    return _go(pathlib.Path(run.out), document, assembly)


def resume(arguments: list[str]) -> int:
    """Goes on with a run from its newest sound checkpoint."""
    parser = argparse.ArgumentParser(
        "jaxwm resume",
        description="Go on with a run from its newest sound checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument(
        "--env_steps", type=int, default=0, help="go on to here; 0: as begun"
    )
    parser.add_argument(
        "--platform", choices=("cpu", "gpu", "tpu"), help="None: as begun"
    )
    parser.add_argument(
        "--distributed", action="store_true", help="as one of several processes"
    )
    options = parser.parse_args(arguments)
    from jaxwm.train import run as runs

    path = pathlib.Path(options.run)
    document = runs.read(path)
    if not options.distributed:
        lock.refuse_if_held(path)
    changed = {
        name: value
        for name in ("env_steps", "platform")
        if (value := getattr(options, name))
    }
    changed["distributed"] = options.distributed
    document = {**document, "run": {**document.get("run", {}), **changed}}
    device = _surround(document["run"], len(document.get("seeds", [0])))
    now = {"versions": runs.versions(), "device": device}
    from jaxwm.commands import assemble

    entry, run, parts = assemble.parts_of(document)
    return _go(path, {**document, **now}, assemble.assemble(entry, run, parts))


def _go(path: pathlib.Path, document: dict[str, Any], assembly) -> int:
    """Trains in a directory and shows what came of it."""
    from jaxwm import train as room
    from jaxwm.commands import assemble, conclude
    from jaxwm.train import cluster

    run, leads = assembly.run, cluster.leads()
    show = room.progress.console() if leads else room.progress.silent()
    with contextlib.ExitStack() as stack:
        opened = room.RunDir(path, document, resumed=False)
        if leads:
            opened = stack.enter_context(room.open_run(path, document, warn=_warn))
        begin = "resuming" if opened.resumed else "training"
        steps = assembly.num_iterations * assembly.steps_per_iteration
        show.note(
            f"{begin} {assembly.entry.name} on {assembly.env.spec.name} "
            f"({run.engine}): {run.seeds} seeds, {steps:,} steps each, into {path}"
        )
        sinks = []
        if run.tensorboard and leads:
            sinks.append(room.sinks.tensorboard(path / "tensorboard"))
        fitted = room.fit(
            assembly.learner,
            seeds=assembly.seeds,
            num_iterations=assembly.num_iterations,
            run=opened,
            evaluate=assemble.evaluation(assembly, run.eval_episodes),
            eval_every=assembly.every(run.eval_every),
            log_every=assembly.every(run.log_every),
            steps_per_iteration=assembly.steps_per_iteration,
            save_every=run.save_every,
            keep=run.keep,
            sinks=sinks,
            progress=show,
            shard=run.shard or ("batch" if run.distributed else "seeds"),
        )
        if leads and fitted.interrupted:
            print(f"stopped; resume with: jaxwm resume {path}", flush=True)
        elif leads:
            conclude.conclude(
                path, opened.config, assembly, fitted.iteration, fitted.state
            )
    cluster.leave()
    return 0


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The system's name and the other arguments; help without a name ends here."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    import tyro

    from jaxwm import catalogue

    names = ", ".join(e.name for e in catalogue.ENTRIES if e.bundle == "WorldModel")
    usage = (
        f"jaxwm train NAME [options], with NAME one of: {names}. "
        "`jaxwm train NAME -h` shows that system's settings as well."
    )
    if {"-h", "--help"} & set(arguments):
        tyro.cli(
            RunConfig,
            prog="jaxwm train NAME",
            description=usage,
            args=["--help"],
            use_underscores=True,
        )
    raise ConfigError(f"which system? {usage}")


def _peek(arguments: list[str]) -> argparse.Namespace:
    """What must be known before jax loads and before defaults are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--platform")
    parser.add_argument("--preset", default=RunConfig.preset)
    parser.add_argument("--env", default=RunConfig.env)
    parser.add_argument("--engine")
    parser.add_argument("--out", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shard")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    return parser.parse_known_args(arguments)[0]


def _parse(entry, first: argparse.Namespace, arguments: list[str]):
    """All settings, with the preset's and the task's as defaults."""
    import tyro

    from jaxwm.commands import assemble

    base = assemble.defaults(entry, first.preset, first.env)
    chosen = assemble.preset(first.preset, first.env)
    factors = dataclasses.make_dataclass(
        "Factors",
        [
            _option(factor)
            for factor in assemble.spec_of(first.env, first.engine).factors
        ],
        kw_only=True,
        frozen=True,
    )
    fields = [
        ("run", tyro.conf.OmitArgPrefixes[RunConfig]),
        ("config", type(base.config)),
        ("agent", type(base.agent)),
        ("loop", type(base.loop)),
        ("recency", float),
        ("env", factors),
    ]
    run = RunConfig(num_envs=chosen.num_envs, env_steps=chosen.env_steps)
    everything = dataclasses.make_dataclass(
        "Settings", fields, kw_only=True, frozen=True
    )
    given = tyro.cli(
        everything,
        prog=f"jaxwm train {entry.name}",
        description=f"{entry.summary}. Source: {entry.source}.",
        default=everything(
            run=run,
            config=base.config,
            agent=base.agent,
            loop=base.loop,
            recency=base.recency,
            env=factors(),
        ),
        args=arguments,
        use_underscores=True,
    )
    values = {k: v for k, v in dataclasses.asdict(given.env).items() if v is not None}
    parts = assemble.Parts(
        config=given.config,
        agent=given.agent,
        loop=given.loop,
        recency=given.recency,
        env=values,
    )
    return given.run, parts


def _option(factor):
    """A factor of variation as an option `--env.NAME`."""
    import tyro

    text = (
        f"{factor.doc} [{factor.unit}]; default {factor.default:g}, varies from "
        f"{factor.low:g} to {factor.high:g}"
    )
    kind = Annotated[float | None, tyro.conf.arg(help=text)]
    return factor.name, kind, dataclasses.field(default=None)


def _surround(run: Mapping[str, Any], seeds: int) -> str:
    """Prepares what jax reads when it loads, joins the others; names the devices."""
    distributed = run.get("distributed", False)
    alone = run.get("shard") in (None, "seeds") and not distributed
    surroundings.prepare(
        platform=run.get("platform"),
        seeds=max(1, seeds) if alone else 1,
        deterministic=run.get("deterministic", False),
    )
    import jax

    try:
        if distributed:
            from jaxwm.train import cluster

            cluster.join()
        devices = jax.devices()
    except RuntimeError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"no such device: {str(error).splitlines()[0]}") from error
    return f"{len(devices)} x {devices[0].device_kind}"


def _warn(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
