"""Measured runs: one CSV row each, and what it says in the cost model's own words."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlcalc.costmodel.plans import ALL_LAYERS, Plans
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.base import Quoted
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

REQUIRED = ("case", "model", "hardware", "gpus", "precision", "framework", "seq_len", "global_batch")


@dataclass(frozen=True)
class MeasuredRun:
    """One row as written, its extras parsed; empty strings are absent."""

    fields: Mapping[str, str]
    extras: Mapping[str, str]

    def text(self, key: str, default: str = "") -> str:
        return self.fields.get(key, "").strip() or default

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.text(key)
        if not value:
            if default is None:
                raise DlcalcError(f"{key} is missing")
            return default
        try:
            number = float(value)
        except ValueError as error:
            raise DlcalcError(f"{key} = {value!r} is not a number") from error
        if number != int(number):
            raise DlcalcError(f"{key} = {value!r} is not a whole number")
        return int(number)

    def number(self, key: str) -> float | None:
        try:
            return float(self.text(key)) if self.text(key) else None
        except ValueError as error:
            raise DlcalcError(f"{key} = {self.text(key)!r} is not a number") from error

    @property
    def case(self) -> str:
        return self.text("case")

    @property
    def source(self) -> str:
        return self.text("source", "unnamed")

    @property
    def out_of_memory(self) -> bool | None:
        return {"1": True, "0": False}.get(self.text("oom"))


def read_runs(path: Path) -> list[MeasuredRun]:
    """Every row of a CSV of measured runs, in order."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(_rows(csv.DictReader(file), path))
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DlcalcError(f"{path}: not a CSV of measured runs ({error})") from error


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[MeasuredRun]:
    missing = [column for column in REQUIRED if column not in (reader.fieldnames or [])]
    if missing:
        raise DlcalcError(f"{path}:1: column {missing[0]} is missing; a row needs at least {', '.join(REQUIRED)}")
    for row in reader:
        fields = {key: value or "" for key, value in row.items() if key is not None}
        yield MeasuredRun(fields, parse_extras(fields.get("extras", "")))


def parse_extras(text: str) -> dict[str, str]:
    """``k=v;k=v`` as a mapping."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def read_models(path: Path) -> dict[str, ModelSpec]:
    """Models of a YAML mapping from name to dimensions; keys that no equation reads are ignored."""
    try:
        with path.open(encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DlcalcError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DlcalcError(f"{path}: not a mapping of model names to dimensions")
    return {str(name): model_of(str(name), dims) for name, dims in data.items()}


def model_of(name: str, dims: Mapping[str, Any]) -> ModelSpec:
    """A model from the dimensions of a corpus."""
    known = {key: value for key, value in dims.items() if key in ModelSpec.model_fields and value is not None}
    if dims.get("swa_every"):
        every = int(dims["swa_every"])
        known["window_pattern"] = tuple(layer % every != every - 1 for layer in range(every))
    try:
        return ModelSpec.model_validate({**known, "name": name})
    except ValueError as error:
        raise DlcalcError(f"{name}: {error}") from error


@dataclass(frozen=True)
class RunSetting:
    """A measured run as the cost model sees it."""

    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    plan: Plans
    custom_split: tuple[int, ...] | None


RECOMPUTE = {
    "none": "none",
    "selective": "selective",
    "full": "full",
    "other:layernorm+moe_act": "norm_act",
    "other:mla_up_proj": "mla_up_proj",
}


def setting_of(run: MeasuredRun, models: Mapping[str, ModelSpec], registry: HardwareRegistry) -> RunSetting:
    """What a row says; DlcalcError with the reason if it cannot be modelled."""
    if run.text("model") not in models:
        raise DlcalcError(f"unknown model {run.text('model')!r}")
    model = _model(run, models[run.text("model")])
    profile = _profile(run)
    hardware = _hardware(run, registry)
    recipe = Recipe(
        seq_len=run.whole("seq_len"),
        global_batch=run.whole("global_batch"),
        precision=run.text("precision"),  # type: ignore[arg-type] # checked by the spec
        framework=profile,
        cuda_graphs=run.extras.get("cuda_graph", "none") in ("on", "local:full_iteration", "full_iteration"),
    )
    if recipe.precision not in hardware.precisions:
        raise DlcalcError(f"{hardware.name} has no {recipe.precision}")
    custom = _custom_split(run)
    return RunSetting(model, hardware, recipe, _plan(run, model, profile, custom), custom)


def _model(run: MeasuredRun, model: ModelSpec) -> ModelSpec:
    changes: dict[str, Any] = {}
    for key, field in (
        ("n_layers_override", "n_layers"), ("first_dense_layers_override", "first_dense_layers"),
        ("mtp", "mtp_layers"), ("max_seq", "max_seq"),
    ):  # fmt: skip
        if run.extras.get(key, "").isdigit():
            changes[field] = int(run.extras[key])
    if run.extras.get("qk_layernorm") == "1":
        changes["qk_norm"] = True
    if "n_layers" in changes and "first_dense_layers" not in changes:
        changes["first_dense_layers"] = min(model.first_dense_layers, changes["n_layers"])
    return ModelSpec.model_validate({**model.model_dump(), **changes}) if changes else model


def _hardware(run: MeasuredRun, registry: HardwareRegistry) -> HardwareSpec:
    hardware = registry.load(run.text("hardware"))
    source = f"the row {run.case}"
    node, fabric = hardware.node, hardware.fabric
    if run.text("gpus_per_node"):
        node = node.model_copy(update={"n_devices": run.whole("gpus_per_node")})
    rate = run.number("internode_gbps_per_gpu")
    if rate:
        fabric = fabric.model_copy(update={"nic_gbit_per_s_per_device": Quoted(value=rate, source=source)})
    return hardware.model_copy(update={"node": node, "fabric": fabric})


BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2, "pure": 2, "default": 4}


def _profile(run: MeasuredRun) -> FrameworkProfile:
    extras = run.extras
    changes: dict[str, Any] = {}
    if run.text("attention"):
        changes["attention"] = run.text("attention")
    if "rms_kernel" in extras:
        changes["fused_norm"] = extras["rms_kernel"] == "1"
    if extras.get("fused_ce", "0") not in ("0", "none"):
        changes["cross_entropy"] = "fused"
    if "loss_parallel" in extras:
        changes["cross_entropy"] = "parallel" if extras["loss_parallel"] == "1" else "gathered"
    if extras.get("te_op_fuser") == "1":
        changes |= {"fused_activation": True, "fused_residual": True}
    if extras.get("compile") == "0":
        changes |= {"fused_activation": False, "fused_residual": False, "fused_rope": False}
    for key, field in (
        ("grad_dtype", "grad_bytes"), ("grad_reduce", "grad_reduce_bytes"), ("reduce_dtype", "grad_reduce_bytes"),
    ):  # fmt: skip
        if extras.get(key, "").lower() in BYTES_OF:
            changes[field] = BYTES_OF[extras[key].lower()]
    if "p2p_overlap" in extras:
        changes["overlaps_stage_sends"] = extras["p2p_overlap"] == "1"
    if extras.get("precision_aware_opt") == "1":
        changes |= {"optimizer_state_bytes": 4}
    return load_framework(run.text("framework"), changes)


def _plan(run: MeasuredRun, model: ModelSpec, profile: FrameworkProfile, custom: tuple[int, ...] | None) -> Plans:
    devices = run.whole("gpus")
    tp, cp, pp, vpp = (run.whole(key, 1) for key in ("tp", "cp", "pp", "vpp"))
    if devices % (tp * cp * pp):
        raise DlcalcError(f"tp x cp x pp = {tp * cp * pp} does not divide {devices} devices")
    dp = devices // (tp * cp * pp)
    mode, layers = _recompute(run, profile)
    zero = run.whole("zero_stage", profile.zero_stages[0])
    extras = run.extras
    sequence_parallel = run.text("sequence_parallel", "true" if profile.sequence_parallel_default else "false") == "true"
    shard_group = int(extras["fsdp_shard_group"]) if extras.get("fsdp_shard_group", "").isdigit() else dp * cp
    schedule = "interleaved" if vpp > 1 and pp > 1 else "1f1b"
    return Plans.point(
        tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp if pp > 1 else 1, schedule=schedule,
        ep=run.whole("ep", 1), etp=run.whole("etp", 1),
        split=_split(run, model, pp * vpp, custom),
        micro_batch=run.whole("micro_batch", 1),
        recompute=mode, recompute_layers=layers, zero_stage=zero,
        dp_replicate=max(1, dp * cp // shard_group),
        sequence_parallel=sequence_parallel and tp > 1,
        overlap_grad=_flag(extras, ("dp_overlap_grad", "overlap_grad_reduce"), profile.overlap_grad),
        overlap_param=zero > 0 and _flag(extras, ("dp_overlap_param",), profile.overlap_param),
        overlap_tp=tp > 1 and sequence_parallel and _flag(extras, ("tp_comm_overlap", "async_tp"), profile.overlap_tp),
        overlap_ep=_flag(extras, ("a2a_overlap",), profile.overlap_ep) and run.whole("ep", 1) > 1,
        offload_layers=int(extras.get("cpu_offload_layers", "0")),
    )  # fmt: skip


def _flag(extras: Mapping[str, str], keys: tuple[str, ...], default: bool) -> bool:
    return next((extras[key] == "1" for key in keys if key in extras), default)


def _recompute(run: MeasuredRun, profile: FrameworkProfile) -> tuple[str, int]:
    written = run.text("recompute", profile.recompute_modes[0])
    if counted := re.fullmatch(r"other:full block num_layers=(\d+)", written):
        return "full", int(counted[1])
    if written.startswith("other:op_sac"):
        return "op_sac", ALL_LAYERS
    if written not in RECOMPUTE:
        raise DlcalcError(f"recompute {written!r} is not modelled")
    return RECOMPUTE[written], ALL_LAYERS


def _split(run: MeasuredRun, model: ModelSpec, n_chunks: int, custom: tuple[int, ...] | None) -> str:
    if custom is not None and len(custom) == n_chunks:
        return "custom"
    shared_out = any(run.extras.get(key) == "1" for key in ("uneven_pp", "emb_in_pp_split", "loss_in_pp_split"))
    return "embedding_and_loss" if n_chunks > 1 and (shared_out or model.n_layers % n_chunks) else "even"


def _custom_split(run: MeasuredRun) -> tuple[int, ...] | None:
    """Layers per chunk, from ``layers_per_stage`` or ``pp_layout``."""
    stages = run.extras.get("layers_per_stage", "")
    if stages:
        return tuple(int(part) for part in re.findall(r"\d+", stages)) or None
    layout = run.extras.get("pp_layout", "")
    if layout.startswith("["):
        try:
            chunks = json.loads(layout)
        except ValueError as error:
            raise DlcalcError(f"pp_layout cannot be read: {error}") from error
        return tuple(sum(part == "decoder" for part in chunk) for chunk in chunks)
    return tuple(chunk.count("t") for chunk in expand_layout(layout).split("|")) if layout else None


def expand_layout(layout: str) -> str:
    """A layout string with its repetitions written out: ``Et*3|(tt|)*2m|L`` is ``Ettt|tt|tt|m|L``."""
    plain = layout.replace(" ", "")
    while match := re.search(r"\(([^()]*)\)\*(\d+)", plain):
        plain = plain[: match.start()] + match[1] * int(match[2]) + plain[match.end() :]
    return re.sub(r"([A-Za-z])\*(\d+)", lambda m: m[1] * int(m[2]), plain)
