"""Every plan of a scenario, block by block: what fits, what is refused and why, and the best ``k``, exactly.

Knows neither file nor screen. A block is a range of mesh rows with all other axes; its size changes neither the answer nor, beyond
itself, the memory needed. Ties go to the smaller plan index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate, estimate
from dlcalc.costmodel.plans import KNOBS, Array
from dlcalc.search.constraints import holds
from dlcalc.search.pareto import ParetoFilter
from dlcalc.search.space import Scenario, constraint_names

Index = NDArray[np.int64]
SortKey = Literal["step_time", "memory"]
Keep = Literal["all", "feasible", "pareto", "top"]

BLOCK_PLANS = 1 << 20
"""Plans evaluated at once: a few full-size arrays of 8 MB."""
NEAR_BEST = 1.02


@dataclass(frozen=True)
class Leaders:
    """Some plans with what they were ranked by, best first."""

    index: Index
    step_time_s: Array
    memory_bytes: Array

    @classmethod
    def none(cls) -> Leaders:
        empty = np.empty(0)
        return cls(np.empty(0, np.int64), empty, empty)

    def join(self, other: Leaders) -> Leaders:
        return Leaders(
            np.concatenate([self.index, other.index]),
            np.concatenate([self.step_time_s, other.step_time_s]),
            np.concatenate([self.memory_bytes, other.memory_bytes]),
        )

    def take(self, where: Index | NDArray[np.bool_]) -> Leaders:
        return Leaders(self.index[where], self.step_time_s[where], self.memory_bytes[where])

    def best(self, count: int, key: SortKey) -> Leaders:
        first, second = (
            (self.step_time_s, self.memory_bytes) if key == "step_time" else (self.memory_bytes, self.step_time_s)
        )
        return self.take(np.lexsort((self.index, second, first))[:count] if key == "memory" else np.lexsort((self.index, first))[:count])


@dataclass
class Found:
    """What is known of a scenario after some of its blocks."""

    n_plans: int = 0
    n_fit: int = 0
    n_refused: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    leaders: Leaders = field(default_factory=Leaders.none)
    near: Leaders = field(default_factory=Leaders.none)
    """Plans within 2 % of the fastest so far."""
    misses: Leaders = field(default_factory=Leaders.none)
    """Plans that only memory refuses, those closest to fitting first."""

    def add(self, other: Found, *, keep: int, key: SortKey) -> None:
        """Join the findings of other blocks; the order in which blocks arrive does not matter."""
        self.n_plans += other.n_plans
        self.n_fit += other.n_fit
        self.n_refused += other.n_refused
        self.refused.update(other.refused)
        self.leaders = self.leaders.join(other.leaders).best(keep, key)
        self.near = within(self.near.join(other.near))
        self.misses = self.misses.join(other.misses).best(5, "memory")


def within(leaders: Leaders) -> Leaders:
    """The plans within 2 % of the fastest among ``leaders``, fastest first."""
    if not len(leaders.index):
        return leaders
    close = leaders.take(leaders.step_time_s <= NEAR_BEST * leaders.step_time_s.min())
    return close.best(len(close.index), "step_time")


def evaluate(scenario: Scenario, start: int, stop: int) -> Estimate:
    """The estimate of mesh rows ``start`` to ``stop``, with the user's own constraints among the refusals."""
    plans = scenario.plans(start, stop)
    found = estimate(
        scenario.model,
        scenario.hardware,
        scenario.recipe,
        plans,
        custom_split=scenario.custom_split,
        memory_headroom=scenario.memory_headroom,
    )
    if not scenario.constraints:
        return found
    names = constraint_names(scenario, plans)
    written = {f"not {text}": ~holds(text, names) for text in scenario.constraints}
    return Estimate(**{**{f: getattr(found, f) for f in found.__dataclass_fields__}, "refused": {**found.refused, **written}})


def search_block(
    scenario: Scenario,
    start: int,
    stop: int,
    *,
    keep: int,
    key: SortKey = "step_time",
    bound: float = np.inf,
    rows: Callable[[Mapping[str, Array]], None] | None = None,
    what: Keep = "top",
    pareto: ParetoFilter | None = None,
) -> Found:
    """Evaluate one block. ``rows`` receives the columns of the plans to be written; ``bound`` is the step time
    (or memory) that a plan must beat to lead.
    """
    found = evaluate(scenario, start, stop)
    shape = scenario.plans(start, stop).shape
    size = int(np.prod(shape, dtype=np.int64))
    offset = start * (size // (stop - start))
    step = np.broadcast_to(found.step_time_s, shape)
    memory = np.broadcast_to(found.memory_bytes, shape)
    too_large = memory > found.capacity_bytes
    runs = np.broadcast_to(found.runs, shape)
    fits = runs & ~too_large
    n_fit = int(np.count_nonzero(fits))

    refused = Counter(
        {reason: int(np.count_nonzero(mask)) * (size // mask.size) for reason, mask in found.refused.items() if mask.any()}
    )
    if n_large := int(np.count_nonzero(too_large)):
        refused[OUT_OF_MEMORY] = n_large

    ranked = step if key == "step_time" else memory
    leaders = _chosen(fits & (ranked <= bound), step, memory, offset).best(keep, key) if n_fit else Leaders.none()
    fastest = float(np.min(step, where=fits, initial=np.inf))
    near = within(_chosen(fits & (step <= NEAR_BEST * fastest), step, memory, offset)) if n_fit else Leaders.none()
    misses = Leaders.none()
    if not n_fit and runs.any():
        least = np.min(memory, where=runs, initial=np.inf)
        misses = _chosen(runs & (memory <= 1.1 * least), step, memory, offset).best(5, "memory")

    if rows is not None:
        wanted = {"all": runs | True, "feasible": fits, "pareto": fits, "top": fits & (ranked <= bound)}[what]
        local = np.flatnonzero(wanted)
        if what == "pareto" and pareto is not None:
            local = local[pareto.candidates(step.reshape(-1)[local], memory.reshape(-1)[local])]
        if len(local):
            rows(columns_of(scenario, found, local, offset, shape))
    return Found(
        n_plans=size, n_fit=n_fit, n_refused=size - n_fit, refused=refused, leaders=leaders, near=near, misses=misses
    )


def columns_of(
    scenario: Scenario, found: Estimate, local: Index, offset: int, shape: tuple[int, ...]
) -> dict[str, NDArray[np.generic]]:
    """Equally long columns of the plans at flat positions ``local`` of a block."""
    where = np.unravel_index(local, shape)
    columns: dict[str, NDArray[np.generic]] = {"plan_index": local + offset}
    for knob in KNOBS:
        columns[knob] = pick(getattr(found.plans, knob), where)
    step = pick(np.asarray(found.step_time_s), where)
    memory = pick(np.asarray(found.memory_bytes), where)
    recipe = scenario.recipe
    mfu = pick(found.mfu_seconds, where) / step
    columns["step_time_s"] = step
    columns["mfu"] = mfu
    columns["hfu"] = mfu * pick(found.recompute_flops_factor, where)
    columns["tokens_per_s_per_device"] = recipe.tokens_per_step / (step * scenario.devices)
    columns["memory_bytes"] = memory
    columns["headroom_bytes"] = scenario.hardware.device.hbm_bytes - memory
    return columns


def pick(array: Array, where: tuple[Index, ...]) -> Array:
    """Values of a broadcastable array at positions of the full shape."""
    offset = len(where) - array.ndim
    index = tuple(w if n > 1 else np.zeros_like(w) for w, n in zip(where[offset:], array.shape, strict=True))
    return np.broadcast_to(array[index], where[0].shape) if array.ndim else np.full(where[0].shape, float(array))


def _chosen(mask: NDArray[np.bool_], step: Array, memory: Array, offset: int) -> Leaders:
    local = np.flatnonzero(mask)
    where = np.unravel_index(local, step.shape)
    return Leaders(local + offset, step[where], memory[where])
