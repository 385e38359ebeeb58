"""Environment variables that decide how fast a job runs, or whether it runs, each with the reason.

Only what has an effect on the job at hand and is safe on any cluster: names of network interfaces and tuning of a
fabric are the cluster's business. Also here: the machines that no trainer runs on. Facts are from

* https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html (NCCL_*),
* https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html (TORCH_NCCL_*),
* https://docs.pytorch.org/docs/stable/notes/cuda.html (PYTORCH_CUDA_ALLOC_CONF),
* https://docs.pytorch.org/docs/stable/elastic/run.html (OMP_NUM_THREADS, which torchrun sets to 1 where nobody does),
* https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/training/arguments.py (CUDA_DEVICE_MAX_CONNECTIONS and
  NCCL_GRAPH_REGISTER, which it checks),
* https://github.com/NVIDIA-NeMo/Megatron-Bridge/tree/v0.6.2/src/megatron/bridge/perf_recipes (TORCH_NCCL_HIGH_PRIORITY,
  NVTE_* and HybridEP's, which every recipe of NVIDIA's measured runs sets),
* https://github.com/aws-samples/awsome-distributed-training/blob/main/1.architectures/efa-cheatsheet.md (FI_*).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Emitted, Job

MEGATRON = ("megatron-lm", "megatron-bridge")
ONE_QUEUE = ("megatron-lm", "megatron-bridge", "nanotron")
"""Trainers whose overlap of tensor-parallel communication rests on the order in which kernels were launched."""
ELASTIC_FABRIC = re.compile(r"(ml\.)?(p3dn|(u-)?p[4-9][a-z]*|g[56]e?)[.-].*")
"""AWS instances with EFA: p3dn.24xlarge, p6-b200.48xlarge, u-p6e-gb200x72, g6e.48xlarge."""
CORES_OF_A_PROCESS = '"$(( per_node > 0 && $(nproc) > per_node ? $(nproc) / per_node : 1 ))"'
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Setting:
    """One variable."""

    name: str
    value: str | None
    """None: it may be anything but 1."""
    why: str
    is_shell: bool = False
    """Whether the value is an expression that bash works out on the host, rather than text."""


def settings(job: Job, emitted: Emitted) -> tuple[Setting, ...]:
    """What the processes of ``job`` find in their environment, in order; the trainer has the last word."""
    must_run_on(job)
    found = {one.name: one for one in (*_of_torch(job), *_of_collectives(job), *_of_queues(job), *_of_megatron(job))}
    for name, value in emitted.environment.items():
        known = found.get(name)
        said = known is not None and known.value in (None, value)
        found[name] = Setting(name, value, known.why if known and said else f"{job.target} needs it")
    for name in found:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an environment variable")
    return tuple(found.values())


def must_run_on(job: Job) -> None:
    """Refuse a machine that has neither CUDA nor ROCm, which all trainers here are written for."""
    if job.hardware.family in ("google_tpu", "aws_trainium", "intel_gaudi"):
        raise DlcalcError(
            f"{job.target} runs on CUDA or ROCm devices; {job.hardware.name} has neither, so no launch can be written "
            f"for it"
        )


def is_rocm(job: Job) -> bool:
    """Whether the devices are AMD's: the same torch.cuda, NCCL_* read by RCCL."""
    return job.hardware.family.startswith("amd_")


def spans_hosts_by_nvlink(job: Job) -> bool:
    """Whether a node of the machine is several hosts (a rack of NVL72)."""
    return job.hardware.node.n_host_devices is not None


def has_elastic_fabric(job: Job) -> bool:
    """Whether hosts are joined by AWS EFA; a calibrated machine keeps the description of the one it extends."""
    hardware = job.hardware
    named = any(ELASTIC_FABRIC.fullmatch(name) for name in (hardware.name, *hardware.aliases))
    return named or re.search(r"\bEFA\b", hardware.description) is not None


def _of_torch(job: Job) -> Iterator[Setting]:
    if not is_rocm(job):
        yield Setting(
            "PYTORCH_CUDA_ALLOC_CONF",
            "expandable_segments:True",
            "less fragmentation, which the estimate of memory counts on",
        )
    if job.plan.offload_optimizer:
        yield Setting(
            "OMP_NUM_THREADS",
            CORES_OF_A_PROCESS,
            "the optimizer steps on the host's cores: an equal share of them for every process",
            is_shell=True,
        )
    else:
        yield Setting("OMP_NUM_THREADS", "1", "what torchrun takes; said here so that it does not warn")
    yield Setting(
        "TORCH_NCCL_DUMP_ON_TIMEOUT", "1", "a collective that hangs leaves a record of who waited where, in /tmp"
    )


def _of_collectives(job: Job) -> Iterator[Setting]:
    yield Setting("NCCL_DEBUG", "WARN", "what goes wrong between devices is said, and nothing else")
    if job.recipe.cuda_graphs and job.target in MEGATRON and not is_rocm(job):
        yield Setting(
            "NCCL_GRAPH_REGISTER", "0", "required by Megatron for CUDA graphs together with expandable segments"
        )
    if spans_hosts_by_nvlink(job) and job.hardware.node.in_network_reduction and job.n_hosts > 1:
        yield Setting(
            "NCCL_NVLS_ENABLE", "1", "reductions in the NVLink switches of the rack, which the estimate counts on"
        )
    if has_elastic_fabric(job) and job.n_hosts > 1:
        yield Setting("FI_PROVIDER", "efa", "libfabric takes EFA rather than TCP")
        yield Setting(
            "FI_EFA_USE_HUGE_PAGE",
            "0",
            "data loaders fork; with huge pages a fork may find no memory (slightly slower)",
        )


def _of_megatron(job: Job) -> Iterator[Setting]:
    """What NVIDIA's own measured runs set, to which the costs of Megatron are fitted."""
    if job.target not in MEGATRON or is_rocm(job):
        return
    plan, node = job.plan, job.hardware.node
    yield Setting("TORCH_NCCL_HIGH_PRIORITY", "1", "communication goes first where it and compute both wait")
    if plan.overlap_grad or plan.overlap_param or plan.overlap_tp:
        for way in ("FWD", "BWD"):
            yield Setting(
                f"NVTE_{way}_LAYERNORM_SM_MARGIN", "20", "norms leave multiprocessors to communication beside them"
            )
    if (
        job.model.is_moe
        and plan.ep > 1
        and spans_hosts_by_nvlink(job)
        and job.recipe.framework.dispatches_once_per_node
    ):
        ranks = min(plan.ep, node.devices_of_job(job.devices))
        yield Setting(
            "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", str(ranks), "ranks that HybridEP reaches by NVLink: of one rack"
        )
        yield Setting("NVLINK_DOMAIN_SIZE", str(node.n_devices), "devices of a rack, for HybridEP")
        yield Setting("USE_MNNVL", "1", "HybridEP uses NVLink between the hosts of a rack")


def _of_queues(job: Job) -> Iterator[Setting]:
    """How many hardware queues kernels are launched into."""
    name, plan = "CUDA_DEVICE_MAX_CONNECTIONS", job.plan
    if job.target in MEGATRON and plan.zero_stage >= 2:
        yield Setting(
            name, None, "Megatron-FSDP refuses 1, which some images set: its gathers need queues of their own"
        )
    elif job.target not in ONE_QUEUE or (plan.tp == 1 and plan.cp == 1) or job.hardware.family == "nvidia_blackwell":
        return
    elif plan.overlap_ep:
        yield Setting(name, "32", "all-to-alls run beside matmuls, for which one queue is too few")
    else:
        yield Setting(
            name, "1", "one queue keeps communication of tp and cp in launch order, so that matmuls cover it; checked"
        )
