"""Trains a system, goes on from some of its checkpoints as well, and compares.

python -m tests.train.resumed SYSTEM DIRECTORY N

Prints `equal K LEAVES BYTES` for each K in {1, N / 2, N - 1}, or names the first leaf
that differs. JAX_ENABLE_X64 is read as always.
"""

import argparse
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import data, train
from jaxwm.commands import surroundings
from jaxwm.core import tree
from jaxwm.dynamics import autoregressive_diffusion as diffusion
from jaxwm.train import checkpoint
from jaxwm.types import Box, EnvSpec, Learner
from tests.data.episodes import episode
from tests.train import together


def offline() -> Learner:
    """A diffusion world model that learns from recorded episodes alone."""
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    spec = EnvSpec("toy", shape, Box((-1.0,), (2.0,)), 0.1, 9, ())
    model = diffusion.autoregressive_diffusion(diffusion.TINY, spec)
    rows = data.concatenate([episode(i, 6 + i) for i in range(4)])
    source = data.windows(model.spec.window)
    buffer = source.init(rows)

    def init(key):
        return tree.strong(model.adapt(model.init(key), rows))

    def step(key, state, iteration):
        del iteration
        sample_key, fit_key = jax.random.split(key)
        return model.fit(fit_key, state, source.sample(sample_key, buffer, 8))

    return Learner(init, step, lambda state: jax.tree.map(lambda _: -1, state))


def learner_of(system: str) -> Learner:
    return offline() if system == "diffusion" else together.learner_of(system)


def fit(learner, num_iterations, path, **options):
    """Trains one seed in a run's directory, or goes on there."""
    with train.open_run(path, {}) as run:
        return train.fit(
            learner,
            seeds=[3],
            num_iterations=num_iterations,
            run=run,
            log_every=5,
            **options,
        ).state


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("iterations", type=int)
    options = parser.parse_args()
    surroundings.prepare()
    num, learner = options.iterations, learner_of(options.system)
    whole = fit(
        learner, num, options.directory / "whole", chunk_size=1, save_every=0, keep=num
    )
    whole = jax.tree_util.tree_leaves_with_path(whole)
    for k in sorted({1, num // 2, num - 1}):
        directory = options.directory / str(k)
        shutil.copytree(options.directory / "whole", directory)
        for step in checkpoint.steps(directory):
            if step > k:
                shutil.rmtree(directory / "checkpoints" / str(step))
        assert checkpoint.steps(directory)[-1] == k
        again = jax.tree.leaves(fit(learner, num, directory, chunk_size=7))
        for (path, a), b in zip(whole, again, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
                raise SystemExit(f"{jax.tree_util.keystr(path)} differs, {k}")
        size = sum(np.asarray(a).nbytes for _, a in whole)
        print("equal", k, len(whole), size, flush=True)
    kinds = sorted({str(np.asarray(a).dtype) for _, a in whole})
    print("dtypes", *kinds, "x64", jax.config.jax_enable_x64)


if __name__ == "__main__":
    main()
