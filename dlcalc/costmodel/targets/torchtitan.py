"""What torchtitan 0.3 runs: found in its source and by running it, axis by axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from dlcalc.calculators.context_parallel import ALL_GATHER
from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, everywhere, refused_by_rules
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="torchtitan",
    schedules=("1f1b", "interleaved", "zb-v", "gpipe"),
    recompute_modes=("none", "full", "op_sac"),
    zero_stages=(0, 2, 3),
    precisions=("bf16", "fp8", "mxfp8", "nvfp4"),
    splits=("even", "embedding_and_loss", "custom", "loss"),
    offloads_optimizer=True,
    replicates_shards=True,
    has_experts=True,
    has_latent_attention=True,
)
ONE_F_ONE_B, ZB_V = SCHEDULES.index("1f1b"), SCHEDULES.index("zb-v")

UNCOMPILED = (
    "torchtitan does not compile the stages of zb-v, and this profile's kernels are compiled; set its fused_norm, "
    "fused_activation, fused_residual and fused_rope to false"
)

Family = Literal["llama3", "qwen3", "deepseek_v3", "gpt_oss"]
"""Which of torchtitan's own models has the layers; the dimensions are free."""


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    known = family_of(model)
    own = {
        **_refused_by_pipeline(model, recipe, plans),
        **_refused_by_data(plans),
        **_refused_by_experts(model, plans),
        "torchtitan gathers keys and values over cp": (plans.cp > 1) & (plans.cp_exchange != ALL_GATHER),
        **_refused_by_precision(model, recipe, plans),
        f"torchtitan has no model with {misfit_of(model)}": everywhere(known is None, plans.tp),
        "torchtitan has no CUDA graphs with a pipeline or expert parallelism": ((plans.pp > 1) | (plans.ep > 1))
        & recipe.cuda_graphs,
    }
    return {**refused_by_rules(RULES, model, recipe, plans), **{why: mask for why, mask in own.items() if mask.any()}}


def _refused_by_pipeline(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    micro_batches = recipe.global_batch / (plans.dp * plans.micro_batch)
    return {
        "torchtitan cannot tie embeddings over a pipeline": (plans.pp > 1) & model.tied_embeddings,
        "torchtitan has no multi-token prediction in a pipeline": (plans.pp > 1) & (model.mtp_layers > 0),
        "torchtitan has no multi-token prediction under context parallelism": (plans.cp > 1) & (model.mtp_layers > 0),
        "torchtitan's 1f1b needs a micro-batch per stage": (plans.schedule == ONE_F_ONE_B)
        & (plans.pp > 1)
        & (micro_batches < plans.pp),
        # PyTorch cannot compile stages whose backward is split, and overlapping tp is done by its compiler.
        "torchtitan cannot overlap tp under zb-v": (plans.schedule == ZB_V) & (plans.overlap_tp == 1),
        UNCOMPILED: (plans.schedule == ZB_V) & (plans.pp > 1) & recipe.framework.fused_norm,
    }


def _refused_by_data(plans: Plans) -> Mapping[str, Mask]:
    stage = plans.zero_stage
    return {
        "torchtitan keeps whole weights and gradients in a pipeline; say zero_stage 3": (stage == 2) & (plans.pp > 1),
        "torchtitan shards states over context parallel ranks": (stage == 0) & (plans.cp > 1),
        "torchtitan shards experts and the rest alike": (stage == 0) & (plans.ep > 1),
        "torchtitan has replicas over dp alone": np.asarray(np.mod(plans.dp, plans.dp_replicate) != 0),
        "torchtitan always overlaps the gradient's reduction": plans.overlap_grad == 0,
        "torchtitan always overlaps the parameter gather": (plans.overlap_param == 0) & (stage > 0),
        "torchtitan offloads sharded states only": (plans.offload_optimizer == 1) & (stage == 0),
    }


def _refused_by_experts(model: ModelSpec, plans: Plans) -> Mapping[str, Mask]:
    """Experts are sharded over tp as the rest is, or whole over ep: there is no etp to choose."""
    return {
        "torchtitan's experts are not split under ep > 1": (plans.ep > 1) & (plans.etp != 1),
        "torchtitan's experts are split over tp without ep": (plans.ep == 1) & (plans.etp != plans.tp) & model.is_moe,
        "experts alone have an etp": (plans.etp > 1) & (not model.is_moe),
        "torchtitan does not overlap experts": plans.overlap_ep == 1,
    }


def _refused_by_precision(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    return {
        "torchtitan has no nvfp4 experts": everywhere(recipe.precision == "nvfp4" and model.is_moe, plans.tp),
        "torchtitan's nvfp4 needs dimensions that tp leaves multiples of 128": _odd_dimension(model, plans)
        & (recipe.precision == "nvfp4"),
    }


def _odd_dimension(model: ModelSpec, plans: Plans) -> Mask:
    """Where a device's part of a linear layer is no multiple of a block of 128."""
    split = (
        model.n_heads * model.value_head_dim,
        (model.n_heads + 2 * model.n_kv_heads) * model.head_dim,
        model.ffn_hidden_size,
    )
    odd = np.full(np.shape(plans.tp), model.hidden_size % 128 != 0)
    for width in split:
        odd = odd | (np.mod(width, 128 * plans.tp) != 0)
    return odd


def family_of(model: ModelSpec) -> Family | None:
    """The family that can build ``model``; None: none can."""
    if misfit_of(model):
        return None
    if model.attention_sinks:
        return "gpt_oss"
    if model.is_mla:
        return "deepseek_v3"
    return "qwen3" if model.is_moe or model.qk_norm else "llama3"


def misfit_of(model: ModelSpec) -> str:
    """The first part of ``model`` that no family of torchtitan has; empty where one has them all."""
    sinks = model.attention_sinks
    misfits = {
        "an MLP without a gate": not model.gated_mlp,
        "LayerNorm": model.norm != "rmsnorm" or bool(model.norm_bias),
        "learned positions": model.learned_positions,
        "ALiBi": model.alibi,
        "a norm behind the embedding": model.embedding_norm,
        "biases on every linear layer": model.linear_bias,
        "biases in the MLP": model.mlp_bias,
        "a bias on the LM head": model.head_bias,
        "another number of norms a layer than 2": model.norms_per_layer != 2,
        "a gate on the shared expert": model.shared_expert_gate,
        "this mix of sinks, biases, windows and experts": sinks and not _is_gpt_oss(model),
        "biases of attention without sinks": model.attention_bias and not sinks,
        "biases of experts without sinks": model.expert_bias and not sinks,
        "sliding windows without sinks": model.sliding_window > 0 and not sinks,
        "query and key norms in latent attention": model.is_mla and model.qk_norm,
        "biases in latent attention": model.is_mla and model.qkv_bias,
        "multi-token prediction without latent attention": model.mtp_layers > 0 and not model.is_mla,
    }
    return next((name for name, found in misfits.items() if found), "")


def _is_gpt_oss(model: ModelSpec) -> bool:
    return (
        model.attention_bias
        and model.expert_bias
        and model.router_bias
        and all(model.layer_is_moe)
        and not (model.n_shared_experts or model.is_mla or model.qk_norm)
    )
