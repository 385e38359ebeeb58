"""The framework profile of a measured run: the trainer's own, with what the row says otherwise."""

from __future__ import annotations

import re
from typing import Any, get_args

from dlcalc.calculators import launches
from dlcalc.specs.framework import AttentionKernel, FrameworkProfile
from dlcalc.specs.framework_registry import framework_names
from dlcalc.specs.model import ModelSpec
from dlcalc.validation import spelling
from dlcalc.validation.mesh import Mesh
from dlcalc.validation.rows import MeasuredRun, number_in

LEGACY_ATTENTION = ("megatron_fused", "unfused")
"""Kernels that keep the scores; Megatron-LM used them before it had flash attention."""


def known_frameworks() -> frozenset[str]:
    """Names of the built-in profiles."""
    return frozenset(framework_names())


USUAL_OF_FAMILY = {"google_tpu": "maxtext"}
"""What runs on machines that others hardly run on."""


def framework_of(run: MeasuredRun, *, known: frozenset[str], splits_layers: bool, family: str) -> spelling.Taken:
    """The profile of a run's trainer; Megatron-LM with the masked softmax kernel is that of before flash attention."""
    written = run.text("framework")
    if spelling.names_a_file(written):
        return spelling.Taken(written)
    shards_weights = run.text("zero_stage").startswith("3")
    taken = spelling.framework_name(
        written,
        known,
        shards_weights=shards_weights,
        splits_layers=splits_layers,
        usual=USUAL_OF_FAMILY.get(family, ""),
    )
    kernel = spelling.attention_name(run.text("attention"), get_args(AttentionKernel), "te_flash").word
    if taken.word == "megatron" and kernel in LEGACY_ATTENTION:
        return spelling.Taken("megatron_legacy", taken.remark.replace("as megatron", "as megatron_legacy"))
    return taken


BYTES_OF = {
    "fp32": 4,
    "float32": 4,
    "bf16": 2,
    "bfloat16": 2,
    "fp16": 2,
    "float16": 2,
    "fp8": 1,
    "pure": 2,
    "default": 4,
}
OPTIMIZER_BYTES = ((r"8_?bit", 2), (r"adafactor", 1), (r"sgd|lion|muon", 4), (r"bf16|bfloat16", 4))
"""What moments take per parameter, by what an optimizer's name contains; Adam in fp32 takes the profile's."""


def profile_changes(
    run: MeasuredRun, profile: FrameworkProfile, model: ModelSpec, mesh: Mesh, remarks: list[str]
) -> dict[str, Any]:
    """Settings of the profile that the row overrides."""
    changes: dict[str, Any] = {
        **_kernels(run, profile, remarks),
        **_numerics(run),
        **_shown_by_the_run(run, mesh),
    }
    overlaps_sends = run.flag("p2p_overlap")
    if overlaps_sends is not None:
        changes["overlaps_stage_sends"] = overlaps_sends
    if run.flag("tp_comm_overlap", "async_tp") is False:
        changes["overlaps_input_grad"] = False
    captured = _captured(run, model, profile, mesh)
    if captured:
        changes["host_launch_us"] = profile.host_launch_us * (1.0 - captured)
    dispatcher = re.sub(r"[_\-\s]", "", run.extras.get("moe_dispatcher", "").lower())
    capacity = number_in(run.extras.get("moe_capacity_factor", ""))
    if dispatcher and dispatcher != "flex":  # which names no dispatcher
        changes["dispatches_once_per_node"] = "deepep" in dispatcher or "hybridep" in dispatcher
    elif capacity is not None or run.flag("moe_token_drop"):  # Megatron drops tokens in its own all-to-all alone
        changes["dispatches_once_per_node"] = False
    if capacity is not None and 1 < capacity <= 100 and run.flag("moe_pad_to_capacity"):
        changes["routed_factor"] = capacity
    return {key: value for key, value in changes.items() if value != getattr(profile, key)}


def _kernels(run: MeasuredRun, profile: FrameworkProfile, remarks: list[str]) -> dict[str, Any]:
    extras = run.extras
    written = run.text("attention")
    if not written and re.search(r"flash|fused|torch|sdpa", extras.get("kernel", "")):
        written = extras["kernel"]
    attention = spelling.attention_name(written, get_args(AttentionKernel), profile.attention)
    if attention.remark:
        remarks.append(attention.remark)
    changes: dict[str, Any] = {"attention": attention.word}
    compiled = run.flag("compile")
    if compiled is not None:
        changes |= dict.fromkeys(("fused_norm", "fused_activation", "fused_residual", "fused_rope"), compiled)
    if run.flag("te_op_fuser"):
        changes |= {"fused_activation": True, "fused_residual": True}
    fused_norm = run.flag("rms_kernel")
    if fused_norm is None and "rms_kernel" in extras.get("kernel", "").lower():
        fused_norm = True
    if fused_norm is not None:
        changes["fused_norm"] = fused_norm
    over_vocabulary = run.flag("loss_parallel")
    if over_vocabulary is not None and profile.cross_entropy != "fused":
        sharded = "sharded" if profile.cross_entropy in ("sharded", "chunked") else "parallel"
        changes["cross_entropy"] = sharded if over_vocabulary else "gathered"
    if spelling.switch(extras.get("fused_ce", "0")) is not False:
        changes["cross_entropy"] = "fused"
    elif "fused_ce" in extras and profile.cross_entropy == "fused":
        changes.setdefault("cross_entropy", "parallel")
    return changes


def _numerics(run: MeasuredRun) -> dict[str, int]:
    """Bytes of gradients and of optimizer states.

    ``grad_reduce`` is Megatron's word: its buffer is reduced in the precision it is kept in. ``reduce_dtype`` and
    ``mp_mode`` are FSDP's, whose shards are added up in fp32 whatever they were sent in.
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


def _shown_by_the_run(run: MeasuredRun, mesh: Mesh) -> dict[str, bool]:
    """What the trainer can do because this run did it."""
    done = {
        "supports_tensor": mesh.tp > 1,
        "supports_context": mesh.cp > 1,
        "supports_pipeline": mesh.pp > 1,
        "shards_gradients_in_pipeline": mesh.pp > 1 and run.text("zero_stage") in ("2", "3"),
    }
    return dict.fromkeys((what for what, needed in done.items() if needed), True)


def captured_graphs(run: MeasuredRun) -> tuple[bool, tuple[str, ...]]:
    """Whether whole passes are replayed from a graph, and otherwise the modules that are."""
    said = run.extras.get("cuda_graph", "").lower()
    if spelling.switch(said):
        said = run.extras.get("cuda_graph_scope", said).lower()
    answer = spelling.switch(said) if said else False
    if answer is not None or "full" in said:
        return bool(answer) or "full" in said, ()
    modules = tuple(re.findall(r"[a-z_]+", said.rpartition(":")[2]))
    return not modules, modules


def _captured(run: MeasuredRun, model: ModelSpec, profile: FrameworkProfile, mesh: Mesh) -> float:
    """Share of a layer's launches that are replayed from graphs of single modules."""
    modules = frozenset(captured_graphs(run)[1])
    if not modules:
        return 0.0
    casts = 2.0 * bool(re.search(r"fp8|fp4|float8", run.text("precision").lower()))
    return launches.replayed_launches_fraction(
        model, profile, modules, local_experts=model.n_experts / mesh.ep, casts=casts
    )
