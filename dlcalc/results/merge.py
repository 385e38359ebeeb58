"""Several results as one, which every reader of results reads.

A scenario that two studies hold alike is taken once; of two that only share a name, the later one gets its study's name
as well. Shards are copied byte by byte, unless their scenario was renamed: every row names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlcalc.errors import ResultError
from dlcalc.results.files import disk_errors, shard_name, text_sha256
from dlcalc.results.manifest import PlacedRecord, ScenarioOrigin, ShardRecord, StudyOrigin
from dlcalc.results.placed import PlacedTables, Rows
from dlcalc.results.reader import Result, damage
from dlcalc.results.schema import METADATA_PREFIX
from dlcalc.results.shard import parquet_writer, record_of
from dlcalc.results.storage import Location, fetch, partial_path, publish, readable
from dlcalc.results.writer import StudyWriter, open_study
from dlcalc.utils.jsontext import plain

Finished = Callable[[int, int], None]
"""Told of shards done, of how many."""


@dataclass(frozen=True)
class Taken:
    """A scenario of the merged result: where it is from, and how it is called now."""

    result: Result
    name: str
    renamed: str


def merge_results(
    results: Sequence[Result], out: Location, *, overwrite: bool, finished: Finished | None = None
) -> None:
    """Write everything that ``results`` hold into ``out``."""
    for result in results:
        if not result.is_complete:
            raise ResultError(f"{result.directory}: not finished; finish it with dlcalc-search --resume, then merge")
        if out.resolve() == result.directory.resolve():
            raise ResultError(f"{out}: cannot be merged into itself; choose another place with -o")
    taken = take_scenarios(results)
    tasks = [(number, one, shard) for number, one in enumerate(taken) for shard in one.result.shards(one.name)]
    with open_study(out, _origin(results, taken, out.name), resume=True, overwrite=overwrite) as study:
        for done, (number, one, shard) in enumerate(tasks):
            if (number, shard.shard) not in study.finished:
                study.add(_copy(one, shard, number, study))
            if finished:
                finished(done + 1, len(tasks))
        if any(result.placed for result in results):
            study.place(_placed(taken))
        study.finish(_summary(results, taken, out))


def take_scenarios(results: Sequence[Result]) -> list[Taken]:
    """Scenarios in the order given; alike ones once, others that share a name told apart."""
    taken: list[Taken] = []
    known: dict[str, Any] = {}
    for result in results:
        for digest in result.manifest.scenarios:
            if known.get(digest.name) == (made_of := (digest.devices, digest.parts)):
                continue
            name, number = digest.name, 1
            while name in known:
                name = f"{digest.name} [{result.manifest.study}{'' if number == 1 else f' {number}'}]"
                number += 1
            known[name] = made_of
            taken.append(Taken(result, digest.name, name))
    return taken


def _origin(results: Sequence[Result], taken: Sequence[Taken], study: str) -> StudyOrigin:
    texts = [f"# merged: {result.manifest.study}\n{result.manifest.space_text}" for result in results]
    settings: dict[str, str | int | float | bool | None] = {}
    for key in sorted({key for result in results for key in result.settings()}):
        values = {result.settings().get(key) for result in results}
        settings[key] = values.pop() if len(values) == 1 else "step_time" if key == "sort" else "mixed"
    settings["merged"] = ", ".join(result.manifest.study for result in results)
    return StudyOrigin(
        study=study,
        space_text="\n".join(texts),
        settings=settings,
        scenarios=tuple(_renamed(one.result.origin(one.name), one.renamed) for one in taken),
    )


def _renamed(origin: ScenarioOrigin, name: str) -> ScenarioOrigin:
    return origin.model_copy(update={"name": name})


def _copy(one: Taken, shard: ShardRecord, number: int, study: StudyWriter) -> ShardRecord:
    """One shard under its new name."""
    source, target = one.result.directory / shard.file, study.directory / shard_name(number, shard.shard)
    partial = partial_path(target)
    try:
        with disk_errors(target):
            if one.name == one.renamed:
                fetch(source, partial)
            else:
                _rewrite(source, partial, _renamed(one.result.origin(one.name), one.renamed))
            said = shard.model_dump(include={"start", "stop", "n_rows", "n_plans", "n_fit", "refused", "state"})
            record = record_of(partial, target.name, number, shard.shard, said)
            if one.name == one.renamed and record.sha256 != shard.sha256:
                raise ResultError(f"{source}: damaged: not the bytes that were written; run the search again")
            publish(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink()
    return record


def _rewrite(source: Location, partial: Path, origin: ScenarioOrigin) -> None:
    """A shard whose rows name another scenario."""
    with damage(source), pq.ParquetFile(readable(source), page_checksum_verification=True) as file:
        kept = file.schema_arrow.metadata or {}
        own = {(METADATA_PREFIX + "scenario").encode(): json.dumps(origin.model_dump(mode="json")).encode()}
        with parquet_writer(partial, {**kept, **own}) as writer:
            for group in range(file.num_row_groups):
                writer.write_table(_relabelled(file.read_row_group(group), origin.name))


def _relabelled(table: pa.Table, name: str) -> pa.Table:
    position = table.schema.get_field_index("scenario")
    codes = pa.array([0] * table.num_rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(codes, pa.array([name], pa.string()))
    return table.set_column(position, table.schema.field(position), column)


def _placed(taken: Sequence[Taken]) -> PlacedTables:
    """Placed plans of all, and what they were placed on."""

    def rows(read: Callable[[Result, str], Rows]) -> Iterator[dict[str, Any]]:
        for one in taken:
            for row in read(one.result, one.name):
                yield {**row, "scenario": one.renamed}

    placed = list({id(one.result): one.result.placed for one in taken if one.result.placed}.values())
    return PlacedTables(
        plans=list(rows(Result.placed_plans)),
        placements=list(rows(Result.placements)),
        topology=_joined([record.topology for record in placed if record]),
        fabric_sha256=_one_hash([record.fabric_sha256 for record in placed if record]),
        settings=_shared_settings([record for record in placed if record]),
    )


def _joined(texts: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _one_hash(hashes: Sequence[str]) -> str:
    return hashes[0] if len(set(hashes)) == 1 else text_sha256(" ".join(hashes))


def _shared_settings(records: Sequence[PlacedRecord]) -> Mapping[str, str | int | float]:
    """What all were placed with."""
    first = records[0].settings
    return {key: value for key, value in first.items() if all(one.settings.get(key) == value for one in records)}


def _summary(results: Sequence[Result], taken: Sequence[Taken], out: Location) -> dict[str, Any]:
    """The answers of all, as one search would have printed them."""
    own = {id(result): result.summary() for result in results}
    scenarios = []
    for one in taken:
        said = own[id(one.result)].get("scenarios", ())
        scenarios += [{**scenario, "name": one.renamed} for scenario in said if scenario.get("name") == one.name]
    shards = [shard for one in taken for shard in one.result.shards(one.name)]
    n_plans, n_fit = sum(shard.n_plans for shard in shards), sum(shard.n_fit for shard in shards)
    seconds = sum(float(summary.get("seconds") or 0.0) for summary in own.values())
    found = {
        "study": out.name,
        "n_plans": n_plans,
        "n_refused": n_plans - n_fit,
        "n_fit": n_fit,
        "seconds": seconds,
        "plans_per_s": n_plans / seconds if seconds else 0.0,
        "peak_rss_bytes": max(int(summary.get("peak_rss_bytes") or 0) for summary in own.values()),
        "result": str(out),
        "scenarios": scenarios,
    }
    merged: dict[str, Any] = plain(found)
    return merged
