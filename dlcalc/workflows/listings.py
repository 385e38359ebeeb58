"""Machines and models that can be named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlcalc.calculators import params
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.summary import HardwareRow, ModelRow
from dlcalc.specs.model_registry import load_model, model_names


def list_hardware(hardware_dirs: Sequence[Path] = ()) -> list[HardwareRow]:
    """Every machine that can be named."""
    registry = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    rows: list[HardwareRow] = []
    for name in registry.names():
        spec = registry.load(name)
        peaks = spec.device.peak_tflops
        rows.append(
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "description": spec.description,
                "devices_per_node": spec.node.n_devices,
                "hbm_gib": spec.device.hbm_gib.value,
                "hbm_tb_per_s": spec.device.hbm_tb_per_s.value,
                "bf16_tflops": peaks["bf16"].value if "bf16" in peaks else None,
                "fp8_tflops": peaks["fp8"].value if "fp8" in peaks else None,
                "link_gb_per_s": spec.node.link_gb_per_s.value,
                "nic_gbit_per_s": spec.fabric.nic_gbit_per_s_per_device.value,
                "usd_per_device_hour": spec.price.usd_per_device_hour if spec.price else None,
                "measured": spec.calibration.measured,
            }
        )
    return rows


def list_models() -> list[ModelRow]:
    """Every built-in model."""
    return [
        {
            "name": name,
            "parameters_total": float(params.total_params(model)),
            "parameters_active": float(params.active_params(model)),
            "n_layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "n_heads": model.n_heads,
            "n_experts": model.n_experts,
            "vocab_size": model.vocab_size,
        }
        for name, model in ((name, load_model(name)) for name in model_names())
    ]
