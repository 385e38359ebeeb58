"""A plan that was run is written as a row that reads back as the same plan."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from dlcalc.costmodel.plans import value_of
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.exhaustive import search_block
from dlcalc.search.found import Found
from dlcalc.validation.rows import MeasuredRun, parse_extras
from dlcalc.validation.runs import RunReader
from dlcalc.validation.written import row_of_plan
from dlcalc.workflows.search_summary import LEADERS
from tests.scenarios import _scenario


@pytest.mark.parametrize("study", ["dense", "moe", "windowed"])
def test_the_best_plans_read_back(study):
    scenario = _scenario(study, "auto")
    found = Found()
    for start, stop in scenario.blocks(1 << 22):
        found.add(search_block(scenario, start, stop, keep=LEADERS), keep=LEADERS, key="step_time")
    plans = scenario.rows(found.leaders.index)
    reader = RunReader({}, HardwareRegistry())
    compared = 0
    for position in range(0, len(found.leaders.index), 7):
        knobs = {f.name: value_of(f.name, float(getattr(plans, f.name)[position])) for f in fields(plans)}
        if knobs["recompute_layers"] >= 0 and knobs["vpp"] > 1:
            continue  # a row counts layers of a chunk or of a stage, as its trainer does
        row = row_of_plan(
            scenario.model, scenario.hardware, scenario.recipe, knobs, source="s", case="c", step_time_s=1.5
        )
        setting = reader.setting(MeasuredRun(row, parse_extras(row["extras"])))
        read = {f.name: value_of(f.name, float(getattr(setting.plan, f.name))) for f in fields(plans)}
        if knobs["pp"] == 1:
            read["schedule"], read["split"] = knobs["schedule"], knobs["split"]
        assert read == knobs
        assert (setting.model, setting.hardware.name) == (scenario.model, scenario.hardware.name)
        assert setting.recipe.framework == scenario.recipe.framework
        compared += 1
    assert compared > 20


def test_a_cut_of_ones_own_is_written():
    scenario = _scenario("dense", "auto")
    knobs = {
        f.name: value_of(f.name, float(getattr(scenario.rows(np.array([0])), f.name)[0]))
        for f in fields(scenario.rows(np.array([0])))
    }
    knobs |= {"pp": 4, "dp": 4, "tp": 1, "split": "custom", "vpp": 1}
    row = row_of_plan(
        scenario.model, scenario.hardware, scenario.recipe, knobs,
        source="s", case="c", step_time_s=None, custom_split=(7, 9, 9, 7), out_of_memory=True,
    )  # fmt: skip
    setting = RunReader({}, HardwareRegistry()).setting(MeasuredRun(row, parse_extras(row["extras"])))
    assert setting.custom_split == (7, 9, 9, 7)
    assert row["oom"] == "1"
