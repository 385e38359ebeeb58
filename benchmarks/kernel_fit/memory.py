"""Passes that are bound by memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dlcalc.calculators import kernels
from dlcalc.specs.calibration import MemoryRates
from kernel_fit.fitting import Constant, Score, fit, third
from kernel_fit.sources import Array, Datasheet, Source


def memory_table(tables: Path, source: Source) -> pd.DataFrame:
    """Quantizing bf16 to fp8 with a known scale, a kernel that only moves data: read two bytes, write one.

    The faster of two frameworks' kernels: what the memory can do, rather than what one of them left undone.
    """
    parts = []
    for framework in ("trtllm", "vllm"):
        for file in (tables / source.folder / "quantize").glob(f"{framework}/*/scale_matrix_perf.parquet"):
            rows = pd.read_parquet(file)
            parts.append(rows[rows.quant_dtype == "fp8"].groupby(["m", "k"]).latency.median())
    if not parts:
        return pd.DataFrame()
    rows = pd.concat(parts, axis=1).min(axis=1).rename("latency_ms").reset_index().astype(float)
    rows["traffic_bytes"] = 3.0 * rows.m * rows.k
    return rows[rows.traffic_bytes > 1e6].reset_index(drop=True)


def fit_memory(tables: Path, source: Source, sheet: Datasheet) -> tuple[Score, pd.DataFrame] | None:
    rows = memory_table(tables, source)
    if rows.empty:
        return None
    fitted = third(len(rows))
    measured_s = rows.latency_ms.to_numpy() * 1e-3
    traffic = rows.traffic_bytes.to_numpy()
    large = traffic > 2.0 * sheet.l2_bytes  # smaller ones stay in cache between the repetitions of a benchmark

    def estimate(constants: dict[str, float], moved: Array = traffic) -> Array:
        rates = MemoryRates.model_construct(**constants)
        return np.asarray(kernels.memory_bound_time_s(moved, rates=rates, hbm_bytes_per_s=sheet.hbm_bytes_per_s))

    found = fit(
        (Constant("hbm_fraction", 0.85, 0.3, 1.0), Constant("launch_us", 3.0, 0.5, 10.0)),
        lambda constants: estimate(constants, traffic[fitted]),
        measured_s[fitted],
        np.where(large, 1.0, 0.1)[fitted],
    )
    score = Score.of("memory-bound pass", estimate(found), measured_s, fitted, large, found)
    rows["kind"], rows["precision"], rows["fitted"] = "memory", "bf16", fitted
    return score, rows[large]
