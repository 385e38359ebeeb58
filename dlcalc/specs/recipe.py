"""What must hold whatever the plan: the batch, the precision, the trainer, the convention of MFU."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import PositiveFloat, model_validator

from dlcalc.errors import FieldError
from dlcalc.specs.base import NonNegativeInt, PositiveInt, Spec, TupleFromList
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.target import Target

MfuConvention = Literal["full_attention", "causal_attention", "six_n"]
"""full_attention: matmuls incl. LM head + 12 L s h-like attention, not halved (PaLM, Megatron); causal_attention: the
same with causal attention halved (what flash attention computes); six_n: 6 x active parameters, no attention."""


Scaling = Literal["tensor", "delayed", "block"]


class Recipe(Spec):
    """The training recipe of a scenario."""

    seq_len: PositiveInt
    global_batch: PositiveInt
    """Sequences per optimizer step."""
    precision: Precision
    """Of the linear layers; attention and everything else runs in bf16 (fp16 for fp16)."""
    framework: FrameworkProfile
    scaling: Scaling = "tensor"
    """What one scale of an 8-bit matmul covers: a whole tensor, by its maximum of now or of steps before (``delayed``,
    which takes a pass less), or a row or block of it, whose matmuls are slower."""
    mfu_convention: MfuConvention = "full_attention"
    token_budget: PositiveFloat | None = None
    """Tokens of the whole run, for days and cost."""
    cuda_graphs: bool = False
    """Launches are replayed from a graph: no host launch floor."""
    target: Target | None = None
    """The trainer that a launch is to be written for; plans it cannot run are refused."""
    stage_recompute: Annotated[tuple[NonNegativeInt, ...], TupleFromList] | None = None
    """Layers of a chunk that are recomputed, stage by stage, for ``recompute_layers: per_stage``."""

    @model_validator(mode="before")
    @classmethod
    def _profile_in_precision(cls, given: object) -> object:
        """Some trainers keep other gradients in fp16 than in bf16."""
        if not isinstance(given, dict):
            return given
        profile = given.get("framework")
        if not isinstance(profile, FrameworkProfile):
            return given
        return {**given, "framework": profile.in_precision(str(given.get("precision")))}

    def on(self, hardware: HardwareSpec) -> Self:
        """The recipe as ``hardware`` runs it; FieldError if it has not the precision."""
        if self.precision not in hardware.precisions:
            has = ", ".join(hardware.precisions)
            raise FieldError(("precision",), f"{hardware.name} has no {self.precision}; it has {has}")
        profile = self.framework.on_device(hardware.device.lacks_attention)
        return self if profile is self.framework else self.model_copy(update={"framework": profile})

    @property
    def tokens_per_step(self) -> float:
        return float(self.seq_len) * self.global_batch
