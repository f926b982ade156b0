"""Imports point downwards, and rooms on one floor do not know each other."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxwm"
FLOORS = (
    {"types", "version"},
    {"core"},
    {"nn", "physics"},
    {"envs", "data", "diffusion", "rl", "plan", "measures", "train"},
    {"dynamics", "agents"},
    {"recipes"},
    {"catalogue"},
    {"commands"},
    {"__init__", "__main__"},
)
# Who may import what from outside: {library: rooms}.
ONLY = {"orbax": {"train"}, "mujoco": {"envs", "physics"}, "brax": {"envs"}}


def floor_of(room):
    for height, rooms in enumerate(FLOORS):
        if room in rooms:
            return height
    raise AssertionError(f"{room} stands on no floor; name it in FLOORS")


def arrows(path):
    """Yields (room, line number, dotted import) of one file."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                yield room, node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield room, node.lineno, alias.name


def violations(paths):
    found = []
    for path in paths:
        for room, line, target in arrows(path):
            parts = target.split(".")
            if parts[0] == "jaxwm" and len(parts) > 1 and parts[1] != room:
                if parts[1] == "__version__":
                    continue
                if floor_of(parts[1]) >= floor_of(room):
                    found.append(f"{path}:{line}: {room} imports {parts[1]}")
            elif parts[0] in ONLY and room not in ONLY[parts[0]]:
                found.append(f"{path}:{line}: {room} imports {parts[0]}")
    return found


def test_every_import_points_down():
    assert violations(sorted(PACKAGE.rglob("*.py"))) == []


def test_recipes_do_not_import_recipes():
    for path in (PACKAGE / "recipes").glob("*.py"):
        for _, line, target in arrows(path):
            if path.name != "__init__.py":
                assert not target.startswith("jaxwm.recipes"), f"{path}:{line}"


def test_a_planted_upward_import_is_caught(tmp_path, monkeypatch):
    planted = tmp_path / "core" / "tree.py"
    planted.parent.mkdir()
    planted.write_text("from jaxwm import diffusion\nimport orbax.checkpoint\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert len(violations([planted])) == 2
