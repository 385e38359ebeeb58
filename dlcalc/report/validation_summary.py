"""What a validation found, as plain data: the JSON object of dlcalc-validate, and what its tables and its page show.

Errors are fractions of the measured value; None where there is nothing to compare.
"""

from __future__ import annotations

from typing import TypedDict


class ErrorRow(TypedDict):
    """The distribution of relative errors; all but bias are of absolute values."""

    runs: int
    median: float | None
    mean: float | None
    p90: float | None
    worst: float | None
    bias: float | None
    """Median of the signed errors: positive where estimates are too high."""


class MemoryVerdictRow(TypedDict):
    """Whether plans ran out of memory, measured against estimated."""

    runs: int
    accuracy: float | None
    ran_and_fits: int
    ran_but_refused: int
    out_and_refused: int
    out_but_fits: int


class RankingRow(TypedDict):
    """How well plans are ranked, over sweeps."""

    sweeps: int
    spearman_mean: float | None
    spearman_worst: float | None
    regret_at_1_mean: float | None
    regret_at_1_worst: float | None
    regret_at_3_mean: float | None
    regret_at_3_worst: float | None
    choices_out_of_memory: int
    """Plans tried before the third that runs, and that ran out of memory."""


class SweepRow(TypedDict):
    """Plans measured under equal conditions."""

    source: str
    model: str
    hardware: str
    gpus: str
    seq_len: str
    global_batch: str
    timed: int
    out_of_memory: int
    spearman: float | None
    regret_at_1: float
    regret_at_3: float
    choices_out_of_memory: int


class ScoreRow(TypedDict):
    """One source, or all of them."""

    source: str
    runs: int
    estimated: int
    step_time: ErrorRow
    memory: ErrorRow
    out_of_memory: MemoryVerdictRow
    interval_coverage: float | None
    ranking: RankingRow


class Count(TypedDict):
    """Something said of several rows."""

    text: str
    runs: int


class ValidationSummary(TypedDict):
    """All that was compared."""

    files: list[str]
    runs: int
    estimated: int
    timed: int
    parts_of_a_step: int
    """Rows that timed less than a step, which are estimated and not compared."""
    interval: float
    """Share of runs that the interval aims to cover."""
    seconds: float
    overall: ScoreRow
    sources: list[ScoreRow]
    sweeps: list[SweepRow]
    not_estimated: list[Count]
    refused_though_they_ran: list[Count]
    remarks: list[Count]
    """What was taken for something else."""
    ignored_extras: list[str]
    extras_without_effect: list[str]
    ignored_model_keys: list[str]
    refused_models: list[str]


class Point(TypedDict):
    """One run of the plots."""

    case: str
    source: str
    measured_s: float | None
    estimated_s: float | None
    low_s: float | None
    high_s: float | None
    measured_gib: float | None
    estimated_gib: float | None
    knobs: dict[str, str]
    """Everything a run was free to choose, as text."""
