"""What every spec shares: frozen, strict, no unknown keys; and numbers that carry their source."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dlcalc.specs.quantities import MAX_DEVICES


class Spec(BaseModel):
    """Base of everything read from YAML: frozen, no unknown keys, no silent coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _tuple_from_list(value: object) -> object:
    """YAML only knows lists; a frozen spec holds tuples."""
    return tuple(value) if isinstance(value, list) else value


TupleFromList = BeforeValidator(_tuple_from_list)

MAX_COUNT = 10**12
MAX_LAYERS = 10_000
"""What no file can mean to exceed: beyond, products overflow, and lists of every layer or stage fill the memory."""

PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Degree = Annotated[int, Field(gt=0, le=MAX_DEVICES)]
"""Over how many devices something is spread."""
Depth = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
"""Layers, or parts of a pipeline, each of which holds one."""
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Quoted(Spec):
    """A positive number and where it was read: ``{value: 3.35, source: "https://..."}``."""

    value: PositiveFloat
    source: Annotated[str, Field(min_length=8)]
