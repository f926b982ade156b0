"""Find out how stiff a soft block is by watching it hit the floor.

    python examples/soft_block.py --stiffness 1e5 --guess 3e4

A block of jelly is thrown into a box. From the places of its particles alone its
Young's modulus is identified, by Gauss-Newton steps through the simulator; a search by
the cross-entropy method that may simulate no less often is told beside it. Draws the
motion under the guess and under the stiffness found over the recorded one, as a picture
and as an animation.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import physics, plan
from jaxwm.physics import identify, mpm

FRAMES = 40


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--stiffness", type=float, default=1e5, help="true, Pa")
    parser.add_argument("--guess", type=float, default=3e4, help="first, Pa")
    parser.add_argument("--noise", type=float, default=1e-3, help="of the camera, m")
    parser.add_argument("--steps", type=int, default=800, help="of 0.5 ms")
    parser.add_argument("--side", type=int, default=12, help="particles along an edge")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", default="runs/soft_block", help="folder of pictures")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.side, args.iterations = 80, 4, 2
    if args.steps % FRAMES:
        parser.error(f"--steps must be a multiple of {FRAMES}, got {args.steps}")
    return args


def simulator(args):
    """`{"E": Pa}` to positions, `[FRAMES, N, 2]`."""
    body = mpm.block((0.45, 0.5), (0.4, 0.4), (args.side, args.side))
    body = mpm.moving(body, (1.0, -1.5), 4.0)
    # The step suits anything up to the stiffest that the search may try.
    block = mpm.mpm(body, mpm.elasticity.corotated(args.guess), cells=20, dt=5e-4)
    start = block.init(jax.random.key(0), block.params)
    shown = physics.repeated(block, args.steps // FRAMES)

    def simulate(found):
        elastic = {**block.params["elastic"], **found}
        params = {**block.params, "elastic": elastic}
        _, path = physics.rollout(shown, params, start, jnp.zeros((FRAMES, 0)))
        return path.state.x

    return simulate


def searched(key, simulate, observed, guess, calls):
    """The best stiffness of a search in log E with at least as many simulations."""

    def cost(z):
        return jnp.mean((simulate({"E": jnp.exp(z[0])}) - observed) ** 2)

    rounds = -(-calls // 6)
    first = jnp.log(jnp.array([guess]))
    return plan.cem(key, cost, first, 1.0, num=6, elites=2, iterations=rounds)


def axes_of(figure, titles):
    panels = figure.subplots(1, len(titles), sharey=True)
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title, xlabel="x, m")
        panel.axvspan(0, 0.15, color="#e4e9ee")
        panel.axvspan(0.85, 1, color="#e4e9ee")
        panel.axhspan(0, 0.15, color="#e4e9ee")
    panels[0].set_ylabel("y, m")
    return panels


def canvas(width):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(path, observed, before, after, titles, errors):
    """Both motions where the guess is worst, and the error along the search."""
    figure = canvas(10.5)
    *panels, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for panel, x, title in zip(panels, (before, after), titles, strict=True):
        panel.axhspan(0, 0.15, color="#e4e9ee")
        panel.axvspan(0.85, 1, color="#e4e9ee")
        worst = np.argmax(np.mean((before - observed) ** 2, (1, 2)))
        panel.plot(*observed[worst].T, "o", color="#0072b2", ms=4, label="recorded")
        panel.plot(*x[worst].T, ".", color="#d55e00", ms=4, label="simulated")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
        panel.set(xlabel="x, m", ylabel="y, m")
        panel.legend(frameon=False, loc="upper left")
    right.semilogy(np.sqrt(errors), "o-", color="#009e73")
    right.set(xlabel="iteration", ylabel="error of positions, m", box_aspect=1.2)
    right.grid(color="#e4e9ee")
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def animate(path, observed, before, after, titles):
    """Guess and result beside each other, the recording behind both."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure = canvas(7.6)
    panels = axes_of(figure, titles)
    moving = []
    for panel, x in zip(panels, (before, after), strict=True):
        for points, style, colour in ((observed, "o", "#0072b2"), (x, ".", "#d55e00")):
            (line,) = panel.plot([], [], style, color=colour, ms=4)
            moving.append((line, points))

    def show(frame):
        for line, points in moving:
            line.set_data(*points[frame].T)
        return [line for line, _ in moving]

    film = FuncAnimation(figure, show, frames=len(observed), blit=True)
    film.save(path, writer=PillowWriter(fps=20), dpi=70)


def main():
    args = parsed()
    simulate = simulator(args)
    truth = jax.jit(simulate)({"E": jnp.float32(args.stiffness)})
    noise = jax.random.normal(jax.random.key(args.seed), truth.shape)
    observed = truth + args.noise * noise
    start = {"E": jnp.float32(args.guess)}
    found = jax.jit(
        lambda seen: identify.identify(
            simulate, seen, start, iterations=args.iterations
        )
    )(observed)
    search = jax.jit(searched, static_argnums=(1, 4))(
        jax.random.key(args.seed + 1), simulate, observed, args.guess, int(found.calls)
    )
    first = jax.jit(simulate)(start)
    last = jax.jit(simulate)(found.params)
    seen, first, last, E = jax.device_get((observed, first, last, found.params["E"]))
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    titles = (f"guess: {args.guess / 1e3:.0f} kPa", f"found: {E / 1e3:.1f} kPa")
    errors = np.append(np.mean((first - seen) ** 2), found.errors)
    draw(folder / "soft_block.png", seen, first, last, titles, errors)
    animate(folder / "soft_block.gif", seen, first, last, titles)
    print(
        f"found {E / 1e3:.2f} kPa from {args.guess / 1e3:.0f} kPa; true "
        f"{args.stiffness / 1e3:.0f} kPa, off by {abs(E / args.stiffness - 1):.2%}, in "
        f"{found.calls} simulations and tangents"
    )
    other = float(jnp.exp(search.x[0]))
    print(
        f"a search with {search.calls} simulations found {other / 1e3:.2f} kPa, off by "
        f"{abs(other / args.stiffness - 1):.2%}"
    )
    print(f"drew {folder / 'soft_block.png'} and {folder / 'soft_block.gif'}")


if __name__ == "__main__":
    main()
