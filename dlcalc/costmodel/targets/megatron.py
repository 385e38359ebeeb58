"""What Megatron-LM and Megatron-Bridge run; both are Megatron-Core underneath.

Rules are those of Megatron-Core 0.19.2: what its arguments, its configuration and its process groups refuse, and what
no option of it can say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.costmodel.targets.rules import TargetRules, everywhere, refused_by_rules
from dlcalc.costmodel.targets.transformer_engine import unknown_exchanges
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import FULL, MOE, NONE, NORM_ACT, RECOMPUTE_MODES, codes_with

RULES = TargetRules(
    target="megatron-lm",
    schedules=("1f1b", "interleaved"),
    recompute_modes=tuple(mode for mode in RECOMPUTE_MODES if mode != "op_sac"),
    zero_stages=(0, 1, 2, 3),
    precisions=("bf16", "fp16", "fp8", "mxfp8", "nvfp4"),
    splits=("even", "embedding_and_loss", "custom", "loss"),
    replicates_kv_heads=True,
    counts_recomputed_layers=True,
    offloads_optimizer=True,
    offloads_activations=True,
    replicates_shards=True,
    has_experts=True,
    has_latent_attention=True,
)


def refused(
    target: Literal["megatron-lm", "megatron-bridge"], model: ModelSpec, recipe: Recipe, plans: Plans
) -> Mapping[str, Mask]:
    """What Megatron does not run."""
    reasons = {
        **_by_model(model, plans),
        **_by_mesh(model, plans),
        "overlaps tp in no latent attention": np.asarray((plans.overlap_tp == 1) & model.is_mla),
        **_by_experts(model, recipe, plans),
        **_by_memory(model, recipe, plans),
    }
    found = {f"{target} {reason}": mask for reason, mask in reasons.items() if mask.any()}
    return {**refused_by_rules(replace(RULES, target=target), model, recipe, plans), **found}


def _by_model(model: ModelSpec, plans: Plans) -> dict[str, Mask]:
    """Networks that no option describes."""
    odd_norm = model.norm_bias is not None and model.norm_bias != (model.norm == "layernorm")
    reasons = {
        "has no ALiBi": model.alibi,
        "has no norm behind the embedding": model.embedding_norm,
        "has no bias on the LM head": model.head_bias,
        "has two norms in every layer": model.norms_per_layer != 2,
        "has biases in every LayerNorm and in no RMSNorm": odd_norm,
        "has biases on all linear layers, or on none but Q, K and V": not biases_agree(model),
        "has no multi-token prediction with learned positions": model.mtp_layers > 0 and model.learned_positions,
    }
    return {reason: everywhere(is_so, plans.tp) for reason, is_so in reasons.items()}


def biases_agree(model: ModelSpec) -> bool:
    """Whether one switch for the biases of attention, MLPs, experts and routers together describes the model.

    Shared experts and latent attention have none under either setting of it.
    """
    on_attention = model.linear_bias or model.attention_bias
    on_mlp = model.linear_bias or model.mlp_bias
    if model.is_mla or model.shared_ffn_hidden_size:
        return not (on_attention or on_mlp or model.expert_bias or model.router_bias)
    dense = model.n_dense_layers == 0 or on_mlp == on_attention
    mixed = model.n_moe_layers == 0 or model.expert_bias == model.router_bias == on_attention
    return dense and mixed


def _by_mesh(model: ModelSpec, plans: Plans) -> dict[str, Mask]:
    """Degrees that do not divide what they split."""
    expert_ranks = plans.tp * plans.cp * plans.dp / (plans.etp * plans.ep)
    return {
        "needs tp to divide the width of the shared experts": _indivisible(model.shared_ffn_hidden_size, plans.tp),
        "needs replicas to divide the ranks that share an expert": (plans.dp_replicate > 1)
        & model.is_moe
        & (np.mod(expert_ranks, plans.dp_replicate) != 0),
        **{
            reason: (plans.cp > 1) & np.isin(plans.cp_exchange, unknown)
            for reason, unknown in unknown_exchanges(model).items()
        },
    }


def _by_experts(model: ModelSpec, recipe: Recipe, plans: Plans) -> dict[str, Mask]:
    """Experts with biases, and the expert all-to-all behind compute."""
    overlapped = plans.overlap_ep == 1
    fully_sharded = plans.zero_stage >= 2
    return {
        "has no biases of experts under etp > 1": (plans.etp > 1) & (model.is_moe and model.expert_bias),
        "overlaps experts in a pipeline only with vpp > 1": overlapped & (plans.pp > 1) & (plans.vpp == 1),
        "overlaps experts in no interleaved pipeline of sharded weights": overlapped & fully_sharded & (plans.pp > 1),
        "overlaps experts that are not recomputed": overlapped & np.isin(plans.recompute, (FULL, *codes_with(MOE))),
        "overlaps experts with one multi-token-prediction module at most": overlapped & (model.mtp_layers > 1),
        "overlaps experts of sharded weights without CUDA graphs only": overlapped & fully_sharded & recipe.cuda_graphs,
    }


def _by_memory(model: ModelSpec, recipe: Recipe, plans: Plans) -> dict[str, Mask]:
    """Recomputation, and what goes to the host."""
    offloaded = plans.offload_layers > 0
    return {
        "recomputes activation functions of experts only": np.isin(plans.recompute, codes_with(NORM_ACT))
        & (model.n_moe_layers == 0),
        "offloads the optimizer only where it is sharded": (plans.offload_optimizer == 1) & (plans.zero_stage == 0),
        "offloads activations in no pipeline": offloaded & (plans.pp > 1),
        "offloads activations or recomputes them, not both": offloaded & (plans.recompute != NONE),
        "offloads fewer layers than there are": plans.offload_layers >= model.n_layers,
        "offloads activations without CUDA graphs only": offloaded & recipe.cuda_graphs,
        "has no CUDA graphs of experts that are recomputed": np.isin(plans.recompute, (FULL, *codes_with(MOE)))
        & (recipe.cuda_graphs and model.is_moe),
    }


def _indivisible(whole: float, part: Array) -> Mask:
    return np.asarray(np.mod(float(whole), part) != 0)
