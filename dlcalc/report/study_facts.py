"""What ``dlcalc-report`` says of a study, as plain data: printed, drawn, and the object of ``--json``.

Base units throughout; None where a thing is not known or does not apply. Plans are mappings of every knob, as
``report.plan_words`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlcalc.costmodel.prediction import Prediction
from dlcalc.report.run_facts import Citation

Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class PlanPoint:
    """A plan in a chart."""

    plan: Knobs
    step_time_s: float
    mfu: float
    memory_bytes: float


@dataclass(frozen=True)
class PlanFacts(Prediction):
    """A plan that the report looks at closely."""

    rank: int
    plan: Knobs
    hfu: float
    headroom_bytes: float
    """Free: usable memory less ``memory_bytes``."""
    days: float | None
    cost_usd: float | None
    time_s: Mapping[str, float]
    """Terms of the step; their sum is the step as estimated by this version."""
    memory_terms_bytes: Mapping[str, float]
    """Terms on the fullest device."""


@dataclass(frozen=True)
class ScenarioFacts:
    """What the plans are for."""

    name: str
    model: str
    hardware: str
    hardware_description: str
    devices: int
    precision: str
    framework: str
    seq_len: int
    global_batch: int
    mfu_convention: str
    token_budget: float | None
    usd_per_device_hour: float | None
    usable_bytes: float
    """Memory of one device."""
    limit_bytes: float
    """What a plan may need: usable memory less what the study keeps free."""
    memory_headroom: float
    n_plans: int
    n_fit: int


@dataclass(frozen=True)
class TermDifference:
    """One term of two plans' steps."""

    term: str
    plan_s: float
    other_s: float

    @property
    def more_s(self) -> float:
        """What the plan spends beyond the other one."""
        return self.plan_s - self.other_s


@dataclass(frozen=True)
class Why:
    """A plan against another one: what it trades."""

    other: PlanFacts
    is_runner_up: bool
    """Whether ``other`` is the best plan of another mesh; else it is the best plan of all."""
    terms: tuple[TermDifference, ...]
    """Those that differ most first."""


@dataclass(frozen=True)
class Density:
    """How many plans lie where, in cells of equal size. ``counts[row][column]``: row by MFU, column by memory."""

    memory_step_bytes: float
    mfu_step: float
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Cloud:
    """Memory against MFU over all rows of the scenario."""

    n_rows: int
    n_fit: int
    """Rows that fit; others are kept by ``--keep all`` alone."""
    n_beyond: int
    """Rows that need so much memory that they lie outside of the cells."""
    front: tuple[PlanPoint, ...]
    """Plans that no other plan beats in both, by memory: exact."""
    points: tuple[PlanPoint, ...]
    """Every row, where there are few; else none."""
    density: Density | None
    """Where there are too many to draw each."""


@dataclass(frozen=True)
class MeshCell:
    """All plans of one tp and pp."""

    tp: int
    pp: int
    n_rows: int
    best: PlanPoint
    """The fastest that fits, over all other knobs: exact."""


@dataclass(frozen=True)
class ScenarioBest:
    """A scenario's fastest plan, beside those of the other scenarios."""

    name: str
    model: str
    hardware: str
    devices: int
    precision: str
    framework: str
    seq_len: int
    global_batch: int
    n_plans: int
    n_fit: int
    plan: Knobs | None
    """None: nothing fits."""
    step_time_s: float | None = None
    step_time_low_s: float | None = None
    step_time_high_s: float | None = None
    mfu: float | None = None
    tokens_per_s: float | None = None
    memory_bytes: float | None = None
    days: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class WhatIf:
    """The scenario with one quantity of its hardware larger."""

    what: str
    unit: str
    before: float
    after: float
    same_plan_step_s: float
    """Of the plan that is best as things are."""
    best: PlanPoint | None
    """The fastest plan then; None where the space was not searched again."""
    is_same_plan: bool
    n_fit: int | None


@dataclass(frozen=True)
class Sensitivity:
    """What 10 % more of a quantity would give."""

    factor: float
    plan: PlanPoint
    """The best plan as things are, without placement."""
    rows: tuple[WhatIf, ...]
    n_plans: int
    """Searched for each row."""
    seconds: float
    is_searched: bool
    """False: the space is too large to be searched again in time, so only the plan itself was estimated anew."""


@dataclass(frozen=True)
class Refusals:
    """Why plans were refused; a plan may be counted under several reasons."""

    n_plans: int
    n_refused: int
    reasons: Mapping[str, int]
    nearest_misses: tuple[Mapping[str, Any], ...]
    """Where nothing fits: the plans that need the least memory."""


@dataclass(frozen=True)
class Source:
    """A number that the estimates rest on, and where it was read."""

    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Provenance:
    """What made the result and this report."""

    result: str
    status: str
    result_version: str
    report_version: str
    space_text: str
    space_sha256: str
    settings: Mapping[str, Any]
    hardware: tuple[Source, ...]
    calibration: str
    is_measured: bool
    uncertainty: str
    framework: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True)
class StudyFacts:
    """Everything the report says."""

    study: str
    scenario: ScenarioFacts
    notes: tuple[str, ...]
    plan: PlanFacts | None
    """The plan that the report is about; None: nothing fits."""
    coverage: float
    """Share of measured runs that fall into the interval of a step time."""
    why: Why | None
    n_within_2_percent: int
    """Rows within 2 % of the best, the best among them."""
    n_not_told_apart: int
    """Rows that may be faster than the best for all that is known, the best among them."""
    worth_measuring: tuple[Knobs, ...]
    top: tuple[PlanFacts, ...]
    """The best plans, the best of further meshes, and ``plan``; by rank."""
    cloud: Cloud | None
    heat: tuple[MeshCell, ...]
    mesh_best: tuple[PlanPoint, ...]
    """The fastest plan of each mesh, the fastest meshes first."""
    n_meshes: int
    scenarios: tuple[ScenarioBest, ...]
    sensitivity: Sensitivity | None
    refusals: Refusals
    placed: str | None
    """The fabric that the top plans are placed on."""
    provenance: Provenance
