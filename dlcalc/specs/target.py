"""Trainers that a plan can be written for, by the names users give them. What each can run: costmodel/targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Target = Literal["megatron-lm", "megatron-bridge", "torchtitan", "deepspeed", "fsdp-accelerate", "nanotron"]
TARGETS: tuple[Target, ...] = get_args(Target)

PROFILE_OF_TARGET: Mapping[Target, str] = {
    "megatron-lm": "megatron",
    "megatron-bridge": "megatron_bridge",
    "torchtitan": "torchtitan",
    "deepspeed": "deepspeed",
    "fsdp-accelerate": "fsdp_composer",
    "nanotron": "megatron_legacy",
}
"""The framework profile whose costs come nearest, taken where a recipe names a target and no framework."""
