"""One iteration of PolyGRAD's loop for S seeds at once, in a process of its own.

The seeds lie on host devices, which must be set before jax starts; with `shard`
"batch" the devices share the environments and batches of every seed.
"""

import os

from benchmarks import peer


def setup(config: dict) -> peer.Ready:
    flags = os.environ.get("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={config['devices']}"
    os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()

    import dataclasses

    import jax
    import numpy as np

    from jaxwm import data, envs
    from jaxwm.agents import dream, online, presets
    from jaxwm.recipes import polygrad
    from jaxwm.train import chunk

    preset = presets.FAST
    rounds = preset.loop.rounds * (
        preset.env_steps // (preset.loop.steps * preset.num_envs)
    )
    model_config = dataclasses.replace(polygrad.Config(), **preset.model)
    model_config = presets.sized(model_config, rounds * preset.agent.fits)
    agent_config, loop = presets.sized(preset.agent, rounds), preset.loop
    if config["smoke"]:
        model_config, agent_config = polygrad.TINY, dream.TINY
        loop = online.Config(steps=8, random_iterations=1, pretrain=1, rounds=1)
    loop = dataclasses.replace(loop, pretrain=min(loop.pretrain, 10))
    env = envs.batch(envs.make("pendulum"), preset.num_envs)
    model = polygrad.polygrad(model_config, env.spec)
    capacity = preset.env_steps // preset.num_envs
    replay = data.replay(preset.num_envs, capacity, model.spec.window)
    learner = online.online(dream.dream(model, agent_config), env, replay, loop)

    seeds = np.arange(config["seeds"], dtype=np.uint32)
    shard = config.get("shard", "seeds")
    program = chunk.build(learner, seeds, log_every=1, shard=shard)
    run = [jax.block_until_ready(program.init())]
    iteration = [0]

    def advance():
        start = iteration[0]
        run[0] = jax.block_until_ready(program.advance(run[0], start, start + 1))
        iteration[0] += 1

    while iteration[0] < loop.random_iterations + 1:
        advance()
    facts = {
        "bytes": program.num_bytes,
        "devices": program.num_devices,
        "env_steps": loop.steps * preset.num_envs,
    }
    name = f"{config['seeds']} seeds, {program.num_devices} devices"
    return peer.Ready(name, advance, facts)


if __name__ == "__main__":
    peer.serve(setup)
