"""What a measured run says, in the cost model's own words: model, hardware, recipe and plan.

A column or an ``extras`` key that is empty takes the framework profile's default. What is written in words of others is
taken for the nearest of ours, with a remark; what makes no sense is a ``DlcalcError`` that says what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from dlcalc.calculators.stages import NAMED_SPLITS
from dlcalc.costmodel.plans import ALL_LAYERS, Plans
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.base import Quoted
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.validation import spelling
from dlcalc.validation.hardware_names import hardware_name
from dlcalc.validation.layouts import layers_per_chunk
from dlcalc.validation.mesh import Mesh, mesh_of
from dlcalc.validation.models import Models, find_model, read_models
from dlcalc.validation.profiles import captured_graphs, framework_of, known_frameworks, profile_changes
from dlcalc.validation.rows import LARGEST, MeasuredRun, number_in, read_runs, whole_number
from dlcalc.validation.sources import corrected

__all__ = ["MeasuredRun", "Models", "RunReader", "RunSetting", "read_models", "read_runs", "setting_of"]

Made = TypeVar("Made")
MemoryKind = Literal["allocated", "reserved", "device"]
"""What a measured peak counts: tensors; what the allocator holds; everything on the device."""
MOST_IN_A_HOST = 8
"""Of a machine whose hosts form a torus."""


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
    _made: dict[Hashable, object] = field(default_factory=dict)

    def setting(self, run: MeasuredRun) -> RunSetting:
        """What ``run`` says; DlcalcError with the reason if it cannot be modelled."""
        remarks: list[str] = []
        model = self._model(run)
        run = corrected(run, model.n_layers, remarks)
        hardware = self._hardware(run, remarks)
        mesh = mesh_of(run, remarks)
        profile = self._profile(run, model, hardware, mesh, remarks)
        custom = _custom_split(run, model, mesh, remarks)
        recipe = self._recipe(run, profile, _precision(run, hardware, remarks))
        return RunSetting(
            model=model,
            hardware=hardware,
            recipe=recipe,
            plan=_plan(run, model, hardware, profile, mesh, custom, remarks),
            custom_split=custom,
            memory_kind=_memory_kind(run),
            remarks=tuple(remarks),
            group=(id(model), id(hardware), id(recipe), custom),
        )

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made under ``key`` before, or now; kept, so that its id stays its own."""
        if key not in self._made:
            self._made[key] = make()
        return cast(Made, self._made[key])

    def _model(self, run: MeasuredRun) -> ModelSpec:
        name = run.text("model")
        if not name:
            raise DlcalcError("model is missing")
        changes = _model_changes(run)
        key = ("model", name, *sorted(changes.items()))
        return self._once(key, lambda: _changed(find_model(name, self.models), changes))

    def _hardware(self, run: MeasuredRun, remarks: list[str]) -> HardwareSpec:
        name = run.text("hardware")
        if not name:
            raise DlcalcError("hardware is missing")
        spec, remark = self._once(("machine", name), lambda: _machine(name, self.registry))
        if remark:
            remarks.append(remark)
        per_node = run.whole("gpus_per_node", 0, least=0)
        rate = run.number("internode_gbps_per_gpu") or None
        if rate is not None and not 0 < rate <= LARGEST:
            raise DlcalcError(f"internode_gbps_per_gpu = {rate:g} is no rate of a link")
        if 0 < per_node <= MOST_IN_A_HOST and spec.node.torus is not None and per_node < spec.node.n_devices:
            remarks.append(f"gpus_per_node = {per_node} of {spec.name} is taken as a host, of which a torus has many")
            per_node = 0
        return self._once(("hardware", id(spec), per_node, rate), lambda: _connected(spec, per_node, rate))

    def _profile(
        self, run: MeasuredRun, model: ModelSpec, hardware: HardwareSpec, mesh: Mesh, remarks: list[str]
    ) -> FrameworkProfile:
        known = self._once("frameworks", known_frameworks)
        taken = framework_of(run, known=known, splits_layers=mesh.tp * mesh.cp * mesh.pp > 1, family=hardware.family)
        if taken.remark:
            remarks.append(taken.remark)
        lacks = hardware.device.lacks_attention
        unchanged = self._once(("profile", taken.word, lacks), lambda: load_framework(taken.word).on_device(lacks))
        changes = profile_changes(run, unchanged, model, mesh, remarks)
        return self._once(
            ("profile", taken.word, lacks, *sorted(changes.items())),
            lambda: FrameworkProfile.model_validate({**unchanged.model_dump(), **changes}),
        )

    def _recipe(self, run: MeasuredRun, profile: FrameworkProfile, precision: Precision) -> Recipe:
        seq_len, global_batch = run.whole("seq_len"), run.whole("global_batch")
        cuda_graphs, _ = captured_graphs(run)
        scaling = spelling.scaling_name(
            run.extras.get("fp8_recipe", ""), run.extras.get("fp8", ""), run.text("precision")
        )
        return self._once(
            ("recipe", seq_len, global_batch, precision, id(profile), cuda_graphs, scaling),
            lambda: Recipe(
                seq_len=seq_len,
                global_batch=global_batch,
                precision=precision,
                framework=profile,
                cuda_graphs=cuda_graphs,
                scaling=scaling,
            ),
        )


# ---- model and hardware


def _model_changes(run: MeasuredRun) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, name, least in (
        ("n_layers_override", "n_layers", 1),
        ("first_dense_layers_override", "first_dense_layers", 0),
        ("mtp", "mtp_layers", 0),
        ("max_seq", "max_seq", 1),
    ):
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
    if spelling.names_a_file(name):
        return registry.load(name), ""
    taken = hardware_name(name, registry.names(aliases=True))
    if taken is None:
        raise DlcalcError(str(registry.unknown(name)).partition("; known:")[0])
    return registry.load(taken.word), taken.remark


def _connected(hardware: HardwareSpec, per_node: int, rate: float | None) -> HardwareSpec:
    """``hardware`` with the row's own node size (0: not given) and fabric."""
    node, fabric = hardware.node, hardware.fabric
    if per_node:
        node = node.with_devices(per_node)
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
    if "alloc" in said and "reserv" not in said:
        return "allocated"
    return "device" if re.search(r"smi|device|total", said) and "reserv" not in said else "reserved"


# ---- the plan


def _plan(
    run: MeasuredRun,
    model: ModelSpec,
    hardware: HardwareSpec,
    profile: FrameworkProfile,
    mesh: Mesh,
    custom: tuple[int, ...] | None,
    remarks: list[str],
) -> Plans:
    extras = run.extras
    tp, cp, pp, dp = mesh.tp, mesh.cp, mesh.pp, mesh.dp
    expert = model.is_moe
    schedule = spelling.schedule_name(extras.get("schedule", ""), pp=pp, vpp=mesh.vpp, default=profile.schedules[0])
    redo = spelling.recompute_mode(
        run.text("recompute"),
        profile.recompute_modes,
        lacks=model.not_to_recompute,
        layers_per_chunk=lambda: -(-model.n_layers // (pp * mesh.vpp)),
    )
    remarks += [remark for remark in (schedule.remark, redo.remark) if remark]
    zero = _zero_stage(run, profile)
    sharded = spelling.switch(run.text("sequence_parallel"))
    sequence_parallel = tp > 1 and (profile.sequence_parallel_default if sharded is None else sharded)
    overlap_grad = _or(run.flag("dp_overlap_grad", "overlap_grad_reduce"), profile.overlap_grad)
    overlap_param = run.flag("dp_overlap_param", "opt_step_param_gather_overlap")
    overlap_tp = _or(run.flag("overlap_tp", "tp_comm_overlap", "async_tp"), profile.overlap_tp)
    overlaps_experts = profile.overlap_ep or schedule.word == "dualpipe"  # which is made for that
    return Plans.point(
        tp=tp, cp=cp, pp=pp, dp=dp, vpp=mesh.vpp, schedule=schedule.word,
        ep=mesh.ep if expert else 1, etp=_expert_tp(mesh, profile) if expert else 1,
        split=_split(run, model, pp * mesh.vpp, custom),
        micro_batch=run.whole("micro_batch", _micro_batch(run, profile, dp)),
        recompute=redo.mode, recompute_layers=_recomputed_layers(run, redo.layers, model, mesh),
        zero_stage=zero,
        dp_replicate=_replicas(run, dp * cp, remarks, usual=_slices(hardware, mesh) if zero == 3 else 1) if zero else 1,
        sequence_parallel=sequence_parallel,
        overlap_grad=overlap_grad,
        overlap_param=zero > 0 and _or(overlap_param, profile.overlap_param and (overlap_grad or zero == 3)),
        overlap_tp=sequence_parallel and overlap_tp,
        cp_exchange=spelling.cp_exchange_name(extras.get("cp_comm", "") if cp > 1 else "", profile.cp_exchanges[0]),
        overlap_ep=expert and mesh.ep > 1 and _or(run.flag("a2a_overlap"), overlaps_experts),
        offload_optimizer=_or(run.flag("offload_optimizer"), False),
        offload_layers=_offloaded_layers(run, model, mesh),
    )  # fmt: skip


ACCUMULATED = ("grad_accum", "gradient_accumulation_steps", "gradient_accumulation", "accumulate", "microbatch_count")


def _micro_batch(run: MeasuredRun, profile: FrameworkProfile, dp: int) -> int:
    """Where the row gives none: what is left of the batch by the steps that add up, or all of it in MaxText; else 1."""
    per_rank = run.whole("global_batch") / dp
    steps = next((n for key in ACCUMULATED if (n := number_in(run.extras.get(key, ""))) and n >= 1), None)
    if steps is None and profile.name == "maxtext":
        steps = 1.0
    size = per_rank / steps if steps else 1.0
    return int(size) if size >= 1 and size == int(size) else 1


def _or(answer: bool | None, default: bool) -> bool:
    return default if answer is None else answer


def _zero_stage(run: MeasuredRun, profile: FrameworkProfile) -> int:
    """Weights that stay gathered after the forward pass (``reshard_after_forward=0``) are ZeRO 2's."""
    fully = 3 if run.flag("megatron_fsdp") else _stage_in_name(run.text("framework"), profile)
    stage = run.whole("zero_stage", fully, least=0)
    if stage > 3:
        raise DlcalcError(f"zero_stage = {stage} must lie between 0 and 3")
    return 2 if stage == 3 and run.flag("reshard_after_forward") is False else stage


def _stage_in_name(framework: str, profile: FrameworkProfile) -> int:
    """The ZeRO stage that a trainer's name has in it (DeepSpeed ZeRO-3, Megatron-FSDP, DDP), else the profile's."""
    asked = spelling.plain(framework)
    if stage := re.search(r"zero_?([0-3])\b|zero_?([0-3])(?=_)", asked):
        return int(stage[1] or stage[2])
    if re.search(r"zero_?infinity|megatron_?fsdp", asked):
        return 3
    return 0 if re.search(r"(^|_)ddp(_|$)", asked) else profile.zero_stages[0]


def _expert_tp(mesh: Mesh, profile: FrameworkProfile) -> int:
    """As given; otherwise Megatron's default, the tensor-parallel degree, where it divides the devices of a stage."""
    if mesh.etp:
        return mesh.etp
    stage_devices = mesh.tp * mesh.cp * mesh.dp
    return mesh.tp if profile.name.startswith("megatron") and stage_devices % (mesh.tp * mesh.ep) == 0 else 1


def _slices(hardware: HardwareSpec, mesh: Mesh) -> int:
    """Slices of TPUs that a job takes, each of which JAX's trainers give a copy of the weights unless told."""
    devices = mesh.tp * mesh.cp * mesh.pp * mesh.dp
    whole = hardware.family == "google_tpu" and devices % hardware.node.n_devices == 0 and mesh.ep == 1
    return devices // hardware.node.n_devices if whole else 1


def _replicas(run: MeasuredRun, ranks: int, remarks: list[str], *, usual: int) -> int:
    """Copies of the sharded states, from how many ranks share one."""
    text = run.extras.get("fsdp_shard_group", "")
    if not text:
        return usual if ranks % usual == 0 and usual < ranks else 1
    group = number_in(text)
    if group is None or group < 1 or ranks % group:
        remarks.append("fsdp_shard_group does not divide the data-parallel ranks; states are sharded over all of them")
        return 1
    return int(ranks // group)


def _recomputed_layers(run: MeasuredRun, per_chunk: int, model: ModelSpec, mesh: Mesh) -> int:
    """Layers of a chunk: as the row says in our words, or as it counts them in the trainer's."""
    if said := run.extras.get("recompute_layers", ""):
        return whole_number("recompute_layers", said, least=0)
    every = per_chunk * mesh.vpp >= model.n_layers // mesh.pp
    return ALL_LAYERS if per_chunk == ALL_LAYERS or every else per_chunk


def _offloaded_layers(run: MeasuredRun, model: ModelSpec, mesh: Mesh) -> int:
    text = run.extras.get("cpu_offload_layers", "")
    return min(whole_number("cpu_offload_layers", text, least=0), -(-model.n_layers // mesh.pp)) if text else 0


def _split(run: MeasuredRun, model: ModelSpec, n_chunks: int, custom: tuple[int, ...] | None) -> str:
    if custom is not None:
        return "custom"
    if run.extras.get("split", "") in NAMED_SPLITS:
        return run.extras["split"]
    shared_out = any(run.flag(key) for key in ("uneven_pp", "emb_in_pp_split", "loss_in_pp_split"))
    if n_chunks > 1 and run.flag("loss_in_pp_split") and not run.flag("emb_in_pp_split", "uneven_pp"):
        return "loss"
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
