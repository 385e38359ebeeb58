"""Every machine that is built in can be searched on, and nothing that the cost model says of it is beyond physics."""

from __future__ import annotations

import math

import pytest

import dlcalc
from dlcalc.costmodel.plans import KNOBS
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import known_hardware, load_hardware

MODEL = "llama3-8b"
RECIPE = {"seq_len": 4096, "global_batch": 512}
DEVICES = 64  # 8 billion parameters in Adam fit 64 devices of 16 GB


def best(machine: str, precision: str):
    study = {"study": "s", "model": MODEL, "hardware": machine, "cluster": {"devices": DEVICES}}
    found = dlcalc.search({**study, "recipe": {**RECIPE, "precision": precision}})
    return found["scenarios"][0]["best"][0]


@pytest.mark.parametrize("machine", known_hardware())
def test_the_best_plan_is_plausible(machine):
    device = load_hardware(machine).device
    precision = device.sixteen_bits
    plan = best(machine, precision)
    assert 0.15 < plan["mfu"] < 0.8  # kernels of the best device reach 0.97 of peak, of the worst 0.5
    assert plan["step_time_low_s"] < plan["step_time_s"] < plan["step_time_high_s"]
    assert plan["memory_bytes"] <= device.hbm_bytes

    knobs = {name: plan[name] for name in KNOBS if name in plan}
    one = dlcalc.estimate(MODEL, machine, precision=precision, **RECIPE, **knobs)
    terms = [*one.time_s.values(), *one.memory_terms_bytes.values()]
    assert all(math.isfinite(term) and term >= 0 for term in terms)
    assert sum(one.time_s.values()) == pytest.approx(one.step_time_s) == pytest.approx(plan["step_time_s"])
    assert one.refused == ()


@pytest.mark.parametrize(
    ("slower", "faster", "least", "most"),
    [
        # least and most: by how much, from what the datasheets say of arithmetic, memory and links
        ("a800_80gb", "a100_80gb", 1.0, 1.1),
        ("a100_pcie_80gb", "a100_80gb", 1.05, 1.25),
        ("v100_32gb", "a100_80gb", 2.5, 3.6),
        ("p3dn.24xlarge", "v100_32gb", 1.0, 1.6),
        ("v100_32gb", "dgx2", 1.0, 1.2),
        ("h100_pcie", "h100", 1.25, 1.6),
        ("h100_nvl", "h100", 1.1, 1.35),
        ("h200_nvl", "h200", 1.1, 1.35),
        ("gh200_single", "gh200", 0.95, 1.2),
        ("mi250", "mi250x", 1.0, 1.1),
        ("mi250x", "mi300x", 3.5, 6.5),
        ("mi300a", "mi300x", 1.2, 1.45),
        ("mi350x", "mi355x", 1.03, 1.12),
        ("tpu_v5e", "tpu_v5p", 2.2, 3.6),
        ("tpu_v4", "tpu_v5p", 1.6, 2.2),
        ("tpu_v5p", "tpu_v7", 4.0, 6.0),
        ("gaudi2", "gaudi3", 2.0, 3.5),
        ("l40s", "h100", 3.0, 7.0),
    ],
)
def test_machines_differ_by_what_their_datasheets_say(slower, faster, least, most):
    times = [best(name, load_hardware(name).device.sixteen_bits)["step_time_s"] for name in (slower, faster)]
    assert least <= times[0] / times[1] <= most


# ---- what a device does not have


@pytest.mark.parametrize("machine", ["v100_16gb", "v100_32gb", "dgx2"])
def test_bf16_on_a_device_from_before_it_is_refused_with_what_it_has(machine):
    with pytest.raises(DlcalcError, match=rf"{machine} has no bf16; it has fp32, fp16"):
        best(machine, "bf16")


def test_what_stays_in_sixteen_bits_is_fp16_there():
    """The LM head and attention of an fp32 run, which are bf16 elsewhere."""
    one = dlcalc.estimate(MODEL, "v100_32gb", precision="fp32", **RECIPE, tp=8, pp=2, dp=4)
    assert math.isfinite(one.step_time_s)
    assert (
        one.step_time_s
        > 2 * dlcalc.estimate(MODEL, "v100_32gb", precision="fp16", **RECIPE, tp=8, pp=2, dp=4).step_time_s
    )


def test_nothing_is_offloaded_to_a_memory_that_is_the_devices_own():
    plan = {"tp": 4, "dp": 2}
    assert not dlcalc.estimate(MODEL, "mi300a", **RECIPE, **plan).refused
    for knob, why in (
        ({"offload_optimizer": True}, "the optimizer's states have no other memory to go to"),
        ({"offload_layers": 4}, "activations have no other memory to go to"),
    ):
        assert why in dlcalc.estimate(MODEL, "mi300a", **RECIPE, **plan, **knob).refused
        assert why not in dlcalc.estimate(MODEL, "mi300x", **RECIPE, **plan, **knob).refused
