"""What there is to say of one run, as one object: printed, drawn on a page, and the document of ``--json``.

Built by ``workflows.run_facts`` and read by programs: names here are an interface. Base units throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlcalc.costmodel.anatomy.kernels import AttentionFacts, MatmulFacts
from dlcalc.costmodel.anatomy.memory import OpActivation, StageMemory
from dlcalc.costmodel.anatomy.pipeline import PipelineFacts
from dlcalc.costmodel.anatomy.traffic import AxisFacts
from dlcalc.costmodel.cross_dc import CrossDcFacts


@dataclass(frozen=True)
class HardwareFacts:
    """The machine and how much of it the run takes."""

    name: str
    description: str
    devices: int
    devices_per_node: int
    """That the run takes."""
    node_devices: int
    nodes: float
    hbm_bytes: float
    peak_flops_per_s: float
    """In the precision of the linear layers."""
    hbm_bytes_per_s: float
    node_bytes_per_s: float
    """Of one device, one direction."""
    fabric_bytes_per_s: float
    """Of one device, one direction."""
    fabric_latency_s: float
    is_measured: bool
    """Whether its calibration rests on measured kernels."""
    calibration: str


@dataclass(frozen=True)
class DataFacts:
    """The batch and how it is cut."""

    seq_len: int
    global_batch: int
    tokens_per_step: float
    micro_batch: int
    micro_batches: float
    """Of one replica and step."""
    precision: str
    framework: str


@dataclass(frozen=True)
class ModelFacts:
    """What the model is made of."""

    name: str
    n_layers: int
    hidden_size: int
    ffn_hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    parameters_total: float
    parameters_active: float
    parameters_embedding: float
    parameters_per_device: float
    """On the fullest pipeline stage, before data-parallel sharding."""
    flops_per_token: float
    """Of training, in the convention of the MFU."""
    n_moe_layers: int
    n_experts: int
    top_k: int
    expert_ffn_hidden_size: int
    expert_mesh: Mapping[str, float] | None
    """Of a mixture of experts: how ep, etp and the replicas of experts share a stage's devices."""


@dataclass(frozen=True)
class MemoryFacts:
    """Where memory goes, on the fullest device."""

    total_bytes: float
    usable_bytes: float
    """Of one device; free is what of it the plan does not need."""
    limit_bytes: float
    """What a plan may need: usable memory less what is kept free."""
    terms: Mapping[str, float]
    fullest_stage: int
    stages: tuple[StageMemory, ...]
    activations: tuple[OpActivation, ...]
    """Of one layer and micro-batch."""
    layer_activation_bytes: float
    """Of an attention and an MLP sublayer as most layers have them."""


@dataclass(frozen=True)
class BlockFacts:
    """One transformer block of one micro-batch."""

    attention: str
    mlp: str
    sublayers: Mapping[str, Mapping[str, Mapping[str, float]]]
    """``{sublayer: {pass: {term: seconds}}}``, all kinds of sublayer the model has."""


@dataclass(frozen=True)
class Interval:
    """Between which step times the run is expected, and how often such an interval is right."""

    low_s: float
    high_s: float
    coverage_fraction: float


@dataclass(frozen=True)
class Results:
    """The answer."""

    iteration_s: float
    ideal_iteration_s: float
    """At the device's peak rate."""
    mfu: float
    hfu: float
    mfu_convention: str
    tokens_per_s: float
    tokens_per_s_per_device: float
    tokens_per_day: float
    interval: Interval | None
    days: float | None
    """For the recipe's token budget."""
    cost_usd: float | None


@dataclass(frozen=True)
class RunFacts:
    """Everything of one run."""

    name: str
    configuration: Mapping[str, Any]
    """As written."""
    plan: Mapping[str, int | bool | str]
    """Every knob, as resolved."""
    notes: tuple[str, ...]
    """What was assumed or changed on the way from what is written to the plan."""
    ignored: tuple[str, ...]
    """Options of a trainer's own configuration that no estimate reads, all of them."""
    refused: tuple[str, ...]
    """Why this plan cannot run, memory among the reasons; empty when it can."""
    hardware: HardwareFacts
    data: DataFacts
    model: ModelFacts
    memory: MemoryFacts
    matmuls: tuple[MatmulFacts, ...]
    attention: tuple[AttentionFacts, ...]
    communication: tuple[AxisFacts, ...]
    cross_dc: CrossDcFacts | None
    pipeline: PipelineFacts
    block: BlockFacts
    step: Mapping[str, float]
    """Terms of an iteration, in seconds; their sum is the iteration time."""
    results: Results


@dataclass(frozen=True)
class Citation:
    """One source, and the equations of this run that rest on it."""

    key: str
    title: str
    authors: str
    year: int
    url: str
    equations: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """One quantity of two runs."""

    section: str
    what: str
    unit: str
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """A run as written and with some of it changed."""

    changes: Mapping[str, Any]
    before: RunFacts
    after: RunFacts
    differences: tuple[Difference, ...]
