"""What differs between two checkpoints: names, shapes, dtypes. Data is not compared, for it is not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlcalc.checkpoint.contents import Checkpoint, Tensor
from dlcalc.checkpoint.summary import filtered


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor that both have, and not alike."""

    here: Tensor
    there: Tensor


@dataclass(frozen=True)
class Difference:
    """Tensors that only one of two checkpoints has, and those of other shape or dtype."""

    here: Checkpoint
    there: Checkpoint
    only_here: tuple[Tensor, ...]
    only_there: tuple[Tensor, ...]
    changed: tuple[Changed, ...]
    n_same: int

    @property
    def is_none(self) -> bool:
        return not (self.only_here or self.only_there or self.changed)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.here.path),
            "other": str(self.there.path),
            "same": self.is_none,
            "tensors_alike": self.n_same,
            "only_here": [_plain(tensor) for tensor in self.only_here],
            "only_there": [_plain(tensor) for tensor in self.only_there],
            "changed": [
                {
                    "name": pair.here.name,
                    "shape": [list(pair.here.shape), list(pair.there.shape)],
                    "dtype": [pair.here.dtype, pair.there.dtype],
                }
                for pair in self.changed
            ],
        }


def compare(here: Checkpoint, there: Checkpoint, pattern: re.Pattern[str] | None = None) -> Difference:
    """How the tensors of ``here`` differ from those of ``there``, by name."""
    here, there = filtered(here, pattern), filtered(there, pattern)
    ours, theirs = _by_name(here), _by_name(there)
    pairs = [(tensor, theirs[name]) for name, tensor in ours.items() if name in theirs]
    changed = tuple(Changed(a, b) for a, b in pairs if (a.shape, a.dtype) != (b.shape, b.dtype))
    return Difference(
        here=here,
        there=there,
        only_here=tuple(tensor for name, tensor in ours.items() if name not in theirs),
        only_there=tuple(tensor for name, tensor in theirs.items() if name not in ours),
        changed=changed,
        n_same=len(pairs) - len(changed),
    )


def _by_name(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    return {tensor.name: tensor for tensor in checkpoint.contents.tensors}


@dataclass(frozen=True, slots=True)
class Line:
    """Names that differ in numbers alone and say the same, as one line."""

    name: str
    text: str
    n_tensors: int


def lines(found: Iterable[tuple[str, str]]) -> list[Line]:
    """Names with what is said of them, joined where only numbers in the names differ."""
    by_template: dict[tuple[str, str], list[str]] = {}
    for name, text in found:
        by_template.setdefault((re.sub(r"\d+", "*", name), text), []).append(name)
    return [
        Line(names[0] if len(names) == 1 else template, text, len(names))
        for (template, text), names in by_template.items()
    ]


def _plain(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
