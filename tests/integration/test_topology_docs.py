"""docs/topology.md does what it says: its commands run, in order, and what it shows is what they print."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc import topoassign, topoeval, topoviz

DOORS = {"topoassign": topoassign, "topoeval": topoeval, "topoviz": topoviz}
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.startswith("topo")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where every command ran, and what each printed."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            words, _, file = command.partition(" > ")
            program, *arguments = shlex.split(words)
            done = CliRunner().invoke(DOORS[program].main, arguments, catch_exceptions=False)
            assert done.exit_code == 0, (command, done.output)
            printed[command] = done.stdout
            if file:
                (folder / file).write_text(done.stdout)
    return folder, printed


def test_every_command_runs_and_writes_what_it_names(ran):
    folder, printed = ran
    assert len(printed) == len(COMMANDS) >= 8
    for name in re.findall(r"(?:-o|--save|>) (\S+)", "\n".join(COMMANDS)):
        assert (folder / name).stat().st_size > 0


def test_the_launch_files_are_those_of_the_table(ran):
    folder, _ = ran
    named = re.findall(r"^\| `([\w.]+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {name for name, _ in named} == {file.name for file in (folder / "launch").iterdir()}
    hosts = (folder / "hosts").read_text()
    assert hosts == (folder / "launch" / "slurm_hostfile.txt").read_text()
    keys = re.findall(r"`(\w+)`", re.search(r"placement.json.*", PAGE)[0])[2:]
    assert set(keys) <= json.loads((folder / "launch" / "placement.json").read_text()).keys()


def test_what_is_shown_of_topoeval_is_what_it_prints(ran):
    _, printed = ran
    (text,) = (text for command, text in printed.items() if command.startswith("topoeval mixtral --plan"))
    (shown,) = (block for kind, block in BLOCKS if not kind and block.startswith("Rings:"))
    for line in filter(None, map(masked, shown.splitlines())):
        assert line in masked(text)


def masked(text):
    """Step times and shares depend on fitted constants; words and hops do not."""
    return re.sub(r"[-+\d.]+ (?:s|%)|─", "#", re.sub(r" +", " ", text)).replace("#", "").strip()
