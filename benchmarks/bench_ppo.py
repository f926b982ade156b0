"""PPO: one update, and until a task is solved, beside Stable-Baselines3.

`update` counts samples that gradient steps have seen; ours includes collecting them on
the pendulum, the peer's does not. `time_to_score` trains five seeds at once beside one
of the peer. Both train in processes of their own, in turn; the peer has one thread.
Seconds are training alone; `cold` adds tracing and compiling.
"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator

import jax

from benchmarks import peer
from benchmarks.measure import Settings, compare, timed
from benchmarks.record import Row, num_cores, timed_row

_LIMIT = 600  # seconds of one process


def rows(settings: Settings) -> Iterator[Row]:
    yield update(settings)
    if settings.full or settings.smoke:
        yield from to_score(settings)


def update(settings: Settings) -> Row:
    """One iteration of PPO: ours whole, the peer's without collecting."""
    from jaxwm import envs
    from jaxwm.agents import ppo

    num_envs = settings.pick(16, 2)
    config = ppo.Config(steps=settings.pick(128, 4), epochs=10, minibatches=8)
    if settings.smoke:
        config = ppo.TINY
    env = envs.batch(envs.make("pendulum", engine="jax"), num_envs)
    learner = ppo.ppo(env, config).learner
    state = jax.jit(learner.init)(jax.random.key(0))

    def step(key, state):
        return learner.step(key, state, 0)[0]

    timing, ours = timed(step, state, settings=settings, carry=True)
    num_rows = num_envs * config.steps
    row = timed_row(
        "ppo/update",
        f"{num_rows} rows, {config.epochs} epochs of {config.minibatches} batches",
        num_rows * config.epochs,
        "samples/s",
        timing,
        note="ours collects as well",
    )
    sizes = {
        "threads": num_cores(),
        "num_envs": num_envs,
        "steps": config.steps,
        "epochs": config.epochs,
        "minibatches": config.minibatches,
        "hidden": config.hidden,
    }
    try:
        with peer.Process("benchmarks.peer_ppo", sizes) as other:
            ratio = compare(ours, other, name=other.name, settings=settings)
    except peer.MissingError as reason:
        return row._replace(note=f"{row.note}; {reason}")
    return row._replace(ratio=ratio, target=3.0)


def to_score(settings: Settings) -> Iterator[Row]:
    for task in settings.pick(("pendulum", "inverted_pendulum"), ("pendulum",)):
        options = ["--smoke"] if settings.smoke else []
        ours = _run("-m", "benchmarks.ppo_to_score", task, *options)
        size, warm = f"{task}, 5 seeds", ours["warm_seconds"]
        if warm is None and settings.smoke:
            yield Row(
                "ppo/iteration", size, ours["iteration_seconds"], "s", note="smoke"
            )
            continue
        if warm is None:
            scores = ours["best_score"]
            note = f"not all seeds reached a score of 0.8; best {scores}"
            yield Row("ppo/time_to_score", size, status="failed", note=note)
            continue
        cold = warm + ours["compile_seconds"]
        note = f"environment steps {ours['reached_steps']}"
        yield Row(
            "ppo/time_to_score", size, warm, "s", higher_is_better=False, note=note
        )
        yield Row("ppo/time_to_score_cold", size, cold, "s", higher_is_better=False)
        if importlib.util.find_spec("stable_baselines3") is None:
            note = "skipped: stable-baselines3 is not installed"
            yield Row("ppo/against_sb3", size, status="skipped", note=note)
            continue
        peer = _run("benchmarks/peers_sb3.py", "ppo", "--task", task)["reached"]
        version = importlib.metadata.version("stable-baselines3")
        if peer is None:
            note = f"stable-baselines3 {version} did not reach the score"
            yield Row("ppo/against_sb3", size, status="failed", note=note)
            continue
        note = f"one seed of stable-baselines3 {version}: {peer['seconds']:.1f} s"
        for name, seconds, target in (("", warm, 1.0), ("_cold", cold, 0.5)):
            ratio = peer["seconds"] / seconds
            words = "x one seed of the peer"
            row = Row(f"ppo/against_sb3{name}", size, ratio, words, target=target)
            yield row._replace(note=note)


def _run(*command: str) -> dict:
    """The JSON line that a script of ours prints last."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=_LIMIT
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"{' '.join(command)}: {lines[-1] if lines else 'no word'}")
    return json.loads(done.stdout.splitlines()[-1])
