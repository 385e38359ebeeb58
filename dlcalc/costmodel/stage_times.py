"""One micro-batch's passes on every stage that bounds a pipeline: sublayers times how many of them a stage holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlcalc.calculators import launches, schedule
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.layer_matmuls import ZERO
from dlcalc.costmodel.layer_times import (
    Pass,
    Sublayer,
    attention_sublayer,
    dense_mlp_sublayer,
    embedding_sublayer,
    head_sublayer,
    moe_sublayer,
)
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.costmodel.recomputation import (
    LAUNCHED_AGAIN_OF_KIND,
    layer_end_s,
    mean_recomputed_fraction,
    recomputed_fraction,
    replay_s,
)
from dlcalc.specs.model import ModelSpec

HOST_LINK_FRACTION = 0.8
"""Achieved over datasheet rate of the link to the host: an assumption, not measured here."""


@dataclass(frozen=True)
class ModelTimes:
    """Sublayers of a model under a batch of plans: ``kinds`` pairs a StageLayers count with its sublayer."""

    kinds: Mapping[str, Sublayer]
    embedding: Sublayer
    head: Sublayer


def model_times(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> ModelTimes:
    """Times of every kind of sublayer the model has."""  # mesh x batch x tensor
    kinds: dict[str, Sublayer] = {}
    if any(model.layer_is_windowed):
        kinds["windowed"] = attention_sublayer(model, plans, links, machine, window=model.sliding_window)
    if not all(model.layer_is_windowed):
        kinds["full"] = attention_sublayer(model, plans, links, machine, window=0)
    if any(model.layer_is_moe):
        kinds["moe"] = moe_sublayer(model, plans, links, machine)
    if not all(model.layer_is_moe):
        kinds["dense"] = dense_mlp_sublayer(model, plans, links, machine)
    return ModelTimes(
        kinds=kinds,
        embedding=embedding_sublayer(model, plans, links, machine),
        head=head_sublayer(model, plans, links, machine),
    )


@dataclass(frozen=True)
class StageTimes:
    """One micro-batch's passes: on the bounding stages (leading axis), and summed over the pipeline.

    ``backward`` includes what is recomputed, and both passes what the host needs beyond the device.
    """

    forward_s: Array
    backward_s: Array
    sum_forward_s: Array
    sum_backward_s: Array
    sum_recompute_s: Array
    """Part of ``sum_backward_s``."""
    sum_offload_s: Array
    """Part of ``sum_backward_s``."""
    sum_launch_s: Array
    """Part of both sums: the launch floor without recomputation."""
    weight_grad_s: Array
    arithmetic_s: Array
    """Of matmuls and attention in a forward pass, on the stage that has most: less than the pass, whatever the plan's
    recomputation and overlaps; mesh x pipe x batch."""


def stage_times(
    model: ModelSpec, plans: Plans, stages: StageLayers, times: ModelTimes, machine: Machine, layer_offload_bytes: Array
) -> StageTimes:
    """Passes of one micro-batch on the bounding stages.

    Layers offloaded to the host move out behind the forward pass and back behind the backward pass; what the link does
    not manage meanwhile shows.
    """
    # under dualpipe a device sees every micro-batch on one of its two stages
    share = 1.0 - 0.5 * (plans.schedule == schedule.DUALPIPE)
    totals = {name: float(count) for name, count in layer_totals(model).items()}
    code = plans.recompute.astype(np.int64)
    device_f, device_b, replayed, host, launched_again = (_Sum() for _ in range(5))
    weight_grad = arithmetic = ZERO
    for name, sublayer in times.kinds.items():
        extra = float(model.mtp_layers) if is_mtp_kind(model, name) else 0.0
        counts = (share * (getattr(stages, name) + extra * stages.heads), totals[name] + extra)  # stage x mesh x pipe
        device_f.add(counts, sublayer.forward.total_s)
        device_b.add(counts, sublayer.backward.total_s)
        replayed.add(counts, replay_s(sublayer.forward, plans.recompute, name))
        if name == "dense" and not machine.recipe.framework.recomputes_to_the_end:
            replayed.add(counts, -layer_end_s(plans, sublayer))
        host.add(counts, sublayer.host_s)
        launched_again.add(counts, np.take(LAUNCHED_AGAIN_OF_KIND[name], code) * sublayer.host_s)
        weight_grad = weight_grad + counts[0] * sublayer.weight_grad_s
        arithmetic = arithmetic + counts[0] * arithmetic_s(sublayer.forward)
    n_heads = 1.0 + model.mtp_layers
    for counts, edge in (
        ((share * stages.embeddings, 1.0), times.embedding),
        ((share * n_heads * stages.heads, n_heads), times.head),
    ):
        device_f.add(counts, edge.forward.total_s)
        device_b.add(counts, edge.backward.total_s)
        host.add(counts, edge.host_s)
        arithmetic = arithmetic + counts[0] * arithmetic_s(edge.forward)

    fraction = recomputed_fraction(plans, stages.layers, stages.recomputed)  # stage x mesh x pipe x redo
    mean_fraction = mean_recomputed_fraction(model, plans, stages)
    twice = launches.BACKWARD_FACTOR
    waits = machine.recipe.framework.unhidden_launches

    def with_launches(device_s: Array, host_s: Array) -> Array:
        return np.maximum(device_s + waits * host_s, host_s)

    forward = with_launches(device_f.stage, host.stage)  # stage x mesh x pipe x batch x tensor
    backward = with_launches(
        device_b.stage + fraction * replayed.stage, twice * host.stage + fraction * launched_again.stage
    )  # stage x mesh x pipe x batch x redo x tensor
    sum_forward = with_launches(device_f.total, host.total)
    without = with_launches(device_b.total, twice * host.total)
    sum_backward = with_launches(
        device_b.total + mean_fraction * replayed.total, twice * host.total + mean_fraction * launched_again.total
    )
    exposed = mean_exposed = ZERO
    if np.any(plans.offload_layers):
        host_bytes_per_s = HOST_LINK_FRACTION * machine.hardware.node.host_bytes_per_s
        moved = share * np.minimum(plans.offload_layers, stages.layers) * layer_offload_bytes / host_bytes_per_s
        exposed = np.maximum(0.0, moved - forward) + np.maximum(0.0, moved - backward)  # out, and back
        mean_moved = share * plans.offload_layers * layer_offload_bytes / host_bytes_per_s * plans.pp
        mean_exposed = np.maximum(0.0, mean_moved - sum_forward) + np.maximum(0.0, mean_moved - sum_backward)
    return StageTimes(
        forward_s=forward,
        backward_s=backward + exposed,
        sum_forward_s=sum_forward,
        sum_backward_s=sum_backward + mean_exposed,
        sum_recompute_s=sum_backward - without,
        sum_offload_s=mean_exposed,
        sum_launch_s=(sum_forward - device_f.total) + (without - device_b.total),
        weight_grad_s=np.max(weight_grad, axis=0),
        arithmetic_s=np.max(arithmetic, axis=0),
    )


def arithmetic_s(one: Pass) -> Array:
    """Of a pass, its matmuls and attention."""
    return np.asarray(one.matmul_s + one.latent_matmul_s + one.attention_s)


class _Sum:
    """A quantity of a sublayer summed over the layers of each bounding stage, and over all layers."""

    def __init__(self) -> None:
        self.stage: Array = ZERO
        self.total: Array = ZERO

    def add(self, counts: tuple[Array, float], each: Array) -> None:
        self.stage = self.stage + counts[0] * each
        self.total = self.total + counts[1] * each


def layer_totals(model: ModelSpec) -> dict[str, int]:
    """How many sublayers of each kind a model has, beside those that predict several tokens."""
    windowed, moe = sum(model.layer_is_windowed), sum(model.layer_is_moe)
    return {"windowed": windowed, "full": model.n_layers - windowed, "moe": moe, "dense": model.n_layers - moe}


def is_mtp_kind(model: ModelSpec, name: str) -> bool:
    """Whether a multi-token-prediction module has this kind of sublayer: those of the last layer."""
    return name in (
        "windowed" if model.layer_is_windowed[-1] else "full",
        "moe" if model.layer_is_moe[-1] else "dense",
    )
