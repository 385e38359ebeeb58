"""Trainers that a plan can be written for, by the names users give them. What each can run: costmodel/targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Target = Literal["megatron-lm", "megatron-bridge", "torchtitan", "deepspeed", "fsdp-accelerate", "nanotron"]
TARGETS: tuple[Target, ...] = get_args(Target)

READABLE: tuple[Target, ...] = ("megatron-lm", "megatron-bridge", "torchtitan", "deepspeed")
"""Targets whose own configurations can be read."""

PROFILES_OF_TARGET: Mapping[Target, tuple[str, ...]] = {
    "megatron-lm": ("megatron", "megatron_bridge", "megatron_legacy", "aleph_scaling"),
    "megatron-bridge": ("megatron_bridge", "megatron"),
    "torchtitan": ("torchtitan",),
    "deepspeed": ("deepspeed", "megatron_deepspeed"),
    "fsdp-accelerate": ("fsdp_accelerate", "fsdp_composer"),
    "nanotron": ("nanotron",),
}
"""Framework profiles that say what a target costs; the first is taken where a recipe names a target alone."""

PROFILE_OF_TARGET: Mapping[Target, str] = {target: names[0] for target, names in PROFILES_OF_TARGET.items()}

SETTINGS_OF_TARGET: Mapping[Target, Mapping[str, Any]] = {
    "torchtitan": {"cross_entropy": "chunked"},
    "fsdp-accelerate": {"accumulates_whole_gradients": "never"},
}
"""What is written for a target beyond its profile, which stands for the releases that runs were measured of."""
