"""What PyTorch torchtitan runs."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, refused_by_rules
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="torchtitan",
    schedules=("1f1b", "interleaved", "gpipe", "zb-v"),
    recompute_modes=("none", "op_sac", "full"),
    zero_stages=(2, 3),
    precisions=("bf16", "fp16"),
)


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    return refused_by_rules(RULES, model, recipe, plans)
