"""The columns of a result: the schema is the documentation of the file.

One row per plan. Three kinds of column: what holds for the whole scenario (so that one SQL query over a
directory can tell scenarios apart), the knobs of the plan, and what the cost model says of it. Every field
carries its unit and its meaning as metadata, and the unit is in the name of every quantity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning."""

ROW_GROUP_ROWS = 2**18
"""Rows buffered before they are written; about 40 MB."""

METADATA_PREFIX = "dlcalc."

Kind = Literal["label", "constant", "index", "whole", "word", "switch", "quantity"]
"""label and constant: one word or whole number for the whole file; index: position in the scenario's space;
whole, word, switch: a knob that is a number, a name or on/off; quantity: what was estimated."""

_ARROW: Mapping[Kind, pa.DataType] = {
    "label": pa.dictionary(pa.int32(), pa.string()),
    "constant": pa.int32(),
    "index": pa.int64(),
    "whole": pa.int32(),
    "word": pa.dictionary(pa.int32(), pa.string()),
    "switch": pa.bool_(),
    "quantity": pa.float64(),
}
_NUMPY: Mapping[Kind, DTypeLike] = {
    "label": np.int32,
    "constant": np.int32,
    "index": np.int64,
    "whole": np.int32,
    "word": np.int32,
    "switch": np.bool_,
    "quantity": np.float64,
}


@dataclass(frozen=True)
class Column:
    """One column: its name, what kind of value it holds, its unit, and what it means."""

    name: str
    kind: Kind
    unit: str
    meaning: str

    @property
    def arrow_type(self) -> pa.DataType:
        return _ARROW[self.kind]

    @property
    def dtype(self) -> DTypeLike:
        """Of the buffer a block is copied into; words and labels are codes."""
        return _NUMPY[self.kind]

    @property
    def field(self) -> pa.Field:
        metadata = {"unit": self.unit, "description": self.meaning}
        return pa.field(self.name, self.arrow_type, nullable=False, metadata=metadata)


CONSTANT_COLUMNS = (
    Column("scenario", "label", "1", "name of the scenario"),
    Column("model", "label", "1", "name of the model"),
    Column("hardware", "label", "1", "name of the hardware"),
    Column("devices", "constant", "device", "devices of the scenario"),
    Column("precision", "label", "1", "precision of the linear layers"),
    Column("framework", "label", "1", "name of the framework profile"),
    Column("seq_len", "constant", "token", "tokens of one sequence"),
    Column("global_batch", "constant", "sequence", "sequences of one optimizer step"),
)

KNOB_COLUMNS = (
    Column("tp", "whole", "1", "tensor parallel degree"),
    Column("cp", "whole", "1", "context parallel degree"),
    Column("pp", "whole", "1", "pipeline parallel degree"),
    Column("dp", "whole", "1", "data parallel degree"),
    Column("ep", "whole", "1", "expert parallel degree"),
    Column("etp", "whole", "1", "tensor parallel degree of the experts"),
    Column("vpp", "whole", "1", "virtual stages (model chunks) per pipeline rank"),
    Column("schedule", "word", "1", "pipeline schedule"),
    Column("micro_batch", "whole", "sequence", "sequences of one micro-batch on one data parallel rank"),
    Column("recompute", "word", "1", "which activations are recomputed in backward"),
    Column("recompute_layers", "whole", "layer", "layers recomputed of a chunk; -1 = all of them, -2 = stage by stage"),
    Column("zero_stage", "whole", "1", "ZeRO stage: 0 nothing sharded, 1 optimizer state, 2 + gradients, 3 + weights"),
    Column("dp_replicate", "whole", "1", "copies of the sharded state over data parallel ranks (HSDP)"),
    Column("sequence_parallel", "switch", "1", "norms and residuals sharded over the tensor parallel ranks"),
    Column("overlap_grad", "switch", "1", "gradient reduction behind backward"),
    Column("overlap_param", "switch", "1", "parameter gather behind forward"),
    Column("overlap_tp", "switch", "1", "tensor parallel communication behind matmuls"),
    Column("overlap_ep", "switch", "1", "expert all-to-all behind compute"),
    Column("cp_exchange", "word", "1", "what context parallel ranks exchange: ring, all_to_all or all_gather"),
    Column("offload_optimizer", "switch", "1", "optimizer state and step on the host"),
    Column("offload_layers", "whole", "layer", "layers per device whose activations go to the host"),
    Column("split", "word", "1", "how layers are split over pipeline stages"),
)

OUTPUT_COLUMNS = (
    Column("step_time_s", "quantity", "s", "time of one optimizer step"),
    Column("step_time_low_s", "quantity", "s", "lower end of the 80 % interval of the step time"),
    Column("step_time_high_s", "quantity", "s", "upper end of the 80 % interval of the step time"),
    Column("mfu", "quantity", "1", "model FLOPs over peak, in the recipe's convention"),
    Column("hfu", "quantity", "1", "hardware FLOPs, recomputation included, over peak"),
    Column("tokens_per_s_per_device", "quantity", "token/s", "tokens trained per second and device"),
    Column("memory_bytes", "quantity", "B", "peak memory of the fullest device"),
    Column("headroom_bytes", "quantity", "B", "usable memory of a device less memory_bytes"),
)

COLUMNS = (*CONSTANT_COLUMNS, Column("plan_index", "index", "1", "position of the plan in its scenario's space"),
           *KNOB_COLUMNS, *OUTPUT_COLUMNS)  # fmt: skip

BLOCK_COLUMNS = tuple(column for column in COLUMNS if column not in CONSTANT_COLUMNS)
"""What a block of plans must bring along."""

COLUMN_NAMES = tuple(column.name for column in COLUMNS)
KNOBS = tuple(column.name for column in KNOB_COLUMNS)
WORDS = tuple(column.name for column in KNOB_COLUMNS if column.kind == "word")
SWITCHES = tuple(column.name for column in KNOB_COLUMNS if column.kind == "switch")

SCHEMA = pa.schema([column.field for column in COLUMNS])

# How columns are stored; chosen for speed first, size second, on the rows of real searches and of a plain grid
# (benchmarks/write_speed.py). Neighbouring plans repeat whole numbers, which LZ4 shrinks to nothing in a third of
# zstd's time. Hardly two plans share a quantity, so there a dictionary would only cost; bytes of like weight lie side
# by side, and zstd at its fastest takes what is easily had: harder tries cost more time than the bytes they save.
DICTIONARY_ENCODED = [column.name for column in COLUMNS if column.kind in ("label", "word")]
COLUMN_ENCODING = {
    column.name: "DELTA_BINARY_PACKED" if column.kind == "index" else "BYTE_STREAM_SPLIT"
    for column in COLUMNS
    if column.kind in ("index", "quantity")
}
COMPRESSION = {column.name: "zstd" if column.kind == "quantity" else "lz4" for column in COLUMNS}
ZSTD_LEVEL = {column.name: -20 for column in COLUMNS if column.kind == "quantity"}
PAGE_BATCH_ROWS = 2**16
"""Rows that are encoded at a time."""

# Statistics where a reader can leave out row groups by them: what differs between files; the mesh, which is the
# outermost axis of a space (every value of the axes inside comes up in every row group); and what plans are ranked by.
OUTERMOST = ("tp", "cp", "pp", "dp", "ep", "etp")
RANKED_BY = ("step_time_s", "mfu", "memory_bytes", "headroom_bytes")
WITH_STATISTICS = [
    column.name
    for column in COLUMNS
    if column.kind in ("constant", "index") or column.name in OUTERMOST or column.name in RANKED_BY
]


def schema_problem(found: pa.Schema) -> str | None:
    """Why ``found`` is not the schema of a result, or None when it is."""
    missing = [name for name in COLUMN_NAMES if name not in found.names]
    if missing:
        return f"column {missing[0]} is missing"
    for column in COLUMNS:
        kind = found.field(column.name).type
        if not kind.equals(column.arrow_type):
            return f"column {column.name} is {kind}, not {column.arrow_type}"
    return None
