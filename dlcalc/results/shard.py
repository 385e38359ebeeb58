"""Writes the file of one shard, in whatever process evaluates it.

Rows are copied into one buffer per column and written as row groups of a fixed size, so the memory needed depends
neither on the block nor on the study. The file appears whole or not at all; a hidden note beside it, written before it
appears, says what it holds until the manifest does, so that a shard counts from the moment it can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dlcalc.results.files import disk_errors, note_name, shard_name, write_text
from dlcalc.results.manifest import ShardNote, ShardRecord
from dlcalc.results.schema import (
    BLOCK_COLUMNS,
    COLUMN_ENCODING,
    COMPRESSION,
    CONSTANT_COLUMNS,
    DICTIONARY_ENCODED,
    PAGE_BATCH_ROWS,
    ROW_GROUP_ROWS,
    SCHEMA,
    WITH_STATISTICS,
    WORDS,
    ZSTD_LEVEL,
    Column,
)
from dlcalc.results.storage import Location, file_sha256, partial_path, publish
from dlcalc.utils.jsontext import plain

Block = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ShardHeader:
    """What all files of a scenario share: constant columns, the words behind codes, and the file's metadata."""

    scenario: int
    constants: Mapping[str, str | int]
    names: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, str]
    study_sha256: str = ""


class ShardWriter:
    """Rows of one shard. The file appears, whole, when the ``with`` block ends well; otherwise not at all."""

    def __init__(
        self, directory: Location, header: ShardHeader, shard: int, *, row_group_rows: int = ROW_GROUP_ROWS
    ) -> None:
        self.path = directory / shard_name(header.scenario, shard)
        self.n_rows = 0
        self._header, self._shard = header, shard
        self._partial = partial_path(self.path)
        self._said: dict[str, Any] | None = None
        self._record: ShardRecord | None = None
        self._capacity, self._filled = row_group_rows, 0
        self._buffers = {column.name: np.empty(0, column.dtype) for column in BLOCK_COLUMNS}
        self._words = {name: _texts(header.names[name]) for name in WORDS}
        self._labels: dict[str, pa.Array] = {}

    def __enter__(self) -> Self:
        try:
            with disk_errors(self.path):
                self._file = parquet_writer(self._partial, self._header.metadata)
        except BaseException:  # a disk may have room for a name and for nothing else
            with suppress(OSError):
                self._partial.unlink()
            raise
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
        values = _numbers(self._buffers[column.name][: self._filled])
        return pa.DictionaryArray.from_arrays(values, self._words[column.name]) if column.kind == "word" else values

    def describe(
        self,
        *,
        start: int,
        stop: int,
        n_plans: int,
        n_fit: int,
        refused: Mapping[str, int],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what the file stands for, before it is closed; without that it does not count."""
        self._said = {
            "start": int(start),
            "stop": int(stop),
            "n_plans": int(n_plans),
            "n_fit": int(n_fit),
            "refused": {reason: int(n_plans) for reason, n_plans in refused.items()},
            "state": plain(state or {}),
        }

    @property
    def record(self) -> ShardRecord:
        """The line of the manifest for this file, once it is closed."""
        if self._record is None:
            raise ValueError("the shard was not described, or is not closed yet")
        return self._record

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                with disk_errors(self.path):
                    self._file.close()
                    if self._said is not None:
                        self._note(self._said)
                    publish(self._partial, self.path)
        finally:
            with suppress(OSError, pa.ArrowException):
                self._file.close()
            with suppress(OSError):
                self._partial.unlink()

    def _note(self, said: dict[str, Any]) -> None:
        """Leave the record beside the file before it appears, so that no kill can part the two."""
        said = said | {"n_rows": self.n_rows}
        self._record = record_of(self._partial, self.path.name, self._header.scenario, self._shard, said)
        note = ShardNote(study_sha256=self._header.study_sha256, record=self._record)
        write_text(self.path.parent / note_name(self.path.name), note.model_dump_json(), durable=False)


def parquet_writer(path: Location, metadata: Mapping[Any, Any]) -> pq.ParquetWriter:
    """A Parquet file as shards are stored."""
    return pq.ParquetWriter(
        path,
        SCHEMA.with_metadata(dict(metadata)),
        compression=COMPRESSION,
        compression_level=ZSTD_LEVEL,
        use_dictionary=DICTIONARY_ENCODED,
        column_encoding=COLUMN_ENCODING,
        write_statistics=WITH_STATISTICS,
        write_page_checksum=True,
        write_batch_size=PAGE_BATCH_ROWS,
    )


def record_of(path: Location, name: str, scenario: int, shard: int, said: Mapping[str, Any]) -> ShardRecord:
    """The record of a finished file that will be called ``name``."""
    return ShardRecord(
        scenario=scenario, shard=shard, file=name, n_bytes=path.stat().st_size, sha256=file_sha256(path), **said
    )


def _constant_arrays(header: ShardHeader, n_rows: int) -> dict[str, pa.Array]:
    """The constant columns of a full row group."""
    first = _numbers(np.zeros(n_rows, np.int32))
    return {
        column.name: pa.DictionaryArray.from_arrays(first, _texts([str(header.constants[column.name])]))
        if column.kind == "label"
        else _numbers(np.full(n_rows, header.constants[column.name], np.int32))
        for column in CONSTANT_COLUMNS
    }


# ``pa.array`` would import pandas, to see whether that made what it is given: 0.2 s in every process that writes.

_ARROW_TYPES = {np.dtype(np.int32): pa.int32(), np.dtype(np.int64): pa.int64(), np.dtype(np.float64): pa.float64()}


def _numbers(values: NDArray[Any]) -> pa.Array:
    """An Arrow array of the same memory; switches take a bit each."""
    if values.dtype == np.bool_:
        bits = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])
    return pa.Array.from_buffers(_ARROW_TYPES[values.dtype], len(values), [None, pa.py_buffer(values)])


def _texts(words: Sequence[str]) -> pa.Array:
    encoded = [word.encode() for word in words]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _length(block: Block) -> int:
    """Rows of a block; a column missing or of another length is a bug of the caller."""
    lengths = {column.name: block[column.name].shape for column in BLOCK_COLUMNS}
    shapes = set(lengths.values())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"columns of a block must be 1-D and equally long: {lengths}")
    return int(next(iter(shapes))[0])
