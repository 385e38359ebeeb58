"""The work of every pipeline stage of one plan, and how long the schedule takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcalc.calculators.schedule import fill_sends_count
from dlcalc.costmodel.anatomy.numbers import plain
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.every_stage import Chunks, chunks_of, device_times
from dlcalc.costmodel.plans import value_of


@dataclass(frozen=True)
class StageWork:
    """One micro-batch on one device of a pipeline stage."""

    stage: int
    layers: float
    forward_s: float
    backward_s: float
    """What is recomputed included."""


@dataclass(frozen=True)
class PipelineFacts:
    """How well the pipeline is filled; seconds of a step."""

    schedule: str
    pp: int
    vpp: int
    split: str
    n_micro_batches: float
    stages: tuple[StageWork, ...]
    work_s: float
    """What an average stage works."""
    imbalance_s: float
    bubble_s: float
    bubble_fraction: float
    """Of the pipeline's time."""
    fill_sends: float
    pipeline_s: float
    """From the first forward to the last backward pass."""


def pipeline_facts(found: Estimate, custom_split: tuple[int, ...] | None) -> PipelineFacts:
    """The pipeline of a point."""
    plan = found.plans
    chunks: Chunks = chunks_of(found.model, plan, custom_split, found.machine.recipe.stage_recompute)
    stages = chunks.stages
    times = device_times(found, stages)
    n = len(stages.stage)
    forward, backward = (np.broadcast_to(x, n) for x in (times.forward_s, times.backward_s))
    terms = {name: plain(value) for name, value in found.step.terms().items()}
    total_s = pipeline_time_s(found)
    return PipelineFacts(
        schedule=str(value_of("schedule", float(plan.schedule))),
        pp=int(plan.pp),
        vpp=int(plan.vpp),
        split=str(value_of("split", float(plan.split))),
        n_micro_batches=plain(found.machine.recipe.global_batch / (plan.dp * plan.micro_batch)),
        stages=tuple(
            StageWork(stage, float(stages.layers[stage]), float(forward[stage]), float(backward[stage]))
            for stage in range(n)
        ),
        work_s=total_s - terms["bubble_s"] - terms["imbalance_s"],
        imbalance_s=terms["imbalance_s"],
        bubble_s=terms["bubble_s"],
        bubble_fraction=terms["bubble_s"] / total_s,
        fill_sends=plain(fill_sends_count(plan.schedule, pp=plan.pp, vpp=plan.vpp)),
        pipeline_s=total_s,
    )


BESIDE_PIPELINE = ("optimizer_s", "overhead_s", "grad_reduce_s", "param_gather_s")
"""Terms of a step before its first forward or after its last backward pass."""


def pipeline_time_s(found: Estimate) -> float:
    """From the first forward to the last backward pass of a point, by the estimate."""
    return sum(plain(value) for name, value in found.step.terms().items() if name not in BESIDE_PIPELINE)
