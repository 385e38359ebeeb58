"""Where the kernel measurements lie, and what is known of kernels beside them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.hardware import Node

ROOT = Path(__file__).resolve().parent.parent.parent
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
PADS_VALUES = frozenset({"a100", "card"})
"""Generations whose kernels have one width for queries, keys and values: FlashAttention-2 is measured there."""
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


def generation(device: str) -> str:
    if device in ("l40s", "rtx_pro_6000"):
        return "card"
    return "a100" if device.startswith("a100") else "h" if device.startswith("h") else "b"


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
