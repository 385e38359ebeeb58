"""docs/launch.md does what it says: every block of it runs, in order, in an empty directory."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

from dlcalc.launch.schedulers.write import SCHEDULERS
from dlcalc.specs.target import READABLE, TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "launch.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
MODULES = {
    "dlcalc-search": "dlcalc_search",
    "dlcalc-launch": "dlcalc_launch",
    "dlcalc-calibrate": "dlcalc_calibrate",
    "topoassign": "topoassign",
    "3dtrn": "training_3d",
}


def run(code, folder):
    for command, module in MODULES.items():
        code = re.sub(rf"^{command} ", f"'{sys.executable}' -m dlcalc.{module} ", code, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_every_block_runs(tmp_path):
    outputs = [run(code, tmp_path) for code in BLOCKS]
    (first, _), _, (refused, why), (titan, _), (today, _), (fed_back, _) = outputs

    assert "sbatch job.sbatch" in first
    placed = (tmp_path / "placed" / "hostfile").read_text().split()
    assert len(placed) == 8
    assert {host[:2] for host in placed} <= {"r0", "r1", "r2", "r3"}
    assert "exit code 3" in refused
    assert "torchtitan recomputes all layers or none" in why
    assert "the nearest plan it can run takes" in why
    assert (tmp_path / "nearest" / "train.sh").exists()
    assert "torchtitan" in titan
    assert "BETTER PLANS" in today
    assert "recompute" in today
    assert "h100" in fed_back
    assert (tmp_path / "our_h100.yaml").exists()


def test_the_tables_name_every_target_and_scheduler():
    for name in (*TARGETS, *(s for s in SCHEDULERS if s in ("slurm", "torchrun")), "kubernetes"):
        assert f"| `{name}` |" in TEXT
    for name in READABLE:
        assert f"`{name}`" in TEXT.split("## What you run today")[1]


def test_measured_csv_is_what_calibration_reads(tmp_path):
    run(BLOCKS[0], tmp_path)
    (row,) = csv.DictReader((tmp_path / "launch" / "measured.csv").read_text().splitlines())
    assert row["step_time_s"] == ""
    assert int(row["tp"]) * int(row["pp"]) * int(row["cp"]) * int(row["dp"]) == int(row["gpus"]) == 64
