"""What results hold, whether they are in order, and the rows of a query, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlcalc.report.plan_words import plan_words
from dlcalc.report.sections import Facts, Grid, Line, Part, Section, Verbatim
from dlcalc.utils import units

ROWS_SHOWN = 40


@dataclass(frozen=True)
class ScenarioHeld:
    """A scenario of a result: its inputs, what is there of it, and its best plan."""

    name: str
    model: str
    hardware: str
    devices: int
    precision: str
    framework: str
    seq_len: int
    global_batch: int
    n_shards: int
    n_plans: int
    n_fit: int
    n_rows: int
    best: Mapping[str, Any] | None
    """The row of the best plan; None where nothing fits or nothing is finished."""


@dataclass(frozen=True)
class StudyHeld:
    """A result as a whole."""

    directory: str
    study: str
    complete: bool
    dlcalc_version: str
    schema_version: int
    settings: Mapping[str, Any]
    n_shards: int
    n_rows: int
    n_bytes: int
    placed_on: str | None
    space_text: str
    scenarios: tuple[ScenarioHeld, ...]


@dataclass(frozen=True)
class FaultFound:
    """A file, and what is wrong with it."""

    file: str
    problem: str


@dataclass(frozen=True)
class Verified:
    """One directory, looked at."""

    directory: str
    study: str | None
    complete: bool
    n_shards: int
    n_rows: int
    n_bytes: int
    faults: tuple[FaultFound, ...]
    leftovers: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """Rows of a query, as far as they are shown."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    n_rows: int


# ---- show ---------------------------------------------------------------------------------------------------------


def study_section(held: StudyHeld) -> Section:
    """What a result holds."""
    keep = held.settings.get("keep", "?")
    facts = [
        ("directory", held.directory),
        ("state", "complete" if held.complete else "not finished; dlcalc-search goes on with it (--resume)"),
        ("files", f"{held.n_shards} shards, {units.count(held.n_rows)} rows, {units.size(held.n_bytes)}"),
        ("kept", f"{keep}, best by {held.settings.get('sort', 'step_time')}"),
        ("made by", f"dlcalc {held.dlcalc_version}, schema {held.schema_version}"),
    ]
    if merged := held.settings.get("merged"):
        facts.append(("merged from", str(merged)))
    if held.placed_on:
        facts.append(("placed on", held.placed_on))
    parts: list[Part] = [Facts(tuple(facts)), _scenario_grid(held), Verbatim(f"\n{held.space_text.strip()}")]
    return Section(held.study, 1, tuple(parts))


def _scenario_grid(held: StudyHeld) -> Grid:
    header = ("scenario", "inputs", "plans", "fit", "rows", "best plan", "step", "MFU %")
    rows = []
    for one in held.scenarios:
        inputs = f"{one.framework}, {units.count(one.global_batch)} x {units.count(one.seq_len)} tokens"
        counts = (units.count(one.n_plans), units.count(one.n_fit), units.count(one.n_rows))
        if one.best is None:
            best = ("nothing fits" if one.n_shards else "not searched yet", "", "")
        else:
            step, mfu = units.duration(one.best["step_time_s"]), f"{100 * one.best['mfu']:.1f}"
            best = (plan_words(one.best), step, mfu)
        rows.append((one.name, inputs, *counts, *best))
    return Grid("", header, tuple(rows), frozenset({"scenario", "inputs", "best plan"}))


# ---- verify -------------------------------------------------------------------------------------------------------


def verified_lines(found: Verified) -> tuple[Part, ...]:
    """One line where all is well; otherwise a line per fault."""
    held = f"{found.n_shards} shards, {units.count(found.n_rows)} rows, {units.size(found.n_bytes)}"
    state = "complete" if found.complete else "not finished"
    parts: list[Part] = []
    if not found.faults:
        parts.append(Line(f"{found.directory}: in order, {state}: {held}", "answer"))
    for fault in found.faults:
        parts.append(Line(f"{fault.file}: {fault.problem}", "warning"))
    if found.leftovers:
        number = len(found.leftovers)
        parts.append(Line(f"{found.directory}: {number} leftovers of an interrupted search, which do no harm", "dim"))
    return tuple(parts)


def faults_text(found: Sequence[Verified]) -> str | None:
    """What the error says; None where all is well."""
    bad = [one for one in found if one.faults]
    if not bad:
        return None
    number = sum(len(one.faults) for one in bad)
    fix = "dlcalc-search --resume searches damaged and missing shards again; move foreign files away"
    return f"{number} fault{'s' if number > 1 else ''} in {', '.join(one.directory for one in bad)}; {fix}"


# ---- query --------------------------------------------------------------------------------------------------------


def answer_part(answer: Answer) -> Part:
    """The rows as a table."""
    rows = tuple(tuple(_cell(value) for value in row) for row in answer.rows)
    more = answer.n_rows - len(answer.rows)
    caption = f"{units.count(more)} more rows; --csv FILE, --parquet FILE and --json have all" if more else ""
    left = {
        name
        for position, name in enumerate(answer.columns)
        if any(isinstance(row[position], str) for row in answer.rows)
    }
    return Grid("", answer.columns, rows, frozenset(left), caption)


def _cell(value: Any) -> str:  # noqa: ANN401 - whatever SQL gives
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return units.count(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
