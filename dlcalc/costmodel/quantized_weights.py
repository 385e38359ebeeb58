"""Where linear layers keep quantized copies of weights that are there in 16 bits too: a matter of trainer and plan."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators.memory import QUANTIZED_WEIGHT_BYTES
from dlcalc.costmodel.plans import Array
from dlcalc.specs.hardware import Precision
from dlcalc.specs.recipe import Recipe

FURTHEST_STAGE = {"fp8": 3, "mxfp8": 3, "nvfp4": 1}
"""ZeRO stage up to which Megatron keeps weights of a precision as they are: Megatron-FSDP knows no 4-bit ones."""


def gathers_quantized(precision: Precision, *, zero_stage: Array | int, offload_optimizer: Array | int) -> Array | bool:
    """Whether weights live in low precision alone: gathered so from an optimizer that is sharded and on the device.

    Source: megatron-core 0.19.2, --fp8-param-gather, --fp4-param-gather; Megatron-Bridge's recipes use them.
    """
    furthest = FURTHEST_STAGE.get(precision, 0)
    return (zero_stage >= 1) & (zero_stage <= furthest) & (offload_optimizer == 0)


GATHERED_BYTES = 2.0
"""Of a weight as it is gathered, in 16 bits."""
QUANTIZED_GATHERED_BYTES = {"fp8": 1.0, "nvfp4": 0.5 + 1 / 16}
"""The same where it lives in low precision alone; those of mxfp8 are gathered in 16 bits all the same."""


def gathered_weight_bytes(recipe: Recipe, *, zero_stage: Array, offload_optimizer: Array) -> Array | float:
    """Of a linear layer's weight as data-parallel ranks gather it."""
    profile, quantized = recipe.framework, QUANTIZED_GATHERED_BYTES.get(recipe.precision)
    if quantized is None or not (profile.caches_quantized_weights and profile.gathers_quantized_weights):
        return GATHERED_BYTES
    alone = gathers_quantized(recipe.precision, zero_stage=zero_stage, offload_optimizer=offload_optimizer)
    return np.where(alone, quantized, GATHERED_BYTES)


def copies_share(recipe: Recipe, *, zero_stage: Array, offload_optimizer: Array) -> Array | float:
    """1 where 16-bit weights and quantized copies of them are both kept, else 0."""
    profile = recipe.framework
    if not profile.caches_quantized_weights or recipe.precision not in QUANTIZED_WEIGHT_BYTES:
        return 0.0
    gathered = gathers_quantized(recipe.precision, zero_stage=zero_stage, offload_optimizer=offload_optimizer)
    return 1.0 - profile.gathers_quantized_weights * gathered
