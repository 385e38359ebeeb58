"""docs/compare.md does what it says: its commands run, in order, and what it shows is what they print."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_compare, dlcalc_search

DOORS = {"dlcalc-search": dlcalc_search, "dlcalc-compare": dlcalc_compare}
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
EXAMPLES = re.findall(r"<!-- example: (\w+) -->\n```text\n(.*?)```\n<!-- end -->", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where every command ran, and what all of them printed."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "search_spaces").symlink_to(ROOT / "search_spaces")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("COLUMNS", raising=False)
        for command in COMMANDS:
            words, _, file = re.sub(r" \| .*", "", command).partition(" > ")
            program, *arguments = shlex.split(words)
            done = CliRunner().invoke(DOORS[program].main, arguments, catch_exceptions=False)
            assert done.exit_code == 0, (command, done.output)
            printed.append(done.stdout)
            if file:
                (folder / file).write_text(done.stdout)
    return folder, printed


def test_every_command_runs_and_writes_what_it_names(ran):
    folder, _ = ran
    assert len(COMMANDS) == 8
    for name in ("comparison.json", "scenarios.csv", "scenarios.parquet"):
        assert (folder / name).stat().st_size > 0
    (section,) = json.loads((folder / "comparison.json").read_text())["sections"]
    for name in re.findall(r"`(\w+)`", re.search(r"with `groups`.*?;", PAGE, re.DOTALL)[0]):
        assert name in section
    assert len(section["candidates"]) + len(section["nothing_fits"]) == 8 * 5


def test_what_is_shown_is_what_is_printed(ran):
    """Numbers depend on fitted constants, and so may a line of words: python benchmarks/readme.py --only compare."""
    _, printed = ran
    every = {masked(line) for text in printed for line in text.splitlines()}
    assert [name for name, _ in EXAMPLES] == ["compare", "limits", "failures"]
    for _, shown in EXAMPLES:
        assert {masked(line) for line in shown.splitlines()} <= every


def masked(line):
    return re.sub(r"[\d.,]+", "#", re.sub(r"[─ ]+", " ", line)).strip()
