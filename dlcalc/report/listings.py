"""Lists: the hardware and the models that can be named, and what a search would look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from dlcalc.report.sampled import print_sampling
from dlcalc.report.summary import (
    DryRun,
    HardwareRow,
    ModelRow,
)
from dlcalc.report.tables import Column, or_dash, table_of
from dlcalc.utils import units


def print_dry_run(counts: DryRun, console: Console) -> None:
    """What a search would look at, how long it would take and how large its result would be."""
    scenarios = counts["scenarios"]
    columns = [
        Column("scenario", [scenario["name"] for scenario in scenarios], "left", flexible=True),
        Column("plans", [units.count(scenario["n_plans"]) for scenario in scenarios]),
        Column("axes", [_axes(scenario["axes"]) for scenario in scenarios], "left", flexible=True),
    ]
    console.print(table_of(columns, console.width))
    if "sampling" in counts:
        print_sampling(counts, counts["sampling"], console)
        return
    console.print(
        Text(
            f"{counts['study']}: {units.count(counts['n_plans'])} plans, about {units.duration(counts['seconds'])}, "
            f"at most about {units.size(counts['result_bytes'])} in {counts['result']}; nothing was written"
        )
    )


def _axes(axes: Mapping[str, int]) -> str:
    return " x ".join(f"{number} {axis.replace('_', ' ')}" for axis, number in axes.items() if number > 1) or "1 plan"


def print_hardware(rows: Sequence[HardwareRow], console: Console) -> None:
    """The hardware that can be named in a space file."""
    columns = [
        Column("hardware", [row["name"] for row in rows], "left"),
        Column("per node", [str(row["devices_per_node"]) for row in rows], optional=3),
        Column("HBM GiB", [units.significant(row["hbm_gib"]) for row in rows]),
        Column("TB/s", [units.significant(row["hbm_tb_per_s"]) for row in rows], optional=5),
        Column("bf16 TFLOP/s", [or_dash(row["bf16_tflops"], units.count) for row in rows]),
        Column("fp8", [or_dash(row["fp8_tflops"], units.count) for row in rows], optional=4),
        Column("node GB/s", [units.significant(row["link_gb_per_s"]) for row in rows], optional=1),
        Column("NIC Gbit/s", [units.significant(row["nic_gbit_per_s"]) for row in rows], optional=1),
        Column("$/device-hour", [or_dash(row["usd_per_device_hour"], "{:.2f}".format) for row in rows], optional=2),
        Column("calibration", ["measured" if row["measured"] else "datasheet" for row in rows], "left", optional=6),
        Column("also called", [", ".join(row["aliases"]) for row in rows], "left", optional=7, flexible=True),
    ]
    console.print(table_of(columns, console.width))
    console.print(Text("Peaks are dense; links are per device and direction.", style="dim"))


def print_models(rows: Sequence[ModelRow], console: Console) -> None:
    """The models that can be named in a space file."""
    columns = [
        Column("model", [row["name"] for row in rows], "left"),
        Column("parameters", [units.short_count(row["parameters_total"]) for row in rows]),
        Column("active", [units.short_count(row["parameters_active"]) for row in rows], optional=1),
        Column("layers", [str(row["n_layers"]) for row in rows]),
        Column("hidden", [str(row["hidden_size"]) for row in rows], optional=2),
        Column("heads", [str(row["n_heads"]) for row in rows], optional=3),
        Column("experts", [str(row["n_experts"] or "-") for row in rows], optional=4),
        Column("vocabulary", [units.count(row["vocab_size"]) for row in rows], optional=5),
    ]
    console.print(table_of(columns, console.width))
