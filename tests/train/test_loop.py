"""The training loop: the same numbers however it is cut, resumed or laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm import train
from jaxwm.train import checkpoint, chunk, sinks
from jaxwm.train.errors import ConfigError, RunError
from tests.train import tiny


def same_bits(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def metrics_of(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def learner():
    return tiny.make()


@pytest.fixture(scope="module")
def uninterrupted(learner):
    rows = []
    result = train.fit(
        learner,
        seeds=[3, 4],
        num_iterations=40,
        log_every=8,
        evaluate=tiny.evaluate,
        eval_every=16,
        steps_per_iteration=4,
        sinks=[sinks.rows(rows)],
    )
    return result, rows


def test_it_matches_plain_steps_with_keys_from_seed_and_iteration(
    learner, uninterrupted
):
    run_key = jax.random.key(4)
    init_key, loop_key = (jax.random.fold_in(run_key, i) for i in (0, 1))
    state = learner.init(init_key)
    step = jax.jit(learner.step)
    for i in range(40):
        state, _ = step(jax.random.fold_in(loop_key, i), state, i)
    got = jax.tree.map(lambda x: x[1], uninterrupted[0].state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, state)


def test_rows_come_at_fixed_iterations_with_one_value_per_seed(uninterrupted):
    _, rows = uninterrupted
    plain = [row["iteration"] for row in rows if "loss" in row]
    evaluated = [row["iteration"] for row in rows if "eval/return" in row]
    assert plain == [8, 16, 24, 32, 40]
    assert evaluated == [16, 32, 40]
    assert rows[0]["step"] == 32
    assert len(rows[0]["loss"]) == 2
    assert np.shape(rows[2]["eval/noise"]) == (2, 2)
    # NaN of odd iterations are left out of the mean of 0, 2, 4, 6.
    assert rows[0]["even"] == [3.0, 3.0]


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_chunks_do_not_change_a_bit(learner, uninterrupted, chunk_size):
    rows = []
    result = train.fit(
        learner,
        seeds=[3, 4],
        num_iterations=40,
        log_every=8,
        evaluate=tiny.evaluate,
        eval_every=16,
        steps_per_iteration=4,
        sinks=[sinks.rows(rows)],
        chunk_size=chunk_size,
    )
    assert same_bits(result.state, uninterrupted[0].state)
    assert metrics_of(rows) == metrics_of(uninterrupted[1])


def test_a_run_resumed_twice_equals_an_uninterrupted_one(
    learner, uninterrupted, tmp_path
):
    for total in (11, 13, 40):
        with train.open_run(tmp_path, {}) as run:
            result = train.fit(
                learner,
                seeds=[3, 4],
                num_iterations=total,
                run=run,
                log_every=8,
                evaluate=tiny.evaluate,
                eval_every=16,
                steps_per_iteration=4,
            )
    assert result.iteration == 40
    assert same_bits(result.state, uninterrupted[0].state)
    rows = metrics_of(sinks.read(tmp_path / "metrics.jsonl"))
    ends = (11, 13)  # the last row of a run that ends between two rows
    assert [r for r in rows if r["iteration"] not in ends] == metrics_of(
        uninterrupted[1]
    )


def test_one_seed_alone_equals_the_same_seed_among_others(learner, uninterrupted):
    for seeds, index in (([4], 0), ([1, 2, 4], 2)):
        result = train.fit(learner, seeds=seeds, num_iterations=40)
        got = jax.tree.map(lambda x, i=index: x[i], result.state)
        want = jax.tree.map(lambda x: x[1], uninterrupted[0].state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
        )


def test_seeds_are_split_over_devices(learner):
    result = train.fit(learner, seeds=[0, 1], num_iterations=1)
    assert len(result.state["replay"].sharding.device_set) == 2
    result = train.fit(learner, seeds=[0, 1, 2], num_iterations=1)
    assert len(result.state["replay"].sharding.device_set) == 1


def test_nothing_is_compiled_after_the_second_chunk(learner, tmp_path):
    with train.open_run(tmp_path, {}) as run:
        result = train.fit(
            learner,
            seeds=[0, 1],
            num_iterations=30,
            run=run,
            evaluate=tiny.evaluate,
            eval_every=7,
            log_every=5,
            save_every=0,
            chunk_size=4,
        )
    assert result.late_compiles == 0


def test_a_compilation_in_mid_run_is_counted(learner):
    def compile_something(row):
        if row["iteration"] == 20:
            jax.jit(lambda x: jnp.cos(x) * 12345.678)(1.0)

    result = train.fit(
        learner,
        seeds=[0],
        num_iterations=30,
        log_every=5,
        sinks=[sinks.Sink(compile_something)],
        chunk_size=5,
    )
    assert result.late_compiles > 0


def test_the_replay_is_updated_in_place(learner):
    program = train.chunk.build(learner, np.array([0, 1], np.uint32), log_every=1)
    state = program.init()
    where = [s.data.unsafe_buffer_pointer() for s in replay_shards(state)]
    after = program.advance(state, 0, 2)
    assert [s.data.unsafe_buffer_pointer() for s in replay_shards(after)] == where
    assert state.learner["replay"].is_deleted()


def replay_shards(state):
    return state.learner["replay"].addressable_shards


def test_a_bad_flag_stops_the_run_and_names_metric_iteration_and_seed(tmp_path):
    draws = {s: float(draw_of(s)) for s in range(6)}
    worst = max(draws, key=draws.get)
    others = [s for s in draws if s != worst][:2]
    learner = tiny.make(bad_iteration=7, bad_seed_above=draws[worst] - 1e-6)
    message = (
        rf"model/finite fell below 1 at iteration 7 of seed {worst}; not finite: "
        r".*params/b.*doctor replay .*7-seed"
    )
    with (
        train.open_run(tmp_path, {}) as run,
        pytest.raises(FloatingPointError, match=message),
    ):
        train.fit(learner, seeds=[*others, worst], num_iterations=20, run=run)
    dumps = list((tmp_path / "dumps").iterdir())
    assert [path.name for path in dumps] == [f"7-seed{worst}"]
    entry = train.guard.read(dumps[0])
    assert entry["nonfinite"]["params/w"] == "8 of 8"
    template = jax.eval_shape(learner.init, jax.random.key(0))
    step, state, _ = checkpoint.restore(dumps[0], template)
    assert step == 7
    assert np.isnan(state["params"]["w"]).all()
    # The replay shows that nothing was done after the bad iteration.
    assert np.abs(state["replay"][:, 7]).min() > 0
    assert np.abs(state["replay"][:, 8]).max() == 0


def draw_of(seed):
    return tiny.make().init(jax.random.fold_in(jax.random.key(seed), 0))["draw"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seeds": []}, "seeds must be one or more different numbers"),
        ({"seeds": [1, 1]}, "seeds must be one or more different numbers"),
        ({"seeds": [-1]}, r"seeds must lie in \[0, 2\^32\)"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"eval_every": -1}, "eval_every must not be negative"),
        ({"eval_every": 2}, "eval_every needs a function"),
    ],
)
def test_bad_arguments_are_named(learner, change, match):
    with pytest.raises(ValueError, match=match):
        train.fit(learner, **{"seeds": [0], "num_iterations": 1, **change})


def test_a_step_that_changes_its_state_is_refused_naming_the_leaf(learner):
    def step(key, state, iteration):
        state, metrics = learner.step(key, state, iteration)
        return {**state, "weak": state["weak"][None]}, metrics

    with pytest.raises(ValueError, match=r"state\['weak'\] is float32\[\] before"):
        train.fit(learner._replace(step=step), seeds=[0], num_iterations=1)


def test_metrics_that_are_not_scalars_are_refused(learner):
    def step(key, state, iteration):
        return state, {"loss": jnp.zeros(3)}

    with pytest.raises(ValueError, match=r"scalars, loss has shape \(3,\)"):
        train.fit(learner._replace(step=step), seeds=[0], num_iterations=1)


def test_other_seeds_than_the_checkpoints_are_refused(learner, tmp_path):
    with train.open_run(tmp_path, {}) as run:
        train.fit(learner, seeds=[0, 1], num_iterations=2, run=run)
        with pytest.raises(ConfigError, match=r"seeds \[0, 1\], not \[0, 2\]"):
            train.fit(learner, seeds=[0, 2], num_iterations=4, run=run)


def test_a_finished_run_is_read_without_compiling(learner, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a finished run was compiled")

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(chunk, "build", refuse)
        with train.open_run(tmp_path, {}) as run:
            result = train.fit(learner, seeds=[0, 1], num_iterations=3, run=run)
        if not patched:
            first = result
    assert same_bits(first.state, result.state)
    assert result.iteration == 3


def test_a_disk_that_takes_no_rows_gives_one_clear_message(learner, tmp_path):
    with (
        train.open_run(tmp_path, {}) as run,
        pytest.raises(RunError, match=r"metrics.jsonl cannot be written: .*No space"),
    ):
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # every write fails
        train.fit(learner, seeds=[0], num_iterations=2, run=run)


def test_checkpoints_are_written_on_the_way_and_only_the_newest_stay(learner, tmp_path):
    seen = []
    with train.open_run(tmp_path, {}) as run:
        train.fit(
            learner,
            seeds=[0],
            num_iterations=12,
            run=run,
            log_every=3,
            save_every=0,
            sinks=[sinks.Sink(lambda row: seen.append(checkpoint.steps(tmp_path)))],
            keep=3,
        )
    assert checkpoint.steps(tmp_path)[-1] == 12
    assert len(checkpoint.steps(tmp_path)) == 3
    assert seen[-1] and seen[-1][-1] >= 9
