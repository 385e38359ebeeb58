"""The shards of a study: evaluated, written, and taken as they are where they were finished before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.placement import PlacedRates
from dlcalc.errors import DlcalcError, ResultError
from dlcalc.results.files import MANIFEST_NAME
from dlcalc.results.manifest import ShardRecord
from dlcalc.results.reader import Result
from dlcalc.results.shard import ShardHeader, ShardWriter
from dlcalc.results.storage import Location, ObjectPath, file_sha256, missing_from
from dlcalc.results.writer import StudyWriter
from dlcalc.search.executors import Executor, LocalExecutor, Shard
from dlcalc.search.exhaustive import BLOCK_PLANS, Keep, count_within, interval_of, outputs_of, search_block
from dlcalc.search.found import NEAR_BEST, Found, Leaders, SortKey
from dlcalc.search.pareto import ParetoFilter, front
from dlcalc.search.space import Scenario

Index = NDArray[np.int64]


class Progress(Protocol):
    """Told how far a search is."""

    def __call__(self, done: int, total: int, what: str = ...) -> None:
        """``done`` of ``total`` plans are behind us, or meshes while they are placed."""


def sweep(
    scenarios: Sequence[Scenario],
    shards: Sequence[Shard],
    study: StudyWriter,
    headers: Mapping[int, ShardHeader],
    found: dict[int, Found],
    what: Keep | None,
    n_kept: int,
    key: SortKey,
    executor: Executor,
    progress: Progress | None,
) -> None:
    """Evaluate every shard that is not finished yet; ``what`` None only counts and writes nothing."""
    total = sum(shard.n_plans for shard in shards)
    done = 0
    todo: list[_Task] = []
    for shard in shards:
        scenario = scenarios[shard.scenario]
        earlier = _found_earlier(study, scenario, shard, n_kept, key) if what else None
        if earlier is None:
            todo.append(_Task(shard, scenario, headers[shard.scenario]))
            continue
        found[shard.scenario].add(earlier, keep=n_kept, key=key)
        done += shard.n_plans
    if progress:
        progress(done, total)
    work = partial(_shard, study.directory, what, n_kept, key)
    for task, (part, record) in executor.run(work, todo, ready=_sees(study) if what else None):
        shard = task.shard
        found[shard.scenario].add(part, keep=n_kept, key=key)
        if record is not None:
            _arrived(study.directory, record)
            study.add(_with_state(record, part, found[shard.scenario]))
        done += shard.n_plans
        if progress:
            progress(done, total)
    if what:  # now that all is known, the manifest is the same in whatever order shards ended
        for shard in shards:
            if earlier := _found_earlier(study, scenarios[shard.scenario], shard, n_kept, key):
                record = study.finished[shard.scenario, shard.number]
                study.amend(_with_state(record, earlier, found[shard.scenario]))


@dataclass(frozen=True)
class _NearTask:
    """Plans of a shard that are near the best, to be counted."""

    shard: Shard
    scenario: Scenario
    limit_s: float

    @property
    def n_plans(self) -> int:
        return self.shard.n_plans


def count_near(
    scenarios: Sequence[Scenario],
    shards: Sequence[Shard],
    found: Mapping[int, Found],
    executor: Executor,
    progress: Progress | None,
) -> None:
    """Count the plans within 2 % of the best where more are than are kept by name: now it is known what the best is."""
    todo = [
        _NearTask(shard, scenarios[shard.scenario], NEAR_BEST * found[shard.scenario].fastest)
        for shard in shards
        if found[shard.scenario].lacks_near
    ]
    counts: Counter[int] = Counter()
    done, total = 0, sum(task.n_plans for task in todo)
    for task, count in executor.run(_count_near, todo):
        counts[task.shard.scenario] += count
        done += task.n_plans
        if progress:
            progress(done, total, "plans compared with the best")
    for position, count in counts.items():
        found[position].n_near_counted = count


def _count_near(task: _NearTask) -> int:
    scenario, shard = task.scenario, task.shard
    return sum(count_within(scenario, start, stop, task.limit_s) for start, stop in _blocks_of(scenario, shard))


def executor_of(executor: str, scheduler: str | None, jobs: int | None, directory: Location) -> Executor:
    """Where shards run, as the command was told."""
    if executor == "local":
        if scheduler is not None:
            raise DlcalcError("--scheduler goes with --executor dask")
        return LocalExecutor(jobs, forks=not isinstance(directory, ObjectPath))
    if executor != "dask":
        raise DlcalcError(f"--executor {executor}: not one of local, dask")
    if scheduler is None:
        raise DlcalcError("--executor dask needs --scheduler, the address of a Dask scheduler such as tcp://host:8786")
    if jobs is not None:
        raise DlcalcError("--jobs goes with --executor local; a Dask cluster has as many workers as were started")
    from dlcalc.search.dask_executor import DaskExecutor

    return DaskExecutor(scheduler)


def _sees(study: StudyWriter) -> Callable[[], str | None]:
    """Whether another machine sees the study that is written here."""
    directory = study.directory if isinstance(study.directory, ObjectPath) else study.directory.resolve()
    return partial(missing_from, directory, MANIFEST_NAME, file_sha256(directory / MANIFEST_NAME))


ARRIVAL_S = 30.0
"""For a file that another machine wrote to be seen here: shared file systems take their time."""


def _arrived(directory: Location, record: ShardRecord) -> None:
    """Make sure that a shard is where this process looks for it, wherever it was written."""
    if isinstance(directory, ObjectPath):
        return  # the store has confirmed it to whoever wrote it
    until_s = time.monotonic() + ARRIVAL_S
    while True:
        with suppress(FileNotFoundError):
            if (directory / record.file).stat().st_size == record.n_bytes:
                return
        if time.monotonic() > until_s:
            raise ResultError(
                f"{directory / record.file}: a worker says that it wrote this file, but it is not seen here; write to "
                f"a file system that every worker shares, under the same path, or to an object store"
            )
        time.sleep(0.1)


def _with_state(record: ShardRecord, part: Found, found: Found) -> ShardRecord:
    """The record of a shard with what a resumed search could need of it: the rest is beaten by shards that are done."""
    leading = replace(
        part,
        leaders=part.leaders.take(np.isin(part.leaders.index, found.leaders.index)),
        near=part.near.take(np.isin(part.near.index, found.near.index)),
        near_beyond_s=found.near_beyond_s,
        misses=part.misses.take(np.isin(part.misses.index, found.misses.index)),
    )
    return record.model_copy(update={"state": _state_of(leading)})


@dataclass(frozen=True)
class _Task:
    """A shard with what its process needs of the study, and no more."""

    shard: Shard
    scenario: Scenario
    header: ShardHeader

    @property
    def n_plans(self) -> int:
        return self.shard.n_plans


def _shard(
    directory: Location, what: Keep | None, n_kept: int, key: SortKey, task: _Task
) -> tuple[Found, ShardRecord | None]:
    """One shard: evaluate its blocks, write its file."""
    shard, scenario = task.shard, task.scenario
    found = Found()
    if what is None:
        _blocks(scenario, shard, found, n_kept, key, None, "top")
        return found, None
    with ShardWriter(directory, task.header, shard.number) as rows:
        if what in ("all", "feasible"):
            _blocks(scenario, shard, found, n_kept, key, rows.write, what)
        else:
            chosen: list[Mapping[str, Any]] = []
            _blocks(scenario, shard, found, n_kept, key, chosen.append, what)
            index = _chosen_plans(found, chosen, what)
            if len(index):  # in a shard of which nothing fits there is nothing to estimate
                rows.write(rows_of(scenario, index))
        start, stop = _plans_of(scenario, shard)
        rows.describe(
            start=start,
            stop=stop,
            n_plans=found.n_plans,
            n_fit=found.n_fit,
            refused=found.refused,
            state=_state_of(found),
        )
    return found, rows.record


def _plans_of(scenario: Scenario, shard: Shard) -> tuple[int, int]:
    """Plan indices [start, stop) of a shard."""
    per_row = scenario.n_plans // scenario.shape[0]
    return shard.start * per_row, shard.stop * per_row


def _blocks(
    scenario: Scenario,
    shard: Shard,
    found: Found,
    n_kept: int,
    key: SortKey,
    rows: Callable[[Mapping[str, Any]], None] | None,
    what: Keep,
) -> None:
    pareto = ParetoFilter() if what == "pareto" else None
    for start, stop in _blocks_of(scenario, shard):
        part = search_block(
            scenario,
            start,
            stop,
            keep=n_kept,
            key=key,
            bound=found.bound(n_kept, key),
            fastest=found.fastest,
            rows=rows,
            what=what,
            pareto=pareto,
        )
        found.add(part, keep=n_kept, key=key)


def _blocks_of(scenario: Scenario, shard: Shard) -> Iterator[tuple[int, int]]:
    """Mesh rows of a shard that are evaluated at once."""
    step = max(1, BLOCK_PLANS // (scenario.n_plans // scenario.shape[0]))
    for start in range(shard.start, shard.stop, step):
        yield start, min(start + step, shard.stop)


def _chosen_plans(found: Found, blocks: list[Mapping[str, Any]], what: Keep) -> Index:
    """Plans of a shard that keeps only its best, or its best and its front: each plan once, in the space's order."""
    index = found.leaders.index
    if what == "pareto" and blocks:
        columns = ("plan_index", "step_time_s", "memory_bytes")
        candidates, steps, memory = (np.concatenate([np.asarray(block[name]) for block in blocks]) for name in columns)
        order = np.argsort(candidates)  # of equal plans the first of the space is kept
        index = np.concatenate([index, candidates[order][front(steps[order], memory[order])]])
    return np.unique(index)


def rows_of(scenario: Scenario, index: Index, placed: PlacedRates | None = None) -> dict[str, Any]:
    """Columns of a result for the plans at ``index``: estimated as rows, which gives what the grid gave."""
    return columns_of_rows(scenario, index, estimate_rows(scenario, index, placed))


def columns_of_rows(scenario: Scenario, index: Index, found: Estimate) -> dict[str, Any]:
    """Columns of a result for plans whose estimate ``found`` is."""
    where = (np.arange(len(index)),)
    columns: dict[str, Any] = {"plan_index": np.asarray(index, dtype=np.int64), **found.plans.columns()}
    step, memory = np.broadcast_to(found.step_time_s, len(index)), np.broadcast_to(found.memory_bytes, len(index))
    return columns | outputs_of(scenario, found, interval_of(scenario, found.plans), where, step, memory)


def estimate_rows(scenario: Scenario, index: Index, placed: PlacedRates | None = None) -> Estimate:
    """The estimate of single plans of a scenario; ``placed`` where their nodes are known."""
    return estimate(
        scenario.model,
        scenario.hardware,
        scenario.recipe,
        scenario.rows(np.asarray(index)),
        custom_split=scenario.custom_split,
        memory_headroom=scenario.memory_headroom,
        placed=placed,
    )


def _state_of(found: Found) -> dict[str, Any]:
    """What a resumed search needs of a finished shard."""
    state: dict[str, Any] = {
        name: [part.index.tolist(), part.step_time_s.tolist(), part.memory_bytes.tolist()]
        for name, part in (("leaders", found.leaders), ("near", found.near), ("misses", found.misses))
    }
    return state | ({"near_beyond_s": found.near_beyond_s} if found.near_beyond_s < np.inf else {})


def _found_earlier(study: StudyWriter, scenario: Scenario, shard: Shard, n_kept: int, key: SortKey) -> Found | None:
    """What an earlier run found in a shard; None where it must be evaluated."""
    record = study.finished.get((shard.scenario, shard.number))
    if record is None or (record.start, record.stop) != _plans_of(scenario, shard):
        return None
    try:
        parts = {
            name: Leaders(np.array(index, np.int64), np.array(step, np.float64), np.array(memory, np.float64))
            for name, (index, step, memory) in record.state.items()
            if name in ("leaders", "near", "misses")
        }
        if "leaders" not in parts and record.holds_all_that_fit:  # those of that run were sorted otherwise
            parts["leaders"] = _leaders_of_rows(study, scenario, record).best(n_kept, key)
        leaders, near, misses = parts["leaders"], parts["near"], parts["misses"]
        near_beyond_s = float(record.state.get("near_beyond_s", np.inf))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # the file is whole, the manifest was written by hand
    for part in (leaders, near, misses):
        if {values.shape for values in (part.index, part.step_time_s, part.memory_bytes)} != {(len(part.index),)}:
            return None
        if np.any((part.index < record.start) | (part.index >= record.stop)):
            return None
    return Found(
        n_plans=record.n_plans,
        n_fit=record.n_fit,
        n_refused=record.n_plans - record.n_fit,
        refused=Counter(record.refused),
        leaders=leaders,
        near=near,
        near_beyond_s=near_beyond_s,
        misses=misses,
    )


def _leaders_of_rows(study: StudyWriter, scenario: Scenario, record: ShardRecord) -> Leaders:
    """Every plan that fits, as the file of a shard has it."""
    alone = Result(study.directory, study.manifest.model_copy(update={"shards": (record,)}))
    columns = ["plan_index", "step_time_s", "memory_bytes"]
    found = Leaders.none()
    limit_bytes = scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom)
    for batch in alone.batches(scenario.name, columns=columns):
        index, step_s, memory_bytes = (batch.column(name).to_numpy(zero_copy_only=False) for name in columns)
        rows = Leaders(index.astype(np.int64), step_s.astype(np.float64), memory_bytes.astype(np.float64))
        found = found.join(rows.take(rows.memory_bytes <= limit_bytes))
    return found
