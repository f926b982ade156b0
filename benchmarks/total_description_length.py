"""Total description length of a whole table: which regulariser compresses it best.

    python -m benchmarks.total_description_length --p 97 --seeds 3

A network trained on a part of the table is a code of all of it: the bits of its
coarse-graining, and the bits of every label given the coarse-grained network,

    total = C + p^2 CE / ln 2,

against `p^2 log2 p` bits without a model. The tolerance is chosen per network as the
one with the smallest total, from a list whose index costs 4 bits. Five regularisers:
none, weight decay, with weight noise, with spectral entropy, all three. Each row has
the mean over seeds, a 95 % bootstrap interval, and every seed's number. Writes
`benchmarks/claims/total_description_length.json` after every regulariser; with
`--only`, rows of an earlier run under the same settings stay.

Set OPENBLAS_NUM_THREADS=1: on a busy machine its threads wait for each other.
"""

import argparse
import dataclasses
import datetime
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import measures
from jaxwm.core import stats
from jaxwm.recipes import complexity_grokking as recipe
from jaxwm.train import run as runs

EPSILONS = tuple(np.geomspace(1 / 128, 4, 16).round(5).tolist())
OUT = pathlib.Path(__file__).parent / "claims" / "total_description_length.json"


def arms(args) -> dict[str, recipe.Config]:
    decay = recipe.Config(
        p=args.p,
        fraction=args.fraction,
        op=args.op,
        steps=args.steps,
        record_every=args.steps // 20,
        num_measured=2,
        every=args.every,
    )
    noise, spectral = {"noise": args.noise}, {"spectral": args.spectral}
    return {
        "none": dataclasses.replace(decay, weight_decay=0.0),
        "decay": decay,
        "decay + noise": dataclasses.replace(decay, **noise),
        "decay + spectral": dataclasses.replace(decay, **spectral),
        "all three": dataclasses.replace(decay, **noise, **spectral),
    }


def train(config: recipe.Config, num_seeds: int, first_seed: int):
    """Seeds side by side; final weights `[S, ...]` and metrics `[S, K]`."""

    def one(seed):
        task_key, train_key = jax.random.split(jax.random.key(seed))
        task = recipe.task_of(task_key, config)
        history = recipe.train_grok(train_key, config, task)
        return jax.tree.map(lambda x: x[-1], history.params), history.metrics

    seeds = jnp.arange(first_seed, first_seed + num_seeds, dtype=jnp.uint32)
    return jax.jit(jax.vmap(one))(seeds)


def measure(config: recipe.Config, params, label_bits: float):
    """Lengths in bytes of every seed's network as a code of the whole table."""
    predict = recipe.complexity_grokking(config).predict
    task = recipe.task_of(jax.random.key(0), config)
    table = jax.tree.map(lambda *x: jnp.concatenate(x), task.train, task.test)
    num = table.y.shape[0]

    def loss(params):
        # In pieces: hidden layers of a whole table do not fit the caches.
        size = 1024
        pad = -num % size
        x = jnp.pad(table.x, ((0, pad), (0, 0))).reshape(-1, size, table.x.shape[1])
        y = jnp.pad(table.y, (0, pad)).reshape(-1, size)

        def piece(rows):
            logits = jax.vmap(predict, (None, 0))(params, rows[0])
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, rows[1][:, None], 1)[:, 0]

        return jnp.sum(jax.lax.map(piece, (x, y)).reshape(-1)[:num]) / num

    search = lambda params: measures.complexity_trajectory(params, loss, EPSILONS)
    found = jax.jit(search)(params)  # [S, E]
    network = found.bits + math.log2(len(EPSILONS))
    total = measures.description_length(network, num * found.loss)
    best = jnp.argmin(total, 1)
    pick = lambda x: np.asarray(jnp.take_along_axis(x, best[:, None], 1)[:, 0])
    bound = measures.generalisation_bound(0.0, pick(network), int(task.train.y.size))
    return {
        "total": pick(total) / 8,
        "network": pick(network) / 8,
        "labels": pick(total - network) / 8,
        "epsilon": np.asarray(EPSILONS)[np.asarray(best)],
        "feasible": pick(found.feasible).astype(float),
        "share_of_naive": pick(total) / label_bits,
        "bound": np.asarray(bound.value),
    }


def summary(values) -> dict:
    values = np.asarray(values, float)
    low, high = stats.bootstrap_interval(values, lambda x, axis: np.mean(x, axis))
    return {
        "mean": float(values.mean()),
        "interval": [float(low), float(high)],
        "seeds": values.tolist(),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--p", type=int, default=97, help="modulus; small tables lose")
    parser.add_argument("--op", default="add")
    parser.add_argument("--fraction", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=1e-2, help="of the weights")
    parser.add_argument("--spectral", type=float, default=0.1, help="coefficient")
    parser.add_argument("--every", type=int, default=20, help="steps between penalties")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="regularisers; all by default")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    num_labels = args.p * (args.p - (args.op == "div"))
    naive = measures.naive_length(num_labels, args.p)

    settings = {k: str(v) for k, v in vars(args).items() if k not in ("out", "only")}
    rows = kept(args.out, settings)
    for name, config in arms(args).items():
        if args.only and name not in args.only:
            continue
        begin = time.perf_counter()
        params, metrics = jax.block_until_ready(
            train(config, args.seeds, args.first_seed)
        )
        trained = time.perf_counter()
        sizes = measure(config, params, naive)
        rank = jax.jit(jax.vmap(measures.mean_effective_rank))(params)
        row = {
            "test_accuracy": summary(metrics["test/accuracy"][:, -1]),
            "effective_rank": summary(rank),
            **{key: summary(value) for key, value in sizes.items()},
            "seconds": [trained - begin, time.perf_counter() - trained],
        }
        rows[name] = row
        low, high = row["total"]["interval"]
        print(
            f"{name:17} total {row['total']['mean']:8.0f} B [{low:.0f}, {high:.0f}]  "
            f"network {row['network']['mean']:7.0f}  "
            f"labels {row['labels']['mean']:7.0f}  "
            f"test {row['test_accuracy']['mean']:.3f}  "
            f"rank {row['effective_rank']['mean']:.1f}",
            flush=True,
        )
        write(args.out, settings, naive, rows)
    print(f"{'naive':17} total {naive / 8:8.0f} B")
    print(f"wrote {args.out}")


def kept(path: pathlib.Path, settings: dict) -> dict:
    """Rows of an earlier run under the same settings; those of others are dropped."""
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["rows"] if record["settings"] == settings else {}


def write(path: pathlib.Path, settings: dict, naive: float, rows: dict) -> None:
    ranking = sorted(rows, key=lambda name: rows[name]["total"]["mean"])
    record = {
        "name": "total_description_length",
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": "python -m benchmarks.total_description_length",
        "settings": settings,
        "versions": runs.versions(),
        "naive_bytes": naive / 8,
        "ranking": ranking,
        "beats_naive": [
            name for name in ranking if rows[name]["total"]["interval"][1] < naive / 8
        ],
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
