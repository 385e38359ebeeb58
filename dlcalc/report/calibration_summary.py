"""What a calibration did, as plain data: the JSON object of dlcalc-calibrate, and what its tables show.

Errors are estimated over measured step time, minus one.
"""

from __future__ import annotations

from typing import TypedDict


class ErrorFigures(TypedDict):
    """Absolute relative errors of the runs together."""

    median: float
    worst: float


class RunRow(TypedDict):
    """One fitted run."""

    where: str
    case: str
    plan: str
    measured_s: float
    before_s: float
    after_s: float
    error_before: float
    error_after: float
    error_left_out: float | None
    """With constants from the runs of other settings alone."""


class LeftOutRow(TypedDict):
    """One run that is not fitted."""

    where: str
    case: str
    reason: str
    contradicts: bool
    """Whether it contradicts the hardware or another run."""


class ConstantRow(TypedDict):
    """One constant, as it was and as it is now."""

    kind: str
    owner: str
    key: str
    before: float
    after: float
    moved: bool
    from_runs: float
    """Share of what is known of it that comes from these runs, 0 to 1."""
    at_bound: bool
    meaning: str


class CalibrationSummary(TypedDict):
    """All that was fitted."""

    files: list[str]
    hardware: str
    frameworks: list[str]
    runs: int
    before: ErrorFigures
    after: ErrorFigures
    left_out: ErrorFigures | None
    """Each run estimated with constants from the others; None below three runs."""
    constants: list[ConstantRow]
    fitted_runs: list[RunRow]
    not_fitted: list[LeftOutRow]
    remarks: list[str]
    hardware_file: str | None
    framework_files: dict[str, str]
    """By name of the profile: the file with its moved constants."""
    seconds: float
