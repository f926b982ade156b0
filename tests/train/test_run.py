"""Run directories and their documents."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxwm.train import run, settings
from jaxwm.train.errors import ConfigError, RunError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, got {self.rate}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 8
    hidden: tuple[int, ...] = (4, 4)
    inner: Inner = Inner()


def document(**changes):
    settings_ = dataclasses.asdict(settings.RunConfig(env="pendulum", out="x"))
    made = run.document(
        "polygrad",
        settings_,
        {"width": 8, "inner": {"rate": 0.1}},
        seeds=[0],
        device="cpu",
    )
    return {**made, **changes}


def test_a_new_run_gets_its_document_and_an_old_one_keeps_it(tmp_path):
    with run.open_run(tmp_path / "a" / "b", document()) as made:
        assert not made.resumed
    with run.open_run(tmp_path / "a" / "b") as again:
        assert again.resumed
        assert again.config == made.config
    for key in ("schema", "recipe", "versions", "seeds", "device", "command"):
        assert key in made.config
    assert made.config["versions"]["jax"] == __import__("jax").__version__


def test_settings_that_do_not_matter_may_change_with_a_warning(tmp_path):
    with run.open_run(tmp_path, document()):
        pass
    changed = document()
    changed["run"] = {**changed["run"], "eval_every": 7, "out": "elsewhere"}
    said = []
    with run.open_run(tmp_path, changed, warn=said.append) as opened:
        assert opened.config["run"]["eval_every"] == 7
    assert said == ["run.eval_every was 0, now 7"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recipe": "other"}, 'recipe was "polygrad", now "other"'),
        ({"seeds": [0, 1]}, r"seeds was \[0\], now \[0, 1\]"),
        ({"config": {"width": 9, "inner": {"rate": 0.2}}}, "config.inner.rate was 0.1"),
    ],
)
def test_settings_that_decide_the_numbers_must_not_change(tmp_path, changes, match):
    with run.open_run(tmp_path, document()):
        pass
    with (
        pytest.raises(ConfigError, match=match),
        run.open_run(tmp_path, document(**changes)),
    ):
        pass
    assert run.read(tmp_path) == document(created=run.read(tmp_path)["created"])


RUN_FIELDS = [field.name for field in dataclasses.fields(settings.RunConfig)]


@pytest.mark.parametrize("name", RUN_FIELDS)
def test_every_setting_is_either_free_warned_about_or_refused(name):
    """Fixes the class of each field; a new one must be put into a class here."""
    free = {"distributed", "out", "preset", "report", "tensorboard"}
    warned = {
        "env_steps", "eval_every", "eval_episodes", "log_every", "save_every", "keep",
        "platform", "shard",
    }  # fmt: skip
    refused = {
        "env", "engine", "factors", "seeds", "seed", "num_envs", "replay_steps",
        "deterministic", "images",
    }  # fmt: skip
    assert name in free | warned | refused
    old, new = {"run": {name: 1}}, {"run": {name: 2}}
    if name in refused:
        with pytest.raises(ConfigError, match=f"run.{name} was 1, now 2"):
            run.compare(old, new)
    else:
        said = run.compare(old, new)
        assert said == ([f"run.{name} was 1, now 2"] if name in warned else [])


def test_settings_of_another_version_are_only_warned_about():
    said = run.compare({"config": {}}, {"config": {"new": 3}})
    assert said == ["config.new was not recorded, now 3"]


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"holds thesis.tex but no config.json"):
        run.open_run(tmp_path, {}).__enter__()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run: it has no config\.json"):
        run.open_run(tmp_path).__enter__()
    with pytest.raises(ConfigError, match="is no run"):
        run.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "[" * 100_000])
def test_an_unreadable_document_is_named(tmp_path, text):
    (tmp_path / run.NAME).write_text(text)
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        run.open_run(tmp_path).__enter__()


def test_a_newer_schema_asks_for_an_update(tmp_path):
    (tmp_path / run.NAME).write_text(json.dumps({"schema": run.SCHEMA + 1}))
    with pytest.raises(ConfigError, match="update jaxwm"):
        run.read(tmp_path)


def test_older_schemas_are_migrated_step_by_step(tmp_path, monkeypatch):
    (tmp_path / run.NAME).write_text(json.dumps({"schema": 1, "old": 5}))
    monkeypatch.setattr(run, "SCHEMA", 3)
    with pytest.raises(ConfigError, match="schema 1, which is no longer read"):
        run.read(tmp_path)
    monkeypatch.setitem(run.MIGRATIONS, 1, lambda d: {"mid": d["old"] + 1})
    monkeypatch.setitem(run.MIGRATIONS, 2, lambda d: {"new": d["mid"] + 1})
    assert run.read(tmp_path) == {"schema": 3, "new": 7}


def test_a_read_only_place_gives_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot hold a run: .*Not a directory"):
        run.open_run(tmp_path / "file" / "run", {}).__enter__()
    with pytest.raises(RunError, match="cannot hold a run"):
        run.open_run("/proc/none/run", {}).__enter__()  # read-only also for root


def test_settings_come_back_from_json():
    config = Config(width=3, hidden=(5,), inner=Inner(rate=0.5))
    again = json.loads(json.dumps(dataclasses.asdict(config)))
    assert settings.from_json(Config, again, "config") == config
    hash(settings.from_json(Config, again, "config"))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"widht": 3}, r"unknown key config.widht: did you mean width\?"),
        ({"inner": {"rat": 3}}, r"unknown key config.inner.rat: did you mean rate\?"),
        ({"zzz": 3}, r"unknown key config.zzz: known: \['hidden', 'inner', 'width'\]"),
        ({"inner": {"rate": -1}}, "config.inner: rate must be positive, got -1"),
    ],
)
def test_unknown_keys_and_bad_values_are_named(values, match):
    with pytest.raises(ConfigError, match=match):
        settings.from_json(Config, values, "config")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"eval_every": -1}, "eval_every must be at least 0, got -1"),
    ],
)
def test_run_settings_are_checked(values, match):
    with pytest.raises(ValueError, match=match):
        settings.RunConfig(**values)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"platform": "abacus"}, "platform"), ({"factors": "x"}, "factors")],
)
def test_choices_are_checked(values, name):
    """By ourselves, or first by the run-time type checker where it is on."""
    with pytest.raises((ValueError, TypeError), match=name):
        settings.RunConfig(**values)


def test_settings_and_documents_do_not_import_jax():
    code = (
        "import sys; from jaxwm import train; train.RunConfig(); train.open_run;"
        "assert 'jax' not in sys.modules, 'jax was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
