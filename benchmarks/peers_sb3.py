"""Stable-Baselines3 under this project's protocol, on Pendulum-v1 unless told.

    python benchmarks/peers_sb3.py sac --seed 0
    python benchmarks/peers_sb3.py ppo --seed 0
    python benchmarks/peers_sb3.py ppo --task inverted_pendulum

Score = (R - R_random) / (R_best - R_random) over 20 episodes of the deterministic
policy; evaluated every 200 environment steps (PPO: after every update, its policy does
not change in between); reached = first evaluation >= 0.8 whose successor is too.
Prints one JSON line. Seconds are training alone, evaluation excluded, one torch thread.
PPO's settings are those that the RL Zoo tuned for this task (generalised
state-dependent exploration), on InvertedPendulum-v5 the defaults with four
environments and 256 steps of each; SAC's are the defaults with learning rate 1e-3.
"""

import argparse
import json
import time

import numpy as np

# Name there, steps of an episode, and returns of the task's spec: random and best.
TASKS = {
    "pendulum": ("Pendulum-v1", 200, -1199.0, -132.1),
    "inverted_pendulum": ("InvertedPendulum-v5", 1000, 5.1, 1000.0),
}


def evaluate(model, task, seed, episodes=20):
    import gymnasium

    name, steps, *_ = TASKS[task]
    env = gymnasium.make_vec(name, num_envs=episodes)
    obs, _ = env.reset(seed=seed)
    total, alive = np.zeros(episodes), np.ones(episodes, bool)
    for _ in range(steps):
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, terminated, _, _ = env.step(action)
        total += reward * alive
        alive &= ~terminated
        if not alive.any():
            break
    env.close()
    return float(total.mean())


def make(name, task, seed):
    from stable_baselines3 import PPO, SAC

    if name == "sac":
        return SAC("MlpPolicy", TASKS[task][0], learning_rate=1e-3, seed=seed)
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(TASKS[task][0], n_envs=4, seed=seed)
    if task == "inverted_pendulum":
        return PPO("MlpPolicy", env, n_steps=256, seed=seed)
    return PPO(
        "MlpPolicy",
        env,
        gamma=0.9,
        gae_lambda=0.95,
        n_steps=1024,
        n_epochs=10,
        ent_coef=0.0,
        learning_rate=1e-3,
        clip_range=0.2,
        use_sde=True,
        sde_sample_freq=4,
        seed=seed,
    )


def run(name, task, seed, max_steps):
    """Trains until the score is reached twice in a row; returns a row."""
    import torch

    torch.set_num_threads(1)
    model = make(name, task, seed)
    every = 200 if name == "sac" else model.n_steps * 4
    _, _, low, high = TASKS[task]
    seconds, steps, scores = 0.0, 0, []
    first = None
    while steps < max_steps:
        began = time.perf_counter()
        model.learn(every, reset_num_timesteps=steps == 0, progress_bar=False)
        seconds += time.perf_counter() - began
        steps = model.num_timesteps
        mean = evaluate(model, task, 1000 + len(scores))
        scores.append(round((mean - low) / (high - low), 3))
        if scores[-1] < 0.8:
            first = None
        elif first is None:
            first = {"steps": steps, "seconds": round(seconds, 2)}
        else:
            break
    reached = first if first and scores[-1] >= 0.8 and len(scores) > 1 else None
    return {
        "peer": f"sb3-{name}",
        "task": task,
        "seed": seed,
        "reached": reached,
        "scores": scores,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["sac", "ppo"])
    parser.add_argument("--task", choices=sorted(TASKS), default="pendulum")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=None)
    args = parser.parse_args()
    limit = args.max_steps or {"sac": 10_000, "ppo": 120_000}[args.name]
    print(json.dumps(run(args.name, args.task, args.seed, limit)))


if __name__ == "__main__":
    main()
