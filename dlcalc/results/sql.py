"""SQL over results, by DuckDB: the only importer of it.

The database lives in memory and sees nothing but the finished shards of the results that it is given: no other file can
be read or written, whatever the statement says. Rows are streamed, so that a result need not fit in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from dlcalc.errors import DlcalcError, ResultError
from dlcalc.results.reader import Result
from dlcalc.results.schema import COLUMN_NAMES, SCHEMA
from dlcalc.results.storage import Location, ObjectPath

if TYPE_CHECKING:
    import duckdb

PLANS, SCENARIOS = "plans", "scenarios"

SCENARIOS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("study", "scenario", "model", "hardware")),
        ("devices", pa.int32()),
        *((name, pa.string()) for name in ("precision", "framework")),
        *((name, pa.int32()) for name in ("seq_len", "global_batch")),
        *((name, pa.int64()) for name in ("n_plans", "n_fit", "n_rows")),
        ("complete", pa.bool_()),
        *((name, pa.string()) for name in ("dlcalc_version", "directory")),
    ]
)


@contextmanager
def rows_of_query(sql: str, results: Sequence[Result]) -> Iterator[pa.RecordBatchReader]:
    """The answer to ``sql``, as it is worked out; ``plans`` and ``scenarios`` are what it can ask about."""
    duckdb = require_duckdb()
    with tempfile.TemporaryDirectory(prefix="dlcalc-") as folder, sql_errors(duckdb, results):
        connection = duckdb.connect(":memory:", config={"temp_directory": folder})
        try:
            _offer(connection, results)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET lock_configuration = true")
            rows = connection.sql(sql)
            if rows is None:
                raise DlcalcError("the statement has no rows to show; give a SELECT")
            yield pa.RecordBatchReader.from_stream(rows)
        finally:
            connection.close()


def require_duckdb() -> Any:  # noqa: ANN401 - a module
    """DuckDB, or what to install."""
    try:
        import duckdb
    except ImportError as error:
        raise DlcalcError("SQL needs DuckDB: pip install 'dlcalc[results]'") from error
    return duckdb


@contextmanager
def sql_errors(duckdb: Any, results: Sequence[Result]) -> Iterator[None]:  # noqa: ANN401 - a module
    """What DuckDB says of a statement, and what could have been asked for."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, pa.ArrowException) as error:
        said = str(error).strip()
        for position, result in enumerate(results):
            if f"'_plans_{position}'" in said:
                reason = said.split(" failed: ")[-1]
                raise ResultError(f"{result.directory}: {reason}; dlcalc-results verify names the file") from error
        columns = ""
        if isinstance(error, (duckdb.BinderException, duckdb.CatalogException)):
            columns = (
                f"\n  columns of {PLANS}: study, {', '.join(COLUMN_NAMES)}"
                f"\n  columns of {SCENARIOS}: {', '.join(SCENARIOS_SCHEMA.names)}"
            )
        raise DlcalcError(f"DuckDB: {said}{columns}") from error


def _offer(connection: duckdb.DuckDBPyConnection, results: Sequence[Result]) -> None:
    """The two views."""
    parts = []
    for position, result in enumerate(results):
        connection.register(f"_plans_{position}", _dataset(result.files()))
        study = result.manifest.study.replace("'", "''")
        parts.append(f"SELECT '{study}' AS study, * FROM _plans_{position}")
    connection.execute(f"CREATE TEMP VIEW {PLANS} AS {' UNION ALL '.join(parts)}")
    rows = [row for result in results for row in scenario_rows(result)]
    connection.register(SCENARIOS, pa.Table.from_pylist(rows, schema=SCENARIOS_SCHEMA))


def _dataset(files: Sequence[Location]) -> ds.Dataset:
    if not files:
        return ds.dataset(SCHEMA.empty_table())
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    store = files[0].filesystem if isinstance(files[0], ObjectPath) else None
    names = [file.key if isinstance(file, ObjectPath) else str(file) for file in files]
    return ds.dataset(names, format=form, schema=SCHEMA, filesystem=store)


def scenario_rows(result: Result) -> Iterator[dict[str, Any]]:
    """One row per scenario of a result of which a shard is finished."""
    for name in result.scenarios:
        shards = result.shards(name)
        if not shards:
            continue
        origin = result.origin(name)
        yield {
            "study": result.manifest.study,
            "scenario": name,
            "model": origin.model.name,
            "hardware": origin.hardware.name,
            "devices": origin.devices,
            "precision": origin.recipe.precision,
            "framework": origin.recipe.framework.name,
            "seq_len": origin.recipe.seq_len,
            "global_batch": origin.recipe.global_batch,
            "n_plans": sum(shard.n_plans for shard in shards),
            "n_fit": sum(shard.n_fit for shard in shards),
            "n_rows": sum(shard.n_rows for shard in shards),
            "complete": result.is_complete,
            "dlcalc_version": result.manifest.dlcalc_version,
            "directory": str(result.directory),
        }
