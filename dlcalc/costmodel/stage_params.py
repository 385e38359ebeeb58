"""Parameters that one device of each bounding stage holds, before data-parallel sharding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcalc.calculators import params as p
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.specs.model import ModelSpec


@dataclass(frozen=True)
class StageParams:
    """Elements per device: on the bounding stages, and on the fullest of them."""

    stage_dense: Array
    """Everything that dp x cp ranks hold alike, with a leading axis of stages."""
    stage_expert: Array
    """Routed experts, which only the expert-data-parallel ranks hold alike."""
    stage_unquantized: Array
    """Of the dense ones, embeddings and LM heads: no trainer computes with them in 8 or 4 bits."""
    layer_dense: Array
    """Of one layer, the heaviest kind."""
    layer_expert: Array

    @property
    def dense(self) -> Array:
        return np.asarray(np.max(self.stage_dense, axis=0))

    @property
    def expert(self) -> Array:
        return np.asarray(np.max(self.stage_expert, axis=0))

    def owned(self, plans: Plans) -> Array:
        """Elements whose optimizer state this device keeps: all of them, or its shard."""
        shards, expert_shards = state_shards(plans)
        return self.dense / shards + self.expert / expert_shards


def state_shards(plans: Plans) -> tuple[Array, Array]:
    """Over how many ranks optimizer states are split: dense parameters, routed experts."""
    sharded = plans.zero_stage >= 1
    stage_devices = plans.tp * plans.cp * plans.dp
    dense = np.where(sharded, plans.dp * plans.cp / plans.dp_replicate, 1.0)
    expert = np.where(sharded, stage_devices / (plans.etp * plans.ep * plans.dp_replicate), 1.0)
    return dense, np.maximum(expert, 1.0)


def stage_params(model: ModelSpec, plans: Plans, stages: StageLayers) -> StageParams:
    """Parameters by stage; a multi-token-prediction module sits with the LM head."""
    attention = p.attention_sublayer_params(model, tp=plans.tp)  # mesh
    layers = stages.layers + model.mtp_layers * stages.heads  # stage x mesh x pipe
    dense = layers * attention
    layer_mlp = number(0.0)
    expert = layer_expert = number(0.0)
    if not all(model.layer_is_moe):
        layer_mlp = np.asarray(p.dense_mlp_sublayer_params(model, tp=plans.tp))
        dense = dense + (stages.dense + (0 if model.is_moe else model.mtp_layers) * stages.heads) * layer_mlp
    if model.is_moe:
        shared = p.moe_non_expert_params(model, tp=plans.tp)
        moe_layers = stages.moe + model.mtp_layers * stages.heads
        dense = dense + moe_layers * shared
        layer_expert = np.asarray(p.moe_expert_params(model, ep=plans.ep, etp=plans.etp))
        expert = moe_layers * layer_expert
        layer_mlp = np.maximum(layer_mlp, shared)
    first = p.embedding_params(model, tp=plans.tp) + p.position_params(model)
    last = p.head_params(model, tp=plans.tp) + p.final_norm_params(model)
    last = last + model.mtp_layers * p.mtp_projection_params(model, tp=plans.tp)
    ends = stages.embeddings * first + stages.heads * last
    ends = ends + embedding_copies_count(model, stages) * p.vocabulary_matrix_params(model, tp=plans.tp)
    dense = dense + ends
    return StageParams(
        stage_dense=dense,
        stage_expert=expert + np.zeros_like(dense),
        stage_unquantized=ends + np.zeros_like(dense),
        layer_dense=attention + layer_mlp,
        layer_expert=layer_expert,
    )


def embedding_copies_count(model: ModelSpec, stages: StageLayers) -> Array:
    """1 where a device holds the embedding's matrix once more: as a tied LM head, or for multi-token prediction.

    None where the same device has the embedding itself (one stage, V-shaped schedules).

    Source: [megatron_lm] ``GPTModel``; [deepseek2024v3] section 3.2.1, both ends of its pipeline on the same ranks.
    """
    return np.asarray((model.tied_embeddings or model.mtp_layers > 0) * stages.heads * (1.0 - stages.embeddings))
