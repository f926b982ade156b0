"""Seconds until PPO solves a task, five seeds at once, as one JSON line.

    python -m benchmarks.ppo_to_score pendulum [--seeds 5] [--smoke]
    python -m benchmarks.ppo_to_score inverted_pendulum

Score = (R - R_random) / (R_best - R_random) over 20 episodes of the deterministic
policy, evaluated after every iteration; reached = first evaluation >= 0.8 whose
successor is too. Warm seconds are training alone until the last seed has reached it;
cold ones begin with tracing and hold compiling too. Evaluation is not in either, as in
`peers_sb3.py`. Settings were chosen on seeds 100-104.
"""

import argparse
import json
import os
import time

CONFIGS = {
    "pendulum": (32, {"gamma": 0.9, "learning_rate": 3e-3}),
    "inverted_pendulum": (16, {"gamma": 0.99, "learning_rate": 3e-3}),
}
ENGINES = {"pendulum": "jax", "inverted_pendulum": "c"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(CONFIGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    devices = f"--xla_force_host_platform_device_count={options.seeds}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
    print(json.dumps(run(options)))


def run(options) -> dict:
    """Trains all seeds; returns a row."""
    import jax
    import numpy as np

    from benchmarks.sample_efficiency import reached
    from jaxwm import envs
    from jaxwm.agents import ppo
    from jaxwm.train import chunk, evaluate

    num_envs, settings = CONFIGS[options.task]
    env = envs.make(options.task, ENGINES[options.task])
    config = ppo.Config(steps=32, epochs=10, minibatches=8, **settings)
    num_iterations = 2 if options.smoke else options.iterations
    agent = ppo.ppo(envs.batch(env, num_envs), config)

    def judge(key, state):
        def act(key, memory, obs, is_first):
            return agent.act(key, state, obs, False), memory

        episodes = 2 if options.smoke else 20
        return {"return": evaluate.returns(key, env, act, episodes).returns}

    began = time.perf_counter()
    seeds = np.arange(options.first, options.first + options.seeds, dtype=np.uint32)
    program = chunk.build(agent.learner, seeds, log_every=1)
    state = jax.block_until_ready(program.init())
    compile_s = time.perf_counter() - began
    judged = chunk.build(agent.learner, seeds, log_every=1, evaluate=judge)
    seconds, returns = [], []
    for i in range(num_iterations):
        began = time.perf_counter()
        state = jax.block_until_ready(program.advance(state, i, i + 1))
        seconds.append(time.perf_counter() - began)
        found = judged.evaluate(state.learner, i + 1)["return"]
        returns.append(np.asarray(found).mean(1))
    low, high = env.spec.random_return, env.spec.best_return
    scores = (np.stack(returns) - low) / (high - low)
    steps_each = num_envs * config.steps
    steps = reached(scores, steps_each)
    warm = None
    if None not in steps:
        last = max(steps) // steps_each
        warm = round(float(np.sum(seconds[:last])), 2)
    return {
        "task": options.task,
        "seeds": options.seeds,
        "reached_steps": steps,
        "warm_seconds": warm,
        "compile_seconds": round(compile_s, 2),
        "iteration_seconds": round(float(np.median(seconds)), 4),
        "best_score": [round(float(s), 2) for s in scores.max(0)],
    }


if __name__ == "__main__":
    main()
