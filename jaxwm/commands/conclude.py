"""What came of a run: a table on the console, and report.html.

Shapes: S seeds, E episodes, B imagined trajectories, H steps.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import envs
from jaxwm.commands.assemble import Assembly
from jaxwm.train import durable, evaluate, fidelity, plots, report, sinks
from jaxwm.types import PyTree

_IMAGINED = 256  # trajectories that are replayed in the simulator
_EXPLAINED = 30  # imagined steps whose graphs are drawn
_STRUCTURE = ("graph", "position", "mechanism", "context")  # in a rollout's `info`
_FRAMES = 200  # of the film at most; the GIF stays small enough to mail
_METRIC = "eval/return"


def conclude(
    path: pathlib.Path,
    document: Mapping[str, Any],
    assembly: Assembly,
    iteration: int,
    state: PyTree,
) -> None:
    """Prints the results of a finished run and writes its page.

    Args:
        path: of the run.
        document: its config.json.
        assembly: built from it.
        iteration: that led to the state.
        state: of the learner, all seeds.
    """
    rows = sinks.read(path / "metrics.jsonl")
    last = next((row for row in reversed(rows) if _METRIC in row), None)
    if last is None:
        print(f"no evaluation in {path}/metrics.jsonl; try: jaxwm eval {path}")
        return
    returns = np.asarray(last[_METRIC], float)
    print(table(assembly, returns), flush=True)
    if assembly.run.report:
        print("replaying imagined trajectories, filming ...", file=sys.stderr)
        page = write_report(path, document, assembly, iteration, state, last)
        print(f"report: {page}", flush=True)


def table(assembly: Assembly, returns: np.ndarray) -> str:
    """Random, trained and best possible return, and every seed's.

    Args:
        assembly: names the task and the seeds.
        returns: `[S, E]`.
    """
    spec = assembly.env.spec
    over = evaluate.over_seeds(returns)
    ends = (spec.random_return, spec.best_return)
    known = None not in ends
    score = lambda x: float(evaluate.score(x, *ends)) if known else math.nan
    spread = f"[{over.low:.4g}, {over.high:.4g}]" if len(returns) > 1 else ""
    lines = [("policy", "return", "score", "")]
    if spec.random_return is not None:
        lines.append(("random", f"{spec.random_return:.4g}", "0%", ""))
    for seed, value in zip(assembly.seeds, over.per_seed, strict=True):
        lines.append((f"seed {seed}", f"{value:.4g}", _percent(score(value)), ""))
    trained = f"{over.iqm:.4g}"
    lines.append(("trained (IQM)", trained, _percent(score(over.iqm)), spread))
    if spec.best_return is not None:
        lines.append(("best known", f"{spec.best_return:.4g}", "100%", ""))
    return "\n".join(f"{a:<14}{b:>10}{c:>8}  {d}".rstrip() for a, b, c, d in lines)


def write_report(
    path: pathlib.Path,
    document: Mapping[str, Any],
    assembly: Assembly,
    iteration: int,
    state: PyTree,
    evaluation: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Measures the world model, films the policy, and writes report.html.

    Args:
        path: of the run.
        document: its config.json.
        assembly: built from it.
        iteration: that led to the state.
        state: of the learner, all seeds.
        evaluation: a row with returns and lengths `[S, E]`.
        others: name -> `[model, state]` of world models to compare with.
    """
    rows = sinks.read(path / "metrics.jsonl")
    page = report.of_run(document, rows, assembly.env.spec)
    page = page._replace(
        returns=np.asarray(evaluation[_METRIC], float),
        lengths=np.asarray(evaluation["eval/length"], float),
        notes=_notes(assembly),
    )
    first = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), state)
    parts = imagination(assembly, iteration, first, others or {})
    filmed = film(assembly, first, path / "media")
    missing = {**parts.pop("missing", {}), **filmed.pop("missing", {})}
    page = page._replace(**parts, **filmed, missing=missing)
    file = path / "report.html"
    durable.write_text(file, report.report(page))
    return file


def imagination(
    assembly: Assembly, iteration: int, state: PyTree, others: Mapping[str, Any]
) -> dict:
    """Errors by horizon, trajectories side by side and statistics of actions.

    Args:
        assembly: model, agent, simulator and replay.
        iteration: that led to the state.
        state: of one seed.
        others: name -> (model, state) to compare with, on the same starts.
    """
    index = iteration * assembly.parts.loop.steps  # columns of the replay
    horizon = assembly.parts.agent.horizon
    policy = assembly.agent.policy
    if policy is None or index < 1:
        return {"missing": {"error": "the agent has no policy to imagine with"}}
    models = {assembly.model.spec.name: (assembly.model, state.agent.model), **others}
    # The same draws for every run: a page made again is the same page.
    key = jax.random.key(0)
    sample_key, imagine_key, replay_key = jax.random.split(key, 3)
    windows = assembly.replay.sample(sample_key, state.buffer, index, _IMAGINED)

    def judge(model, model_state, agent_state, windows):
        # All models meet the same draws.
        own_key, error_key, real_key = map(
            jax.random.clone, (imagine_key, replay_key, replay_key)
        )
        actor, params = policy(agent_state), windows.extras.get("params")
        rollouts = _imagine(own_key, model, model_state, actor, windows, horizon)
        errors = fidelity.trajectory_error(
            error_key, assembly.env, rollouts, windows.physics, params
        )
        real = jax.vmap(
            lambda physics, params, action: fidelity.replay(
                real_key, assembly.env, physics, params, action
            )
        )(windows.physics, params, rollouts.action)
        return errors, rollouts, real, fidelity.on_policy(rollouts, actor)

    judged = {
        name: jax.device_get(
            jax.jit(judge, static_argnums=0)(*pair, state.agent, windows)
        )
        for name, pair in models.items()
    }
    first = judged[assembly.model.spec.name]
    return {
        "errors": {name: found[0]._asdict() for name, found in judged.items()},
        "beside": {
            name: {
                "real": np.asarray(real.obs[:3]),
                "imagined": np.asarray(rollouts.obs[:3]),
                "mask": np.asarray(real.mask[:3]),
            }
            for name, (_, rollouts, real, _) in judged.items()
            if not _is_image(models[name][0].spec.obs)
        },
        "frames": frames(imagine_key, models, windows),
        "missing": {"beside": "observations are images"}
        if _is_image(assembly.env.spec.obs)
        else {},
        "on_policy": first[3]._asdict(),
        "structure": structure(imagine_key, models, policy, state.agent, windows),
    }


def frames(key, models: Mapping[str, Any], windows) -> dict[str, dict]:
    """What models of images paint of one recorded window.

    Args:
        key: of what is drawn while filtering and imagining.
        models: name -> (model, state); those that see no images are left out.
        windows: of the replay; the first one is shown.

    Returns:
        By model's name: `real`, `decoded` and `imagined` `[H, height, width, 3]`, from
        the last frame on that the model reads before it imagines.
    """
    window = jax.tree.map(lambda x: x[0], windows)
    previous = jnp.concatenate([0 * window.action[:1], window.action[:-1]])
    found = {}
    for name, (model, model_state) in models.items():
        if not (_is_image(model.spec.obs) and "decode" in model.spec.abilities):
            continue
        start = model.spec.context - 1

        def paint(state, window, model=model, start=start):
            filter_key, imagine_key = jax.random.split(key)

            def step(memory, row):
                i, obs, action = row
                step_key = jax.random.fold_in(filter_key, i)
                memory = model.observe(step_key, state, memory, obs, action, i == 0)
                return memory, memory

            rows = (jnp.arange(len(previous)), window.obs, previous)
            memories = jax.lax.scan(step, model.initial(state, None), rows)[1]
            seen = jax.tree.map(lambda x: x[start:], memories)
            memory = jax.tree.map(lambda x: x[start], memories)
            actions = window.action[start:]
            rollout = model.imagine(imagine_key, state, memory, actions, len(actions))
            return {
                "real": window.obs[start:],
                "decoded": jax.vmap(model.decode, (None, 0))(state, seen),
                "imagined": rollout.obs,
            }

        found[name] = jax.device_get(jax.jit(paint)(model_state, window))
    return found


def structure(
    key, models: Mapping[str, Any], policy, agent_state: PyTree, windows
) -> dict[str, dict]:
    """What models with graphs say acts on what, in one trajectory that they imagine.

    Args:
        key: of the imagination.
        models: name -> (model, state); those without the ability are left out.
        policy: `(agent_state) -> Policy`.
        agent_state: of one seed.
        windows: of the replay; the first one's first observation is the start.

    Returns:
        By model's name: `tokens`, and what its rollouts tell of `graph` `[H, N, M]`,
        `position` `[H, N, 2]`, `mechanism` and `context` `[H, N]`.
    """
    start = jax.tree.map(lambda x: x[:1], windows)
    found = {}
    for name, (model, model_state) in models.items():
        if "graph" not in model.spec.abilities:
            continue

        def explain(state, agent_state, start, model=model):
            actor = policy(agent_state)
            info = _imagine(key, model, state, actor, start, _EXPLAINED).info
            return {what: info[what][0] for what in _STRUCTURE if what in info}

        told = jax.jit(explain)(model_state, agent_state, start)
        found[name] = jax.device_get(told)
        found[name]["tokens"] = model.spec.tokens
    return found


def film(assembly: Assembly, state: PyTree, folder: pathlib.Path) -> dict:
    """One episode as a GIF and a strip; also put into `folder`.

    Args:
        assembly: simulator and agent.
        state: of one seed.
        folder: made if missing.
    """
    seen = _is_image(assembly.env.spec.obs)
    if assembly.env.render is None and not seen:
        return {"missing": {"film": f"{assembly.env.spec.name} has no pictures"}}

    def record(key, state):
        act, memory = evaluate.act_of(assembly.agent, state.agent)
        return evaluate.record(key, assembly.env, act, memory=memory)

    states, length = jax.device_get(jax.jit(record)(jax.random.key(1), state))
    total = int(length) + 1
    every = -(-total // _FRAMES)
    shown = jax.tree.map(lambda x: x[:total:every], states)
    pictures = (
        _enlarged(shown.obs) if seen else envs.rendering.frames(assembly.env, shown)
    )
    per_second = 1 / (assembly.env.spec.control_dt * every)
    data = envs.rendering.gif(pictures, min(50.0, per_second))
    folder.mkdir(exist_ok=True)
    durable.write_bytes(folder / "policy.gif", data)
    strip = plots.film_strip(
        pictures, control_dt=assembly.env.spec.control_dt, every=every
    )
    text = f"One episode of the trained policy of seed {assembly.seeds[0]}."
    return {"film": data, "film_text": text, "strip": strip}


def _imagine(key, model, model_state, policy, windows, horizon):
    """Trajectories from the windows' first observations, `[B, H, ...]`."""

    def one(key, obs):
        observe_key, imagine_key = jax.random.split(key)
        space = model.spec.action
        no_action = np.zeros(space.size, np.float32)
        memory = model.initial(model_state, None)
        memory = model.observe(observe_key, model_state, memory, obs, no_action, True)
        return model.imagine(imagine_key, model_state, memory, policy, horizon)

    first = jax.tree.map(lambda x: x[:, 0], windows.obs)
    keys = jax.random.split(key, windows.reward.shape[0])
    return jax.vmap(one)(keys, first)


def _is_image(obs: PyTree) -> bool:
    leaves = jax.tree.leaves(obs)
    return len(leaves) == 1 and len(leaves[0].shape) == 3


def _enlarged(frames: np.ndarray) -> np.ndarray:
    """What an agent sees, at least 160 pixels wide."""
    times = -(-160 // frames.shape[2])
    return np.asarray(frames).repeat(times, 1).repeat(times, 2)


def _notes(assembly: Assembly) -> list[str]:
    seed = assembly.seeds[0]
    return [f"World model and film are those of seed {seed}; returns are of all seeds."]


def _percent(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.0%}"


def write_json(path: pathlib.Path, content: Any) -> None:
    """Replaces a JSON file."""
    durable.write_text(path, json.dumps(content, indent=1) + "\n")
