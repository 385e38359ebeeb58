"""Kernel equations against latencies that no constant was fitted to; all of them: benchmarks/check_kernels.py.

The sample is drawn from aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0).
"""

import csv
import sys
from collections import defaultdict

import numpy as np
import pytest

from dlcalc.specs.load import config_dir

ROOT = config_dir().parent
sys.path.append(str(ROOT / "benchmarks"))
from kernel_fit import unfitted  # noqa: E402

SAMPLE = defaultdict(list)
with (ROOT / "tests" / "data" / "unfitted_kernels.csv").open(newline="") as file:
    for row in csv.DictReader(file):
        SAMPLE[row["kind"], row["device"], row["precision"]].append(row)


def ratios(kind, device, precision, estimate):
    rows = SAMPLE[kind, device, precision]
    found = []
    for row in rows:
        shape = {
            name: float(value) for name, value in row.items() if name not in {"kind", "device", "precision"} and value
        }
        measured_ms = shape.pop("latency_ms")
        found.append(1e3 * float(estimate(**shape)) / measured_ms)
    assert len(found) >= 12
    return np.array(found)


def cases(kind):
    return [key[1:] for key in SAMPLE if key[0] == kind]


@pytest.mark.parametrize(("device", "precision"), cases("latent attention"))
def test_latent_attention_takes_what_its_widths_say(device, precision):
    """Calls last some 15 us longer than their kernel."""
    found = ratios("latent attention", device, precision, lambda **shape: unfitted.latent_attention_s(device, **shape))
    assert np.median(found) == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize(("device", "precision"), [case for case in cases("experts") if case[1] != "nvfp4"])
def test_experts_take_what_two_grouped_matmuls_and_three_passes_do(device, precision):
    found = ratios("experts", device, precision, lambda **shape: unfitted.experts_s(device, precision, **shape))
    assert np.median(found) == pytest.approx(1.0, abs=0.25)


def test_tokens_come_back_from_their_experts_inside_a_node_and_between_nodes():
    rows = SAMPLE["combine", "h100", "bf16"]
    assert {row["nodes"] for row in rows} == {"1", "2", "4"}
    found = ratios("combine", "h100", "bf16", lambda **shape: unfitted.combine_s("h100", **shape))
    nodes = np.array([row["nodes"] for row in rows])
    assert np.median(found[nodes == "1"]) == pytest.approx(0.93, abs=0.08)
    assert np.median(found[nodes == "2"]) == pytest.approx(0.93, abs=0.1)
    assert np.median(found[nodes == "4"]) == pytest.approx(1.22, abs=0.1)
