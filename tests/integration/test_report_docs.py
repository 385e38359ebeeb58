"""docs/report.md does what it says: its commands run, in order, and its sections are those of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_report, dlcalc_search

pytest.importorskip("plotly", reason="the page is drawn with plotly")
DOORS = {"dlcalc-search": dlcalc_search, "dlcalc-report": dlcalc_report}
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where every command ran."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "search_spaces").symlink_to(ROOT / "search_spaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            words, _, file = command.partition(" > ")
            program, *arguments = shlex.split(words)
            done = CliRunner().invoke(DOORS[program].main, arguments, catch_exceptions=False)
            assert done.exit_code == 0, (command, done.output)
            if file:
                (folder / file).write_text(done.stdout)
    return folder


def test_every_command_runs_and_writes_what_it_names(ran):
    assert len(COMMANDS) == 5
    for name in ("report.html", "third.html"):
        assert 4e6 < (ran / name).stat().st_size < 10e6
    third = (ran / "third.html").read_text(encoding="utf-8")
    assert "<h1>llama3-70b-h100: llama3_70b on 256 h100, bf16</h1>" in third
    assert "Plan of rank 3: " in third


def test_the_sections_are_those_of_the_page(ran):
    text = (ran / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h[23]>([^<]+)</h[23]>", text)
    rows = re.findall(r"^\| ([^|`]+) \| [^|]+ \|$", PAGE, re.MULTILINE)[1:]
    named = [name for row in rows for name in row.split(", ")]
    assert len(named) == 12
    for name in named:
        assert name in headings or name == "Machines compared", name  # which this study has not


def test_the_keys_of_the_document(ran):
    found = json.loads((ran / "report.json").read_text())
    keys = re.findall(r"`(\w+)`", re.search(r"rests on: .*?in base units", PAGE, re.DOTALL)[0])
    assert set(keys) <= found.keys()
    assert len(keys) == 10
