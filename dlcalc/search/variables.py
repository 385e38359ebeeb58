"""What a sampler chooses, by name: one of several values, or a number between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = float | int | str | bool
Point = Mapping[str, Value]
"""Values by the name of a variable."""


@dataclass(frozen=True)
class Choice:
    """One of several values: numbers in order of size, or words and switches in no order."""

    name: str
    values: tuple[Value, ...]

    @property
    def is_ordered(self) -> bool:
        return not isinstance(self.values[0], str | bool)


@dataclass(frozen=True)
class Interval:
    """A number from ``low`` to ``high``."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


Variable = Choice | Interval
