"""Kernel equations against a sample of measured latencies, per device; the fit itself is benchmarks/fit_kernels.py.

The sample (``tests/data/kernels``) is drawn from aiconfigurator-core 0.12.0 (NVIDIA, Apache-2.0): matmuls with m, n and
k of at least 512, causal attention over at least 1024 tokens, collectives above 1 MiB, casts beyond the cache.
``harness.yaml`` holds what the inference servers that were measured do around the kernel. docs/kernels.md has the
errors on all shapes.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from dlcalc.calculators import communication, kernels
from dlcalc.costmodel.placement import node_bytes_per_s
from dlcalc.hardware_registry import load_hardware

DATA = Path(__file__).parents[1] / "data" / "kernels"
DEVICES = sorted(file.stem for file in DATA.glob("*.csv"))
HARNESS = yaml.safe_load((DATA / "harness.yaml").read_text())
COLLECTIVES = {
    "all_gather": communication.all_gather_time_s,
    "reduce_scatter": communication.reduce_scatter_time_s,
    "all_reduce": communication.all_reduce_time_s,
    "all_to_all": communication.all_to_all_time_s,
}
COLLECTIVE_BOUNDS = {("rtx_pro_6000", "all_to_all"): 0.15}
"""Medians; without NVLink some pairs share a bridge and others do not, which pairwise exchange meets in turn."""
TEXT = {"kind", "precision"}


def sample(device, **wanted):
    """Columns of the rows of one kind, as arrays; empty cells are not a number."""
    with (DATA / f"{device}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return {
        name: np.array([row[name] if name in TEXT else float(row[name] or "nan") for row in rows])
        for name in (rows[0] if rows else ())
    }


def errors(estimated_s, rows):
    error = np.abs(estimated_s / (rows["latency_ms"] * 1e-3) - 1)
    return float(np.median(error)), float(np.quantile(error, 0.9))


def device_arguments(hardware, precision):
    peak = {"fp8_block": "fp8"}.get(precision, precision)
    return {
        "peak_flops_per_s": hardware.device.peak_flops_per_s(peak),
        "hbm_bytes_per_s": hardware.device.hbm_bytes_per_s,
        "n_sms": hardware.device.n_sms.value,
    }


def matmul_cases():
    return [(device, precision) for device in DEVICES for precision in sorted(load_hardware(device).calibration.matmul)]


MATMUL_BOUNDS = {
    "bf16": (0.055, 0.18),
    "fp8": (0.065, 0.18),
    "fp8_block": (0.085, 0.22),
    "mxfp8": (0.07, 0.18),
    "nvfp4": (0.085, 0.22),
}
"""Median and 90th percentile; over all shapes they are lower, by what a sample of this size may be off."""
ROOM = {"l40s": 1.3}
"""Times the bounds: a card at its power limit, whose clock no two collections of the same matmul share."""


@pytest.mark.parametrize(("device", "precision"), matmul_cases())
def test_matmuls(device, precision):
    rows, hardware = sample(device, kind="matmul", precision=precision), load_hardware(device)
    seconds = kernels.matmul_time_s(
        rows["m"], rows["n"], rows["k"],
        rates=hardware.calibration.matmul[precision],
        input_bytes={"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.56}.get(precision, 1.03),
        l2_bytes=hardware.device.l2_mib.value * 2.0**20,
        **device_arguments(hardware, precision),
    )  # fmt: skip
    harness = HARNESS[device].get(f"matmul {precision}", {"cast_bytes": 0.0, "cast_us": 0.0})
    cast_s = harness["cast_bytes"] * rows["m"] * rows["k"] / hardware.device.hbm_bytes_per_s + harness["cast_us"] * 1e-6
    median, p90 = errors(seconds + cast_s, rows)
    assert len(rows["m"]) >= 50
    assert median <= MATMUL_BOUNDS[precision][0] * ROOM.get(device, 1.0)
    assert p90 <= MATMUL_BOUNDS[precision][1] * ROOM.get(device, 1.0)


@pytest.mark.parametrize("device", DEVICES)
def test_attention(device):
    rows, hardware = sample(device, kind="attention"), load_hardware(device)
    seconds = np.empty(len(rows["seq"]))
    for head_dim in np.unique(rows["head_dim"]):
        at = rows["head_dim"] == head_dim
        seconds[at] = kernels.attention_forward_time_s(
            rows["seq"][at], rows["seq"][at],
            batch=rows["batch"][at], n_heads=rows["heads"][at], n_kv_heads=rows["kv_heads"][at],
            qk_head_dim=head_dim, v_head_dim=head_dim, window=rows["window"][at],
            rates=hardware.calibration.attention["bf16"].model_copy(update={"launch_us": 0.0}),
            **device_arguments(hardware, "bf16"),
        )  # fmt: skip
    harness = HARNESS[device]["attention bf16, forward"]
    cached = rows["batch"] * rows["seq"] * rows["kv_heads"] * rows["head_dim"]
    seconds += harness["append_bytes"] * cached / hardware.device.hbm_bytes_per_s + harness["append_us"] * 1e-6
    median, p90 = errors(seconds, rows)
    assert len(seconds) >= 100
    assert median <= 0.08 * ROOM.get(device, 1.0)
    assert p90 <= 0.27


@pytest.mark.parametrize("device", [device for device in DEVICES if sample(device, kind="all_reduce")])
def test_collectives(device):
    hardware, everything = load_hardware(device), []
    for operation, equation in COLLECTIVES.items():
        rows = sample(device, kind=operation)
        link = communication.GroupLink(
            n_ranks=rows["n_ranks"],
            ranks_per_node=rows["n_ranks"],
            node_bytes_per_s=node_bytes_per_s(rows["n_ranks"], np.ones(1), hardware.node),
            fabric_bytes_per_s=1.0,
            fabric_latency_s=0.0,
            device_bytes_per_s=hardware.node.device_bytes_per_s,
        )
        rates = hardware.calibration
        seconds = equation(
            rows["size_bytes"], link, node=rates.node_collectives[operation], fabric=rates.fabric_collectives[operation]
        )
        everything += list(np.abs(seconds / (rows["latency_ms"] * 1e-3) - 1))
        assert np.median(everything[-len(rows["kind"]) :]) <= COLLECTIVE_BOUNDS.get((device, operation), 0.08), (
            operation
        )
    assert len(everything) >= 70
    assert np.median(everything) <= 0.07
    assert np.quantile(everything, 0.9) <= (0.25 if device in ("a100_80gb", "rtx_pro_6000") else 0.20)


@pytest.mark.parametrize("device", [device for device in DEVICES if not device.startswith("a100")])
def test_passes_over_memory(device):
    rows, hardware = sample(device, kind="memory"), load_hardware(device)
    seconds = kernels.memory_bound_time_s(
        rows["traffic_bytes"], rates=hardware.calibration.memory, hbm_bytes_per_s=hardware.device.hbm_bytes_per_s
    )
    assert errors(seconds, rows)[0] <= 0.06
