"""A scenario's plans as a few named numbers that a sampler can move, and the way from such numbers to plans.

A product of all values of all knobs is mostly plans that cannot run: degrees whose product is not the number of
devices, chunks that do not divide the layers, recomputation of more layers than there are. Here every point stands for
plans that nothing but memory can refuse: those nearest to it, in doublings of degrees and words changed. A plan is
taken only once; a point that is asked for again stands for its nearest neighbour.

Recomputation trades memory for time, and a sampler that has to find the least that fits stumbles over memory all the
time. So with ``folded``, a point leaves it open: it stands for every amount of recomputation that the rest allows.

Which plans run is known from the rules alone, one mesh at a time; no estimate is spent on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.stages import stage_layers_count
from dlcalc.costmodel.estimate import any_of, refusals
from dlcalc.costmodel.plans import ALL_LAYERS, NAMES, PER_STAGE, SWITCHES, Array, code_of, value_of
from dlcalc.search.constraints import holds
from dlcalc.search.space import Scenario, constraint_names
from dlcalc.search.variables import Choice, Point
from dlcalc.specs.recompute import from_least_to_most

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
REDO = 4
"""The recomputation axis among the six of a scenario."""
RECOMPUTATION = "recomputation"
"""Its coordinate: the rows of the axis, ordered by how much is computed again."""
FROM_LEAST_TO_MOST = from_least_to_most()
OTHER_WORD = 2.0
"""Doublings that another word, or a switch turned, is away."""


@dataclass
class Coordinates:
    """The coordinates of one scenario, and which of its plans were taken."""

    scenario: Scenario
    folded: bool = True
    """Whether a point stands for every amount of recomputation."""
    _open: dict[int, Mask] = field(default_factory=dict)
    """By mesh row: what runs and was not taken, on the other axes; folded, that of recomputation has one place."""

    @cached_property
    def all(self) -> tuple[Choice, ...]:
        """Knobs with more than one value; dp is what the other degrees leave."""
        found = []
        for position, axis in enumerate(self.scenario.axes):
            if position == REDO:
                continue
            for knob, codes in axis.items():
                distinct = np.unique(codes).tolist()
                if len(distinct) > 1 and knob != "dp":
                    found.append(Choice(knob, tuple(value_of(knob, code) for code in distinct)))
        if not self.folded and self.scenario.shape[REDO] > 1:
            found.append(Choice(RECOMPUTATION, tuple(range(self.scenario.shape[REDO]))))
        return tuple(found)

    def take(self, point: Point) -> Index:
        """The nearest plans to ``point`` that were not taken, which now are; of equals the first. Empty: none left."""
        away = [self._distance(axis, point) for axis in range(6)]
        rest = reduce(np.add.outer, away[1:])
        nearest, found = np.inf, (-1, 0)
        for row in np.argsort(away[0], kind="stable").tolist():
            if away[0][row] >= nearest:
                break
            distance = np.where(self._open_at(row), rest, np.inf)
            local = int(np.argmin(distance))
            if away[0][row] + distance.flat[local] < nearest:
                nearest, found = away[0][row] + distance.flat[local], (row, local)
        row, local = found
        if row < 0:
            return np.empty(0, np.int64)
        self._open[row].flat[local] = False
        place = [int(at) for at in np.unravel_index(local, rest.shape)]
        others = self.scenario.shape[1:]
        if not self.folded:
            return np.array([np.ravel_multi_index((row, *place), self.scenario.shape)], dtype=np.int64)
        fibre = np.moveaxis(runs(self.scenario, row), REDO - 1, -1)[*place[: REDO - 1], *place[REDO:]]
        amounts = np.flatnonzero(fibre)
        where = [np.full(len(amounts), at) for at in place]
        where[REDO - 1] = amounts
        return np.asarray(np.ravel_multi_index(where, others) + row * math.prod(others))

    def mark(self, plans: Iterable[int]) -> None:
        """Plans that others have taken."""
        for plan in plans:
            row, *place = (int(at) for at in np.unravel_index(plan, self.scenario.shape))
            if self.folded:
                place[REDO - 1] = 0
            self._open_at(row)[tuple(place)] = False

    def _open_at(self, row: int) -> Mask:
        if row not in self._open:
            possible = runs(self.scenario, row)
            self._open[row] = np.asarray(possible.any(axis=REDO - 1, keepdims=True)) if self.folded else possible
        return self._open[row]

    @cached_property
    def redo_rank(self) -> Index:
        """Place of each row of the recomputation axis, from least to most computed again."""
        axis = self.scenario.axes[REDO]
        kind = np.array([FROM_LEAST_TO_MOST.index(NAMES["recompute"][int(code)]) for code in axis["recompute"]])
        stage_by_stage = float(np.mean(self.scenario.recipe.stage_recompute or 0))
        layers = np.where(axis["recompute_layers"] == PER_STAGE, stage_by_stage, axis["recompute_layers"])
        layers = np.where(axis["recompute_layers"] == ALL_LAYERS, np.inf, layers)
        rank = np.empty(len(kind), dtype=np.int64)
        rank[np.lexsort((layers, kind, axis["offload_layers"]))] = np.arange(len(kind))
        return rank

    def amount_of_recomputation(self, knobs: Point) -> Point:
        """The coordinate of a plan's recomputation, where the plan names some; the first row that agrees with it."""
        named = {knob: knobs[knob] for knob in self.scenario.axes[REDO] if knob in knobs}
        agrees = np.ones(self.scenario.shape[REDO], dtype=np.bool_)
        for knob, value in named.items():
            agrees &= self.scenario.axes[REDO][knob] == code_of(knob, value)
        return {RECOMPUTATION: int(self.redo_rank[np.argmax(agrees)])} if named and agrees.any() else {}

    def _distance(self, axis: int, point: Point) -> Array:
        """Doublings between each row of an axis and the point."""
        if axis == REDO:
            return np.zeros(1) if self.folded else np.abs(self.redo_rank - float(point.get(RECOMPUTATION, 0)))
        total = np.zeros(self.scenario.shape[axis])
        for knob, codes in self.scenario.axes[axis].items():
            wanted = point.get(knob)
            if wanted is None:
                continue
            if isinstance(wanted, str):
                total += OTHER_WORD * (codes != NAMES[knob].index(wanted))
            elif knob in SWITCHES or knob == "zero_stage":
                total += OTHER_WORD * np.abs(codes - float(wanted))
            else:
                total += np.abs(np.log2(codes) - np.log2(float(wanted)))
        return total


def runs(scenario: Scenario, row: int) -> Mask:
    """Which plans of a mesh row nothing but memory can refuse, on the other five axes."""
    plans = scenario.plans(row, row + 1)
    stages = stage_layers_count(
        scenario.model,
        pp=plans.pp,
        vpp=plans.vpp,
        schedule=plans.schedule,
        split=plans.split,
        custom=scenario.custom_split,
        recomputed=scenario.recipe.stage_recompute,
    )
    refused = dict(refusals(scenario.model, scenario.hardware, scenario.recipe, plans, stages, scenario.custom_split))
    if scenario.constraints:
        names = constraint_names(scenario, plans)
        refused |= {text: ~holds(text, names) for text in scenario.constraints}
    return np.array(np.broadcast_to(~any_of(list(refused.values())), (1, *scenario.shape[1:]))[0])
