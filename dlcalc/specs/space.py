"""A space file: which models, machines, cluster sizes and recipes to study, and which plans to try."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from dlcalc.specs.base import Degree, NonNegativeInt, PositiveInt, Spec, TupleFromList
from dlcalc.specs.framework import CpExchange
from dlcalc.specs.hardware import Precision
from dlcalc.specs.plan import Recompute, Schedule, Split, ZeroStage
from dlcalc.specs.recipe import MfuConvention, Scaling
from dlcalc.specs.sampling import SearchSpec
from dlcalc.specs.target import PROFILE_OF_TARGET, Target


def _tuple_of_one(value: object) -> object:
    """``x`` and ``[x, y]`` are both accepted where several may be given."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if not isinstance(value, tuple) else value


OneOrMore = BeforeValidator(_tuple_of_one)

Counts = Annotated[tuple[PositiveInt, ...], OneOrMore, Field(min_length=1)]
Choice = Literal["auto", "full"]
CountsOrAuto = Choice | Counts
Flags = Annotated[tuple[bool, ...], OneOrMore, Field(min_length=1)]
FlagsOrAuto = Choice | Flags
Schedules = Annotated[tuple[Schedule, ...], OneOrMore, Field(min_length=1)]
Splits = Annotated[tuple[Split, ...], OneOrMore, Field(min_length=1)]
Recomputes = Annotated[tuple[Recompute, ...], OneOrMore, Field(min_length=1)]
CpExchanges = Annotated[tuple[CpExchange, ...], OneOrMore, Field(min_length=1)]
LayerCount = Annotated[int, Field(ge=0)]
LayerCounts = Annotated[tuple[LayerCount | Literal["all", "per_stage"], ...], OneOrMore, Field(min_length=1)]
Names = Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)]
ZeroStages = Annotated[tuple[ZeroStage, ...], OneOrMore, Field(min_length=1)]
OffloadCounts = Annotated[tuple[LayerCount, ...], OneOrMore, Field(min_length=1)]
AUTO: Choice = "auto"
DEFAULT_FRAMEWORK = "megatron"


class KnobRanges(Spec):
    """The values of each knob: a list, one value, ``auto`` (what users of the framework vary) or ``full`` (all)."""

    tp: CountsOrAuto = AUTO
    cp: CountsOrAuto = AUTO
    pp: CountsOrAuto = AUTO
    dp: CountsOrAuto = AUTO
    ep: CountsOrAuto = AUTO
    etp: CountsOrAuto = AUTO
    vpp: CountsOrAuto = AUTO
    schedule: Choice | Schedules = AUTO
    split: Choice | Splits = AUTO
    micro_batch: CountsOrAuto = AUTO
    recompute: Choice | Recomputes = AUTO
    recompute_layers: Choice | LayerCounts = AUTO
    """Layers of a chunk under full recomputation: counts, ``all`` or ``per_stage`` (see ``stage_recompute``)."""
    zero_stage: Choice | ZeroStages = AUTO
    dp_replicate: CountsOrAuto = AUTO
    sequence_parallel: FlagsOrAuto = AUTO
    overlap_grad: FlagsOrAuto = AUTO
    overlap_param: FlagsOrAuto = AUTO
    overlap_tp: FlagsOrAuto = AUTO
    overlap_ep: FlagsOrAuto = AUTO
    cp_exchange: Choice | CpExchanges = AUTO
    offload_optimizer: FlagsOrAuto = AUTO
    offload_layers: Choice | OffloadCounts = AUTO

    @classmethod
    def full(cls) -> Self:
        """Every knob over its whole range."""
        return cls.model_validate(dict.fromkeys(cls.model_fields, "full"))


class Cluster(Spec):
    """How many devices; several counts are several scenarios."""

    devices: Counts
    node_devices: Degree | None = None
    """Devices in one NVLink-class domain, if not the hardware's own."""
    nic_gbit_per_s_per_device: PositiveFloat | None = None
    """Between nodes, one direction, if not the hardware's own."""
    usd_per_device_hour: PositiveFloat | None = None


class RecipeSpec(Spec):
    """A recipe as written: names unresolved, the batch in sequences or tokens, one or several precisions."""

    seq_len: PositiveInt
    global_batch: PositiveInt | None = None
    global_batch_tokens: PositiveInt | None = None
    precision: Annotated[tuple[Precision, ...], OneOrMore, Field(min_length=1)] = ("bf16",)
    framework: str | None = None
    """A profile by name or path; None: the target's, or megatron."""
    target: Target | None = None
    """The trainer that a launch is to be written for; plans it cannot run are refused."""
    profile: dict[str, Any] = {}
    """Settings of the framework profile that this recipe changes, such as ``cross_entropy: fused``."""
    mfu_convention: MfuConvention = "full_attention"
    token_budget: PositiveFloat | None = None
    cuda_graphs: bool = False
    scaling: Scaling | None = None
    """What one scale of an 8-bit matmul covers; None: blocks (rows) under torchtitan, tensors elsewhere."""
    custom_split: Annotated[tuple[NonNegativeInt, ...], TupleFromList] | None = None
    """Layers of each pipeline chunk, for ``split: custom``; a chunk may have none."""
    stage_recompute: Annotated[tuple[LayerCount, ...], TupleFromList] | None = None
    """Layers that each stage recomputes of every chunk of its own, for ``recompute_layers: per_stage``."""

    @model_validator(mode="after")
    def _batch_is_given_once(self) -> Self:
        if (self.global_batch is None) == (self.global_batch_tokens is None):
            raise ValueError("give either global_batch (sequences) or global_batch_tokens, not both or neither")
        tokens = self.global_batch_tokens
        if tokens is not None and tokens % self.seq_len:
            raise ValueError(f"global_batch_tokens = {tokens} must be a multiple of seq_len = {self.seq_len}")
        return self

    @property
    def profile_name(self) -> str:
        """The framework profile, by name or path."""
        return self.framework or (PROFILE_OF_TARGET[self.target] if self.target else DEFAULT_FRAMEWORK)

    @property
    def scaling_unit(self) -> Scaling:
        return self.scaling or ("block" if self.target == "torchtitan" else "tensor")

    @property
    def sequences(self) -> int:
        if self.global_batch is not None:
            return self.global_batch
        assert self.global_batch_tokens is not None  # one of the two is given
        return self.global_batch_tokens // self.seq_len


class TopologySpec(Spec):
    """The fabric that the best plans are placed on, and how much is placed."""

    source: Annotated[str, Field(min_length=1)]
    """A file, relative to the space file, or ``ec2``, ``kubernetes``, ``slurm``."""
    meshes: PositiveInt = 50
    """Best meshes that are placed; all plans of a mesh are estimated again."""
    time_limit_s: PositiveFloat = 1.0
    """Of the optimization of one placement; meshes whose rings are alike share it."""
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    exclude: Annotated[tuple[str, ...], OneOrMore] = ()
    """Nodes that are not to be used."""


def _topology_of(value: object) -> object:
    """``fabric.yaml`` is short for ``{source: fabric.yaml}``."""
    return {"source": value} if isinstance(value, str) else value


class TopRows(Spec):
    """Keep this many of the best plans."""

    top: PositiveInt


class SpaceSpec(Spec):
    """A study: every combination of model, hardware, devices and recipe is one scenario."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    model: Names
    hardware: Names
    cluster: Cluster
    recipe: Annotated[tuple[RecipeSpec, ...], OneOrMore, Field(min_length=1)]
    space: Choice | KnobRanges = AUTO
    constraints: Annotated[tuple[str, ...], TupleFromList] = ()
    """Comparisons that every plan must satisfy, such as ``tp <= node`` or ``pp * vpp <= 16``."""
    memory_headroom: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of each device's memory that a plan must leave free: for what estimates miss, uneven experts, more
    communicators."""
    max_devices: Degree | None = None
    keep: Literal["auto", "all", "feasible", "pareto"] | TopRows = "auto"
    topology: Annotated[TopologySpec, BeforeValidator(_topology_of)] | None = None
    target: Target | None = None
    """Of every recipe that names none of its own."""
    search: SearchSpec | None = None
    """None: every plan is estimated."""

    @property
    def ranges(self) -> KnobRanges:
        if isinstance(self.space, KnobRanges):
            return self.space
        return KnobRanges.full() if self.space == "full" else KnobRanges()
