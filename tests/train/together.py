"""Twenty updates of a system on all devices of all processes, to be compared.

python -m tests.train.together SYSTEM OUT [--run DIRECTORY] [--iterations N]
with `JAX_PROCESS_ID` and its companions set where it is one of several processes.
"""

import argparse
import os

import jax
import numpy as np

from jaxwm import data, envs, train
from jaxwm.agents import dream, online, ppo
from jaxwm.commands import surroundings
from jaxwm.core import shard
from jaxwm.envs.tasks import pendulum
from jaxwm.recipes import complexity_grokking, polygrad
from jaxwm.train import cluster
from jaxwm.types import Learner

NUM_ENVS, UPDATES = 8, 20


def learner_of(system: str) -> Learner:
    """A learner whose step does at least one update on a batch that 8 divides."""
    env = envs.batch(pendulum.pendulum(), NUM_ENVS)
    if system == "polygrad":
        model = polygrad.polygrad(polygrad.TINY, env.spec)
        replay = data.replay(NUM_ENVS, 200, model.spec.window)
        loop = online.Config(steps=5, random_iterations=1, pretrain=1, rounds=1)
        return online.online(dream.dream(model, dream.TINY), env, replay, loop)
    if system == "ppo":
        config = ppo.Config(steps=8, epochs=1, minibatches=1, hidden=(16,))
        return ppo.ppo(env, config).learner
    if system == "grokking":
        return grokking()
    raise ValueError(f"system must be polygrad, ppo or grokking, got {system!r}.")


def grokking() -> Learner:
    """The grokking network on a batch that devices share."""
    config = complexity_grokking.Config(p=11, embed=8, hidden=(16,), noise=0.0)
    model = complexity_grokking.complexity_grokking(config)
    table = jax.tree.map(lambda x: x[:40], data_of(config))

    def init(key):
        return model.init(key)

    def step(key, state, iteration):
        del iteration
        return model.step(key, state, shard.split(table))

    return Learner(init, step, lambda state: jax.tree.map(lambda _: -1, state))


def data_of(config):
    return complexity_grokking.task_of(jax.random.key(0), config).train


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("out")
    parser.add_argument("--shard", default="batch")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--cores", type=int)
    parser.add_argument("--run")
    parser.add_argument("--iterations", type=int, default=UPDATES)
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    surroundings.prepare(deterministic=options.deterministic)
    if "JAX_PROCESS_ID" in os.environ:
        cluster.join(heartbeat=10)
    run = None
    if options.run and cluster.leads():
        holder = train.open_run(options.run, {})
        run = holder.__enter__()
    elif options.run:
        run = train.RunDir(options.run, {}, resumed=False)
    found = train.fit(
        learner_of(options.system),
        seeds=[3],
        num_iterations=options.iterations,
        run=run,
        save_every=0,
        chunk_size=5,
        shard=options.shard,
    )
    if cluster.leads():
        leaves = jax.tree_util.tree_leaves_with_path(found.state)
        arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        np.savez(options.out, **arrays)
        print("done", len(jax.devices()), flush=True)
    cluster.leave()


if __name__ == "__main__":
    main()
