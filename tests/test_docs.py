"""The pages hold: their code runs, their links and commands exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# Pages that mkdocs makes from the code; see docs/hooks.py.
GENERATED = ("systems.md", "tasks.md", "reference/")


def blocks(page, language):
    """Fenced blocks of a language: line of the first code line, and code."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.S | re.M):
        yield text[: match.start(1)].count("\n"), match.group(1)


def needs_a_run(page):
    return any("jaxwm.load" in code for _, code in blocks(page, "python"))


def run_blocks(page):
    """Runs a page's blocks in order, in one namespace, with its own line numbers."""
    names = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    if needs_a_run(page):
        pytest.skip("needs a trained run: see test_blocks_on_a_run")
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.slow
def test_blocks_on_a_run(tmp_path, monkeypatch):
    from jaxwm import __main__

    monkeypatch.chdir(tmp_path)
    command = "train polygrad --env pendulum --engine jax --preset tiny --out runs/demo"
    assert __main__.main(command.split()) == 0
    pages = [page for page in PAGES if needs_a_run(page)]
    assert pages
    for page in pages:
        run_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if target.startswith(("http://", "https://")):
            continue
        if page.parent.name == "docs" and target.startswith(GENERATED):
            continue
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page):
    from jaxwm import __main__

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for _, code in blocks(page, "bash"):
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code):
            assert target in targets, f"{page.name}: make {target}"
        for verb in re.findall(r"^jaxwm ([a-z]+)", code, re.M):
            assert verb in __main__.VERBS, f"{page.name}: jaxwm {verb}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_named_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|jaxwm|docs|benchmarks)/[^`<> ]+)`", text):
        if "results" not in path:  # made by the benchmarks
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_readme_lists_the_tasks_and_models_there_are():
    from jaxwm import catalogue, envs

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for task in envs.TASKS:
        assert f"`{task.name}`" in text
    for entry in catalogue.ENTRIES:
        if entry.bundle == "WorldModel":
            assert f"`{entry.name}`" in text
        # The others are listed by `jaxwm list`, and by family here.
        assert entry.family in text.lower()


def test_a_failing_block_is_reported_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_blocks(page)
    assert caught.traceback[-1].lineno + 1 == 5
