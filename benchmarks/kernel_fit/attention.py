"""Attention, forward, as inference servers call it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dlcalc.calculators import kernels
from dlcalc.specs.calibration import AttentionRates
from kernel_fit.fitting import Constant, Score, fit, third
from kernel_fit.sources import Array, Datasheet, Source

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
    fitted = third(len(rows))
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
