"""Fit the constants of the kernel equations to published kernel measurements and write them into ``configs/``.

    pip install aiconfigurator-core==0.12.0 scipy pandas     # or unzip the wheel and name its folder with --tables
    python benchmarks/fit_kernels.py [--tables FOLDER] [--device h100 ...] [--collectives] [--dry-run]

Reads the kernel tables of aiconfigurator-core (Apache-2.0), fits a third of the shapes, scores the other two thirds,
and writes the ``calibration:`` section of ``configs/<device>.yaml``, the error tables of ``docs/kernels.md`` and the
sample in ``tests/data/kernels`` that the tests hold the equations to. With ``--collectives`` it fits and writes those
alone.

The tables come from inference servers, whose calls do more than the kernel: they quantize activations before a matmul
in low precision, and append keys and values to a cache before attention. These *harness* costs are fitted alongside
(two constants a table) and are not part of the calibration.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.optimize import minimize

from dlcalc.calculators import communication, kernels
from dlcalc.costmodel.placement import node_bytes_per_s
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.calibration import AttentionRates, CollectiveRates, MatmulRates, MemoryRates
from dlcalc.specs.hardware import Node

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.12.0"
SEED = 0
SAMPLE_ROWS = {"bf16": 150, "other": 80, "attention": 120, "collective": 100, "memory": 40}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """Where a device's measurements lie in the package."""

    folder: str
    tiles: tuple[tuple[int, int], ...]
    nccl: tuple[str, ...]
    """Versions; none: collectives are those of ``CARDS``."""
    precisions: dict[str, str] = field(default_factory=dict)
    """Precision of ours -> table's name for it."""


AMPERE_TILES = ((256, 128), (128, 256), (128, 128), (64, 64))
TILES = ((256, 128), (128, 128), (64, 64))
HOPPER = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block"}
BLACKWELL = {"bf16": "bfloat16", "fp8": "fp8", "mxfp8": "fp8_block", "nvfp4": "nvfp4"}

SOURCES = {
    "a100_80gb": Source("a100_sxm", AMPERE_TILES, ("nccl/2.27.3",), {"bf16": "bfloat16"}),
    "h100": Source("h100_sxm", TILES, ("nccl/2.29.2", "nccl/2.27.3"), HOPPER),
    "h200": Source("h200_sxm", TILES, ("nccl/2.29.2", "nccl/2.26.2"), HOPPER),
    "b200": Source("b200_sxm", TILES, ("nccl/2.29.2", "nccl/2.28.9", "nccl/2.27.3"), BLACKWELL),
    "b300": Source("b300_sxm", TILES, ("nccl/2.29.2", "nccl/2.27"), BLACKWELL),
    "gb200_nvl72": Source("gb200", TILES, ("nccl/2.29.2", "nccl/2.23"), BLACKWELL),
    "gb300_nvl72": Source("gb300", TILES, ("nccl/2.29.2", "nccl/2.27"), BLACKWELL),
    "rtx_pro_6000": Source(
        "rtx_pro_6000_server", TILES, ("nccl/2.29.2",), {"bf16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}
    ),
    "l40s": Source("l40s", TILES, (), {"bf16": "bfloat16", "fp8": "fp8"}),
}
CARDS = "rtx_pro_6000"
"""The machine without NVLink whose collectives stand for all such: in the L40S that was measured, groups of more than
two cards went through the host's memory (1.4 GB/s among eight)."""

INPUT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.03, "mxfp8": 1.03, "nvfp4": 0.56}
BACKWARD_OVER_FORWARD = 0.865
"""Rates in [shah2024] figures 5 and 6, not causal, heads of 128, 16k tokens: FlashAttention-3 561 / 648 TFLOP/s, cuDNN
516 / 595, FlashAttention-2 322 / 370; A100 in [dao2023]: 63 % / 73 % of peak."""
KERNEL_FRACTIONS = {
    # measured: FlashAttention-2 (SGLang 0.5.10). flash1 is half as fast in [dao2023] section 4.1.
    "a100": {"flash1": 0.5, "flash2": 1.0, "flash3": 1.0, "te_flash": 1.0},
    # measured: FlashAttention-3 (SGLang 0.5.14). [shah2024] causal, heads of 128, 16k: 335 and 539 against 616 TFLOP/s.
    "h": {"flash1": 0.28, "flash2": 0.55, "flash3": 1.0, "te_flash": 0.89},
    # measured: TensorRT-LLM's kernels (SGLang 0.5.14). [zadouri2026]: FlashAttention-4 1605 TFLOP/s, cuDNN up to 1.3
    # and Triton, for kernels not written for this generation, up to 2.7 times slower.
    "b": {"flash1": 0.2, "flash2": 0.37, "flash3": 0.37, "te_flash": 0.85},
    # measured: FlashInfer's, of the kind of FlashAttention-2, which later ones do not replace on these cards.
    "card": {"flash1": 0.5, "flash2": 1.0, "flash3": 1.0, "te_flash": 1.0},
}
ACCUMULATE_EXPOSED = {"b": 1.0}
"""By generation, where it is known: 39 matmuls of a B200, dense and grouped, that add to an fp32 or bf16 buffer in
https://github.com/MooreThreads/SimuMax/blob/e691807a7ef8a7eca3d4aa199c34b1591181f11b/configs/system/b200_bf16_ceperm.json
differ by 1.04 (median) of what 4 bytes an element take at the peak bandwidth."""
UNMEASURED_MEMORY = {"hbm_fraction": 0.88, "launch_us": 1.2}
"""Between the H100's and the H200's, for the A100, whose casts are not in the tables."""
FABRIC = {
    "all_gather": {"bus_fraction": 0.9, "latency_us": 3.0},
    "reduce_scatter": {"bus_fraction": 0.9, "latency_us": 3.0},
    "all_reduce": {"bus_fraction": 0.9, "latency_us": 3.0},
    "all_to_all": {"bus_fraction": 0.75, "latency_us": 3.0},
    "send": {"bus_fraction": 0.9, "latency_us": 3.0},
}
"""Not in the tables, which stay inside a node."""


@dataclass(frozen=True)
class Datasheet:
    """What the hardware file says of the device and its node."""

    peak_tflops: dict[str, float]
    n_sms: float
    hbm_bytes_per_s: float
    l2_bytes: float
    node: Node

    @staticmethod
    def read(device: str) -> Datasheet:
        raw = yaml.safe_load((ROOT / "configs" / f"{device}.yaml").read_text())
        unit = raw["device"]
        return Datasheet(
            peak_tflops={name: quoted["value"] for name, quoted in unit["peak_tflops"].items()},
            n_sms=float(unit["n_sms"]["value"]),
            hbm_bytes_per_s=unit["hbm_tb_per_s"]["value"] * 1e12,
            l2_bytes=unit["l2_mib"]["value"] * 2.0**20,
            node=load_hardware(device).node,
        )

    def peak_flops_per_s(self, precision: str) -> float:
        name = "fp8" if precision == "fp8_block" else precision
        return self.peak_tflops[name] * 1e12


# ---- fitting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """One constant of an equation: where the search starts, and where it must stay."""

    name: str
    start: float
    low: float
    high: float


def fit(
    constants: Iterable[Constant], estimate_s: Callable[[dict[str, float]], Array], measured_s: Array, weights: Array
) -> dict[str, float]:
    """The constants that minimize the mean absolute log ratio; three starts, three digits."""
    constants = tuple(constants)
    start = np.array([c.start for c in constants])
    low, high = np.array([c.low for c in constants]), np.array([c.high for c in constants])
    scale = np.where(start == 0, 1.0, start)
    weights = weights / weights.sum()

    def named(x: Array) -> dict[str, float]:
        return {c.name: float(v) for c, v in zip(constants, np.clip(x * scale, low, high), strict=True)}

    def loss(x: Array) -> float:
        outside = np.maximum(low - x * scale, x * scale - high).clip(min=0) / np.abs(scale)
        with np.errstate(all="ignore"):
            errors = np.abs(np.log(estimate_s(named(x)) / measured_s))
        return float(np.nan_to_num(weights @ errors, nan=10.0, posinf=10.0) + outside.sum())

    rng = np.random.default_rng(SEED)
    options = {"maxiter": 1200, "xatol": 1e-4, "fatol": 1e-6, "adaptive": True}
    best = None
    for attempt in range(3):
        first = start / scale * (1.0 if attempt == 0 else rng.uniform(0.6, 1.5, len(start)))
        found = minimize(loss, first, method="Nelder-Mead", options=options)
        found = minimize(loss, found.x, method="Nelder-Mead", options=options)
        best = found if best is None or found.fun < best.fun else best
    return {name: _rounded(value) for name, value in named(best.x).items()}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) > 1e-3 else 0.0


@dataclass(frozen=True)
class Score:
    """Errors of one fit, on the third it saw and on the rest."""

    what: str
    n_fitted: int
    n_left_out: int
    fitted: tuple[float, float]
    left_out: tuple[float, float]
    """Median and 90th percentile of the absolute relative error, in percent."""
    constants: dict[str, float]
    harness: dict[str, float]

    @staticmethod
    def of(
        what: str, estimated_s: Array, measured_s: Array, fitted: NDArray[np.bool_], scored: NDArray[np.bool_],
        constants: dict[str, float], harness: dict[str, float] | None = None,
    ) -> Score:  # fmt: skip
        error = 100.0 * np.abs(estimated_s / measured_s - 1.0)
        seen, unseen = error[fitted & scored], error[~fitted & scored]
        return Score(
            what, len(seen), len(unseen), _spread(seen), _spread(unseen), constants, {} if harness is None else harness
        )


def _spread(errors: Array) -> tuple[float, float]:
    return float(np.median(errors)), float(np.quantile(errors, 0.9))


def _third(n: int) -> NDArray[np.bool_]:
    return np.random.default_rng(SEED).random(n) < 1.0 / 3.0


def _one_of_each_pair(n: int) -> NDArray[np.bool_]:
    first = np.random.default_rng(SEED).random((n + 1) // 2) < 0.5
    return np.stack([first, ~first], axis=1).reshape(-1)[:n]


# ---- matmul -------------------------------------------------------------------------------------------------------

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
    for file in _newest((tables / source.folder / "gemm").glob("*/*/gemm_perf.parquet")):
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


def _newest(files: Iterable[Path]) -> list[Path]:
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
    fitted = _third(len(rows))
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


# ---- attention ----------------------------------------------------------------------------------------------------

ATTENTION_CONSTANTS = (
    Constant("rate_fraction", 0.7, 0.2, 1.0),
    Constant("softmax_width", 100.0, 0.0, 600.0),
    Constant("seq_half", 500.0, 0.0, 3000.0),
    Constant("tail_tiles", 0.4, 0.0, 4.0),
    Constant("sustained_loss", 0.15, 0.0, 1.0),
)
APPEND_CONSTANTS = (Constant("append_bytes", 9.0, 0.0, 60.0), Constant("append_us", 10.0, 0.0, 60.0))


def attention_table(tables: Path, source: Source) -> pd.DataFrame:
    """Causal bf16 attention over at least 1024 tokens, as SGLang runs it (its kernel named in the table)."""
    (file,) = (tables / source.folder / "attention" / "sglang").glob("*/context_attention_perf.parquet")
    rows = pd.read_parquet(file)
    if "window_size" not in rows:
        rows["window_size"] = 0
    rows = rows[(rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == "bfloat16") & (rows.isl >= 1024)]
    rows = rows[rows.kernel_source != "triton"]
    names = {"batch_size": "batch", "isl": "seq", "num_heads": "heads", "num_key_value_heads": "kv_heads"}
    rows = rows.rename(columns=names | {"window_size": "window"})
    keys = ["batch", "seq", "heads", "kv_heads", "head_dim", "window"]
    return rows.groupby(keys).latency.median().rename("latency_ms").reset_index().astype(float)


def attention_s(constants: dict[str, float], rows: pd.DataFrame, sheet: Datasheet) -> Array:
    column = {name: rows[name].to_numpy() for name in rows if name != "latency_ms"}
    seconds = np.empty(len(rows))
    rates = AttentionRates.model_construct(
        **{c.name: constants[c.name] for c in ATTENTION_CONSTANTS},
        launch_us=0.0,
        backward_fraction=0.5,
        kernel_fractions={},
    )
    for head_dim in np.unique(column["head_dim"]):
        at = column["head_dim"] == head_dim
        seconds[at] = kernels.attention_forward_time_s(
            column["seq"][at], column["seq"][at],
            batch=column["batch"][at], n_heads=column["heads"][at], n_kv_heads=column["kv_heads"][at],
            qk_head_dim=head_dim, v_head_dim=head_dim, window=column["window"][at], rates=rates,
            peak_flops_per_s=sheet.peak_flops_per_s("bf16"), hbm_bytes_per_s=sheet.hbm_bytes_per_s, n_sms=sheet.n_sms,
        )  # fmt: skip
    appended = column["batch"] * column["seq"] * column["kv_heads"] * column["head_dim"]
    return seconds + constants["append_bytes"] * appended / sheet.hbm_bytes_per_s + constants["append_us"] * 1e-6


def fit_attention(tables: Path, source: Source, sheet: Datasheet) -> tuple[Score, pd.DataFrame]:
    rows = attention_table(tables, source)
    fitted = _third(len(rows))
    measured_s = rows.latency_ms.to_numpy() * 1e-3
    seen = rows[fitted]
    found = fit(
        ATTENTION_CONSTANTS + APPEND_CONSTANTS,
        lambda constants: attention_s(constants, seen, sheet),
        measured_s[fitted],
        np.ones(fitted.sum()),
    )
    estimated_s = attention_s(found, rows, sheet)
    harness = {name: found.pop(name) for name in ("append_bytes", "append_us")}
    everything = np.ones(len(rows), dtype=bool)
    score = Score.of("attention bf16, forward", estimated_s, measured_s, fitted, everything, found, harness)
    rows["kind"], rows["precision"], rows["fitted"] = "attention", "bf16", fitted
    return score, rows


# ---- memory -------------------------------------------------------------------------------------------------------


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
    fitted = _third(len(rows))
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


# ---- collectives --------------------------------------------------------------------------------------------------

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
    fitted = _one_of_each_pair(len(rows))  # 39 sizes an operation: a third of them at random would leave gaps
    measured_s = rows.latency_ms.to_numpy() * 1e-3
    large = (rows.size_bytes > 2.0**20).to_numpy()
    latency = STEP if _generation(device) == "b" else next(c for c in RING_CONSTANTS if c.name == LATENCY)
    in_order = [latency if c.name == LATENCY else c for c in RING_CONSTANTS]
    rings = [c for c in in_order if operations == RINGS or c is not latency]
    wanted = [*rings, *(replace(COPY, name=f"{COPY.name} {operation}") for operation in operations)]
    if "all_reduce" in operations and _generation(device) not in ("a100", "card") and rows.n_ranks.max() > 4:
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


# ---- all of one device --------------------------------------------------------------------------------------------


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
        if _generation(device) in ACCUMULATE_EXPOSED:
            matmul[precision]["accumulate_exposed"] = ACCUMULATE_EXPOSED[_generation(device)]
        scores.append(score)
        samples.append(_sampled(rows, SAMPLE_ROWS.get(precision, SAMPLE_ROWS["other"])))
        report(device, score)

    score, rows = fit_attention(tables, source, sheet)
    scores.append(score)
    samples.append(_sampled(rows, SAMPLE_ROWS["attention"]))
    report(device, score)
    forward = score.constants["rate_fraction"]
    attention = score.constants | {
        "backward_fraction": _rounded(BACKWARD_OVER_FORWARD * forward),
        "launch_us": launch_us,
        "kernel_fractions": next(table for start, table in KERNEL_FRACTIONS.items() if _generation(device) == start),
    }

    memory = dict(UNMEASURED_MEMORY)
    fitted_memory = fit_memory(tables, source, sheet)
    if fitted_memory:
        score, rows = fitted_memory
        memory = score.constants
        scores.append(score)
        samples.append(_sampled(rows, SAMPLE_ROWS["memory"]))
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
            "shah2024 and dao2023. Fabric: assumed, no measurement crosses nodes."
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
        samples.append(_sampled(rows, SAMPLE_ROWS["collective"] * len(operations) // 4))
    gather = collectives["all_gather"]
    collectives["send"] = {
        "bus_fraction": gather["bus_fraction"],
        "latency_us": gather["latency_us"],
        "launch_us": gather["launch_us"],
    }
    return DeviceFit(device, scores, pd.concat(samples), {"node_collectives": collectives})


def _generation(device: str) -> str:
    if device in ("l40s", "rtx_pro_6000"):
        return "card"
    return "a100" if device.startswith("a100") else "h" if device.startswith("h") else "b"


def _sampled(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    return rows.sample(min(count, len(rows)), random_state=SEED)


def report(device: str, score: Score) -> None:
    print(
        f"{device:12s} {score.what:24s} fitted {score.n_fitted:5d} {score.fitted[0]:5.2f} {score.fitted[1]:5.1f}   "
        f"left out {score.n_left_out:5d} {score.left_out[0]:5.2f} {score.left_out[1]:5.1f}   "
        f"{score.constants} {score.harness or ''}",
        flush=True,
    )


# ---- writing ------------------------------------------------------------------------------------------------------


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def calibration_yaml(calibration: dict[str, object]) -> str:
    """The section as a person would write it: one line per kernel."""
    return "calibration:\n" + entries_yaml(calibration)


def entries_yaml(calibration: dict[str, object]) -> str:
    lines = []
    for key, value in calibration.items():
        if key == "provenance":
            lines.append(f"  provenance: >-\n    {value}")
        elif isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            lines.append(f"  {key}:")
            lines += [f"    {name}: {_flow(item)}" for name, item in value.items()]
        else:
            lines.append(f"  {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def write_calibration(device: str, calibration: dict[str, object]) -> None:
    """Replace the ``calibration:`` section, leaving every other line of the file as it is."""
    path = ROOT / "configs" / f"{device}.yaml"
    text = path.read_text()
    section = re.compile(r"^calibration:.*?(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
    if len(section.findall(text)) != 1:
        raise SystemExit(f"{path}: expected one calibration section")
    path.write_text(section.sub(lambda _: calibration_yaml(calibration), text))


def write_collectives(device: str, calibration: dict[str, object]) -> None:
    """Replace ``node_collectives`` within the ``calibration:`` section."""
    path = ROOT / "configs" / f"{device}.yaml"
    text = path.read_text()
    entry = re.compile(r"^  node_collectives:\n(?:    .*\n)+", re.MULTILINE)
    if len(entry.findall(text)) != 1:
        raise SystemExit(f"{path}: expected one entry node_collectives")
    path.write_text(entry.sub(lambda _: entries_yaml(calibration), text))


def write_sample(fit_of_device: DeviceFit) -> None:
    """A few hundred measured points and the harness constants that the inference servers add to them."""
    folder = ROOT / "tests" / "data" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["kind", "precision", "m", "n", "k", "batch", "seq", "heads", "kv_heads", "head_dim", "window",
               "n_ranks", "size_bytes", "traffic_bytes", "latency_ms"]  # fmt: skip
    with (folder / f"{fit_of_device.device}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in fit_of_device.sample.reindex(columns=columns).itertuples(index=False):
            writer.writerow(
                ["" if isinstance(x, float) and np.isnan(x) else f"{x:.6g}" if isinstance(x, float) else x for x in row]
            )


def write_harness(fits: list[DeviceFit]) -> None:
    path = ROOT / "tests" / "data" / "kernels" / "harness.yaml"
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    for one in fits:
        known[one.device] = {score.what: score.harness for score in one.scores if score.harness}
    path.write_text(
        "# What inference servers do around the kernel, fitted alongside: bytes per element, and a floor.\n"
        + yaml.safe_dump(known, sort_keys=True)
    )


def write_docs(fits: list[DeviceFit]) -> None:
    """Replace rows of the tables between the markers of docs/kernels.md."""
    path = ROOT / "docs" / "kernels.md"
    text = path.read_text()
    for one in fits:
        block = re.compile(rf"(<!-- fit {one.device} -->)(.*?)(<!-- end -->)", re.DOTALL)
        shown = block.search(text)
        rows = dict(re.findall(r"^(\| (?!kernel\b).+? \|)( \d.*)$", shown[2], re.MULTILINE)) if shown else {}
        rows |= {
            f"| {s.what} |": f" {s.n_fitted} | {s.fitted[0]:.1f} | {s.fitted[1]:.1f} "
            f"| {s.n_left_out} | **{s.left_out[0]:.1f}** | {s.left_out[1]:.1f} |"
            for s in one.scores
        }
        lines = [
            "",
            "| kernel | shapes fitted | median % | p90 % | shapes left out | median % | p90 % |",
            "|---|---|---|---|---|---|---|",
            *(what + figures for what, figures in rows.items()),
        ]
        text = block.sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[3], text)
    path.write_text(text)


def tables_folder(given: Path | None) -> Path:
    """The package's folder of tables, installed or unzipped."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "pip install aiconfigurator-core==0.12.0, or name its unzipped folder systems/data with --tables"
        )
    return Path(spec.origin).parent / "systems" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, help="folder systems/data of the package")
    parser.add_argument("--device", nargs="*", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--collectives", action="store_true", help="fit and write those alone")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    tables = tables_folder(options.tables)
    fits = []
    for device in options.device:
        fits.append((fit_device_collectives if options.collectives else fit_device)(tables, device))
        if options.dry_run:
            continue
        if options.collectives:
            write_collectives(device, fits[-1].calibration)
        else:
            write_calibration(device, fits[-1].calibration)
            write_sample(fits[-1])
    if not options.dry_run:
        if not options.collectives:
            write_harness(fits)
        write_docs(fits)


if __name__ == "__main__":
    main()
