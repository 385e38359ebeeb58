"""Collectives inside a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dlcalc.calculators import communication
from dlcalc.costmodel.placement import node_bytes_per_s
from dlcalc.specs.calibration import CollectiveRates
from kernel_fit.fitting import Constant, Score, fit, one_of_each_pair
from kernel_fit.sources import Array, Datasheet, Source, generation

RING_CONSTANTS = (
    Constant("bus_fraction", 0.78, 0.3, 0.9),
    Constant("latency_us", 0.8, 0.01, 5.0),
    Constant("launch_us", 6.0, 0.0, 15.0),
    Constant("low_latency_fraction", 0.3, 0.05, 1.0),
    Constant("bandwidth_start_us", 15.0, 0.0, 60.0),
    Constant("bandwidth_latency_us", 4.0, 0.0, 20.0),
)
STEP = Constant("bandwidth_step_us", 10.0, 0.0, 40.0)
"""On Blackwell in place of ``bandwidth_latency_us``: of the two, fitted together, one comes out next to nothing there
(0 to 2 us a step beside a shortest step of 9 to 11), the other on Hopper and Ampere (0 to 0.7 us)."""
COPY = Constant("copy_fraction", 1.5, 0.3, 20.0)
IN_NETWORK_CONSTANTS = (
    Constant("in_network_fraction", 0.55, 0.3, 1.0),
    Constant("in_network_start_us", 60.0, 0.0, 150.0),
)
LATENCY = "bandwidth_latency_us"
RINGS = ("all_gather", "reduce_scatter", "all_reduce")
TABLE_NAMES = {operation: operation for operation in RINGS} | {"all_to_all": "alltoall"}
EQUATIONS = {
    "all_gather": communication.all_gather_time_s,
    "reduce_scatter": communication.reduce_scatter_time_s,
    "all_reduce": communication.all_reduce_time_s,
    "all_to_all": communication.all_to_all_time_s,
}
NO_FABRIC = CollectiveRates(bus_fraction=1.0, latency_us=1.0)


def collective_table(tables: Path, source: Source, operation: str) -> pd.DataFrame:
    """One operation's latencies by group and bytes.

    Messages of the tables count elements: as bytes of 16-bit numbers the bus bandwidth agrees with what NCCL is known
    to reach, and with the 8-bit rows.
    """
    parts = []
    for version in source.nccl:
        rows = pd.read_parquet(tables / source.folder / "comm" / version / "nccl_perf.parquet")
        rows = rows[(rows.op_name == TABLE_NAMES[operation]) & rows.nccl_dtype.isin(["half", "int8"])]
        parts.append(rows.assign(size_bytes=rows.message_size * np.where(rows.nccl_dtype == "half", 2.0, 1.0)))
    merged = pd.concat(parts)
    merged = merged[merged.size_bytes >= 2.0**16].rename(columns={"num_gpus": "n_ranks"})
    median = merged.groupby(["n_ranks", "size_bytes"]).latency.median().rename("latency_ms").reset_index().astype(float)
    return median.assign(kind=operation, precision="bf16")


def collective_rates(constants: dict[str, float], operation: str) -> dict[str, float]:
    """The constants of one operation among those of all rings, which share all but the copy and the switch."""
    own = {"copy_fraction": constants[f"copy_fraction {operation}"]}
    own |= {c.name: constants[c.name] for c in (*RING_CONSTANTS, STEP) if c.name in constants}
    if operation == "all_reduce":
        own |= {c.name: constants[c.name] for c in IN_NETWORK_CONSTANTS if c.name in constants}
    return own


def collective_s(constants: dict[str, float], rows: pd.DataFrame, sheet: Datasheet) -> Array:
    seconds = np.empty(len(rows))
    kinds = rows.kind.to_numpy()
    for operation in np.unique(kinds):
        at = kinds == operation
        n_ranks = rows.n_ranks.to_numpy()[at]
        link = communication.GroupLink(
            n_ranks=n_ranks,
            ranks_per_node=n_ranks,
            node_bytes_per_s=node_bytes_per_s(n_ranks, np.ones(1), sheet.node),
            fabric_bytes_per_s=1.0,
            fabric_latency_s=0.0,
            device_bytes_per_s=sheet.node.device_bytes_per_s,
        )
        known = {"in_network_fraction": None} | collective_rates(constants, operation)
        rates = CollectiveRates.model_construct(**known)
        seconds[at] = EQUATIONS[operation](rows.size_bytes.to_numpy()[at], link, node=rates, fabric=NO_FABRIC)
    return seconds


def fit_collectives(
    tables: Path, device: str, source: Source, sheet: Datasheet, operations: tuple[str, ...]
) -> tuple[list[Score], pd.DataFrame]:
    rows = pd.concat([collective_table(tables, source, operation) for operation in operations], ignore_index=True)
    fitted = one_of_each_pair(len(rows))  # 39 sizes an operation: a third of them at random would leave gaps
    measured_s = rows.latency_ms.to_numpy() * 1e-3
    large = (rows.size_bytes > 2.0**20).to_numpy()
    latency = STEP if generation(device) == "b" else next(c for c in RING_CONSTANTS if c.name == LATENCY)
    in_order = [latency if c.name == LATENCY else c for c in RING_CONSTANTS]
    rings = [c for c in in_order if operations == RINGS or c is not latency]
    wanted = [*rings, *(replace(COPY, name=f"{COPY.name} {operation}") for operation in operations)]
    if "all_reduce" in operations and generation(device) not in ("a100", "card") and rows.n_ranks.max() > 4:
        wanted += IN_NETWORK_CONSTANTS
    seen = rows[fitted]
    found = fit(
        wanted,
        lambda constants: collective_s(constants, seen, sheet),
        measured_s[fitted],
        np.where(large, 1.0, 0.3)[fitted],
    )
    estimated_s = collective_s(found, rows, sheet)
    rows["fitted"] = fitted
    scores = [
        Score.of(
            operation,
            estimated_s,
            measured_s,
            fitted,
            large & (rows.kind == operation).to_numpy(),
            collective_rates(found, operation),
        )
        for operation in operations
    ]
    return scores, rows[large]
