"""Every plan of a scenario, block by block: what fits, what is refused and why, and the best ``k``, exactly.

Knows neither file nor screen. A block is a range of mesh rows with all other axes; its size changes neither the answer
nor, beyond itself, the memory needed. Ties go to the smaller plan index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate, estimate
from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import KNOBS, Array
from dlcalc.costmodel.tiles import Tile, tiles
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.search.constraints import holds
from dlcalc.search.pareto import ParetoFilter
from dlcalc.search.space import Scenario, constraint_names

Index = NDArray[np.int64]
SortKey = Literal["step_time", "memory"]
Keep = Literal["all", "feasible", "pareto", "top"]

BLOCK_PLANS = 1 << 24
"""Plans whose terms are held at once. Terms live on their own axes, so these are a few MB; totals are computed tile by
tile."""
N_MISSES = 5
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
        return self.take(
            np.lexsort((self.index, second, first))[:count]
            if key == "memory"
            else np.lexsort((self.index, first))[:count]
        )


@dataclass
class Found:
    """What is known of a scenario after some of its blocks."""

    n_plans: int = 0
    n_fit: int = 0
    n_estimated: int = 0
    """Plans whose time and memory were worked out; the others are refused by a constraint, and were skipped."""
    n_refused: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    leaders: Leaders = field(default_factory=Leaders.none)
    near: Leaders = field(default_factory=Leaders.none)
    """Plans within 2 % of the fastest so far."""
    misses: Leaders = field(default_factory=Leaders.none)
    """Plans that only memory refuses, those closest to fitting first."""

    def bound(self, keep: int, key: SortKey) -> float:
        """What a further plan must not exceed to be among the ``keep`` best."""
        if len(self.leaders.index) < keep:
            return np.inf
        return float((self.leaders.step_time_s if key == "step_time" else self.leaders.memory_bytes).max())

    @property
    def fastest(self) -> float:
        return float(self.near.step_time_s.min()) if len(self.near.index) else np.inf

    def add(self, other: Found, *, keep: int, key: SortKey) -> None:
        """Join the findings of other blocks; the order in which blocks arrive does not matter."""
        self.n_plans += other.n_plans
        self.n_fit += other.n_fit
        self.n_estimated += other.n_estimated
        self.n_refused += other.n_refused
        self.refused.update(other.refused)
        self.leaders = self.leaders.join(other.leaders).best(keep, key)
        self.near = within(self.near.join(other.near))
        self.misses = self.misses.join(other.misses).best(5, "memory")


def within(leaders: Leaders, fastest: float = np.inf) -> Leaders:
    """The plans within 2 % of the fastest among ``leaders`` and elsewhere, fastest first."""
    if not len(leaders.index):
        return leaders
    close = leaders.take(leaders.step_time_s <= NEAR_BEST * min(fastest, leaders.step_time_s.min()))
    return close.best(len(close.index), "step_time")


def evaluate(scenario: Scenario, start: int, stop: int, placed: PlacedRates | None = None) -> Estimate:
    """The estimate of mesh rows ``start`` to ``stop``, with the user's own constraints among the refusals."""
    plans = scenario.plans(start, stop)
    found = estimate(
        scenario.model,
        scenario.hardware,
        scenario.recipe,
        plans,
        custom_split=scenario.custom_split,
        memory_headroom=scenario.memory_headroom,
        placed=placed,
    )
    if not scenario.constraints:
        return found
    names = constraint_names(scenario, plans)
    written = {f"not {text}": ~holds(text, names) for text in scenario.constraints}
    return Estimate(
        **{**{f: getattr(found, f) for f in found.__dataclass_fields__}, "refused": {**found.refused, **written}}
    )


def search_block(
    scenario: Scenario,
    start: int,
    stop: int,
    *,
    keep: int,
    key: SortKey = "step_time",
    bound: float = np.inf,
    fastest: float = np.inf,
    rows: Callable[[Mapping[str, NDArray[np.generic]]], None] | None = None,
    what: Keep = "top",
    pareto: ParetoFilter | None = None,
    placed: PlacedRates | None = None,
) -> Found:
    """Evaluate one block.

    ``rows`` receives the columns of the plans to be written; ``bound`` is the step time (or memory) that a plan must
    not exceed to lead, ``fastest`` the best step time known from other blocks; ``placed`` the links of a block whose
    nodes are known.
    """
    evaluated = evaluate(scenario, start, stop, placed)
    shape = (stop - start, *scenario.shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    offset = start * (size // (stop - start))
    refused = Counter(
        {
            reason: int(np.count_nonzero(mask)) * (size // mask.size)
            for reason, mask in evaluated.refused.items()
            if mask.any()
        }
    )
    found = Found(n_plans=size, refused=refused)
    for tile in tiles(evaluated, shape):
        small_enough = tile.memory_bytes <= evaluated.capacity_bytes
        fits = small_enough & tile.runs
        n_fit = int(np.count_nonzero(fits))
        n_runs = int(np.count_nonzero(tile.runs)) * (fits.size // tile.runs.size)
        if n_runs > n_fit:
            refused[OUT_OF_MEMORY] += n_runs - n_fit
        found.n_fit += n_fit
        found.n_estimated += fits.size
        if n_fit:
            _lead(found, tile, fits, shape, offset, keep=keep, key=key, bound=bound, fastest=fastest)
        elif not found.n_fit:
            _miss(found, tile, shape, offset)
        if rows is not None and (n_fit or what == "all"):
            local = np.flatnonzero(tile.runs & np.ones_like(fits) if what == "all" else fits)
            if what == "pareto" and pareto is not None:
                step, memory = tile.step_time_s.reshape(-1)[local], tile.memory_bytes.reshape(-1)[local]
                local = local[pareto.candidates(step, memory)]
            if len(local):
                rows(columns_of(scenario, evaluated, tile, local, shape, offset))
    found.n_refused = size - found.n_fit
    return found


def _lead(
    found: Found,
    tile: Tile,
    fits: Mask,
    shape: Sequence[int],
    offset: int,
    *,
    keep: int,
    key: SortKey,
    bound: float,
    fastest: float,
) -> None:
    """Let the plans of a tile compete with those found so far."""
    bound = min(bound, found.bound(keep, key))
    near_s = NEAR_BEST * min(fastest, found.fastest)
    if key == "step_time":
        open_ = fits & (tile.step_time_s <= max(bound, near_s))
    else:
        open_ = fits & ((tile.memory_bytes <= bound) | (tile.step_time_s <= near_s))
    if not open_.any():
        return
    chosen = _chosen(open_, tile, shape, offset)
    ranked = chosen.step_time_s if key == "step_time" else chosen.memory_bytes
    found.leaders = found.leaders.join(chosen.take(ranked <= bound)).best(keep, key)
    found.near = within(found.near.join(chosen), fastest)


def _miss(found: Found, tile: Tile, shape: Sequence[int], offset: int) -> None:
    """Keep the plans closest to fitting."""
    least = np.min(tile.memory_bytes, where=tile.runs, initial=np.inf)
    closest = tile.runs & (tile.memory_bytes <= 1.1 * least)
    found.misses = found.misses.join(_chosen(closest, tile, shape, offset)).best(N_MISSES, "memory")


def columns_of(
    scenario: Scenario, found: Estimate, tile: Tile, local: Index, shape: Sequence[int], offset: int
) -> dict[str, NDArray[np.generic]]:
    """Equally long columns of the plans at flat positions ``local`` of a tile of the block ``found``."""
    index = tile.plan_index(local, shape)
    where = np.unravel_index(index, tuple(shape))
    columns: dict[str, NDArray[np.generic]] = {"plan_index": index + offset}
    for knob in KNOBS:
        columns[knob] = pick(getattr(found.plans, knob), where)
    step = tile.step_time_s.reshape(-1)[local]
    memory = tile.memory_bytes.reshape(-1)[local]
    return columns | outputs_of(scenario, found, where, step, memory)


def outputs_of(
    scenario: Scenario, found: Estimate, where: tuple[Index, ...], step_time_s: Array, memory_bytes: Array
) -> dict[str, Array]:
    """What a result says of plans at positions ``where`` of a batch, beside their knobs."""
    mfu = pick(found.mfu_seconds, where) / step_time_s
    low, high = step_time_interval_factors(
        scenario.model, scenario.hardware, scenario.recipe, found.plans, scenario.uncertainty
    )
    return {
        "step_time_s": step_time_s,
        "step_time_low_s": step_time_s * pick(low, where),
        "step_time_high_s": step_time_s * pick(high, where),
        "mfu": mfu,
        "hfu": mfu * pick(found.recompute_flops_factor, where),
        "tokens_per_s_per_device": scenario.recipe.tokens_per_step / (step_time_s * scenario.devices),
        "memory_bytes": memory_bytes,
        "headroom_bytes": scenario.hardware.device.hbm_bytes - memory_bytes,
    }


def pick(array: Array, where: tuple[Index, ...]) -> Array:
    """Values of a broadcastable array at positions of the full shape."""
    offset = len(where) - array.ndim
    index = tuple(w if n > 1 else np.zeros_like(w) for w, n in zip(where[offset:], array.shape, strict=True))
    return np.broadcast_to(array[index], where[0].shape) if array.ndim else np.full(where[0].shape, float(array))


def _chosen(mask: Mask, tile: Tile, shape: Sequence[int], offset: int) -> Leaders:
    local = np.flatnonzero(np.broadcast_to(mask, tile.step_time_s.shape))
    return Leaders(
        tile.plan_index(local, shape) + offset,
        tile.step_time_s.reshape(-1)[local],
        tile.memory_bytes.reshape(-1)[local],
    )
