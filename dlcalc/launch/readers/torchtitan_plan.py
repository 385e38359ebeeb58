"""The knobs of a torchtitan job, whichever way it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np

from dlcalc.calculators.stages import NAMED_SPLITS, SPLITS, first_layer_count
from dlcalc.launch.readers.options import Options
from dlcalc.specs.model import ModelSpec

SCHEDULES: Mapping[str, str] = {
    "1F1B": "1f1b",
    "GPipe": "gpipe",
    "Interleaved1F1B": "interleaved",
    "ZBVZeroBubble": "zb-v",
}
NOT_MODELLED = ("LoopedBFS", "InterleavedZeroBubble", "DualPipeV", "PipelineScheduleSingle", "PipelineScheduleMulti")


@dataclass(frozen=True)
class Plan:
    """What the job says of a plan."""

    knobs: Mapping[str, int | bool | str]
    custom_split: tuple[int, ...] | None = None
    profile: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def knobs_of(options: Options, model: ModelSpec | None, chunk_layers: tuple[int, ...] | None) -> Plan:
    """The plan, recomputation apart."""
    tp = _degree(options, "tensor_parallel")
    cp, pp, ep = (_degree(options, f"{name}_parallel") for name in ("context", "pipeline", "expert"))
    split_experts = options.whole("parallelism.expert_tensor_parallel_degree", 1 if ep > 1 else tp)
    sharded = options.flag("parallelism.enable_sequence_parallel", True) and tp > 1
    overlap_tp = options.flag("compile.enable_async_tensor_parallel", False)
    data = _data(options, cp=cp, pp=pp)
    pipe = _pipeline(options, model, chunk_layers, pp=pp)
    local = options.whole("training.local_batch_size", 1)
    piece = options.whole("parallelism.pipeline_parallel_microbatch_size", 1)
    knobs = {
        "tp": tp,
        "cp": cp,
        "pp": pp,
        "ep": ep,
        "etp": split_experts if model is not None and model.is_moe else 1,
        "micro_batch": piece if pp > 1 else local,
        "recompute_layers": -1,
        "sequence_parallel": sharded,
        "overlap_tp": overlap_tp and sharded,
        "overlap_ep": False,
        "cp_exchange": "all_gather",
        "offload_optimizer": options.flag("training.enable_cpu_offload", False),
        "offload_layers": 0,
        **data.knobs,
        **pipe.knobs,
    }
    profile = {**data.profile, **_kernels(options, schedule=pipe.knobs["schedule"])}
    return Plan(knobs, pipe.custom_split, profile, (*data.notes, *pipe.notes))


def _kernels(options: Options, *, schedule: object) -> dict[str, bool]:
    """What is not fused where nothing is compiled: as told, and under a schedule that splits the backward pass."""
    if options.flag("compile.enable", True) and schedule != "zb-v":
        return {}
    return dict.fromkeys(("fused_norm", "fused_activation", "fused_residual", "fused_rope"), False)


def _degree(options: Options, name: str) -> int:
    return options.whole(f"parallelism.{name}_degree", 1)


def _data(options: Options, *, cp: int, pp: int) -> Plan:
    """Replicas, shards and what is freed between the passes: the ZeRO stage."""
    replicas = _degree(options, "data_parallel_replicate")
    written = options.given("parallelism.data_parallel_shard_degree")
    shards = None if written in (None, -1, "-1") else _degree(options, "data_parallel_shard")
    policy = options.word("parallelism.fsdp_reshard_after_forward", "default", ("default", "always", "never"))
    if shards == 1 and cp == 1 and replicas > 1:
        stage, copies = 0, 1
    else:
        # In a pipeline weights stay gathered anyhow, and so do gradients: what our profile calls ZeRO 3 there.
        stage, copies = (2 if policy == "never" and pp == 1 else 3), replicas
    profile: dict[str, Any] = {} if stage == 3 else {"zero_stages": [stage]}
    if policy == "always" and pp > 1:
        profile["gathers_once_in_pipeline"] = False
    knobs: dict[str, int | bool | str] = {
        "zero_stage": stage,
        "dp_replicate": copies,
        "overlap_grad": True,
        "overlap_param": stage > 0,
    }
    if shards is not None:
        knobs["dp"] = replicas * shards
    return Plan(knobs, profile=profile)


def _pipeline(options: Options, model: ModelSpec | None, written: tuple[int, ...] | None, *, pp: int) -> Plan:
    first = options.whole("parallelism.pipeline_parallel_first_stage_less_layers", 1, least=0)
    last = options.whole("parallelism.pipeline_parallel_last_stage_less_layers", 1, least=0)
    per_stage = options.whole("parallelism.pipeline_parallel_layers_per_stage", 0)
    name = options.word("parallelism.pipeline_parallel_schedule", "1F1B", (*SCHEDULES, *NOT_MODELLED))
    if pp == 1:
        return Plan({"schedule": "1f1b", "vpp": 1, "split": "even"})
    if name not in SCHEDULES:
        raise options.error("parallelism.pipeline_parallel_schedule", f"{name} is not modelled")
    schedule = SCHEDULES[name]
    single = schedule in ("1f1b", "gpipe")
    if model is None:
        notes = ("Without the model, the split of layers over stages is taken as even.",)
        return Plan({"schedule": schedule, "vpp": 1 if single else 2, "split": "even"}, notes=notes)
    if written is None:
        stages = pp * (1 if single else 2)
        if per_stage:
            stages = ceil((model.n_layers + first + last) / per_stage)
        written = _shared_out(model.n_layers, stages, first, last)
    _check_chunks(options, written, model, pp=pp, single=single)
    split = _split_of(written, model.n_layers)
    knobs: dict[str, int | bool | str] = {"schedule": schedule, "vpp": len(written) // pp, "split": split}
    return Plan(knobs, custom_split=written if split == "custom" else None)


def _check_chunks(options: Options, chunks: tuple[int, ...], model: ModelSpec, *, pp: int, single: bool) -> None:
    where = "parallelism.pipeline_parallel_degree"
    if len(chunks) % pp or (single and len(chunks) != pp) or (not single and len(chunks) < 2 * pp):
        wanted = f"{pp}" if single else f"a multiple of {pp} from {2 * pp}"
        raise options.error(where, f"the schedule needs {wanted} chunks of layers, not {len(chunks)}")
    if sum(chunks) != model.n_layers or min(chunks) < 0:
        raise options.error(where, f"{len(chunks)} chunks hold {sum(chunks)} layers, not the model's {model.n_layers}")


def _shared_out(n_layers: int, stages: int, first: int, last: int) -> tuple[int, ...]:
    """Torchtitan's own split: equal shares, in which the embedding and the head count as layers."""
    share, more = divmod(n_layers + first + last, max(stages, 1))
    counts = [share + (stage < more) for stage in range(stages)]
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts)


def _split_of(chunks: tuple[int, ...], n_layers: int) -> str:
    """Our name of a split, where it has one."""
    for name in NAMED_SPLITS:
        code = SPLITS.index(name)
        ends = first_layer_count(n_layers, np.arange(len(chunks) + 1.0), n_chunks=float(len(chunks)), split=float(code))
        even = name == "even" and n_layers % len(chunks)
        if not even and tuple(np.diff(ends).astype(int)) == chunks:
            return name
    return "custom"
