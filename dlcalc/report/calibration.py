"""A calibration as text: errors before and after, constants, runs, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlcalc.report.calibration_summary import CalibrationSummary, ConstantRow, ErrorFigures
from dlcalc.report.validation import NOTHING, new_table, percent
from dlcalc.utils import units

LITTLE_SUPPORT = 0.005
RUNS_SHOWN = 40


def print_calibration(summary: CalibrationSummary, console: Console) -> None:
    """The whole report."""
    console.print(Text(_headline(summary)))
    console.print()
    console.print(_error_table(summary))
    console.print()
    console.print(_constant_table(summary["constants"]))
    console.print()
    console.print(_run_table(summary))
    console.print()
    for line in remarks(summary):
        console.print(Text(line))


def _headline(summary: CalibrationSummary) -> str:
    n = summary["runs"]
    return (
        f"{units.count(n)} run{'' if n == 1 else 's'} of {summary['hardware']} with "
        f"{', '.join(summary['frameworks'])}, fitted in {units.duration(summary['seconds'])}; errors: estimated over "
        "measured step time, minus one, in percent"
    )


def _error_table(summary: CalibrationSummary) -> Table:
    table = new_table("Error")
    for heading in ("constants", "median", "worst"):
        table.add_column(heading, justify="left" if heading == "constants" else "right")

    def row(name: str, figures: ErrorFigures) -> None:
        table.add_row(name, percent(figures["median"]), percent(figures["worst"]))

    row("before", summary["before"])
    row("after", summary["after"])
    if summary["left_out"] is not None:
        row("each run left out of the fit", summary["left_out"])
    return table


def _constant_table(rows: Iterable[ConstantRow]) -> Table:
    table = new_table("Constants")
    table.add_column("of")
    table.add_column("constant")
    for heading in ("before", "after", "known from the runs"):
        table.add_column(heading, justify="right")
    table.add_column("meaning", overflow="fold")
    for row in rows:
        share = row["from_runs"]
        after = units.significant(row["after"], 4) if row["moved"] else "as before"
        table.add_row(
            Text(row["owner"]),
            Text(row["key"]),
            units.significant(row["before"], 4),
            f"{after} (bound)" if row["at_bound"] else after,
            f"{100 * share:.0f} %" if share > LITTLE_SUPPORT else NOTHING,
            row["meaning"],
        )
    return table


def _run_table(summary: CalibrationSummary) -> Table:
    rows = summary["fitted_runs"]
    shown = sorted(rows, key=lambda row: -abs(row["error_after"]))[:RUNS_SHOWN] if len(rows) > RUNS_SHOWN else rows
    table = new_table(f"Runs ({len(shown)} of {len(rows)}: the worst)" if len(shown) < len(rows) else "Runs")
    table.add_column("run", overflow="fold")
    table.add_column("plan")
    for heading in ("measured, s", "before", "after", "left out"):
        table.add_column(heading, justify="right")
    for row in shown:
        table.add_row(
            Text(row["case"] or row["where"]),
            Text(row["plan"]),
            units.significant(row["measured_s"], 4),
            percent(row["error_before"], signed=True),
            percent(row["error_after"], signed=True),
            percent(row["error_left_out"], signed=True),
        )
    return table


def remarks(summary: CalibrationSummary) -> Iterable[str]:
    """What a reader must know beside the tables, a line each."""
    for row in summary["not_fitted"]:
        what = "contradicts" if row["contradicts"] else "left out"
        case = f" ({row['case']})" if row["case"] else ""
        yield f"{what}: {row['where']}{case}: {row['reason']}"
    yield from summary["remarks"]
    if not any(row["moved"] for row in summary["constants"]):
        yield "no constant moved: none does better on runs left out of the fit than the constants as they were"
    if summary["hardware_file"] is None:
        yield "nothing was written; --out my_machine.yaml writes the constants"
        return
    yield f"written: {summary['hardware_file']}, for hardware: in studies, runs and measured runs"
    files = summary["framework_files"]
    for name, file in files.items():
        yield f"written: {file}, for framework: instead of {name}; the errors above hold for both files together"
    if not files:
        yield "no constant of a framework moved, so there is no file for one"
