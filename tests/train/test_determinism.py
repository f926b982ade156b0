"""The same bits in fresh processes, on one core and two, with and without a cache."""

import os

import numpy as np
import pytest

from tests.train import test_together as runs


def arrays(path):
    with np.load(path) as found:
        return {name: found[name].tobytes() for name in found.files}


def learn(tmp_path, name, system, *options, **variables):
    file = tmp_path / f"{name}.npz"
    process = runs.start(
        runs.environment(**variables), system, file, "--shard", "seeds", *options
    )
    runs.finish(process)
    return arrays(file)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("system", runs.SYSTEMS)
def test_deterministic_runs_have_the_same_bits_everywhere(system, tmp_path):
    option = "--deterministic"
    first = learn(tmp_path, "first", system, option)
    assert learn(tmp_path, "again", system, option) == first
    assert learn(tmp_path, "alone", system, option, "--cores", "1") == first
    uncached = learn(
        tmp_path, "uncached", system, option, JAX_ENABLE_COMPILATION_CACHE="false"
    )
    assert uncached == first


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("system", runs.SYSTEMS)
def test_the_same_machine_gives_the_same_bits_without_asking(system, tmp_path):
    assert learn(tmp_path, "a", system) == learn(tmp_path, "b", system)
