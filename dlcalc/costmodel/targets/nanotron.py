"""What nanotron runs, of the options that its configuration has."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, everywhere, refused_by_rules
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="nanotron",
    schedules=("1f1b", "gpipe"),
    recompute_modes=("none", "full"),
    zero_stages=(0, 1),
    precisions=("bf16", "fp16"),
    most_cp=1,
)


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    own = {
        f"nanotron has no model with {misfit_of(model)}": everywhere(bool(misfit_of(model)), plans.tp),
        "nanotron gathers parameters after the step": plans.overlap_param == 1,
    }
    return {**refused_by_rules(RULES, model, recipe, plans), **{why: mask for why, mask in own.items() if mask.any()}}


def misfit_of(model: ModelSpec) -> str:
    """The first part of ``model`` that nanotron's Llama has not; empty where it has them all."""
    misfits = {
        "an MLP without a gate": not model.gated_mlp,
        "LayerNorm": model.norm != "rmsnorm" or bool(model.norm_bias),
        "learned positions": model.learned_positions,
        "ALiBi": model.alibi,
        "a norm behind the embedding": model.embedding_norm,
        "biases": model.linear_bias or model.qkv_bias or model.attention_bias or model.mlp_bias or model.head_bias,
        "query and key norms": model.qk_norm,
        "another number of norms a layer than 2": model.norms_per_layer != 2,
        "sliding windows": model.sliding_window > 0,
        "attention sinks": model.attention_sinks,
        "multi-token prediction": model.mtp_layers > 0,
        "head_dim other than hidden_size / n_heads": model.head_dim * model.n_heads != model.hidden_size,
    }
    return next((name for name, found in misfits.items() if found), "")
