"""What a comparison of searched studies says, as one object: printed, drawn on a page, and the document of ``--json``.

Built by ``workflows.compare`` and read by programs: names here are an interface. Base units throughout, but for US
dollars and days. None where a thing is not known or does not apply. Nothing between studied device counts is
interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

ObjectiveName = Literal["tokens_per_dollar", "step_time", "days", "energy"]
Axis = Literal["hardware", "model", "devices", "precision"]
Verdict = Literal["within", "perhaps", "beyond"]
"""Of a limit: the whole interval is within it; the estimate is, but not the upper end of its interval; neither is."""


@dataclass(frozen=True)
class Range:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Objective:
    """What makes a plan the best one."""

    name: ObjectiveName
    words: str
    largest: bool
    """Whether more of it is better."""
    why: str = ""
    """Why it was chosen, where the user named none."""


OBJECTIVES: Mapping[str, Objective] = {
    "tokens_per_dollar": Objective("tokens_per_dollar", "tokens per dollar", largest=True),
    "step_time": Objective("step_time", "step time", largest=False),
    "days": Objective("days", "days to the token budget", largest=False),
    "energy": Objective("energy", "energy to the token budget", largest=False),
}


@dataclass(frozen=True)
class MachineInputs:
    """What the cost and the energy of a machine rest on."""

    machine: str
    usd_per_device_hour: float | None
    price_source: str
    watts_per_device: float | None
    """With the share of its host, where that is known or the user's power includes it."""
    host_watts_per_device: float | None
    """That share; None where the power is the device's alone, or the user's."""
    power_source: str
    is_measured: bool
    """Whether its calibration rests on measured kernels; else on a relative's, with wider intervals."""


@dataclass(frozen=True)
class Failures:
    """What the user said of failures and checkpoints."""

    device_failure_interval_s: float
    """Mean time between failures of one device, whatever of a job they end."""
    checkpoint_write_s: float
    restart_s: float


@dataclass(frozen=True)
class Goodput:
    """What failures cost one job."""

    failure_interval_s: float
    """Mean time between failures of the whole job."""
    checkpoint_interval_s: float
    """Work between checkpoints that loses least."""
    first_order_checkpoint_interval_s: float
    """The same by Young's formula."""
    goodput_fraction: float
    """Work over expected wall clock: 1 where nothing fails, 0 where the job makes no progress."""
    makes_progress: bool
    """Whether the job fails less often than a restart and a checkpoint take."""


@dataclass(frozen=True)
class Candidate:
    """The best plan of one scenario. Days, cost and energy are those expected with failures, where they were given."""

    result: str
    """Directory of the study."""
    scenario: str
    model: str
    machine: str
    """The hardware's name, with the study's where two studies mean different machines by it."""
    hardware: str
    devices: int
    precision: str
    framework: str
    seq_len: int
    global_batch: int
    n_plans: int
    n_fit: int
    plan: Mapping[str, int | bool | str]
    placed_on: str | None
    """The fabric, where the plan is the best one as placed."""
    step_time_s: Range
    time_s: Mapping[str, float]
    """Terms of the step, whose sum is the step."""
    mfu: float
    hfu: float
    mfu_convention: str
    tokens_per_s: Range
    tokens_per_s_per_device: Range
    memory_bytes: float
    headroom_bytes: float
    """Usable memory of a device less memory_bytes."""
    goodput: Goodput | None
    tokens: float | None
    """The token budget."""
    days: Range | None
    cost_usd: Range | None
    energy_j: Range | None
    tokens_per_usd: Range | None
    tokens_per_j: Range | None
    within_budget: Verdict | None = None
    within_deadline: Verdict | None = None

    @property
    def tokens_per_step(self) -> float:
        return float(self.seq_len) * self.global_batch

    @property
    def name(self) -> str:
        return f"{self.devices:,} {self.machine}, {self.precision}"

    def value(self, objective: ObjectiveName) -> Range | None:
        """What is compared; None where it is not known."""
        return {
            "tokens_per_dollar": self.tokens_per_usd,
            "step_time": self.step_time_s,
            "days": self.days,
            "energy": self.energy_j,
        }[objective]

    def axis(self, axis: Axis) -> str | int:
        """Its place on an axis of the comparison."""
        values: Mapping[Axis, str | int] = {
            "hardware": self.machine,
            "model": self.model,
            "devices": self.devices,
            "precision": self.precision,
        }
        return values[axis]


@dataclass(frozen=True)
class NothingFits:
    """A scenario of which no plan fits."""

    result: str
    scenario: str
    model: str
    machine: str
    devices: int
    precision: str
    n_plans: int
    nearest: str | None
    """The nearest miss, in words."""


@dataclass(frozen=True)
class TermFactor:
    """What one term of the step has to do with a factor. Device-seconds per token, before and after."""

    term: str
    before_s: float
    after_s: float
    factor: float
    """Of all terms they multiply to the factor of the change."""


@dataclass(frozen=True)
class Factor:
    """One reason of a difference."""

    what: Literal["machine", "recipe", "plan", "devices", "price", "power", "tokens", "goodput"]
    change: str
    """From the other to the winner, in words."""
    factor: float
    """Above 1 where it speaks for the winner."""
    terms: tuple[TermFactor, ...] = ()
    """Of the step, largest effect first; empty where the change is not one of the step."""


@dataclass(frozen=True)
class Difference:
    """Why one candidate beats another: the factors multiply to ``ratio``."""

    winner: str
    other: str
    ratio: float
    """How much better the winner is, in the objective; above 1."""
    told_apart: bool
    """Whether their intervals leave no doubt which is better."""
    factors: tuple[Factor, ...]
    as_if: str | None = None
    """What could not run on the way from one to the other, and was estimated as if it did."""


@dataclass(frozen=True)
class Group:
    """The best of all candidates that share what is compared by."""

    rank: int
    key: Mapping[str, str | int]
    best: Candidate
    n_scenarios: int
    difference: Difference | None
    """From the first group; None for the first."""


@dataclass(frozen=True)
class Curve:
    """One machine in one precision over the studied device counts, of which it fits on these."""

    machine: str
    precision: str
    points: tuple[Candidate, ...]
    scaling: tuple[float, ...]
    """Tokens/s per device over that of the smallest count."""
    does_not_fit: tuple[int, ...]
    """Studied device counts on which no plan fits."""


@dataclass(frozen=True)
class Winner:
    """The best of all machines and precisions at one device count."""

    devices: int
    best: Candidate
    runner_up: Candidate | None
    difference: Difference | None
    """From the runner-up."""


@dataclass(frozen=True)
class Change:
    """Two neighbouring studied device counts with different winners."""

    devices_before: int
    devices_after: int
    before: str
    after: str


@dataclass(frozen=True)
class Choice:
    """The answer to a question with a limit."""

    question: Literal["fastest", "cheapest", "smallest"]
    limits: str
    """In words, such as ``within $1.00 M and in 30 days``."""
    best: Candidate | None
    nearest_miss: Candidate | None
    """Where nothing is within the limits."""
    over_factor: float | None
    """How many times the limit the nearest miss takes."""
    n_within: int
    n_candidates: int


@dataclass(frozen=True)
class Section:
    """All that is said of one model."""

    model: str
    groups: tuple[Group, ...]
    candidates: tuple[Candidate, ...]
    """All of them, best first."""
    nothing_fits: tuple[NothingFits, ...]
    curves: tuple[Curve, ...]
    winners: tuple[Winner, ...]
    changes: tuple[Change, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class CompareFacts:
    """A whole comparison."""

    results: tuple[str, ...]
    by: tuple[Axis, ...]
    objective: Objective
    coverage: float
    """Of all intervals."""
    pue: float
    """Energy of the site over that of its devices."""
    budget_usd: float | None
    deadline_days: float | None
    failures: Failures | None
    inputs: tuple[MachineInputs, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


def is_better(objective: Objective, value: float, other: float) -> bool:
    """Whether ``value`` is the better one."""
    return value > other if objective.largest else value < other


def compare_document(facts: CompareFacts) -> dict[str, Any]:
    """The object of ``--json``."""
    return asdict(facts)


def all_candidates(facts: CompareFacts) -> Sequence[Candidate]:
    """Every candidate, model by model, best first."""
    return [candidate for section in facts.sections for candidate in section.candidates]
