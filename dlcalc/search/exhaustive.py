"""Every plan of a scenario, block by block: what fits, what is refused and why, and the best ``k``, exactly.

Knows neither file nor screen. A block is a range of mesh rows with all other axes; its size changes neither the answer
nor, beyond itself, the memory needed. Where only the best are wanted, plans that cannot be among them are counted, and
not worked out (:mod:`dlcalc.search.bounded`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate, estimate
from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import KNOBS, SWITCHES, Array, Index, Plans, pick
from dlcalc.costmodel.tiles import Part, Tile, parts, tiles
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.search.bounded import Seek, n_within, seek_best
from dlcalc.search.constraints import holds
from dlcalc.search.found import Found, SortKey
from dlcalc.search.pareto import ParetoFilter
from dlcalc.search.space import Scenario, constraint_names

Keep = Literal["all", "feasible", "pareto", "top"]
Columns = Mapping[str, NDArray[np.generic]]

BLOCK_PLANS = 1 << 26
"""Plans whose refusals are held at once: on the axes that decide them, so these are a few MB."""


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
    names = constraint_names(scenario, plans)
    written = {f"not {text}": ~holds(text, names) for text in scenario.constraints}
    return replace(found, refused={**found.refused, **written}) if written else found


def search_block(
    scenario: Scenario,
    start: int,
    stop: int,
    *,
    keep: int,
    key: SortKey = "step_time",
    bound: float = np.inf,
    fastest: float = np.inf,
    rows: Callable[[Columns], None] | None = None,
    what: Keep = "top",
    pareto: ParetoFilter | None = None,
    placed: PlacedRates | None = None,
) -> Found:
    """Evaluate one block.

    ``rows`` receives the columns of the plans to be written (for ``pareto``, only those of the front); ``bound`` is the
    step time (or memory) that a plan must not exceed to lead, ``fastest`` the best step time known from other blocks;
    ``placed`` the links of a block whose nodes are known.
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
    seek = Seek(found=found, offset=offset, keep=keep, key=key, bound=bound, fastest=fastest)
    if rows is not None and what in ("all", "feasible"):
        for part in parts(evaluated, shape, in_order=True):
            _every_plan(scenario, part, seek, rows, what)
    else:
        if rows is not None and what == "pareto":
            seek = replace(seek, pareto=pareto or ParetoFilter(), on_front=rows)
        for part in parts(evaluated, shape):
            seek_best(part, seek)
    found.n_refused = size - found.n_fit
    return found


def count_within(scenario: Scenario, start: int, stop: int, limit_s: float) -> int:
    """Plans of mesh rows ``start`` to ``stop`` that fit and take no longer than ``limit_s``."""
    shape = (stop - start, *scenario.shape[1:])
    return sum(n_within(part, limit_s) for part in parts(evaluate(scenario, start, stop), shape))


def _every_plan(scenario: Scenario, part: Part, seek: Seek, rows: Callable[[Columns], None], what: Keep) -> None:
    """Work out every plan of a part, and hand over those that are wanted."""
    found = seek.found
    told = Told.of(scenario, part)
    for tile in tiles(part):
        fits = tile.runs & (tile.memory_bytes <= part.found.capacity_bytes)
        n_fit = int(np.count_nonzero(fits))
        n_runs = int(np.count_nonzero(tile.runs)) * (fits.size // tile.runs.size)
        if n_runs > n_fit:
            found.refused[OUT_OF_MEMORY] += n_runs - n_fit
        found.n_fit += n_fit
        found.n_estimated += fits.size
        if n_fit:
            seek.lead(tile, fits)
        elif not found.n_fit:
            seek.miss(tile)
        if n_fit or what == "all":
            local = np.flatnonzero(tile.runs & np.ones_like(fits) if what == "all" else fits)
            if len(local):
                rows(columns_of(scenario, told, tile, local, seek.offset))


@dataclass(frozen=True)
class Told:
    """What the rows of a part take from its axes."""

    knobs: Mapping[str, NDArray[np.generic]]
    """As a result holds them, so that nothing is converted row by row."""
    interval: tuple[Array, Array]

    @classmethod
    def of(cls, scenario: Scenario, part: Part) -> Told:
        plans = part.found.plans
        knobs = {knob: getattr(plans, knob).astype(np.bool_ if knob in SWITCHES else np.int32) for knob in KNOBS}
        return cls(knobs, interval_of(scenario, plans))


def columns_of(scenario: Scenario, told: Told, tile: Tile, local: Index, offset: int) -> dict[str, NDArray[np.generic]]:
    """Equally long columns of the plans at flat positions ``local`` of a tile."""
    where = tile.at(local)
    columns: dict[str, NDArray[np.generic]] = {"plan_index": tile.part.plan_index(where) + offset}
    for knob, values in told.knobs.items():
        columns[knob] = pick(values, where)
    step = tile.step_time_s.reshape(-1)[local]
    memory = tile.memory_bytes.reshape(-1)[local]
    return columns | outputs_of(scenario, tile.part.found, told.interval, where, step, memory)


def interval_of(scenario: Scenario, plans: Plans) -> tuple[Array, Array]:
    """Factors of the step time at the ends of its interval."""
    return step_time_interval_factors(scenario.model, scenario.hardware, scenario.recipe, plans, scenario.uncertainty)


def outputs_of(
    scenario: Scenario,
    found: Estimate,
    interval: tuple[Array, Array],
    where: tuple[Index, ...],
    step_time_s: Array,
    memory_bytes: Array,
) -> dict[str, Array]:
    """What a result says of plans at positions ``where`` of a batch, beside their knobs."""
    mfu = pick(found.mfu_seconds, where) / step_time_s
    low, high = interval
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
