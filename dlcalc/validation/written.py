"""A plan that was run, as a row of a CSV of measured runs: what ``dlcalc-validate`` and ``dlcalc-calibrate`` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.validation.rows import COLUMNS


def row_of_plan(
    model: ModelSpec,
    hardware: HardwareSpec,
    recipe: Recipe,
    knobs: Mapping[str, Any],
    *,
    source: str,
    case: str,
    step_time_s: float | None,
    out_of_memory: bool = False,
    custom_split: tuple[int, ...] | None = None,
) -> dict[str, str]:
    """The row of a plan, by column; what the columns have no word for (offload to the host) is left out."""
    ranks = int(knobs["dp"]) * int(knobs["cp"])
    # by the knob's own name: the trainer's switch says more when it is off (validation.profiles)
    says_overlap_tp = knobs["sequence_parallel"] and knobs["overlap_tp"] != recipe.framework.overlap_tp
    extras = {
        "schedule": knobs["schedule"] if int(knobs["pp"]) > 1 else "",
        "dp_overlap_grad": _flag(knobs["overlap_grad"]),
        "dp_overlap_param": _flag(knobs["overlap_param"]),
        "overlap_tp": _flag(knobs["overlap_tp"]) if says_overlap_tp else "",
        "cp_comm": str(knobs["cp_exchange"]) if int(knobs["cp"]) > 1 else "",
        "a2a_overlap": _flag(knobs["overlap_ep"]) if model.is_moe else "",
        "fsdp_shard_group": str(ranks // int(knobs["dp_replicate"])) if int(knobs["dp_replicate"]) > 1 else "",
        "cuda_graph": "full" if recipe.cuda_graphs else "",
        "cpu_offload_layers": str(knobs["offload_layers"]) if knobs["offload_layers"] else "",
    }
    if knobs["split"] == "embedding_and_loss":
        extras |= {"emb_in_pp_split": "1", "loss_in_pp_split": "1"}
    elif knobs["split"] == "loss":
        extras |= {"split": "loss"}
    elif knobs["split"] == "custom" and custom_split:
        extras["layers_per_stage"] = " ".join(map(str, custom_split))
    layers = int(knobs["recompute_layers"])
    recompute = f"full_layers_{layers}" if knobs["recompute"] == "full" and layers >= 0 else str(knobs["recompute"])
    said: dict[str, Any] = {
        "source": source,
        "case": case,
        "model": model.name,
        "hardware": hardware.name,
        "gpus": int(knobs["tp"]) * int(knobs["cp"]) * int(knobs["pp"]) * int(knobs["dp"]),
        "gpus_per_node": hardware.node.n_devices,
        "internode_gbps_per_gpu": f"{hardware.fabric.nic_gbit_per_s_per_device.value:g}",
        "precision": recipe.precision,
        "framework": recipe.framework.name,
        "seq_len": recipe.seq_len,
        "global_batch": recipe.global_batch,
        **{knob: knobs[knob] for knob in ("micro_batch", "tp", "pp", "cp", "vpp", "ep", "etp", "dp", "zero_stage")},
        "sequence_parallel": "true" if knobs["sequence_parallel"] else "false",
        "recompute": recompute,
        "extras": ";".join(f"{key}={value}" for key, value in extras.items() if value),
        "step_time_s": "" if step_time_s is None else f"{step_time_s:.6g}",
        "oom": "1" if out_of_memory else "0" if step_time_s is not None else "",
    }
    return {column: str(said.get(column, "")) for column in COLUMNS}


def _flag(value: object) -> str:
    return "1" if value else "0"
