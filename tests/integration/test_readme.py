"""Every command that the documents show is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALLS = ("pip install", "checks --install", "eval ")
"""Lines that set an environment up; the checks themselves are one of them."""
LONG = ("benchmarks/", "dlcalc-validate")
"""Run by their own tests and by hand."""


def commands(language: str) -> list[tuple[str, str]]:
    found = []
    for file in DOCUMENTS:
        for block in re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.S):
            lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
            found += [(file.name, line.strip()) for line in lines]
    return found


SHELL = [
    pytest.param(line, id=f"{name}: {line[:60]}")
    for name, line in commands("sh")
    if name == "README.md" and not any(word in line for word in (*INSTALLS, *LONG))
]


@pytest.mark.parametrize("line", SHELL)
def test_a_command_of_the_readme_runs(line, tmp_path):
    program, *arguments = shlex.split(line)
    module = {"3dtrn": "training_3d"}.get(program, program.replace("-", "_"))
    for shipped in ("search_spaces", "configs", "examples"):
        if (ROOT / shipped).exists():
            (tmp_path / shipped).symlink_to(ROOT / shipped)
    done = subprocess.run(
        [sys.executable, "-m", f"dlcalc.{module}", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_of_the_readme_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    exec(compile(block, "README.md", "exec"), {})  # our own document
    step_time_s, mfu, gib = map(float, capsys.readouterr().out.splitlines()[0].split())
    assert step_time_s > 0
    assert 0.2 < mfu < 0.8
    assert 20 < gib < 79


def test_every_shipped_space_is_searched(tmp_path):
    """Each within ten seconds is a bar of its own (benchmarks); here it must give an answer."""
    from click.testing import CliRunner

    from dlcalc.dlcalc_search import main

    for file in sorted((ROOT / "search_spaces").glob("*.yaml")):
        result = CliRunner().invoke(main, [str(file), "-o", str(tmp_path / file.stem), "--keep", "100", "--json"])
        assert result.exit_code == 0, (file.name, result.output[-500:])
