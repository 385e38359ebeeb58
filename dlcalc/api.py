"""The Python interface: what the commands do, as functions.

import dlcalc

plan = dlcalc.estimate("llama3-70b", "h100", seq_len=8192, global_batch=1024, tp=4, pp=4, dp=16)
print(plan.step_time_s, plan.mfu, plan.memory_bytes, plan.time_s)

answer = dlcalc.search({"study": "mine", "model": "llama3-70b", "hardware": "h100", "cluster": {"devices": 256},
                        "recipe": {"seq_len": 8192, "global_batch": 1024}})
print(answer["scenarios"][0]["best"][0])
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.costmodel.estimate import estimate as estimate_plans
from dlcalc.costmodel.plans import KNOBS, NAMES, Plans
from dlcalc.errors import UnknownNameError
from dlcalc.hardware_registry import load_hardware
from dlcalc.report.summary import Summary
from dlcalc.search.space import default_profile_knobs
from dlcalc.search.study import resolved_recipes
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import RecipeSpec
from dlcalc.workflows.search import run_search
from dlcalc.workflows.search_summary import breakdown


@dataclass(frozen=True)
class PlanEstimate:
    """What the cost model says of one plan."""

    step_time_s: float
    mfu: float
    hfu: float
    tokens_per_s_per_device: float
    memory_bytes: float
    """Peak of the fullest device."""
    headroom_bytes: float
    """Free: usable memory of a device less that."""
    devices: int
    time_s: Mapping[str, float]
    """The step by what it is spent on; the values add up to ``step_time_s``."""
    memory_terms_bytes: Mapping[str, float]
    refused: tuple[str, ...]
    """Why the plan cannot run; empty if it can."""


def estimate(
    model: str | ModelSpec,
    hardware: str | HardwareSpec,
    *,
    seq_len: int,
    global_batch: int,
    precision: Precision = "bf16",
    framework: str = "megatron",
    **knobs: float | str | bool,
) -> PlanEstimate:
    """Time, memory and refusals of one plan.

    ``knobs`` are those of a space file (tp, pp, dp, micro_batch, recompute, ...). Those not named take the framework's
    default, or the value that changes nothing.
    """
    for knob, value in knobs.items():
        if knob not in KNOBS:
            raise UnknownNameError("knob", knob, KNOBS)
        if isinstance(value, str) and value not in NAMES.get(knob, ()):
            raise UnknownNameError(knob, value, NAMES.get(knob, ()))
    spec = load_model(model) if isinstance(model, str) else model
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    (recipe,) = resolved_recipes(
        RecipeSpec(seq_len=seq_len, global_batch=global_batch, precision=(precision,), framework=framework)
    )
    recipe = recipe.on(machine)
    plans = Plans.point(**{**default_profile_knobs(recipe.framework), **knobs})
    found = estimate_plans(spec, machine, recipe, plans)
    terms = breakdown(found)
    memory = float(found.memory_bytes)
    reasons = [reason for reason, mask in found.refused.items() if bool(np.any(mask))]
    if memory > found.capacity_bytes:
        reasons.append(OUT_OF_MEMORY)
    return PlanEstimate(
        step_time_s=float(found.step_time_s),
        mfu=float(found.mfu),
        hfu=float(found.hfu),
        tokens_per_s_per_device=float(found.tokens_per_s_per_device),
        memory_bytes=memory,
        headroom_bytes=found.capacity_bytes - memory,
        devices=int(found.n_devices),
        time_s=terms["time_s"],
        memory_terms_bytes=terms["memory_bytes"],
        refused=tuple(reasons),
    )


def search(space: str | Path | Mapping[str, Any], *, out: str | Path | None = None, **options: Any) -> Summary:  # noqa: ANN401
    """Search a study, given as a file or as what would stand in one; ``options`` are those of ``run_search``.

    Rows are written only where ``out`` names a directory. Paths inside a mapping are relative to the working directory.
    """
    if isinstance(space, str | Path):
        if out is not None:
            return run_search(Path(space), out=out, **options)
        with tempfile.TemporaryDirectory() as folder:
            return {**run_search(Path(space), out=Path(folder) / "study", keep=1000, **options), "result": None}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_text(yaml.safe_dump(dict(space)), encoding="utf-8")
        return search(file, out=out, **options)
