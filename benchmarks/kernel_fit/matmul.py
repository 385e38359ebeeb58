"""Matmuls, dense and grouped, per precision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from dlcalc.calculators import kernels
from dlcalc.specs.calibration import MatmulRates
from kernel_fit.fitting import Constant, Score, fit, third
from kernel_fit.sources import INPUT_BYTES, Array, Datasheet, Source

MATMUL_CONSTANTS = (
    Constant("rate_fraction", 0.8, 0.2, 1.0),
    Constant("tile_half", 10.0, 0.0, 400.0),
    Constant("k_half", 100.0, 0.0, 2000.0),
    Constant("wave_softness", 0.4, 0.0, 1.0),
    Constant("hbm_fraction", 0.8, 0.3, 1.0),
    Constant("exposed_fraction", 0.1, 0.0, 1.0),
    Constant("sustained_loss", 0.2, 0.0, 1.0),
    Constant("launch_us", 3.0, 0.5, 8.0),
)
CAST_CONSTANTS = (Constant("cast_bytes", 6.0, 0.0, 40.0), Constant("cast_us", 6.0, 0.0, 40.0))


def matmul_table(tables: Path, source: Source, precision: str) -> pd.DataFrame:
    """In bf16 the median of the same cuBLAS matmul measured up to three times, in lower precisions TensorRT-LLM's.

    vLLM's measurements beyond 1 ms are left out: they run at the boost clock however long they are, which only inputs
    that hardly toggle allow; training's do.
    """
    name = source.precisions[precision]
    parts = []
    for file in newest((tables / source.folder / "gemm").glob("*/*/gemm_perf.parquet")):
        framework = file.parts[-3]
        if precision != "bf16" and framework != "trtllm":
            continue
        rows = pd.read_parquet(file)
        rows = rows[(rows.gemm_dtype == name) & (rows[["m", "n", "k"]].min(axis=1) >= 128)]
        if framework == "vllm":
            rows = rows[rows.latency < 1.0]
        parts.append(rows.groupby(["m", "n", "k"]).latency.median())
    merged = pd.concat(parts, axis=1).median(axis=1).rename("latency_ms").reset_index()
    return merged.astype(float)


def newest(files: Iterable[Path]) -> list[Path]:
    """The last version of each framework, whose folder is two above the file."""
    by_framework: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.parts[-2])]):
        by_framework[file.parts[-3]] = file
    return list(by_framework.values())


def matmul_rates(constants: dict[str, float], tiles: tuple[tuple[int, int], ...]) -> MatmulRates:
    names = {c.name for c in MATMUL_CONSTANTS}
    return MatmulRates.model_construct(tiles=tiles, **{k: v for k, v in constants.items() if k in names})


def matmul_s(
    constants: dict[str, float],
    rows: pd.DataFrame,
    *,
    precision: str,
    tiles: tuple[tuple[int, int], ...],
    sheet: Datasheet,
) -> Array:
    m, n, k = (rows[name].to_numpy() for name in "mnk")
    seconds = kernels.matmul_time_s(
        m, n, k,
        rates=matmul_rates(constants, tiles),
        peak_flops_per_s=sheet.peak_flops_per_s(precision),
        hbm_bytes_per_s=sheet.hbm_bytes_per_s,
        n_sms=sheet.n_sms,
        input_bytes=INPUT_BYTES[precision],
        l2_bytes=sheet.l2_bytes,
    )  # fmt: skip
    if "cast_bytes" in constants:
        seconds = seconds + constants["cast_bytes"] * m * k / sheet.hbm_bytes_per_s + constants["cast_us"] * 1e-6
    return np.asarray(seconds)


def fit_matmul(
    tables: Path, source: Source, sheet: Datasheet, precision: str, launch_us: float | None
) -> tuple[Score, pd.DataFrame]:
    rows = matmul_table(tables, source, precision)
    fitted = third(len(rows))
    large = (rows[["m", "n", "k"]].min(axis=1) >= 512).to_numpy()
    measured_s = rows.latency_ms.to_numpy() * 1e-3
    wanted = list(MATMUL_CONSTANTS)
    fixed: dict[str, float] = {}
    if launch_us is not None:  # the floor of a kernel does not depend on the precision; casts have one of their own
        fixed = {"launch_us": launch_us}
        wanted = [c for c in wanted if c.name != "launch_us"] + list(CAST_CONSTANTS)

    seen = rows[fitted]

    def estimate(constants: dict[str, float]) -> Array:
        return matmul_s(constants | fixed, seen, precision=precision, tiles=source.tiles, sheet=sheet)

    found = fit(wanted, estimate, measured_s[fitted], np.where(large, 1.0, 0.3)[fitted]) | fixed
    estimated_s = matmul_s(found, rows, precision=precision, tiles=source.tiles, sheet=sheet)
    harness = {name: found.pop(name) for name in ("cast_bytes", "cast_us") if name in found}
    score = Score.of(f"matmul {precision}", estimated_s, measured_s, fitted, large, found, harness)
    rows["kind"], rows["precision"], rows["fitted"] = "matmul", precision, fitted
    return score, rows[large]
