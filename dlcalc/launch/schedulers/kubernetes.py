"""A job for Kubernetes: ``kubectl create -f job.yaml``, with what the pods need in a ConfigMap beside it.

Three kinds: TrainJob (https://www.kubeflow.org/docs/components/trainer/, 2.2 or newer, for its runtimePatches), JobSet
(https://jobset.sigs.k8s.io/) and PyTorchJob (https://www.kubeflow.org/docs/components/trainer/legacy-v1/). The first
and the last set torchrun's variables themselves; a JobSet's pods get them here. A name is a label of DNS there: it is
made from the job's, which is kept as an annotation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from dlcalc.errors import DlcalcError
from dlcalc.launch.environment import is_rocm
from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.machines import INSIDE, checked_hosts, checked_image
from dlcalc.launch.ranks import DEFAULT_PORT, node_affinity
from dlcalc.launch.shell import checked_name
from dlcalc.launch.train_script import variables

Kind = Literal["trainjob", "jobset", "pytorchjob"]
Tree = dict[str, Any]

MANIFEST = "job.yaml"
NAME_ANNOTATION = "dlcalc-job-name"
LONGEST_NAME = 40
"""Of the 63 characters of a label, so that the names of pods fit."""
LARGEST_CONFIG_MAP_BYTES = 2**20
"""https://kubernetes.io/docs/concepts/configuration/configmap/."""
LARGEST_OBJECT_BYTES = 1_500_000
"""Of a request to etcd: https://etcd.io/docs/latest/dev-guide/limit/."""
ELASTIC_INTERFACES = {"p4d": 4, "p4de": 4, "p5": 32, "p5e": 32, "p5en": 16, "p6-b200": 8}
"""EFA interfaces of an instance: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html."""
_NODE = "node"
"""Replicated job and container of Kubeflow's torch-distributed runtime, and of our own JobSets."""


def files(job: Job, emitted: Emitted, bundle: Mapping[str, str], *, kind: Kind) -> Mapping[str, str]:
    """The manifest: a ConfigMap of ``bundle``, and the job that mounts it."""
    name = resource_name(checked_name(job))
    _must_be_possible(job, kind)
    about = {"name": name, "annotations": {NAME_ANNOTATION: job.name}}
    match kind:
        case "trainjob":
            made = _train_job(job, emitted, bundle, about)
        case "jobset":
            made = _job_set(job, emitted, bundle, about)
        case "pytorchjob":
            made = _pytorch_job(job, emitted, bundle, about)
    text = _dumped(made)
    if len(text.encode()) > LARGEST_OBJECT_BYTES:
        raise DlcalcError(
            f"--scheduler {kind}: {len(checked_hosts(job)):,} placed hosts make an object of {len(text.encode()):,} "
            f"bytes, more than Kubernetes stores ({LARGEST_OBJECT_BYTES:,}); take --scheduler slurm"
        )
    return {MANIFEST: f"{_dumped(_config_map(bundle, about))}---\n{text}"}


def resource_name(name: str) -> str:
    """A label of DNS: the name itself where it is one, otherwise what is left of it and a hash of the whole."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and plain[0].isalpha() and len(plain) <= LONGEST_NAME:
        return plain
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    start = plain.lstrip("0123456789-")[: LONGEST_NAME - len(mark) - 1].rstrip("-") or "job"
    return f"{start}-{mark}"


def elastic_interfaces(job: Job) -> int:
    """EFA interfaces of a host, 0 where it is not known to have any."""
    return ELASTIC_INTERFACES.get(job.hardware.name.partition(".")[0], 0)


def _must_be_possible(job: Job, kind: Kind) -> None:
    image, hosts = checked_image(job), checked_hosts(job)
    if image is None and kind != "trainjob":
        raise DlcalcError(f"--scheduler {kind}: give --container, the image that holds {job.target}")
    if len(hosts) > {"trainjob": 1, "pytorchjob": 2, "jobset": job.n_hosts}[kind]:
        raise DlcalcError(
            f"--scheduler {kind} makes its pods from one template and cannot put each of {len(hosts)} ranks on its "
            f"host; --scheduler jobset can"
        )


# ---- parts of all kinds


def _config_map(bundle: Mapping[str, str], about: Tree) -> Tree:
    data = {_key(file): text for file, text in bundle.items()}
    if len(data) < len(bundle):
        raise ValueError(f"names of files differ only in what a ConfigMap cannot tell apart: {', '.join(bundle)}")
    size = sum(len(key.encode()) + len(text.encode()) for key, text in data.items())
    if size > LARGEST_CONFIG_MAP_BYTES:
        raise DlcalcError(
            f"the files of the job are {size:,} bytes, more than a ConfigMap holds ({LARGEST_CONFIG_MAP_BYTES:,})"
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**about, "name": _config_map_name(about)},
        "data": data,
    }


def _config_map_name(about: Tree) -> str:
    return f"{about['name']}-files"


def _key(file: str) -> str:
    """A key of a ConfigMap, which has no folders."""
    return re.sub(r"[^-._a-zA-Z0-9]", "_", file)


def _volumes(bundle: Mapping[str, str], about: Tree) -> list[Tree]:
    items = [{"key": _key(file), "path": file} for file in bundle]
    return [
        {"name": "bundle", "configMap": {"name": _config_map_name(about), "items": items, "defaultMode": 0o555}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _mounts() -> list[Tree]:
    return [
        {"name": "bundle", "mountPath": INSIDE, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # 64 MiB otherwise, too little for NCCL and data loaders
    ]


def _resources(job: Job) -> Tree:
    counts = {"amd.com/gpu" if is_rocm(job) else "nvidia.com/gpu": job.host_devices}
    if job.n_hosts > 1 and elastic_interfaces(job):
        counts["vpc.amazonaws.com/efa"] = elastic_interfaces(job)
    amounts = {name: str(count) for name, count in counts.items()}
    return {"requests": dict(amounts), "limits": amounts}


def _security(job: Job) -> Tree:
    """RDMA pins memory."""
    return {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}} if job.n_hosts > 1 else {}


def _env(emitted: Emitted) -> list[Tree]:
    """What is the user's to decide; where nothing is given, ``train.sh`` says what it is for.

    Kubernetes takes a dollar sign for the start of a reference unless there are two.
    """
    return [{"name": one.name, "value": (one.default or "").replace("$", "$$")} for one in variables(emitted)]


def _container(job: Job, name: str, env: Sequence[Tree], **more: object) -> Tree:
    return {
        "name": name,
        "image": checked_image(job),
        "command": ["bash", f"{INSIDE}/train.sh"],
        "env": list(env),
        "resources": _resources(job),
        "volumeMounts": _mounts(),
        **_security(job),
        **more,
    }


def _pod(container: Tree, volumes: list[Tree], about: Tree, host: str | None) -> Tree:
    placed = {"affinity": node_affinity(host)} if host else {}
    return {
        "metadata": {"annotations": dict(about["annotations"])},
        "spec": {"restartPolicy": "Never", **placed, "containers": [container], "volumes": volumes},
    }


# ---- the kinds


def _train_job(job: Job, emitted: Emitted, bundle: Mapping[str, str], about: Tree) -> Tree:
    image, hosts = checked_image(job), checked_hosts(job)
    trainer: Tree = {
        **({"image": image} if image else {}),
        "command": ["bash", f"{INSIDE}/train.sh"],
        "env": _env(emitted),
        "numNodes": job.n_hosts,
        "numProcPerNode": job.host_devices,
        "resourcesPerNode": _resources(job),
    }
    pod: Tree = {
        **({"affinity": node_affinity(hosts[0])} if hosts else {}),
        "containers": [{"name": _NODE, "volumeMounts": _mounts(), **_security(job)}],
        "volumes": _volumes(bundle, about),
    }
    replicated = {"name": _NODE, "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"template": {"spec": {"replicatedJobs": [replicated]}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": about,
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": trainer,
            "runtimePatches": [{"manager": "dlcalc", "trainingRuntimeSpec": patch}],
        },
    }


def _job_set(job: Job, emitted: Emitted, bundle: Mapping[str, str], about: Tree) -> Tree:
    """One replicated job of all hosts; one per host where each has its own."""
    hosts, name = checked_hosts(job), str(about["name"])
    if hosts:
        first, ranks = f"{_NODE}-0", [(f"{_NODE}-{rank}", str(rank), host) for rank, host in enumerate(hosts)]
        replicated = [
            _replicated(job, emitted, bundle, about, replica, 1, {"value": rank}, f"{name}-{first}-0-0.{name}", host)
            for replica, rank, host in ranks
        ]
    else:
        index = {
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        }
        master = f"{name}-{_NODE}-0-0.{name}"
        replicated = [_replicated(job, emitted, bundle, about, _NODE, job.n_hosts, index, master, None)]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": about,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": replicated,
        },
    }


def _replicated(
    job: Job,
    emitted: Emitted,
    bundle: Mapping[str, str],
    about: Tree,
    name: str,
    n_pods: int,
    rank: Tree,
    master: str,
    host: str | None,
) -> Tree:
    env = [
        {"name": "PET_NNODES", "value": str(job.n_hosts)},
        {"name": "PET_NPROC_PER_NODE", "value": str(job.host_devices)},
        {"name": "PET_NODE_RANK", **rank},
        {"name": "PET_MASTER_ADDR", "value": master},
        {"name": "PET_MASTER_PORT", "value": str(DEFAULT_PORT)},
    ]
    container = _container(job, _NODE, [*_env(emitted), *env])
    spec = {
        "completionMode": "Indexed",
        "completions": n_pods,
        "parallelism": n_pods,
        "backoffLimit": 0,
        "template": _pod(container, _volumes(bundle, about), about, host),
    }
    return {"name": name, "replicas": 1, "template": {"spec": spec}}


def _pytorch_job(job: Job, emitted: Emitted, bundle: Mapping[str, str], about: Tree) -> Tree:
    hosts = checked_hosts(job)

    def replicas(number: int, host: str | None) -> Tree:
        container = _container(job, "pytorch", _env(emitted))
        pod = _pod(container, _volumes(bundle, about), about, host)
        del pod["spec"]["restartPolicy"]  # the operator's, of the replicas
        return {"replicas": number, "restartPolicy": "Never", "template": pod}

    specs = {"Master": replicas(1, hosts[0] if hosts else None)}
    if job.n_hosts > 1:
        specs["Worker"] = replicas(job.n_hosts - 1, hosts[1] if hosts else None)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": about,
        "spec": {
            "nprocPerNode": str(job.host_devices),
            "runPolicy": {"cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": specs,
        },
    }


def _dumped(tree: Tree) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are; nothing written as a reference to what stands elsewhere."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
