"""The answer of a search as text: what to run, why it is the fastest, what was refused, what nearly fitted.

Knobs that all shown plans share are said once; the others make up the plan's name in the tables. Everything is
plain ASCII but for the bars and boxes, which fall back to ASCII where the output cannot show them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.report.memory_words import limit_words, need_of_usable
from dlcalc.report.placed import placed_headline, print_placed
from dlcalc.report.plan_words import Knobs, plan_words, shared_and_own, values_in_use
from dlcalc.report.sampled import print_designs, print_measured, print_sampled
from dlcalc.report.summary import (
    Breakdown,
    DryRun,
    HardwareRow,
    Miss,
    ModelRow,
    PlanRow,
    ScenarioSummary,
    SortName,
    Summary,
)
from dlcalc.report.tables import Column, table_of
from dlcalc.utils import units

_PIPE_WIDTH = 120
_MIN_WIDTH = 40
_SIDE_BY_SIDE_WIDTH = 118
_FULL_DETAILS = 3
_MISSES_SHOWN = 5
_BAR_CELLS = 24
_GAP = 3
_ROOMY_FRACTION = 0.05
_SMALL_TERM_FRACTION = 0.003
_REFRESH_S = 0.1
SEARCHING = "searching"
FIRST: Mapping[SortName, str] = {
    "mfu": "Fastest",
    "step_time": "Fastest",
    "cost": "Cheapest, as it is the fastest",
    "memory": "Least memory",
}
"""The first of all plans, by what they are sorted by. At one number of devices, cost follows the step time."""
SORTED_BY: Mapping[SortName, str] = {"mfu": "MFU", "step_time": "step time", "cost": "cost", "memory": "memory"}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def make_console(file: IO[str] | None = None) -> Console:
    """A console on ``file`` (stdout): the terminal's width, or a comfortable one in a pipe."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _PIPE_WIDTH
    console.width = max(console.width, _MIN_WIDTH)
    return console


# --- tables ----------------------------------------------------------------------------------------------------


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


# --- a study ----------------------------------------------------------------------------------------------------


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
    shared, own = shared_and_own([_knobs(row) for row in found]) if found else ("", [])
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
        columns.append(Column("days", cells(lambda row: _or_dash(row["days"], units.days)), optional=2))
    if any(row["cost_usd"] is not None for row in found):
        columns.append(Column("cost", cells(lambda row: _or_dash(row["cost_usd"], units.money)), optional=1))
    console.print(
        Text.assemble(
            (summary["study"], "bold"),
            f": the best plan of each scenario by {SORTED_BY[summary['sort']]}",
            f", all with {shared}" if shared else "",
        )
    )
    console.print(table_of(columns, console.width))


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


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
        _print_nothing_fits(scenario, console)
        return
    console.print(Text.assemble((f"{FIRST[sort]}: ", "bold green"), _headline(scenario)))
    rows = scenario["best"][: max(top, 1)]
    if len(rows) > 1:
        shared, own = shared_and_own([_knobs(row) for row in rows])
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
        console.print(_breakdown(scenario, scenario["breakdown"], console))
    if "placed" in scenario:
        print_placed(scenario["placed"], console)
    _print_refused(scenario, console)


def _knobs(row: PlanRow | Miss) -> Knobs:
    return cast("Knobs", row)


def _print_short(scenario: ScenarioSummary, console: Console) -> None:
    """A scenario in a few lines, where there are many."""
    console.print(_title(scenario))
    console.print(Text(_headline(scenario)))
    if scenario["breakdown"]:
        times = _shares(scenario["breakdown"]["time_s"], "_s")
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
    varied = values_in_use([_knobs(row) for row in rows])
    if varied:
        listed = f"the first {len(rows)} of these plans " if len(rows) <= others else ""
        text += f", {listed}with {varied}"
    roomy = max(rows, key=lambda row: row["headroom_bytes"], default=None)
    best = scenario["best"][0]
    gain = roomy["headroom_bytes"] - best["headroom_bytes"] if roomy else 0.0
    if roomy and gain > _ROOMY_FRACTION * scenario["memory_usable_bytes"]:
        slower = roomy["step_time_s"] / best["step_time_s"] - 1
        text += (
            f". The roomiest of them: {plan_words(_knobs(roomy))}: {units.gib(roomy['headroom_bytes'])} GiB free "
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
            f"The fastest: {plan_words(_knobs(fastest))}: {units.duration(fastest['step_time_s'], 4)} per step, "
            f"{need_of_usable(fastest['memory_bytes'], scenario['memory_usable_bytes'])}{near}."
        )
    )


def _print_rivals(scenario: ScenarioSummary, console: Console) -> None:
    """What the estimates cannot decide, and the few runs that would."""
    tries = scenario["worth_measuring"]
    if scenario["n_not_told_apart"] < 2 or len(tries) < 2:
        return
    listed = "; ".join(plan_words(_knobs(row)) for row in tries)
    console.print()
    console.print(
        Text(
            f"{units.count(scenario['n_not_told_apart'])} plans cannot be told apart from the best by these estimates. "
            f"Worth measuring on the cluster: {listed}."
        )
    )


# --- where time and memory go -----------------------------------------------------------------------------------


def _shares(terms: Mapping[str, float], suffix: str) -> list[tuple[str, float, float]]:
    """(label, value, share of the sum), largest first; small ones are added up."""
    total = sum(terms.values())
    if total <= 0:
        return []
    ordered = sorted(((term, value) for term, value in terms.items() if value > 0), key=lambda item: -item[1])
    large = [(term, value) for term, value in ordered if value / total >= _SMALL_TERM_FRACTION]
    small = ordered[len(large) :]
    shown = [(term.removesuffix(suffix).replace("_", " "), value) for term, value in large]
    if small:
        shown.append((f"{len(small)} smaller", sum(value for _, value in small)))
    return [(label, value, value / total) for label, value in shown]


def _bar(share: float, largest: float, cells: int, *, ascii_only: bool) -> str:
    """A bar of ``cells`` characters for the ``largest`` share."""
    eighths = round(share / largest * cells * 8) if largest > 0 else 0
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _bars(title: str, terms: Sequence[tuple[str, str, float]], width: int, *, ascii_only: bool) -> Table:
    """One line per (label, value, share)."""
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = Text(title), "left", "none"
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    largest = max((share for _, _, share in terms), default=0.0)
    texts = max((len(label) + len(value) for label, value, _ in terms), default=0)
    cells = max(4, min(_BAR_CELLS, width - texts - len("  ") - len(" 100.0 %  ") - 1))
    for label, value, share in terms:
        bar = Text(_bar(share, largest, cells, ascii_only=ascii_only), style="blue")
        table.add_row(Text("  " + label), Text(value), Text(units.percent(share)), bar)
    return table


def _same_unit(largest_s: float) -> Callable[[float], str]:
    """Times that can be compared at a glance."""
    return "{:.3f} s".format if largest_s >= 1 else lambda value_s: f"{value_s * 1e3:.2f} ms"


def _breakdown(scenario: ScenarioSummary, breakdown: Breakdown, console: Console) -> RenderableType:
    """Bars of the best plan's terms: side by side where there is room."""
    best = scenario["best"][0]
    ascii_only = console.options.ascii_only
    together = console.width >= _SIDE_BY_SIDE_WIDTH
    width = (console.width - _GAP) // 2 if together else console.width
    seconds = _same_unit(best["step_time_s"])
    times = _bars(
        f"Where the step goes ({units.duration(best['step_time_s'], 4)})",
        [(label, seconds(value), share) for label, value, share in _shares(breakdown["time_s"], "_s")],
        width,
        ascii_only=ascii_only,
    )
    memory = _bars(
        f"Where the memory goes ({units.gib(best['memory_bytes'])} GiB, {units.gib(best['headroom_bytes'])} free)",
        [
            (label, f"{units.gib(value, 2)} GiB", share)
            for label, value, share in _shares(breakdown["memory_bytes"], "_bytes")
        ],
        width,
        ascii_only=ascii_only,
    )
    if not together:
        return Group(times, Text(), memory)
    pair = Table.grid(padding=(0, _GAP))
    pair.add_row(times, memory)
    return pair


# --- what was refused -------------------------------------------------------------------------------------------


def _print_refused(scenario: ScenarioSummary, console: Console) -> None:
    n_refused = scenario["n_plans"] - scenario["n_fit"]
    reasons = sorted(
        ((n, reason) for reason, n in scenario["refused"].items() if n), key=lambda item: (-item[0], item[1])
    )
    if not reasons:
        return
    overlap = "; a plan may be refused for several reasons" if sum(n for n, _ in reasons) > n_refused else ""
    console.print()
    console.print(Text(f"Refused: {units.count(n_refused)} of {units.count(scenario['n_plans'])} plans{overlap}"))
    columns = [
        Column("plans", [units.count(n) for n, _ in reasons]),
        Column("%", [f"{100 * n / max(scenario['n_plans'], 1):.1f}" for n, _ in reasons]),
        Column("why", [reason.replace("_", " ") for _, reason in reasons], "left", flexible=True),
    ]
    console.print(table_of(columns, console.width))
    if OUT_OF_MEMORY in scenario["refused"]:
        said = limit_words(scenario["memory_usable_bytes"], scenario["memory_limit_bytes"])
        console.print(Text(f"Memory: {said}.", style="dim"))


def _print_nothing_fits(scenario: ScenarioSummary, console: Console) -> None:
    console.print(
        Text.assemble(("No plan fits", "bold red"), f": all {units.count(scenario['n_plans'])} were refused.")
    )
    _print_refused(scenario, console)
    misses = scenario["nearest_misses"][:_MISSES_SHOWN]
    if not misses:
        return
    shared, own = shared_and_own([_knobs(miss) for miss in misses])
    console.print()
    console.print(Text("Nearest misses" + (f", all with {shared}" if shared else "")))
    columns = [
        Column("plan", own, "left", flexible=True),
        Column("needs GiB", [units.gib(miss["memory_bytes"]) for miss in misses]),
        Column("limit GiB", [units.gib(scenario["memory_limit_bytes"])] * len(misses), optional=1),
        Column("over GiB", [units.gib(max(miss["over_bytes"], 0.0)) for miss in misses]),
        Column(
            "why", ["; ".join(miss["reasons"]).replace("_", " ") for miss in misses], "left", optional=2, flexible=True
        ),
    ]
    console.print(table_of(columns, console.width))


# --- other answers ----------------------------------------------------------------------------------------------


def print_dry_run(counts: DryRun, console: Console) -> None:
    """What a search would look at, how long it would take and how large its result would be."""
    scenarios = counts["scenarios"]
    columns = [
        Column("scenario", [scenario["name"] for scenario in scenarios], "left", flexible=True),
        Column("plans", [units.count(scenario["n_plans"]) for scenario in scenarios]),
        Column("axes", [_axes(scenario["axes"]) for scenario in scenarios], "left", flexible=True),
    ]
    console.print(table_of(columns, console.width))
    console.print(
        Text(
            f"{counts['study']}: {units.count(counts['n_plans'])} plans, about {units.duration(counts['seconds'])}, "
            f"at most about {units.size(counts['result_bytes'])} in {counts['result']}; nothing was written"
        )
    )


def _axes(axes: Mapping[str, int]) -> str:
    return " x ".join(f"{number} {axis.replace('_', ' ')}" for axis, number in axes.items() if number > 1) or "1 plan"


def print_hardware(rows: Sequence[HardwareRow], console: Console) -> None:
    """The hardware that can be named in a space file."""
    columns = [
        Column("hardware", [row["name"] for row in rows], "left"),
        Column("per node", [str(row["devices_per_node"]) for row in rows], optional=3),
        Column("HBM GiB", [units.significant(row["hbm_gib"]) for row in rows]),
        Column("TB/s", [units.significant(row["hbm_tb_per_s"]) for row in rows], optional=5),
        Column("bf16 TFLOP/s", [_or_dash(row["bf16_tflops"], units.count) for row in rows]),
        Column("fp8", [_or_dash(row["fp8_tflops"], units.count) for row in rows], optional=4),
        Column("node GB/s", [units.significant(row["link_gb_per_s"]) for row in rows], optional=1),
        Column("NIC Gbit/s", [units.significant(row["nic_gbit_per_s"]) for row in rows], optional=1),
        Column("$/device-hour", [_or_dash(row["usd_per_device_hour"], "{:.2f}".format) for row in rows], optional=2),
        Column("calibration", ["measured" if row["measured"] else "datasheet" for row in rows], "left", optional=6),
        Column("also called", [", ".join(row["aliases"]) for row in rows], "left", optional=7, flexible=True),
    ]
    console.print(table_of(columns, console.width))
    console.print(Text("Peaks are dense; links are per device and direction.", style="dim"))


def print_models(rows: Sequence[ModelRow], console: Console) -> None:
    """The models that can be named in a space file."""
    columns = [
        Column("model", [row["name"] for row in rows], "left"),
        Column("parameters", [units.short_count(row["parameters_total"]) for row in rows]),
        Column("active", [units.short_count(row["parameters_active"]) for row in rows], optional=1),
        Column("layers", [str(row["n_layers"]) for row in rows]),
        Column("hidden", [str(row["hidden_size"]) for row in rows], optional=2),
        Column("heads", [str(row["n_heads"]) for row in rows], optional=3),
        Column("experts", [str(row["n_experts"] or "-") for row in rows], optional=4),
        Column("vocabulary", [units.count(row["vocab_size"]) for row in rows], optional=5),
    ]
    console.print(table_of(columns, console.width))


# --- progress ---------------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    """Plans per second, and the time left at that rate."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.description != SEARCHING:
            return Text("")
        left = (task.remaining or 0) / task.speed
        return Text(f"{units.short_count(task.speed)} plans/s, {units.duration(max(left, 0.0))} left")


class SearchProgress:
    """A progress bar on stderr; does nothing where stderr is not a terminal.

    Called with the plans done and the plans in all, as often as the search likes.
    """

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None) -> None:
        stream = file if file is not None else sys.stderr
        self._quiet, self._stream = quiet, stream
        self._shown = not quiet and stream.isatty()
        self._last_s = 0.0
        if self._shown:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                _Rate(),
                console=Console(file=stream, highlight=False),
                transient=True,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(SEARCHING, total=None)

    def __enter__(self) -> Self:
        if self._shown:
            self._bar.start()
        return self

    def __call__(self, done: int, total: int, what: str = SEARCHING) -> None:
        """``done`` of ``total`` plans are behind us, or of whatever ``what`` is done to."""
        if not self._shown:
            return
        now_s = time.monotonic()
        if now_s - self._last_s < _REFRESH_S and done < total:
            return
        self._last_s = now_s
        self._bar.update(self._task, completed=done, total=total, description=what, refresh=True)

    def say(self, text: str) -> None:
        """A line beside the bar; also where there is no bar."""
        if self._shown:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        elif not self._quiet:
            print(text, file=self._stream)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            self._bar.stop()
