"""``measured.csv``: the job as a measured run whose step time is still to be filled in, for ``dlcalc-calibrate``.

The columns are those of configs/measured. A model, machine or trainer's profile that is not built in, or that was
changed, lies beside the table as a file and is named by it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import yaml

from dlcalc.costmodel.plans import ALL_LAYERS
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import is_file_name, load_hardware
from dlcalc.launch.job import Job
from dlcalc.launch.megatron.options import modules_of
from dlcalc.specs.base import Spec
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model

TABLE = "measured.csv"
MODEL_FILE, HARDWARE_FILE, FRAMEWORK_FILE = "model.yaml", "hardware.yaml", "framework.yaml"


@dataclass(frozen=True)
class MeasuredTable:
    """The table and the files it names."""

    hardware: str
    """What ``dlcalc-calibrate --hardware`` is given, in the folder of the table."""
    files: Mapping[str, str] = field(default_factory=dict)


def measured_table(job: Job) -> MeasuredTable:
    """One row, its measured columns empty."""
    files: dict[str, str] = {}
    model = _named(job.model, job.model.name, MODEL_FILE, files)
    hardware = _named(job.hardware, job.hardware.name, HARDWARE_FILE, files)
    framework = _named(job.recipe.framework, job.recipe.framework.name, FRAMEWORK_FILE, files)
    plan, recipe = job.plan, job.recipe
    row = {
        "source": "dlcalc-launch",
        "case": job.name,
        "model": model,
        "hardware": hardware,
        "gpus": job.devices,
        "precision": recipe.precision,
        "framework": framework,
        "seq_len": recipe.seq_len,
        "global_batch": recipe.global_batch,
        "micro_batch": plan.micro_batch,
        "tp": plan.tp,
        "pp": plan.pp,
        "cp": plan.cp,
        "vpp": plan.vpp,
        "ep": plan.ep,
        "etp": plan.etp,
        "dp": plan.dp,
        "zero_stage": plan.zero_stage,
        "sequence_parallel": _switch(plan.sequence_parallel),
        "recompute": _recompute(plan.recompute),
        "extras": ";".join(f"{key}={value}" for key, value in _extras(job).items()),
        "step_time_s": "",
        "memory_gib": "",
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, row, lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return MeasuredTable(hardware, {TABLE: text.getvalue(), **files})


def _recompute(mode: str) -> str:
    """The table's word for a mode: Megatron's modules, where that is what it is made of."""
    modules = modules_of(mode)
    return mode if mode == "selective" or not modules else f"other:{'+'.join(modules)}"


def _extras(job: Job) -> dict[str, str | int]:
    plan = job.plan
    told: dict[str, str | int] = {"overlap_tp": _switch(plan.overlap_tp), "dp_overlap_grad": _switch(plan.overlap_grad)}
    told["dp_overlap_param"] = _switch(plan.overlap_param)
    if plan.pp > 1:
        told["schedule"] = plan.schedule
        told |= {"layers_per_stage": " ".join(map(str, job.chunk_layers))} if plan.split == "custom" else {}
        told |= {"split": plan.split} if plan.split != "custom" else {}
    if plan.recompute_layers != ALL_LAYERS:
        told["recompute_layers"] = plan.recompute_layers
    if plan.cp > 1:
        told["cp_comm"] = plan.cp_exchange
    if plan.ep > 1:
        told["a2a_overlap"] = _switch(plan.overlap_ep)
    if plan.dp_replicate > 1:
        told["fsdp_shard_group"] = plan.dp * plan.cp // plan.dp_replicate
    if plan.offload_optimizer:
        told["offload_optimizer"] = "1"
    if plan.offload_layers:
        told["cpu_offload_layers"] = plan.offload_layers
    if job.recipe.cuda_graphs:
        told["cuda_graph"] = "1"
    if job.recipe.scaling != "tensor":
        told["fp8_recipe"] = job.recipe.scaling
    return told


def _switch(on: bool) -> str:
    return "1" if on else "0"


def _named(spec: Spec, name: str, file: str, files: dict[str, str]) -> str:
    """The name of ``spec`` if that finds it, otherwise the file it is written to."""
    loaders: Mapping[str, Callable[[str], Spec]] = {
        MODEL_FILE: load_model,
        HARDWARE_FILE: load_hardware,
        FRAMEWORK_FILE: load_framework,
    }
    try:
        if not is_file_name(name) and loaders[file](name) == spec:
            return name
    except DlcalcError:
        pass
    content = spec.model_dump(mode="json")
    told = {key: value for key, value in content.items() if value is not None}
    files[file] = str(yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=120))
    return file
