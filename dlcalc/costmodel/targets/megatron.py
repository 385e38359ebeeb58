"""What Megatron-LM and Megatron-Bridge run; both are Megatron-Core underneath."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, refused_by_rules
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="megatron-lm",
    schedules=("1f1b", "interleaved"),
    recompute_modes=("none", "selective", "full", "norm_act", "mla_up_proj"),
    zero_stages=(0, 1, 2, 3),
    precisions=("bf16", "fp16", "fp8", "mxfp8", "nvfp4"),
    splits=("even", "embedding_and_loss", "custom"),
    replicates_kv_heads=True,
    counts_recomputed_layers=True,
    offloads_optimizer=True,
    replicates_shards=True,
    has_experts=True,
    has_latent_attention=True,
)


def refused(
    target: Literal["megatron-lm", "megatron-bridge"], model: ModelSpec, recipe: Recipe, plans: Plans
) -> Mapping[str, Mask]:
    """What Megatron does not run."""
    return refused_by_rules(replace(RULES, target=target), model, recipe, plans)
