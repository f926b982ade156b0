"""Watch a network's complexity rise while it memorises and fall when it groks.

    python examples/grokking.py --op add --regulariser decay --seeds 2

Trains all seeds side by side and draws accuracy, loss and complexity along training.
"""

import argparse
import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import measures
from jaxwm.recipes import complexity_grokking as recipe

REGULARISERS = {
    "none": {"weight_decay": 0.0},
    "decay": {},
    "noise": {"noise": 1e-2},
    "spectral": {"spectral": 0.1},
    "all": {"noise": 1e-2, "spectral": 0.1},
}


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--p", type=int, default=59, help="modulus, or k! permutations")
    parser.add_argument("--op", default="add", choices=recipe.OPERATIONS)
    parser.add_argument("--fraction", type=float, default=0.4, help="to train on")
    parser.add_argument("--network", default="mlp", choices=("mlp", "transformer"))
    parser.add_argument("--activation", default="relu", choices=("relu", "square"))
    parser.add_argument("--regulariser", default="decay", choices=REGULARISERS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epsilon", type=float, default=1.0, help="nats")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default="runs/grokking", help="folder of the picture")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    return parser.parse_args()


def config_of(args):
    settings = {
        "p": args.p,
        "op": args.op,
        "fraction": args.fraction,
        "network": args.network,
        "activation": args.activation,
        "steps": args.steps,
        "record_every": math.gcd(args.steps, 20),
        "epsilon": args.epsilon,
        **REGULARISERS[args.regulariser],
    }
    if args.network == "transformer":
        settings |= {"embed": 128, "hidden": (512,), "learning_rate": 1e-3}
    if args.smoke:
        return dataclasses.replace(recipe.TINY, **REGULARISERS[args.regulariser])
    return recipe.Config(**settings)


def follow(seed, config):
    """Trains one network and measures the records that are spaced evenly in log."""
    task_key, train_key = jax.random.split(jax.random.key(seed))
    task = recipe.task_of(task_key, config)
    history = recipe.train_grok(train_key, config, task)
    predict = recipe.complexity_grokking(config).predict
    at = recipe.measured_records(config)
    params = jax.tree.map(lambda x: x[at], history.params)
    found = measures.complexity_trajectory(
        params,
        lambda params: recipe.cross_entropy(predict, params, task.train),
        (config.epsilon,),
    )
    raw = jax.lax.map(measures.raw_byte_size, params)
    return history.steps, history.metrics, found.bits[:, 0] / 8, raw


def draw(path, config, args, steps, metrics, num_bytes, raw):
    """Three panels over training steps: thin seeds, bold means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, sharex=True)
    blue, orange, green = "#0072b2", "#d55e00", "#009e73"

    def lines(axes, x, rows, colour, label):
        for row in rows:
            axes.plot(x, row, color=colour, alpha=0.3, linewidth=1)
        axes.plot(x, np.mean(rows, 0), color=colour, linewidth=2, label=label)

    for axes, name in ((top, "accuracy"), (middle, "loss")):
        lines(axes, steps, metrics[f"train/{name}"], blue, "training pairs")
        lines(axes, steps, metrics[f"test/{name}"], orange, "other pairs")
    at = steps[recipe.measured_records(config)]
    bottom.plot(at, np.mean(num_bytes, 0) / 1e3, "o", color=green, markersize=4)
    lines(bottom, at, num_bytes / 1e3, green, f"complexity, ε = {config.epsilon:g} nat")
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    middle.set(ylabel="loss, nats", yscale="log")
    bottom.set(xscale="log", ylabel="kB", xlabel="training step")
    bottom.set_ylim(0, None)
    bottom.plot([], [], " ", label=f"bz2 of the weights: {np.mean(raw) / 1e3:.0f} kB")
    for axes in (top, middle, bottom):
        axes.grid(color="#e4e9ee")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(
        f"{config.op} mod {config.p}, {config.network}, regulariser: {args.regulariser}"
    )
    figure.savefig(path, dpi=110)


def main():
    args = parsed()
    config = config_of(args)
    run = jax.jit(jax.vmap(lambda seed: follow(seed, config)))
    steps, *found = jax.device_get(run(jnp.arange(args.seeds, dtype=jnp.uint32)))
    metrics, num_bytes, raw = found
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder / "grokking.png", config, args, steps[0], metrics, num_bytes, raw)
    for seed in range(args.seeds):
        print(
            f"seed {seed}: test accuracy {metrics['test/accuracy'][seed, -1]:.3f}; "
            f"complexity {num_bytes[seed].max():.0f} B at its peak, "
            f"{num_bytes[seed, -1]:.0f} B at the end"
        )
    print(f"drew {folder / 'grokking.png'}")


if __name__ == "__main__":
    main()
