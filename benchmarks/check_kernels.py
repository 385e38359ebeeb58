"""Hold the equations to measured kernels that no constant was fitted to, and write what came out into docs/kernels.md.

    pip install aiconfigurator-core==0.12.0 pandas     # or unzip the wheel and name its folder with --tables
    python benchmarks/check_kernels.py [--tables FOLDER] [--dry-run]

Latent attention, the experts of a layer on one device, and tokens coming back from their experts inside a node and
between nodes. A sample goes to ``tests/data/unfitted_kernels.csv``, which the tests hold the equations to.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from kernel_fit import unfitted
from kernel_fit.sources import ROOT, SEED, SOURCES, tables_folder

LEAST_SEQ, LEAST_LANES = 2048, 64
LEAST_ROWS_PER_EXPERT = 256
LEAST_TOKENS, MOST_TOKENS = 2048, 65536
SAMPLE_ROWS = 12
"""Of each kernel, device and precision."""
DISPATCHERS = {("h100", 1): "0.5.12", ("h100", 2): "0.5.6.post2", ("h100", 4): "0.5.6.post2", ("b200", 1): "0.5.12"}
"""Version of the table by device and nodes. Those of the H200 between nodes are the H100's; on eight nodes ranks waited
for each other up to 16 ms; of GB200 and GB300 the number of ranks is not told."""


@dataclass(frozen=True)
class Check:
    what: str
    device: str
    precision: str
    rows: pd.DataFrame
    """With ``latency_ms`` and ``estimated_ms``."""

    @property
    def shown(self) -> tuple[str, str]:
        """Estimated over measured: median, and the middle eight tenths."""
        low, median, high = (self.rows.estimated_ms / self.rows.latency_ms).quantile([0.1, 0.5, 0.9])
        return f"{median:.2f}", f"{low:.2f} to {high:.2f}"


def latent_attention(tables: Path, device: str) -> pd.DataFrame:
    """As TensorRT-LLM calls it; SGLang's on Hopper works on the latent vectors themselves, 3.4 times the work."""
    (file,) = (tables / SOURCES[device].folder / "mla" / "trtllm").glob("*/context_mla_perf.parquet")
    rows = pd.read_parquet(file).rename(columns={"batch_size": "batch", "isl": "seq", "num_heads": "heads"})
    rows = rows[
        (rows.kv_cache_dtype == "bfloat16") & (rows.seq >= LEAST_SEQ) & (rows.batch * rows.heads >= LEAST_LANES)
    ]
    keys = ["batch", "seq", "heads"]
    rows = rows.groupby(keys).latency.median().rename("latency_ms").reset_index().astype(float)
    seconds = unfitted.latent_attention_s(device, **{key: rows[key].to_numpy() for key in keys})
    return rows.assign(estimated_ms=1e3 * seconds)


def experts(tables: Path, device: str, precision: str) -> pd.DataFrame:
    """The quickest of the kernels that servers have for it, tokens spread evenly over all experts of one device."""
    names = {"num_tokens": "tokens", "hidden_size": "hidden", "inter_size": "width", "topk": "top_k",
             "num_experts": "n_experts"}  # fmt: skip
    parts = []
    for file in (tables / SOURCES[device].folder / "moe").glob("*/*/moe_perf.parquet"):
        rows = pd.read_parquet(file).rename(columns=names)
        alone = (rows.moe_tp_size == 1) & (rows.moe_ep_size == 1) & (rows.distribution == "balanced")
        gated = ~rows.kernel_source.str.contains("nongated")
        parts.append(rows[alone & gated & (rows.moe_dtype == SOURCES[device].precisions[precision])])
    keys = list(names.values())
    rows = pd.concat(parts).groupby(keys).latency.min().rename("latency_ms").reset_index().astype(float)
    rows = rows[rows.tokens * rows.top_k / rows.n_experts >= LEAST_ROWS_PER_EXPERT].reset_index(drop=True)
    seconds = unfitted.experts_s(device, precision, **{key: rows[key].to_numpy() for key in keys})
    return rows.assign(estimated_ms=1e3 * seconds)


def combine(tables: Path, device: str, nodes: int, version: str) -> pd.DataFrame:
    """DeepEP's combine, by as many multiprocessors as are quickest."""
    file = tables / SOURCES[device].folder / "comm" / "sglang" / version / "wideep_deepep_normal_perf.parquet"
    rows = pd.read_parquet(file)
    names = {"hidden_size": "hidden", "num_token": "tokens", "num_topk": "top_k", "num_experts": "n_experts"}
    rows = rows[(rows.node_num == nodes) & rows.num_token.between(LEAST_TOKENS, MOST_TOKENS) & (rows.num_topk >= 6)]
    rows = rows.rename(columns=names).assign(ms=1e-3 * (rows.combine_transmit_us + rows.combine_notify_us))
    rows = rows.groupby(list(names.values())).ms.min().rename("latency_ms").reset_index().astype(float)
    seconds = [
        float(unfitted.combine_s(device, nodes=nodes, **{key: getattr(row, key) for key in names.values()}))
        for row in rows.itertuples()
    ]
    return rows.assign(nodes=float(nodes), estimated_ms=1e3 * np.array(seconds))


def checks(tables: Path) -> list[Check]:
    found: list[Check] = []

    def add(what: str, device: str, precision: str, read: Callable[[], pd.DataFrame]) -> None:
        found.append(Check(what, device, precision, read()))

    large = [device for device, source in SOURCES.items() if source.nccl and device != "rtx_pro_6000"]
    for device in large:
        add("latent attention", device, "bf16", lambda device=device: latent_attention(tables, device))
    for device in large[1:]:  # of the A100 there are no kernels but those of Triton
        for precision in SOURCES[device].precisions:
            if precision != "fp8_block":  # Hopper's were not written for training's shapes: 1.6 times our dense ones
                add("experts", device, precision, lambda d=device, p=precision: experts(tables, d, p))
    for (device, nodes), version in DISPATCHERS.items():
        where = f"combine, {nodes} node{'s' * (nodes > 1)}"
        add(where, device, "bf16", lambda d=device, n=nodes, v=version: combine(tables, d, n, v))
    return found


def write_docs(found: list[Check]) -> None:
    path = ROOT / "docs" / "kernels.md"
    lines = ["", "| kernel | device | precision | shapes | estimated over measured, median | 10th to 90th percentile |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for one in found:
        median, spread = one.shown
        lines.append(f"| {one.what} | {one.device} | {one.precision} | {len(one.rows)} | **{median}** | {spread} |")
    block = re.compile(r"(<!-- unfitted -->)(.*?)(<!-- end -->)", re.DOTALL)
    text = path.read_text()
    path.write_text(block.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[3], text))


def write_sample(found: list[Check]) -> None:
    parts = [
        one.rows.sample(min(SAMPLE_ROWS, len(one.rows)), random_state=SEED)
        .drop(columns="estimated_ms")
        .assign(kind=one.what.partition(",")[0], device=one.device, precision=one.precision)
        for one in found
    ]
    columns = ["kind", "device", "precision", "batch", "seq", "heads", "nodes", "tokens", "hidden", "width", "top_k",
               "n_experts", "latency_ms"]  # fmt: skip
    pd.concat(parts).reindex(columns=columns).to_csv(
        ROOT / "tests" / "data" / "unfitted_kernels.csv", index=False, float_format="%.6g"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, help="folder systems/data of the package")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    found = checks(tables_folder(options.tables))
    for one in found:
        print(f"{one.what:20} {one.device:12} {one.precision:6} {len(one.rows):5d}", *one.shown)
    if not options.dry_run:
        write_docs(found)
        write_sample(found)


if __name__ == "__main__":
    main()
