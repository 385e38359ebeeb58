"""The use cases behind ``dlcalc-results``: verify, show, query and merge results. Never click, never colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from dlcalc.errors import DlcalcError, ResultError
from dlcalc.report.results_report import ROWS_SHOWN, Answer, FaultFound, ScenarioHeld, StudyHeld, Verified
from dlcalc.results.check import check_result
from dlcalc.results.merge import Finished, merge_results
from dlcalc.results.reader import Result, open_result
from dlcalc.results.sql import rows_of_query
from dlcalc.results.storage import Location, location
from dlcalc.workflows.report_parts import capacity_bytes
from dlcalc.workflows.survey import leaders, rows_at


def verify(directories: Sequence[Location | str]) -> list[Verified]:
    """Every byte of each directory against its manifest."""
    found = []
    for directory in directories:
        checked = check_result(location(directory))
        faults = tuple(FaultFound(fault.file, fault.problem) for fault in checked.faults)
        found.append(
            Verified(
                checked.directory,
                checked.study,
                checked.complete,
                checked.n_shards,
                checked.n_rows,
                checked.n_bytes,
                faults,
                checked.leftovers,
            )
        )
    return found


def show(directory: Location | str) -> StudyHeld:
    """What a result holds."""
    result = open_result(directory)
    shards = result.shards()
    return StudyHeld(
        directory=str(directory),
        study=result.manifest.study,
        complete=result.is_complete,
        dlcalc_version=result.manifest.dlcalc_version,
        schema_version=result.manifest.schema_version,
        settings=result.settings(),
        n_shards=len(shards),
        n_rows=sum(shard.n_rows for shard in shards),
        n_bytes=sum(shard.n_bytes for shard in shards),
        placed_on=result.placed.topology if result.placed else None,
        space_text=result.manifest.space_text,
        scenarios=tuple(_held(result, name) for name in result.scenarios),
    )


def _held(result: Result, name: str) -> ScenarioHeld:
    shards = result.shards(name)
    if not shards:
        digest = result.manifest.scenarios[result.scenarios.index(name)]
        return ScenarioHeld(name, "", "", digest.devices, "", "", 0, 0, 0, 0, 0, 0, None)
    origin = result.origin(name)
    return ScenarioHeld(
        name=name,
        model=origin.model.name,
        hardware=origin.hardware.name,
        devices=origin.devices,
        precision=origin.recipe.precision,
        framework=origin.recipe.framework.name,
        seq_len=origin.recipe.seq_len,
        global_batch=origin.recipe.global_batch,
        n_shards=len(shards),
        n_plans=sum(shard.n_plans for shard in shards),
        n_fit=sum(shard.n_fit for shard in shards),
        n_rows=sum(shard.n_rows for shard in shards),
        best=_best(result, name, capacity_bytes(origin)),
    )


def _best(result: Result, name: str, capacity: float) -> dict[str, Any] | None:
    """The row of the best plan that fits."""
    by = "memory_bytes" if result.settings().get("sort") == "memory" else "step_time_s"
    found = leaders(result, name, 1, by=by, capacity_bytes=capacity)
    if not found.n_fit:
        return None
    (row,) = rows_at(result, name, found.index[:1]).values()
    return row


def as_document(held: StudyHeld | Verified) -> dict[str, Any]:
    """The object of ``--json``."""
    return asdict(held)


# ---- query --------------------------------------------------------------------------------------------------------


def query(sql: str, directories: Sequence[Location | str], *, limit: int | None = ROWS_SHOWN) -> Answer:
    """The rows of ``sql``; those beyond ``limit`` are only counted."""
    with _rows(sql, directories) as reader:
        rows: list[tuple[Any, ...]] = []
        n_rows = 0
        for batch in reader:
            wanted = batch.num_rows if limit is None else max(min(limit - n_rows, batch.num_rows), 0)
            if wanted:
                columns = [map(_value, column.to_pylist()) for column in batch.slice(0, wanted).columns]
                rows += zip(*columns, strict=True)
            n_rows += batch.num_rows
        return Answer(tuple(reader.schema.names), tuple(rows), n_rows)


def _value(value: Any) -> Any:  # noqa: ANN401 - whatever SQL gives
    """As JSON has it: sums of whole numbers come as decimals, times and the like as words."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _value(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def query_to_file(sql: str, directories: Sequence[Location | str], file: Path) -> int:
    """Write the rows of ``sql`` to ``file``, CSV or Parquet by its name; how many there are."""
    with _rows(sql, directories) as reader:
        schema, n_rows = _plain_schema(reader.schema, csv=file.suffix != ".parquet"), 0
        partial = file.with_name(f".{file.name}.partial")
        try:
            with _writer(partial, schema, csv=file.suffix != ".parquet") as writer:
                for batch in reader:
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
                    n_rows += batch.num_rows
            partial.replace(file)
        except OSError as error:
            raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error
        finally:
            partial.unlink(missing_ok=True)
    return n_rows


@contextmanager
def _rows(sql: str, directories: Sequence[Location | str]) -> Iterator[pa.RecordBatchReader]:
    with rows_of_query(sql, [open_result(directory) for directory in directories]) as reader:
        yield reader


def _plain_schema(schema: pa.Schema, *, csv: bool) -> pa.Schema:
    """Words spelled out; a cell of CSV that is a list or a record has no form, and is refused."""
    fields = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if csv and pa.types.is_nested(kind):
            raise DlcalcError(f"column {field.name} is a {kind}, which CSV cannot hold; give --parquet or --json")
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _writer(file: Path, schema: pa.Schema, *, csv: bool) -> Any:  # noqa: ANN401 - pyarrow has no types
    return pc.CSVWriter(file, schema) if csv else pq.ParquetWriter(file, schema, compression="zstd")


# ---- merge --------------------------------------------------------------------------------------------------------


def merge(
    directories: Sequence[Location | str], out: Location | str, *, overwrite: bool, finished: Finished | None = None
) -> StudyHeld:
    """One result of several, and what it holds."""
    if len(directories) < 2:
        raise ResultError("give two results or more to merge")
    merge_results(
        [open_result(directory) for directory in directories], location(out), overwrite=overwrite, finished=finished
    )
    return show(out)
