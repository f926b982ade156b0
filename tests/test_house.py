"""The house itself: what it costs to enter, and that its papers agree."""

import ast
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ("mujoco", "brax", "torch", "orbax", "matplotlib", "gymnasium", "flax", "h5py")


def run(*arguments, **environ):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
        check=True,
    ).stdout


def processor_seconds(*arguments):
    """Processor time of a fresh interpreter; waiting for other work does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loaded_by(code):
    """Top-level modules that a piece of code loads."""
    return set(
        json.loads(
            run("-c", f"{code}\nimport sys, json\nprint(json.dumps(list(sys.modules)))")
            .strip()
            .splitlines()[-1]
        )
    )


def test_files_of_tests_have_names_of_their_own():
    """pytest takes two files of one name for one module."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)


def test_importing_jaxwm_loads_no_heavy_library():
    loaded = loaded_by("import jaxwm")
    assert loaded.isdisjoint(HEAVY)
    assert "jax" not in loaded


def test_importing_the_environments_does_not_load_mujoco():
    assert loaded_by("from jaxwm import envs; envs.TASKS").isdisjoint(HEAVY)


def test_importing_jaxwm_costs_at_most_a_third_of_a_second():
    # The least of a few: processor time, too, grows on a busy machine.
    nothing = min(processor_seconds("-c", "pass") for _ in range(3))
    jaxwm = min(processor_seconds("-c", "import jaxwm") for _ in range(3))
    assert jaxwm - nothing <= 0.3


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("list",)])
def test_the_command_answers_without_loading_jax(arguments):
    code = (
        f"import sys; sys.argv = ['jaxwm', *{arguments!r}]\n"
        "from jaxwm.__main__ import main\n"
        "assert main() == 0"
    )
    assert "jax" not in loaded_by(code)


def test_help_takes_less_than_a_second():
    assert min(processor_seconds("-m", "jaxwm", "--help") for _ in range(3)) < 1.0


def constraints():
    """Lines of the constraints file: (package, version, marker)."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(
            r"([a-z0-9-]+)==([0-9][\w.]*)(?:; python_version (<|>=) \"3\.12\")?", line
        )
        assert match, f"constraints.txt: {line!r} is not name==version"
        yield match.groups()


def requirements():
    """Packages that pyproject names, with the extra that wants them."""
    groups = {"": PROJECT["project"]["dependencies"]}
    groups |= PROJECT["project"]["optional-dependencies"]
    for extra, lines in groups.items():
        for line in lines:
            yield extra, re.match(r"[A-Za-z0-9-]+", line).group().lower()


def test_every_requirement_has_a_tested_version():
    pinned = {name for name, _, _ in constraints()}
    # Accelerator packages are chosen by the machine.
    free = {"cuda", "warp", "playground"}
    missing = [
        f"{name} ({extra or 'core'})"
        for extra, name in requirements()
        if extra not in free and name not in pinned
    ]
    assert missing == []


def test_constraints_cover_both_pythons_once():
    sides = {}
    for name, _, side in constraints():
        sides.setdefault(name, []).append(side)
    for name, found in sides.items():
        assert sorted(found, key=str) in ([None], ["<", ">="]), f"{name}: {found}"


def test_every_file_of_the_package_is_shipped():
    """Files that are not Python need a pattern in package-data."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["jaxwm"]
    package = ROOT / "jaxwm"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others - shipped == set()


def test_every_folder_of_the_package_is_a_package():
    package = ROOT / "jaxwm"
    folders = {path.parent for path in package.rglob("*.py")}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_the_version_is_the_same_everywhere():
    from jaxwm import __version__

    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_front_door_lists_what_it_has():
    import jaxwm

    for name in jaxwm.__all__:
        assert getattr(jaxwm, name) is not None


def test_make_describes_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()
    described = re.findall(r"^([a-z-]+):.*## ", text, re.M)
    assert sorted(phony) == sorted(described)
    command = ["make", "--no-print-directory", "help"]  # make may be running us
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert [line.split()[1] for line in shown.stdout.splitlines()] == described


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\nmake test " in readme
    assert re.search(r"^make .*\btest$", script, re.M)
    assert "set -euo pipefail" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_machine_without_python_is_told_what_to_install(tmp_path):
    for tool in ("sh", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    made = tmp_path / "environment"
    done = subprocess.run(
        ["sh", str(ROOT / ".ci" / "venv"), str(made)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "No Python 3.11 or newer" in done.stderr
    assert "apt install python3" in done.stderr
    assert not made.exists()


def test_an_environment_that_works_is_used_again():
    done = subprocess.run(
        ["sh", str(ROOT / ".ci" / "venv"), sys.prefix], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Using the environment found in {sys.prefix}.\n"


def test_the_installer_tells_fetching_from_installing():
    tree = ast.parse((ROOT / ".ci" / "install.py").read_text(encoding="utf-8"))
    names = {"__file__": str(ROOT / ".ci" / "install.py"), "__name__": "install"}
    exec(compile(tree, "install.py", "exec"), names)
    log = (
        "2026-01-01T10:00:00,000 Using pip 25.0\n"
        "2026-01-01T10:00:20,500 Collecting jax\n"
        "  a continued line\n"
        "2026-01-01T10:00:30,500 Installing collected packages: a, b, c\n"
        "2026-01-01T10:00:35,000 Successfully installed a-1 b-2 c-3\n"
    )
    assert names["phases"](log) == (30.5, 4.5, 3)
    assert names["phases"]("") == (0.0, 0.0, 0)
