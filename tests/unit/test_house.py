"""Rules of the house that no linter knows, read off the source by ast."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dlcalc.calculators.references import REFERENCES

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "dlcalc"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {path for path in PACKAGE.glob("*.py") if "def main(" in path.read_text()}

UNITS = (
    *("_bytes", "_s", "_flops", "_bytes_per_s", "_flops_per_s", "_tokens", "_fraction", "_factor", "_params"),
    *("_elements", "_count"),
)


def equations(path: Path) -> list[ast.FunctionDef]:
    """Public functions on the top level of a module."""
    found = ast.parse(path.read_text()).body
    return [node for node in found if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


EQUATIONS = [
    pytest.param(path, equation, id=f"{path.stem}.{equation.name}")
    for path in sorted((PACKAGE / "calculators").glob("*.py"))
    if path.stem not in {"__init__", "references"}
    for equation in equations(path)
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, by its full name."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def importers(package: str) -> set[Path]:
    return {path for path in FILES if any(name.split(".")[0] == package for name in imported(path))}


def names(paths: set[Path]) -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in paths)


def test_there_are_equations_and_doors_to_look_at():
    assert EQUATIONS
    assert DOORS


@pytest.mark.parametrize(("path", "equation"), EQUATIONS)
def test_an_equation_names_its_unit_and_its_source(path, equation):
    where = f"{path.name}:{equation.lineno}: {equation.name}"
    assert equation.name.endswith(UNITS), f"{where}: the name does not end in a unit: {', '.join(UNITS)}"
    cited = re.findall(r"\[(\w+)\]", "".join(re.findall(r"Source: .*", ast.get_docstring(equation) or "", re.DOTALL)))
    assert cited, f"{where}: no 'Source: [key]' in the docstring"
    assert set(cited) <= REFERENCES.keys(), f"{where}: unknown sources {sorted(set(cited) - REFERENCES.keys())}"


def test_only_doors_talk_to_the_terminal():
    assert names(importers("click") - DOORS - {PACKAGE / "doors.py"}) == []
    assert names(importers("rich") - DOORS - set((PACKAGE / "report").rglob("*.py"))) == []


def test_only_sampled_search_knows_optuna():
    search = PACKAGE / "search"
    assert names(importers("optuna") - {search / "sampled.py", search / "measured_trials.py"}) == []


def test_equations_know_neither_files_nor_plans():
    """What calculators import is numpy, the standard library, specs, and each other."""
    allowed = {"numpy", "dlcalc", *sys.stdlib_module_names} - {"pathlib", "os", "io", "json", "logging"}
    for path in (PACKAGE / "calculators").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path.name
        floors = {name.split(".")[1] for name in imported(path) if name.startswith("dlcalc.")}
        assert floors <= {"calculators", "specs", "utils"}, path.name


def test_every_door_is_a_command_and_every_command_has_a_door():
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(scripts.values()) == sorted(f"dlcalc.{door.stem}:main" for door in DOORS)


def test_the_lock_pins_what_the_project_needs_and_names_no_host():
    lock = (CHECKOUT / "constraints.txt").read_text()
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~;\[ ]", need)[0].lower().replace("_", "-") for need in needed}
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).rstrip())
    pinned = {entry.split("==")[0] for entry in entries}
    assert names <= pinned
    assert "torch" not in pinned  # see `checks`
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda"))]
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]
    assert "://" not in lock


def test_every_module_says_what_it_is_for():
    silent = {path for path in FILES if path.stem != "__init__" and not ast.get_docstring(ast.parse(path.read_text()))}
    assert names(silent) == []


@pytest.mark.parametrize("door", sorted(door.stem for door in DOORS))
def test_help_is_instant(door):
    """--help and a mistyped option load none of the heavy packages."""
    program = (
        f"import sys; from dlcalc.{door} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'pyarrow', 'pydantic', 'yaml', 'rich', 'torch', 'optuna'} & sys.modules.keys()\n"
        "sys.exit(f'--help imported {sorted(heavy)}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Usage:" in ran.stdout


def test_importing_the_package_is_free():
    program = "import sys; before = set(sys.modules); import dlcalc; print(*sorted(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = [name for name in ran.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert ours == ["dlcalc"]
