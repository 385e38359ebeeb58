"""The use case behind ``dlcalc-search``: load a study, search it, write what is kept. Never click, never colours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcalc.costmodel.plans import NAMES
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.summary import DesignSummary, SampledSummary, SortName, Summary
from dlcalc.results.reader import Result
from dlcalc.results.shard import ShardHeader
from dlcalc.results.storage import Location, ObjectPath, location
from dlcalc.results.writer import StudyWriter, open_study
from dlcalc.search.executors import Executor, LocalExecutor, shards_of
from dlcalc.search.exhaustive import Keep
from dlcalc.search.found import Found, SortKey
from dlcalc.search.space import Scenario
from dlcalc.search.study import scenarios_of
from dlcalc.specs.load import load_spec, told_by_line
from dlcalc.specs.space import SpaceSpec, TopRows
from dlcalc.workflows.search_origin import origin_of
from dlcalc.workflows.search_summary import LEADERS, scenario_summaries, study_summary
from dlcalc.workflows.sweep import Progress, count_near, executor_of, sweep

if TYPE_CHECKING:
    from dlcalc.workflows.placed_mesh import Placing

MOST_ROWS = 20_000_000
"""Rows kept under ``keep: auto``; a study with more that fit keeps the best and the Pareto front."""


def run_search(
    space_file: Path,
    *,
    out: Location | str | None = None,
    keep: str | int | None = None,
    top: int = 10,
    sort: SortName = "mfu",
    resume: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    executor: str = "local",
    scheduler: str | None = None,
    hardware_dirs: Sequence[Path] = (),
    topology: str | None = None,
    place: bool | None = None,
    place_meshes: int | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Summary:
    """Search the study described by ``space_file``, write every kept plan, and say what was found.

    With a fabric, from ``topology`` or the space file, the best meshes are placed and their plans ranked again.
    """
    began = time.perf_counter()
    space = load_spec(space_file, SpaceSpec)
    placing = _placing_of(space, space_file, topology=topology, place=place, meshes=place_meshes, sort=sort)
    with told_by_line(space_file):
        scenarios = scenarios_of(
            space, space_file.parent, HardwareRegistry(folders=hardware_search_path(hardware_dirs))
        )
    key: SortKey = "memory" if sort == "memory" else "step_time"
    n_kept, what = _keep_of(space, keep)
    directory = location(out or Path("results") / space.study)
    if space.search is not None:
        _refuse_elsewhere(space, directory, executor)
    designs: list[DesignSummary] = []
    if space.search is not None and space.search.varies_scenario:
        scenarios, designs = _designed(space, scenarios, directory, progress)
    n_plans = sum(scenario.n_plans for scenario in scenarios)
    origin = origin_of(space, space_file, scenarios, what=what, n_kept=n_kept, sort=key)
    found = {position: Found() for position in range(len(scenarios))}
    with (
        executor_of(executor, scheduler, jobs, directory) as where,
        open_study(directory, origin, resume=resume, overwrite=overwrite) as study,
    ):
        if notify and study.n_kept and not resume:
            notify(_half_finished(directory, study.n_kept, len(shards_of(scenarios))))
        counts_first = what == "auto" and n_plans > MOST_ROWS
        mode: Keep = "feasible" if what == "auto" else what  # type: ignore[assignment]
        headers = {position: study.header(position, NAMES) for position in found}
        sampled: dict[int, SampledSummary] = {}
        if space.search is not None and space.search.samples_plans:
            mode = "feasible" if counts_first else mode
            sampled = _sample(space, scenarios, study, headers, found, mode, n_kept, key, progress)
        else:
            found = _swept(scenarios, study, headers, None if counts_first else mode, n_kept, key, where, progress)
        seconds = time.perf_counter() - began
        forks = isinstance(where, LocalExecutor) and where.forks
        said = scenario_summaries(scenarios, found, top, key, jobs, forks)
        summary = study_summary(space, sort, found, said, directory, seconds)
        for position, how in sampled.items():
            summary["scenarios"][position]["sampled"] = how
        if designs:
            summary["designs"] = designs
        if placing is not None:
            _place(placing, scenarios, found, study, summary, top, progress)
        if space.search is not None and space.search.measured:
            assert isinstance(directory, Path)
            _measure(space, space_file.parent, scenarios, found, directory, summary, progress)
        study.finish(summary)
    return summary


def _swept(
    scenarios: Sequence[Scenario],
    study: StudyWriter,
    headers: Mapping[int, ShardHeader],
    mode: Keep | None,
    n_kept: int,
    key: SortKey,
    where: Executor,
    progress: Progress | None,
) -> dict[int, Found]:
    """Every scenario searched and written; ``mode`` None: what is written depends on how many plans fit."""
    shards = shards_of(scenarios)

    def swept(what: Keep | None, progress: Progress | None) -> dict[int, Found]:
        found = {position: Found() for position in headers}
        sweep(scenarios, shards, study, headers, found, what, n_kept, key, where, progress)
        return found

    found = swept(mode, progress)
    if mode is None:
        if sum(f.n_fit for f in found.values()) <= MOST_ROWS:
            found = swept("feasible", progress)
        else:
            swept("pareto", None)
    count_near(scenarios, shards, found, where, progress)
    return found


def _sample(
    space: SpaceSpec,
    scenarios: Sequence[Scenario],
    study: StudyWriter,
    headers: Mapping[int, ShardHeader],
    found: dict[int, Found],
    what: Keep,
    n_kept: int,
    key: SortKey,
    progress: Progress | None,
) -> dict[int, SampledSummary]:
    """Every scenario's plans, sampled and written; how, by position."""
    from dlcalc.workflows.sampled import sample_scenario, sampled_summary, study_name, write_sampled

    assert space.search is not None
    said = {}
    for position, scenario in enumerate(scenarios):
        name = study_name(space.search, space.study, scenario, len(scenarios))
        journal = _journal_beside(study.directory)
        sampled = sample_scenario(scenario, space.search, name, journal=journal, progress=progress)
        found[position] = write_sampled(scenario, sampled, study, headers[position], what, n_kept, key)
        said[position] = sampled_summary(scenario, space.search, sampled)
    return said


def _designed(
    space: SpaceSpec, scenarios: Sequence[Scenario], directory: Location, progress: Progress | None
) -> tuple[tuple[Scenario, ...], list[DesignSummary]]:
    """The scenarios as they are, each followed by the best of its designs."""
    from dlcalc.workflows.designs import design_scenarios

    return design_scenarios(space, scenarios, journal=_journal_beside(directory), progress=progress)


def _journal_beside(directory: Location) -> Path:
    """The file of ``storage: journal``; of a result in an object store nothing reads it."""
    return directory.with_name(f"{directory.name}.journal") if isinstance(directory, Path) else Path()


def _measure(
    space: SpaceSpec,
    folder: Path,
    scenarios: Sequence[Scenario],
    found: Mapping[int, Found],
    directory: Path,
    summary: Summary,
    progress: Progress | None,
) -> None:
    """Run the plans that may be the fastest, and say so in ``summary``."""
    from dlcalc.workflows.measured import measure_scenarios

    measured = measure_scenarios(space, scenarios, [found[p].leaders for p in found], directory, folder, progress)
    for said, one in zip(summary["scenarios"], measured, strict=True):
        said["measured"] = one


def _refuse_elsewhere(space: SpaceSpec, directory: Location, executor: str) -> None:
    """Trials follow one another in this process, and no journal is kept in an object store."""
    assert space.search is not None
    if space.search.storage == "journal" and isinstance(directory, ObjectPath):
        raise DlcalcError(
            "search: storage: journal keeps trials beside the result, and no file grows in an object store; "
            "name one here, such as journal:///trials.log, or a database"
        )
    if space.search.measured and isinstance(directory, ObjectPath):
        raise DlcalcError("search: measured: runs plans beside the result; give -o a directory, not an object store")
    if space.search.samples_plans and executor != "local":
        raise DlcalcError(f"search: samples plans in this process; leave out --executor {executor}")


def _half_finished(directory: Location, n_kept: int, n_shards: int) -> str:
    """What is said where an earlier run of the same study was interrupted."""
    return (
        f"{directory}: an earlier run was interrupted; going on as with --resume: {n_kept} of {n_shards} shards are "
        "there, the others are searched (--overwrite begins anew)"
    )


def _placing_of(space: SpaceSpec, space_file: Path, *, sort: str, **asked: Any) -> Placing | None:  # noqa: ANN401
    """What is to be placed; the topology is loaded only for those who place."""
    if space.topology is None and not any(asked.values()):
        return None
    from dlcalc.workflows.placing import placing_of

    placing = placing_of(space.topology, space_file, **asked)
    if placing is not None and sort == "memory":
        raise DlcalcError("--sort memory: placed plans are ranked by step time; leave it out, or give --no-place")
    return placing


def _place(
    placing: Placing,
    scenarios: Sequence[Scenario],
    found: Mapping[int, Found],
    study: StudyWriter,
    summary: Summary,
    top: int,
    progress: Progress | None,
) -> None:
    """The second stage: place what was found, write it, and say so in ``summary``."""
    from dlcalc.workflows.placed_summary import placed_summary
    from dlcalc.workflows.placing import place_scenario, tables_of

    began = time.perf_counter()
    result = Result(study.directory, study.manifest)
    placed = [
        place_scenario(scenario, result, found[position], placing, progress)
        for position, scenario in enumerate(scenarios)
    ]
    study.place(tables_of(placing, scenarios, placed))
    for scenario, one, said in zip(scenarios, placed, summary["scenarios"], strict=True):
        said["placed"] = placed_summary(scenario, placing, one, top)
    summary["placing_s"] = time.perf_counter() - began


# ---- what is asked ------------------------------------------------------------------------------------------------


def _keep_of(space: SpaceSpec, keep: str | int | None) -> tuple[int, str]:
    """How many leaders are followed, and what is written."""
    wanted: Any = keep if keep is not None else space.keep
    if isinstance(wanted, TopRows):
        wanted = wanted.top
    if isinstance(wanted, int):
        if wanted < 1:
            raise DlcalcError(f"keep: {wanted} plans cannot be kept; give at least 1")
        return wanted, "top"
    if wanted not in ("auto", "all", "feasible", "pareto"):
        raise DlcalcError(f"keep: {wanted!r} is not one of auto, all, feasible, pareto or a number")
    return LEADERS, wanted
