"""A batch of plans as one array per knob.

The arrays need not have equal shapes, only broadcastable ones, and that is the whole trick:

    one point (3dtrn)       every knob has shape ()
    n rows (Optuna, a CSV)  every knob has shape (n,)
    a grid (exhaustive)     a knob is as long as its axis, and 1 along every other axis

An equation written once on arrays serves all three, and on a grid a term that reads only ``tp``
and ``micro_batch`` is computed on those axes alone, because nothing else is in its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.context_parallel import CP_EXCHANGES
from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import SPLITS
from dlcalc.specs.recompute import RECOMPUTE_MODES

Array = NDArray[np.float64]
Index = NDArray[np.int64]
T = TypeVar("T")


def number(value: float) -> Array:
    """A single value as an array without axes, so that what depends on no knob broadcasts like everything else."""
    return np.float64(value)  # type: ignore[return-value]  # a scalar of numpy is hashable, and acts as an array


NAMES: Mapping[str, tuple[str, ...]] = {
    "schedule": SCHEDULES,
    "recompute": RECOMPUTE_MODES,
    "split": SPLITS,
    "cp_exchange": CP_EXCHANGES,
}
"""Knobs that people write as words; in a batch they are the index of the word."""

SWITCHES = (
    "sequence_parallel",
    "overlap_grad",
    "overlap_param",
    "overlap_tp",
    "overlap_ep",
    "offload_optimizer",
)
"""Knobs that are on (1) or off (0)."""

ALL_LAYERS = -1
"""``recompute_layers``: every layer of the stage."""
PER_STAGE = -2
"""``recompute_layers``: of every stage as many as the recipe's ``stage_recompute`` says."""
LAYER_WORDS: Mapping[str, int] = {"all": ALL_LAYERS, "per_stage": PER_STAGE}
"""Words in place of a count of ``recompute_layers``; unlike other words they are numbers in results, too."""


@dataclass(frozen=True)
class Plans:
    """One float64 array per knob, broadcastable against each other."""

    tp: Array
    cp: Array
    pp: Array
    dp: Array
    ep: Array
    etp: Array
    vpp: Array
    schedule: Array
    split: Array
    micro_batch: Array
    recompute: Array
    recompute_layers: Array
    zero_stage: Array
    dp_replicate: Array
    sequence_parallel: Array
    overlap_grad: Array
    overlap_param: Array
    overlap_tp: Array
    overlap_ep: Array
    cp_exchange: Array
    offload_optimizer: Array
    offload_layers: Array

    @classmethod
    def grid(cls, axes: Sequence[Mapping[str, Any]]) -> Self:
        """The product of ``axes``, each a table of knob values that vary together."""
        columns: dict[str, Array] = {}
        for position, axis in enumerate(axes):
            shape = [1] * len(axes)
            shape[position] = -1
            for knob, values in axis.items():
                columns[knob] = np.asarray(values, dtype=np.float64).reshape(shape)
        return cls(**columns)

    @classmethod
    def rows(cls, columns: Mapping[str, Any]) -> Self:
        """One plan per row of equally long columns."""
        return cls(**{knob: np.asarray(columns[knob], dtype=np.float64) for knob in KNOBS})

    @classmethod
    def point(cls, **values: float | str) -> Self:
        """A single plan; knobs not named take the value that changes nothing (1, off, none)."""
        known = DEFAULTS | {knob: code_of(knob, value) for knob, value in values.items()}
        return cls(**{knob: number(known[knob]) for knob in KNOBS})

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(getattr(self, knob).shape for knob in KNOBS))

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, index: NDArray[np.int64]) -> Self:
        """The plans at flat positions ``index`` of the broadcast batch, as rows."""
        shape = self.shape
        where = np.unravel_index(index, shape) if shape else ()
        return type(self)(**{knob: pick(getattr(self, knob), where) for knob in KNOBS})

    def take_rows(self, rows: Sequence[Index]) -> Self:
        """The plans of a grid at positions ``rows`` of every axis."""
        return type(self)(**{knob: take_rows(getattr(self, knob), rows) for knob in KNOBS})

    def columns(self) -> dict[str, Array]:
        """Every knob, broadcast to the full shape and flattened."""
        shape = self.shape
        return {knob: np.broadcast_to(getattr(self, knob), shape).ravel() for knob in KNOBS}


KNOBS = tuple(field.name for field in fields(Plans))

DEFAULTS: dict[str, float] = (
    dict.fromkeys(KNOBS, 0.0)
    | dict.fromkeys(("tp", "cp", "pp", "dp", "ep", "etp", "vpp", "micro_batch", "dp_replicate"), 1.0)
    | {"recompute_layers": float(ALL_LAYERS)}
)


def code_of(knob: str, value: float | str) -> float:
    """The number that stands for ``value`` in a batch: the index of a word, the number itself otherwise."""
    if knob == "recompute_layers" and isinstance(value, str):
        return float(LAYER_WORDS[value])
    return float(NAMES[knob].index(value)) if isinstance(value, str) else float(value)


def value_of(knob: str, code: float) -> int | bool | str:
    """What people write for ``code``: the inverse of :func:`code_of`."""
    if knob in NAMES:
        return NAMES[knob][int(code)]
    return bool(code) if knob in SWITCHES else int(code)


def written_of(knob: str, code: float) -> int | bool | str:
    """The value as files have it, where layers are counted in words, too."""
    words = {count: word for word, count in LAYER_WORDS.items()} if knob == "recompute_layers" else {}
    return words.get(int(code), value_of(knob, code))


def take_rows(array: NDArray[T], rows: Sequence[Index]) -> NDArray[T]:  # type: ignore[type-var]
    """Positions ``rows`` of the last axes; an axis that the array does not have, or along which it is one, stays."""
    offset = array.ndim - len(rows)
    for axis, chosen in enumerate(rows):
        place = axis + offset
        if place >= 0 and array.shape[place] > 1 and len(chosen) < array.shape[place]:
            array = np.take(array, chosen, axis=place)
    return array


def pick(array: NDArray[T], where: Sequence[Index]) -> NDArray[T]:  # type: ignore[type-var]
    """Values of a broadcastable array at equally long positions along the axes of the full shape."""
    used = [w for w, n in zip(where[len(where) - array.ndim :], array.shape, strict=True) if n > 1]
    flat = array.squeeze()
    if not used:
        return np.full(np.shape(where[0]) if where else (), flat)
    return np.take(flat, used[0]) if len(used) == 1 else np.asarray(flat[tuple(used)])
