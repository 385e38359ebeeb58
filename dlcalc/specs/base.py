"""What every spec shares: frozen, strict, no unknown keys; and numbers that carry their source."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Spec(BaseModel):
    """Base of everything read from YAML: frozen, no unknown keys, no silent coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _tuple_from_list(value: object) -> object:
    """YAML only knows lists; a frozen spec holds tuples."""
    return tuple(value) if isinstance(value, list) else value


TupleFromList = BeforeValidator(_tuple_from_list)

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Quoted(Spec):
    """A positive number and where it was read: ``{value: 3.35, source: "https://..."}``."""

    value: PositiveFloat
    source: Annotated[str, Field(min_length=8)]
