"""The second stage of a search as text: the best plans on their nodes, both rankings, and why they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from dlcalc.report.plan_words import plan_words, shared_and_own
from dlcalc.report.summary import PlacedRow, PlacedSummary
from dlcalc.report.tables import Column, table_of
from dlcalc.utils import units

KIND_WORDS = {
    "tp": "tensor-parallel groups",
    "cp": "context-parallel rings",
    "shard": "data-parallel rings",
    "replicate": "rings of replicas",
    "etp": "tensor-parallel groups of experts",
    "ep": "expert all-to-all",
    "expert_shard": "data-parallel rings of experts",
    "pp": "pipeline neighbours",
}
_TERMS_SHOWN = 3
_TELLING_FRACTION = 0.001
"""Of the step: what a term must change by to be told."""
_NODES_SHOWN = 6


def print_placed(placed: PlacedSummary, console: Console) -> None:
    """What placing found, after the plans without placement."""
    console.print()
    console.print(Text.assemble(("Placed: ", "bold green"), placed_headline(placed)))
    rows = placed["best"]
    if not rows:
        return
    shared, own = shared_and_own([cast("Any", row) for row in rows])
    console.print()
    console.print(
        Text(
            f"Best {_number(len(rows), 'plan')} as placed"
            + (f", all with {shared}" if shared and len(rows) > 1 else "")
        )
    )
    console.print(table_of(_columns(rows, own), console.width))
    console.print()
    console.print(Text(_why(placed)))
    console.print(Text(_nodes(placed)))
    console.print(Text(_others(placed)))


def placed_headline(placed: PlacedSummary) -> str:
    """What was placed where, and the best of it."""
    where = (
        f"{units.count(placed['n_free_nodes'])} of {units.count(placed['n_nodes'])} nodes of {placed['topology']} are "
        f"free"
    )
    unknown = placed["without_data"]
    if unknown:
        where += f"; {_listed(unknown)} without topology data, no candidates"
    if placed["why_none"] is not None:
        return f"nothing, since {placed['why_none']} ({where})."
    row = placed["best"][0]
    text = (
        f"{plan_words(cast('Any', row))}: {units.duration(row['placed_step_time_s'], 4)} per step (80 % sure: "
        f"{units.duration(row['placed_step_time_low_s'], 3)} to {units.duration(row['placed_step_time_high_s'], 3)}), "
        f"{units.percent(row['placed_mfu'])} MFU; {_rank_words(row)} on paper with "
        f"{units.duration(row['step_time_s'], 4)}. {placed['n_meshes']} meshes in {placed['n_placements']} placements; "
        f"{where}."
    )
    left_out = sum(placed["not_placed"].values())
    if left_out:
        reason = next(iter(placed["not_placed"]))
        text += f" {left_out} more cannot be placed: {reason}{' ...' if len(placed['not_placed']) > 1 else '.'}"
    return text


def _rank_words(row: PlacedRow) -> str:
    return "not among the best kept" if row["rank"] is None else f"#{row['rank']}"


def _columns(rows: Sequence[PlacedRow], own: Sequence[str]) -> list[Column]:
    scale, unit = (1.0, "s") if rows[0]["placed_step_time_s"] >= 1 else (1e-3, "ms")
    return [
        Column("#", [str(row["placed_rank"]) for row in rows]),
        Column("paper #", [_or_dash(row["rank"]) for row in rows]),
        Column("plan", own, "left", flexible=True),
        Column(f"step {unit}", [units.significant(row["placed_step_time_s"] / scale, 4) for row in rows]),
        Column(f"paper {unit}", [units.significant(row["step_time_s"] / scale, 4) for row in rows], optional=1),
        Column("MFU %", [f"{100 * row['placed_mfu']:.1f}" for row in rows]),
        Column("memory GiB", [units.gib(row["memory_bytes"]) for row in rows], optional=4),
        Column("hops", [units.count(row["hops"]) for row in rows], optional=2),
        Column("bound", [_bound(row) for row in rows], optional=3),
    ]


def _or_dash(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _bound(row: PlacedRow) -> str:
    """What no placement is below; ``=`` where the placement reaches it, ``-`` where it is placed by time."""
    if row["lower_bound_hops"] is None:
        return "-"
    return "=" if row["proved_optimal"] else _hops(row["lower_bound_hops"])


def _hops(bound: float) -> str:
    """Hops are whole, so is what they cannot be below."""
    return units.count(math.ceil(bound - 1e-6))


def _why(placed: PlacedSummary) -> str:
    """Why the order changed, or that it did not."""
    best, first = placed["best"][0], placed["first_on_paper"]
    if first is None:
        return f"The best plan on paper is none that can be placed. The best as placed: placing {_cost(best)}."
    if not placed["order_changed"]:
        return f"The order is the same with and without placement. Placing {_cost(best)}."
    if first["plan_index"] == best["plan_index"]:
        return (
            f"The best plan is the same with and without placement, the order after it is not. Placing {_cost(best)}."
        )
    behind = first["placed_step_time_s"] / best["placed_step_time_s"] - 1
    return (
        f"The order changed. First on paper: {plan_words(cast('Any', first))}; as placed it is "
        f"#{units.count(first['placed_rank'])}, {units.percent(behind)} behind: placing {_cost(first)}. "
        f"The best as placed: placing {_cost(best)}."
    )


def _cost(row: PlacedRow) -> str:
    """What placing does to a plan, and by which links: ``adds 4.1 % (...)``."""
    added = row["placed_step_time_s"] - row["step_time_s"]
    share = added / row["step_time_s"]
    if abs(share) < _TELLING_FRACTION:
        return "costs it less than 0.1 %"
    terms = sorted(row["added_s"].items(), key=lambda item: -item[1])
    told = [
        f"{term.replace('_', ' ')} +{units.duration(seconds)}"
        for term, seconds in terms[:_TERMS_SHOWN]
        if seconds > _TELLING_FRACTION * row["step_time_s"]
    ]
    slow = [
        f"its {KIND_WORDS[kind]} get {units.percent(rate, 0)} of the NIC"
        for kind, rate in sorted(row["slower_links"].items(), key=lambda item: item[1])
    ]
    return f"adds {units.percent(share)} ({'; '.join([', '.join(told), ', '.join(slow[:_TERMS_SHOWN])]).strip('; ')})"


def _nodes(placed: PlacedSummary) -> str:
    """The rings of the best plan, as many as a reader wants to see; a result has all."""
    rings = placed["rings"]
    first = ", ".join(rings[0][:_NODES_SHOWN]) + (", ..." if len(rings[0]) > _NODES_SHOWN else "")
    row = placed["best"][0]
    if row["lower_bound_hops"] is None:
        bound = "placed by time on the links; by hops alone this plan would be slower"
    elif row["proved_optimal"]:
        bound = "proved optimal"
    else:
        bound = f"no placement has fewer than {_hops(row['lower_bound_hops'])}"
    n_machines, per_node = len(rings[0]), placed["machines_per_node"]
    ring = _number(n_machines // per_node, "node") + (f" ({units.count(n_machines)} machines)" if per_node > 1 else "")
    takes = "takes" if len(rings) == 1 else "take"
    return (
        f"Its {_number(len(rings), 'ring')} of {ring} {takes} {units.count(row['hops'])} "
        f"hops ({bound}); the first: {first}."
    )


def _others(placed: PlacedSummary) -> str:
    """Whether a mesh that was not tried could be better: placing makes no plan faster."""
    n = placed["n_faster_on_paper"]
    if not n:
        return "No other mesh can be faster: all that were not placed are slower than this on paper already."
    return (
        f"{_number(n, 'mesh', 'meshes')} not tried {'is' if n == 1 else 'are'} faster than this on paper; "
        f"--place-meshes {placed['n_meshes'] + n} would try {'it' if n == 1 else 'them'}."
    )


def _number(count: int, one: str, several: str = "") -> str:
    return f"{units.count(count)} {one if count == 1 else several or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NODES_SHOWN])
    more = f" and {len(names) - _NODES_SHOWN:,} more" if len(names) > _NODES_SHOWN else ""
    return shown + more + (" is" if len(names) == 1 else " are")
