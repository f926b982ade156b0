"""A training run in its own process, to be killed by tests.

python -m tests.train.child DIRECTORY [--iterations N] [--chunk N] [--work N]
"""

import argparse
import sys

import jax

from jaxwm import train
from jaxwm.train.errors import RunError, RunLockedError
from tests.train import tiny

SEEDS = [3, 4]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=20)
    parser.add_argument("--work", type=int, default=1)
    options = parser.parse_args()
    # Compiling is not what is killed here; tests share one cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    shown = train.progress.silent()._replace(
        begin=lambda step, total: print("training", flush=True),
        compiling=Announced,
        note=lambda text: print(text, flush=True),
    )
    try:
        with train.open_run(options.directory, {}) as run:
            result = train.fit(
                tiny.make(work=options.work),
                seeds=SEEDS,
                num_iterations=options.iterations,
                run=run,
                log_every=10,
                save_every=0,
                chunk_size=options.chunk,
                progress=shown,
            )
    except RunLockedError as error:
        print(error)
        sys.exit(3)
    except RunError as error:
        print(error)
        sys.exit(1)
    print("interrupted" if result.interrupted else "finished", result.iteration)


class Announced:
    def __init__(self, what):
        print("compiling", flush=True)

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


if __name__ == "__main__":
    main()
