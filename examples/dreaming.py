"""Learn to swing up a pendulum inside a world model, from Python.

    python examples/dreaming.py --seeds 2 --out runs/dreaming

Collects with eight environments, fits PolyGRAD to what they saw, and improves a policy
on imagined trajectories only.
"""

import argparse
import dataclasses

import jax
import numpy as np

from jaxwm import agents, data, envs, train
from jaxwm.agents import presets
from jaxwm.recipes import polygrad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000, help="of all environments")
    parser.add_argument("--out", help="where checkpoints and metrics go; None: nowhere")
    parser.add_argument("--smoke", action="store_true", help="as small as it gets")
    args = parser.parse_args()

    preset, model_config = presets.FAST, polygrad.Config(horizon=6)
    loop_config, agent_config = preset.loop, preset.agent
    if args.smoke:
        model_config, agent_config = polygrad.TINY, agents.dream.TINY
        loop_config = agents.online.Config(steps=5, pretrain=1, rounds=1)
        args.steps = 200
    num_iterations = args.steps // (preset.num_envs * loop_config.steps)
    agent_config = dataclasses.replace(agent_config, decay_rounds=None)

    env = envs.make("pendulum", engine="jax")
    batch = envs.batch(env, preset.num_envs)
    model = polygrad.polygrad(model_config, env.spec)
    agent = agents.dream.dream(model, agent_config)
    columns = loop_config.steps * num_iterations
    replay = data.replay(preset.num_envs, columns, model_config.horizon)
    learner = agents.online.online(agent, batch, replay, loop_config)

    def evaluate(key, state):
        act, memory = train.evaluate.act_of(agent, state.agent)
        episodes = train.evaluate.returns(key, env, act, 10, memory=memory)
        return {"return": episodes.returns.mean()}

    def learn(run=None):
        return train.fit(
            learner,
            seeds=range(args.seeds),
            num_iterations=num_iterations,
            run=run,
            evaluate=evaluate,
            eval_every=max(1, num_iterations // 5),
            steps_per_iteration=preset.num_envs * loop_config.steps,
            progress=train.progress.console(),
        )

    if args.out:
        with train.open_run(args.out, {"recipe": "example", "run": {}}) as run:
            fitted = learn(run)
    else:
        fitted = learn()
    keys = jax.random.split(jax.random.key(9), args.seeds)
    found = jax.jit(jax.vmap(evaluate))(keys, fitted.state)["return"]
    best, random = env.spec.best_return, env.spec.random_return
    print(f"returns {np.round(np.asarray(found), 1)}; random {random}, best {best}")


if __name__ == "__main__":
    main()
