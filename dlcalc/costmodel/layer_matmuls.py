"""The linear layers of each sublayer and their times: forward, gradient of the input, gradient of the weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dlcalc.calculators import kernels, traffic
from dlcalc.calculators.stragglers import slowest_device_factor
from dlcalc.costmodel.machine import Machine, MatmulMachine
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.specs.model import ModelSpec

ZERO = number(0.0)


@dataclass(frozen=True)
class Matmul:
    """One linear layer: (tokens, inner) x (inner, outer), ``groups`` times at once."""

    name: str
    tokens: Array
    outer: Array
    inner: Array
    groups: Array | float = 1.0
    replicated_bits: bool = False
    """Kept in 16 bits whatever the recipe."""


@dataclass(frozen=True)
class MatmulTime:
    """Of one linear layer: forward, gradient of its input, gradient of its weight."""

    forward_s: Array
    input_grad_s: Array
    weight_grad_s: Array


def sum_of(arrays: Iterable[Array]) -> Array:
    """Sum in the order given, which is the same for one plan and for a grid, so that both round alike."""
    first, *others = arrays
    for array in others:
        first = first + array
    return first


def is_low_precision(machine: Machine) -> bool:
    """Whether linear layers quantize what they multiply."""
    return machine.recipe.precision in traffic.CAST_BYTES


def slowest_device(plans: Plans) -> Array:
    """Time of arithmetic on the slowest device of the job over that on an average one."""
    return np.asarray(slowest_device_factor(plans.tp * plans.cp * plans.pp * plans.dp))  # mesh


def attention_matmuls(
    model: ModelSpec, plans: Plans, *, tokens: Array, own_tokens: Array, heads: Array, kv_heads: Array
) -> list[Matmul]:
    """Projections of an attention sublayer; with latent attention, down to the latent and up from it."""
    hidden = number(model.hidden_size)
    out = Matmul("out", tokens, hidden, heads * model.value_head_dim)
    if not model.is_mla:
        return [Matmul("qkv", tokens, (heads + 2.0 * kv_heads) * model.head_dim, hidden), out]
    latent = number(model.kv_lora_rank)
    kv_up = Matmul("kv up", tokens, heads * (model.qk_nope_head_dim + model.v_head_dim), latent)
    query = heads * model.qk_head_dim
    if not model.q_lora_rank:
        down = Matmul("qkv", own_tokens, query + latent + model.qk_rope_head_dim, hidden)
        return [down, kv_up, out]
    rank = number(model.q_lora_rank)
    down = Matmul("qkv", own_tokens, rank + latent + model.qk_rope_head_dim, hidden)
    return [down, Matmul("q up", tokens, query, rank), kv_up, out]


LATENT_UP = ("q up", "kv up")


def matmul_times(matmuls: list[Matmul], plans: Plans, machine: Machine) -> dict[str, MatmulTime]:
    """Every matmul of a sublayer, its three passes evaluated together: one call of the equation per precision."""
    times: dict[str, MatmulTime] = {}
    pace = slowest_device(plans)
    for kept in (False, True):
        chosen = [matmul for matmul in matmuls if matmul.replicated_bits is kept]
        if chosen:
            times |= _matmul_times_in(chosen, machine.sixteen_bit if kept else machine.linear, machine, pace)
    return times


def _matmul_times_in(
    matmuls: list[Matmul], unit: MatmulMachine, machine: Machine, pace: Array
) -> dict[str, MatmulTime]:
    forward = [(matmul.tokens, matmul.outer, matmul.inner) for matmul in matmuls]
    input_grad = [(m, k, n) for m, n, k in forward]
    weight_grad = [(n, k, m) for m, n, k in forward]
    groups = [matmul.groups for matmul in matmuls]
    profile = machine.recipe.framework
    # fused, a weight's gradient reads its buffer, adds and writes; otherwise it is written in 16 bits
    of_weights = 2.0 * profile.grad_bytes if profile.fused_grad_accumulation else 2.0
    outputs = [2.0] * (2 * len(matmuls)) + [of_weights] * len(matmuls)
    shape = np.broadcast_shapes(pace.shape, *(np.shape(x) for triple in [*forward, groups] for x in triple))
    stacked = np.empty((5, 3 * len(matmuls), *shape))
    for row, (triple, group, output) in enumerate(
        zip(forward + input_grad + weight_grad, groups * 3, outputs, strict=True)
    ):
        for column, value in enumerate((*triple, group, output)):
            stacked[column, row] = value
    m, n, k, group_counts, output_bytes = stacked
    seconds = np.asarray(
        kernels.matmul_time_s(
            m, n, k,
            groups=group_counts,
            rates=unit.rates,
            peak_flops_per_s=unit.peak_flops_per_s,
            hbm_bytes_per_s=unit.hbm_bytes_per_s,
            n_sms=unit.n_sms,
            input_bytes=unit.input_bytes,
            l2_bytes=unit.l2_bytes,
            arithmetic_factor=unit.training_factor * pace,
            output_bytes=output_bytes.reshape(len(output_bytes), -1)[:, 0].reshape(-1, *[1] * len(shape)),
        )
    )  # fmt: skip
    count = len(matmuls)
    return {
        matmul.name: MatmulTime(seconds[i], seconds[count + i], seconds[2 * count + i])
        for i, matmul in enumerate(matmuls)
    }


def cast_traffic(matmuls: list[Matmul], plans: Plans, machine: Machine) -> tuple[Array, Array]:
    """Bytes of quantizing inputs and weights (forward) and output gradients (backward) of low-precision matmuls.

    Weights once a step where the trainer keeps them quantized from one micro-batch to the next.
    """
    if not is_low_precision(machine):
        return ZERO, ZERO
    recipe = machine.recipe
    micro_batches = recipe.global_batch / (plans.dp * plans.micro_batch)
    of_weights = 1.0 / micro_batches if recipe.framework.caches_quantized_weights else number(1.0)
    forward = backward = ZERO
    for matmul in matmuls:
        if not matmul.replicated_bits:
            inputs = matmul.groups * matmul.tokens * matmul.inner
            weights = matmul.groups * matmul.outer * matmul.inner * of_weights
            forward = forward + inputs + weights
            backward = backward + matmul.groups * matmul.tokens * matmul.outer
    precision, scaling = recipe.precision, recipe.scaling
    return (
        traffic.cast_traffic_bytes(forward, precision=precision, scaling=scaling),
        traffic.cast_traffic_bytes(backward, precision=precision, scaling=scaling),
    )


ALIGNED_ELEMENTS = 8
"""Rows of 16-bit operands must start on 16 bytes for tensor cores to run at full rate."""
UNALIGNED_FACTOR = 2.5
"""Time of a matmul whose rows do not, over that of one whose do: read off measured steps (vtrain_single, vocabulary of
50,257 at tp = 1, A100), not off kernels; other devices are assumed alike."""


def unaligned(time: MatmulTime, plans: Plans) -> MatmulTime:
    """Time of a matmul whose rows are not aligned where they are whole; tensor-parallel shards are padded."""
    factor = np.where(plans.tp == 1, UNALIGNED_FACTOR, 1.0)
    return MatmulTime(factor * time.forward_s, factor * time.input_grad_s, factor * time.weight_grad_s)
