"""What the cost model says of a batch of plans: the one composition of every equation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from math import prod

import numpy as np

from dlcalc.calculators import flops
from dlcalc.calculators.stages import StageLayers, stage_layers_count
from dlcalc.costmodel import constraints
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.footprint import Footprint, footprint, offloaded_layer_bytes
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links, PlacedRates, links
from dlcalc.costmodel.plans import Array, Index, Plans, take_rows
from dlcalc.costmodel.recomputation import recompute_flops_factor
from dlcalc.costmodel.stage_params import StageParams, stage_params
from dlcalc.costmodel.stage_times import model_times
from dlcalc.costmodel.step_time import StepTime, step_time
from dlcalc.costmodel.targets.refusals import refused_by_target
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

QUIET = partial(np.errstate, divide="ignore", invalid="ignore", over="ignore")
"""Plans that are refused may divide by zero."""
OUT_OF_MEMORY = "needs more memory than the device has"


@dataclass(frozen=True)
class Estimate:
    """Time, memory and refusals of a batch of plans; every array broadcasts against the batch.

    Time and memory are worked out when they are first asked for, so that who needs only one of them pays for one.
    """

    model: ModelSpec
    machine: Machine
    plans: Plans
    stages: StageLayers
    refused: Mapping[str, Mask]
    """By reason, memory apart: on the axes that decide it."""
    capacity_bytes: float
    placed: PlacedRates | None = None
    """Links of the nodes that the plans are placed on; None: every link is the NIC's."""
    known_step: StepTime | None = None
    """The terms of time, where they are not what the plans alone make them."""

    def part(self, rows: Sequence[Index]) -> Estimate:
        """Of a grid, the plans at some positions of every axis; worked out on those alone."""
        counts = {f.name: getattr(self.stages, f.name) for f in fields(StageLayers)}
        return replace(
            self,
            plans=self.plans.take_rows(rows),
            stages=StageLayers(**{name: take_rows(count, rows) for name, count in counts.items() if count is not None}),
            refused={reason: take_rows(mask, rows) for reason, mask in self.refused.items()},
            placed=self.placed and self.placed.take_rows(rows),
        )

    @cached_property
    def kept(self) -> Plans:
        """The plans with the ZeRO stage whose exchanges and memory they really have."""
        return with_states_as_kept(self.plans, self.machine.recipe)

    @cached_property
    def _params(self) -> StageParams:
        return stage_params(self.model, self.kept, self.stages)

    @cached_property
    def step(self) -> StepTime:
        """The terms of time."""
        if self.known_step is not None:
            return self.known_step
        plans, machine = self.kept, self.machine
        with QUIET():
            times = model_times(self.model, plans, self.links, machine)
            offloaded = offloaded_layer_bytes(self.model, plans, machine)
            return step_time(self.model, plans, self.links, self.stages, times, self._params, machine, offloaded)

    @cached_property
    def footprint(self) -> Footprint:
        """The terms of memory."""
        with QUIET():
            return footprint(self.model, self.kept, self.stages, self._params, self.machine)

    @cached_property
    def links(self) -> Links:
        return links(self.plans, self.machine.hardware, self.placed)

    @cached_property
    def step_time_s(self) -> Array:
        return self.step.total_s

    @cached_property
    def memory_bytes(self) -> Array:
        """Peak of the fullest stage."""
        return self.footprint.peak_bytes

    @cached_property
    def runs(self) -> Mask:
        """Where nothing but memory can refuse a plan."""
        return ~any_of(list(self.refused.values()))

    @property
    def fits(self) -> Mask:
        return self.runs & (self.memory_bytes <= self.capacity_bytes)

    @property
    def tokens_per_s_per_device(self) -> Array:
        return self.machine.recipe.tokens_per_step / (self.step_time_s * self.n_devices)

    @property
    def n_devices(self) -> Array:
        plans = self.plans
        return plans.tp * plans.cp * plans.pp * plans.dp

    @property
    def mfu_seconds(self) -> Array:
        """MFU times step time: the step that would reach the peak."""
        recipe, hardware = self.machine.recipe, self.machine.hardware
        per_token = flops.model_flops_per_token_flops(
            self.model, seq_len=float(recipe.seq_len), convention=recipe.mfu_convention
        )
        peak = hardware.device.peak_flops_per_s(recipe.precision)
        return np.asarray(per_token * recipe.tokens_per_step / (self.n_devices * peak))

    @property
    def mfu(self) -> Array:
        return self.mfu_seconds / self.step_time_s

    @cached_property
    def recompute_flops_factor(self) -> Array:
        """HFU over MFU: FLOPs with recomputation over FLOPs without, on mesh x pipe x redo."""
        return recompute_flops_factor(self.model, self.machine.recipe, self.plans, self.stages)

    @property
    def hfu(self) -> Array:
        return self.mfu * self.recompute_flops_factor


def any_of(masks: list[Mask]) -> Mask:
    """Union of masks on different axes, joining first those whose union stays smallest."""
    by_shape: dict[tuple[int, ...], Mask] = {}
    for mask in masks:
        known = by_shape.get(mask.shape)
        by_shape[mask.shape] = mask if known is None else known | mask
    left = list(by_shape.values())
    while len(left) > 1:
        pairs = [
            (prod(np.broadcast_shapes(a.shape, b.shape)), i, j)
            for i, a in enumerate(left)
            for j, b in enumerate(left[:i])
        ]
        _, i, j = min(pairs)
        joined = left[i] | left[j]
        left = [mask for position, mask in enumerate(left) if position not in (i, j)]
        left.append(joined)
    return left[0]


def with_states_as_kept(plans: Plans, recipe: Recipe) -> Plans:
    """The plans with the ZeRO stage whose exchanges and memory they really have.

    Trainers that gather once in a pipeline keep whole weights and gradients through the step, as ZeRO 1 does.
    """
    if not recipe.framework.gathers_once_in_pipeline or not np.any(plans.zero_stage >= 2):
        return plans
    return replace(plans, zero_stage=np.where((plans.zero_stage >= 2) & (plans.pp > 1), 1.0, plans.zero_stage))


def estimate(
    model: ModelSpec,
    hardware: HardwareSpec,
    recipe: Recipe,
    plans: Plans,
    *,
    custom_split: tuple[int, ...] | None = None,
    memory_headroom: float = 0.0,
    placed: PlacedRates | None = None,
) -> Estimate:
    """Time, memory and refusals of ``plans``: a point, rows or a grid; ``placed`` where their nodes are known."""
    profile = recipe.framework.for_norm(model.norm)
    if profile is not recipe.framework:
        recipe = recipe.model_copy(update={"framework": profile})
    with QUIET():
        stages = stage_layers_count(
            model,
            pp=plans.pp,
            vpp=plans.vpp,
            schedule=plans.schedule,
            split=plans.split,
            custom=custom_split,
            recomputed=recipe.stage_recompute,
        )
        refused = refusals(model, hardware, recipe, plans, stages, custom_split)
    return Estimate(
        model=model,
        machine=Machine(hardware, recipe),
        plans=plans,
        stages=stages,
        refused=refused,
        capacity_bytes=hardware.device.hbm_bytes * (1.0 - memory_headroom),
        placed=placed,
    )


def refusals(
    model: ModelSpec,
    hardware: HardwareSpec,
    recipe: Recipe,
    plans: Plans,
    stages: StageLayers,
    custom_split: tuple[int, ...] | None = None,
) -> Mapping[str, Mask]:
    """Why plans cannot run, memory apart, by reason; costs next to nothing beside an estimate."""
    return {
        **constraints.refused_by_mesh(model, recipe, plans),
        **constraints.refused_by_batch(recipe, plans),
        **constraints.refused_by_pipeline(model, recipe, plans, stages),
        **constraints.refused_by_recompute(model, plans, stages),
        **constraints.refused_by_tensor(model, recipe, plans),
        **constraints.refused_by_data(recipe, plans),
        **constraints.refused_by_framework(recipe, plans),
        **constraints.refused_by_node(hardware.node, plans),
        **constraints.refused_by_custom_split(plans, custom_split),
        **constraints.refused_by_stage_recompute(recipe, plans),
        **refused_by_target(recipe.target, model, recipe, plans),
    }
