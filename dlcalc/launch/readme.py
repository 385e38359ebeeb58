"""``README.md`` of a bundle: what it is, how to start it, what to expect, and how to feed back what was measured."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dlcalc import __version__
from dlcalc.launch.environment import is_rocm, spans_hosts_by_nvlink
from dlcalc.launch.job import Emitted, Job, Variable
from dlcalc.launch.measured_row import TABLE, MeasuredTable
from dlcalc.launch.schedulers.kubernetes import elastic_interfaces, resource_name
from dlcalc.launch.schedulers.write import Scheduler
from dlcalc.launch.shell import WIDTH, checked_name, literal
from dlcalc.launch.train_script import variables
from dlcalc.utils.printable import printable
from dlcalc.utils.units import duration, gib, percent, significant

README = "README.md"
KUBERNETES = ("trainjob", "jobset", "pytorchjob")
KUBECTL_FOLLOWS = 5
"""Pods at once, unless it is told otherwise."""
MEANINGS = {
    "tp": "tensor parallel: devices that share every layer",
    "cp": "context parallel: devices that share a sequence",
    "pp": "pipeline stages",
    "dp": "data parallel replicas",
    "ep": "devices that experts are spread over",
    "etp": "tensor parallel degree of the experts",
    "vpp": "chunks of layers per pipeline stage",
    "schedule": "order of forward and backward passes in the pipeline",
    "split": "how layers are cut into stages",
    "micro_batch": "sequences of a replica at once",
    "recompute": "what backward computes again instead of keeping",
    "recompute_layers": "of so many layers of a chunk; -1: of all",
    "zero_stage": "sharded over replicas: 0 nothing, 1 optimizer state, 2 + gradients, 3 + weights",
    "dp_replicate": "copies of what is sharded",
    "sequence_parallel": "norms and residuals sharded over the tensor parallel devices",
    "overlap_grad": "gradients are reduced during backward",
    "overlap_param": "weights are gathered during forward",
    "overlap_tp": "tensor parallel communication during matmuls",
    "overlap_ep": "exchanges between experts during compute",
    "cp_exchange": "what the devices of one sequence exchange",
    "offload_optimizer": "optimizer state and step on the host",
    "offload_layers": "layers whose activations go to the host",
}


def readme(job: Job, emitted: Emitted, scheduler: Scheduler, table: MeasuredTable, files: Mapping[str, str]) -> str:
    """The text; ``files`` are the others of the bundle."""
    parts = (
        _about(job, scheduler, files),
        _start(job, emitted, scheduler),
        _plan(job),
        _expected(job),
        _back(job, table),
        _notes(job, emitted, scheduler),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _about(job: Job, scheduler: Scheduler, files: Mapping[str, str]) -> Iterator[str]:
    yield f"# {_plain(checked_name(job))}"
    yield from _prose(
        f"{_plain(job.model.name)} on {job.devices} devices of {_plain(job.hardware.name)}, {job.n_hosts} hosts of "
        f"{job.host_devices}: a run of {job.target}, started by {scheduler}. It trains on made-up data until you name "
        f"yours, so that the step time below can be checked first. Written by dlcalc {__version__}."
    )
    yield from _prose(f"Files: {', '.join(f'`{file}`' for file in sorted(files))}.")


# ---- how to start


def _start(job: Job, emitted: Emitted, scheduler: Scheduler) -> Iterator[str]:
    yield from _heading("Start")
    yield from _code(_commands(job, scheduler))
    yield from _prose(_told(job, scheduler))
    if yours := variables(emitted):
        yield from _prose(f"Set in the environment{' of the manifest' if scheduler in KUBERNETES else ''}:")
        yield from _table(
            ("variable", "means", "default"),
            ((f"`{one.name}`", _plain(one.meaning), _default(one)) for one in yours),
        )


def _default(one: Variable) -> str:
    if one.default is None:
        return "must be set"
    return f"`{_cell(one.default)}`" if one.default else "empty"


def _commands(job: Job, scheduler: Scheduler) -> tuple[str, ...]:
    if scheduler == "slurm":
        return ("sbatch job.sbatch",)
    if scheduler == "torchrun":
        return ("bash start.sh",)
    many = f" --max-log-requests={job.n_hosts}" if job.n_hosts > KUBECTL_FOLLOWS else ""
    return "kubectl create -f job.yaml", f"kubectl logs -f{many} -l {_label(scheduler)}={resource_name(job.name)}"


def _label(scheduler: Scheduler) -> str:
    """What pods are labelled with by the controller of their kind."""
    return "training.kubeflow.org/job-name" if scheduler == "pytorchjob" else "jobset.sigs.k8s.io/jobset-name"


def _told(job: Job, scheduler: Scheduler) -> str:
    further = "Options behind it go to the trainer."
    if scheduler == "slurm":
        return (
            f"In this folder, which every host must see at the same place. {further} Account, partition and time are "
            f"yours: on the command line, or in `job.sbatch`."
        )
    if scheduler == "torchrun":
        return f"On the host itself. {further}" if job.n_hosts == 1 else _told_of_hosts(job, further)
    needs = {
        "trainjob": "Kubeflow Trainer 2.2 or newer and its runtime torch-distributed",
        "jobset": "the JobSet controller",
        "pytorchjob": "the Kubeflow Training Operator (v1)",
    }[scheduler]
    return (
        f"Needs {needs}. The files that pods need are in the manifest, as a ConfigMap; after a change of them, write "
        f"the bundle again. (`kubectl apply` refuses large ones; `create`, or `apply --server-side`, does not.)"
    )


def _told_of_hosts(job: Job, further: str) -> str:
    named = "are in `hostfile`" if job.hosts else "go into a file `hostfile` here, one a line, host 0 first"
    alone = ", or alone: it knows the hosts by name" if job.hosts else ""
    return (
        f"The {job.n_hosts} hosts {named}; each must see this folder at the same place and be reachable by ssh without "
        f"a password, with torchrun on the PATH it gives. {further} Where something else runs commands on all "
        f"hosts, let it run `bash host.sh` with PET_NODE_RANK and PET_MASTER_ADDR set{alone}."
    )


# ---- what it is


def _plan(job: Job) -> Iterator[str]:
    plan, recipe = job.plan, job.recipe
    yield from _heading("The plan")
    yield from _prose(
        f"{plan.devices} devices = tp {plan.tp} x cp {plan.cp} x pp {plan.pp} x dp {plan.dp}. A step is "
        f"{recipe.global_batch:,} sequences of {recipe.seq_len:,} tokens in {recipe.precision}: micro-batches of "
        f"{plan.micro_batch} on every replica, {job.micro_batches} of them."
    )
    if plan.pp > 1:
        layers = ", ".join(map(str, job.chunk_layers))
        yield from _prose(f"Layers of the {len(job.chunk_layers)} pipeline chunks, in order: {layers}.")
    shown = {knob: ("no", "yes")[one] if isinstance(one, bool) else one for knob, one in plan.as_dict().items()}
    yield from _table(("knob", "value", "means"), ((knob, str(one), MEANINGS[knob]) for knob, one in shown.items()))


def _expected(job: Job) -> Iterator[str]:
    told = job.prediction
    yield from _heading("What to expect")
    yield from _table(
        ("", "estimate"),
        (
            ("time of a step", duration(told.step_time_s)),
            ("its 80 % interval", f"{duration(told.step_time_low_s)} to {duration(told.step_time_high_s)}"),
            (f"MFU ({job.recipe.mfu_convention})", percent(told.mfu)),
            ("tokens per second and device", significant(told.tokens_per_s_per_device)),
            (
                "memory of the fullest device",
                f"{gib(told.memory_bytes)} of {gib(job.hardware.device.hbm_bytes)} GiB",
            ),
        ),
    )
    for other in job.other_costs:
        yield from _prose(
            f"These are with the costs of {_plain(job.recipe.framework.name)}. {other.meaning}: "
            f"{duration(other.step_time_s)} a step, {gib(other.memory_bytes)} GiB"
            f"{'' if other.fits else ', more than a device holds: expect it to run out of memory'}."
        )
    yield from _prose(
        "Compare the first 20 steps with this: leave out the first 5, in which kernels are compiled and buffers are "
        "made, and take the median of the others. In four of five runs it lies in the interval."
    )
    yield from _prose(
        "If it is slower, look whether processes use the network they should (`NCCL_DEBUG=INFO` names it: NET/IB or "
        "NET/OFI between hosts, P2P or NVLS inside), whether devices are throttled or shared, whether a single host is "
        "slow, and whether data comes in time. If nothing is wrong, your machine differs from those measured: "
        "feed the time back, as below, and search again. If memory runs out, take the next plan of the result, or "
        "search with a `memory_headroom`."
    )


def _back(job: Job, table: MeasuredTable) -> Iterator[str]:
    out = f"my_{re.sub(r'[^A-Za-z0-9._-]', '_', job.hardware.name)}.yaml"
    yield from _heading("Feed it back")
    yield from _prose(
        f"`{TABLE}` is this run: write the measured time in seconds under `step_time_s` (and the peak of memory under "
        f"`memory_gib`, if you like), add lines for other runs, and, in this folder:"
    )
    yield from _code((f"dlcalc-calibrate {TABLE} --hardware {literal(table.hardware)} --out {out}",))
    yield from _prose(f"From then on name `{out}` as the hardware of a search.")


# ---- what else there is to know


def _notes(job: Job, emitted: Emitted, scheduler: Scheduler) -> Iterator[str]:
    notes = [*map(_plain, job.told), *emitted.notes, *_of_machine(job, scheduler)]
    if notes:
        yield from _heading("Notes")
        for note in notes:
            yield from textwrap.wrap(f"* {note}", WIDTH, subsequent_indent="  ", **_UNBROKEN)


def _of_machine(job: Job, scheduler: Scheduler) -> Iterator[str]:
    if is_rocm(job):
        yield (
            f"{_plain(job.hardware.name)} needs ROCm builds of torch and of {job.target}, whose own tests are of CUDA. "
            f"Variables named NCCL are read by RCCL."
        )
    if spans_hosts_by_nvlink(job) and job.n_hosts > 1:
        how = ", by a ComputeDomain of NVIDIA's DRA driver" if scheduler in KUBERNETES else ""
        yield (
            f"Hosts of one rack are joined by NVLink: IMEX must run on all of them, and consecutive ranks must be in "
            f"one rack{how}.{_of_each_rack(job, scheduler)}"
        )
    if scheduler == "trainjob" and job.container is None:
        yield f"The image is that of the runtime torch-distributed, which must hold {job.target}."
    if scheduler in KUBERNETES and job.n_hosts > 1 and not elastic_interfaces(job):
        yield (
            "The network between hosts is a resource with a name of your cluster's own (rdma/ib, "
            "rdma/rdma_shared_device_a, vpc.amazonaws.com/efa): add it beside the devices in `job.yaml`, otherwise "
            "NCCL falls back to TCP."
        )
    if job.hosts:
        yield "Ranks fill hosts in the order of `hostfile`, which is the placement's."


def _of_each_rack(job: Job, scheduler: Scheduler) -> str:
    """How many hosts of each rack the estimate counts on; empty for a job of one."""
    node = job.hardware.node
    if job.devices <= node.n_devices:
        return ""
    on_each = node.devices_of_job(job.devices)
    hosts = on_each // job.host_devices
    said = f" The estimate counts on {on_each} of {node.n_devices} devices of each rack, {hosts} hosts"
    return said + (f": `--segment={hosts}`, where Slurm knows racks as blocks." if scheduler == "slurm" else ".")


# ---- Markdown

_UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False}


def _heading(text: str) -> Iterator[str]:
    yield from ("", f"## {text}")


def _prose(text: str) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(text, WIDTH, **_UNBROKEN)


def _code(lines: Iterable[str]) -> Iterator[str]:
    yield from ("", "```sh", *lines, "```")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(text: str) -> str:
    """``text`` in Markdown, meaning nothing."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))


def _cell(text: str) -> str:
    """``text`` between backticks in a table."""
    return printable(text).replace("|", "\\|").replace("`", "'")
