"""What a search refused, and where nothing fits, what came closest."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.report.memory_words import limit_words
from dlcalc.report.plan_words import knobs_of, shared_and_own
from dlcalc.report.summary import (
    ScenarioSummary,
)
from dlcalc.report.tables import Column, table_of
from dlcalc.utils import units

_MISSES_SHOWN = 5


def print_refused(scenario: ScenarioSummary, console: Console) -> None:
    """How many plans were refused for what, and where the limit of memory is."""
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


def print_nothing_fits(scenario: ScenarioSummary, console: Console) -> None:
    """Why no plan fits, and the plans that nearly do."""
    console.print(
        Text.assemble(("No plan fits", "bold red"), f": all {units.count(scenario['n_plans'])} were refused.")
    )
    print_refused(scenario, console)
    misses = scenario["nearest_misses"][:_MISSES_SHOWN]
    if not misses:
        return
    shared, own = shared_and_own([knobs_of(miss) for miss in misses])
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
