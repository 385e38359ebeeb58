"""Intervals of step times by regime."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.uncertainty import joint_spread, step_time_interval_factors
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.uncertainty import Spread, Uncertainty, load_uncertainty

NONE = Spread(shorter=0.0, longer=0.0)
UNCERTAINTY = Uncertainty(
    coverage=0.8,
    base=Spread(shorter=0.1, longer=0.2),
    across_nodes=NONE,
    moe=NONE,
    low_precision=NONE,
    unmeasured_device=NONE,
    provenance="made up",
)
H100 = HardwareRegistry().load("h100")


def factors(uncertainty=UNCERTAINTY, *, model="llama3-8b", precision="bf16", hardware=H100, **plan):
    recipe = Recipe(seq_len=4096, global_batch=64, precision=precision, framework=load_framework("megatron"))
    plans = Plans.point(**plan)
    return step_time_interval_factors(load_model(model), hardware, recipe, plans, uncertainty)


def test_the_base_spread_alone_is_the_interval_of_a_plain_run():
    low, high = factors(dp=8)
    assert float(low) == pytest.approx(0.9)
    assert float(high) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("part", "applies"),
    [
        ("across_nodes", {"dp": 16}),
        ("moe", {"model": "qwen3-30b-a3b", "dp": 8}),
        ("low_precision", {"precision": "fp8", "dp": 8}),
        (
            "unmeasured_device",
            {
                "hardware": H100.model_copy(
                    update={"calibration": H100.calibration.model_copy(update={"measured": False})}
                )
            },
        ),
    ],
)
def test_each_regime_widens_both_sides(part, applies):
    wider = UNCERTAINTY.model_copy(update={part: Spread(shorter=0.3, longer=0.5)})
    low, high = factors(wider, **applies)
    assert float(low) == pytest.approx(math.exp(-math.hypot(math.log(0.9), math.log(0.7))))
    assert float(high) == pytest.approx(math.exp(math.hypot(math.log(1.2), math.log(1.5))))
    assert [float(side) for side in factors(wider, dp=8)] == pytest.approx([0.9, 1.2])


def test_the_interval_follows_the_devices_of_every_plan():
    wider = UNCERTAINTY.model_copy(update={"across_nodes": Spread(shorter=0.3, longer=0.5)})
    recipe = Recipe(seq_len=4096, global_batch=64, precision="bf16", framework=load_framework("megatron"))
    plans = Plans.rows({**{knob: [1.0, 1.0] for knob in Plans.point().columns()}, "dp": [8.0, 9.0]})
    low, high = step_time_interval_factors(load_model("llama3-8b"), H100, recipe, plans, wider)
    assert low[0] > low[1]
    assert high[0] < high[1]


def test_independent_spreads_add_in_squares():
    assert float(joint_spread([(3.0, True), (4.0, True), (12.0, False)])) == pytest.approx(5.0)
    assert joint_spread([(3.0, True), (4.0, np.array([True, False]))]) == pytest.approx([5.0, 3.0])


def test_the_shipped_intervals_contain_the_estimate():
    shipped = load_uncertainty()
    assert 0.75 <= shipped.coverage <= 0.9
    low, high = factors(shipped, dp=8)
    assert float(low) < 1 < float(high)
    assert float(high) / float(low) < 2  # an interval wider than that says nothing
