"""What FSDP2 under Accelerate 1.15 runs, around a model of Hugging Face transformers made from its dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, everywhere, refused_by_rules
from dlcalc.costmodel.targets.transformers_models import misfit_of
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="fsdp-accelerate",
    schedules=("1f1b",),
    recompute_modes=("none", "full"),
    zero_stages=(2, 3),
    precisions=("bf16", "fp16"),
    most_tp=1,  # transformers splits layers as it loads a checkpoint, and here there is none
    most_cp=1,
    most_pp=1,
    offloads_optimizer=True,
    replicates_shards=True,
)


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    own = {
        f"fsdp-accelerate gets no model with {misfit_of(model)}": everywhere(bool(misfit_of(model)), plans.tp),
        "fsdp-accelerate always overlaps the gradient's reduction": plans.overlap_grad == 0,
        "fsdp-accelerate always overlaps the parameter gather": plans.overlap_param == 0,
        "fsdp-accelerate needs two devices to shard over": plans.dp <= plans.dp_replicate,
    }
    return {**refused_by_rules(RULES, model, recipe, plans), **{why: mask for why, mask in own.items() if mask.any()}}
