"""Where linear layers keep quantized copies of weights that are there in 16 bits too: a matter of trainer and plan."""

from __future__ import annotations

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


def copies_share(recipe: Recipe, *, zero_stage: Array, offload_optimizer: Array) -> Array | float:
    """1 where 16-bit weights and quantized copies of them are both kept, else 0."""
    profile = recipe.framework
    if not profile.caches_quantized_weights or recipe.precision not in QUANTIZED_WEIGHT_BYTES:
        return 0.0
    gathered = gathers_quantized(recipe.precision, zero_stage=zero_stage, offload_optimizer=offload_optimizer)
    return 1.0 - profile.gathers_quantized_weights * gathered
