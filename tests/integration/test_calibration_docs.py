"""docs/calibration.md does what it says: its blocks run, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(code, folder):
    code = re.sub(r"^dlcalc-(\w+) ", rf"'{sys.executable}' -m dlcalc.dlcalc_\1 ", code, flags=re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run(
        ["bash", "-euc", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_runs(tmp_path):
    fitted, searched = (run(code, tmp_path) for code in BLOCKS)
    before, after, left_out = (
        float(re.search(rf"^{line} +([\d.]+)", fitted, re.MULTILINE)[1])
        for line in ("before", "after", "each run left out of the fit")
    )
    assert after < before
    assert left_out < before
    assert "contradicts" not in fitted
    assert (tmp_path / "my_h100.yaml").exists()
    assert (tmp_path / "my_h100.megatron.yaml").exists()
    assert "my_h100" in searched


def test_the_dry_run_of_the_kernels_is_as_shown():
    done = subprocess.run(
        [sys.executable, "benchmarks/measure_device.py", "--dry-run"],
        cwd=PAGE.parents[1],
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "matmul" in done.stdout
