"""All that is fitted of one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from kernel_fit.attention import fit_attention
from kernel_fit.collectives import RINGS, fit_collectives
from kernel_fit.fitting import Score, rounded
from kernel_fit.matmul import fit_matmul
from kernel_fit.memory import fit_memory
from kernel_fit.sources import (
    ACCUMULATE_EXPOSED,
    BACKWARD_OVER_FORWARD,
    CARDS,
    FABRIC,
    KERNEL_FRACTIONS,
    PADS_VALUES,
    ROOT,
    SAMPLE_ROWS,
    SEED,
    SOURCES,
    UNMEASURED_MEMORY,
    VERSION,
    Datasheet,
    generation,
)


@dataclass(frozen=True)
class DeviceFit:
    device: str
    scores: list[Score]
    sample: pd.DataFrame
    calibration: dict[str, object]


def fit_device(tables: Path, device: str) -> DeviceFit:
    source, sheet = SOURCES[device], Datasheet.read(device)
    scores, samples = [], []
    matmul: dict[str, dict[str, object]] = {}
    launch_us = None
    for precision in source.precisions:
        score, rows = fit_matmul(tables, source, sheet, precision, launch_us)
        launch_us = score.constants["launch_us"] if launch_us is None else launch_us
        matmul[precision] = {"tiles": [list(tile) for tile in source.tiles]} | score.constants
        if generation(device) in ACCUMULATE_EXPOSED:
            matmul[precision]["accumulate_exposed"] = ACCUMULATE_EXPOSED[generation(device)]
        scores.append(score)
        samples.append(sampled(rows, SAMPLE_ROWS.get(precision, SAMPLE_ROWS["other"])))
        report(device, score)

    score, rows = fit_attention(tables, source, sheet)
    scores.append(score)
    samples.append(sampled(rows, SAMPLE_ROWS["attention"]))
    report(device, score)
    forward = score.constants["rate_fraction"]
    attention = score.constants | {
        "backward_fraction": rounded(BACKWARD_OVER_FORWARD * forward),
        "launch_us": launch_us,
        "kernel_fractions": next(table for start, table in KERNEL_FRACTIONS.items() if generation(device) == start),
    }
    if generation(device) in PADS_VALUES:
        attention["pads_values"] = True

    memory = dict(UNMEASURED_MEMORY)
    fitted_memory = fit_memory(tables, source, sheet)
    if fitted_memory:
        score, rows = fitted_memory
        memory = score.constants
        scores.append(score)
        samples.append(sampled(rows, SAMPLE_ROWS["memory"]))
        report(device, score)

    if source.nccl:
        of_collectives = fit_device_collectives(tables, device)
        scores += of_collectives.scores
        samples.append(of_collectives.sample)
        collectives = of_collectives.calibration
    else:
        collectives = {
            "node_collectives": yaml.safe_load((ROOT / "configs" / f"{CARDS}.yaml").read_text())["calibration"][
                "node_collectives"
            ]
        }

    calibration: dict[str, object] = {
        "measured": True,
        "provenance": (
            f"benchmarks/fit_kernels.py on kernel measurements of {source.folder} in aiconfigurator-core {VERSION} "
            "(Apache-2.0); errors in docs/kernels.md. Backward attention and other attention kernels: ratios in "
            "shah2024 and dao2023. Fabric: assumed, no collective of the tables crosses nodes."
            + ("" if source.nccl else f" Collectives: as on {CARDS}.")
        ),
        "matmul": matmul,
        "attention": {"bf16": attention},
        "memory": memory,
        **collectives,
        "fabric_collectives": FABRIC,
    }
    return DeviceFit(device, scores, pd.concat(samples), calibration)


def fit_device_collectives(tables: Path, device: str) -> DeviceFit:
    """The collectives of one device; of its calibration ``node_collectives`` alone."""
    scores: list[Score] = []
    samples = []
    collectives: dict[str, dict[str, float]] = {}
    for operations in (RINGS, ("all_to_all",)):
        found, rows = fit_collectives(tables, device, SOURCES[device], Datasheet.read(device), operations)
        for score in found:
            collectives[score.what] = score.constants
            report(device, score)
        scores += found
        samples.append(sampled(rows, SAMPLE_ROWS["collective"] * len(operations) // 4))
    gather = collectives["all_gather"]
    collectives["send"] = {
        "bus_fraction": gather["bus_fraction"],
        "latency_us": gather["latency_us"],
        "launch_us": gather["launch_us"],
    }
    return DeviceFit(device, scores, pd.concat(samples), {"node_collectives": collectives})


def sampled(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    return rows.sample(min(count, len(rows)), random_state=SEED)


def report(device: str, score: Score) -> None:
    print(
        f"{device:12s} {score.what:24s} fitted {score.n_fitted:5d} {score.fitted[0]:5.2f} {score.fitted[1]:5.1f}   "
        f"left out {score.n_left_out:5d} {score.left_out[0]:5.2f} {score.left_out[1]:5.1f}   "
        f"{score.constants} {score.harness or ''}",
        flush=True,
    )
