"""The answer of a search as text: what to run, why it is the fastest, what was refused, what nearly fitted.

Knobs that all shown plans share are said once; the others make up the plan's name in the tables. Everything is
plain ASCII but for the bars and boxes, which fall back to ASCII where the output cannot show them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from dlcalc.report.memory_words import need_of_usable
from dlcalc.report.placed import placed_headline, print_placed
from dlcalc.report.plan_words import knobs_of, plan_words, shared_and_own, values_in_use
from dlcalc.report.sampled import print_designs, print_measured, print_sampled
from dlcalc.report.search_bars import breakdown_bars, term_shares
from dlcalc.report.search_refused import print_nothing_fits, print_refused
from dlcalc.report.summary import (
    PlanRow,
    ScenarioSummary,
    SortName,
    Summary,
)
from dlcalc.report.tables import Column, or_dash, table_of
from dlcalc.utils import units

_FULL_DETAILS = 3
_ROOMY_FRACTION = 0.05
FIRST: Mapping[SortName, str] = {
    "mfu": "Fastest",
    "step_time": "Fastest",
    "cost": "Cheapest, as it is the fastest",
    "memory": "Least memory",
}
"""The first of all plans, by what they are sorted by. At one number of devices, cost follows the step time."""
SORTED_BY: Mapping[SortName, str] = {"mfu": "MFU", "step_time": "step time", "cost": "cost", "memory": "memory"}


def print_search(summary: Summary, console: Console, top: int = 10) -> None:
    """The whole answer: an overview when there are several scenarios, then each of them."""
    scenarios = summary["scenarios"]
    for designs in summary.get("designs", []):
        print_designs(designs, console)
        console.print()
    if len(scenarios) > 1:
        _print_overview(summary, console)
    for position, scenario in enumerate(scenarios):
        console.print()
        if position < _FULL_DETAILS or not scenario["n_fit"]:
            _print_scenario(scenario, console, top, summary["sort"])
        else:
            _print_short(scenario, console)
    console.print()
    console.print(Text(_closing(summary), style="dim"))


def _closing(summary: Summary) -> str:
    shortened = len(summary["scenarios"]) > _FULL_DETAILS
    text = "Scenarios after the first few are shortened; --json has all of them.\n" if shortened else ""
    text += (
        f"{units.count(summary['n_plans'])} plans in {units.duration(summary['seconds'])} "
        f"({units.short_count(summary['plans_per_s'])} plans/s), {units.count(summary['n_fit'])} fit; "
        f"peak memory {units.size(summary['peak_rss_bytes'])}"
    )
    if "placing_s" in summary:
        text += f"; placed in {units.duration(summary['placing_s'])}"
    return text + (f"; rows in {summary['result']}" if summary["result"] else "")


def _print_overview(summary: Summary, console: Console) -> None:
    """One line per scenario; a scenario without a plan says so."""
    scenarios = summary["scenarios"]
    best = [scenario["best"][0] if scenario["best"] else None for scenario in scenarios]
    found = [row for row in best if row]
    shared, own = shared_and_own([knobs_of(row) for row in found]) if found else ("", [])
    plans = iter(own)

    def cells(text: Callable[[PlanRow], str]) -> list[str]:
        return [text(row) if row else "-" for row in best]

    columns = [
        Column("scenario", [scenario["name"] for scenario in scenarios], "left", flexible=True),
        Column("best plan", [next(plans) if row else "no plan fits" for row in best], "left", flexible=True),
        Column(*_step_cells(best)),
        Column("MFU %", cells(lambda row: f"{100 * row['mfu']:.1f}")),
        Column("tokens/s/device", cells(lambda row: units.significant(row["tokens_per_s_per_device"], 4)), optional=3),
        Column("memory GiB", cells(lambda row: units.gib(row["memory_bytes"])), optional=4),
    ]
    if any(row["days"] is not None for row in found):
        columns.append(Column("days", cells(lambda row: or_dash(row["days"], units.days)), optional=2))
    if any(row["cost_usd"] is not None for row in found):
        columns.append(Column("cost", cells(lambda row: or_dash(row["cost_usd"], units.money)), optional=1))
    console.print(
        Text.assemble(
            (summary["study"], "bold"),
            f": the best plan of each scenario by {SORTED_BY[summary['sort']]}",
            f", all with {shared}" if shared else "",
        )
    )
    console.print(table_of(columns, console.width))


def _title(scenario: ScenarioSummary) -> Text:
    rest = (
        f", {scenario['framework']}, {units.count(scenario['global_batch'])} sequences of "
        f"{units.count(scenario['seq_len'])} tokens"
    )
    return Text.assemble((scenario["name"], "bold cyan"), rest)


def _headline(scenario: ScenarioSummary) -> str:
    """The best plan in one sentence."""
    row = scenario["best"][0]
    text = (
        f"{plan_words(row)}: {units.duration(row['step_time_s'], 4)} per step "
        f"(80 % sure: {units.duration(row['step_time_low_s'], 3)} to {units.duration(row['step_time_high_s'], 3)}), "
        f"{units.percent(row['mfu'])} MFU ({scenario['mfu_convention'].replace('_', ' ')}), "
        f"{units.significant(row['tokens_per_s_per_device'], 4)} tokens/s per device, "
        + need_of_usable(row["memory_bytes"], scenario["memory_usable_bytes"])
    )
    if row["days"] is not None:
        text += f"; {units.significant(row['days'])} days for the token budget"
        text += f", {units.money(row['cost_usd'])}" if row["cost_usd"] is not None else ""
    return text + "."


def _print_scenario(scenario: ScenarioSummary, console: Console, top: int, sort: SortName) -> None:
    console.print(_title(scenario))
    if not scenario["best"]:
        print_nothing_fits(scenario, console)
        return
    console.print(Text.assemble((f"{FIRST[sort]}: ", "bold green"), _headline(scenario)))
    rows = scenario["best"][: max(top, 1)]
    if len(rows) > 1:
        shared, own = shared_and_own([knobs_of(row) for row in rows])
        console.print()
        console.print(Text(f"Best {len(rows)} plans by {SORTED_BY[sort]}" + (f", all with {shared}" if shared else "")))
        console.print(table_of(_plan_columns(rows, own), console.width))
    if "sampled" in scenario:
        print_sampled(scenario["sampled"], console)
    if "measured" in scenario:
        print_measured(scenario["measured"], console)
    if sort == "memory":
        _print_fastest(scenario, console)
    else:
        _print_alternatives(scenario, console)
    _print_rivals(scenario, console)
    if scenario["breakdown"]:
        console.print()
        console.print(breakdown_bars(scenario, scenario["breakdown"], console))
    if "placed" in scenario:
        print_placed(scenario["placed"], console)
    print_refused(scenario, console)


def _print_short(scenario: ScenarioSummary, console: Console) -> None:
    """A scenario in a few lines, where there are many."""
    console.print(_title(scenario))
    console.print(Text(_headline(scenario)))
    if scenario["breakdown"]:
        times = term_shares(scenario["breakdown"]["time_s"], "_s")
        console.print(Text("time: " + ", ".join(f"{term} {units.percent(share)}" for term, _, share in times[:6])))
    if "measured" in scenario:
        print_measured(scenario["measured"], console)
    if "placed" in scenario:
        console.print(Text(placed_headline(scenario["placed"])))


def _print_alternatives(scenario: ScenarioSummary, console: Console) -> None:
    """How many plans are as good, where they differ, and the one that leaves most memory free."""
    rows = scenario["within_2_percent"]
    others = scenario["n_within_2_percent"] - 1
    if others < 1:
        return
    verb = "plan is" if others == 1 else "plans are"
    text = f"{units.count(others)} more {verb} within 2 % of the best"
    varied = values_in_use([knobs_of(row) for row in rows])
    if varied:
        listed = f"the first {len(rows)} of these plans " if len(rows) <= others else ""
        text += f", {listed}with {varied}"
    roomy = max(rows, key=lambda row: row["headroom_bytes"], default=None)
    best = scenario["best"][0]
    gain = roomy["headroom_bytes"] - best["headroom_bytes"] if roomy else 0.0
    if roomy and gain > _ROOMY_FRACTION * scenario["memory_usable_bytes"]:
        slower = roomy["step_time_s"] / best["step_time_s"] - 1
        text += (
            f". The roomiest of them: {plan_words(knobs_of(roomy))}: {units.gib(roomy['headroom_bytes'])} GiB free "
            f"instead of {units.gib(best['headroom_bytes'])}, {units.percent(abs(slower))} "
            f"{'slower' if slower >= 0 else 'faster'}"
        )
    console.print()
    console.print(Text(text + "."))


def _print_fastest(scenario: ScenarioSummary, console: Console) -> None:
    """Beside the plan that needs the least memory, the fastest one."""
    fastest = scenario["within_2_percent"][0]  # one at least, where anything fits
    others = scenario["n_within_2_percent"] - 1
    near = f"; {units.count(others)} more within 2 % of it" if others else ""
    console.print()
    console.print(
        Text(
            f"The fastest: {plan_words(knobs_of(fastest))}: {units.duration(fastest['step_time_s'], 4)} per step, "
            f"{need_of_usable(fastest['memory_bytes'], scenario['memory_usable_bytes'])}{near}."
        )
    )


def _print_rivals(scenario: ScenarioSummary, console: Console) -> None:
    """What the estimates cannot decide, and the few runs that would."""
    tries = scenario["worth_measuring"]
    if scenario["n_not_told_apart"] < 2 or len(tries) < 2:
        return
    listed = "; ".join(plan_words(knobs_of(row)) for row in tries)
    count = units.count(scenario["n_not_told_apart"]) + (" or more" if scenario.get("more_not_told_apart") else "")
    console.print()
    console.print(
        Text(
            f"{count} plans cannot be told apart from the best by these estimates. "
            f"Worth measuring on the cluster: {listed}."
        )
    )


def _step_cells(rows: Sequence[PlanRow | None]) -> tuple[str, list[str]]:
    """Header and cells of step times, all in one unit."""
    times_s = [row["step_time_s"] for row in rows if row]
    scale, unit = (1.0, "s") if max(times_s, default=1.0) >= 1 else (1e-3, "ms")
    return f"step {unit}", [units.significant(row["step_time_s"] / scale, 4) if row else "-" for row in rows]


def _plan_columns(rows: Sequence[PlanRow], own: Sequence[str]) -> list[Column]:
    columns = [
        Column("#", [str(row["rank"]) for row in rows]),
        Column("plan", own, "left", flexible=True),
        Column(*_step_cells(rows)),
        Column("MFU %", [f"{100 * row['mfu']:.1f}" for row in rows]),
        Column("HFU %", [f"{100 * row['hfu']:.1f}" for row in rows], optional=7),
        Column("tokens/s/device", [units.significant(row["tokens_per_s_per_device"], 4) for row in rows], optional=3),
        Column("memory GiB", [units.gib(row["memory_bytes"]) for row in rows]),
        Column("free GiB", [units.gib(row["headroom_bytes"]) for row in rows], optional=2),
    ]
    if all(row["days"] is not None for row in rows):
        columns.append(Column("days", [units.days(row["days"] or 0.0) for row in rows], optional=6))
    if all(row["cost_usd"] is not None for row in rows):
        columns.append(Column("cost", [units.money(row["cost_usd"] or 0.0) for row in rows], optional=5))
    return columns
