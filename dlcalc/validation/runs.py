"""Measured runs: one CSV row each, and what it says in the cost model's own words.

A column or an ``extras`` key that is empty takes the framework profile's default. What is written in words of others is
taken for the nearest of ours, with a remark; what makes no sense is a ``DlcalcError`` that says what.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlcalc.costmodel.plans import ALL_LAYERS, Plans
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry, is_file_name
from dlcalc.specs.base import Quoted
from dlcalc.specs.framework import AttentionKernel, FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.load import config_dir
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.validation import spelling
from dlcalc.validation.layouts import expand_layout, layers_per_chunk
from dlcalc.validation.models import Models, find_model, model_of, read_models

__all__ = [
    "MeasuredRun", "Models", "RunReader", "RunSetting", "expand_layout", "model_of", "parse_extras", "read_models", "read_runs",
    "setting_of",
]  # fmt: skip

COLUMNS = (
    "source", "case", "model", "hardware", "gpus", "gpus_per_node", "internode_gbps_per_gpu", "precision", "framework", "seq_len",
    "global_batch", "micro_batch", "tp", "pp", "cp", "vpp", "ep", "etp", "dp", "zero_stage", "sequence_parallel", "recompute",
    "attention", "extras", "step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "mfu", "hfu", "memory_gib", "oom", "citation",
)  # fmt: skip

HONOURED = frozenset({
    "schedule", "uneven_pp", "emb_in_pp_split", "loss_in_pp_split", "layers_per_stage", "pp_layout",
    "n_layers_override", "first_dense_layers_override", "mtp", "qk_layernorm", "max_seq",
    "rms_kernel", "kernel", "fused_ce", "te_op_fuser", "compile", "loss_parallel",
    "dp_overlap_grad", "overlap_grad_reduce", "dp_overlap_param", "opt_step_param_gather_overlap",
    "tp_comm_overlap", "async_tp", "p2p_overlap", "a2a_overlap",
    "grad_dtype", "grad_reduce", "reduce_dtype", "mp_mode", "precision_aware_opt", "optimizer",
    "fp8_recipe", "fp4_recipe", "fp8", "cuda_graph", "moe_capacity_factor", "moe_pad_to_capacity",
    "megatron_fsdp", "fsdp_shard_group", "reshard_after_forward", "cpu_offload_layers", "memory_is", "memory_kind", "scope",
})  # fmt: skip
"""Keys of ``extras`` that change an estimate."""

WITHOUT_EFFECT = frozenset({
    "fp8_dpa", "delay_wgrad", "shared_expert_overlap", "cp_comm", "moe_dispatcher", "moe_token_drop", "force_load_balance",
    "moe_grouped_gemm", "moe_permute_fusion", "limit_all_gathers", "cpu_offload_weights", "fp8_fsdp_allgather",
})  # fmt: skip
"""Keys that describe a run, but that no term of the cost model depends on."""

LARGEST = 10**9
MOST_STAGES = 1024
MOST_CHUNKS = 4096
MAX_FILE_BYTES = 200_000_000

MemoryKind = Literal["allocated", "reserved", "device"]
"""What a measured peak counts: tensors; what the allocator holds; everything on the device."""


@dataclass(frozen=True)
class MeasuredRun:
    """One row as written, its extras parsed; empty strings are absent."""

    fields: Mapping[str, str]
    extras: Mapping[str, str]

    def text(self, key: str, default: str = "") -> str:
        return self.fields.get(key, "").strip() or default

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number that the estimate rests on."""
        value = self.text(key)
        if not value:
            if default is None:
                raise DlcalcError(f"{key} is missing")
            return default
        return whole_number(key, value, least=least)

    def number(self, key: str) -> float | None:
        """A number that the estimate rests on, None where it is not given."""
        value = self.text(key)
        if not value:
            return None
        number = _float(value)
        if number is None:
            raise DlcalcError(f"{key} = {value[:40]!r} is not a number")
        return number

    def measured(self, key: str) -> float | None:
        """A measured figure: positive and finite, or None."""
        number = _float(self.text(key)) if self.text(key) else None
        return number if number is not None and number > 0 else None

    def flag(self, *keys: str) -> bool | None:
        """The first of these extras that says yes or no."""
        answers = (spelling.switch(self.extras[key]) for key in keys if key in self.extras)
        return next((answer for answer in answers if answer is not None), None)

    @property
    def case(self) -> str:
        return self.text("case")

    @property
    def source(self) -> str:
        return self.text("source", "unnamed")

    @property
    def out_of_memory(self) -> bool | None:
        return spelling.switch(self.text("oom"))

    @property
    def is_part_of_a_step(self) -> bool:
        """Whether what was timed is less than a step (one layer)."""
        return self.extras.get("scope", "") == "one_transformer_layer"

    @property
    def measured_step_time_s(self) -> float | None:
        """As measured, or from the measured token rate."""
        if self.is_part_of_a_step:
            return None
        if step_time_s := self.measured("step_time_s"):
            return step_time_s
        rate = self.measured("tokens_per_s_per_gpu")
        sizes = [self.measured(key) for key in ("seq_len", "global_batch", "gpus")]
        if rate is None or None in sizes:
            return None
        seq_len, batch, devices = (size for size in sizes if size is not None)
        return batch * seq_len / (rate * devices)

    @property
    def measured_memory_gib(self) -> float | None:
        return self.measured("memory_gib")


def whole_number(key: str, value: str, *, least: int = 1) -> int:
    """``value`` as a count; it may be written 1,024 or 4.0."""
    number = _float(value)
    if number is None:
        raise DlcalcError(f"{key} = {value[:40]!r} is not a number")
    if number != int(number):
        raise DlcalcError(f"{key} = {value!r} is not a whole number")
    if not least <= number <= LARGEST:
        raise DlcalcError(f"{key} = {value[:40]} must lie between {least} and {LARGEST:,}")
    return int(number)


def _float(value: str) -> float | None:
    try:
        number = float(re.sub(r",(?=\d{3}\b)", "", value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# ---- the file


def read_runs(path: Path) -> list[MeasuredRun]:
    """Every row of a CSV of measured runs, in order; only a file that has no column of ours is refused."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise DlcalcError(f"{path}: is larger than {MAX_FILE_BYTES // 10**6} MB")
    longest = csv.field_size_limit(len(content) + 1)
    try:
        return list(_rows(csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")), path))
    except csv.Error as error:
        raise DlcalcError(f"{path}: not a CSV of measured runs ({error})") from error
    finally:
        csv.field_size_limit(longest)


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[MeasuredRun]:
    named = [(name or "").strip() for name in reader.fieldnames or []]
    if not set(named) & set(COLUMNS):
        raise DlcalcError(f"{path}:1: not a CSV of measured runs; its first line must name columns ({', '.join(COLUMNS[:5])} ...)")
    reader.fieldnames = named
    for row in reader:
        fields = {key: value or "" for key, value in row.items() if key is not None}
        yield MeasuredRun(fields, parse_extras(fields.get("extras", "")))


def parse_extras(text: str) -> dict[str, str]:
    """``k=v;k=v`` as a mapping."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


# ---- a row as a setting


@dataclass(frozen=True)
class RunSetting:
    """A measured run as the cost model sees it."""

    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    plan: Plans
    custom_split: tuple[int, ...] | None
    memory_kind: MemoryKind = "reserved"
    remarks: tuple[str, ...] = ()
    """What was written in other words than ours, and how it was taken."""
    group: Hashable = None
    """Equal for settings that differ in their plan alone, among those of one reader."""


def setting_of(run: MeasuredRun, models: Mapping[str, ModelSpec], registry: HardwareRegistry) -> RunSetting:
    """What a row says; DlcalcError with the reason if it cannot be modelled."""
    return RunReader(models, registry).setting(run)


@dataclass
class RunReader:
    """Turns rows into settings; rows that say the same share one model, machine and profile object."""

    models: Mapping[str, ModelSpec]
    registry: HardwareRegistry
    _found: dict[Hashable, Any] = field(default_factory=dict)

    def setting(self, run: MeasuredRun) -> RunSetting:
        """What ``run`` says; DlcalcError with the reason if it cannot be modelled."""
        remarks: list[str] = []
        model = self._model(run)
        hardware = self._hardware(run, remarks)
        mesh = _mesh(run, remarks)
        profile = self._profile(run, model, mesh, remarks)
        custom = _custom_split(run, model, mesh, remarks)
        recipe = self._once(
            ("recipe", run.text("seq_len"), run.text("global_batch"), _precision(run, hardware, remarks), id(profile), _graphs(run)[0]),
            lambda key: Recipe(
                seq_len=run.whole("seq_len"),
                global_batch=run.whole("global_batch"),
                precision=key[3],
                framework=profile,
                cuda_graphs=key[5],
            ),
        )
        return RunSetting(
            model=model,
            hardware=hardware,
            recipe=recipe,
            plan=_plan(run, model, profile, mesh, custom, remarks),
            custom_split=custom,
            memory_kind=_memory_kind(run),
            remarks=tuple(remarks),
            group=(id(model), id(hardware), id(recipe), custom),
        )

    def _once(self, key: tuple[Any, ...], make: Any) -> Any:  # noqa: ANN401 - whatever is made
        if key not in self._found:
            self._found[key] = make(key)
        return self._found[key]

    def _model(self, run: MeasuredRun) -> ModelSpec:
        name = run.text("model")
        if not name:
            raise DlcalcError("model is missing")
        changes = tuple(sorted(_model_changes(run).items()))
        return self._once(("model", name, changes), lambda _: _changed(find_model(name, self.models), dict(changes)))  # type: ignore[no-any-return]

    def _hardware(self, run: MeasuredRun, remarks: list[str]) -> HardwareSpec:
        name = run.text("hardware")
        if not name:
            raise DlcalcError("hardware is missing")
        spec, remark = self._once(("machine", name), lambda _: _machine(name, self.registry))
        if remark:
            remarks.append(remark)
        per_node = run.whole("gpus_per_node", 0)
        rate = run.number("internode_gbps_per_gpu")
        if rate is not None and not 0 < rate <= LARGEST:
            raise DlcalcError(f"internode_gbps_per_gpu = {rate:g} is no rate of a link")
        return self._once(("hardware", id(spec), per_node, rate), lambda _: _connected(spec, per_node, rate))  # type: ignore[no-any-return]

    def _profile(self, run: MeasuredRun, model: ModelSpec, mesh: Mesh, remarks: list[str]) -> FrameworkProfile:
        written = run.text("framework")
        taken = framework_of(
            run,
            known=self._once(("frameworks",), lambda _: known_frameworks()),
            splits_layers=mesh.tp * mesh.cp * mesh.pp > 1,
        )
        if taken.remark:
            remarks.append(taken.remark)
        plain_profile = self._once(("profile", taken.word), lambda _: load_framework(taken.word))
        changes = _profile_changes(run, plain_profile, model, mesh, remarks)
        return self._once(  # type: ignore[no-any-return]
            ("profile", taken.word, *sorted(changes.items())),
            lambda _: FrameworkProfile.model_validate({**plain_profile.model_dump(), **changes}),
        )


# ---- model and hardware


def _model_changes(run: MeasuredRun) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, name, least in (
        ("n_layers_override", "n_layers", 1), ("first_dense_layers_override", "first_dense_layers", 0), ("mtp", "mtp_layers", 0),
        ("max_seq", "max_seq", 1),
    ):  # fmt: skip
        if run.extras.get(key):
            changes[name] = whole_number(key, run.extras[key], least=least)
    qk_norm = run.flag("qk_layernorm")
    return changes if qk_norm is None else changes | {"qk_norm": qk_norm}


def _changed(model: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    if not changes:
        return model
    layers = changes.get("n_layers", model.n_layers)
    fewer = {"first_dense_layers": min(model.first_dense_layers, layers), **changes}
    try:
        return ModelSpec.model_validate({**model.model_dump(), **fewer})
    except ValueError as error:
        raise DlcalcError(f"model {model.name} cannot have {_listed(changes)}: {_first_line(error)}") from error


def _listed(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in changes.items())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(2, len(lines) - 1)] if lines else type(error).__name__


def _machine(name: str, registry: HardwareRegistry) -> tuple[HardwareSpec, str]:
    if is_file_name(name):
        return registry.load(name), ""
    taken = spelling.hardware_name(name, registry.names(aliases=True))
    if taken is None:
        raise DlcalcError(str(registry.unknown(name)).partition("; known:")[0])
    return registry.load(taken.word), taken.remark


def _connected(hardware: HardwareSpec, per_node: int, rate: float | None) -> HardwareSpec:
    """``hardware`` with the row's own node size (0: not given) and fabric."""
    node, fabric = hardware.node, hardware.fabric
    if per_node:
        node = node.model_copy(update={"n_devices": per_node})
    if rate is not None:
        fabric = fabric.model_copy(update={"nic_gbit_per_s_per_device": Quoted(value=rate, source="the measured run")})
    return hardware.model_copy(update={"node": node, "fabric": fabric})


def _precision(run: MeasuredRun, hardware: HardwareSpec, remarks: list[str]) -> Precision:
    written = run.text("precision")
    if not written:
        raise DlcalcError("precision is missing")
    scaling = " ".join(run.extras.get(key, "") for key in ("fp8_recipe", "fp4_recipe", "fp8"))
    taken = spelling.precision_name(written, scaling, hardware.precisions)
    if taken is None:
        raise DlcalcError(f"{hardware.name} has no precision {written[:40]}; it has {', '.join(hardware.precisions)}")
    if taken.remark:
        remarks.append(taken.remark)
    return taken.word  # type: ignore[return-value] # one of the hardware's


def _memory_kind(run: MeasuredRun) -> MemoryKind:
    """What the measured peak counts; where the row does not say, what the allocator holds."""
    said = (run.extras.get("memory_is", "") + run.extras.get("memory_kind", "")).lower()
    if "alloc" in said:
        return "allocated"
    return "device" if re.search(r"smi|device|total", said) and "reserv" not in said else "reserved"


# ---- the mesh


@dataclass(frozen=True)
class Mesh:
    """The parallel degrees of a row."""

    tp: int
    cp: int
    pp: int
    dp: int
    vpp: int
    ep: int
    etp: int


def _mesh(run: MeasuredRun, remarks: list[str]) -> Mesh:
    devices = run.whole("gpus")
    tp, cp, pp = (run.whole(key, 1) for key in ("tp", "cp", "pp"))
    if devices % (tp * cp * pp):
        raise DlcalcError(f"tp x cp x pp = {tp * cp * pp} does not divide {devices} devices")
    dp = devices // (tp * cp * pp)
    stated = run.whole("dp", dp)
    if stated != dp:
        remarks.append("dp does not agree with gpus and the other degrees; it follows from them")
    vpp = run.whole("vpp", _chunks_of_schedule(run)) if pp > 1 else 1
    if pp > MOST_STAGES or pp * vpp > MOST_CHUNKS:
        raise DlcalcError(f"pp = {pp} and vpp = {vpp}: no pipeline has more than {MOST_STAGES} stages and {MOST_CHUNKS} chunks")
    return Mesh(tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp, ep=run.whole("ep", 1), etp=run.whole("etp", 0, least=0))


def _chunks_of_schedule(run: MeasuredRun) -> int:
    """Chunks per stage of a schedule that needs several and does not say how many."""
    return 2 if re.search(r"interleaved|zb_?-?v", run.extras.get("schedule", "").lower()) else 1


# ---- the framework profile

LEGACY_ATTENTION = ("megatron_fused", "unfused")
"""Kernels that keep the scores; Megatron-LM used them before it had flash attention."""


def known_frameworks() -> frozenset[str]:
    """Names of the built-in profiles."""
    return frozenset(file.stem for file in (config_dir() / "frameworks").glob("*.yaml"))


def framework_of(run: MeasuredRun, *, known: frozenset[str], splits_layers: bool) -> spelling.Taken:
    """The profile of a run's trainer; Megatron-LM with the masked softmax kernel is that of before flash attention."""
    written = run.text("framework")
    if is_file_name(written):
        return spelling.Taken(written)
    shards_weights = run.text("zero_stage") == "3"
    taken = spelling.framework_name(written, known, shards_weights=shards_weights, splits_layers=splits_layers)
    if taken.word == "megatron" and run.text("attention") in LEGACY_ATTENTION:
        return spelling.Taken("megatron_legacy", taken.remark.replace("as megatron", "as megatron_legacy"))
    return taken

BYTES_OF = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "fp8": 1, "pure": 2, "default": 4}
OPTIMIZER_BYTES = ((r"8_?bit", 2), (r"adafactor", 1), (r"sgd|lion|muon", 4), (r"bf16|bfloat16", 4))
"""What moments take per parameter, by what an optimizer's name contains; Adam in fp32 takes the profile's."""


def _profile_changes(
    run: MeasuredRun, profile: FrameworkProfile, model: ModelSpec, mesh: Mesh, remarks: list[str]
) -> dict[str, Any]:
    """Settings of the profile that the row overrides."""
    changes: dict[str, Any] = {
        **_kernels(run, profile, remarks),
        **_numerics(run),
        **_shown_by_the_run(run, profile, mesh),
    }
    overlaps_sends = run.flag("p2p_overlap")
    if overlaps_sends is not None:
        changes["overlaps_stage_sends"] = overlaps_sends
    captured = _captured(run, model)
    if captured:
        changes["host_launch_us"] = profile.host_launch_us * (1.0 - captured)
    capacity = _float(run.extras.get("moe_capacity_factor", ""))
    if capacity is not None and 1 < capacity <= 100 and run.flag("moe_pad_to_capacity"):
        changes["routed_factor"] = capacity
    return {key: value for key, value in changes.items() if value != getattr(profile, key)}


def _kernels(run: MeasuredRun, profile: FrameworkProfile, remarks: list[str]) -> dict[str, Any]:
    extras = run.extras
    written = run.text("attention")
    if not written and re.search(r"flash|fused|torch|sdpa", extras.get("kernel", "")):
        written = extras["kernel"]
    attention = spelling.attention_name(written, AttentionKernel.__args__, profile.attention)  # type: ignore[attr-defined]
    if attention.remark:
        remarks.append(attention.remark)
    changes: dict[str, Any] = {"attention": attention.word}
    compiled = run.flag("compile")
    if compiled is not None:
        changes |= dict.fromkeys(("fused_activation", "fused_residual", "fused_rope"), compiled)
    if run.flag("te_op_fuser"):
        changes |= {"fused_activation": True, "fused_residual": True}
    fused_norm = run.flag("rms_kernel")
    if fused_norm is None and "rms_kernel" in extras.get("kernel", "").lower():
        fused_norm = True
    if fused_norm is not None:
        changes["fused_norm"] = fused_norm
    over_vocabulary = run.flag("loss_parallel")
    if over_vocabulary is not None and profile.cross_entropy != "fused":
        changes["cross_entropy"] = "parallel" if over_vocabulary else "gathered"
    if spelling.switch(extras.get("fused_ce", "0")) is not False:
        changes["cross_entropy"] = "fused"
    elif "fused_ce" in extras and profile.cross_entropy == "fused":
        changes.setdefault("cross_entropy", "parallel")
    return changes


def _numerics(run: MeasuredRun) -> dict[str, int]:
    """Bytes of gradients and of optimizer states.

    ``grad_reduce`` is Megatron's word: its buffer is reduced in the precision it is kept in. ``reduce_dtype`` and ``mp_mode`` are
    FSDP's, whose shards are added up in fp32 whatever they were sent in.
    """
    extras = {key: value.lower() for key, value in run.extras.items()}
    kept = BYTES_OF.get(extras.get("grad_dtype", ""))
    reduced = BYTES_OF.get(extras.get("grad_reduce", ""))
    sent = next((BYTES_OF[extras[key]] for key in ("reduce_dtype", "mp_mode") if extras.get(key) in BYTES_OF), None)
    changes: dict[str, int] = {}
    if kept or reduced:
        changes["grad_bytes"] = kept or reduced or 0
    if sent or reduced or kept:
        changes["grad_reduce_bytes"] = sent or reduced or kept or 0
    optimizer = extras.get("optimizer", "")
    moments = next((size for pattern, size in OPTIMIZER_BYTES if re.search(pattern, optimizer)), None)
    if moments:
        changes["optimizer_state_bytes"] = moments
    if run.flag("precision_aware_opt"):
        changes["optimizer_state_bytes"] = 4
    return changes


def _shown_by_the_run(run: MeasuredRun, profile: FrameworkProfile, mesh: Mesh) -> dict[str, bool]:
    """What the trainer can do because this run did it."""
    changes = {
        "supports_tensor": mesh.tp > 1,
        "supports_context": mesh.cp > 1,
        "supports_pipeline": mesh.pp > 1,
        "shards_gradients_in_pipeline": mesh.pp > 1 and run.text("zero_stage") in ("2", "3"),
    }
    return {key: True for key, done in changes.items() if done}


HOST_LAUNCHES = {
    False: {"attn": 0.6, "mlp": 0.4},
    True: {"attn": 0.3, "moe_router": 0.2, "moe_preprocess": 0.2, "moe": 0.7, "mlp": 0.3},
}
"""Share of a layer's kernels in each module that can be captured in a graph, dense and with experts."""


def _graphs(run: MeasuredRun) -> tuple[bool, tuple[str, ...]]:
    """Whether whole passes are replayed from a graph, and otherwise the modules that are."""
    said = run.extras.get("cuda_graph", "").lower()
    answer = spelling.switch(said) if said else False
    if answer is not None or "full" in said:
        return bool(answer) or "full" in said, ()
    modules = tuple(re.findall(r"[a-z_]+", said.rpartition(":")[2]))
    return not modules, modules


def _captured(run: MeasuredRun, model: ModelSpec) -> float:
    """Share of a layer's launches that are replayed from graphs of single modules."""
    shares = HOST_LAUNCHES[model.is_moe]
    return min(0.99, sum(shares.get(module, 0.0) for module in set(_graphs(run)[1])))


# ---- the plan


def _plan(
    run: MeasuredRun, model: ModelSpec, profile: FrameworkProfile, mesh: Mesh, custom: tuple[int, ...] | None, remarks: list[str]
) -> Plans:
    extras = run.extras
    tp, cp, pp, dp = mesh.tp, mesh.cp, mesh.pp, mesh.dp
    expert = model.is_moe
    schedule = spelling.schedule_name(extras.get("schedule", ""), pp=pp, vpp=mesh.vpp)
    redo = spelling.recompute_mode(
        run.text("recompute"), profile.recompute_modes[0], is_mla=model.is_mla, layers_per_stage=lambda: -(-model.n_layers // pp)
    )
    remarks += [remark for remark in (schedule.remark, redo.remark) if remark]
    zero = _zero_stage(run, profile)
    sharded = spelling.switch(run.text("sequence_parallel"))
    sequence_parallel = tp > 1 and (profile.sequence_parallel_default if sharded is None else sharded)
    overlap_grad = _or(run.flag("dp_overlap_grad", "overlap_grad_reduce"), profile.overlap_grad)
    overlap_param = run.flag("dp_overlap_param", "opt_step_param_gather_overlap")
    overlap_tp = _or(run.flag("tp_comm_overlap", "async_tp"), profile.overlap_tp)
    return Plans.point(
        tp=tp, cp=cp, pp=pp, dp=dp, vpp=mesh.vpp, schedule=schedule.word,
        ep=mesh.ep if expert else 1, etp=_expert_tp(mesh, profile) if expert else 1,
        split=_split(run, model, pp * mesh.vpp, custom),
        micro_batch=run.whole("micro_batch", 1),
        recompute=redo.mode, recompute_layers=_recomputed_layers(redo.layers, model, mesh),
        zero_stage=zero,
        dp_replicate=_replicas(run, dp * cp, remarks) if zero else 1,
        sequence_parallel=sequence_parallel,
        overlap_grad=overlap_grad,
        overlap_param=zero > 0 and _or(overlap_param, profile.overlap_param and (overlap_grad or zero == 3)),
        overlap_tp=sequence_parallel and overlap_tp,
        overlap_ep=expert and mesh.ep > 1 and _or(run.flag("a2a_overlap"), profile.overlap_ep),
        offload_layers=_offloaded_layers(run, model, mesh),
    )  # fmt: skip


def _or(answer: bool | None, default: bool) -> bool:
    return default if answer is None else answer


def _zero_stage(run: MeasuredRun, profile: FrameworkProfile) -> int:
    """Weights that stay gathered after the forward pass (``reshard_after_forward=0``) are ZeRO 2's."""
    fully = 3 if run.flag("megatron_fsdp") else profile.zero_stages[0]
    stage = run.whole("zero_stage", fully, least=0)
    if stage > 3:
        raise DlcalcError(f"zero_stage = {stage} must lie between 0 and 3")
    return 2 if stage == 3 and run.flag("reshard_after_forward") is False else stage


def _expert_tp(mesh: Mesh, profile: FrameworkProfile) -> int:
    """As given; otherwise Megatron's default, the tensor-parallel degree, where it divides the devices of a stage."""
    if mesh.etp:
        return mesh.etp
    stage_devices = mesh.tp * mesh.cp * mesh.dp
    return mesh.tp if profile.name.startswith("megatron") and stage_devices % (mesh.tp * mesh.ep) == 0 else 1


def _replicas(run: MeasuredRun, ranks: int, remarks: list[str]) -> int:
    """Copies of the sharded states, from how many ranks share one."""
    text = run.extras.get("fsdp_shard_group", "")
    if not text:
        return 1
    group = _float(text)
    if group is None or group < 1 or ranks % group:
        remarks.append("fsdp_shard_group does not divide the data-parallel ranks; states are sharded over all of them")
        return 1
    return int(ranks // group)


def _recomputed_layers(per_chunk: int, model: ModelSpec, mesh: Mesh) -> int:
    """Layers of a stage, of which a row counts those of one chunk."""
    layers = per_chunk * mesh.vpp
    return ALL_LAYERS if per_chunk == ALL_LAYERS or layers >= model.n_layers // mesh.pp else layers


def _offloaded_layers(run: MeasuredRun, model: ModelSpec, mesh: Mesh) -> int:
    text = run.extras.get("cpu_offload_layers", "")
    return min(whole_number("cpu_offload_layers", text, least=0), -(-model.n_layers // mesh.pp)) if text else 0


def _split(run: MeasuredRun, model: ModelSpec, n_chunks: int, custom: tuple[int, ...] | None) -> str:
    if custom is not None:
        return "custom"
    shared_out = any(run.flag(key) for key in ("uneven_pp", "emb_in_pp_split", "loss_in_pp_split"))
    return "embedding_and_loss" if n_chunks > 1 and (shared_out or model.n_layers % n_chunks) else "even"


def _custom_split(run: MeasuredRun, model: ModelSpec, mesh: Mesh, remarks: list[str]) -> tuple[int, ...] | None:
    """Layers per chunk where the row gives them and they add up."""
    layers = layers_per_chunk(run.extras, n_layers=model.n_layers, pp=mesh.pp, vpp=mesh.vpp)
    if layers is None:
        return None
    if len(layers) != mesh.pp * mesh.vpp or sum(layers) != model.n_layers:
        remarks.append("layers per stage do not add up to the model over pp x vpp; split as evenly as possible")
        return None
    return layers


def ignored_extras(runs: Iterable[MeasuredRun]) -> list[str]:
    """Keys of ``extras`` that say nothing about an estimate, sorted."""
    return sorted({key for run in runs for key in run.extras if key and key not in HONOURED and key not in WITHOUT_EFFECT})


def extras_without_effect(runs: Iterable[MeasuredRun]) -> list[str]:
    """Keys of ``extras`` that describe these runs and that no term of the cost model depends on, sorted."""
    return sorted({key for run in runs for key in run.extras if key in WITHOUT_EFFECT})
