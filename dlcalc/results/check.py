"""Looks at everything in a result directory, and lists all that is wrong with it.

:func:`dlcalc.results.reader.open_result` stops at the first thing that keeps it from reading; this goes on, reads every
byte, and also names what Parquet readers would take for plans and nobody wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dlcalc.errors import ResultError
from dlcalc.results.files import (
    INPUTS_NAME,
    LOCK_NAME,
    PLACED_FOLDER,
    SUMMARY_NAME,
    is_note,
    is_partial,
    names_in,
    read_json,
    text_sha256,
)
from dlcalc.results.manifest import Manifest, ShardRecord, TableRecord, noted_shards, read_manifest
from dlcalc.results.placed import SCHEMAS
from dlcalc.results.schema import METADATA_PREFIX, SCHEMA_VERSION, schema_problem
from dlcalc.results.storage import Location, file_sha256, readable

NO_PARQUET = "not a Parquet file"
HIDDEN = ("_", ".")
"""Parquet readers skip names that begin so."""


@dataclass(frozen=True)
class Fault:
    """A file, and what is wrong with it."""

    file: str
    problem: str


@dataclass(frozen=True)
class Checked:
    """What was found in one directory."""

    directory: str
    study: str | None
    """None where the manifest does not say."""
    complete: bool
    n_shards: int
    n_rows: int
    n_bytes: int
    faults: tuple[Fault, ...]
    leftovers: tuple[str, ...]
    """What an interrupted search leaves: harmless, and gone after the next one."""


def check_result(directory: Location) -> Checked:
    """Everything of a result directory against its manifest."""
    names = names_in(directory)
    leftovers = tuple(name for name in names if is_partial(name) or is_note(name) or name == LOCK_NAME)
    try:
        manifest = read_manifest(directory)
    except ResultError as error:
        problem = str(error).removeprefix(f"{directory}: ")
        return Checked(str(directory), None, False, 0, 0, 0, (Fault(str(directory), problem),), leftovers)
    noted = noted_shards(directory, manifest) if manifest.status == "running" else {}
    shards = tuple({**noted, **{shard.key: shard for shard in manifest.shards}}.values())
    faults = [
        *_shard_faults(directory, shards),
        *_range_faults(directory, manifest, shards),
        *_table_faults(directory, manifest),
        *_own_faults(directory, names, manifest),
        *_foreign_faults(directory, names, {shard.file for shard in shards}),
    ]
    return Checked(
        directory=str(directory),
        study=manifest.study,
        complete=manifest.status == "complete",
        n_shards=len(shards),
        n_rows=sum(shard.n_rows for shard in shards),
        n_bytes=sum(shard.n_bytes for shard in shards),
        faults=tuple(faults),
        leftovers=leftovers,
    )


def _shard_faults(directory: Location, shards: tuple[ShardRecord, ...]) -> Iterator[Fault]:
    for shard in shards:
        path = directory / shard.file
        if problem := _file_problem(path, shard):
            yield Fault(str(path), problem)


def _file_problem(path: Location, record: ShardRecord | TableRecord) -> str | None:
    """Why a file is not what the manifest says, as plainly as it can be told."""
    try:
        size = path.stat().st_size
        sha256 = file_sha256(path)
    except FileNotFoundError:
        return "missing, but the manifest names it"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 == record.sha256:
        return _content_problem(path, record)
    why = foreign_problem(path)
    if why is None:
        replaced = size != record.n_bytes
        return "another shard than the manifest names" if replaced else "damaged: not the bytes that were written"
    if why == NO_PARQUET and size < record.n_bytes:
        return f"truncated: {size:,} of {record.n_bytes:,} bytes"
    if why == NO_PARQUET and size == record.n_bytes:
        return "damaged: not the bytes that were written, and no longer Parquet"
    return f"foreign: {why}"


def _content_problem(path: Location, record: ShardRecord | TableRecord) -> str | None:
    """Of a file with the right hash: whether the manifest tells the truth about it."""
    try:
        with pq.ParquetFile(readable(path)) as file:
            known = SCHEMAS.get(path.name)
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return f"foreign: {NO_PARQUET}"
    problem = schema_problem(schema) if known is None else None if schema.equals(known) else "its columns differ"
    if problem:
        return f"not of schema {SCHEMA_VERSION}: {problem}"
    if n_rows != record.n_rows:
        return f"{n_rows:,} rows, but the manifest says {record.n_rows:,}"
    return None


def foreign_problem(path: Location) -> str | None:
    """Why a file is none that a search of this version wrote; None where it may be one."""
    try:
        with pq.ParquetFile(readable(path)) as file:
            schema = file.schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return NO_PARQUET
    if (METADATA_PREFIX + "version").encode() not in (schema.metadata or {}):
        return "not written by dlcalc"
    return schema_problem(schema)


def _range_faults(directory: Location, manifest: Manifest, shards: tuple[ShardRecord, ...]) -> Iterator[Fault]:
    """Plans that two shards hold; of a complete study also plans that none holds."""
    for position, scenario in enumerate(manifest.scenarios):
        own = sorted((shard for shard in shards if shard.scenario == position), key=lambda shard: shard.start)
        if not own and manifest.status == "complete":
            yield Fault(str(directory), f"complete, but nothing of {scenario.name} is there")
        reached = 0
        for shard in own:
            if shard.start < reached:
                yield Fault(str(directory / shard.file), f"plans from {shard.start:,} are also in the shard before it")
            elif shard.start > reached and manifest.status == "complete":
                yield Fault(
                    str(directory), f"complete, but plans {reached:,} to {shard.start:,} of {scenario.name} are missing"
                )
            reached = max(reached, shard.stop)


def _table_faults(directory: Location, manifest: Manifest) -> Iterator[Fault]:
    for name, table in (manifest.placed.tables if manifest.placed else {}).items():
        path = directory / PLACED_FOLDER / name
        if problem := _file_problem(path, table):
            yield Fault(str(path), problem)


def _own_faults(directory: Location, names: list[str], manifest: Manifest) -> Iterator[Fault]:
    """The summary and the inputs: whether they are there, and what they should be."""
    if manifest.status == "complete":
        try:
            if not isinstance(read_json(directory / SUMMARY_NAME), dict):
                yield Fault(str(directory / SUMMARY_NAME), "damaged: not a summary")
        except ResultError as error:
            yield Fault(str(directory / SUMMARY_NAME), _said_of(directory / SUMMARY_NAME, error))
    if INPUTS_NAME in names:
        path = directory / INPUTS_NAME
        try:
            inputs = read_json(path)
        except ResultError as error:
            yield Fault(str(path), _said_of(path, error))
            return
        wanted = {sha256 for scenario in manifest.scenarios for sha256 in scenario.parts.values()}
        held = inputs if isinstance(inputs, dict) else {}
        wrong = [sha256 for sha256 in sorted(wanted) if _hash_of(held.get(sha256)) != sha256]
        if wrong:
            yield Fault(str(path), f"damaged: {len(wrong)} of {len(wanted)} inputs are not what made the study")


def _hash_of(value: object) -> str:
    return text_sha256(json.dumps(value, sort_keys=True))


def _said_of(path: Location, error: ResultError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _foreign_faults(directory: Location, names: list[str], named: set[str]) -> Iterator[Fault]:
    """What a Parquet reader of the directory would take for plans."""
    for name in names:
        if name.startswith(HIDDEN) or name in named:
            continue
        path = directory / name
        if isinstance(path, Path) and path.is_dir():
            yield Fault(str(path), "foreign: a folder that dlcalc did not write; Parquet readers look into it")
            continue
        why = foreign_problem(path)
        yield Fault(
            str(path),
            f"foreign: {why}; Parquet readers stumble over it"
            if why
            else "not in the manifest; Parquet readers count its rows as well",
        )
