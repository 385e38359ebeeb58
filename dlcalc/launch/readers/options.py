"""Options of a trainer by name, each with the line it stands on: what readers of command lines and files share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcalc.errors import Problem, SpecError, nearest
from dlcalc.specs.load import parse_yaml
from dlcalc.specs.wording import shown

LARGEST_COUNT = 10**9
"""Of devices, layers, tokens of a sequence; more is a mistake, and would overflow what is computed from it."""


@dataclass(frozen=True)
class Options:
    """Values by dotted name (``parallelism.tensor_parallel_degree``); what nobody asks for is left over."""

    file: Path
    values: Mapping[str, Any]
    line_of: Callable[[str], int]
    asked: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def given(self, name: str) -> Any:  # noqa: ANN401 (whatever stands there)
        """The value, or None where there is none."""
        self.asked.add(name)
        return self.values.get(name)

    def whole(self, name: str, default: int, *, least: int = 1) -> int:
        """A whole number from ``least``."""
        value = self.given(name)
        if value is None:
            return default
        number = _whole(value)
        if number is None or not least <= number <= LARGEST_COUNT:
            raise self.error(name, f"must be a whole number from {least} to {LARGEST_COUNT:,}, not {shown(value)}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """On or off."""
        value = self.given(name)
        if value is None:
            return default
        known = {"true": True, "false": False}
        word = str(value).lower() if isinstance(value, bool | str) else ""
        if word not in known:
            raise self.error(name, f"must be true or false, not {shown(value)}")
        return known[word]

    def word(self, name: str, default: str, known: Iterable[str]) -> str:
        """One of several words; case does not count."""
        value = self.given(name)
        if value is None:
            return default
        by_folded = {one.casefold(): one for one in known}
        if not isinstance(value, str) or value.casefold() not in by_folded:
            near = nearest(value, by_folded.values()) if isinstance(value, str) else []
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(by_folded.values())}"
            raise self.error(name, f"no such value: {shown(value)}{hint}")
        return by_folded[value.casefold()]

    def error(self, name: str, text: str) -> SpecError:
        """A mistake in the option ``name``."""
        return SpecError(self.file, (Problem(self.line_of(name), name, text),))

    def left_over(self, known: Iterable[str] = ()) -> tuple[str, ...]:
        """Names that nobody asked for; one that looks like a misspelling of one that somebody did is a mistake."""
        rest = [name for name in self.values if name not in self.asked]
        for name in rest:
            near = [one for one in nearest(name, self.asked) if one not in self.values]
            if near and name not in set(known) and _misspelled(name, near[0]):
                raise self.error(name, f"no such option; did you mean {near[0]}?")
        return tuple(rest)


def _misspelled(name: str, meant: str, most: int = 2) -> bool:
    """Whether only a letter or two differ: siblings look alike too, and are no mistake."""
    if abs(len(name) - len(meant)) > most:
        return False
    row = list(range(len(meant) + 1))
    for position, letter in enumerate(name, start=1):
        previous, row[0] = row[0], position
        for column, other in enumerate(meant, start=1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (letter != other))
    return row[-1] <= most


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    digits = str(value).removeprefix("-").replace("_", "") if isinstance(value, str) else ""
    return int(str(value).replace("_", "")) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def from_mapping(text: str, file: Path) -> Options:
    """Options of a YAML or JSON text; a mapping in it gives dotted names."""
    data, marks = parse_yaml(text, file=file)
    if not isinstance(data, dict):
        raise SpecError(file, (Problem(1, file.name, f"must be a mapping (key: value), not {shown(data)}"),))
    values: dict[str, Any] = {}
    paths: dict[str, tuple[Hashable, ...]] = {}
    flatten(data, (), values, paths)
    return Options(file, values, lambda name: marks.line_of(paths.get(name, tuple(name.split(".")))))


def flatten(
    data: Mapping[Any, Any],
    prefix: tuple[Hashable, ...],
    values: dict[str, Any],
    paths: dict[str, tuple[Hashable, ...]],
) -> None:
    """Every value of nested mappings by dotted name; an empty mapping is a value. The reader bounds the depth."""
    for key, value in data.items():
        path = (*prefix, key)
        if isinstance(value, dict) and value:
            flatten(value, path, values, paths)
        else:
            name = ".".join(map(str, path))
            values[name], paths[name] = value, path
