"""Estimates of measured runs, and how they compare: row by row, by source and by sweep."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dlcalc.costmodel.constraints import NOT_CHOSEN
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.plans import KNOBS, Array, Plans
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.errors import DlcalcError
from dlcalc.specs.uncertainty import Uncertainty
from dlcalc.utils.units import GIB
from dlcalc.validation import metrics
from dlcalc.validation.metrics import ErrorStats, MemoryVerdicts
from dlcalc.validation.rows import MeasuredRun
from dlcalc.validation.runs import MemoryKind, RunReader, RunSetting

SWEEP_KEYS = ("source", "model", "hardware", "gpus", "seq_len", "global_batch")
"""Rows that agree in these differ in their plan."""
BUG = "a bug of dlcalc"
"""How the reason of a row begins that an exception of ours refused."""
FEWEST_PLANS = 3
"""Timed plans that make a sweep."""
PREDICTION_COLUMNS = (
    "case",
    "predicted_step_time_s",
    "predicted_step_time_low_s",
    "predicted_step_time_high_s",
    "predicted_memory_gib",
    "predicted_fits",
    "refused_reason",
)


@dataclass(frozen=True)
class Comparison:
    """A measured run beside its estimate; None where there is none."""

    run: MeasuredRun
    setting: RunSetting | None
    step_time_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    memory_gib: float | None = None
    """Of the kind that the row measured: allocated, reserved, or everything on the device."""
    fits: bool | None = None
    """Whether the whole footprint does; other refusals do not count, since a run that was measured did run."""
    reason: str = ""
    """Why there is no estimate, or what refuses the plan."""

    @property
    def is_timed(self) -> bool:
        """Whether there are two step times to compare."""
        return self.step_time_s is not None and self.run.measured_step_time_s is not None

    @property
    def time_error(self) -> float:
        """Estimated over measured step time, minus one; only where it is timed."""
        return (self.step_time_s or math.nan) / (self.run.measured_step_time_s or math.nan) - 1.0

    @property
    def memory_error(self) -> float | None:
        """Estimated over measured peak, minus one."""
        measured = self.run.measured_memory_gib
        return None if measured is None or self.memory_gib is None else self.memory_gib / measured - 1.0


# ---- estimates


def compare_runs(runs: Sequence[MeasuredRun], reader: RunReader, uncertainty: Uncertainty) -> list[Comparison]:
    """One comparison per run, in order. Rows that differ in their plan alone are estimated together."""
    compared: list[Comparison | None] = [None] * len(runs)
    groups: dict[Hashable, list[tuple[int, RunSetting]]] = {}
    for position, run in enumerate(runs):
        try:
            setting = reader.setting(run)
        except DlcalcError as error:
            compared[position] = Comparison(run, None, reason=" ".join(str(error).split()))
        else:
            groups.setdefault(setting.group, []).append((position, setting))
    for members in groups.values():
        settings = [setting for _, setting in members]
        for (position, setting), row in zip(members, _rows_of(settings, uncertainty), strict=True):
            compared[position] = _comparison(runs[position], setting, row)
    return [found for found in compared if found is not None]


def _rows_of(settings: Sequence[RunSetting], uncertainty: Uncertainty) -> list[_Row | str]:
    """Estimates of settings that share all but their plan.

    A row that breaks the cost model is our bug. Its reason says so, and the hundreds of other rows are not lost for it.
    """
    try:
        return list(_estimates(settings, uncertainty))
    except Exception as error:
        if len(settings) == 1:
            return [f"{BUG}: {type(error).__name__}: {error}"]
        return [row for setting in settings for row in _rows_of([setting], uncertainty)]


@dataclass(frozen=True)
class _Row:
    """One plan's numbers, as they come out of the cost model."""

    step_time_s: float
    low_factor: float
    high_factor: float
    peak_bytes: Mapping[MemoryKind, float]
    capacity_bytes: float
    refused: tuple[str, ...]


def _estimates(settings: Sequence[RunSetting], uncertainty: Uncertainty) -> list[_Row]:
    """Estimates of settings that share all but their plan."""
    first = settings[0]
    with np.errstate(all="ignore"):  # nonsense shows in the numbers
        return _estimates_of(first, settings, uncertainty)


def _estimates_of(first: RunSetting, settings: Sequence[RunSetting], uncertainty: Uncertainty) -> list[_Row]:
    columns = {knob: [float(getattr(setting.plan, knob)) for setting in settings] for knob in KNOBS}
    plans = Plans.rows(columns)
    found = estimate(first.model, first.hardware, first.recipe, plans, custom_split=first.custom_split)
    low, high = step_time_interval_factors(first.model, first.hardware, first.recipe, plans, uncertainty)
    n = len(settings)
    times, lows, highs = (np.broadcast_to(array, n) for array in (found.step_time_s, low, high))
    peaks: dict[MemoryKind, Array] = {
        kind: np.broadcast_to(peak, n) for kind, peak in peak_bytes_by_kind(found).items()
    }
    refused = {reason: np.broadcast_to(mask, n) for reason, mask in found.refused.items() if reason not in NOT_CHOSEN}
    return [
        _Row(
            step_time_s=float(times[row]),
            low_factor=float(lows[row]),
            high_factor=float(highs[row]),
            peak_bytes={kind: float(peak[row]) for kind, peak in peaks.items()},
            capacity_bytes=found.capacity_bytes,
            refused=tuple(reason for reason, mask in refused.items() if mask[row]),
        )
        for row in range(n)
    ]


def peak_bytes_by_kind(found: Estimate) -> dict[MemoryKind, Array]:
    """The peak as tools report it: allocated is without slack of the allocator, reserved without the driver's share."""
    footprint = found.footprint
    return {
        "device": found.memory_bytes,
        "reserved": footprint.reserved_bytes,
        "allocated": footprint.allocated_bytes,
    }


def _comparison(run: MeasuredRun, setting: RunSetting, row: _Row | str) -> Comparison:
    if isinstance(row, str):
        return Comparison(run, setting, reason=row)
    reasons = list(row.refused)
    step_time_s: float | None = row.step_time_s
    if not (math.isfinite(row.step_time_s) and row.step_time_s > 0):
        step_time_s = None
        reasons.append("the estimate of its time is no number")
    peak = row.peak_bytes["device"]
    fits = peak <= row.capacity_bytes if math.isfinite(peak) else None
    if fits is False:
        reasons.append(f"needs {peak / GIB:.1f} GiB of {row.capacity_bytes / GIB:.1f} GiB")
    return Comparison(
        run=run,
        setting=setting,
        step_time_s=step_time_s,
        low_s=None if step_time_s is None else step_time_s * row.low_factor,
        high_s=None if step_time_s is None else step_time_s * row.high_factor,
        memory_gib=None if fits is None else row.peak_bytes[setting.memory_kind] / GIB,
        fits=fits,
        reason="; ".join(reasons),
    )


# ---- predictions as a file


def write_predictions(path: Path, compared: Iterable[Comparison]) -> None:
    """One row per run, in order."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(PREDICTION_COLUMNS)
            writer.writerows(_prediction(one) for one in compared)
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be written: {error.strerror}") from error


def _prediction(one: Comparison) -> list[str]:
    numbers = (one.step_time_s, one.low_s, one.high_s, one.memory_gib)
    return [
        one.run.fields.get("case", ""),
        *("" if number is None else f"{number:.7g}" for number in numbers),
        "" if one.fits is None else str(one.fits).lower(),
        one.reason,
    ]


# ---- summaries


@dataclass(frozen=True)
class Sweep:
    """Plans measured under equal conditions."""

    name: Mapping[str, str]
    n_timed: int
    n_out_of_memory: int
    spearman: float
    regret_at_1: float
    regret_at_3: float
    choices_out_of_memory: int


@dataclass(frozen=True)
class Scores:
    """How a set of runs compares."""

    name: str
    n_runs: int
    n_estimated: int
    time: ErrorStats
    memory: ErrorStats
    verdicts: MemoryVerdicts
    coverage: float
    """Share of timed runs inside their interval."""
    sweeps: tuple[Sweep, ...] = field(default=())

    def mean_over_sweeps(self, what: str) -> float:
        """Mean of a figure of every sweep, NaN aside."""
        values = [float(getattr(sweep, what)) for sweep in self.sweeps]
        known = [value for value in values if math.isfinite(value)]
        return float(np.mean(known)) if known else math.nan


def scores(name: str, compared: Sequence[Comparison]) -> Scores:
    """Every figure of one set of runs."""
    timed = [one for one in compared if one.is_timed]
    verdicts = [(one.run.out_of_memory, one.fits) for one in compared]
    known = [(out, fits) for out, fits in verdicts if out is not None and fits is not None]
    memory = [one.memory_error for one in compared]
    return Scores(
        name=name,
        n_runs=len(compared),
        n_estimated=sum(one.step_time_s is not None for one in compared),
        time=metrics.error_stats([one.time_error for one in timed]),
        memory=metrics.error_stats([error for error in memory if error is not None]),
        verdicts=metrics.memory_verdicts([out for out, _ in known], [fits for _, fits in known]),
        coverage=metrics.coverage(
            [one.low_s or math.nan for one in timed],
            [one.high_s or math.nan for one in timed],
            [one.run.measured_step_time_s or math.nan for one in timed],
        ),
        sweeps=tuple(sweeps(compared)),
    )


def scores_by_source(compared: Sequence[Comparison]) -> list[Scores]:
    """Scores of each source, in the order the sources appear."""
    by_source: dict[str, list[Comparison]] = {}
    for one in compared:
        by_source.setdefault(one.run.source, []).append(one)
    return [scores(source, members) for source, members in by_source.items()]


def sweeps(compared: Iterable[Comparison]) -> list[Sweep]:
    """Every group of runs that differ in their plan, with at least three of them timed."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for one in compared:
        if one.step_time_s is not None and (one.is_timed or one.run.out_of_memory):
            groups.setdefault(tuple(one.run.text(key) for key in SWEEP_KEYS), []).append(one)
    return [
        _sweep(dict(zip(SWEEP_KEYS, key, strict=True)), members)
        for key, members in groups.items()
        if sum(one.is_timed for one in members) >= FEWEST_PLANS
    ]


def _sweep(name: Mapping[str, str], members: Sequence[Comparison]) -> Sweep:
    timed = [one for one in members if one.is_timed]
    regret = metrics.regret(
        [one.step_time_s or math.nan for one in members],
        [one.fits is not False for one in members],
        [one.run.measured_step_time_s or math.nan if one.is_timed else math.nan for one in members],
    )
    return Sweep(
        name=name,
        n_timed=len(timed),
        n_out_of_memory=len(members) - len(timed),
        spearman=metrics.spearman(
            [one.step_time_s or math.nan for one in timed], [one.run.measured_step_time_s or math.nan for one in timed]
        ),
        regret_at_1=regret.at_1,
        regret_at_3=regret.at_3,
        choices_out_of_memory=regret.choices_out_of_memory,
    )


def remark_counts(compared: Iterable[Comparison]) -> list[tuple[str, int]]:
    """What was taken for something else, and in how many rows, most first."""
    return Counter(remark for one in compared if one.setting for remark in one.setting.remarks).most_common()


def unestimated_counts(compared: Iterable[Comparison]) -> list[tuple[str, int]]:
    """Why rows have no estimate, most first."""
    return Counter(one.reason for one in compared if one.step_time_s is None).most_common()


def refusal_counts(compared: Iterable[Comparison]) -> list[tuple[str, int]]:
    """Rules of the cost model, memory apart, that runs break which did run, most first."""
    broken = (
        reason
        for one in compared
        if one.step_time_s is not None and one.run.out_of_memory is not True
        for reason in one.reason.split("; ")
        if reason and not reason.startswith("needs ")
    )
    return Counter(broken).most_common()
