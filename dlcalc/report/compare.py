"""A comparison as text: the best plan of each machine, why the winner wins, how it scales, what the limits leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from dlcalc.report.compare_facts import (
    OBJECTIVES,
    Candidate,
    Choice,
    CompareFacts,
    Curve,
    Group,
    Objective,
    Range,
    Section,
)
from dlcalc.report.compare_why import print_differences, print_why
from dlcalc.report.compare_words import cell, days_cell, nearest_words, no_progress, priced
from dlcalc.report.plan_words import shared_and_own
from dlcalc.report.tables import Column, or_dash, table_of
from dlcalc.utils import units

JOULES_PER_MWH = 3.6e9
AXIS_WORDS = {"hardware": "machine", "model": "model", "devices": "number of devices", "precision": "precision"}
FIRST = {
    "tokens_per_dollar": "most tokens per dollar",
    "step_time": "shortest step",
    "days": "fewest days",
    "energy": "least energy",
}
_BARS = "▁▂▃▄▅▆▇█"
_NOTHING_FITS_SHOWN = 4
SEVERAL = 2


def print_comparison(facts: CompareFacts, console: Console) -> None:
    """The whole comparison."""
    if facts.by == ("model",) and len(facts.sections) > 1:
        _print_best(facts, facts.sections, console)
    for position, section in enumerate(facts.sections):
        if facts.by == ("model",) and len(facts.sections) > 1:
            console.print()
            console.print(Text(section.model, style="bold cyan"))
        else:
            if position:
                console.print()
            _print_best(facts, [section], console)
        print_differences(facts, section, console)
        _print_curves(facts, section, console)
        _print_winners(section, console)
        _print_choices(section, console)
        _print_nothing_fits(section, console)
    _print_failures(facts, console)
    _print_inputs(facts, console)
    for note in facts.notes:
        console.print(Text(f"Note: {note}"))


# ---- the best of each ---------------------------------------------------------------------------------------------


def _print_best(facts: CompareFacts, sections: Sequence[Section], console: Console) -> None:
    """Two tables: how fast each is, and what it takes."""
    groups = [group for section in sections for group in section.groups]
    best = [group.best for group in groups]
    shared, own = shared_and_own([one.plan for one in best])
    said = f", all with {shared}" if shared and len(best) > 1 else ""
    console.print(
        Text.assemble(
            (", ".join(section.model for section in sections), "bold cyan"),
            f": the best plan of each {' and '.join(AXIS_WORDS[axis] for axis in facts.by)}, "
            f"{FIRST[facts.objective.name]} first",
            f" ({facts.objective.why})" if facts.objective.why else "",
            said,
        )
    )
    lead = _lead_columns(facts, groups, with_model=len(sections) > 1)
    console.print(table_of([*lead, *_speed_columns(facts, best, own)], console.width))
    console.print()
    tokens = {one.tokens for one in best}
    budget = next(iter(tokens)) if len(tokens) == 1 else None
    takes = f"What {units.short_count(budget)} tokens take" if budget else "What the tokens of the recipe take"
    console.print(Text(f"{takes}{', failures included' if facts.failures else ''}"))
    console.print(table_of([*lead, *_cost_columns(facts, best)], console.width))


def _lead_columns(facts: CompareFacts, groups: Sequence[Group], *, with_model: bool) -> list[Column]:
    best = [group.best for group in groups]
    columns = [Column("#", [str(group.rank) for group in groups], optional=9)] if not with_model else []
    if with_model:
        columns.append(Column("model", [one.model for one in best], "left", flexible=True))
    columns.append(Column("machine", [one.machine for one in best], "left", flexible=True))
    columns.append(Column("devices", [units.count(one.devices) for one in best]))
    if len({one.precision for one in best}) > 1 or "precision" in facts.by:
        columns.append(Column("precision", [one.precision for one in best], "left"))
    return columns


def _speed_columns(facts: CompareFacts, best: Sequence[Candidate], own: Sequence[str]) -> list[Column]:
    step = OBJECTIVES["step_time"]
    return [
        Column("plan", own, "left", flexible=True, optional=1),
        Column("step s", [units.significant(one.step_time_s.value, 4) for one in best]),
        Column(_sure(facts), [_interval_cell(step, one.step_time_s) for one in best], optional=4),
        Column("MFU %", [f"{100 * one.mfu:.1f}" for one in best], optional=2),
        Column("tokens/s/device", [units.significant(one.tokens_per_s_per_device.value) for one in best], optional=3),
        Column("free GiB", [units.gib(one.headroom_bytes) for one in best], optional=5),
    ]


def _cost_columns(facts: CompareFacts, best: Sequence[Candidate]) -> list[Column]:
    """The objective first, with its interval; of the others a narrow terminal gets days and cost."""
    objective = facts.objective
    columns = []
    if objective.name != "step_time":
        values = [one.value(objective.name) for one in best]
        columns = [
            Column(_objective_header(objective), [_objective_cell(objective, value) for value in values]),
            Column(_sure(facts), [_interval_cell(objective, value) for value in values], optional=4),
        ]
    others = [
        Column("days", [days_cell(one.days) for one in best], optional=2),
        Column("cost", [cell(one.cost_usd, units.money) for one in best], optional=3),
        Column("MWh", [cell(one.energy_j, _mwh) for one in best], optional=5),
        Column("tokens/$", [cell(one.tokens_per_usd, units.short_count) for one in best], optional=6),
        Column("tokens/J", [cell(one.tokens_per_j, units.significant) for one in best], optional=7),
    ]
    columns += [one for one in others if one.header != _objective_header(objective)]
    if facts.budget_usd is not None:
        columns.append(Column("in budget", [one.within_budget or "-" for one in best], optional=1))
    if facts.deadline_days is not None:
        columns.append(Column("in time", [one.within_deadline or "-" for one in best], optional=1))
    return columns


def _sure(facts: CompareFacts) -> str:
    return f"{100 * facts.coverage:.0f} % sure"


def _objective_header(objective: Objective) -> str:
    return {"tokens_per_dollar": "tokens/$", "step_time": "step s", "days": "days", "energy": "MWh"}[objective.name]


def _objective_cell(objective: Objective, value: Range | None) -> str:
    return days_cell(value) if objective.name == "days" else cell(value, _objective_text(objective))


def _objective_text(objective: Objective) -> Callable[[float], str]:
    texts: dict[str, Callable[[float], str]] = {
        "tokens_per_dollar": units.short_count,
        "step_time": lambda value: units.significant(value, 4),
        "days": units.days,
        "energy": _mwh,
    }
    return texts[objective.name]


def _interval_cell(objective: Objective, value: Range | None) -> str:
    if value is None or not 0 < value.value < float("inf"):
        return "-"
    text = _objective_text(objective)
    return f"{text(value.low)} to {text(value.high)}"


def _mwh(energy_j: float) -> str:
    return units.significant(energy_j / JOULES_PER_MWH)


# ---- over device counts -------------------------------------------------------------------------------------------


def _print_curves(facts: CompareFacts, section: Section, console: Console) -> None:
    counts = sorted({point.devices for curve in section.curves for point in curve.points})
    if len(counts) < SEVERAL:
        return
    precisions = {curve.precision for curve in section.curves}
    names = [curve.machine + (f", {curve.precision}" if len(precisions) > 1 else "") for curve in section.curves]
    console.print()
    console.print(Text("Tokens/s per device on each number of devices, - where no plan fits; scaling: last over first"))
    columns = [
        Column("machine", names, "left", flexible=True),
        *_count_columns(section.curves, counts, lambda one: units.significant(one.tokens_per_s_per_device.value)),
        Column("scaling %", [f"{100 * curve.scaling[-1]:.0f}" for curve in section.curves], optional=1),
    ]
    if not console.options.ascii_only:
        columns.append(Column("curve", [_sparkline(curve, counts) for curve in section.curves], "left", optional=20))
    console.print(table_of(columns, console.width))
    objective = facts.objective
    winners = {id(winner.best) for winner in section.winners}

    def value(one: Candidate) -> str:
        return _objective_cell(objective, one.value(objective.name)) + ("*" if id(one) in winners else " ")

    console.print()
    console.print(Text(f"{objective.words.capitalize()} ({_objective_header(objective)}), * the best of a column"))
    columns = [Column("machine", names, "left", flexible=True), *_count_columns(section.curves, counts, value)]
    console.print(table_of(columns, console.width))


def _count_columns(curves: Sequence[Curve], counts: Sequence[int], text: Callable[[Candidate], str]) -> list[Column]:
    """A column per device count; those in the middle are left out first."""
    columns = []
    for position, count in enumerate(counts):
        at = [next((point for point in curve.points if point.devices == count), None) for curve in curves]
        inner = min(position, len(counts) - 1 - position)
        cells = [text(point) if point else "-" for point in at]
        columns.append(Column(units.count(count), cells, optional=10 + inner if inner else 0))
    return columns


def _sparkline(curve: Curve, counts: Sequence[int]) -> str:
    """A bar per studied count, from nothing to the curve's own best; a gap where no plan fits."""
    at = {point.devices: point.tokens_per_s_per_device.value for point in curve.points}
    most = max(at.values())
    steps = len(_BARS) - 1
    return "".join(_BARS[round(at[count] / most * steps)] if count in at else " " for count in counts)


def _print_winners(section: Section, console: Console) -> None:
    if len(section.winners) < SEVERAL or len({(c.machine, c.precision) for c in section.curves}) == 1:
        return
    console.print()
    if section.changes:
        said = "; ".join(
            f"between {units.count(one.devices_before)} and {units.count(one.devices_after)} devices, from "
            f"{one.before} to {one.after}"
            for one in section.changes
        )
        console.print(Text(f"The winner changes {said}."))
    else:
        console.print(Text("The winner is the same on every studied number of devices."))
    found = [winner for winner in section.winners if winner.difference is not None]
    lead = [
        Column("devices", [units.count(winner.devices) for winner in found]),
        Column("winner", [winner.best.machine for winner in found], "left"),
        Column("before", [winner.runner_up.machine if winner.runner_up else "-" for winner in found], "left"),
    ]
    if len({curve.precision for curve in section.curves}) > 1:
        lead[1] = Column("winner", [f"{winner.best.machine}, {winner.best.precision}" for winner in found], "left")
        others = [winner.runner_up for winner in found]
        lead[2] = Column("before", [f"{one.machine}, {one.precision}" if one else "-" for one in others], "left")
    if found:
        print_why(lead, [winner.difference for winner in found if winner.difference], console)


# ---- limits, failures, inputs -------------------------------------------------------------------------------------


def _print_choices(section: Section, console: Console) -> None:
    if section.choices:
        console.print()
    for words in dict.fromkeys(map(choice_words, section.choices)):
        console.print(Text(words))


def choice_words(choice: Choice) -> str:
    """The answer in one sentence."""
    if choice.best is None:
        return f"Nothing {nearest_words(choice)}."
    unsure = "perhaps" in (choice.best.within_budget, choice.best.within_deadline)
    sure = "; the upper end of its interval is beyond" if unsure else ""
    return (
        f"The {choice.question} {choice.limits}: {priced(choice.best)}{sure} "
        f"({choice.n_within} of {choice.n_candidates} scenarios are within)."
    )


def _print_nothing_fits(section: Section, console: Console) -> None:
    if not section.nothing_fits:
        return
    console.print()
    for one in section.nothing_fits[:_NOTHING_FITS_SHOWN]:
        nearest = f"; nearest: {one.nearest}" if one.nearest else ""
        console.print(
            Text(
                f"Nothing fits on {one.devices:,} {one.machine} in {one.precision}: all {one.n_plans:,} plans{nearest}"
            )
        )
    left = len(section.nothing_fits) - _NOTHING_FITS_SHOWN
    if left > 0:
        console.print(Text(f"Nor in {left} other scenarios; --csv has all of them."))


def _print_failures(facts: CompareFacts, console: Console) -> None:
    if facts.failures is None:
        return
    by_count = {one.devices: one.goodput for section in facts.sections for one in section.candidates if one.goodput}
    counts = sorted(by_count)
    lost = [by_count[count] for count in counts]
    failures = facts.failures
    console.print()
    console.print(
        Text(
            f"Failures every {units.count(failures.device_failure_interval_s / 3600)} device-hours, checkpoints of "
            f"{units.duration(failures.checkpoint_write_s)}, restarts of {units.duration(failures.restart_s)}: days, "
            f"cost and energy are the expected ones (Daly 2006, doi.org/10.1016/j.future.2004.11.016)"
        )
    )
    columns = [
        Column("devices", [units.count(count) for count in counts]),
        Column("failure every", [units.duration(one.failure_interval_s) for one in lost], optional=1),
        Column(
            "checkpoint every",
            [units.duration(one.checkpoint_interval_s) if one.makes_progress else "-" for one in lost],
        ),
        Column("goodput %", [f"{100 * one.goodput_fraction:.1f}" if one.makes_progress else "none" for one in lost]),
    ]
    console.print(table_of(columns, console.width))
    if said := no_progress([one for section in facts.sections for one in section.candidates], failures):
        console.print(Text(said, style="bold"))


def _print_inputs(facts: CompareFacts, console: Console) -> None:
    inputs = facts.inputs
    console.print()
    site = f"; the site takes {units.significant(facts.pue)} times as much (--pue)" if facts.pue != 1.0 else " (--pue)"
    left_out = "networks between nodes and storage" + (" left out" if facts.pue != 1.0 else ", and cooling, left out")
    console.print(Text(f"Prices and powers of a device that this rests on, drawn all the time; {left_out}{site}"))
    columns = [
        Column("machine", [one.machine for one in inputs], "left", flexible=True),
        Column("$/hour", [or_dash(one.usd_per_device_hour, "{:.2f}".format) for one in inputs]),
        Column("price from", [_short(one.price_source) for one in inputs], "left", optional=2, flexible=True),
        Column("W", [or_dash(one.watts_per_device, units.count) for one in inputs]),
        Column("of it host", [or_dash(one.host_watts_per_device, units.count) for one in inputs], optional=4),
        Column("power from", [_short(one.power_source) for one in inputs], "left", optional=1, flexible=True),
        Column("kernels", ["measured" if one.is_measured else "a relative's" for one in inputs], "left", optional=3),
    ]
    console.print(table_of(columns, console.width))


def _short(source: str) -> str:
    """A source without its addresses, which --json has: ``Oracle Cloud BM.GPU.H100.8 (2026-09)``."""
    name, _, rest = source.partition(", http")
    dated = rest.rpartition(" (")[2] if rest.endswith(")") else ""
    return name + (f" ({dated}" if dated else "")
