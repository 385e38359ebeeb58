"""What every pipeline stage of one plan holds at its peak, and every operation keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dlcalc.calculators.activations import (
    ACTIVATION_BYTES,
    Activations,
    attention_activation_bytes,
    mlp_activation_bytes,
    moe_activation_bytes,
)
from dlcalc.calculators.schedule import DUALPIPE, in_flight_micro_batches_count
from dlcalc.costmodel.anatomy.kernels import SUBLAYERS
from dlcalc.costmodel.anatomy.numbers import plain
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.every_stage import chunks_of
from dlcalc.costmodel.footprint import Footprint, footprint
from dlcalc.costmodel.plans import Array, number
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.specs.recompute import NONE


@dataclass(frozen=True)
class StageMemory:
    """What one device of a pipeline stage holds at its peak."""

    stage: int
    layers: float
    has_embedding: bool
    has_head: bool
    in_flight: float
    """Micro-batches whose activations are held."""
    params: float
    """Elements, before data-parallel sharding."""
    bytes_by_term: Mapping[str, float]
    total_bytes: float


@dataclass(frozen=True)
class OpActivation:
    """What one operation of one layer keeps of one micro-batch."""

    sublayer: str
    op: str
    kept_bytes: float
    without_recompute_bytes: float


def stage_memory(found: Estimate, custom_split: tuple[int, ...] | None) -> tuple[StageMemory, ...]:
    """Every pipeline stage's peak."""
    model, plan, machine = found.model, found.kept, found.machine
    stages = chunks_of(model, plan, custom_split, machine.recipe.stage_recompute).stages
    held = stage_params(model, plan, stages)
    holds = footprint(model, plan, stages, held, machine)
    n = len(stages.stage)
    terms = {name: np.broadcast_to(array, n) for name, array in _terms(holds).items()}
    total = np.broadcast_to(holds.states_bytes + holds.passing_bytes, n)
    in_flight = in_flight_micro_batches_count(
        plan.schedule,
        pp=plan.pp,
        vpp=plan.vpp,
        n_micro_batches=machine.recipe.global_batch / (plan.dp * plan.micro_batch),
        stage=stages.stage,
    )
    in_flight = np.broadcast_to(in_flight * (0.5 if int(plan.schedule) == DUALPIPE else 1.0), n)
    params = np.broadcast_to(held.stage_dense + held.stage_expert, n)
    return tuple(
        StageMemory(
            stage=stage,
            layers=float(stages.layers[stage]),
            has_embedding=bool(stages.embeddings[stage]),
            has_head=bool(stages.heads[stage]),
            in_flight=float(in_flight[stage]),
            params=float(params[stage]),
            bytes_by_term={name: float(array[stage]) for name, array in terms.items()},
            total_bytes=float(total[stage]),
        )
        for stage in range(n)
    )


def _terms(holds: Footprint) -> dict[str, Array]:
    """Named terms on every stage, the allocator's slack among them."""
    named = {field.name: getattr(holds, field.name) for field in fields(holds) if field.name.endswith("_bytes")}
    beyond = (holds.states_bytes + holds.passing_bytes) - sum(named.values())
    return {**named, "allocator_bytes": np.asarray(beyond)}


def op_activations(found: Estimate) -> tuple[OpActivation, ...]:
    """What one layer of each kind keeps of one micro-batch, operation by operation."""
    model, plan, machine = found.model, found.plans, found.machine
    profile, recipe = machine.recipe.framework, machine.recipe
    shared: dict[str, Any] = {
        "tokens": plan.micro_batch * recipe.seq_len / plan.cp,
        "tp": plan.tp,
        "sequence_parallel": plan.sequence_parallel,
        "input_bytes": machine.linear.input_bytes if profile.keeps_low_precision_inputs else ACTIVATION_BYTES,
    }
    of_kind: dict[str, Callable[[Array], Activations]] = {}
    attention = "full" if not all(model.layer_is_windowed) else "windowed"
    of_kind[attention] = lambda recompute: attention_activation_bytes(
        model, profile, seq_k_tokens=float(recipe.seq_len), recompute=recompute, **shared
    )
    if not all(model.layer_is_moe):
        of_kind["dense"] = lambda recompute: mlp_activation_bytes(model, profile, recompute=recompute, **shared)
    if model.is_moe:
        of_kind["moe"] = lambda recompute: moe_activation_bytes(
            model, profile, etp=plan.etp, ep=plan.ep, recompute=recompute, routed_factor=profile.routed_factor, **shared
        )
    facts = []
    for kind, of_mode in of_kind.items():
        kept, whole = of_mode(plan.recompute).terms, of_mode(number(NONE)).terms
        facts += [
            OpActivation(SUBLAYERS[kind], op, plain(kept[op]), plain(whole[op]))
            for op in kept
            if plain(kept[op]) or plain(whole[op])
        ]
    return tuple(facts)
