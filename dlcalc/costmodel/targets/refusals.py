"""Which plans a target cannot run: one function for every trainer that a plan can be written for."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.targets import accelerate, deepspeed, megatron, nanotron, torchtitan
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.target import Target


def refused_by_target(target: Target | None, model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """``{reason: mask}`` of what ``target`` does not run; nothing where there is no target."""
    match target:
        case None:
            return {}
        case "megatron-lm" | "megatron-bridge":
            return megatron.refused(target, model, recipe, plans)
        case "torchtitan":
            return torchtitan.refused(model, recipe, plans)
        case "deepspeed":
            return deepspeed.refused(model, recipe, plans)
        case "fsdp-accelerate":
            return accelerate.refused(model, recipe, plans)
        case "nanotron":
            return nanotron.refused(model, recipe, plans)
