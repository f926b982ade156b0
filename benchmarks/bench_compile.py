"""What compiling costs, and whether anything is compiled twice.

One program of each kind that a run compiles, at its usual size. `compile` is seconds of
tracing, lowering and compiling without any cache; its program's operations are counted
in `compile_budget.json`, which does not depend on the machine: a program that has grown
by more than a fifth fails its row. Each is then called with other values, keys and
counts, which must not compile anything.

    python -m benchmarks.bench_compile   # writes the budget anew
"""

import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Settings, num_compilations
from benchmarks.record import Row

BUDGET = pathlib.Path(__file__).with_name("compile_budget.json")
GROWTH = 1.2  # beyond which a program fails
_OPERATION = re.compile(r"^\s*(%\S+ = |return|func\.return|stablehlo\.)", re.MULTILINE)


class Program(NamedTuple):
    """A function of a key and a count beside its arguments, none of them static."""

    name: str
    function: Callable  # (key, count, *arguments)
    arguments: tuple


def rows(settings: Settings) -> Iterator[Row]:
    budget = json.loads(BUDGET.read_text())
    for program in programs(settings.smoke):
        seconds, num_operations, again = measured(program)
        row = Row(
            f"compile/{program.name}",
            f"{num_operations} operations",
            seconds,
            "s",
            higher_is_better=False,
        )
        allowed = budget.get(program.name)
        if again:
            note = f"compiled {again} times when called with other values"
            row = row._replace(status="failed", note=note)
        elif allowed is None:
            note = f"{BUDGET.name} does not know it; run benchmarks.bench_compile"
            row = row._replace(status="failed", note=note)
        elif num_operations > GROWTH * allowed:
            note = f"more than {GROWTH} x the {allowed} operations of {BUDGET.name}"
            row = row._replace(status="failed", note=note)
        yield row


def measured(program: Program) -> tuple[float, int, int]:
    """Seconds to compile, operations, and compilations in calls with other values."""
    run = jax.jit(program.function)
    inputs = lambda i: (jax.random.key(i), jnp.int32(i), *program.arguments)
    start = time.perf_counter()
    lowered = run.lower(*inputs(0))
    lowered.compile()
    seconds = time.perf_counter() - start
    num_operations = len(_OPERATION.findall(lowered.as_text()))
    first, others = inputs(0), [inputs(i) for i in (1, 2)]
    jax.block_until_ready(run(*first))
    before = num_compilations()
    for other in others:
        # NumPy and jax arrays of one type must share a program.
        jax.block_until_ready(run(other[0], np.int32(3), *other[2:]))
        jax.block_until_ready(run(*other))
    return seconds, num_operations, num_compilations() - before


def programs(smoke: bool) -> Iterator[Program]:
    """Programs by name; the smoke run takes the quickest alone."""
    yield _environment("pendulum", "jax")
    if smoke:
        return
    yield _environment("cartpole_swingup", "mjx")
    yield _environment("halfcheetah", "c")
    yield _ppo()
    yield from _polygrad()
    yield _online()


def _environment(name: str, engine: str) -> Program:
    from jaxwm import envs

    batch = envs.batch(envs.make(name, engine=engine), 16)
    state = jax.jit(batch.reset)(jax.random.key(0))
    actions = jnp.zeros((16, batch.spec.action.size))

    def step(key, count, state, actions):
        body = lambda i, state: batch.step(jax.random.fold_in(key, i), state, actions)[
            0
        ]
        return jax.lax.fori_loop(0, count, body, state)

    return Program(f"env_{name}_{engine}", step, (state, actions))


def _ppo() -> Program:
    from jaxwm import envs
    from jaxwm.agents import ppo

    env = envs.batch(envs.make("pendulum", engine="jax"), 16)
    learner = ppo.ppo(env, ppo.Config()).learner
    state = jax.jit(learner.init)(jax.random.key(0))
    step = lambda key, count, state: learner.step(key, state, count)
    return Program("ppo_step", step, (state,))


def _polygrad() -> Iterator[Program]:
    from benchmarks.bench_diffusion import ACTION, OBS, model_of
    from jaxwm import nn
    from jaxwm.recipes import polygrad
    from jaxwm.types import Trajectory

    config = polygrad.Config()
    model, state = model_of(config)
    shape = (16, config.horizon)
    windows = Trajectory(
        obs=jnp.zeros((*shape, OBS)),
        action=jnp.zeros((*shape, ACTION)),
        reward=jnp.zeros(shape),
        discount=jnp.ones(shape),
        mask=jnp.ones(shape),
        extras={},
    )

    def fit(key, count, state, windows):
        body = lambda i, s: model.fit(jax.random.fold_in(key, i), s, windows)[0]
        return jax.lax.fori_loop(0, count, body, state)

    yield Program("polygrad_fit", fit, (state, windows))
    actor = nn.Actor(ACTION)
    params = actor.init(jax.random.key(3), jnp.zeros(OBS))

    def imagine(key, count, state, params, obs):
        policy = lambda feature: actor.apply(params, feature)
        key = jax.random.fold_in(key, count)
        one = lambda key, obs: model.imagine(key, state, obs, policy, config.horizon)
        return jax.vmap(one)(jax.random.split(key, 16), obs)

    obs = jnp.zeros((16, OBS))
    yield Program("polygrad_imagine", imagine, (state, params, obs))


def _online() -> Program:
    from jaxwm import data, envs
    from jaxwm.agents import dream, online
    from jaxwm.recipes import polygrad

    env = envs.batch(envs.make("pendulum", engine="jax"), 8)
    model = polygrad.polygrad(polygrad.Config(), env.spec)
    replay = data.replay(8, 100, model.spec.window)
    agent = dream.dream(model, dream.Config())
    learner = online.online(agent, env, replay, online.Config(steps=8))
    state = jax.jit(learner.init)(jax.random.key(0))
    step = lambda key, count, state: learner.step(key, state, 0 * count)
    return Program("online_step", step, (state,))


def main() -> None:
    """Counts every program's operations and writes the budget."""
    found = {}
    for program in programs(smoke=False):
        run = jax.jit(program.function)
        text = run.lower(jax.random.key(0), jnp.int32(0), *program.arguments).as_text()
        found[program.name] = len(_OPERATION.findall(text))
        print(f"{program.name:30} {found[program.name]}")
    BUDGET.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
