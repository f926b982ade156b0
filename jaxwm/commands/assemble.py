"""From a run's document to the functions that train and judge it.

catalogue row -> world model -> agents.dream -> agents.online -> train.fit
task          -> env -> batch, replay ^
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxwm import agents, catalogue, data, envs
from jaxwm.agents import presets
from jaxwm.catalogue import Entry
from jaxwm.train import evaluate, settings
from jaxwm.train.errors import ConfigError
from jaxwm.train.settings import RunConfig
from jaxwm.types import Agent, Env, EnvSpec, Learner, WorldModel

# As large as tests can pay for.
TINY = presets.Preset(
    agents.dream.TINY,
    agents.online.Config(steps=5, random_iterations=1, pretrain=1, rounds=1),
    num_envs=2,
    env_steps=40,
)
PRESETS: dict[str, presets.Preset] = {**presets.PRESETS, "tiny": TINY}
_MODEL = {"paper": "PAPER", "tiny": "TINY"}  # attributes of a system's module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Settings of everything but the run; `config` is the system's own."""

    config: Any
    agent: agents.dream.Config
    loop: agents.online.Config
    recency: float = 1.0  # above 1 the replay favours recent steps
    env: Mapping[str, float] = dataclasses.field(default_factory=dict)  # factors


class Assembly(NamedTuple):
    """Everything a run is made of."""

    run: RunConfig
    parts: Parts
    entry: Entry
    env: Env
    model: WorldModel
    agent: Agent
    learner: Learner
    replay: data.Replay
    seeds: list[int]
    steps_per_iteration: int  # environment steps of one seed
    num_iterations: int

    def every(self, steps: int) -> int:
        """Environment steps as iterations, at least one."""
        return max(1, round(steps / self.steps_per_iteration))


def system(name: str) -> Entry:
    """The row of a system that can be trained in an environment.

    Raises:
        ConfigError: for an unknown name, with the closest; for one of another kind.
    """
    names = [entry.name for entry in catalogue.ENTRIES]
    if name not in names:
        raise ConfigError(f'unknown system "{name}"; {settings.closest(name, names)}')
    entry = catalogue.find(name)
    if entry.bundle != "WorldModel":
        raise ConfigError(
            f"{name} does not learn in an environment; try: jaxwm run {name}."
        )
    return entry


def preset(name: str, task: str) -> presets.Preset:
    """A preset by name, as it suits a task.

    Raises:
        ConfigError: for an unknown name, with the closest.
    """
    if name not in PRESETS:
        raise ConfigError(f'unknown preset "{name}"; {settings.closest(name, PRESETS)}')
    return presets.for_task(PRESETS[name], envs.ALIASES.get(task, task))


def defaults(entry: Entry, name: str, task: str) -> Parts:
    """What a preset says."""
    module, chosen = entry.load(), preset(name, task)
    config = getattr(module, _MODEL.get(name, ""), None) or module.Config()
    known = {field.name for field in dataclasses.fields(config)}
    changes = {k: v for k, v in chosen.model.items() if k in known}
    config = dataclasses.replace(config, **changes)
    return Parts(
        config=config, agent=chosen.agent, loop=chosen.loop, recency=chosen.recency
    )


def resolve(entry: Entry, run: RunConfig) -> RunConfig:
    """Puts numbers where the settings say "as the preset has it"."""
    chosen = preset(run.preset, run.env)
    num_envs = run.num_envs or chosen.num_envs
    env_steps = run.env_steps or chosen.env_steps
    return dataclasses.replace(
        run,
        num_envs=num_envs,
        env_steps=env_steps,
        replay_steps=run.replay_steps or env_steps,
        eval_every=run.eval_every or max(1, env_steps // 20),
        log_every=run.log_every or max(1, env_steps // 500),
        engine=run.engine or make_env(run.env, None, {}).engine,
        out=run.out or settings.default_out(entry.name, run.env),
    )


class Task(NamedTuple):
    """An environment and the engine that steps it."""

    env: Env
    engine: str


def make_env(
    name: str, engine: str | None, factors: Mapping[str, float], *, images: bool = False
) -> Task:
    """A task by name, observed as its state or in images.

    Raises:
        ConfigError: for an unknown task, engine or factor, with the closest name.
    """
    try:
        env = envs.make(name, engine, images=images, **factors)  # type: ignore
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if engine is None:
        row = envs.ALIASES.get(name, name)
        engine = next(task.engines[0] for task in envs.TASKS if task.name == row)
    return Task(env, engine)


def parts_of(document: Mapping[str, Any]) -> tuple[Entry, RunConfig, Parts]:
    """Settings of a document, checked.

    Raises:
        ConfigError: naming an unknown key or a bad value.
    """
    entry = system(document.get("recipe", ""))
    run = settings.from_json(RunConfig, document.get("run", {}), "run")
    example = defaults(entry, "fast", run.env)
    given = dict(document.get("config", {}))
    factors = given.pop("env", {})
    made = settings.from_json(
        type(example), {**dataclasses.asdict(example), **given}, "config"
    )
    nested = {
        name: settings.from_json(
            type(getattr(example, name)), given.get(name, {}), f"config.{name}"
        )
        for name in ("config", "agent", "loop")
    }
    return entry, run, dataclasses.replace(made, **nested, env=factors)


def assemble(entry: Entry, run: RunConfig, parts: Parts) -> Assembly:
    """Builds the pure functions of a run.

    Args:
        entry: row of the system.
        run: resolved settings.
        parts: settings of the parts.

    Raises:
        ConfigError: where parts do not fit each other, in the words of the part.
    """
    env = make_env(run.env, run.engine, parts.env, images=run.images).env
    try:
        batch = envs.batch(env, run.num_envs, factors=run.factors)
        steps = run.num_envs * parts.loop.steps
        num_iterations = math.ceil(run.env_steps / steps)
        num_rounds = num_iterations * parts.loop.rounds
        num_fits = num_rounds * parts.agent.fits + parts.loop.pretrain
        config = presets.sized(parts.config, num_fits)
        model = entry.builder()(config, env.spec)
        agent = agents.dream.dream(model, presets.sized(parts.agent, num_rounds))
        columns = math.ceil(run.replay_steps / run.num_envs)
        # Whole iterations are written at once.
        columns = max(columns, parts.loop.steps, model.spec.window)
        replay = data.replay(run.num_envs, columns, model.spec.window)
        if parts.recency != 1:
            draw = replay.sample
            replay = replay._replace(
                sample=lambda key, buffer, index, batch_size: draw(
                    key, buffer, index, batch_size, parts.recency
                )
            )
        learner = agents.online.online(agent, batch, replay, parts.loop)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Assembly(
        run=run,
        parts=parts,
        entry=entry,
        env=env,
        model=model,
        agent=agent,
        learner=learner,
        replay=replay,
        seeds=list(range(run.seed, run.seed + run.seeds)),
        steps_per_iteration=steps,
        num_iterations=num_iterations,
    )


def evaluation(assembly: Assembly, num_episodes: int) -> Callable:
    """`(key, learner state) -> returns and lengths [E]` of the deterministic policy."""

    def judge(key, state):
        act, memory = evaluate.act_of(assembly.agent, state.agent)
        episodes = evaluate.returns(key, assembly.env, act, num_episodes, memory=memory)
        return {"return": episodes.returns, "length": episodes.lengths}

    return judge


def spec_of(name: str, engine: str | None = None) -> EnvSpec:
    """A task's fixed facts, with default factors."""
    return make_env(name, engine, {}).env.spec
