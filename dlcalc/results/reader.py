"""Reads a study back: validated, one file at a time, in the order of the space.

Any Parquet reader reads the directory as well (docs/results.md); this one also says what is wrong with it, and
rebuilds the specs that made it. Memory does not grow with the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from dlcalc.errors import ResultError, UnknownNameError
from dlcalc.results.files import PLACED_FOLDER, SUMMARY_NAME, read_json
from dlcalc.results.manifest import (
    Manifest,
    PlacedRecord,
    ScenarioOrigin,
    ShardRecord,
    TableRecord,
    noted_shards,
    read_manifest,
)
from dlcalc.results.placed import SCHEMAS
from dlcalc.results.schema import COLUMN_NAMES, METADATA_PREFIX, schema_problem
from dlcalc.results.storage import Location, file_sha256, location, readable, store_errors

Row = dict[str, Any]

_BATCH_ROWS = 2**16


@dataclass(frozen=True)
class Result:
    """A result directory that was found to be in order."""

    directory: Location
    manifest: Manifest

    @property
    def is_complete(self) -> bool:
        """Whether the search came to its end."""
        return self.manifest.status == "complete"

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios, in the order of the study."""
        return tuple(scenario.name for scenario in self.manifest.scenarios)

    def shards(self, scenario: str | None = None) -> tuple[ShardRecord, ...]:
        """Finished files, of one scenario or of all, in the order of the space."""
        if scenario is None:
            return self.manifest.shards
        index = self._index(scenario)
        return tuple(shard for shard in self.manifest.shards if shard.scenario == index)

    def files(self, scenario: str | None = None) -> tuple[Location, ...]:
        """Paths of the finished files."""
        return tuple(self.directory / shard.file for shard in self.shards(scenario))

    def origin(self, scenario: str) -> ScenarioOrigin:
        """The model, hardware, recipe and space that made the rows of ``scenario``."""
        files = self.files(scenario)
        if not files:
            raise ResultError(f"{self.directory}: nothing of scenario {scenario!r} is finished yet")
        try:
            text = self._metadata(files[0], "scenario")
            return ScenarioOrigin.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ResultError(f"{files[0]}: damaged: scenario: {where}: {first['msg']}") from error

    def settings(self) -> dict[str, Any]:
        """What the command was told, such as what to keep."""
        return dict(self.manifest.settings)

    def summary(self) -> dict[str, Any]:
        """The object that ``--json`` printed, once the search is complete."""
        path = self.directory / SUMMARY_NAME
        if not self.is_complete:
            raise ResultError(f"{self.directory}: the search was not finished; run it again to go on")
        document = read_json(path)
        if not isinstance(document, dict):
            raise ResultError(f"{path}: damaged: not a summary")
        return document

    def batches(
        self, scenario: str | None = None, *, columns: Sequence[str] | None = None, n_rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Rows as Arrow batches of at most ``n_rows``."""
        for _, batch in self._file_batches(scenario, columns, n_rows):
            yield batch

    def rows(self, scenario: str | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Rows as dicts, one plan each."""
        for batch in self.batches(scenario, columns=columns):
            yield from batch.to_pylist()

    def best(self, scenario: str, n_rows: int = 10, *, by: str = "step_time_s", largest: bool = False) -> list[Row]:
        """The ``n_rows`` rows of ``scenario`` with the smallest (or largest) ``by``; ties in the order of the space."""
        sign = -1.0 if largest else 1.0
        leaders = np.empty((0, 4))  # key, plan index, file, row in the file
        for file, first, batch in self._numbered_batches(scenario, [by, "plan_index"]):
            key = sign * batch.column(by).to_numpy(zero_copy_only=False)
            near = np.flatnonzero(key <= leaders[-1, 0]) if len(leaders) == n_rows else np.arange(len(key))
            index = batch.column("plan_index").to_numpy()[near]
            found = np.column_stack([key[near], index, np.full(len(near), file), first + near])
            leaders = np.concatenate([leaders, found])
            leaders = leaders[np.lexsort((leaders[:, 1], leaders[:, 0]))[:n_rows]]
        files = self.files(scenario)
        return [self._row(files[int(file)], int(row)) for _, _, file, row in leaders]

    @property
    def placed(self) -> PlacedRecord | None:
        """What the best plans were placed on; None where they were not."""
        return self.manifest.placed

    def placed_plans(self, scenario: str | None = None) -> list[Row]:
        """Placed plans of one scenario or of all, fastest as placed first; none where nothing was placed."""
        rows = self._placed_rows("plans.parquet", scenario)
        order = {name: position for position, name in enumerate(self.scenarios)}
        return sorted(rows, key=lambda row: (order.get(row["scenario"], len(order)), row["placed_rank"]))

    def placements(self, scenario: str | None = None) -> list[Row]:
        """Where the nodes are: the rows that ``placement`` of a placed plan numbers."""
        return self._placed_rows("placements.parquet", scenario)

    def _placed_rows(self, name: str, scenario: str | None) -> list[Row]:
        if scenario is not None:
            self._index(scenario)
        if self.placed is None:
            return []
        path = self.directory / PLACED_FOLDER / name
        with damage(path):
            rows: list[Row] = pq.read_table(readable(path), page_checksum_verification=True).to_pylist()
        return [row for row in rows if scenario is None or row["scenario"] == scenario]

    def verify(self) -> None:
        """Compare every file with the hash in the manifest; ``ResultError`` names the first that differs."""
        expected = {self.directory / shard.file: shard.sha256 for shard in self.manifest.shards}
        if self.placed is not None:
            folder = self.directory / PLACED_FOLDER
            expected |= {folder / name: table.sha256 for name, table in self.placed.tables.items()}
        for path, sha256 in expected.items():
            with damage(path):
                found = file_sha256(path)
            if found != sha256:
                raise ResultError(f"{path}: damaged: not the bytes that were written; run the search again")

    def _index(self, scenario: str) -> int:
        if scenario not in self.scenarios:
            raise UnknownNameError("scenario", scenario, self.scenarios)
        return self.scenarios.index(scenario)

    def _file_batches(
        self, scenario: str | None, columns: Sequence[str] | None, n_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        for name in columns or ():
            if name not in COLUMN_NAMES:
                raise UnknownNameError("column", name, COLUMN_NAMES)
        for position, path in enumerate(self.files(scenario)):
            with damage(path), pq.ParquetFile(readable(path), page_checksum_verification=True) as file:
                wanted = list(columns) if columns is not None else list(COLUMN_NAMES)
                for batch in file.iter_batches(batch_size=n_rows, columns=wanted):
                    yield position, batch.select(wanted)

    def _numbered_batches(self, scenario: str, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """Batches with the number of their file and of their first row in it."""
        previous, first = -1, 0
        for file, batch in self._file_batches(scenario, columns, _BATCH_ROWS):
            first = first if file == previous else 0
            yield file, first, batch
            previous, first = file, first + batch.num_rows

    def _row(self, path: Location, row: int) -> Row:
        """One row of a file, reading the row group it is in."""
        with damage(path), pq.ParquetFile(readable(path), page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if row < n_rows:
                    found: Row = file.read_row_group(group).slice(row, 1).to_pylist()[0]
                    return found
                row -= n_rows
        raise ResultError(f"{path}: damaged: rows are missing")

    def _metadata(self, path: Location, key: str) -> str:
        with damage(path), pq.ParquetFile(readable(path)) as file:
            metadata = file.schema_arrow.metadata or {}
        text = metadata.get((METADATA_PREFIX + key).encode())
        if text is None:
            raise ResultError(f"{path}: not written by dlcalc ({METADATA_PREFIX}{key} is missing)")
        try:
            return str(text, "utf-8")
        except UnicodeDecodeError as error:
            raise ResultError(f"{path}: damaged: {key}: not text; run the search again with --resume") from error


def open_result(directory: Location | str) -> Result:
    """The result in ``directory``, complete or not; ``ResultError`` names what is foreign or damaged.

    Checks the manifest, and of every file that it names: size, footer, schema and number of rows. Pages carry
    checksums that are verified as they are read; :meth:`Result.verify` reads everything.
    """
    directory = location(directory)
    manifest = read_manifest(directory)
    if manifest.status == "running":
        named = {shard.key: shard for shard in manifest.shards}
        manifest = manifest.with_shards(noted_shards(directory, manifest) | named, "running", manifest.placed)
    for shard in manifest.shards:
        _check_file(directory / shard.file, shard)
    for name, table in (manifest.placed.tables if manifest.placed else {}).items():
        _check_file(directory / PLACED_FOLDER / name, table)
    return Result(directory, manifest)


def _check_file(path: Location, shard: ShardRecord | TableRecord) -> None:
    """Refuse a file that is not what the manifest says."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise ResultError(f"{path}: missing, but the manifest names it; run the search again with --resume") from error
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
    if found != shard.n_bytes:
        raise ResultError(
            f"{path}: damaged: {found:,} bytes instead of {shard.n_bytes:,}; run the search again with --resume"
        )
    with damage(path), pq.ParquetFile(readable(path)) as file:
        known = SCHEMAS.get(path.name)
        if known is None:
            problem = schema_problem(file.schema_arrow)
        else:
            problem = None if file.schema_arrow.equals(known) else "its columns differ"
        n_rows = file.metadata.num_rows
    if problem:
        raise ResultError(f"{path}: not a result of this version of dlcalc: {problem}")
    if n_rows != shard.n_rows:
        raise ResultError(f"{path}: damaged: {n_rows:,} rows instead of {shard.n_rows:,}")


@contextmanager
def damage(path: Location) -> Iterator[None]:
    """Whatever Parquet says of a damaged file, in one line that names it."""
    try:
        with store_errors(path):
            yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResultError(f"{path}: damaged: {reason}; run the search again with --resume") from error
