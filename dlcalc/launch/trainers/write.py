"""A job in the words of its trainer: one function for all of them."""

from __future__ import annotations

from dlcalc.launch.job import Emitted, Job


def emitted(job: Job) -> Emitted:
    """What the job's trainer is called with. The plan must be one that it runs (``costmodel.targets``)."""
    match job.target:
        case "megatron-lm":
            from dlcalc.launch.trainers import megatron_lm

            return megatron_lm.emit(job)
        case "megatron-bridge":
            from dlcalc.launch.trainers import megatron_bridge

            return megatron_bridge.emit(job)
        case "torchtitan":
            from dlcalc.launch.trainers import torchtitan

            return torchtitan.emit(job)
        case "deepspeed":
            from dlcalc.launch.trainers import deepspeed

            return deepspeed.emit(job)
        case "fsdp-accelerate":
            from dlcalc.launch.trainers import accelerate

            return accelerate.emit(job)
        case "nanotron":
            from dlcalc.launch.trainers import nanotron

            return nanotron.emit(job)
