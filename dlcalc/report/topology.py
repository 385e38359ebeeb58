"""Placements as text: where a job goes, or how well it sits, and how far from the best that can be."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.text import Text

from dlcalc.report.sections import Facts, Grid, Line, Part, Section, print_sections
from dlcalc.report.topology_facts import Assignment, Drawing, Evaluation, KindHops, Shortfall
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Placement
from dlcalc.topology.rings import GroupKind
from dlcalc.utils import units
from dlcalc.utils.printable import printable

NAMES_SHOWN = 8
RINGS_SHOWN = 16
GROUPS_SHOWN = 5
LONGEST_NAME = 60

KIND_NAMES: dict[GroupKind, str] = {
    "tp": "tensor parallel",
    "cp": "context parallel",
    "ep": "expert parallel",
    "dp": "data parallel",
    "expert_dp": "expert data parallel",
    "pp": "pipeline",
}
OBJECTIVES = {"hops": "hops of all rings", "worst_ring": "hops of the longest ring", "seconds": "time on the links"}


@contextmanager
def waiting(what: str, file: IO[str] | None = None) -> Iterator[Callable[[str], None]]:
    """Says on stderr what goes on, while it does; nothing where stderr is not a terminal.

    Gives a function that says what goes on now.
    """
    stream = file if file is not None else sys.stderr
    if not stream.isatty():
        yield lambda text: None
        return
    with Console(file=stream, highlight=False, markup=False).status(what) as status:
        yield lambda text: status.update(Text(text))


def print_assignment(found: Assignment, console: Console, *, verbose: bool = False) -> None:
    """Where a job goes."""
    placement = found.placement
    parts: list[Part] = [
        Line(_verdict(placement), "answer"),
        Facts(
            (
                *_job_rows(placement.job),
                *_fabric_rows(found.fabric, verbose=verbose),
                *(("note", printable(remark)) for remark in found.remarks),
            )
        ),
    ]
    if found.step_time_s is not None and found.unplaced_step_time_s is not None:
        slower = found.step_time_s / found.unplaced_step_time_s - 1
        parts.append(
            Line(
                f"{found.plan}: {units.duration(found.step_time_s, 4)} per step on these nodes, "
                f"{units.percent(slower)} more than {units.duration(found.unplaced_step_time_s, 4)} "
                f"on a fabric where every link is as fast as the NIC."
            )
        )
    print_sections([Section("PLACEMENT", 1, tuple(parts)), _rings_section(placement, found.fabric, verbose)], console)


def _verdict(placement: Placement) -> str:
    hops = f"{units.count(placement.cost_hops)} hops over {_many(placement.job.n_rings, 'ring')}"
    if placement.objective != "hops":
        hops += f", chosen for {OBJECTIVES[placement.objective]}"
        hops += f" ({_cost(placement, placement.cost)})"
    if placement.proved_optimal:
        return f"{hops}: proved to be the best."
    bound = f"no placement has less than {_cost(placement, placement.lower_bound)}"
    return f"{hops}: {bound}, so at most {units.percent(placement.gap, 2)} above the best."


def _cost(placement: Placement, cost: float) -> str:
    if placement.objective == "seconds":
        return f"{units.duration(cost, 4)} a step"
    return _many(cost, "hop")


def _job_rows(job: JobShape) -> list[tuple[str, str]]:
    degrees = " ".join(
        f"{name}{getattr(job, name)}"
        for name in ("tp", "cp", "pp", "dp", "ep", "etp")
        if name in ("tp", "pp", "dp") or getattr(job, name) > 1
    )
    rings = f"{_many(job.n_rings, 'ring')} of {_many(job.ring_nodes, 'node')}"
    return [
        ("job", f"{degrees}: {units.count(job.n_devices)} devices on {_many(job.n_nodes, 'node')}"),
        ("rings", rings + (", one per pipeline stage" if 1 < job.n_rings == job.pp else "")),
    ]


def _fabric_rows(fabric: Fabric, *, verbose: bool) -> list[tuple[str, str]]:
    """What the fabric has, and by name what of it is no candidate and why."""
    states = Counter(node.state for node in fabric.nodes)
    counts = ", ".join(f"{units.count(states[state])} {state}" for state in ("free", "busy", "unusable"))
    rows = [
        ("fabric", f"{fabric.source}: {_many(len(fabric.nodes), 'node')} ({counts}), {_many(fabric.n_tiers, 'tier')}")
    ]
    without = [node.name for node in fabric.without_data()]
    if without:
        rows.append(("no candidates", f"free, but without topology data: {_names(without, verbose=verbose)}"))
    why: dict[str, list[str]] = {}
    for node in fabric.nodes:
        if node.state == "unusable":
            why.setdefault(node.why_unusable or "unusable", []).append(node.name)
    for reason, names in sorted(why.items(), key=lambda item: -len(item[1])):
        rows.append(("no candidates", f"{reason}: {_names(names, verbose=verbose)}"))
    if verbose:
        jobs: dict[str, list[str]] = {}
        for node in fabric.nodes:
            if node.state == "busy":
                jobs.setdefault(node.job or "a job without a name", []).append(node.name)
        rows += [("no candidates", f"hold {job}: {_names(names, verbose=True)}") for job, names in jobs.items()]
    rows += [("note", remark) for remark in fabric.remarks]
    return [(label, printable(text)) for label, text in rows]


def _rings_section(placement: Placement, fabric: Fabric, verbose: bool) -> Section:
    shown = placement.rings if verbose else placement.rings[:RINGS_SHOWN]
    rows = []
    first = 0
    for position, ring in enumerate(shown):
        hosts = [fabric.by_name[name].host_name for name in ring]
        switches = list(dict.fromkeys(fabric.by_name[name].switches[0] for name in ring))
        rows.append(
            (
                str(position),
                f"{first}" if len(ring) == 1 else f"{first}-{first + len(ring) - 1}",
                _names(switches, verbose=verbose),
                _names(hosts, verbose=verbose),
            )
        )
        first += len(ring)
    left_out = len(placement.rings) - len(shown)
    caption = f"and {_many(left_out, 'more ring')}; -v shows all, --json has all" if left_out else ""
    grid = Grid("", ("ring", "node ranks", "closest switches", "nodes, in ring order"), tuple(rows), LEFT, caption)
    return Section("Rings", 2, (grid,))


LEFT = frozenset({"closest switches", "nodes, in ring order", "groups", "placement", "nodes"})


def print_evaluation(found: Evaluation, console: Console, *, verbose: bool = False) -> None:
    """How well a running job sits."""
    facts = (
        ("job name", printable(found.job_name, LONGEST_NAME)),
        *_job_rows(found.job),
        *_fabric_rows(found.fabric, verbose=verbose),
        *(("note", printable(remark)) for remark in found.remarks),
    )
    parts: tuple[Part, ...] = (
        Line(_shortfall(found.best_on_own, "on its own nodes, in another order"), "answer"),
        Line(_shortfall(found.best_on_free, f"with {_many(found.n_moved, 'other node')}"), "answer"),
        Facts(facts),
    )
    shown = [Section("PLACEMENT", 1, parts), Section("Hops by kind of group", 2, (_kinds_grid(found.kinds),))]
    if found.step is not None:
        shown.append(Section("Step time", 2, (_step_grid(found),)))
    shown += [_groups_section(kind, verbose=verbose) for kind in found.kinds]
    print_sections(shown, console)


def _shortfall(short: Shortfall, how: str) -> str:
    """What the rings lack to a better placement, and how sure that is."""
    best = short.best
    hops = units.count(best.cost_hops)
    proof = "" if best.proved_optimal else f" (the best known; no placement has fewer than {_bound(best)})"
    if short.extra_hops <= 0:
        return f"Rings: nothing is won {how}: {hops} hops{proof}."
    return (
        f"Rings: {units.count(best.cost_hops + short.extra_hops)} hops as placed; {hops} {how}{proof}: "
        f"{units.percent(short.extra_fraction)} too many."
    )


def _bound(placement: Placement) -> str:
    return "0" if placement.lower_bound_hops is None else units.count(placement.lower_bound_hops)


def _kinds_grid(kinds: Sequence[KindHops]) -> Grid:
    rows = tuple(
        (
            KIND_NAMES[kind.kind],
            units.count(kind.n_groups),
            units.count(kind.total_hops),
            units.significant(kind.mean_hops),
            units.count(kind.longest_hops),
            units.count(kind.best_on_own_hops),
            units.count(kind.best_on_free_hops),
        )
        for kind in kinds
    )
    return Grid(
        "",
        ("groups", "count", "total", "average", "longest", "total, own nodes best", "total, free cluster best"),
        rows,
        LEFT,
        "Groups of devices that leave their node. A ring's closed tour; of pipelines the way through all stages."
        if rows
        else "No group leaves its node.",
    )


def _step_grid(found: Evaluation) -> Grid:
    step = found.step
    assert step is not None
    rows = tuple(
        (
            name,
            units.duration(time_s, 4),
            f"{round(100 * (time_s / step.actual_s - 1), 2) + 0.0:+.2f} %" if time_s else "",
        )
        for name, time_s in (
            ("as placed", step.actual_s),
            ("best on its own nodes", step.best_on_own_s),
            ("best on the free cluster", step.best_on_free_s),
        )
    )
    caption = f"{found.plan}, every group on the slowest link that it crosses."
    return Grid("", ("placement", "step", "against now"), rows, LEFT, caption)


def _groups_section(kind: KindHops, *, verbose: bool) -> Section:
    shown = kind.groups if verbose else kind.groups[:GROUPS_SHOWN]
    rows = tuple(
        (units.count(group.hops), units.count(group.n_groups), _names(group.nodes, verbose=verbose)) for group in shown
    )
    left_out = len(kind.groups) - len(shown)
    caption = f"and {_many(left_out, 'shorter one')}; -v shows all" if left_out else ""
    title = f"{KIND_NAMES[kind.kind].capitalize()} groups, longest first"
    return Section(title, 2, (Grid("", ("hops", "groups of devices", "nodes"), rows, LEFT, caption),))


def print_drawing(found: Drawing, console: Console) -> None:
    """What a page shows."""
    rings = f", {_many(len(found.rings), 'ring')}" if found.rings else ""
    console.print(
        f"{_many(len(found.fabric.nodes), 'node')}, {_many(len(found.fabric.tier), 'switch', 'switches')} "
        f"in {_many(found.fabric.n_tiers, 'tier')}{rings}: open {found.page} in a browser",
        soft_wrap=True,
    )
    for remark in found.remarks:
        console.print(f"note: {printable(remark)}", soft_wrap=True)


def _names(names: Sequence[str], *, verbose: bool) -> str:
    shown = names if verbose else names[:NAMES_SHOWN]
    left_out = len(names) - len(shown)
    text = ", ".join(printable(name, LONGEST_NAME) for name in shown)
    return f"{text} and {units.count(left_out)} more" if left_out else text


def _many(n: float, what: str, plural: str = "") -> str:
    return f"{units.count(n)} {what if n == 1 else plural or what + 's'}"
