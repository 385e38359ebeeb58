"""docs/search.md does what it says: every block of it runs, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlcalc.specs import design, sampling

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "search.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```text\n(.*?)```\n<!-- end -->", TEXT, re.DOTALL))


def run(language, code, folder):
    if language == "python":
        command = [sys.executable, "-c", code]
    else:
        for program, module in (("dlcalc-search", "dlcalc_search"), ("dlcalc-calibrate", "dlcalc_calibrate")):
            code = re.sub(rf"^{program} ", f"'{sys.executable}' -m dlcalc.{module} ", code, flags=re.MULTILINE)
        code = code.replace("3dtrn ", f"'{sys.executable}' -m dlcalc.training_3d ")
        command = ["bash", "-euc", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=280, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def masked(line):
    return re.sub(r"[\d.,]+", "#", re.sub(r"[─ ]+", " ", line)).strip()


def assert_shown(name, printed):
    """Numbers depend on fitted constants: python benchmarks/readme.py --only sampled."""
    assert {masked(line) for line in EXAMPLES[name].splitlines()} <= {masked(line) for line in printed.splitlines()}


def test_every_block_runs(tmp_path):
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash", "bash", "bash", "bash", "bash"]
    outputs = [run(language, code, tmp_path) for language, code in BLOCKS]
    assert_shown("shape", outputs[3])
    assert_shown("stages", outputs[5])
    plans, study, machines, shapes, stages, unequal, measured = (" ".join(printed.split()) for printed in outputs)
    assert "200 trials of tpe (seed 0) for step time, of each every plan estimated" in shapes
    assert "Sampled, not searched in full: 150 trials of nsga2 (seed 0) for mfu and memory" in plans
    assert "plans that no other one beats in mfu and memory" in plans
    assert study.count("['MFU', 'memory (GiB)']") == 3
    assert "60 trials of tpe (seed 0) for step time and cost, of each every plan estimated" in machines
    assert "as it is" in machines
    assert "design" in stages
    assert "200 trials of tpe (seed 0) for step time, of each every plan estimated" in unequal
    assert "Measured: " in measured
    assert (tmp_path / "my_h100.yaml").exists()


@pytest.mark.parametrize("spec", [sampling.SearchSpec, design.DesignSpec, design.ShapeSpec])
def test_every_key_is_explained(spec):
    unexplained = [key for key in spec.model_fields if f"`{key}`" not in TEXT and f"`{key}:" not in TEXT]
    assert unexplained == []


def test_the_defaults_are_those_of_the_program():
    from dlcalc.workflows import designs as workflows_designs
    from dlcalc.workflows import sampled as workflows_sampled

    assert f"| `n_trials` | {sampling.DEFAULT_TRIALS} |" in TEXT
    assert f"| `n_trials` | {sampling.DEFAULT_RUNS} |" in TEXT
    assert f"| `timeout_s` | {sampling.DEFAULT_TIMEOUT_S:g} |" in TEXT
    assert f"| `batch` | {workflows_sampled.BATCH} plans, {workflows_designs.BATCH} designs |" in TEXT
    assert f"| `sampler` | `{sampling.PLAN_SAMPLER}` for plans, `{sampling.DESIGN_SAMPLER}` for designs |" in TEXT
    assert f"`{sampling.STEP_TIME_PATTERN}`" in TEXT
