"""A job in the words of its trainer: one function for all of them."""

from __future__ import annotations

from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.trainers import accelerate, deepspeed, megatron_bridge, megatron_lm, nanotron, torchtitan


def emitted(job: Job) -> Emitted:
    """What the job's trainer is called with. The plan must be one that it runs (``costmodel.targets``)."""
    match job.target:
        case "megatron-lm":
            return megatron_lm.emit(job)
        case "megatron-bridge":
            return megatron_bridge.emit(job)
        case "torchtitan":
            return torchtitan.emit(job)
        case "deepspeed":
            return deepspeed.emit(job)
        case "fsdp-accelerate":
            return accelerate.emit(job)
        case "nanotron":
            return nanotron.emit(job)
