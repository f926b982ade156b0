"""How much does a world model know? Its complexity along training, on real rollouts.

    python examples/complexity_of_a_world_model.py --out runs/complexity

Fits PolyGRAD's denoiser to rollouts of a pendulum: without a regulariser, with weight
decay, and with the spectral-entropy regulariser in the chain of its optimiser as well.
Measures how small its weights can be coded while the denoising loss on rollouts it has
not seen rises by at most epsilon (in units of the data's variance).
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwm import data, envs, measures
from jaxwm.core import loop, optimise
from jaxwm.recipes import polygrad
from jaxwm.types import ModelState, Transition


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--env", default="pendulum", help="a task of the jax engine")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--weight-decay", type=float, default=1.0)
    parser.add_argument("--coefficient", type=float, default=0.1, help="per nat")
    parser.add_argument("--every", type=int, default=20, help="steps between penalties")
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="runs/complexity", help="folder of the picture"
    )
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    return parser.parse_args()


def optimisers(args, learning_rate):
    """Without a regulariser, with weight decay, and with spectral entropy as well."""
    decay = optax.adamw(learning_rate, weight_decay=args.weight_decay)
    penalty = measures.spectral_entropy_decay(
        args.coefficient, every=args.every, hold=True
    )
    return {
        "no regulariser": optax.adam(learning_rate),
        "weight decay": decay,
        "weight decay + spectral entropy": optax.chain(penalty, decay),
    }


def rollouts(key, env, num_envs, num_steps):
    """Rows `[N, T, ...]` under actions drawn anew every few steps."""
    batch = envs.batch(env, num_envs)
    reset_key, run_key = jax.random.split(key)

    def step(key, carry):
        state, held = carry
        action_key, keep_key, env_key = jax.random.split(key, 3)
        shape = (num_envs, env.spec.action.size)
        fresh = jax.random.uniform(action_key, shape, minval=-1.0, maxval=1.0)
        held = jnp.where(
            jax.random.bernoulli(keep_key, 0.7, shape[:1])[:, None], held, fresh
        )
        before = state.env
        state, final_obs = batch.step(env_key, state, held)
        after = state.env
        row = Transition(
            before.obs,
            held,
            after.reward,
            after.discount,
            after.truncated,
            final_obs,
            jnp.ones_like(after.reward),
            {},
        )
        return (state, held), row

    start = batch.reset(reset_key), jnp.zeros((num_envs, env.spec.action.size))
    return loop.unroll(run_key, start, step, num_steps)[1]


def learner(key, config, env, rows, optimiser):
    """State before training, `train(state, first, last, buffer)`, and the buffer."""
    model = polygrad.polygrad(config, env.spec)
    num, length = rows.reward.shape
    replay = data.replay(num, length, config.horizon)
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0, 0], rows)), 0, rows)
    init_key, fit_key = jax.random.split(key)
    state = model.adapt(
        model.init(init_key), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    )
    # Any optimiser can move the model: its loss is public.
    state = optimise.init_state(optimiser, state.params, state.buffers)
    fit = optimise.fit(model.loss, optimiser, ema=config.ema)

    def train(state, first, last, buffer):
        def update(i, state):
            sample_key, update_key = jax.random.split(jax.random.fold_in(fit_key, i))
            windows = replay.sample(sample_key, buffer, length, 256)
            return fit(update_key, state, windows)[0]

        return jax.lax.fori_loop(first, last, update, state)

    return state, jax.jit(train), buffer


def denoising_loss(key, config, env, rows):
    """`(params, buffers) -> scalar` on fixed windows and noise."""
    model = polygrad.polygrad(config, env.spec)
    num, length = rows.reward.shape
    replay = data.replay(num, length, config.horizon)
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0, 0], rows)), 0, rows)
    windows_key, noise_key = jax.random.split(key)
    windows = replay.sample(windows_key, buffer, length, 256)
    keys = jax.random.split(noise_key, 256)

    def loss(params, buffers):
        told = ModelState(params, buffers, ())
        return jax.vmap(model.loss, (0, None, 0))(keys, told, windows)[0].mean()

    return loss


def draw(path, marks, series, epsilon):
    """Loss, complexity and effective rank over updates, one line per regulariser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, sharex=True)
    names = (
        "denoising loss, new rollouts",
        f"complexity, kB (ε = {epsilon:g})",
        "mean effective rank",
    )
    styles = (("#0072b2", "o", "-"), ("#009e73", "^", ":"), ("#d55e00", "s", "--"))
    for (label, rows), (colour, marker, dash) in zip(series, styles, strict=True):
        for axes, values in zip(panels, rows, strict=True):
            axes.plot(marks, values, dash, color=colour, marker=marker, label=label)
    for axes, name in zip(panels, names, strict=True):
        axes.set(ylabel=name, xscale="log")
        axes.grid(color="#e4e9ee")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, None)
    panels[-1].set_xlabel("updates of the world model")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    args = parsed()
    config = polygrad.Config(horizon=6)
    num_envs, num_steps = 64, 200
    if args.smoke:
        config, args.updates, num_envs, num_steps = polygrad.TINY, 20, 4, 20
    marks = np.unique(np.geomspace(10, args.updates, 8).round().astype(int))
    env = envs.make(args.env, engine="jax")
    run_key, new_key, fit_key, test_key = jax.random.split(jax.random.key(args.seed), 4)
    collect = jax.jit(lambda key: rollouts(key, env, num_envs, num_steps))
    seen, unseen = collect(run_key), collect(new_key)

    loss = denoising_loss(test_key, config, env, unseen)

    @jax.jit
    def measure(params, buffers):
        found = measures.complexity(
            params, lambda params: loss(params, buffers), epsilon=args.epsilon
        )
        rank = measures.mean_effective_rank(params)
        return found.base_loss, found.bits / 8e3, rank, found.feasible

    series = []
    for label, optimiser in optimisers(args, config.learning_rate).items():
        state, train, buffer = learner(fit_key, config, env, seen, optimiser)
        rows = []
        for first, last in zip((0, *marks[:-1]), marks, strict=True):
            state = train(state, first, last, buffer)
            # The running average is what the model imagines with.
            *row, feasible = jax.device_get(
                measure(state.buffers["ema"], state.buffers)
            )
            rows.append(row)
            print(
                f"{label}, update {last}: loss {row[0]:.4f}, {row[1]:.1f} kB, "
                f"effective rank {row[2]:.1f}" + ("" if feasible else " (infeasible)"),
                flush=True,
            )
        series.append((label, np.array(rows).T))
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "complexity_of_a_world_model.png"
    draw(path, marks, series, args.epsilon)
    print(f"drew {path}")


if __name__ == "__main__":
    main()
