"""A validation as text: errors by source, verdicts on memory, ranking of sweeps, and what was not as written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlcalc.report.validation_summary import Count, ErrorRow, ScoreRow, SweepRow, ValidationSummary
from dlcalc.utils import units

NOTHING = "-"
SWEEPS_SHOWN = 12
REASONS_SHOWN = 20

Cell = Callable[[ScoreRow], str]


@dataclass(frozen=True)
class _Section:
    """A table of scores: its columns, and which sources have anything in them."""

    title: str
    columns: Sequence[tuple[str, Cell]]
    tells_of: Callable[[ScoreRow], bool] = lambda _: True


def print_validation(summary: ValidationSummary, console: Console) -> None:
    """The whole report."""
    n, estimated = summary["runs"], summary["estimated"]
    rows = [*summary["sources"], summary["overall"]] if len(summary["sources"]) > 1 else summary["sources"]
    console.print(
        f"{_many(n, 'measured run')} of {_many(len(summary['sources']), 'source')}, {units.count(estimated)} "
        f"estimated in {units.duration(summary['seconds'])}; errors: estimated over measured, minus one, in percent\n"
    )
    aimed = f"in {100 * summary['interval']:.0f} % interval"
    for section in (
        _Section("Step time", [*_error_columns("step_time"), (aimed, lambda row: percent(row["interval_coverage"]))]),
        _Section("Memory", _error_columns("memory"), lambda row: row["memory"]["runs"] > 0),
        _Section("Out of memory: plans", _VERDICTS, lambda row: row["out_of_memory"]["runs"] > 0),
        _Section("Ranking within sweeps", _RANKING, lambda row: row["ranking"]["sweeps"] > 0),
    ):
        if told := [row for row in rows if section.tells_of(row)]:
            console.print(_score_table(section, told))
            console.print()
    if summary["sweeps"]:
        console.print(_sweep_table(summary["sweeps"]))
        console.print()
    for line in remarks(summary):
        console.print(Text(line))


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction in percent to one decimal, or a dash."""
    if fraction is None:
        return NOTHING
    return f"{100 * fraction:+.1f}" if signed else f"{100 * fraction:.1f}"


def decimal(value: float | None) -> str:
    """A correlation, or a dash."""
    return NOTHING if value is None else f"{value:.3f}"


def _error_columns(what: str) -> list[tuple[str, Cell]]:
    def cell(key: str, *, signed: bool = False) -> Cell:
        def text(row: ScoreRow) -> str:
            errors: ErrorRow = row[what]  # type: ignore[literal-required]
            return percent(errors[key], signed=signed)  # type: ignore[literal-required]

        return text

    def runs(row: ScoreRow) -> str:
        errors: ErrorRow = row[what]  # type: ignore[literal-required]
        return units.count(errors["runs"])

    return [
        ("runs", runs),
        *((key, cell(key)) for key in ("median", "mean", "p90", "worst")),
        ("bias", cell("bias", signed=True)),
    ]


_VERDICTS: list[tuple[str, Cell]] = [
    ("judged", lambda row: units.count(row["out_of_memory"]["runs"])),
    ("right", lambda row: percent(row["out_of_memory"]["accuracy"])),
    ("ran, said to fit", lambda row: units.count(row["out_of_memory"]["ran_and_fits"])),
    ("ran, refused", lambda row: units.count(row["out_of_memory"]["ran_but_refused"])),
    ("out, refused", lambda row: units.count(row["out_of_memory"]["out_and_refused"])),
    ("out, said to fit", lambda row: units.count(row["out_of_memory"]["out_but_fits"])),
]
_RANKING: list[tuple[str, Cell]] = [
    ("sweeps", lambda row: units.count(row["ranking"]["sweeps"])),
    ("Spearman", lambda row: decimal(row["ranking"]["spearman_mean"])),
    ("lowest", lambda row: decimal(row["ranking"]["spearman_worst"])),
    ("regret at 1", lambda row: percent(row["ranking"]["regret_at_1_mean"])),
    ("worst", lambda row: percent(row["ranking"]["regret_at_1_worst"])),
    ("regret at 3", lambda row: percent(row["ranking"]["regret_at_3_mean"])),
    ("choices out of memory", lambda row: units.count(row["ranking"]["choices_out_of_memory"])),
]


def new_table(title: str) -> Table:
    """A bare table with its title above."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )


def _score_table(section: _Section, rows: Sequence[ScoreRow]) -> Table:
    table = new_table(section.title)
    table.add_column("source")
    for heading, _ in section.columns:
        table.add_column(heading, justify="right")
    for row in rows:
        if row["source"] == "all":
            table.add_section()
        table.add_row(Text(row["source"]), *(Text(cell(row)) for _, cell in section.columns))
    return table


def _sweep_table(sweeps: Sequence[SweepRow]) -> Table:
    """All sweeps, or those whose first choice was worst."""
    worst_first = sorted(sweeps, key=lambda sweep: -sweep["regret_at_1"])
    shown = list(sweeps) if len(sweeps) <= SWEEPS_SHOWN else worst_first[:SWEEPS_SHOWN]
    left_out = f" ({len(shown)} of {len(sweeps)}: those with the highest regret)" if len(shown) < len(sweeps) else ""
    table = new_table(f"Sweeps{left_out}")
    for heading in ("source", "model", "hardware"):
        table.add_column(heading, overflow="fold")
    for heading in ("devices", "sequence", "batch", "timed", "out of memory", "Spearman", "regret at 1", "regret at 3"):
        table.add_column(heading, justify="right")
    for sweep in shown:
        name = (
            sweep["source"],
            sweep["model"],
            sweep["hardware"],
            sweep["gpus"],
            sweep["seq_len"],
            sweep["global_batch"],
        )
        counts = (str(sweep["timed"]), str(sweep["out_of_memory"]), decimal(sweep["spearman"]))
        table.add_row(*map(Text, (*name, *counts, percent(sweep["regret_at_1"]), percent(sweep["regret_at_3"]))))
    return table


def remarks(summary: ValidationSummary) -> Iterable[str]:
    """What a reader must know beside the tables, a line each."""
    if summary["parts_of_a_step"]:
        yield f"{_rows(summary['parts_of_a_step'])} timed one layer, not a step: estimated, but not compared"
    yield from _counted("not estimated", summary["not_estimated"])
    yield from _counted("refused though it ran", summary["refused_though_they_ran"])
    yield from _counted("", summary["remarks"])
    for label, names in (
        ("extras without effect on an estimate", summary["extras_without_effect"]),
        ("other extras, ignored", summary["ignored_extras"]),
        ("keys of models, ignored", summary["ignored_model_keys"]),
    ):
        if names:
            yield f"{label}: {', '.join(names)}"
    for reason in summary["refused_models"]:
        yield f"left out: {reason}"


def _counted(label: str, counts: Sequence[Count]) -> Iterable[str]:
    for count in counts[:REASONS_SHOWN]:
        yield f"{label + ': ' if label else ''}{count['text']} ({_rows(count['runs'])})"
    if len(counts) > REASONS_SHOWN:
        yield f"{label + ': ' if label else ''}and {len(counts) - REASONS_SHOWN} more"


def _rows(n: int) -> str:
    return _many(n, "row")


def _many(n: int, what: str) -> str:
    return f"{units.count(n)} {what}{'' if n == 1 else 's'}"
