"""Layers of each pipeline chunk of one plan."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import SPLITS, first_layer_count, weighing_mtp_layers_count
from dlcalc.launch.job import PlanValues
from dlcalc.specs.model import ModelSpec


def chunk_layers(model: ModelSpec, plan: PlanValues, custom: tuple[int, ...] | None) -> tuple[int, ...]:
    """Layers of the pp x vpp chunks in the order a token passes them."""
    if plan.split == "custom" and custom is not None:
        return custom
    n_chunks = plan.pp * plan.vpp
    ends = first_layer_count(
        model.n_layers,
        np.arange(n_chunks + 1.0),
        n_chunks=float(n_chunks),
        split=float(SPLITS.index(plan.split)),
        mtp_layers=weighing_mtp_layers_count(model.mtp_layers, SCHEDULES.index(plan.schedule)),
    )
    return tuple(int(count) for count in np.diff(ends))
