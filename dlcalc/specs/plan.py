"""One plan as people write it: knobs by name, those left out to be chosen by whoever reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from dlcalc.specs.base import Degree, Depth, NonNegativeInt, PositiveInt, Spec
from dlcalc.specs.framework import CpExchange
from dlcalc.specs.recompute import JOIN, SIMPLE_MODES, combined

Schedule = Literal["1f1b", "interleaved", "zb-h1", "zb-v", "gpipe", "dualpipe"]
Split = Literal["even", "embedding_and_loss", "custom", "loss"]


def _known(mode: str) -> str:
    """A recompute mode; parts of a combined one may be written in any order."""
    known = combined(mode.split(JOIN))
    if known is None:  # told as a Literal's mistakes are, whose 34 values would fill a screen
        raise PydanticCustomError("literal_error", "unknown", {"expected": ", ".join(map(repr, SIMPLE_MODES))})
    return known


Recompute = Annotated[str, AfterValidator(_known)]
"""One of SIMPLE_MODES, or several of COMBINED joined by JOIN."""
ZeroStage = Annotated[int, Field(ge=0, le=3)]


class PlanSection(Spec):
    """Knobs in the words of a space file; what is left out takes the framework's default, or changes nothing."""

    tp: Degree | None = None
    cp: Degree | None = None
    pp: Depth | None = None
    dp: Degree | None = None
    ep: Degree | None = None
    etp: Degree | None = None
    vpp: Depth | None = None
    schedule: Schedule | None = None
    split: Split | None = None
    micro_batch: PositiveInt | None = None
    recompute: Recompute | None = None
    recompute_layers: NonNegativeInt | Literal["all", "per_stage"] | None = None
    zero_stage: ZeroStage | None = None
    dp_replicate: Degree | None = None
    sequence_parallel: bool | None = None
    overlap_grad: bool | None = None
    overlap_param: bool | None = None
    overlap_tp: bool | None = None
    overlap_ep: bool | None = None
    cp_exchange: CpExchange | None = None
    offload_optimizer: bool | None = None
    offload_layers: NonNegativeInt | None = None
