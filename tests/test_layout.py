"""The two floors: scripts import r1zero, r1zero imports libraries, and there are no cycles."""

import ast
from pathlib import Path

from conftest import ROOT

PACKAGE = {f"r1zero.{path.stem}": path for path in (ROOT / "r1zero").glob("*.py") if path.stem != "__init__"}
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found & (PACKAGE.keys() | SCRIPTS.keys())


def test_the_root_has_at_most_five_scripts_of_at_most_400_lines():
    assert SCRIPTS.keys() == {"rl_grpo", "rewards", "eval", "plots"}
    for path in (*SCRIPTS.values(), *PACKAGE.values()):
        assert len(path.read_text().splitlines()) <= 400, path
    assert len(SCRIPTS["rl_grpo"].read_text().splitlines()) <= 180


def test_the_package_imports_no_script_and_scripts_import_no_main():
    for path in PACKAGE.values():
        assert not imports(path) & SCRIPTS.keys(), path
    for path in SCRIPTS.values():
        assert imports(path) & SCRIPTS.keys() <= {"rewards"}, path


def test_there_are_no_import_cycles():
    graph = {name: imports(path) for name, path in PACKAGE.items()}
    done = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert done == graph.keys(), f"in or behind a cycle: {sorted(graph.keys() - done)}"
