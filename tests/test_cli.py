"""The command line: help without jax, suggestions, and a run from start to export."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

import jaxwm
from jaxwm import __main__ as cli
from jaxwm import catalogue
from jaxwm.commands import assemble, look, surroundings
from jaxwm.train import checkpoint, run, sinks

ROOT = pathlib.Path(__file__).parents[1]
TINY = ("--preset", "tiny", "--env", "pendulum", "--engine", "jax")
MODULE = (sys.executable, "-m", "jaxwm")


@pytest.fixture(autouse=True)
def same_environment_afterwards():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def environment(**changes):
    cache = str(ROOT / ".cache" / "jax")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, **changes}


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["resume", "-h"]])
def test_help_comes_at_once_without_jax(arguments):
    code = (
        "import sys, time; start = time.process_time()\n"
        "from jaxwm.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
        "assert time.process_time() - start < 1.0\n"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - {"bench", "train"}))
def test_every_verb_shows_its_options(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: jaxwm {verb}" in capsys.readouterr().out


def test_train_shows_defaults_of_run_and_system(capsys):
    for arguments, shown in (
        (["train", "-h"], ["--eval_episodes INT", "(default: 20)", "polygrad"]),
        (
            ["train", "polygrad", "-h", *TINY],
            [
                "--config.width INT",
                "--env.mass",
                "varies from 0.7 to 1.3",
                "hidden units",
            ],
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for part in shown:
            assert part in text


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == jaxwm.__version__


def failed(arguments, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = ended.code
    return status, " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'unknown verb "trian"; did you mean train'),
        (["train"], "which system?"),
        (["train", "polygrid"], 'unknown system "polygrid"; did you mean polygrad?'),
        (["train", "polygrad", "--env", "pendulm"], "did you mean pendulum"),
        (["train", "polygrad", "--preset", "fsat"], "did you mean fast?"),
        (
            ["train", "polygrad", *TINY, "--engine", "mj"],
            'unknown engine of pendulum: "mj"',
        ),
        (["train", "polygrad", *TINY, "--config.widht", "3"], "--config.width INT"),
        (["train", "polygrad", *TINY, "--env.mas", "3"], "--env.mass"),
        (["train", "polygrad", *TINY, "--config.width", "x"], "invalid literal"),
        (
            ["train", "polygrad", *TINY, "--config.horizon", "1"],
            "horizon must be at least 2",
        ),
        (["train", "polygrad", *TINY, "--env.mass", "-1"], "must be positive, got -1"),
        (
            ["train", "polygrad", *TINY, "--seeds", "0"],
            "seeds must be at least 1, got 0",
        ),
        (["resume", "/tmp/no/such/run"], "is no run"),
        (["eval", "/tmp/no/such/run"], "is no run"),
        (["run", "polygrda"], "did you mean polygrad?"),
        (["list", "--family", "word models"], "did you mean world models?"),
        (["list", "poligrad"], "did you mean polygrad?"),
        (["envs", "hoper"], "did you mean hopper?"),
        (["data", "convert", "/tmp/no/such/run", "/tmp/x"], "is no run"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_suggestion(arguments, message, capsys):
    status, text = failed(arguments, capsys)
    assert status == 2
    assert message in text


def test_a_device_that_is_not_there_is_named():
    done = subprocess.run(
        [*MODULE, "train", "polygrad", *TINY, "--platform", "tpu"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("jaxwm: no such device: ")


def test_what_cannot_be_done_ends_with_1(tmp_path, capsys):
    status, text = failed(["data", "inspect", str(tmp_path)], capsys)
    assert status == 1
    assert str(tmp_path) in text
    status, text = failed(["doctor", "replay", str(tmp_path)], capsys)
    assert status == 1
    assert "is no dump" in text


def test_lists_name_systems_tasks_and_factors(capsys):
    assert cli.main(["list", "--family", "world models"]) == 0
    assert "polygrad" in capsys.readouterr().out
    assert cli.main(["envs"]) == 0
    text = capsys.readouterr().out
    assert "halfcheetah" in text
    assert "mjx, c, warp" in text
    assert cli.main(["envs", "pendulum"]) == 0
    text = capsys.readouterr().out
    assert "--env.mass" in text
    assert "0.05 s a step" in text


def test_the_surroundings_are_prepared_and_respected(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "MUJOCO_GL", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "")
    surroundings.prepare(platform="cpu", seeds=1)
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=1"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(f"{tmp_path}/jaxwm/jax-")
    assert os.environ["MUJOCO_GL"] == "egl"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=7")
    surroundings.prepare(seeds=3)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=7"


@pytest.mark.parametrize(
    ("seeds", "cores", "devices"),
    [(1, 2, 1), (5, 2, 5), (16, 2, 16), (17, 2, 1), (64, 2, 16), (64, 8, 64)],
)
def test_seeds_get_a_host_device_each(seeds, cores, devices):
    assert surroundings.host_devices(seeds, cores) == devices


def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    surroundings.prepare()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the tiny preset from the command line, two seeds."""
    path = tmp_path_factory.mktemp("runs with späces") / "x"
    options = ["--seeds", "2", "--seed", "5", "--env.mass", "1.2", "--no_report"]
    assert cli.main(["train", "polygrad", *TINY, *options, "--out", str(path)]) == 0
    return path


def test_a_run_leaves_what_the_house_says(trained):
    assert sorted(p.name for p in trained.iterdir()) == [
        "checkpoints", "config.json", "latest", "metrics.jsonl", "run.lock",
    ]  # fmt: skip
    document = json.loads((trained / "config.json").read_text())
    assert document["seeds"] == [5, 6]
    assert document["config"]["env"] == {"mass": 1.2}
    assert document["run"]["env_steps"] == 40
    rows = sinks.read(trained / "metrics.jsonl")
    assert rows[-1]["step"] == 40
    assert np.shape(rows[-1]["eval/return"]) == (2, 20)


def test_settings_come_back_from_the_document(trained):
    entry, settings, parts = assemble.parts_of(run.read(trained))
    assert entry.name == "polygrad"
    assert settings.seeds == 2
    assert parts.config == entry.load().TINY
    assert parts.agent == assemble.TINY.agent
    assert parts.env == {"mass": 1.2}


def test_the_same_command_goes_on_and_another_one_is_refused(trained, capsys):
    same = ["--seeds", "2", "--seed", "5", "--env.mass", "1.2", "--no_report"]
    command = ["train", "polygrad", *TINY, "--out", str(trained)]
    assert cli.main([*command, *same]) == 0
    out, err = capsys.readouterr()
    assert "trained (IQM)" in out
    assert "has reached iteration 4, its last" in err
    status, text = failed([*command, *same, "--config.width", "8"], capsys)
    assert status == 2
    assert "config.config.width was 16, now 8" in text


def test_it_is_evaluated_loaded_and_exported(trained, capsys):
    assert cli.main(["eval", str(trained), "--episodes", "2"]) == 0
    assert "seed 6" in capsys.readouterr().out
    assert np.shape(json.loads((trained / "eval.json").read_text())["eval/return"]) == (
        2,
        2,
    )

    model, policy, env = jaxwm.load(trained, seed=6)
    assert env.spec.default_params()["mass"] == np.float32(1.2)
    obs = env.reset(jax.random.key(0), None).obs
    action = policy(obs)
    assert action.shape == (1,)
    other = jaxwm.load(trained).policy(obs)
    assert not np.array_equal(action, other)  # the seeds differ
    state = model.init(jax.random.key(0))
    memory = model.observe(
        jax.random.key(1), state, model.initial(state, None), obs, action, True
    )
    rollout = model.imagine(
        jax.random.key(2), state, memory, policy_of(trained, seed=6), 4
    )
    assert rollout.obs.shape == (4, 3)

    assert cli.main(["export", str(trained), "--seed", "6"]) == 0
    folder = trained / "export"
    about = json.loads((folder / "policy.json").read_text())
    assert about["seed"] == 6
    assert about["obs"] == ["float32", 3]
    assert (folder / "policy.stablehlo").read_bytes()[:4] == b"ML\xefR"
    from safetensors.numpy import load_file

    weights = load_file(folder / "params.safetensors")
    assert any(name.startswith("actor/params") for name in weights)
    assert all(np.isfinite(w).all() for w in weights.values())


def policy_of(path, seed):
    from jaxwm.commands import trained as room

    assembly, _, state = room.read(path)
    return assembly.agent.policy(room.select(assembly, state, seed).agent)


def test_an_unknown_seed_is_refused(trained, capsys):
    status, text = failed(["export", str(trained), "--seed", "7"], capsys)
    assert status == 2
    assert "the run has seeds [5, 6], not 7" in text


def test_its_replay_becomes_a_dataset(trained, tmp_path, capsys):
    target = tmp_path / "dataset"
    assert cli.main(["data", "convert", str(trained), str(target)]) == 0
    assert cli.main(["data", "inspect", str(target)]) == 0
    text = capsys.readouterr().out
    assert "steps               40" in text
    assert "verified            True" in text


@pytest.mark.slow
def test_a_report_shows_the_model_beside_its_baselines(trained, capsys):
    assert (
        cli.main(["report", str(trained), "--episodes", "2", "--baselines", "3"]) == 0
    )
    assert "rssm is left out: the policy reads features of" in capsys.readouterr().err
    page = (trained / "report.html").read_text()
    for part in ("PolyGRAD", "ensemble", "transformer", "data:image/gif", "seed 5"):
        assert part in page
    assert (trained / "media" / "policy.gif").stat().st_size > 1000


@pytest.mark.slow
def test_a_signal_saves_and_names_the_command_to_go_on(tmp_path):
    path = tmp_path / "run"
    command = [*MODULE, "train", "polygrad", *TINY, "--env_steps", "1000000"]
    with subprocess.Popen(
        [*command, "--out", path, "--replay_steps", "1000"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while "left" not in (process.stderr.readline() or "left"):
            pass
        second = subprocess.run(
            [*MODULE, "resume", path], cwd=ROOT, env=environment(), capture_output=True
        )
        assert second.returncode == 3
        assert f"process {process.pid}".encode() in second.stderr
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert time.monotonic() - before < 10
    assert out.strip() == f"stopped; resume with: jaxwm resume {path}"
    assert checkpoint.steps(path)[-1] > 0
    done = subprocess.run(
        [*MODULE, "resume", path, "--env_steps", "10"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "run.env_steps was 1000000, now 10" in done.stderr


@pytest.fixture
def fake(monkeypatch):
    """A system whose experiment is quick, in the catalogue."""

    def experiment(key):
        noise = jax.random.uniform(key)
        return {"error": 0.1 * noise, "error/base": noise}

    entry = catalogue.Entry(
        "fake",
        family="fakes",
        source="nowhere",
        bundle=None,
        claim=catalogue.Below("error", 0.2, of="error/base"),
        seeds=2,
        summary="is quick",
    )
    module = types.SimpleNamespace(experiment=experiment)
    monkeypatch.setitem(sys.modules, "jaxwm.recipes.fake", module)
    monkeypatch.setattr(catalogue, "ENTRIES", (entry,))
    return entry


def test_an_experiment_is_judged_recorded_and_listed(
    fake, monkeypatch, tmp_path, capsys
):
    assert cli.main(["run", "fake", "--out", str(tmp_path / "fake.json")]) == 0
    assert "seed 1: holds\n  error " in capsys.readouterr().out
    record = json.loads((tmp_path / "fake.json").read_text())
    assert len(record["metrics"]) == 2
    assert record["command"] == "jaxwm run fake --seeds 2"
    assert record["seeds"] == [0, 1]
    monkeypatch.setattr(look, "_CLAIMS", tmp_path)
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "claim held on 2 of 2 seeds" in text
    assert cli.main(["list", fake.name]) == 0
    assert "  error " in capsys.readouterr().out

    harder = fake._replace(claim=catalogue.Below("error", 0.05, of="error/base"))
    monkeypatch.setattr(catalogue, "ENTRIES", (harder,))
    assert cli.main(["run", "fake", "--seeds", "1", "--seed", "7"]) == 1
    assert "seed 7: FAILS" in capsys.readouterr().out


def test_what_does_not_learn_in_an_environment_is_not_trained(fake, capsys):
    status, text = failed(["train", "fake"], capsys)
    assert status == 2
    assert "try: jaxwm run fake" in text


def test_benchmarks_need_the_source(monkeypatch, tmp_path, capsys):
    from jaxwm.commands import benchmarks

    monkeypatch.setattr(benchmarks, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    status, text = failed(["bench"], capsys)
    assert status == 1
    assert "from a clone of the repository" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", ["hopper", "halfcheetah"])
def test_all_of_three_seeds_improve_on_the_random_policy(task, tmp_path):
    """Measured, seeds 0-2: hopper 1013, 211, 224; halfcheetah -168, -84, 559."""
    chosen = ("--env", task, "--engine", "c", "--seeds", "3", "--out", str(tmp_path))
    subprocess.run(
        [*MODULE, "train", "polygrad", *chosen], check=True, env=environment()
    )
    rows = sinks.read(tmp_path / "metrics.jsonl")
    last = [row for row in rows if "eval/return" in row][-1]
    found = np.mean(last["eval/return"], -1)
    assert found.shape == (3,)
    assert (found > jaxwm.make(task, engine="c").spec.random_return).all()
