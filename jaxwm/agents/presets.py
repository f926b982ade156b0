"""Settings of the whole loop that belong together, by what they spare.

`FAST` spares wall time, `SAMPLE` environment steps; `PAPER` is the published loop. The
command line offers them as `--preset`. Where a task wants something else, `for_task`
knows. Settings were searched on seeds 100 and above; reported runs use seeds 0 to 4.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxwm.agents import dream, online


class Preset(NamedTuple):
    """One setting of agent, loop and batch of environments."""

    agent: dream.Config
    loop: online.Config
    num_envs: int  # environments that collect side by side
    env_steps: int  # all environments together, until the run ends
    recency: float = 1.0  # replay age exponent; above 1 favours recent steps


# A wide policy with an entropy bonus matters most: with init_std 0.6 and entropy 1e-3
# pendulum swing-up is found as fast, but forgotten again on one seed in three.
FAST = Preset(
    dream.Config(
        fits=1,
        imagine_batch=128,
        gamma=0.96,
        lambda_=0.95,
        entropy=3e-3,
        actor_lr=1e-3,
        critic_lr=2e-3,
        decay_rounds=-1,
        target_decay=0.9,
        init_std=1.0,
    ),
    online.Config(steps=25, random_iterations=2, pretrain=500, rounds=40),
    num_envs=8,
    env_steps=5000,
)
SAMPLE = Preset(
    dataclasses.replace(
        FAST.agent, fits=2, imagine_batch=256, actor_lr=1.5e-3, critic_lr=3e-3
    ),
    online.Config(steps=25, random_iterations=2, pretrain=1000, rounds=48),
    num_envs=8,
    env_steps=5000,
)
PAPER = Preset(
    dream.PAPER,
    online.Config(steps=4, random_iterations=1250, pretrain=0, rounds=1),
    num_envs=1,
    env_steps=1_000_000,
)
PRESETS = {"fast": FAST, "sample": SAMPLE, "paper": PAPER}

# Balancing is judged over a long time: a discount of 0.98 leaves the cart off-centre
# and drifting, 0.99 does not; a narrow policy holds still.
_BALANCE: dict[str, Any] = dict(
    fits=3, imagine_batch=256, gamma=0.99, entropy=1e-3, init_std=0.6
)
_TASKS: dict[str, dict[str, Any]] = {
    "cartpole_balance": dict(agent=_BALANCE, env_steps=8000),
    "inverted_pendulum": dict(agent=_BALANCE, env_steps=8000),
}


def for_task(preset: Preset, task: str) -> Preset:
    """The preset with what is known to suit a task better; `PAPER` stays as it is."""
    changes = dict(_TASKS.get(task, {}))
    if preset is PAPER or not changes:
        return preset
    agent = dataclasses.replace(preset.agent, **changes.pop("agent"))
    return preset._replace(agent=agent, **changes)


def sized(agent: dream.Config, num_rounds: int) -> dream.Config:
    """Puts the rounds of a whole run where the settings say so."""
    if agent.decay_rounds != -1:
        return agent
    return dataclasses.replace(agent, decay_rounds=max(1, num_rounds))
