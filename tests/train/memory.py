"""Memory that a run said it needs, and what it took, as one JSON line of megabytes.

python -m tests.train.memory TASK ENGINE NUM_ENVS
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np

from jaxwm import envs
from jaxwm.agents import ppo
from jaxwm.train import chunk

STATUS = pathlib.Path("/proc/self/status")


def megabytes(name):
    return int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1]) / 1e3


def main():
    task, engine, num_envs = sys.argv[1:]
    env = envs.batch(envs.make(task, engine), int(num_envs))
    config = ppo.Config(steps=32, epochs=2, minibatches=8)
    program = chunk.build(
        ppo.ppo(env, config).learner, np.zeros(1, np.uint32), log_every=1
    )
    before = megabytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    state = program.init()
    for i in range(2):
        state = jax.block_until_ready(program.advance(state, i, i + 1))
    took = megabytes("VmHWM") - before
    print(json.dumps({"said": program.num_bytes / 1e6, "took": took}))


if __name__ == "__main__":
    main()
