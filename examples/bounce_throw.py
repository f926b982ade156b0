"""Throw a ball over a bounce at a target, by gradients through the impact.

    python examples/bounce_throw.py --steps 150 --seed 0

Descends through a simulator that resolves the time of impact, and through the naive
impulse, whose gradient is wrong in size and, in places, in sign. Draws the flights
before, during and after, the slopes that both claim, and how far every throw misses.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwm.physics import contact
from jaxwm.recipes import differentiable_simulators as recipe

EXACT = contact.time_of_impact(restitution=0.8)
MODELS = {"time of impact": EXACT, "naive impulse": contact.impulse(restitution=0.8)}
COLOURS = {"time of impact": "#0072b2", "naive impulse": "#d55e00"}
# Places `[T, 2]` of a ball that is thrown from a height of 1 m, for 0.9 s.
flight = functools.partial(recipe.thrown, duration=0.9, dt=0.05)


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=150, help="of descent")
    parser.add_argument("--seed", type=int, default=0, help="of the first throws")
    parser.add_argument("--out", default="runs/bounce_throw", help="folder of pictures")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    return parser.parse_args()


def descend(model, first, steps):
    """Velocities `[steps + 1, 2]` on the way down the squared distance at the end."""
    miss = lambda v: jnp.sum((flight(model, v)[-1] - recipe.TARGET) ** 2)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def step(carry, _):
        v, state = carry
        updates, state = adam.update(jax.grad(miss)(v), state)
        return (v + updates, state), v

    (last, _), path = jax.lax.scan(step, (first, adam.init(first)), length=steps)
    return jnp.concatenate([path, last[None]])


def draw_flights(panel, path, name):
    """The true flights of some throws on the way, later ones darker."""
    from matplotlib import colormaps

    shown = np.unique(np.geomspace(1, len(path), 8).astype(int) - 1)
    flights = np.asarray(jax.vmap(lambda v: flight(EXACT, v, dt=0.005))(path[shown]))
    for i, (step, xy) in enumerate(zip(shown, flights, strict=True)):
        colour = colormaps["viridis_r"](0.1 + 0.9 * i / max(len(shown) - 1, 1))
        xy = np.concatenate([[[0.0, 1.0]], xy])
        panel.plot(*xy.T, "o-", markevery=[-1], color=colour, label=f"step {step}")
    panel.plot(*recipe.TARGET, "*", color="#cc3311", ms=14, mfc="none", zorder=5)
    panel.axhspan(-0.1, 0, color="#e4e9ee")
    panel.set(title=f"by the {name}", xlabel="x, m", ylabel="y, m", xlim=(-0.1, 2.4))


def draw(path, paths, misses, speeds):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, (slopes, error) = figure.subplots(2, 2)
    for panel, (name, model) in zip(upper, MODELS.items(), strict=True):
        draw_flights(panel, paths[name][0], name)
        height = lambda vy, m=model: flight(m, jnp.stack([1.0, vy]))[-1, 1]
        y, slope = jax.jit(jax.vmap(jax.value_and_grad(height)))(speeds)
        slopes.plot(speeds, y, color=COLOURS[name], lw=1, label=name)
        for i in range(12, len(speeds), 24):
            reach = 0.12 * np.array([-1, 1]) / np.hypot(1, slope[i])
            ends = speeds[i] + reach, y[i] + slope[i] * reach
            slopes.plot(*ends, color=COLOURS[name], lw=4, alpha=0.7)
        error.semilogy(misses[name].T, color=COLOURS[name], lw=1)
    slopes.set(xlabel="upward speed of the throw, m/s", ylabel="height at the end, m")
    slopes.set_title("what is simulated, and the slopes it claims")
    error.set(xlabel="step of descent", ylabel="true distance from the target, m")
    for panel in (*upper, slopes, error):
        panel.grid(color="#e4e9ee")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (upper[1], slopes):
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    args = parsed()
    steps = 4 if args.smoke else args.steps
    across = jax.random.uniform(jax.random.key(args.seed), (8,), maxval=2.0)
    firsts = jnp.stack([across, jnp.linspace(-3.0, 0.5, 8)], -1)
    ends = jax.jit(jax.vmap(jax.vmap(lambda v: flight(EXACT, v)[-1])))
    paths, misses = {}, {}
    for name, model in MODELS.items():
        run = jax.jit(jax.vmap(lambda v, m=model: descend(m, v, steps)))
        paths[name] = run(firsts)
        misses[name] = np.linalg.norm(ends(paths[name]) - recipe.TARGET, axis=-1)
        last = misses[name][:, -1]
        print(
            f"{name}: {np.sum(last < 1e-2)} of 8 hit, {last.max():.1e} m off at worst"
        )
    picture = pathlib.Path(args.out) / "bounce_throw.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture, paths, misses, np.linspace(-3.5, 1.5, 241))
    print(f"drew {picture}")


if __name__ == "__main__":
    main()
