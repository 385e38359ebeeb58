"""The runs that constants are fitted to: in groups that are estimated together, and what each weighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.load import config_dir
from dlcalc.validation.runs import MeasuredRun, RunReader, RunSetting, read_models, read_runs
from dlcalc.validation.screening import UsableRun, disagreeing_runs
from dlcalc.validation.sources import known_sources

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that share everything but the plan, so that they are estimated together."""

    setting: RunSetting
    plans: Plans
    measured_s: Array
    sources: tuple[str, ...]
    models: tuple[str, ...]
    cases: tuple[str, ...]
    weight: Array


def usable(run: MeasuredRun) -> bool:
    """Whether a run's step time may be fitted: measured, of a whole model."""
    return bool(run.number("step_time_s")) and run.extras.get("scope") != "one_transformer_layer"


FEW_RUNS = 20
"""A source of fewer runs weighs by their number: three runs of one model say little, however far off they are."""

UNSURE_WEIGHT = 0.5
"""Of a run whose settings its source does not vouch for (trust=B)."""
UNKNOWN_SETTINGS = ("none", "other_release_layout")
"""Runs whose settings no recipe of their release says: scored, not fitted, whatever their error."""


def load() -> list[Group]:
    """The shipped runs that may be fitted, less those that another of the same setting contradicts."""
    folder = config_dir() / "measured"
    models, registry = read_models(folder / "models.yaml"), HardwareRegistry()
    runs = [run for file in sorted(folder.glob("*.csv")) for run in read_runs(file) if usable(run)]
    reader = RunReader(models, registry)
    read = [UsableRun(run, reader.setting(run), float(run.number("step_time_s") or 0.0)) for run in runs]
    contradicted = {id(one.run) for one in disagreeing_runs(read)}
    found: dict[str, list[tuple[MeasuredRun, RunSetting]]] = {}
    for one in read:
        if id(one.run) in contradicted:
            continue
        setting = one.setting
        key = repr(
            (
                setting.model,
                setting.hardware.name,
                setting.hardware.node,
                setting.hardware.fabric,
                setting.recipe,
                setting.custom_split,
            )
        )
        found.setdefault(key, []).append((one.run, setting))
    counts: dict[str, int] = {}
    for members in found.values():
        for run, _ in members:
            counts[run.source] = counts.get(run.source, 0) + 1
    groups = []
    for members in found.values():
        rows = {knob: np.array([float(getattr(setting.plan, knob)) for _, setting in members]) for knob in KNOBS}
        groups.append(
            Group(
                setting=members[0][1],
                plans=Plans.rows(rows),
                measured_s=np.array([run.number("step_time_s") for run, _ in members], dtype=float),
                sources=tuple(run.source for run, _ in members),
                models=tuple(run.text("model") for run, _ in members),
                cases=tuple(run.case for run, _ in members),
                weight=np.array([weight_of(run, counts) for run, _ in members]),
            )
        )
    return groups


def weight_of(run: MeasuredRun, counts: dict[str, int]) -> float:
    if run.extras.get("settings_match") in UNKNOWN_SETTINGS:
        return 0.0
    vouched = UNSURE_WEIGHT if run.extras.get("trust") == "B" else 1.0
    return float(max(counts[run.source], FEW_RUNS) ** -0.5 * known_sources()[run.source].weight * vouched)
