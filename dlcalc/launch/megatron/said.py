"""What a configuration of Megatron says, and where: values by option name, with the line of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dlcalc.errors import Problem, SpecError, nearest
from dlcalc.launch.megatron.options import BY_NAME, EFFECTLESS, Option, Value


class Place(NamedTuple):
    """Where an option stands, in the words of the file."""

    line: int
    label: str


@dataclass
class Said:
    """Everything read of one file."""

    file: Path
    values: dict[str, Value] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    defaults: Mapping[str, Value] = field(default_factory=dict)
    """Where the trainer's differ from Megatron-Core's."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the trainer calls an option, where that is no flag."""

    def set(self, name: str, value: Value, place: Place) -> None:
        """Record a value; the same option may be given twice, but not with two values."""
        if name in self.values and self.values[name] != value:
            before = self.places[name]
            raise self.error(
                place,
                f"{shown(value)}, but line {before.line} says {shown(self.values[name])}; an option has one value",
            )
        self.values[name] = value
        self.places.setdefault(name, place)

    def ignore(self, label: str) -> None:
        """Remember an option that no estimate reads, once."""
        if label not in self.ignored:
            self.ignored.append(label)

    def get(self, name: str) -> Value:
        """The value of an option, or the trainer's default."""
        if name in self.values:
            return self.values[name]
        return self.defaults.get(name, BY_NAME[name].default)

    def whole(self, name: str) -> int:
        """The value of an option that must be there."""
        value = self.get(name)
        if not isinstance(value, int):
            text = f"{self.label(name)} is missing, and Megatron has no default for it"
            raise SpecError(self.file, (Problem(0, "", text),))
        return value

    def count(self, name: str, default: int = 0) -> int:
        """The value of an option that may be left out."""
        value = self.get(name)
        return value if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """The value of an option that may be left out, whole or not."""
        value = self.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    def on(self, name: str) -> bool:
        return bool(self.get(name))

    def label(self, name: str) -> str:
        """What the file calls an option, or would call it."""
        return self.places[name].label if name in self.places else self.labels.get(name, BY_NAME[name].flag)

    def mistake(self, name: str, text: str) -> SpecError:
        """An error about an option that was read."""
        return self.error(self.places.get(name, Place(0, self.label(name))), text)

    def error(self, place: Place, text: str) -> SpecError:
        """An error about something at ``place``."""
        if not place.line:
            return SpecError(self.file, (Problem(0, "", f"{place.label}: {text}"),))
        return SpecError(self.file, (Problem(place.line, place.label, text),))

    @property
    def effectless(self) -> tuple[str, ...]:
        """Options that were understood but change no estimate, as the file names them."""
        return tuple(place.label for name, place in self.places.items() if name in EFFECTLESS)


def shown(value: Value) -> str:
    """A value as people write it."""
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def parsed(said: Said, option: Option, words: list[str], place: Place) -> Value:
    """The value that ``words`` give to an option that takes one."""
    if option.kind == "words":
        if not words:
            raise said.error(place, "needs at least one word")
        return tuple(words)
    if len(words) != 1:
        more = f"takes one value, not {len(words)} ({' '.join(words)})" if words else "needs a value"
        raise said.error(place, more)
    (word,) = words
    try:
        value = _converted(option, word)
    except (ValueError, OverflowError):
        kind = "a whole number" if option.kind == "whole" else "a number"
        raise said.error(place, f"must be {kind}, not {word!r}") from None
    if option.choices and str(value) not in option.choices:
        near = nearest(word, option.choices)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(option.choices)}"
        raise said.error(place, f"no such value as {word!r}; {hint}")
    return value


def _converted(option: Option, word: str) -> Value:
    if option.kind == "whole":
        if len(word) > 18:
            raise ValueError
        return int(word)
    return float(word) if option.kind == "number" else word


def unknown(said: Said, label: str, known: Iterable[str], place: Place) -> None:
    """An option that is none of ours: an error if it is a misspelling, else one to ignore."""
    near = [one for one in nearest(label, known) if is_misspelling(label, one)]
    if near:
        raise said.error(place, f"no such option; did you mean {near[0]}?")
    said.ignore(label)


SHORT_NAME = 5
"""Letters of a name per one that may be wrong: fp32 is no misspelling of fp8."""


def is_misspelling(label: str, option: str, *, abbreviates: bool = True) -> bool:
    """A letter or two off; or an abbreviation, which Megatron does not take."""
    short, long = label.replace("_", "-"), option.replace("_", "-")
    if short == long or (abbreviates and len(short) >= 8 and long.startswith(short)):
        return True
    return abs(len(short) - len(long)) <= 2 and _edits(short, long) <= min(2, len(short) // SHORT_NAME)


def _edits(one: str, other: str) -> int:
    """Letters to insert, delete or change to come from one to the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, wanted in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != wanted))
    return row[-1]
