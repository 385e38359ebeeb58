"""Use cases that doors call: load, estimate, search, write. Never click, never colours."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcalc.calculators import params
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.plans import KNOBS, NAMES, Index, value_of
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.summary import (
    Breakdown,
    DesignSummary,
    DryRun,
    HardwareRow,
    Miss,
    ModelRow,
    PlanRow,
    SampledSummary,
    ScenarioSummary,
    SortName,
    Summary,
)
from dlcalc.results.manifest import ScenarioOrigin, StudyOrigin
from dlcalc.results.reader import Result
from dlcalc.results.schema import COLUMNS
from dlcalc.results.shard import ShardHeader
from dlcalc.results.storage import Location, ObjectPath, location
from dlcalc.results.writer import StudyWriter, open_study
from dlcalc.search.executors import Executor, LocalExecutor, shards_of, shared_out
from dlcalc.search.exhaustive import BLOCK_PLANS, Keep, search_block
from dlcalc.search.found import Found, Leaders, SortKey
from dlcalc.search.space import DEGREES, Scenario
from dlcalc.search.study import scenarios_of
from dlcalc.specs.load import load_spec, told_by_line
from dlcalc.specs.model_registry import load_model, model_names
from dlcalc.specs.space import SpaceSpec, TopRows
from dlcalc.workflows.sweep import Progress, columns_of_rows, count_near, estimate_rows, executor_of, sweep

if TYPE_CHECKING:
    from dlcalc.workflows.placing import Placing

MOST_ROWS = 20_000_000
"""Rows kept under ``keep: auto``; a study with more that fit keeps the best and the Pareto front."""
LEADERS = 1000
NEAR_ROWS = 20


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
    origin = _origin_of(space, space_file, scenarios, what=what, n_kept=n_kept, sort=key)
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
        said = _scenario_summaries(scenarios, found, top, key, jobs, forks)
        summary = _summary(space, sort, found, said, directory, seconds)
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
        said[position] = sampled_summary(scenario, space.search, sampled, _rows_of_plans)
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
    from dlcalc.workflows.placing import place_scenario, placed_summary, tables_of

    began = time.perf_counter()
    result = Result(study.directory, study.manifest)
    placed = [
        place_scenario(scenario, result, found[position], placing, progress)
        for position, scenario in enumerate(scenarios)
    ]
    study.place(tables_of(placing, scenarios, placed))
    for scenario, one, said in zip(scenarios, placed, summary["scenarios"], strict=True):
        said["placed"] = placed_summary(scenario, placing, one, breakdown, top)
    summary["placing_s"] = time.perf_counter() - began


def dry_run(space_file: Path, *, out: Path | str | None = None, hardware_dirs: Sequence[Path] = ()) -> DryRun:
    """Count the space and estimate time and size of the result, from one block actually evaluated."""
    space = load_spec(space_file, SpaceSpec)
    with told_by_line(space_file):
        scenarios = scenarios_of(
            space, space_file.parent, HardwareRegistry(folders=hardware_search_path(hardware_dirs))
        )
    n_plans = sum(scenario.n_plans for scenario in scenarios)
    largest = max(scenarios, key=lambda scenario: scenario.n_plans)
    start, stop = next(largest.blocks(BLOCK_PLANS))
    began = time.perf_counter()
    search_block(largest, start, stop, keep=LEADERS)
    per_plan = (time.perf_counter() - began) / (largest.n_plans / largest.shape[0] * (stop - start))
    axes = ("mesh", "data", "pipeline", "micro_batch", "recompute", "tensor")
    counts: DryRun = {
        "study": space.study,
        "n_plans": n_plans,
        "seconds": per_plan * n_plans,
        "result_bytes": float(min(n_plans, MOST_ROWS) * BYTES_PER_ROW),
        "result": str(out or Path("results") / space.study),
        "scenarios": [
            {
                "name": scenario.name,
                "model": scenario.model.name,
                "hardware": scenario.hardware.name,
                "devices": scenario.devices,
                "precision": scenario.recipe.precision,
                "n_plans": scenario.n_plans,
                "axes": dict(zip(axes, scenario.shape, strict=True)),
            }
            for scenario in scenarios
        ],
    }
    if space.search is None:
        return counts
    from dlcalc.workflows.sampled_dry_run import with_sampling

    return with_sampling(counts, space, scenarios, bytes_per_row=BYTES_PER_ROW)


BYTES_PER_ROW = 48
"""Of a compressed row, as measured by benchmarks/write_speed.py."""


def list_hardware(hardware_dirs: Sequence[Path] = ()) -> list[HardwareRow]:
    """Every machine that can be named."""
    registry = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    rows: list[HardwareRow] = []
    for name in registry.names():
        spec = registry.load(name)
        peaks = spec.device.peak_tflops
        rows.append(
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "description": spec.description,
                "devices_per_node": spec.node.n_devices,
                "hbm_gib": spec.device.hbm_gib.value,
                "hbm_tb_per_s": spec.device.hbm_tb_per_s.value,
                "bf16_tflops": peaks["bf16"].value if "bf16" in peaks else None,
                "fp8_tflops": peaks["fp8"].value if "fp8" in peaks else None,
                "link_gb_per_s": spec.node.link_gb_per_s.value,
                "nic_gbit_per_s": spec.fabric.nic_gbit_per_s_per_device.value,
                "usd_per_device_hour": spec.price.usd_per_device_hour if spec.price else None,
                "measured": spec.calibration.measured,
            }
        )
    return rows


def list_models() -> list[ModelRow]:
    """Every built-in model."""
    return [
        {
            "name": name,
            "parameters_total": float(params.total_params(model)),
            "parameters_active": float(params.active_params(model)),
            "n_layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "n_heads": model.n_heads,
            "n_experts": model.n_experts,
            "vocab_size": model.vocab_size,
        }
        for name, model in ((name, load_model(name)) for name in model_names())
    ]


# ---- the summary --------------------------------------------------------------------------------------------------


def _summary(
    space: SpaceSpec,
    sort: SortName,
    found: Mapping[int, Found],
    said: list[ScenarioSummary],
    directory: Location,
    seconds: float,
) -> Summary:
    n_plans = sum(f.n_plans for f in found.values())
    return {
        "study": space.study,
        "sort": sort,
        "n_plans": n_plans,
        "n_refused": sum(f.n_refused for f in found.values()),
        "n_fit": sum(f.n_fit for f in found.values()),
        "seconds": seconds,
        "plans_per_s": n_plans / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "result": str(directory),
        "scenarios": said,
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process and its workers so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * unit


WORTH_SHARING = 64
"""Fewer scenarios are summed up sooner than another pool has started."""


def _scenario_summaries(
    scenarios: Sequence[Scenario], found: Mapping[int, Found], top: int, key: SortKey, jobs: int | None, forks: bool
) -> list[ScenarioSummary]:
    """One per scenario, in order; many are shared out like the shards were."""
    tasks = [(scenario, found[position], top, key) for position, scenario in enumerate(scenarios)]
    if len(tasks) < WORTH_SHARING:
        return [_scenario_summary(*task) for task in tasks]
    return shared_out(_scenario_summary, tasks, jobs=jobs, forks=forks)


def _scenario_summary(scenario: Scenario, found: Found, top: int, key: SortKey) -> ScenarioSummary:
    best = found.leaders.best(top, key).index
    followed = found.leaders.best(LEADERS, "step_time") if key == "step_time" else Leaders.none()
    rivals = _rivals(scenario, followed)
    worth, near, missed = _worth_measuring(scenario, rivals), found.near.index[:NEAR_ROWS], _missed(found)
    estimated, (best_rows, worth_rows, near_rows, missed_rows) = _plan_rows(scenario, [best, worth, near, missed])
    recipe = scenario.recipe
    said: ScenarioSummary = {
        "name": scenario.name,
        "model": scenario.model.name,
        "hardware": scenario.hardware.name,
        "devices": scenario.devices,
        "precision": recipe.precision,
        "framework": recipe.framework.name,
        "seq_len": recipe.seq_len,
        "global_batch": recipe.global_batch,
        "mfu_convention": recipe.mfu_convention,
        "n_plans": found.n_plans,
        "n_fit": found.n_fit,
        "refused": dict(found.refused.most_common()),
        "best": best_rows,
        "breakdown": breakdown(estimated) if estimated and len(best) else None,
        "memory_usable_bytes": scenario.hardware.device.hbm_bytes,
        "memory_limit_bytes": scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom),
        "n_not_told_apart": len(rivals.index),
        "worth_measuring": worth_rows,
        "n_within_2_percent": found.n_near,
        "within_2_percent": near_rows,
        "nearest_misses": _misses(scenario, missed_rows),
    }
    if len(rivals.index) == len(followed.index) < found.n_fit:
        said["more_not_told_apart"] = True
    return said


RELATIVE_SPREAD = 0.5
"""Share of an estimate's error that two plans of one scenario do not share; device, model and trainer are the same."""


def _rivals(scenario: Scenario, leaders: Leaders) -> Leaders:
    """The plans that cannot be told apart from the fastest: within what differs between plans of one scenario."""
    if not len(leaders.index):
        return leaders
    fastest = scenario.rows(leaders.index[:1])
    _, high = step_time_interval_factors(
        scenario.model, scenario.hardware, scenario.recipe, fastest, scenario.uncertainty
    )
    wide = float(np.broadcast_to(high, 1)[0]) - 1.0
    return leaders.take(leaders.step_time_s <= leaders.step_time_s[0] * (1.0 + RELATIVE_SPREAD * wide))


def _worth_measuring(scenario: Scenario, rivals: Leaders, most: int = 3) -> Index:
    """The fastest rival of each choice of degrees, the best first: what differs most is what a run decides."""
    row = rivals.index // (scenario.n_plans // scenario.shape[0])
    degrees = np.column_stack([scenario.axes[0][knob][row] for knob in DEGREES])
    _, first = np.unique(degrees, axis=0, return_index=True)
    return rivals.index[np.sort(first)[:most]]


def _plan_rows(scenario: Scenario, parts: Sequence[Index]) -> tuple[Estimate | None, list[list[PlanRow]]]:
    """The rows of each part, and the estimate of all of them in order: one call costs more than its rows."""
    index = np.concatenate(parts)
    if not len(index):
        return None, [[] for _ in parts]
    estimated = estimate_rows(scenario, index)
    columns = columns_of_rows(scenario, index, estimated)
    rows, start = [], 0
    for part in parts:
        rows.append(_ranked(scenario, columns, range(start, start + len(part))))
        start += len(part)
    return estimated, rows


def _rows_of_plans(scenario: Scenario, index: Index) -> list[PlanRow]:
    return _plan_rows(scenario, [index])[1][0]


def _ranked(scenario: Scenario, columns: Mapping[str, Any], positions: range) -> list[PlanRow]:
    recipe, hardware = scenario.recipe, scenario.hardware
    rows: list[PlanRow] = []
    for position in positions:
        row: dict[str, Any] = {"rank": position - positions.start + 1, **knobs_at(columns, position)}
        for column in COLUMNS:
            if column.kind == "quantity":
                row[column.name] = float(columns[column.name][position])
        row["plan_index"] = int(columns["plan_index"][position])
        row["days"] = row["cost_usd"] = None
        if recipe.token_budget:
            seconds = recipe.token_budget / recipe.tokens_per_step * row["step_time_s"]
            row["days"] = seconds / 86400.0
            if hardware.price:
                row["cost_usd"] = seconds / 3600.0 * scenario.devices * hardware.price.usd_per_device_hour
        rows.append(row)  # type: ignore[arg-type]
    return rows


def knobs_at(columns: Mapping[str, Any], position: int) -> dict[str, Any]:
    """The knobs of one row as people write them."""
    return {knob: value_of(knob, float(columns[knob][position])) for knob in KNOBS}


def breakdown(found: Estimate, position: int = 0) -> Breakdown:
    """Named terms of one plan: seconds of a step, bytes on its fullest stage."""
    shape = np.shape(found.step_time_s)

    def at(value: Any) -> float:  # noqa: ANN401 an array
        return float(np.broadcast_to(value, shape).reshape(-1)[position])

    time_s = {name.removesuffix("_s"): at(value) for name, value in found.step.terms().items()}
    memory = {name.removesuffix("_bytes"): at(value) for name, value in found.footprint.terms_of_peak().items()}
    return {
        "time_s": {name: value for name, value in time_s.items() if value > 0},
        "memory_bytes": {name: value for name, value in memory.items() if value > 0},
    }


def _missed(found: Found) -> Index:
    """Of a scenario in which nothing fits, what comes closest."""
    return found.misses.index[:0] if found.n_fit else found.misses.index


def _misses(scenario: Scenario, rows: Sequence[PlanRow]) -> list[Miss]:
    capacity = scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom)
    misses: list[Any] = []
    for row in rows:
        knobs: dict[str, Any] = {knob: row[knob] for knob in KNOBS}  # type: ignore[literal-required]
        memory = row["memory_bytes"]
        over = {"memory_bytes": memory, "over_bytes": memory - capacity, "reasons": [OUT_OF_MEMORY]}
        misses.append(knobs | over)
    return misses


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


def _origin_of(
    space: SpaceSpec, space_file: Path, scenarios: Sequence[Scenario], *, what: str, n_kept: int, sort: str
) -> StudyOrigin:
    ranges = space.ranges.model_dump(mode="json")
    return StudyOrigin(
        study=space.study,
        space_text=space_file.read_text(encoding="utf-8"),
        settings={"keep": what, "leaders": n_kept, "sort": sort, **_search_settings(space)},
        scenarios=tuple(
            ScenarioOrigin(
                name=scenario.name,
                devices=scenario.devices,
                model=scenario.model,
                hardware=scenario.hardware,
                recipe=scenario.recipe,
                space={
                    "ranges": ranges,
                    "constraints": list(scenario.constraints),
                    "memory_headroom": scenario.memory_headroom,
                    "custom_split": list(scenario.custom_split or ()),
                },
            )
            for scenario in scenarios
        ),
    )


def _search_settings(space: SpaceSpec) -> dict[str, str]:
    """What of the search decides which plans are written; more trials of the same study are the same study."""
    if space.search is None or not space.search.samples_plans:
        return {}
    said = space.search.model_dump(mode="json", exclude={"n_trials", "storage", "batch"}, exclude_defaults=True)
    return {"search": json.dumps({"sampler": space.search.sampler_name, **said}, sort_keys=True)}
