"""What is to be launched: one plan of one scenario, on machines with names. Data only.

Everything in ``dlcalc.launch`` turns a :class:`Job` into text. A trainer's part says what its processes are called with
(:class:`Emitted`); a scheduler's part says how a process gets onto every device. Neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Self

from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.costmodel.prediction import Prediction
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.target import Target


@dataclass(frozen=True)
class PlanValues:
    """One value for every knob, as people write them; what each means: ``results.schema``."""

    tp: int
    cp: int
    pp: int
    dp: int
    ep: int
    etp: int
    vpp: int
    schedule: str
    split: str
    micro_batch: int
    recompute: str
    recompute_layers: int
    """Per pipeline chunk; -1: all."""
    zero_stage: int
    dp_replicate: int
    sequence_parallel: bool
    overlap_grad: bool
    overlap_param: bool
    overlap_tp: bool
    overlap_ep: bool
    cp_exchange: str
    offload_optimizer: bool
    offload_layers: int

    @classmethod
    def of(cls, knobs: Mapping[str, float]) -> Self:
        """From the codes of a batch, or a row of a result."""
        return cls(**{knob: _value(knob, knobs[knob]) for knob in KNOBS})  # type: ignore[arg-type]

    @property
    def devices(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    def as_dict(self) -> dict[str, int | bool | str]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def _value(knob: str, value: float | str) -> int | bool | str:
    return value if isinstance(value, str) else value_of(knob, float(value))


@dataclass(frozen=True)
class OtherCosts:
    """The same plan with the costs of another trainer's profile."""

    framework: str
    meaning: str
    """Whose costs these are, and why they are worth knowing."""
    step_time_s: float
    memory_bytes: float
    fits: bool
    """Whether a device holds that."""


@dataclass(frozen=True)
class Job:
    """One plan, ready to be written down for a trainer and a scheduler."""

    name: str
    """Of the job, as the user wrote it; any text."""
    target: Target
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    plan: PlanValues
    chunk_layers: tuple[int, ...]
    """Layers of each of the pp x vpp pipeline chunks, in the order a token passes them."""
    prediction: Prediction
    host_devices: int
    """Devices that one operating system sees, hence processes per host."""
    hosts: tuple[str, ...] = ()
    """Host names by node rank, where nodes were placed."""
    container: str | None = None
    """Image that the processes run in."""
    other_costs: tuple[OtherCosts, ...] = ()
    """Where the plan was searched with a profile that is not the target's own: what the other one says."""
    told: tuple[str, ...] = ()
    """What is to be known of how this plan came about, for the README."""

    @property
    def devices(self) -> int:
        return self.plan.devices

    @property
    def n_hosts(self) -> int:
        return self.devices // self.host_devices

    @property
    def micro_batches(self) -> int:
        """Of one data-parallel rank in a step: gradient accumulation steps."""
        return self.recipe.global_batch // (self.plan.dp * self.plan.micro_batch)


@dataclass(frozen=True)
class Variable:
    """A word that the environment decides when the job starts; without ``default`` it must be set."""

    name: str
    meaning: str
    default: str | None = None
    suffix: str = ""


@dataclass(frozen=True)
class Beside:
    """The path of a file of the bundle, wherever the bundle is."""

    file: str


Word = str | Variable | Beside
"""A plain string is passed on as it is, whatever is in it: whoever writes it into a script quotes it."""


@dataclass(frozen=True)
class Emitted:
    """A trainer's part of a bundle."""

    program: tuple[Word, ...]
    """What every process runs, behind ``torchrun``: a script, or ``-m`` and a module."""
    options: tuple[tuple[Word, ...], ...]
    """Its arguments, an option with its values each."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Configuration files by name."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that this trainer needs, whatever the scheduler."""
    notes: tuple[str, ...] = ()
    """What the user must know: what to put in place of the defaults, what the trainer decides by itself."""
