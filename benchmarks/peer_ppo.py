"""Peer: the update of PPO in Stable-Baselines3, on a buffer that is full already.

Run by bench_ppo.py in a process of its own; see `Process` in peer.py.
"""

from benchmarks import peer


def setup(sizes: dict) -> peer.Ready:
    if reason := peer.missing("torch", "gymnasium", "stable_baselines3"):
        raise peer.MissingError(reason)
    from importlib import metadata

    import gymnasium
    import numpy as np
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(sizes["threads"])
    num_envs, steps = sizes["num_envs"], sizes["steps"]
    env = DummyVecEnv(num_envs * [lambda: gymnasium.make("Pendulum-v1")])
    agent = PPO(
        "MlpPolicy",
        env,
        n_steps=steps,
        batch_size=num_envs * steps // sizes["minibatches"],
        n_epochs=sizes["epochs"],
        policy_kwargs={"net_arch": list(sizes["hidden"])},
        seed=0,
    )
    agent.learn(num_envs * steps)  # fills the buffer and prepares the logger
    assert np.isfinite(agent.rollout_buffer.advantages).all()
    weights = sum(p.numel() for p in agent.policy.parameters())
    name = f"stable-baselines3 {metadata.version('stable-baselines3')}"
    return peer.Ready(name, agent.train, {"weights": weights})


if __name__ == "__main__":
    peer.serve(setup)
