"""What may change when a run goes on: every field has a class, and the page says it."""

import dataclasses
import pathlib

import pytest

from jaxwm import catalogue
from jaxwm.commands import assemble
from jaxwm.train import run, settings
from jaxwm.train.errors import ConfigError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"
TRAINABLE = [e.name for e in catalogue.ENTRIES if e.bundle == "WorldModel"]


def document_of(name):
    """A run's document with every setting of a system in it."""
    parts = assemble.defaults(catalogue.find(name), "fast", "pendulum")
    parts = dataclasses.replace(parts, env={"mass": 1.0})
    return run.document(
        name,
        dataclasses.asdict(settings.RunConfig()),
        dataclasses.asdict(parts),
        seeds=[0],
        device="1 x cpu",
    )


def changed(value):
    """Another value, also plain JSON."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "something else" if value != "something else" else "again"


def with_change(document, name):
    """The document with one field changed, `name` as `settings.flat` has it."""
    first, *rest = name.split(".")
    if not rest:
        return {**document, first: changed(document[first])}
    # Of "config.config.rate" the keys are nested; names of packages hold no dots.
    inner = with_change(document[first], ".".join(rest))
    return {**document, first: inner}


def check_every_field(path, name):
    """Resumes a run once per field with that field changed; returns what was seen."""
    document = document_of(name)
    with run.open_run(path, document):
        pass
    before, seen = run.read(path), {}
    for field in settings.flat(document):
        said, refused = [], None
        try:
            with run.open_run(path, with_change(document, field), warn=said.append):
                pass
        except ConfigError as error:
            refused = str(error)
        if field != "schema":  # a newer one is an error of its own
            verdict = "refused" if refused else "warned" if said else "free"
            assert verdict == run.rule(field).verdict, field
            assert field in " ".join([refused or "", *said]) or verdict == "free"
            seen[field] = verdict
        if refused:
            assert run.read(path) == before, "a refused change was written"
        with run.open_run(path, document):
            pass
    return seen


def test_every_field_changed_is_refused_warned_about_or_free(tmp_path):
    seen = check_every_field(tmp_path, "polygrad")
    assert {v for k, v in seen.items() if k.startswith("config.")} == {"refused"}
    assert len(seen) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_so_is_every_field_of_every_system(tmp_path, name):
    assert "refused" in check_every_field(tmp_path, name).values()


def test_each_field_is_classified_by_name():
    """A new setting fails here until somebody says what changing it means."""
    names = {f"run.{f.name}" for f in dataclasses.fields(settings.RunConfig)}
    listed = {name for name in run.FIELDS if name.startswith("run.")}
    assert listed == names
    others = {name for name in document_of("polygrad") if name != "run"}
    found = {name.removesuffix(".*") for name in run.FIELDS.keys() - listed}
    assert found == others
    assert {rule.verdict for rule in run.FIELDS.values()} == {
        "refused", "warned", "free"
    }  # fmt: skip


def test_a_field_whose_name_only_begins_like_a_free_one_is_refused():
    with pytest.raises(ConfigError, match=r"run\.output was 1, now 2"):
        run.compare({"run": {"output": 1}}, {"run": {"output": 2}})


def test_a_factor_that_was_left_out_had_its_default():
    with pytest.raises(ConfigError, match=r"config\.env\.mass was not recorded, now 2"):
        run.compare({"config": {"env": {}}}, {"config": {"env": {"mass": 2}}})


def table():
    """The section of the page."""
    words = {
        "refused": "refused",
        "warned": "goes on, with a note",
        "free": "goes on",
    }
    rows = [
        f"| `{name}` | {words[rule.verdict]} | {rule.why} |"
        for name, rule in run.FIELDS.items()
    ]
    return "\n".join(["| changed | the run | because |", "|---|---|---|", *rows])


def test_the_page_lists_every_field():
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text, f"put this into {PAGE.name}:\n\n{table()}"
