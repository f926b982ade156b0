"""`jaxwm compare NAME ...`: world models side by side on one task.

All are trained on the same recorded steps for the same number of updates and judged on
the same held-out windows: they read L rows, then imagine H steps under the actions
that were really taken.
Shapes: B windows, L rows of history, H imagined steps, K samples of one window.
"""

import argparse
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np

from jaxwm.commands import surroundings

_HISTORY = 10  # L, rows that every model may read
_SAMPLES = 16  # K, of stochastic models, for the spread


class Judged(NamedTuple):
    """What one model showed, all for the steps 1 ... H ahead."""

    error: np.ndarray  # [B, H] squared error over the data's variance, mean of entries
    copy: np.ndarray  # [B, H] the same of repeating the last observation
    reward: float  # mean squared error over the variance of rewards
    spread: np.ndarray | None  # [H] spread over error of samples; calibrated is 1
    microseconds: float  # per imagined step of one trajectory, all B at once
    train_seconds: float  # with compiling
    num_params: int


def compare(arguments: list[str]) -> int:
    """Trains world models on the same steps and shows who predicts best."""
    parser = argparse.ArgumentParser(
        "jaxwm compare",
        description="World models side by side: trained on the same steps of random "
        "actions for the same number of updates, judged on held-out ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="+", help="of world models, see jaxwm list")
    parser.add_argument("--env", default="pendulum", help="task, see jaxwm envs")
    parser.add_argument("--engine", help="jax, mjx or c; None: the task's first")
    parser.add_argument("--steps", type=_positive, default=20_000, help="to train on")
    parser.add_argument("--updates", type=_positive, default=2_000, help="of each")
    parser.add_argument("--batch", type=_positive, default=256, help="windows each")
    parser.add_argument("--horizon", type=_positive, default=10, help="steps imagined")
    parser.add_argument("--windows", type=_positive, default=512, help="held out")
    parser.add_argument("--seed", type=int, default=0, help="of data and training")
    parser.add_argument("--preset", default="fast", choices=("fast", "tiny", "paper"))
    parser.add_argument("--out", help="directory; None: runs/compare-TASK")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    options = parser.parse_args(arguments)
    surroundings.prepare(platform=options.platform)
    from jaxwm.agents import presets
    from jaxwm.commands import assemble
    from jaxwm.train import durable

    task = assemble.make_env(options.env, options.engine, {})
    models = {}
    for name in options.names:
        entry = assemble.system(name)
        config = assemble.defaults(entry, options.preset, options.env).config
        config = presets.sized(config, options.updates)
        models[name] = entry.builder()(config, task.env.spec)
    judged = judge(task.env, models, options)
    text = table(judged, options.horizon)
    print(text)
    folder = pathlib.Path(options.out or f"runs/compare-{options.env}")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": {**vars(options), "engine": task.engine},
        "models": {name: _plain(found) for name, found in judged.items()},
    }
    durable.write_text(folder / "compare.json", json.dumps(content, indent=1) + "\n")
    durable.write_bytes(folder / "compare.svg", picture(judged))
    print(f"\npicture: {folder / 'compare.svg'}   numbers: {folder / 'compare.json'}")
    return 0


def judge(env, models: dict, options: argparse.Namespace) -> dict[str, Judged]:
    """Records, trains and judges.

    Args:
        env: one environment.
        models: world models by name, built for it.
        options: steps, updates, batch, horizon, windows and seed.

    Returns:
        By name, in the order given.
    """
    import jax

    from jaxwm import data
    from jaxwm.dynamics import offline

    key = jax.random.key(options.seed)
    train_key, test_key, draw_key, fit_key = jax.random.split(key, 4)
    length = _HISTORY + options.horizon
    num = max(1, min(64, options.steps // (2 * length)))
    record = jax.jit(_record, static_argnums=(1, 2, 3))
    steps = record(train_key, env, num, max(length, options.steps // num))
    held = record(test_key, env, num, max(4 * length, options.windows // num + length))
    _check(steps)
    replay = data.replay(num, held.reward.shape[1], length)
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0, 0], held)), 0, held)
    windows = replay.sample(draw_key, buffer, held.reward.shape[1], options.windows)
    judged = {}
    for i, (name, model) in enumerate(models.items()):
        print(f"{name}: {options.updates:,} updates ...", flush=True)
        began = time.perf_counter()
        state = jax.jit(
            lambda key, steps, model=model: offline.fitted(
                key, model, steps, updates=options.updates, batch=options.batch
            )
        )(jax.random.fold_in(fit_key, i), steps)
        jax.block_until_ready(state)
        took = time.perf_counter() - began
        judged[name] = _judge(model, state, windows, options.horizon, took)
    return judged


def table(judged: dict[str, Judged], horizon: int) -> str:
    """One line per model, best at the last step first."""
    marks = sorted({1, max(1, horizon // 2), horizon})
    head = ["world model", *(f"error at {k}" for k in marks), "reward", "spread"]
    head += ["us/step", "params", "trained"]
    rows = [head]
    last = {name: float(np.nanmean(j.error[:, -1])) for name, j in judged.items()}
    for name in sorted(last, key=last.__getitem__):
        found = judged[name]
        row = [name, *(_interval(found.error[:, k - 1]) for k in marks)]
        row.append(f"{found.reward:.3g}")
        row.append("-" if found.spread is None else f"{found.spread[-1]:.2f}")
        row.append(f"{found.microseconds:.2f}")
        row += [f"{found.num_params:,}", f"{found.train_seconds:.0f} s"]
        rows.append(row)
    any_one = next(iter(judged.values()))
    copies = [_interval(any_one.copy[:, k - 1]) for k in marks]
    rows.append(["(repeat the last)", *copies, "", "", "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    legend = (
        "error: squared, over the data's variance; +- is a 95 % interval over windows. "
        "spread: of samples over their error at the last step, calibrated is 1, - "
        "where the model draws nothing."
    )
    return "\n".join([*lines, "", legend])


def picture(judged: dict[str, Judged]) -> bytes:
    """Error by horizon of all, as SVG."""
    from jaxwm.train import plots

    errors = {name: [np.nan, *np.nanmean(j.error, 0)] for name, j in judged.items()}
    any_one = next(iter(judged.values()))
    return plots.error_by_horizon(
        errors, persistence=np.array([np.nan, *np.nanmean(any_one.copy, 0)])
    )


def _record(key, env, num: int, steps: int):
    """Random steps of some environments, `[num, steps]`; the last one is a cut."""
    import jax
    import jax.numpy as jnp

    from jaxwm import envs
    from jaxwm.core import loop
    from jaxwm.train import evaluate
    from jaxwm.types import Transition

    batch = envs.batch(env, num)
    act = evaluate.uniform(env.spec)
    reset_key, run_key = jax.random.split(key)

    def step(key, state):
        act_key, env_key = jax.random.split(key)
        keys = loop.fold_in_each(act_key, num)
        action = jax.vmap(lambda k: act(k, (), None, False)[0])(keys)
        new, final_obs = batch.step(env_key, state, action)
        row = Transition(
            state.env.obs,
            action,
            new.env.reward,
            new.env.discount,
            new.env.truncated,
            final_obs,
            jnp.ones_like(new.env.reward),
            {},
        )
        return new, row

    rows = loop.unroll(run_key, batch.reset(reset_key), step, steps)[1]
    return rows._replace(truncated=rows.truncated.at[:, -1].set(True))


def _judge(model, state, windows, horizon: int, took: float) -> Judged:
    import jax
    import jax.numpy as jnp

    num, at = windows.reward.shape[0], _HISTORY - 1

    def one(key, state, window):
        def read(memory, row):
            i, obs, action = row
            row_key = jax.random.fold_in(key, i)
            return model.observe(row_key, state, memory, obs, action, i == 0), None

        first = jnp.zeros_like(window.action[:1])
        previous = jnp.concatenate([first, window.action[:at]])
        history = jax.tree.map(lambda x: x[: at + 1], window.obs)
        rows = (jnp.arange(at + 1), history, previous)
        memory = jax.lax.scan(read, model.initial(state, None), rows)[0]
        actions = window.action[at : at + horizon + 1]
        # A row shows the state before its action: one more reaches the last step.
        last = jax.random.fold_in(key, at + 1)
        return model.imagine(last, state, memory, actions, horizon + 1)

    def many(key, state, windows):
        keys = jax.random.split(key, num)
        found = jax.vmap(one, (0, None, 0))(keys, state, windows)
        return found.obs, found.reward

    run = jax.jit(many).lower(jax.random.key(1), state, windows).compile()
    drawn, seconds = [], []
    samples = _SAMPLES if "stochastic" in model.spec.abilities else 1
    for i in range(max(samples, 3)):
        began = time.perf_counter()
        found = jax.block_until_ready(run(jax.random.key(i), state, windows))
        seconds.append(time.perf_counter() - began)
        drawn.append(jax.device_get(found))
    if drawn[0][0] is None:
        raise ValueError(
            f"{model.spec.name} imagines no observations; a comparison needs the "
            'ability "decode".'
        )
    obs = _flat([found[0] for found in drawn[:samples]])  # [K, B, H + 1, D]
    reward = np.stack([found[1] for found in drawn[:samples]])
    true = _flat([windows.obs])[0]  # [B, L + H, D]
    mask = np.asarray(windows.mask)[:, at + 1 : at + horizon + 1]
    variance = true.reshape(-1, true.shape[-1]).var(0)
    variance = np.where(variance > 1e-12, variance, 1.0)
    ahead, now = true[:, at + 1 : at + horizon + 1], true[:, at : at + 1]
    behind = obs[:, :, 1:]

    def scaled(error):
        return np.where(mask > 0, np.mean(error**2 / variance, -1), np.nan)

    spread = None
    if samples > 1:
        within = np.mean(np.var(behind, 0, ddof=1) / variance, -1)
        missed = scaled(behind.mean(0) - ahead)
        both = np.nanmean(np.where(mask > 0, within, np.nan), 0), np.nanmean(missed, 0)
        spread = np.sqrt((1 + 1 / samples) * both[0] / np.maximum(both[1], 1e-12))
    rewards = np.asarray(windows.reward)
    missed = (reward[0, :, :horizon] - rewards[:, at : at + horizon]) ** 2
    known = np.asarray(windows.mask)[:, at : at + horizon] > 0
    return Judged(
        error=scaled(behind[0] - ahead),
        copy=scaled(now - ahead),
        reward=float(missed[known].mean() / max(rewards[known.any(1)].var(), 1e-12)),
        spread=spread,
        microseconds=1e6 * float(np.median(seconds)) / (num * (horizon + 1)),
        train_seconds=took,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    )


def _flat(observations: list) -> np.ndarray:
    """Observations `[..., O...]` with their entries side by side, stacked."""
    import jax

    def one(obs):
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(obs)]
        return np.concatenate([x.reshape(*x.shape[:2], -1) for x in leaves], -1)

    return np.stack([one(obs) for obs in observations])


def _interval(errors: np.ndarray) -> str:
    """Mean and 95 % interval over windows."""
    known = errors[~np.isnan(errors)]
    if not len(known):
        return "-"
    return f"{known.mean():.3g} +-{1.96 * known.std() / np.sqrt(len(known)):.1g}"


def _check(steps) -> None:
    """Refuses recorded steps that are not finite."""
    import jax

    from jaxwm.core import tree
    from jaxwm.train.errors import RunError

    if not bool(jax.device_get(tree.all_finite((steps.obs, steps.reward)))):
        raise RunError("recorded steps are not finite; does the task blow up?")


def _plain(found: Judged) -> dict:
    """As JSON holds it: means over windows."""
    spread = None if found.spread is None else found.spread.tolist()
    return {
        **found._asdict(),
        "error": np.nanmean(found.error, 0).tolist(),
        "copy": np.nanmean(found.copy, 0).tolist(),
        "spread": spread,
    }


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
