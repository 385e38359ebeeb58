"""From the words of a run file to what they stand for: names resolved, defaults filled in. Knows no lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dlcalc.calculators.stages import EVEN, first_layer_count
from dlcalc.costmodel.anatomy.exchanges import bucket_elements
from dlcalc.costmodel.data_parallel import by_layer
from dlcalc.costmodel.plans import LAYER_WORDS, PER_STAGE, Plans
from dlcalc.errors import DlcalcError, FieldError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.run import Knob, Run
from dlcalc.search.space import default_profile_knobs
from dlcalc.search.study import adapted, located, resolved_recipes
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import MfuConvention, Recipe
from dlcalc.specs.run import (
    SAME_KNOB,
    CheckpointingType,
    ClusterSection,
    HardwareSection,
    ModelSection,
    PerformanceSection,
    RunSpec,
)
from dlcalc.specs.space import DEFAULT_FRAMEWORK, Cluster

MIB = 2.0**20


def resolved(
    spec: RunSpec,
    name: str,
    written: Mapping[str, Any],
    folder: Path,
    registry: HardwareRegistry,
    model: ModelSpec | None = None,
) -> Run:
    """What ``spec`` stands for; ``model`` where it is known already."""
    notes: list[str] = []
    model = model or _model_of(spec, name, folder)
    wanted = spec.hardware.node_type if isinstance(spec.hardware, HardwareSection) else spec.hardware
    cluster = spec.cluster or ClusterSection()
    hardware = adapted(
        registry.load(located(wanted, folder)),
        Cluster(
            devices=(cluster.devices or 1,),
            node_devices=cluster.node_devices,
            nic_gbit_per_s_per_device=cluster.nic_gbit_per_s_per_device,
            usd_per_device_hour=cluster.usd_per_device_hour,
        ),
    )
    recipe = _recipe_of(spec, folder, notes).on(hardware)
    knobs = _knobs_of(spec, model, recipe.framework, notes)
    knobs, custom_split = _split_of(spec, model, knobs, notes)
    most = custom_split or (-(-model.n_layers // int(float(knobs["pp"]) * float(knobs["vpp"]))),)
    knobs = _recompute_by_stage(recipe.stage_recompute, knobs, most)
    run = Run(
        name=name,
        written=written,
        model=model,
        hardware=hardware,
        recipe=recipe,
        plan=Plans.point(**knobs),
        custom_split=custom_split,
        memory_headroom=spec.memory_headroom,
        cross_dc=spec.cross_dc,
    )
    if spec.cross_dc is not None and spec.cross_dc.n_dcs > float(knobs["dp"]):
        raise DlcalcError(
            f"cross_dc: {spec.cross_dc.n_dcs} data centres need at least as many data-parallel replicas; "
            f"dp = {knobs['dp']:g}"
        )
    if spec.cross_dc is not None and float(knobs["dp"]) % spec.cross_dc.n_dcs:
        notes.append(f"dp = {knobs['dp']:g} does not spread evenly over {spec.cross_dc.n_dcs} data centres")
    cut = _with_buckets(run, spec)
    if cut is not run and bool(by_layer(run.estimate().kept, run.recipe.framework)):
        notes.append("layers are exchanged one by one where weights are sharded, whatever the file says of buckets")
    return replace(cut, notes=tuple(notes))


def _model_of(spec: RunSpec, name: str, folder: Path) -> ModelSpec:
    if isinstance(spec.model, str):
        return load_model(located(spec.model, folder))
    given = spec.model
    seq_len = spec.data.seqlen if spec.data else spec.recipe.seq_len if spec.recipe else 1
    moe: dict[str, Any] = {}
    if given.moe is not None:
        shared = given.moe.shared_expert_inter_sz
        moe = {
            "n_experts": given.moe.n_experts,
            "top_k": given.moe.experts_per_token,
            "expert_ffn_hidden_size": given.moe.expert_inter_sz,
            "n_shared_experts": int(shared > 0),
            "shared_ffn_hidden_size": shared,
            "moe_pattern": _spread(given.n_layers, round(given.moe.moe_frequency * given.n_layers)),
        }
    return ModelSpec(
        name=name,
        n_layers=given.n_layers,
        hidden_size=given.hidden_sz,
        n_heads=given.n_q_heads,
        n_kv_heads=given.n_kv_heads,
        head_dim=given.head_dim,
        ffn_hidden_size=given.inter_sz,
        vocab_size=given.vocab_sz,
        max_seq=seq_len,
        gated_mlp=given.glu,
        tied_embeddings=given.tie_embeddings,
        learned_positions=not given.rotary_embeds,
        **moe,
    )


def _spread(n_layers: int, n_moe: int) -> tuple[bool, ...]:
    """Which of the layers are mixtures of experts: the last of every so many."""
    return tuple((layer + 1) * n_moe // n_layers > layer * n_moe // n_layers for layer in range(n_layers))


def _recipe_of(spec: RunSpec, folder: Path, notes: list[str]) -> Recipe:
    profile_changes: dict[str, Any] = {}
    if isinstance(spec.model, ModelSection):
        profile_changes["dropout"] = spec.model.dropout
        if spec.model.moe is not None:
            capacity = spec.model.moe.capacity_factor
            profile_changes["routed_factor"] = max(1.0, float(capacity))
            if capacity < 1:
                notes.append(f"capacity_factor = {capacity:g} drops tokens; counted as 1, as if none were dropped")
    if spec.recipe is not None:
        merged = spec.recipe.model_copy(update={"profile": {**profile_changes, **spec.recipe.profile}})
        return resolved_recipes(merged, folder)[0]
    assert spec.data is not None
    performance = spec.performance or PerformanceSection()
    precision: Precision = performance.precision or "bf16"
    convention: MfuConvention = performance.mfu_convention or "full_attention"
    return Recipe(
        seq_len=spec.data.seqlen,
        global_batch=spec.data.gbs,
        precision=precision,
        framework=load_framework(located(performance.framework or DEFAULT_FRAMEWORK, folder), profile_changes),
        mfu_convention=convention,
    )


# ---- knobs --------------------------------------------------------------------------------------------------------

DEGREES = ("tp", "cp", "pp", "ep", "etp", "vpp", "micro_batch", "dp_replicate")


def _knobs_of(spec: RunSpec, model: ModelSpec, profile: FrameworkProfile, notes: list[str]) -> dict[str, Knob]:
    """Every knob: what is written, in either vocabulary, then the framework's default."""
    said = _said(spec, profile, notes)
    knobs: dict[str, Knob] = {**dict.fromkeys(DEGREES, 1), **default_profile_knobs(profile), **said}
    _no_experts(model, knobs, notes)
    knobs["dp"] = _replicas(spec, knobs)
    tp, pp, vpp = (int(float(knobs[knob])) for knob in ("tp", "pp", "vpp"))
    if vpp > 1 and pp == 1:
        notes.append(f"vpp = {vpp} means nothing without a pipeline; counted as 1")
        knobs["vpp"] = vpp = 1
    knobs.setdefault("schedule", "interleaved" if vpp > 1 else "1f1b")
    if knobs["schedule"] == "zb-v" and "vpp" not in said:
        knobs["vpp"] = 2
    if said.get("sequence_parallel") and tp == 1:
        notes.append("sequence parallelism means nothing at tp = 1; counted as off")
        knobs["sequence_parallel"] = 0
    knobs.setdefault("sequence_parallel", float(profile.sequence_parallel_default and tp > 1))
    if "overlap_param" not in said:
        knobs["overlap_param"] = float(
            profile.overlap_param and bool(knobs["zero_stage"]) and bool(knobs["overlap_grad"])
        )
    knobs.setdefault("overlap_tp", float(profile.overlap_tp and bool(knobs["sequence_parallel"])))
    knobs.setdefault("overlap_ep", float(profile.overlap_ep and float(knobs["ep"]) > 1))
    return knobs


def _said(spec: RunSpec, profile: FrameworkProfile, notes: list[str]) -> dict[str, Knob]:
    """Knobs that the file names, by the words of a plan."""
    said: dict[str, Knob] = {}
    for (section, key), knob in SAME_KNOB.items():
        written = getattr(spec, section)
        if written is not None and key in written.model_fields_set and knob != "recompute":
            value = getattr(written, key)
            said |= {} if value is None else {knob: value}
    if spec.performance is not None:
        said["recompute"] = _recompute_of(spec.performance.activation_checkpointing_type, profile, notes)
    if isinstance(spec.model, ModelSection) and spec.model.moe is not None:
        said["etp"] = spec.model.moe.expert_tp_degree
    if spec.plan is not None:
        given = spec.plan.model_dump(exclude_none=True)
        said |= {knob: LAYER_WORDS.get(value, value) for knob, value in given.items()}
    return {knob: float(value) if isinstance(value, bool) else value for knob, value in said.items()}


def _recompute_of(kind: CheckpointingType, profile: FrameworkProfile, notes: list[str]) -> str:
    """Our word for what is recomputed.

    super-selective keeps neither scores nor the outputs of norms and activation functions. Flash attention keeps no
    scores whatever is recomputed, so what is left is ``norm_act``; where attention stores its scores, they are by far
    the larger part: ``selective``.
    """
    if kind != "super-selective":
        return kind
    stores_scores = profile.attention in ("unfused", "megatron_fused")
    meant = "selective" if stores_scores else "norm_act"
    notes.append(f"super-selective recomputation is estimated as {meant}")
    return meant


def _no_experts(model: ModelSpec, knobs: dict[str, Knob], notes: list[str]) -> None:
    for knob in ("ep", "etp"):
        if not model.is_moe and float(knobs[knob]) > 1:
            notes.append(f"{knob} = {knobs[knob]} means nothing without experts; counted as 1")
            knobs[knob] = 1


def _replicas(spec: RunSpec, knobs: Mapping[str, Knob]) -> int:
    """``dp`` as written, or what the devices leave for it."""
    apart = int(float(knobs["tp"]) * float(knobs["cp"]) * float(knobs["pp"]))
    devices = spec.cluster.devices if spec.cluster else None
    dp = knobs.get("dp")
    if dp is None:
        if devices is None:
            raise DlcalcError(
                "dp is missing; give it, or cluster: {devices: ...}, of which it is what tp, cp and pp leave"
            )
        if devices % apart:
            raise DlcalcError(f"tp x cp x pp = {apart} does not divide the {devices} devices of the cluster")
        return devices // apart
    if devices is not None and int(float(dp)) * apart != devices:
        raise DlcalcError(
            f"tp x cp x pp x dp = {int(float(dp)) * apart}, but the cluster has {devices} devices; "
            f"leave out dp or devices"
        )
    return int(float(dp))


def _recompute_by_stage(
    given: tuple[int, ...] | None, knobs: dict[str, Knob], chunk_layers: tuple[int, ...]
) -> dict[str, Knob]:
    """Layers recomputed stage by stage, where the recipe gives them and the plan does not say otherwise.

    ``chunk_layers`` are the layers of every chunk, or of the largest.
    """
    knobs = {**({"recompute": "full", "recompute_layers": PER_STAGE} if given is not None else {}), **knobs}
    if knobs.get("recompute_layers") != PER_STAGE:
        return knobs
    if given is None:
        raise DlcalcError("recompute_layers: per_stage needs recipe.stage_recompute, the layers of each stage")
    if len(given) != knobs["pp"]:
        raise FieldError(("stage_recompute",), f"{len(given)} stages, but pp = {knobs['pp']}")
    for stage, count in enumerate(given):
        most = max(chunk_layers[stage :: len(given)] or chunk_layers)
        if count > most:
            text = f"stage {stage} recomputes {count} layers of a chunk, which has no more than {most}"
            raise FieldError(("stage_recompute", stage), text)
    return knobs


def _split_of(
    spec: RunSpec, model: ModelSpec, knobs: dict[str, Knob], notes: list[str]
) -> tuple[dict[str, Knob], tuple[int, ...] | None]:
    """How layers are cut into chunks: as told, else evenly, else as evenly as whole layers allow."""
    n_chunks = int(float(knobs["pp"]) * float(knobs["vpp"]))
    custom = spec.recipe.custom_split if spec.recipe else None
    split = knobs.get("split", "custom" if custom else None)
    if split == "custom":
        if custom is None:
            raise DlcalcError("split: custom needs recipe.custom_split, the layers of each chunk")
        if len(custom) != n_chunks or sum(custom) != model.n_layers:
            raise DlcalcError(
                f"custom_split: {len(custom)} chunks of {sum(custom)} layers in all, "
                f"but pp x vpp = {n_chunks} and {model.name} has {model.n_layers} layers"
            )
        return {**knobs, "split": "custom"}, custom
    if split is not None or model.n_layers % n_chunks == 0 or n_chunks > model.n_layers:
        return {**knobs, "split": split or "even"}, None
    chunk = np.arange(n_chunks + 1.0)
    cut = first_layer_count(model.n_layers, chunk, n_chunks=n_chunks, split=EVEN)
    nearly_even = tuple(int(n) for n in np.diff(cut))
    few, many = min(nearly_even), max(nearly_even)
    notes.append(f"{model.n_layers} layers do not split evenly over {n_chunks} pipeline chunks: {few} or {many} each")
    return {**knobs, "split": "custom"}, nearly_even


def _with_buckets(run: Run, spec: RunSpec) -> Run:
    """Buckets as large as the file says: a number of them, or their size."""
    wanted = spec.parallelism
    if wanted is None or (wanted.n_param_buckets is None and wanted.bucket_size_mb is None):
        return run
    if wanted.bucket_size_mb is not None:
        size = wanted.bucket_size_mb * 1e6 / run.recipe.framework.grad_reduce_bytes
    else:
        size = bucket_elements(run.estimate(), int(wanted.n_param_buckets or 1))
    said = {"bucket_elements": size, "bucket_elements_per_rank": 0.0, "buckets_first_chunk": False}
    profile = run.recipe.framework.model_copy(update=said)
    return replace(run, recipe=run.recipe.model_copy(update={"framework": profile}))
