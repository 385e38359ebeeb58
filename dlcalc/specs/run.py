"""A run file: one model, one machine, one recipe and one plan, for ``3dtrn``.

Two vocabularies say the same things and may be mixed, as long as nothing is said twice:

    model: {n_layers, hidden_sz, ...}        model: llama3-70b, a model YAML or a config.json
    parallelism, performance, data           plan, recipe: the words of a space file
    hardware: {node_type: p5.48xlarge}       hardware: h100
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlcalc.specs.base import (
    Degree,
    Depth,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Spec,
)
from dlcalc.specs.hardware import Precision
from dlcalc.specs.plan import PlanSection, ZeroStage
from dlcalc.specs.recipe import MfuConvention
from dlcalc.specs.space import RecipeSpec

CheckpointingType = Literal["none", "selective", "super-selective", "full"]


class MoeSection(Spec):
    """Mixture of experts of a ``model`` section."""

    n_experts: PositiveInt
    expert_inter_sz: PositiveInt
    experts_per_token: PositiveInt
    capacity_factor: PositiveFloat = 1.0
    """Tokens an expert has room for, over those it gets on average."""
    moe_frequency: Fraction = 1.0
    """Share of the layers that are mixtures of experts."""
    expert_tp_degree: Degree = 1
    shared_expert_inter_sz: NonNegativeInt = 0
    """Width of the shared expert; 0: none."""


class ModelSection(Spec):
    """A Llama-like transformer by its dimensions."""

    n_layers: Depth
    hidden_sz: PositiveInt
    inter_sz: PositiveInt
    n_q_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_sz: PositiveInt
    glu: bool
    rotary_embeds: bool = True
    """False: learned positions, one vector per position of the sequence."""
    dropout: bool = False
    tie_embeddings: bool = False
    moe: MoeSection | None = None

    @model_validator(mode="after")
    def _heads_share_kv_evenly(self) -> Self:
        if self.n_q_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads = {self.n_kv_heads} must divide n_q_heads = {self.n_q_heads}")
        return self

    @model_validator(mode="after")
    def _moe_layers_are_whole(self) -> Self:
        if self.moe is None:
            return self
        if not float(self.moe.moe_frequency * self.n_layers).is_integer():
            raise ValueError(
                f"moe.moe_frequency = {self.moe.moe_frequency:g} of n_layers = {self.n_layers} "
                f"is not a whole number of layers"
            )
        if self.moe.experts_per_token > self.moe.n_experts:
            raise ValueError(
                f"moe.experts_per_token = {self.moe.experts_per_token} exceeds moe.n_experts = {self.moe.n_experts}"
            )
        return self


class ParallelismSection(Spec):
    """Degrees and sharding; what is left out takes the framework's default."""

    tp: Degree = 1
    cp: Degree = 1
    pp: Depth = 1
    dp: Degree | None = None
    """Data-parallel replicas; may be left out where ``cluster: {devices}`` says how many devices there are."""
    ep: Degree = 1
    vpp: Depth = 1
    sp: bool | None = None
    zero_level: ZeroStage | None = None
    n_param_buckets: PositiveInt | None = None
    """Into how many buckets a device's gradients and parameters are cut for communication."""
    bucket_size_mb: PositiveFloat | None = None
    """The same by the size of a bucket, in 10^6 bytes."""

    @model_validator(mode="after")
    def _buckets_are_given_once(self) -> Self:
        if self.n_param_buckets is not None and self.bucket_size_mb is not None:
            raise ValueError("give either n_param_buckets or bucket_size_mb, not both")
        return self


class PerformanceSection(Spec):
    """What is recomputed; and, unless a ``recipe`` says it, in which precision by which trainer."""

    activation_checkpointing_type: CheckpointingType = "none"
    precision: Precision | None = None
    framework: str | None = None
    mfu_convention: MfuConvention | None = None


class DataSection(Spec):
    """The batch."""

    gbs: PositiveInt
    """Sequences of one optimizer step, over all replicas."""
    seqlen: PositiveInt
    microbatch_sz: PositiveInt = 1


class HardwareSection(Spec):
    """The machine by name, such as ``p5.48xlarge``."""

    node_type: str


class CrossDcSection(Spec):
    """Data centres that share the data-parallel replicas, and the link between any two neighbours of their ring."""

    n_dcs: Degree
    interconnect_bandwidth_gbps: PositiveFloat
    """Gbit/s, one direction, of all devices of a data centre together."""
    interconnect_latency_s: NonNegativeFloat

    @property
    def link_bytes_per_s(self) -> float:
        return self.interconnect_bandwidth_gbps * 1e9 / 8


class ClusterSection(Spec):
    """How many devices, and where they differ from the hardware's own node and fabric."""

    devices: Degree | None = None
    node_devices: Degree | None = None
    nic_gbit_per_s_per_device: PositiveFloat | None = None
    usd_per_device_hour: PositiveFloat | None = None


SAME_KNOB = {
    ("parallelism", "tp"): "tp",
    ("parallelism", "cp"): "cp",
    ("parallelism", "pp"): "pp",
    ("parallelism", "dp"): "dp",
    ("parallelism", "ep"): "ep",
    ("parallelism", "vpp"): "vpp",
    ("parallelism", "sp"): "sequence_parallel",
    ("parallelism", "zero_level"): "zero_stage",
    ("performance", "activation_checkpointing_type"): "recompute",
    ("data", "microbatch_sz"): "micro_batch",
}
"""What a key of the older sections is called in ``plan``."""


class RunSpec(Spec):
    """One run, in either vocabulary."""

    model: str | ModelSection
    hardware: str | HardwareSection
    parallelism: ParallelismSection | None = None
    performance: PerformanceSection | None = None
    data: DataSection | None = None
    plan: PlanSection | None = None
    recipe: RecipeSpec | None = None
    cluster: ClusterSection | None = None
    cross_dc: CrossDcSection | None = None
    memory_headroom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each device's memory that must stay free."""

    @model_validator(mode="after")
    def _everything_is_said_once(self) -> Self:
        if (self.data is None) == (self.recipe is None):
            raise ValueError("give either data (gbs, seqlen, microbatch_sz) or recipe, not both or neither")
        if self.parallelism is None and self.plan is None:
            raise ValueError("give parallelism (tp, pp, dp ...) or plan")
        for (section, key), knob in SAME_KNOB.items():
            written = getattr(self, section)
            if written is not None and key in written.model_fields_set and self._plan_says(knob):
                raise ValueError(f"{section}.{key} and plan.{knob} are the same thing; give it once")
        if self._model_says_etp() and self._plan_says("etp"):
            raise ValueError("model.moe.expert_tp_degree and plan.etp are the same thing; give it once")
        if self.recipe is not None and self.performance is not None:
            for key in ("precision", "framework", "mfu_convention"):
                if key in self.performance.model_fields_set:
                    raise ValueError(f"performance.{key}: there is a recipe; write it there")
        if self.recipe is not None and len(self.recipe.precision) > 1:
            raise ValueError("recipe.precision: a run has one precision, not several")
        return self

    def _plan_says(self, knob: str) -> bool:
        return self.plan is not None and knob in self.plan.model_fields_set

    def _model_says_etp(self) -> bool:
        moe = self.model.moe if isinstance(self.model, ModelSection) else None
        return moe is not None and "expert_tp_degree" in moe.model_fields_set
