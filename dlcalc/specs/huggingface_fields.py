"""One object of a Hugging Face ``config.json``: its fields, with errors that name file, line and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlcalc.errors import SpecError
from dlcalc.specs.load import spec_error
from dlcalc.specs.marked_yaml import Marks
from dlcalc.specs.wording import shown

LARGEST_DIMENSION = 2**31 - 1
LARGEST_NUMBER = 1e15
Dimensions = dict[str, Any]
"""Fields of a ModelSpec."""


@dataclass(frozen=True)
class Config:
    """One object of a config.json, with errors that name file, line and field."""

    file: Path
    values: Mapping[str, Any]
    marks: Marks
    """Of the whole file."""
    path: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        value = self.values.get("model_type")
        return value if isinstance(value, str) else ""

    def refused(self, field: str, problem: str) -> SpecError:
        """The error to raise about ``field``; a missing one points at the object it is missing from."""
        return spec_error(self.file, self.marks, (*self.path, field), problem)

    def with_defaults(self, **defaults: object) -> Config:
        """The same object, missing keys filled in; null stays null."""
        return replace(self, values=defaults | dict(self.values))

    def section(self, name: str) -> Config:
        """The object under ``name``; empty when it is missing."""
        values = self.values.get(name)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise self.refused(name, f"must be an object, not {shown(values)}")
        return Config(self.file, values, self.marks, (*self.path, name))

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def count(self, *names: str, default: int | None = None, least: int = 1, most: int = LARGEST_DIMENSION) -> int:
        """A whole number under the first of ``names`` that is there; null counts as missing."""
        name = next((n for n in names if self.has(n)), names[0])
        value = self.values.get(name)
        if value is None:
            if default is None:
                others = f" (or {', '.join(names[1:])})" if names[1:] else ""
                raise self.refused(name, f"missing; a {self.model_type} config needs it{others}")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refused(name, f"must be a whole number, not {shown(value)}")
        if not least <= value <= most:
            raise self.refused(name, f"must lie between {least} and {most}, not {shown(value)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refused(name, f"must be true or false, not {shown(value)}")
        return value

    def word(self, name: str, *, default: str) -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refused(name, f"must be a string, not {shown(value)}")
        return value

    def number(self, *names: str, default: float | None = None) -> float | None:
        """A number above 0 under the first of ``names`` that is there; 0 counts as missing, as null does."""
        name = next((n for n in names if self.has(n)), names[0])
        value = self.values.get(name)
        if value is None or value == 0:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST_NUMBER:
            raise self.refused(name, f"must be a number above 0, not {shown(value)}")
        return float(value)

    def listed(self, name: str) -> Sequence[Any]:
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.refused(name, f"must be a list, not {shown(value)}")
        return value
