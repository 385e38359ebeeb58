"""What the DeepSpeed 0.19 engine without a pipeline runs, around a model of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, everywhere, refused_by_rules
from dlcalc.costmodel.targets.transformers_models import misfit_of
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="deepspeed",
    schedules=("1f1b",),
    recompute_modes=("none", "full"),
    zero_stages=(0, 1, 2, 3),
    precisions=("bf16", "fp16"),
    most_cp=1,
    most_pp=1,
    offloads_optimizer=True,
)


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    stage = plans.zero_stage
    own = {
        f"deepspeed gets no model with {misfit_of(model)}": everywhere(bool(misfit_of(model)), plans.tp),
        "deepspeed's tensor parallelism has no sequence parallelism": plans.sequence_parallel == 1,
        "deepspeed overlaps nothing without ZeRO": (stage == 0) & (plans.overlap_grad == 1),
        "deepspeed has one switch for both overlaps below ZeRO 3": ((stage == 1) | (stage == 2))
        & (plans.overlap_param != plans.overlap_grad),
        "deepspeed offloads sharded states only": (stage == 0) & (plans.offload_optimizer == 1),
    }
    return {**refused_by_rules(RULES, model, recipe, plans), **{why: mask for why, mask in own.items() if mask.any()}}
