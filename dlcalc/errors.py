"""Every error a user can cause, as one tree.

    DlcalcError                 exit 2 unless said otherwise
    ├── FieldError              a value that no schema can judge, by its field; a SpecError once the file is known
    ├── SpecError               a YAML or JSON file says something impossible: file, line, field, problem
    ├── UnknownNameError        a model, hardware, framework or knob name nobody knows (with the nearest ones)
    ├── InfeasibleSpaceError    exit 3: every plan of every scenario was refused
    ├── ResultError             a result directory that is damaged, foreign, or already there
    ├── TargetError             exit 3: a trainer cannot run the plan
    ├── CheckpointError         a checkpoint that is damaged, unknown, or refused for what its pickle calls
    └── TopologyError           a fabric that cannot be read, is no tree, or cannot hold the job (the last: exit 3)

A door catches ``DlcalcError`` alone. Anything else is a bug of dlcalc and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LONGEST_NAME = 80  # longer ones are no misspelling of anything, and difflib is quadratic


class DlcalcError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a file. Line 0 means the file itself, which then has no field either."""

    line: int
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.line}: {self.field}: {self.text}" if self.line else f" {self.text}"


@dataclass(eq=False)  # not frozen: Python itself assigns __traceback__ and __cause__
class SpecError(DlcalcError):
    """One or several mistakes in one file; every line reads ``file:line: field: problem``."""

    file: Path
    problems: tuple[Problem, ...]
    n_more: int = 0
    """Further mistakes that are only counted."""

    def __str__(self) -> str:
        lines = [f"{self.file}:{problem}" for problem in self.problems]
        if self.n_more:
            lines.append(f"{self.file}: and {self.n_more:,} more")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[SpecError], tuple[Path, tuple[Problem, ...], int]]:
        return type(self), (self.file, self.problems, self.n_more)  # errors cross process boundaries


class FieldError(DlcalcError):
    """A value that does not go with the rest: what no schema sees, told of a field of a file not known here."""

    def __init__(self, field: tuple[str | int, ...], text: str) -> None:
        self.field, self.text = field, text
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in field)
        super().__init__(f"{path.removeprefix('.')}: {text}")

    def __reduce__(self) -> tuple[type[FieldError], tuple[tuple[str | int, ...], str]]:
        return type(self), (self.field, self.text)


class UnknownNameError(DlcalcError):
    """A name that is in no registry, with what was probably meant."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}; {suggestion(name, self.known)}")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class InfeasibleSpaceError(DlcalcError):
    """No plan of the study can run; the text says what refused them and the nearest misses."""

    exit_code = 3


class ResultError(DlcalcError):
    """A result directory that cannot be read or must not be written."""


class TargetError(DlcalcError):
    """A plan that its trainer cannot run; the text says why, and which plan comes nearest."""

    exit_code = 3


class CheckpointError(DlcalcError):
    """A checkpoint that cannot be read, or whose pickle names what no checkpoint needs."""


class TopologyError(DlcalcError):
    """A fabric that cannot be read (missing credential, damaged file, a cluster that says no), or that is no tree."""


class NoPlacementError(TopologyError):
    """Too few free nodes with topology data, or none that keep together what must stay together."""

    exit_code = 3


def suggestion(name: str, known: Iterable[str]) -> str:
    """What the user probably meant by ``name``, or the list of what there is."""
    names = sorted(known)
    near = nearest(name, names)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(names)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of ``known`` that ``name`` may be a misspelling of, nearest first; case does not count."""
    if len(name) > LONGEST_NAME:
        return []
    by_folded = {candidate.casefold(): candidate for candidate in known}
    return [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6)]
