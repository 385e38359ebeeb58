"""The use case behind ``3dtrn``: one run file, or one row of a result, taken apart. Never click, never colours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.timeline import CannotRunError, Timeline, n_operations, pipeline_timeline
from dlcalc.errors import DlcalcError, nearest
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.run_facts import Citation, Comparison, RunFacts
from dlcalc.report.trace import chrome_trace
from dlcalc.results.reader import open_result
from dlcalc.results.storage import Location, ObjectPath, location
from dlcalc.search.run import Run, RunSource
from dlcalc.search.run_file import RunFile
from dlcalc.utils.jsontext import to_json
from dlcalc.workflows.result_rows import row_of
from dlcalc.workflows.run_differences import differences
from dlcalc.workflows.run_facts import estimate_run, facts_of, refusals_of

MOST_OPERATIONS = 500_000
"""Of a pipeline that is written as a trace: about 100 MB of JSON."""


def open_run(
    path: Location | str, *, rank: int | None = None, scenario: str | None = None, hardware_dirs: Sequence[Path] = ()
) -> RunSource:
    """A run file, or the row of rank ``rank`` (1 is the best) of the result in a directory."""
    path = location(path)
    registry = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    if isinstance(path, ObjectPath) or os.path.isdir(path):
        return row_of(open_result(path), path, rank or 1, scenario, registry)
    for option, given in (("--rank", rank), ("--scenario", scenario)):
        if given is not None:
            raise DlcalcError(f"{option} picks a row of a result; {path} is not a result directory")
    if not os.path.exists(path):
        raise DlcalcError(f"{path}: does not exist{_near(path)}")
    return RunFile.read(path, registry)


def analyse(source: RunSource, changes: Mapping[str, Any] | None = None) -> RunFacts:
    """Everything there is to say of a run."""
    run = source.resolve(changes or {})
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a plan that is refused may divide by zero
        found, cross = estimate_run(run)
        return facts_of(run, found, cross)


def compare(source: RunSource, changes: Mapping[str, Any]) -> Comparison:
    """A run as written, and with ``changes``."""
    before, after = analyse(source), analyse(source, changes)
    return Comparison(dict(changes), before, after, tuple(differences(before, after)))


def as_document(facts: RunFacts, comparison: Comparison | None, cited: Sequence[Citation]) -> dict[str, Any]:
    """The object of ``--json``: the run; of a what-if, both and the differences; and the sources, if asked for."""
    if comparison is None:
        found = asdict(facts)
    else:
        found = {
            "changes": dict(comparison.changes),
            "before": asdict(comparison.before),
            "after": asdict(comparison.after),
            "differences": [asdict(row) for row in comparison.differences],
        }
    return {**found, "sources": [asdict(one) for one in cited]} if cited else found


def timeline(source: RunSource) -> tuple[Run, Estimate, Timeline]:
    """A run's pipeline, operation by operation."""
    run = source.resolve({})
    found, _ = estimate_run(run)
    count = n_operations(found)
    if count > MOST_OPERATIONS:
        raise DlcalcError(
            f"--trace: about {count:,} operations in one step are more than a viewer opens ({MOST_OPERATIONS:,}); "
            f"write a run file with a smaller global batch"
        )
    try:
        return run, found, pipeline_timeline(found, run.custom_split)
    except CannotRunError as error:
        why = "; ".join(refusals_of(found, memory=False)) or str(error)
        raise DlcalcError(f"--trace: this plan has no schedule to draw: {why}") from error


def drawable_timeline(source: RunSource) -> Timeline | None:
    """A run's pipeline where it can be replayed; None where its plan has no schedule or a step too many operations."""
    try:
        return timeline(source)[2]
    except DlcalcError:
        return None


def write_trace(source: RunSource, file: Path) -> None:
    """The step as a trace that Perfetto and chrome://tracing open."""
    run, found, steps = timeline(source)
    _write(file, to_json(chrome_trace(run.name, found, steps), indent=None))


def write_text(file: Path, text: str) -> None:
    """Write what a report made."""
    _write(file, text)


# ---- files --------------------------------------------------------------------------------------------------------


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def _near(path: Path) -> str:
    """Files beside ``path`` that may have been meant; what nearly all names end in does not count."""
    try:
        names = {entry.stem: entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix}
    except OSError:
        return ""
    near = nearest(path.stem, names)
    return f"; did you mean {' or '.join(str(path.with_name(names[stem])) for stem in near)}?" if near else ""
