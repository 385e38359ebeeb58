"""How fast a block of plans becomes rows of Parquet: rows per second on one core, and bytes per row.

    python benchmarks/write_speed.py [MILLION_ROWS]

Three kinds of rows. ``search``: what fits of the reference study (benchmarks/search_speed.py), as a search hands it
over. ``grid``: plans in the order of a space, outputs that repeat as those of neighbouring plans do. ``noise``: the
same plans with outputs of which no two are equal, the worst that a compressor can meet. The last line is a search that
keeps what fits: estimates, columns, file and hash. Seconds are of one core (process time), the quickest of five runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from search_speed import reference_study

from dlcalc.costmodel.plans import NAMES
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.results.schema import CONSTANT_COLUMNS, KNOB_COLUMNS, OUTPUT_COLUMNS, WORDS
from dlcalc.results.shard import Block, ShardHeader, ShardWriter
from dlcalc.search.exhaustive import search_block
from dlcalc.search.space import Scenario
from dlcalc.search.study import scenarios_of

BLOCK_ROWS = 2**16
AXES = {"tp": 4, "pp": 5, "dp": 9, "vpp": 5, "micro_batch": 4, "recompute_layers": 9, "zero_stage": 3, "overlap_tp": 2}
FIT_FRACTION = 0.3
MESHES = (60, 120)
"""Mesh rows of the reference study that are searched: 4.7 million plans of them fit."""
TIMES = 5


def blocks(n_rows: int, *, noise: bool) -> list[Block]:
    """Plans that fit, at random 30 % of a grid, in the grid's order."""
    rng = np.random.default_rng(7)
    made, start = [], 0
    for first in range(0, n_rows, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, n_rows - first)
        candidates = np.arange(start, start + int(1.2 * rows / FIT_FRACTION))
        index = candidates[rng.random(len(candidates)) < FIT_FRACTION][:rows]
        start = int(index[-1]) + 1
        made.append(_block(index, rng, noise=noise))
    return made


def _block(index: np.ndarray, rng: np.random.Generator, *, noise: bool) -> Block:
    places = dict(zip(AXES, np.unravel_index(index % np.prod(list(AXES.values())), tuple(AXES.values())), strict=True))
    block = {"plan_index": index}
    for column in KNOB_COLUMNS:
        place = places.get(column.name)
        block[column.name] = (np.ones(len(index)) if place is None else place.astype(np.float64)).astype(column.dtype)
    for word in WORDS:
        block[word] = (places["pp"] % 3).astype(np.int8)
    step = 10.0 + places["tp"] * 0.31 + places["micro_batch"] * 0.017 + places["overlap_tp"] * 0.005
    step = step + (rng.random(len(index)) if noise else places["recompute_layers"] * 0.003)
    memory = 4e10 * (1 + places["pp"] * 0.1 + (rng.random(len(index)) if noise else 0.0))
    values = {
        "step_time_s": step,
        "step_time_low_s": step * 0.87,
        "step_time_high_s": step * 1.15,
        "mfu": 5 / step,
        "hfu": 5 / step * (1 + places["recompute_layers"] * 0.03),
        "tokens_per_s_per_device": 3e4 / step,
        "memory_bytes": memory,
        "headroom_bytes": 8.5e10 - memory,
    }
    return block | {column.name: values[column.name] for column in OUTPUT_COLUMNS}


def searched(scenario: Scenario, n_rows: int) -> list[Block]:
    """Blocks of a search, about as many rows."""
    made: list[Block] = []
    search_block(scenario, *MESHES, keep=1000, what="feasible", rows=lambda block: made.append(dict(block)))
    ends = np.cumsum([len(block["plan_index"]) for block in made])
    return made[: int(np.searchsorted(ends, n_rows)) + 1]


def measure(fill: Callable[[ShardWriter], None]) -> tuple[float, float, float]:
    """Rows per second of one core's time and of the clock, and bytes per row; the file's hash is included."""
    header = ShardHeader(
        scenario=0,
        constants={column.name: 256 if column.kind == "constant" else "some-name" for column in CONSTANT_COLUMNS},
        names={word: NAMES[word] for word in WORDS},
        metadata={},
    )
    with tempfile.TemporaryDirectory() as directory:
        core_s, clock_s = time.process_time(), time.perf_counter()
        with ShardWriter(Path(directory), header, 0) as shard:
            fill(shard)
            n_rows = shard.n_rows
            shard.describe(start=0, stop=n_rows, n_plans=n_rows, n_fit=n_rows, refused={})
        core_s, clock_s = time.process_time() - core_s, time.perf_counter() - clock_s
    return n_rows / core_s, n_rows / clock_s, shard.record.n_bytes / n_rows


def write_all(made: list[Block], shard: ShardWriter) -> None:
    for block in made:
        shard.write(block)


def search_and_write(scenario: Scenario, shard: ShardWriter) -> None:
    search_block(scenario, *MESHES, keep=1000, what="feasible", rows=shard.write)


def main() -> None:
    """Print every kind of rows, best of a few."""
    pa.set_cpu_count(1)
    n_rows = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 2_000_000
    (scenario,) = scenarios_of(reference_study(1024), Path(), HardwareRegistry())
    rows = {
        "search": partial(write_all, searched(scenario, n_rows)),
        "grid": partial(write_all, blocks(n_rows, noise=False)),
        "noise": partial(write_all, blocks(n_rows, noise=True)),
        "search and write": partial(search_and_write, scenario),
    }
    for kind, fill in rows.items():
        per_core_s, per_s, row_bytes = max(measure(fill) for _ in range(TIMES))
        print(
            f"{kind:16}  {per_core_s / 1e6:.2f} M rows per second of one core, "
            f"{per_s / 1e6:.2f} M by the clock (disk included), {row_bytes:.1f} bytes per row"
        )


if __name__ == "__main__":
    main()
