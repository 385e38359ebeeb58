"""A trainer's own configuration in our words: what the readers make of it. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlcalc.specs.hardware import Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Scaling
from dlcalc.specs.target import Target


@dataclass(frozen=True)
class Imported:
    """One run as its trainer was told to do it."""

    source: Target
    model: ModelSpec | None
    """None where the configuration does not say (DeepSpeed)."""
    knobs: Mapping[str, int | bool | str]
    """Of a plan, those that it says or that the trainer's own defaults decide; dp only where it is written."""
    seq_len: int | None
    global_batch: int | None
    """In sequences."""
    precision: Precision
    scaling: Scaling = "tensor"
    """What one scale of an 8-bit matmul covers."""
    devices: int | None = None
    """Where the configuration says it."""
    custom_split: tuple[int, ...] | None = None
    """Layers of each pipeline chunk, where they are told apart."""
    cuda_graphs: bool = False
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the framework profile that the configuration changes, such as ``grad_reduce_bytes``."""
    ignored: tuple[str, ...] = ()
    """Options that no estimate reads."""
    notes: tuple[str, ...] = ()
    """What was assumed."""
