"""The fit of benchmarks/measure_device.py finds the constants that made-up timings were made with; no device needed."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure_device
from benchmarks.measure_device import Timing, main, plan, read_timings, write_timings
from dlcalc.hardware_registry import load_hardware

H100 = load_hardware("h100")
PLANTED = {"rate_fraction": 0.75, "k_half": 300.0, "hbm_fraction": 0.6, "launch_us": 4.0}


def made_up(precisions=("bf16",)):
    """The planned kernels, timed by the equations themselves with other constants."""
    planned = plan(precisions)
    calibration = H100.calibration
    found = []
    for precision in precisions:
        rows = [one for one in planned if one.kind == "matmul" and one.precision == precision]
        rates = calibration.matmul[precision].model_copy(update=PLANTED)
        found += zip(rows, measure_device.matmul_seconds(rates, rows, H100), strict=True)
    rows = [one for one in planned if one.kind.startswith("attention")]
    slower = calibration.attention["bf16"].model_copy(update={"rate_fraction": 0.6, "backward_fraction": 0.5})
    found += zip(rows, measure_device.attention_seconds(slower, rows, H100, "flash2"), strict=True)
    rows = [one for one in planned if one.kind == "memory"]
    memory = calibration.memory.model_copy(update={"hbm_fraction": 0.8, "launch_us": 2.5})
    found += zip(rows, measure_device.memory_seconds(memory, rows, H100), strict=True)
    return [*(replace(one, seconds=float(seconds)) for one, seconds in found), Timing("launch", seconds=7e-6)]


@pytest.fixture
def _timings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_timings(Path("timings.csv"), made_up(("bf16", "fp8")))


@pytest.mark.usefixtures("_timings")
def test_timings_survive_their_file():
    assert read_timings(Path("timings.csv")) == made_up(("bf16", "fp8"))


@pytest.mark.usefixtures("_timings")
def test_planted_constants_are_found_and_written_into_a_machine(capsys):
    assert main(["--timings", "timings.csv", "--out", "ours.yaml"]) == 0
    ours = load_hardware("ours.yaml")
    assert (ours.name, ours.device, ours.node, ours.fabric) == ("ours", H100.device, H100.node, H100.fabric)
    for precision in ("bf16", "fp8"):
        for name, value in PLANTED.items():
            rel = 0.15 if name == "hbm_fraction" else 0.05  # few of the shapes are bound by memory
            assert getattr(ours.calibration.matmul[precision], name) == pytest.approx(value, rel=rel), (precision, name)
    attention = ours.calibration.attention["bf16"]
    assert attention.rate_fraction == pytest.approx(0.6, rel=0.03)
    assert attention.backward_fraction == pytest.approx(0.5, rel=0.03)
    assert attention.kernel_fractions == H100.calibration.attention["bf16"].kernel_fractions
    assert ours.calibration.memory.hbm_fraction == pytest.approx(0.8, rel=0.02)
    assert ours.calibration.memory.launch_us == pytest.approx(2.5, rel=0.02)
    assert ours.calibration.matmul["fp8_block"] == H100.calibration.matmul["fp8_block"]
    assert ours.calibration.node_collectives == H100.calibration.node_collectives
    assert ours.calibration.measured
    assert "matmul bf16" in ours.calibration.provenance
    assert "7.0 us per launch" in Path("ours.yaml").read_text()
    assert "written: ours.yaml" in capsys.readouterr().out


def test_noise_of_timings_does_not_matter_much(tmp_path, capsys):
    rng = np.random.default_rng(0)
    noisy = [replace(one, seconds=one.seconds * float(np.exp(rng.normal(0, 0.03)))) for one in made_up()]
    noisy[3] = replace(noisy[3], seconds=5.0 * noisy[3].seconds)  # another process, say
    write_timings(tmp_path / "timings.csv", noisy)
    assert main(["--timings", str(tmp_path / "timings.csv"), "--out", str(tmp_path / "ours.yaml")]) == 0
    found = load_hardware(tmp_path / "ours.yaml").calibration.matmul["bf16"]
    assert found.rate_fraction == pytest.approx(0.75, rel=0.05)
    assert "median error" in capsys.readouterr().out


def test_a_dry_run_needs_no_device(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    assert main(["--dry-run", "--precision", "bf16", "fp8"]) == 0
    text = capsys.readouterr().out
    for kind in ("matmul: precision bf16, m 4096", "matmul: precision fp8", "attention_backward", "memory", "launch"):
        assert kind in text
    assert text.startswith(f"{len(plan(['bf16', 'fp8']))} kernels")


HEADER = ",".join(asdict(Timing("matmul")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "timings.csv:2: not a timing (KeyError"),
        (f"{HEADER}\nmatmul,bf16,x,1,1,0,0,0,0,0,0,1\n", "timings.csv:2: not a timing (ValueError"),
        (f"{HEADER}\nmatmul,bf16,1,1,1,0,0,0,0,0,0,0\n", "must be positive"),
        (f"{HEADER}\nconvolution,bf16,1,1,1,0,0,0,0,0,0,1\n", "is none of matmul"),
        (f"{HEADER}\nmatmul,nvfp4,1,1,1,0,0,0,0,0,0,1\n", "h100 has no nvfp4"),
        (f"{HEADER}\n", "nothing was measured"),
    ],
)
def test_a_file_that_holds_no_timings_is_refused(tmp_path, monkeypatch, capsys, content, said):
    monkeypatch.chdir(tmp_path)
    Path("timings.csv").write_text(content)
    assert main(["--timings", "timings.csv"]) == 2
    assert said in capsys.readouterr().err
