"""Swing up a cart-pole through its simulator, beside a learner that cannot see it.

    python examples/cartpole_shac.py --steps 300000 --seed 0

Short-horizon actor-critic (SHAC) follows the gradient of the simulation; proximal
policy optimisation (PPO) has rewards alone. Both make the same number of steps. Draws
what they have learnt after how many, and an episode of both as a strip of film.
"""

import argparse
import dataclasses
import pathlib
import time

import jax
import numpy as np

from jaxwm.recipes import differentiable_simulators as recipe

COLOURS = {"shac": "#0072b2", "ppo": "#d55e00"}


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300_000, help="of each learner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="runs/cartpole_shac", help="folder of pictures"
    )
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    return parser.parse_args()


def config_of(args):
    """The recipe's settings for another number of steps."""
    usual = recipe.Config()
    parts, num_steps = (2, 4096) if args.smoke else (30, args.steps)
    usual_learners = recipe.learners(usual)
    rounds = lambda name: max(1, num_steps // (usual_learners[name].steps * parts))
    return dataclasses.replace(
        usual,
        evaluations=parts,
        iterations=rounds("shac") * parts,
        ppo_iterations=rounds("ppo") * parts,
    )


def learnt(args, config, name):
    """Steps and scores along training, its seconds, and an episode at its end."""
    learning = recipe.learners(config)[name]
    key = jax.random.key(args.seed)
    train = jax.jit(lambda key: recipe.learn(key, learning)).lower(key).compile()
    begun = time.perf_counter()
    scores, _, state = jax.device_get(train(key))
    seconds = time.perf_counter() - begun
    motion = jax.jit(lambda key: recipe.episode(key, learning, state))(key)
    every = learning.steps * learning.iterations // learning.evaluations
    steps = every * np.arange(1, len(scores) + 1)
    return steps, scores, seconds, np.asarray(motion)


def draw_motion(panel, motion, dt, title):
    """Cart and pole six times a second, side by side; the pole is 1 m long."""
    from matplotlib import colormaps

    between = round(1 / 6 / dt)
    shown = np.arange(between, len(motion) + 1, between)
    for place, frame in enumerate(shown):
        x, angle = motion[frame - 1]
        at = 1.2 * place
        colour = colormaps["viridis"](0.9 * place / len(shown))
        ends = [at, at + np.sin(angle)], [0, np.cos(angle)]
        panel.plot(*ends, "s-", color=colour, lw=2.5, ms=6, markevery=[0])
        panel.text(at, -1.5, f"{x:+.1f}", ha="center", fontsize=7, color="#52606d")
    ticks = np.arange(2, len(shown), 3)
    panel.set_xticks(1.2 * ticks, [f"{shown[i] * dt:.1f} s" for i in ticks])
    panel.set(aspect="equal", ylim=(-1.7, 1.15), yticks=[], title=title)


def draw(path, found, dt):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, *strips = figure.subplots(1 + len(found), height_ratios=(2.2, 1, 1))
    for name, strip in zip(found, strips, strict=True):
        steps, scores, seconds, motion = found[name]
        label = f"{name.upper()}: {seconds:.0f} s"
        top.plot(steps / 1e3, scores, "o-", ms=3, color=COLOURS[name], label=label)
        title = (
            f"{name.upper()} after {steps[-1] / 1e3:.0f} thousand steps; below: x in m"
        )
        draw_motion(strip, motion, dt, title)
    top.axhline(recipe.SOLVED, color="#8a949e", lw=1, ls=":")
    top.set(xlabel="thousand steps of the simulator", ylabel="mean cosine, last second")
    top.set(ylim=(-1.05, 1.05), xlim=(0, None))
    top.grid(color="#e4e9ee")
    top.legend(frameon=False, loc="center right")
    for panel in (top, *strips):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    args = parsed()
    config = config_of(args)
    found = {name: learnt(args, config, name) for name in COLOURS}
    picture = pathlib.Path(args.out) / "cartpole_shac.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture, found, dt=1 / 60)
    for name, (steps, scores, seconds, _) in found.items():
        print(f"{name}: {scores[-1]:.2f} after {steps[-1]} steps in {seconds:.0f} s")
    print(f"drew {picture}")


if __name__ == "__main__":
    main()
