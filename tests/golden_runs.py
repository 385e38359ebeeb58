"""Golden reports of the shipped examples. ``python -m tests.golden_runs`` writes them anew.

What is kept is what a change of a fitted constant leaves alone: headings, labels, plans, shapes, FLOPs, bytes, ranks,
calls. Times, shares, rates and gibibytes become ``#``, parts of a whole stand in the order of their names, and columns
are as wide as it happens.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import chain, groupby
from pathlib import Path

from click.testing import CliRunner

from dlcalc.training_3d import main

HERE = Path(__file__).resolve().parent
EXAMPLES = sorted((HERE.parent / "examples").glob("*.yaml"))
GOLDEN = HERE / "golden"
FITTED = [
    r"(?<![\w.])\d[\d,.]* (?:days|min|ms|us|ns|s)\b",
    r"[-+]?\d[\d,.]* ?%",
    r"-?\b\d[\d,]*\.\d{3}(?: GiB)?\b",
    r"\b[\d.]+ [GTP](?=\s+(?:compute|memory|launch)\s*$|\s*$)",
]
"""Times, shares, gibibytes to three decimals, and achieved rates at the end of a line of a table."""
ANSWERS = re.compile(r"^(\s*(?:tokens per day|tokens per second and device|token budget|cost)\s).*")


def golden_file(example: Path) -> Path:
    return GOLDEN / f"{example.stem}.txt"


def stable_report(example: Path) -> str:
    """The report of ``example`` without what fitted constants decide."""
    env = {"COLUMNS": None, "NO_COLOR": None, "FORCE_COLOR": None, "PYTHONIOENCODING": "utf-8"}
    result = CliRunner(env=env).invoke(main, [str(example)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [stable_line(line) for line in result.stdout.splitlines()]
    parts = (sorted(group) if ranked else group for ranked, group in groupby(lines, lambda line: line.endswith(" # #")))
    return "\n".join(chain.from_iterable(parts)) + "\n"


def stable_line(line: str) -> str:
    """One line with fitted numbers masked."""
    line = re.sub("[█▏▎▍▌▋▊▉─]+", "", ANSWERS.sub(r"\1#", line))
    for pattern in FITTED:
        line = re.sub(pattern, "#", line)
    return re.sub(r"(?<=\S)\s+", " ", line).rstrip()


def regenerate() -> None:
    """Write every golden file."""
    GOLDEN.mkdir(exist_ok=True)
    for example in EXAMPLES:
        golden_file(example).write_text(stable_report(example), encoding="utf-8")
        print(golden_file(example), file=sys.stderr)


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    regenerate()
