"""Stable-Baselines3 on Pendulum-v1 under this project's protocol.

    python benchmarks/peers_sb3.py sac --seed 0
    python benchmarks/peers_sb3.py ppo --seed 0

Score = (R - R_random) / (R_best - R_random) over 20 episodes of the deterministic
policy; evaluated every 200 environment steps (PPO: after every update, its policy does
not change in between); reached = first evaluation >= 0.8 whose successor is too.
Prints one JSON line. Seconds are training alone, evaluation excluded, one torch thread.
PPO's settings are those that the RL Zoo tuned for this task (generalised
state-dependent exploration); SAC's are the defaults with learning rate 1e-3.
"""

import argparse
import json
import time

import numpy as np

R_RANDOM, R_BEST = -1199.0, -132.1  # those of the task's spec


def evaluate(model, seed, episodes=20):
    import gymnasium

    env = gymnasium.make_vec("Pendulum-v1", num_envs=episodes)
    obs, _ = env.reset(seed=seed)
    total = np.zeros(episodes)
    for _ in range(200):
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, _, _, _ = env.step(action)
        total += reward
    env.close()
    return float(total.mean())


def make(name, seed):
    from stable_baselines3 import PPO, SAC

    if name == "sac":
        return SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed)
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("Pendulum-v1", n_envs=4, seed=seed)
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


def run(name, seed, max_steps):
    """Trains until the score is reached twice in a row; returns a row."""
    import torch

    torch.set_num_threads(1)
    model = make(name, seed)
    every = 200 if name == "sac" else 4096
    seconds, steps, scores = 0.0, 0, []
    first = None
    while steps < max_steps:
        began = time.perf_counter()
        model.learn(every, reset_num_timesteps=steps == 0, progress_bar=False)
        seconds += time.perf_counter() - began
        steps = model.num_timesteps
        mean = evaluate(model, 1000 + len(scores))
        scores.append(round((mean - R_RANDOM) / (R_BEST - R_RANDOM), 3))
        if scores[-1] < 0.8:
            first = None
        elif first is None:
            first = {"steps": steps, "seconds": round(seconds, 2)}
        else:
            break
    reached = first if first and scores[-1] >= 0.8 and len(scores) > 1 else None
    return {"peer": f"sb3-{name}", "seed": seed, "reached": reached, "scores": scores}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["sac", "ppo"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=None)
    args = parser.parse_args()
    limit = args.max_steps or {"sac": 10_000, "ppo": 120_000}[args.name]
    print(json.dumps(run(args.name, args.seed, limit)))


if __name__ == "__main__":
    main()
