"""Every pipeline stage of one plan, where the estimate looks at those that bound all others.

The cost model's own functions take any number of stages on their leading axis; here they get all of them. For one plan
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.schedule import DUALPIPE, ONE_F_ONE_B, ZB_V
from dlcalc.calculators.stages import (
    CUSTOM,
    StageLayers,
    chunk_recomputed_count,
    first_layer_count,
    weighing_mtp_layers_count,
)
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.footprint import offloaded_layer_bytes
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.costmodel.stage_times import ModelTimes, StageTimes, model_times, stage_times
from dlcalc.specs.model import ModelSpec

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Chunks:
    """The consecutive pieces a model is cut into, first to last, and which device works on which."""

    layers: StageLayers
    """Leading axis: chunks."""
    on_device: NDArray[np.bool_]
    """(device, chunk). Under dualpipe every chunk is on two devices, one of each direction."""

    @property
    def stages(self) -> StageLayers:
        """Leading axis: devices, each with all of its chunks."""
        held = self.on_device.astype(np.float64)
        one = self.layers
        layers = held @ one.layers
        redone = None if one.recomputed is None else np.minimum(held @ one.recomputed, layers)
        return StageLayers(
            stage=np.arange(float(len(held))),
            windowed=held @ one.windowed,
            full=held @ one.full,
            dense=held @ one.dense,
            moe=held @ one.moe,
            embeddings=held @ one.embeddings,
            heads=held @ one.heads,
            most_layers=np.asarray(np.max(layers)),
            fewest_layers=np.asarray(np.min(layers)),
            recomputed=redone,
            recomputed_of_all=None if redone is None else np.asarray(np.sum(redone)),
        )


def chunks_of(
    model: ModelSpec,
    plan: Plans,
    custom_split: tuple[int, ...] | None = None,
    stage_recompute: tuple[int, ...] | None = None,
) -> Chunks:
    """How ``plan``, a point, cuts the model, and what its stages recompute where each has a number of its own."""
    pp, vpp, schedule = int(plan.pp), int(plan.vpp), int(plan.schedule)
    n_chunks = pp * vpp
    if int(plan.split) == CUSTOM and custom_split is not None and len(custom_split) == n_chunks:
        cut = np.concatenate([[0.0], np.cumsum(custom_split)])
    else:
        chunk = np.arange(n_chunks + 1.0)
        weighing = weighing_mtp_layers_count(model.mtp_layers, schedule)
        cut = first_layer_count(model.n_layers, chunk, n_chunks=number(n_chunks), split=plan.split, mtp_layers=weighing)
    at = np.minimum(cut, model.n_layers).astype(int)
    windowed, moe = (_per_chunk(kinds, at) for kinds in (model.layer_is_windowed, model.layer_is_moe))
    layers = np.diff(cut)
    first, last = (np.zeros(n_chunks) for _ in range(2))
    first[0] = last[-1] = 1.0
    position = np.arange(n_chunks)
    device = np.minimum(position, 2 * pp - 1 - position) if schedule == ZB_V and vpp == 2 else position % pp
    on_device = device[None, :] == np.arange(pp)[:, None]
    if schedule == DUALPIPE:
        on_device = on_device | on_device[::-1]
    redone = None if stage_recompute is None else chunk_recomputed_count(device, stage_recompute, pp)
    return Chunks(
        layers=StageLayers(
            stage=position.astype(np.float64),
            windowed=windowed,
            full=layers - windowed,
            dense=layers - moe,
            moe=moe,
            embeddings=first,
            heads=last,
            most_layers=np.max(layers),
            fewest_layers=np.min(layers),
            recomputed=redone,
            recomputed_of_all=None if redone is None else np.asarray(np.sum(redone)),
        ),
        on_device=on_device,
    )


def times_of(found: Estimate) -> ModelTimes:
    """The sublayers that the estimate of a point is the sum of."""
    return model_times(found.model, found.plans, found.links, found.machine)


def device_times(found: Estimate, stages: StageLayers) -> StageTimes:
    """One micro-batch's passes on the given stages of a point."""
    offloaded = offloaded_layer_bytes(found.model, found.plans, found.machine)
    return stage_times(found.model, found.plans, stages, times_of(found), found.machine, offloaded)


@dataclass(frozen=True)
class ChunkTimes:
    """Seconds of one micro-batch's passes through each chunk."""

    forward_s: Array
    backward_s: Array
    """What is recomputed included."""
    weight_grad_s: Array
    """The part of the backward pass that can wait."""


def chunk_times(found: Estimate, chunks: Chunks) -> ChunkTimes:
    """Times of every chunk of a point; the chunks of a device take together what the estimate says of the device.

    They are scaled to it: the two differ only where a stage's launch floor binds for some of its chunks alone.
    """
    two_stages = int(found.plans.schedule) == DUALPIPE
    alone = replace(found, plans=replace(found.plans, schedule=number(ONE_F_ONE_B))) if two_stages else found
    each = device_times(alone, chunks.layers)
    weight_grad = np.array(
        [device_times(alone, _one(chunks.layers, c)).weight_grad_s for c in range(chunks.layers.stage.size)]
    )
    forward, backward = (np.array(np.broadcast_to(x, weight_grad.shape)) for x in (each.forward_s, each.backward_s))
    if not two_stages:
        together = device_times(found, chunks.stages)
        held = chunks.on_device.astype(np.float64)
        forward *= held.T @ _ratio(together.forward_s, held @ forward)
        backward *= held.T @ _ratio(together.backward_s, held @ backward)
    return ChunkTimes(forward, backward, np.minimum(weight_grad, backward))


def _per_chunk(kinds: tuple[bool, ...], at: Index) -> Array:
    """Layers of a kind between the cuts ``at``."""
    before = np.concatenate([[0.0], np.cumsum(np.array(kinds, dtype=np.float64))])
    return np.diff(before[at])


def _ratio(whole: Array, parts: Array) -> Array:
    """``whole / parts``, 1 where a stage has nothing to do."""
    return np.asarray(np.divide(whole, parts, out=np.ones_like(parts), where=parts > 0))


def _one(layers: StageLayers, position: int) -> StageLayers:
    """A pipeline of one of the stages."""
    kept = {
        name: getattr(layers, name)[position : position + 1]
        for name in ("stage", "windowed", "full", "dense", "moe", "embeddings", "heads")
    }
    if layers.recomputed is not None:
        kept["recomputed"] = layers.recomputed[position : position + 1]
    return replace(layers, **kept)
