"""What a trainer can run, as data, and the refusals that follow from it: ``{reason: mask}``, True where refused.

A target's rules come on top of what holds for any plan and for the recipe's framework profile (``constraints``). A
profile says what a trainer costs and what its users vary; a target says what its newest release accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import SPLITS
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import PER_STAGE, Array, Plans
from dlcalc.specs.hardware import Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.specs.target import Target


@dataclass(frozen=True)
class TargetRules:
    """What one trainer accepts."""

    target: Target
    schedules: tuple[str, ...]
    recompute_modes: tuple[str, ...]
    zero_stages: tuple[int, ...]
    precisions: tuple[Precision, ...]
    splits: tuple[str, ...] = ("even",)
    most_tp: float = np.inf
    most_cp: float = np.inf
    most_pp: float = np.inf
    most_ep: float = np.inf
    replicates_kv_heads: bool = False
    """False: tp must divide the KV heads."""
    counts_recomputed_layers: bool = False
    """Whether full recomputation can be of some layers of a chunk only."""
    offloads_optimizer: bool = False
    offloads_activations: bool = False
    replicates_shards: bool = False
    """Whether sharded states can have copies (HSDP and its like)."""
    has_experts: bool = False
    has_latent_attention: bool = False


def refused_by_rules(rules: TargetRules, model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Refusals that a target's table decides, each on the axes of the knobs it reads."""
    name = rules.target
    schedules = [SCHEDULES.index(word) for word in rules.schedules]
    modes = [RECOMPUTE_MODES.index(word) for word in rules.recompute_modes]
    splits = [SPLITS.index(word) for word in rules.splits]
    reasons = {
        f"{name} has no such schedule": ~np.isin(plans.schedule, schedules),
        f"{name} has no such recomputation": ~np.isin(plans.recompute, modes),
        f"{name} has no such ZeRO stage": ~np.isin(plans.zero_stage, rules.zero_stages),
        f"{name} cannot split layers over stages this way": (plans.pp > 1) & ~np.isin(plans.split, splits),
        f"{name} has no tensor parallelism{_beyond(rules.most_tp)}": plans.tp > rules.most_tp,
        f"{name} has no context parallelism{_beyond(rules.most_cp)}": plans.cp > rules.most_cp,
        f"{name} has no pipeline parallelism{_beyond(rules.most_pp)}": plans.pp > rules.most_pp,
        f"{name} has no expert parallelism{_beyond(rules.most_ep)}": plans.ep > rules.most_ep,
        f"{name} needs tp to divide the KV heads": np.zeros_like(plans.tp, dtype=np.bool_)
        if rules.replicates_kv_heads
        else np.asarray(np.mod(float(model.n_kv_heads), plans.tp) != 0),
        f"{name} recomputes all layers or none": (plans.recompute_layers >= 0) & (not rules.counts_recomputed_layers),
        f"{name} recomputes as many layers on one stage as on another": plans.recompute_layers == PER_STAGE,
        f"{name} does not offload the optimizer": (plans.offload_optimizer == 1) & (not rules.offloads_optimizer),
        f"{name} does not offload activations": (plans.offload_layers > 0) & (not rules.offloads_activations),
        f"{name} has no replicas of sharded states": (plans.dp_replicate > 1) & (not rules.replicates_shards),
        f"{name} does not train in {recipe.precision}": everywhere(recipe.precision not in rules.precisions, plans.tp),
        f"{name} has no mixture of experts": everywhere(model.is_moe and not rules.has_experts, plans.tp),
        f"{name} has no latent attention": everywhere(model.is_mla and not rules.has_latent_attention, plans.tp),
    }
    return {reason: mask for reason, mask in reasons.items() if mask.any()}


def everywhere(refused: bool, knob: Array) -> Mask:
    """The same answer for every plan, on the axis of ``knob``."""
    return np.full(np.shape(knob), refused)


def _beyond(most: float) -> str:
    return "" if most == 1 else f" beyond {most:g}"
