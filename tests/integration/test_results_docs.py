"""docs/results.md does what it says: every block of it runs, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlcalc.results.placed import PLACED_FIELDS, PLACEMENTS_SCHEMA
from dlcalc.results.schema import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(language, code, folder):
    if language == "python":
        command = [sys.executable, "-W", "error", "-c", code]
    else:
        for command in ("dlcalc-search", "dlcalc-results", "dlcalc-report"):
            code = code.replace(f"{command} ", f"'{sys.executable}' -m dlcalc.{command.replace('-', '_')} ")
        code = code.replace("3dtrn ", f"'{sys.executable}' -m dlcalc.training_3d ")
        command = ["bash", "-euc", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_runs(tmp_path):
    python = ["python"] * 5
    assert [language for language, _ in BLOCKS] == ["bash", *python, "bash", "python", *["bash"] * 4]
    outputs = [run(language, code, tmp_path) for language, code in BLOCKS]

    _, pandas, pyarrow, duckdb, own, metadata, placing, placed, _, looked, asked, merged = outputs
    assert pandas.count("llama3-8b on 16 h100") == 3
    assert re.search(r"^\d+ plans leave 20 GiB free", pyarrow)
    assert "best_mfu" in duckdb
    assert re.search(r"^llama3-8b 16 megatron \d+\.\d+", own, re.MULTILINE)
    assert "llama3-8b h100" in metadata
    assert "b'unit': b'B'" in metadata
    assert "The order changed." in placing
    assert "placed on fabric.yaml" in " ".join(placing.split())
    assert re.search(r"^as placed #1, on paper #(?!1:)\d+: 1\.\d+ s$", placed, re.MULTILINE)
    assert "get 12.5 GB/s per device" in placed  # two nodes of a rack have a quarter of their 50
    assert (tmp_path / "answer.json").read_text().startswith("{")
    assert looked.count(": in order, complete: ") == 2
    assert "study: small" in looked
    assert '"share": 0.' in asked
    assert (tmp_path / "roomy.csv").read_text().startswith('"study","scenario","model"')
    assert "merged from" in merged
    assert "llama3-8b on 128 h100" in " ".join(merged.split())


@pytest.mark.parametrize("column", [*PLACED_FIELDS, *PLACEMENTS_SCHEMA], ids=lambda column: column.name)
def test_every_column_of_the_placed_tables_is_explained(column):
    unit, meaning = (column.metadata[key].decode() for key in (b"unit", b"description"))
    shown = "" if unit == "1" else unit
    assert f"| `{column.name}` | {shown} | {meaning} |\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_every_column_is_explained(column):
    unit = "" if column.unit == "1" else column.unit
    assert f"| `{column.name}` | {unit} | {column.meaning} |\n" in PAGE.read_text(encoding="utf-8")
