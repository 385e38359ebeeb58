"""Writes a study: blocks of plans in, finished Parquet files out.

Any process may write a shard, one process keeps the manifest:

    with open_study(directory, origin, resume=True) as study:
        header = study.header(scenario, names)           # small, picklable: goes to the workers
        with ShardWriter(directory, header, shard) as rows:
            rows.write(block)                            # as often as wanted; arrays may be reused afterwards
        study.add(rows.record(start=..., stop=..., n_plans=..., n_fit=..., refused=...))
        study.finish(summary)

Rows are copied into one buffer per column and written as row groups of a fixed size, so the memory needed depends
neither on the block nor on the study.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EAGAIN
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dlcalc.errors import ResultError
from dlcalc.results.manifest import (
    LOCK_NAME,
    MANIFEST_NAME,
    SUMMARY_NAME,
    Manifest,
    PlacedRecord,
    ShardRecord,
    Status,
    StudyOrigin,
    disk_errors,
    is_ours,
    is_partial,
    read_manifest,
    shard_name,
    write_text,
)
from dlcalc.results.placed import PlacedTables, forget_placed, write_placed
from dlcalc.results.schema import (
    BLOCK_COLUMNS,
    COLUMN_ENCODING,
    CONSTANT_COLUMNS,
    DICTIONARY_ENCODED,
    METADATA_PREFIX,
    ROW_GROUP_ROWS,
    SCHEMA,
    SCHEMA_VERSION,
    WITH_STATISTICS,
    WORDS,
    ZSTD_LEVEL,
    Column,
)
from dlcalc.results.storage import Location, ObjectPath, file_sha256, names_in, partial_of, publish
from dlcalc.utils.jsontext import plain, to_json

Block = Mapping[str, NDArray[Any]]

_SAVE_EVERY_S = 1.0


@dataclass(frozen=True)
class ShardHeader:
    """What all files of a scenario share: constant columns, the words behind codes, and the file's metadata."""

    scenario: int
    constants: Mapping[str, str | int]
    names: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, str]


class ShardWriter:
    """Rows of one shard. The file appears, whole, when the ``with`` block ends well; otherwise not at all."""

    def __init__(
        self, directory: Location, header: ShardHeader, shard: int, *, row_group_rows: int = ROW_GROUP_ROWS
    ) -> None:
        self.path = directory / shard_name(header.scenario, shard)
        self.n_rows = 0
        self._header, self._shard = header, shard
        self._partial = partial_of(self.path)
        self._capacity, self._filled = row_group_rows, 0
        self._buffers = {column.name: np.empty(0, column.dtype) for column in BLOCK_COLUMNS}
        self._words = {name: pa.array(header.names[name], pa.string()) for name in WORDS}
        self._labels: dict[str, pa.Array] = {}
        self._n_bytes, self._sha256 = 0, ""

    def __enter__(self) -> Self:
        schema = SCHEMA.with_metadata(dict(self._header.metadata))
        with disk_errors(self.path):
            self._file = pq.ParquetWriter(
                self._partial,
                schema,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                use_dictionary=DICTIONARY_ENCODED,
                column_encoding=COLUMN_ENCODING,
                write_statistics=WITH_STATISTICS,
                write_page_checksum=True,
            )
        return self

    def write(self, block: Block) -> None:
        """Add the plans of ``block``: equally long arrays, words as codes; the arrays are copied."""
        n_rows = _length(block)
        done = 0
        while done < n_rows:
            take = min(n_rows - done, self._capacity - self._filled)
            self._reserve(self._filled + take)
            for column in BLOCK_COLUMNS:
                buffer = self._buffers[column.name]
                part = block[column.name][done : done + take]
                np.copyto(buffer[self._filled : self._filled + take], part, casting="unsafe")
            done, self._filled = done + take, self._filled + take
            if self._filled == self._capacity:
                self._flush()
        self.n_rows += n_rows

    def _reserve(self, n_rows: int) -> None:
        """Room for that many rows: no more than a row group, and little for a shard of few."""
        room = len(next(iter(self._buffers.values())))
        if n_rows > room:
            room = min(self._capacity, max(n_rows, 4 * room))
            for name, buffer in self._buffers.items():
                self._buffers[name] = np.empty(room, buffer.dtype)
                self._buffers[name][: self._filled] = buffer[: self._filled]

    def _flush(self) -> None:
        if not self._filled:
            return
        if not self._labels or self._filled > len(next(iter(self._labels.values()))):
            self._labels = _constant_arrays(self._header, self._filled)  # a shard of few rows needs few
        arrays = [self._labels[column.name][: self._filled] for column in CONSTANT_COLUMNS]
        arrays += [self._array(column) for column in BLOCK_COLUMNS]
        batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
        with disk_errors(self.path):
            self._file.write_batch(batch, row_group_size=self._capacity)
        self._filled = 0

    def _array(self, column: Column) -> pa.Array:
        values = pa.array(self._buffers[column.name][: self._filled])
        if column.kind != "word":
            return values
        return pa.DictionaryArray.from_arrays(values, self._words[column.name])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                with disk_errors(self.path):
                    self._file.close()
                    self._n_bytes, self._sha256 = self._partial.stat().st_size, file_sha256(self._partial)
                    publish(self._partial, self.path)
        finally:
            with suppress(OSError, pa.ArrowException):
                self._file.close()
            with suppress(OSError):
                self._partial.unlink()

    def record(
        self,
        *,
        start: int,
        stop: int,
        n_plans: int,
        n_fit: int,
        refused: Mapping[str, int],
        state: Mapping[str, Any] | None = None,
    ) -> ShardRecord:
        """The line of the manifest for this file, once it is closed."""
        return ShardRecord(
            scenario=self._header.scenario,
            shard=self._shard,
            start=int(start),
            stop=int(stop),
            file=self.path.name,
            n_rows=self.n_rows,
            n_bytes=self._n_bytes,
            sha256=self._sha256,
            n_plans=int(n_plans),
            n_fit=int(n_fit),
            refused={reason: int(n_plans) for reason, n_plans in refused.items()},
            state=plain(state or {}),
        )


def _constant_arrays(header: ShardHeader, n_rows: int) -> dict[str, pa.Array]:
    """The constant columns of a full row group."""
    first = pa.array(np.zeros(n_rows, np.int32))
    return {
        column.name: pa.DictionaryArray.from_arrays(first, pa.array([header.constants[column.name]], pa.string()))
        if column.kind == "label"
        else pa.array(np.full(n_rows, header.constants[column.name], np.int32))
        for column in CONSTANT_COLUMNS
    }


def _length(block: Block) -> int:
    """Rows of a block; a column missing or of another length is a bug of the caller."""
    lengths = {column.name: block[column.name].shape for column in BLOCK_COLUMNS}
    shapes = set(lengths.values())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"columns of a block must be 1-D and equally long: {lengths}")
    return int(next(iter(shapes))[0])


class StudyWriter:
    """The manifest of a study being written. Made by :func:`open_study`."""

    def __init__(
        self, directory: Location, origin: StudyOrigin, finished: Mapping[tuple[int, int], ShardRecord]
    ) -> None:
        self.directory = directory
        self._origin = origin
        self._manifest = Manifest.of(origin)
        self._finished = dict(finished)
        self._placed: PlacedRecord | None = None
        self._write("running")

    @property
    def finished(self) -> Mapping[tuple[int, int], ShardRecord]:
        """Finished shards by (scenario, shard): those need not be evaluated again."""
        return self._finished

    @property
    def manifest(self) -> Manifest:
        """Of what is finished."""
        return self._manifest.with_shards(self._finished, "running", self._placed)

    def header(self, scenario: int, names: Mapping[str, tuple[str, ...]]) -> ShardHeader:
        """What the files of ``scenario`` share; ``names`` gives the words behind the codes of word columns."""
        origin = self._origin.scenarios[scenario]
        constants: dict[str, str | int] = {
            "scenario": origin.name,
            "model": origin.model.name,
            "hardware": origin.hardware.name,
            "devices": origin.devices,
            "precision": origin.recipe.precision,
            "framework": origin.recipe.framework.name,
            "seq_len": origin.recipe.seq_len,
            "global_batch": origin.recipe.global_batch,
        }
        metadata = self._metadata() | {METADATA_PREFIX + "scenario": json.dumps(origin.model_dump(mode="json"))}
        return ShardHeader(
            scenario=scenario,
            constants=constants,
            names={name: tuple(names[name]) for name in WORDS},
            metadata=metadata,
        )

    def _metadata(self) -> dict[str, str]:
        """What every file of the study says of it."""
        said = {
            "schema_version": str(SCHEMA_VERSION),
            "version": self._origin.dlcalc_version,
            "study": self._origin.study,
            "space": self._origin.space_text,
            "settings": json.dumps(self._origin.settings),
        }
        return {METADATA_PREFIX + key: text for key, text in said.items()}

    def place(self, tables: PlacedTables) -> None:
        """Write the placed plans beside the rows."""
        self._placed = write_placed(self.directory, tables, self._metadata())

    def add(self, record: ShardRecord) -> None:
        """Count a finished shard. The manifest follows within a second, so that many small shards cost little."""
        self._finished[record.key] = record
        self._saved = False
        if time.monotonic() - self._saved_at_s >= _SAVE_EVERY_S:
            self.save()

    def drop(self, scenario: int) -> None:
        """Forget and delete the shards of ``scenario``, to write it again in another form."""
        dropped = [record for record in self._finished.values() if record.scenario == scenario]
        self._finished = {key: record for key, record in self._finished.items() if record.scenario != scenario}
        self._write("running")
        for record in dropped:
            (self.directory / record.file).unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and call the study complete."""
        named = {record.file for record in self._finished.values()}
        # what a worker that was killed left behind goes too
        _sweep(self.directory, lambda name: is_partial(name) or (name.endswith(".parquet") and name not in named))
        write_text(self.directory / SUMMARY_NAME, to_json(summary) + "\n", durable=True)
        self._write("complete")

    def save(self) -> None:
        """Bring the manifest up to date."""
        if not self._saved:
            self._write("running")

    def _write(self, status: Status) -> None:
        manifest = self._manifest.with_shards(self._finished, status, self._placed)
        write_text(self.directory / MANIFEST_NAME, manifest.text(), durable=status == "complete")
        self._saved, self._saved_at_s = True, time.monotonic()


@contextmanager
def open_study(
    directory: Location, origin: StudyOrigin, *, resume: bool = False, overwrite: bool = False
) -> Iterator[StudyWriter]:
    """A study being written in ``directory``; nobody else can write there meanwhile.

    A directory that holds the same study is gone on with if it was interrupted or ``resume`` is given, and written
    again otherwise. One that holds another study is refused unless ``overwrite``; one that holds something else
    always.
    """
    with disk_errors(directory):
        if directory.exists() and not directory.is_dir():
            raise ResultError(f"{directory}: a file is in the way; choose another place with -o")
        directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        finished = _finished_shards(directory, origin, resume=resume, overwrite=overwrite)
        named = {record.file for record in finished.values()}
        with disk_errors(directory):
            if not finished:  # the manifest goes first, so that no half-deleted study looks whole
                (directory / MANIFEST_NAME).unlink(missing_ok=True)
            (directory / SUMMARY_NAME).unlink(missing_ok=True)
            forget_placed(directory)
            _sweep(directory, lambda name: is_partial(name) or (name.endswith(".parquet") and name not in named))
        study = StudyWriter(directory, origin, finished)
        try:
            yield study
        except BaseException:
            with suppress(ResultError):  # what stopped the search is what the user must hear of
                study.save()
            raise
        study.save()


def _finished_shards(
    directory: Location, origin: StudyOrigin, *, resume: bool, overwrite: bool
) -> dict[tuple[int, int], ShardRecord]:
    """The shards of an earlier run that still count; ``ResultError`` when the directory holds something else."""
    foreign = sorted(name for name in names_in(directory) if not is_ours(name))
    has_manifest = (directory / MANIFEST_NAME).exists()
    if foreign and not has_manifest:
        raise ResultError(f"{directory}: holds other files ({foreign[0]}) and no result; choose another place with -o")
    if not has_manifest or overwrite:
        return {}
    there = read_manifest(directory)
    differences = there.differences(Manifest.of(origin))
    if differences:
        listed = "\n  ".join(differences)
        raise ResultError(
            f"{directory}: holds the result of another study; choose another place with -o, or replace it with "
            f"--overwrite. What differs:\n  {listed}"
        )
    if there.status == "complete" and not resume:
        return {}
    return {record.key: record for record in there.shards if _is_whole(directory / record.file, record)}


def _is_whole(path: Location, record: ShardRecord) -> bool:
    """Whether a shard's file is still what was written; if not, the shard is evaluated again."""
    try:
        if path.stat().st_size != record.n_bytes:
            return False
        return isinstance(path, ObjectPath) or file_sha256(path) == record.sha256  # a store checks what it keeps
    except OSError:
        return False


def _sweep(directory: Location, unwanted: Callable[[str], bool]) -> None:
    """Delete what dlcalc wrote and no longer wants; never a file it did not write."""
    for name in names_in(directory):
        if is_ours(name) and unwanted(name):
            with suppress(FileNotFoundError):
                (directory / name).unlink()


@contextmanager
def _locked(directory: Location) -> Iterator[None]:
    """Keep a second search out of ``directory``, on systems and file systems that know how.

    The lock is this process's alone: it ends with it, however that ends, and workers do not inherit it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    if isinstance(directory, ObjectPath):  # a store has no locks
        yield
        return
    path = directory / LOCK_NAME
    with disk_errors(directory):
        file = path.open("a")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EACCES, EAGAIN):
                raise ResultError(f"{directory}: another search is writing here; wait for it, or use -o") from error
            # otherwise a file system without locks: go on without
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise ResultError(f"{directory}: another search has just ended here; try again")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
