"""What the spectral-entropy penalty costs per training step, and what it does.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.spectral_penalty

Trains the reduced grokking network with the penalty on every k-th step, by each
method, in chunks that take turns, so that load from elsewhere meets all alike. Reports
the median of the ratio of a chunk's time to that of the plain chunk beside it, both in
seconds of the clock and of the processor; then trains to the end at `--every` and
reports effective rank and complexity. Writes
`benchmarks/claims/spectral_penalty.json`.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import measures
from jaxwm.core import optimise
from jaxwm.recipes import complexity_grokking as recipe
from jaxwm.train import run as runs

OUT = pathlib.Path(__file__).parent / "claims" / "spectral_penalty.json"


def chunk_of(config: recipe.Config, num_steps: int):
    """A compiled piece of training, and its first state."""
    task = recipe.task_of(jax.random.key(0), config)
    model = recipe.complexity_grokking(config)

    @jax.jit
    def chunk(state):
        key = jax.random.key(1)
        return optimise.repeat(model.step, state, key, task.train, num_steps)[0]

    state = jax.jit(model.init)(jax.random.key(2))
    return chunk, jax.block_until_ready(chunk(state))


def cost(base: recipe.Config, ks, methods, num_steps: int, repeats: int) -> dict:
    chunks = {"plain": chunk_of(base, num_steps)}
    for method in methods:
        for k in ks:
            config = dataclasses.replace(base, spectral=0.1, every=k, method=method)
            chunks[f"{method} every {k}"] = chunk_of(config, num_steps)

    def timed(name):
        chunk, state = chunks[name]
        clock, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(chunk(state))
        return time.perf_counter() - clock, time.process_time() - processor

    plain, ratios = [], {name: [] for name in chunks if name != "plain"}
    for _ in range(repeats):
        for name, found in ratios.items():
            # The plain chunk on both sides of each: load drifts.
            before, with_, after = timed("plain"), timed(name), timed("plain")
            beside = (np.array(before) + np.array(after)) / 2
            plain.append(beside)
            found.append(np.array(with_) / beside)
    report = {"plain_ms_per_step": (1e3 * np.median(plain, 0) / num_steps).tolist()}
    for name, found in ratios.items():
        report[name] = {
            "extra_clock": float(np.median(found, 0)[0] - 1),
            "extra_processor": float(np.median(found, 0)[1] - 1),
            "spread_processor": np.quantile(np.array(found)[:, 1] - 1, [0.1, 0.9])
            .round(3)
            .tolist(),
        }
        print(f"{name:18} {report[name]}", flush=True)
    return report


def effect(base: recipe.Config, num_seeds: int) -> dict:
    """Rank, complexity and test accuracy at the end, with and without the penalty."""

    def one(seed, config):
        task_key, train_key = jax.random.split(jax.random.key(seed))
        task = recipe.task_of(task_key, config)
        history = recipe.train_grok(train_key, config, task)
        params = jax.tree.map(lambda x: x[-1], history.params)
        predict = recipe.complexity_grokking(config).predict
        loss = lambda p: recipe.cross_entropy(predict, p, task.train)
        found = measures.complexity(params, loss, epsilon=config.epsilon)
        grokked = history.metrics["test/accuracy"] >= 0.95
        return {
            "test_accuracy": history.metrics["test/accuracy"][-1],
            "grokked_step": recipe.first_step(history.steps, grokked),
            "effective_rank": measures.mean_effective_rank(params),
            "bytes": found.bits / 8,
        }

    report = {}
    for name, spectral in (("without", 0.0), ("with", 0.1)):
        config = dataclasses.replace(base, spectral=spectral)
        run = jax.jit(lambda seed, config=config: one(seed, config))
        found = [jax.device_get(run(jnp.uint32(s))) for s in range(num_seeds)]
        report[name] = {k: [float(f[k]) for f in found] for k in found[0]}
        print(f"{name:8} {report[name]}", flush=True)
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ks", type=int, nargs="*", default=[1, 10, 20, 50])
    parser.add_argument("--methods", nargs="*", default=["svd", "gram", "renyi2"])
    parser.add_argument("--chunk", type=int, default=100, help="steps of one chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=20, help="k of the whole runs")
    parser.add_argument("--steps", type=int, default=1500, help="of the whole runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    base = recipe.Config(every=args.every, steps=args.steps, method="svd")
    record = {
        "name": "spectral_penalty",
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "not set"),
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"},
        "versions": runs.versions(),
        "cost": cost(base, args.ks, args.methods, args.chunk, args.repeats),
        "effect": effect(base, args.seeds),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
