"""What nanotron runs."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets.rules import TargetRules, refused_by_rules
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

RULES = TargetRules(
    target="nanotron",
    schedules=("1f1b", "gpipe"),
    recompute_modes=("none", "full"),
    zero_stages=(0, 1),
    precisions=("bf16", "fp16"),
)


def refused(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What it does not run."""
    return refused_by_rules(RULES, model, recipe, plans)
