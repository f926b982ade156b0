"""Steps and seconds until pendulum swing-up is solved, five seeds at once.

    python -m benchmarks.sample_efficiency --preset sample
    python -m benchmarks.sample_efficiency --preset fast --repeat 2
    python -m benchmarks.sample_efficiency --peers        # Stable-Baselines3 as well

Score = (R - R_random) / (R_best - R_random) over 20 episodes of the deterministic
policy, evaluated every 200 environment steps; reached = first evaluation >= 0.8 whose
successor is too. Seconds are training alone; evaluation and compilation are timed
apart. `--repeat 2` trains twice in one process: the second time is warm. Peers run as
processes of one thread, two at a time, with the protocol of `peers_sb3.py`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

HERE = pathlib.Path(__file__).parent


def reached(scores: np.ndarray, every: int) -> list[int | None]:
    """Environment steps at which each seed's score holds, `scores` is `[E, S]`."""
    good = scores >= 0.8
    held = good[:-1] & good[1:]
    return [
        int((np.argmax(column) + 1) * every) if column.any() else None
        for column in held.T
    ]


def median(steps: list[int | None]) -> float:
    """Seeds that never got there count as infinitely late."""
    return float(np.median([np.inf if s is None else s for s in steps]))


def run(task: str, engine: str, preset_name: str, seeds: list[int]) -> dict:
    """Trains all seeds, evaluating after every iteration."""
    import jax

    from jaxwm.commands import assemble
    from jaxwm.train import chunk
    from jaxwm.train.settings import RunConfig

    entry = assemble.system("polygrad")
    config = RunConfig(env=task, engine=engine, preset=preset_name, seeds=len(seeds))
    config = assemble.resolve(entry, config)
    parts = assemble.defaults(entry, preset_name, task)
    made = assemble.assemble(entry, config, parts)
    began = time.perf_counter()
    program = chunk.build(
        made.learner,
        np.asarray(seeds, np.uint32),
        log_every=1,
        evaluate=assemble.evaluation(made, 20),
    )
    compile_s = time.perf_counter() - began
    state, seconds, returns = program.init(), [], []
    for i in range(made.num_iterations):
        began = time.perf_counter()
        state = jax.block_until_ready(program.advance(state, i, i + 1))
        seconds.append(time.perf_counter() - began)
        found = program.evaluate(state.learner, i + 1)["return"]
        returns.append(np.asarray(found).mean(1))
    spec = made.env.spec
    scores = (np.stack(returns) - spec.random_return) / (
        spec.best_return - spec.random_return
    )
    steps = reached(scores, made.steps_per_iteration)
    elapsed = np.cumsum(seconds)
    last = [s // made.steps_per_iteration - 1 for s in steps if s]
    return {
        "preset": preset_name,
        "task": task,
        "engine": engine,
        "seeds": seeds,
        "devices": program.num_devices,
        "reached_steps": steps,
        "median_steps": median(steps),
        "seconds_until_all_reached": round(float(elapsed[max(last)]), 2)
        if len(last) == len(seeds)
        else None,
        "seconds_in_all": round(float(elapsed[-1]), 2),
        "compile_seconds": round(compile_s, 2),
        "final_return": [round(float(r), 1) for r in returns[-1]],
        "final_score": [round(float(s), 3) for s in scores[-1]],
        "mean_score_of_last_5": [round(float(s), 3) for s in scores[-5:].mean(0)],
    }


def peers(seeds: list[int]) -> dict:
    """Stable-Baselines3, two processes at a time."""

    def one(job):
        name, seed = job
        command = [
            sys.executable,
            str(HERE / "peers_sb3.py"),
            name,
            "--seed",
            str(seed),
        ]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(out.stdout.splitlines()[-1])

    table = {}
    for name in ("sac", "ppo"):
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(one, [(name, seed) for seed in seeds]))
        found = [row["reached"] for row in rows]
        seconds = [f["seconds"] for f in found if f]
        table[name] = {
            "reached_steps": [f["steps"] if f else None for f in found],
            "median_steps": float(
                np.median([f["steps"] if f else np.inf for f in found])
            ),
            "seconds_each": seconds,
            # Two at a time, training alone.
            "seconds_of_all_two_at_a_time": round(sum(seconds) / 2, 2),
            "wall_with_start_and_evaluation": round(time.perf_counter() - began, 2),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="pendulum")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--devices", type=int, default=0, help="0: one per seed")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    num = args.devices or len(args.seeds)
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={num}"
    )
    if args.peers:
        print(json.dumps(peers(args.seeds)), flush=True)
    for _ in range(args.repeat):
        row = run(args.task, args.engine, args.preset, args.seeds)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
