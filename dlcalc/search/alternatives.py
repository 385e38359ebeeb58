"""Other plans for the same run: for every number of changes, the fastest plan that many changes away, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import KNOBS, code_of, value_of, written_of
from dlcalc.search.exhaustive import BLOCK_PLANS, search_block
from dlcalc.search.run import Run
from dlcalc.search.space import Scenario, axes_of
from dlcalc.specs.space import KnobRanges

Knobs = Mapping[str, int | bool | str]
Columns = Mapping[str, NDArray[np.generic]]

CHOICES = (
    ("tp",),
    ("cp",),
    ("pp",),
    ("ep",),
    ("etp",),
    ("schedule", "vpp"),
    ("split",),
    ("micro_batch",),
    ("recompute", "recompute_layers"),
    ("zero_stage",),
    ("dp_replicate",),
    ("sequence_parallel",),
    ("overlap_grad", "overlap_param"),
    ("overlap_tp",),
    ("overlap_ep",),
    ("cp_exchange",),
    ("offload_optimizer",),
    ("offload_layers",),
)
"""What counts as one change: knobs that users set together. dp is what the other degrees leave."""


@dataclass(frozen=True)
class Alternative:
    """A plan that runs and fits, and how far it is from the one that was asked about."""

    knobs: Knobs
    step_time_s: float
    memory_bytes: float
    n_changes: int


def scenario_around(run: Run, ranges: KnobRanges | None = None, constraints: Sequence[str] = ()) -> Scenario:
    """Every plan of ``ranges`` for the model, machine, devices and recipe of ``run``, its own values among them."""
    around = ranges_around(run, ranges or KnobRanges())
    return Scenario(
        name=run.name,
        model=run.model,
        hardware=run.hardware,
        devices=run.devices,
        recipe=run.recipe,
        axes=axes_of(run.model, run.hardware, run.devices, run.recipe, around),
        constraints=tuple(constraints),
        memory_headroom=run.memory_headroom,
        custom_split=run.custom_split,
    )


def ranges_around(run: Run, wanted: KnobRanges) -> KnobRanges:
    """The values of ``wanted``, written out, and those of ``run`` beside them; dp is what the other degrees leave."""
    offered: dict[str, Any] = {}
    for axis in axes_of(run.model, run.hardware, run.devices, run.recipe, wanted):
        for knob, values in axis.items():
            own = float(getattr(run.plan, knob))
            offered[knob] = tuple(written_of(knob, value) for value in sorted({*values.tolist(), own}))
    return KnobRanges(**{**offered, "dp": wanted.dp})


def alternatives(scenario: Scenario, knobs: Knobs) -> tuple[Alternative, ...]:
    """For each number of changes from ``knobs`` that any plan needs, the fastest plan so far away, nearest first.

    The plan itself is the one of no changes, where it runs and fits. Empty where nothing fits.
    """
    best: dict[int, Alternative] = {}

    def look(columns: Columns) -> None:
        count = n_changes(columns, knobs)
        step_time_s = columns["step_time_s"]
        for changes in np.unique(count).tolist():
            near = np.flatnonzero(count == changes)
            row = int(near[np.argmin(step_time_s[near])])
            known = best.get(changes)
            if known is None or step_time_s[row] < known.step_time_s:
                best[changes] = _at(columns, row, changes)

    for start, stop in scenario.blocks(BLOCK_PLANS):
        search_block(scenario, start, stop, keep=1, rows=look, what="feasible")
    return tuple(best[changes] for changes in sorted(best))


def n_changes(columns: Columns, knobs: Knobs) -> NDArray[np.int64]:
    """How many choices of each row differ from ``knobs``."""
    count = np.zeros(len(columns["tp"]), dtype=np.int64)
    for choice in CHOICES:
        differs = np.zeros(len(count), dtype=np.bool_)
        for knob in choice:
            differs |= columns[knob] != code_of(knob, knobs[knob])
        if choice == ("cp_exchange",):
            differs &= (columns["cp"].astype(float) > 1) & (float(knobs["cp"]) > 1)  # else it means nothing
        count += differs
    return count


def changed(before: Knobs, after: Knobs) -> tuple[str, ...]:
    """Knobs whose values differ; what context-parallel ranks exchange, where both plans have such."""
    unshared = before["cp"] == 1 or after["cp"] == 1
    return tuple(knob for knob in KNOBS if before[knob] != after[knob] and not (knob == "cp_exchange" and unshared))


def _at(columns: Columns, row: int, changes: int) -> Alternative:
    return Alternative(
        knobs={knob: value_of(knob, float(columns[knob][row])) for knob in KNOBS},
        step_time_s=float(columns["step_time_s"][row]),
        memory_bytes=float(columns["memory_bytes"][row]),
        n_changes=changes,
    )
