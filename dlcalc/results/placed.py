"""The placed part of a result: the best plans on the nodes they were given, ranked again.

Two small Parquet tables in the folder ``_placed`` of a result directory, where readers of the plans do not stumble over
them. ``plans.parquet`` holds the columns of a result, which are without placement, the rank there, and the same
quantities as placed; ``placements.parquet`` says where the nodes of each placement are. The two share the columns
``scenario`` and ``placement``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dlcalc.results.files import PLACED_FOLDER, disk_errors
from dlcalc.results.manifest import PLACED_TABLES, PlacedRecord, TableRecord
from dlcalc.results.schema import COLUMNS, METADATA_PREFIX
from dlcalc.results.storage import Location, file_sha256, listed, partial_path, publish

Rows = Sequence[Mapping[str, Any]]

KINDS = ("tp", "cp", "shard", "replicate", "etp", "ep", "expert_shard", "pp")
"""Of group, as the cost model calls them."""

_KIND_WORDS = {
    "tp": "tensor parallel groups",
    "cp": "context parallel rings",
    "shard": "rings that share the dense states",
    "replicate": "rings that hold copies of the same states (HSDP)",
    "etp": "tensor parallel groups of experts",
    "ep": "expert all-to-all",
    "expert_shard": "rings that share the states of experts",
    "pp": "neighbouring stages",
}


def _field(name: str, kind: pa.DataType, unit: str, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit, "description": meaning})


PLACED_FIELDS = (
    _field(
        "rank",
        pa.int32(),
        "1",
        "position without placement; null beyond the thousand best, or those that `--keep N` keeps",
        nullable=True,
    ),
    _field("placed_rank", pa.int32(), "1", "position as placed, 1 is the fastest"),
    _field("placement", pa.int32(), "1", "which placement of the scenario"),
    _field("placed_step_time_s", pa.float64(), "s", "time of one optimizer step as placed"),
    _field("placed_step_time_low_s", pa.float64(), "s", "lower end of its 80 % interval"),
    _field("placed_step_time_high_s", pa.float64(), "s", "upper end of its 80 % interval"),
    _field("placed_mfu", pa.float64(), "1", "mfu as placed"),
    _field("placed_hfu", pa.float64(), "1", "hfu as placed"),
    _field("placed_tokens_per_s_per_device", pa.float64(), "token/s", "tokens_per_s_per_device as placed"),
    *(
        field
        for kind in KINDS
        for field in (
            _field(f"{kind}_bytes_per_s_per_device", pa.float64(), "B/s", f"{_KIND_WORDS[kind]}: rate between nodes"),
            _field(f"{kind}_latency_s", pa.float64(), "s", f"{_KIND_WORDS[kind]}: latency beyond the fabric's own"),
        )
    ),
)

PLANS_SCHEMA = pa.schema([*(column.field for column in COLUMNS), *PLACED_FIELDS])

_NODES = pa.list_(pa.field("item", pa.string(), nullable=False))

PLACEMENTS_SCHEMA = pa.schema(
    [
        _field("scenario", pa.dictionary(pa.int32(), pa.string()), "1", "name of the scenario"),
        _field("placement", pa.int32(), "1", "which placement of the scenario"),
        _field("n_rings", pa.int32(), "1", "rings: one per pipeline stage that fills nodes"),
        _field("ring_nodes", pa.int32(), "node", "nodes of a ring"),
        _field("node_devices", pa.int32(), "device", "devices of a node"),
        _field("objective", pa.string(), "1", "what was made small"),
        _field("cost_hops", pa.float64(), "hop", "closed tours of all rings, between nodes of the hardware"),
        _field("lower_bound_hops", pa.float64(), "hop", "no placement has fewer; null where hops were not asked for",
               nullable=True),
        _field("proved_optimal", pa.bool_(), "1", "nothing better exists on the nodes that were free"),
        _field("method", pa.string(), "1", "how it was found"),
        _field("rings", pa.list_(pa.field("item", _NODES, nullable=False)), "1",
               "per ring its nodes in order: of ranks (ring * ring_nodes + position) * node_devices and following"),
    ]
)  # fmt: skip

SCHEMAS = {"plans.parquet": PLANS_SCHEMA, "placements.parquet": PLACEMENTS_SCHEMA}
assert tuple(SCHEMAS) == PLACED_TABLES


@dataclass(frozen=True)
class PlacedTables:
    """What is written, and what it was made with."""

    plans: Rows
    placements: Rows
    topology: str
    """Where the fabric was read."""
    fabric_sha256: str
    settings: Mapping[str, str | int | float]


def write_placed(directory: Location, tables: PlacedTables, metadata: Mapping[str, str]) -> PlacedRecord:
    """Write both tables, each whole or not at all, and give the manifest's record of them."""
    folder = directory / PLACED_FOLDER
    own = {METADATA_PREFIX + "topology": tables.topology, METADATA_PREFIX + "fabric_sha256": tables.fabric_sha256}
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    records = {}
    for name, rows in (("plans.parquet", tables.plans), ("placements.parquet", tables.placements)):
        schema = SCHEMAS[name].with_metadata({**metadata, **own})
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        path, partial = folder / name, partial_path(folder / name)
        with disk_errors(path):
            try:
                pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
                publish(partial, path)
            finally:
                with suppress(OSError):
                    partial.unlink()
            records[name] = TableRecord(n_rows=len(rows), n_bytes=path.stat().st_size, sha256=file_sha256(path))
    return PlacedRecord(
        topology=tables.topology,
        fabric_sha256=tables.fabric_sha256,
        settings=dict(tables.settings),
        plans=records["plans.parquet"],
        placements=records["placements.parquet"],
    )


def forget_placed(directory: Location) -> None:
    """Delete the tables of an earlier run, and the folder when nothing else is in it."""
    folder = directory / PLACED_FOLDER
    for path in _ours(folder):
        with suppress(FileNotFoundError):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _ours(folder: Location) -> Iterable[Location]:
    try:
        names = listed(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    partials = tuple(f".{name}." for name in PLACED_TABLES)
    return [
        folder / name
        for name in names
        if name in PLACED_TABLES or (name.startswith(partials) and name.endswith(".partial"))
    ]
