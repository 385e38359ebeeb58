"""What a model is made of, as tables and JSON: parameters, FLOPs, bytes, sublayer by sublayer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from rich.table import Table

from dlcalc.calculators import flops, params
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import MfuConvention
from dlcalc.utils.units import short_count, size

WEIGHT_BYTES = 2
"""bf16."""
TRAINING_STATE_BYTES = 18
"""bf16 weights (2), fp32 gradients (4), fp32 master weights (4) and two fp32 moments (8)."""


@dataclass(frozen=True)
class Sublayer:
    """One kind of block of a model."""

    name: str
    count: int
    parameters_each: int
    parameters: int
    parameters_active: int
    """Of those, the ones that one token uses."""
    forward_flops_per_token: float
    """Of all of them together, at full attention."""


@dataclass(frozen=True)
class ModelReport:
    """Everything that dlcalc-model prints of one model."""

    name: str
    source: str
    seq_len: int
    parameters_total: int
    parameters_active: int
    parameters_embedding: int
    parameters_head: int
    parameters_mtp: int
    """Of multi-token prediction, which the total leaves out."""
    parameters_trained: int
    """The total and multi-token prediction: what takes memory in training."""
    weights_bytes: int
    training_state_bytes: int
    flops_per_token: dict[str, float]
    """Of training, by convention of MFU."""
    sublayers: tuple[Sublayer, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_model(model: ModelSpec, *, seq_len: int) -> ModelReport:
    """Counts of ``model``; the sequence length matters to attention's FLOPs alone."""
    trained = params.trained_params(model)
    return ModelReport(
        name=model.name,
        source=model.source,
        seq_len=seq_len,
        parameters_total=params.total_params(model),
        parameters_active=params.active_params(model),
        parameters_embedding=round(float(params.embedding_params(model))),
        parameters_head=round(float(params.head_params(model))),
        parameters_mtp=params.mtp_params(model),
        parameters_trained=trained,
        weights_bytes=trained * WEIGHT_BYTES,
        training_state_bytes=trained * TRAINING_STATE_BYTES,
        flops_per_token={
            convention: float(flops.model_flops_per_token_flops(model, seq_len=float(seq_len), convention=convention))
            for convention in get_args(MfuConvention)
        },
        sublayers=tuple(_sublayers(model, seq_len)),
    )


def _sublayers(model: ModelSpec, seq_len: int) -> Iterable[Sublayer]:
    """The blocks a model has, in the order a token meets them."""
    cost = flops.forward_token_flops(model, seq_len=float(seq_len), causal=False)
    expert_share = model.top_k / model.n_experts if model.is_moe else 1.0
    attention = cost.attention_projections_flops + cost.attention_scores_flops
    moe, mtp = model.n_moe_layers, model.mtp_layers
    rows = (
        ("embedding", 1, params.embedding_params(model), 1.0, 0.0),
        ("positions", 1, params.position_params(model), 1.0, 0.0),
        ("attention", model.n_layers, params.attention_sublayer_params(model), 1.0, attention),
        ("dense MLP", model.n_dense_layers, params.dense_mlp_sublayer_params(model), 1.0, cost.dense_mlp_flops),
        ("MoE norms", moe, params.mlp_norm_params(model), 1.0, 0.0),
        ("MoE router", moe, params.moe_router_params(model), 1.0, cost.router_flops),
        ("MoE routed experts", moe, params.moe_expert_params(model), expert_share, cost.routed_experts_flops),
        ("MoE shared experts", moe, params.moe_shared_expert_params(model), 1.0, cost.shared_experts_flops),
        ("final norm", 1, params.final_norm_params(model), 1.0, 0.0),
        ("LM head", 1, params.head_params(model), 1.0, cost.head_flops),
        ("multi-token prediction", mtp, params.mtp_params(model) / max(mtp, 1), 0.0, cost.mtp_flops),
    )
    for name, count, each, active_share, forward_flops in rows:
        parameters = round(count * float(each))
        if parameters or float(forward_flops):
            yield Sublayer(
                name=name,
                count=count,
                parameters_each=round(float(each)),
                parameters=parameters,
                parameters_active=round(parameters * active_share),
                forward_flops_per_token=float(forward_flops),
            )


def model_tables(report: ModelReport) -> tuple[Table, Table]:
    """A model's totals, and its sublayers."""
    totals = Table(title=report.name, caption=report.source or None, show_header=False)
    totals.add_column("quantity")
    totals.add_column("value", justify="right")
    totals.add_column("short", justify="right")
    for label, number in _parameter_rows(report):
        totals.add_row(label, f"{number:,}", short_count(number))
    totals.add_section()
    for convention, per_token in report.flops_per_token.items():
        label = f"training FLOPs per token, {convention}, {report.seq_len} tokens"
        totals.add_row(label, f"{per_token:,.0f}", short_count(per_token))
    totals.add_section()
    totals.add_row("weights, bf16 (bytes)", f"{report.weights_bytes:,}", size(report.weights_bytes))
    state = f"training state, {TRAINING_STATE_BYTES} bytes per parameter (bytes)"
    totals.add_row(state, f"{report.training_state_bytes:,}", size(report.training_state_bytes))

    sublayers = Table(title="sublayers")
    sublayers.add_column("sublayer")
    for heading in ("count", "parameters each", "parameters", "active", "forward FLOPs per token"):
        sublayers.add_column(heading, justify="right")
    for row in report.sublayers:
        numbers = (row.count, row.parameters_each, row.parameters, row.parameters_active)
        sublayers.add_row(row.name, *(f"{n:,}" for n in numbers), f"{row.forward_flops_per_token:,.0f}")
    return totals, sublayers


def _parameter_rows(report: ModelReport) -> Iterable[tuple[str, int]]:
    yield "parameters", report.parameters_total
    yield "active parameters", report.parameters_active
    yield "of the embedding", report.parameters_embedding
    yield "of the LM head", report.parameters_head
    if report.parameters_mtp:
        yield "of multi-token prediction, on top", report.parameters_mtp
        yield "trained parameters", report.parameters_trained
