"""A DeepSpeed JSON in our words. It says nothing of the model, the sequence or the number of devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlcalc.errors import Problem, SpecError
from dlcalc.launch.imported import Imported
from dlcalc.launch.readers.options import Options, from_mapping
from dlcalc.specs.hardware import Precision

TYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ZERO = "zero_optimization"
KNOWN_ZERO = frozenset(
    f"{ZERO}.{name}"
    for name in [
        "contiguous_gradients",
        "reduce_scatter",
        "allgather_partitions",
        "allgather_bucket_size",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
        "sub_group_size",
        "round_robin_gradients",
    ]
)


def read(text: str, file: Path) -> Imported:
    """What the JSON tells DeepSpeed to do."""
    written = from_mapping(text, file.with_suffix(".json") if text.lstrip().startswith("{") else file)
    values = {name: value for name, value in written.values.items() if value != "auto"}  # left to transformers
    options = Options(file, values, written.line_of)
    knobs, notes = _knobs(options)
    precision = _precision(options)
    global_batch = options.whole("train_batch_size", 0) or None
    return Imported(
        source="deepspeed",
        model=None,
        knobs=knobs,
        seq_len=None,
        global_batch=global_batch,
        precision=precision,
        profile=_profile(options),
        ignored=options.left_over(KNOWN_ZERO),
        notes=(*notes, "A DeepSpeed file does not say the model, the sequence length or the devices."),
    )


def _knobs(options: Options) -> tuple[dict[str, int | bool | str], list[str]]:
    notes: list[str] = []
    stage = options.whole(f"{ZERO}.stage", 0, least=0)
    if stage > 3:
        raise options.error(f"{ZERO}.stage", f"must be 0, 1, 2 or 3, not {stage}")
    overlap = stage > 0 and options.flag(f"{ZERO}.overlap_comm", stage == 3)
    prefetch = stage < 3 or options.whole(f"{ZERO}.stage3_prefetch_bucket_size", 1, least=0) > 0
    spread = options.whole("sequence_parallel_size", 1)
    if spread > 1:
        notes.append("sequence_parallel_size is Ulysses'; the estimate of cp exchanges keys and values in a ring.")
    offload = options.word(f"{ZERO}.offload_optimizer.device", "none", ("none", "cpu", "nvme"))
    if options.word(f"{ZERO}.offload_param.device", "none", ("none", "cpu", "nvme")) != "none":
        notes.append("Weights that wait on the host (offload_param) are not modelled.")
    recomputes = any(name.split(".")[0] == "activation_checkpointing" for name in options.values)
    options.asked.update(name for name in options.values if name.startswith("activation_checkpointing"))
    knobs: dict[str, int | bool | str] = {
        "tp": options.whole("tensor_parallel.autotp_size", 1) or 1,
        "cp": spread,
        **dict.fromkeys(("pp", "ep", "etp", "vpp", "dp_replicate"), 1),
        "schedule": "1f1b",
        "split": "even",
        "recompute": "full" if recomputes else "none",
        "recompute_layers": -1,
        "zero_stage": stage,
        "overlap_grad": overlap,
        "overlap_param": overlap and prefetch,
        **dict.fromkeys(("sequence_parallel", "overlap_tp", "overlap_ep"), False),
        "offload_optimizer": stage > 0 and offload != "none",
        "offload_layers": 0,
    }
    return knobs | _batch(options), notes


def _batch(options: Options) -> dict[str, int | bool | str]:
    """The micro-batch, and dp where the three sizes together decide it."""
    whole = options.whole("train_batch_size", 0)
    micro = options.whole("train_micro_batch_size_per_gpu", 0)
    steps = options.whole("gradient_accumulation_steps", 0)
    if not whole and not micro:
        text = "either train_batch_size or train_micro_batch_size_per_gpu must be given"
        raise SpecError(options.file, (Problem(1, "train_batch_size", text),))
    if whole and micro and steps:
        if whole % (micro * steps):
            text = f"{whole} must be a multiple of {micro} x {steps} (micro-batch x accumulation steps)"
            raise options.error("train_batch_size", text)
        return {"micro_batch": micro, "dp": whole // (micro * steps)}
    return {"micro_batch": micro} if micro else {}


def _precision(options: Options) -> Precision:
    bf16, fp16 = options.flag("bf16.enabled", False), options.flag("fp16.enabled", False)
    if bf16 and fp16:
        raise options.error("fp16.enabled", "bf16 and fp16 cannot both be enabled")
    return "bf16" if bf16 else "fp16" if fp16 else "fp32"


def _profile(options: Options) -> dict[str, Any]:
    profile: dict[str, Any] = {}
    for setting, option in (
        ("grad_bytes", "data_types.grad_accum_dtype"),
        ("grad_reduce_bytes", "communication_data_type"),
    ):
        if option in options:
            profile[setting] = TYPE_BYTES[options.word(option, "fp32", TYPE_BYTES)]
    bucket = options.whole(f"{ZERO}.reduce_bucket_size", 0)
    if bucket:
        profile["bucket_elements"] = float(bucket)
    return profile
