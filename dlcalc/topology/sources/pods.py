"""Which devices the pods of a cluster hold, for which job, and in which rank.

A rank is read from what the job's controller wrote on its pods (JobSet, LeaderWorkerSet, Kubeflow training, Volcano,
Indexed Job, StatefulSet), or from a name that ends in ``-worker-N``. Pods without devices (launchers) have none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from dlcalc.topology.sources.document import Document

Path = tuple[str | int, ...]

RESOURCES = (
    "nvidia.com/gpu",
    "amd.com/gpu",
    "aws.amazon.com/neuron",
    "aws.amazon.com/neurondevice",
    "habana.ai/gaudi",
    "google.com/tpu",
)
"""Names under which nodes offer devices; the first of which a node has any is its."""

MAX_GROUPS = 1_000_000

_ENDED = {"Succeeded", "Failed"}
_JOBSET = "jobset.sigs.k8s.io/"
_LWS = "leaderworkerset.sigs.k8s.io/"
_KUBEFLOW = "training.kubeflow.org/"
_COMPLETION = "batch.kubernetes.io/job-completion-index"
_JOB_NAMES = ("batch.kubernetes.io/job-name", "job-name")
_FIRST_ROLES = {"master": 0, "chief": 0, "worker": 1}
_NAMED = re.compile(r"(?P<job>.+)-(?P<role>master|chief|worker)-(?P<index>\d{1,9})(?:-[a-z0-9]{5})?")
_DIGITS = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Identity:
    """Of which job a pod is, and where in it."""

    job: str
    group: tuple[str, int] = ("", 0)
    """Groups of pods come one after the other: replicated jobs, masters before workers."""
    index: int | None = None
    """In its group."""
    has_every_group: bool = False
    """Groups are numbered from 0 without gaps, so one that is missing has pods too."""


@dataclass(frozen=True)
class Pod:
    """One on a node, which may hold devices of it."""

    node: str
    namespace: str
    n_devices: int
    identity: Identity
    is_leaving: bool = False


@dataclass
class Held:
    """Devices of one node that pods hold."""

    by_resource: Counter[str] = field(default_factory=Counter)
    by_job: Counter[str] = field(default_factory=Counter)
    ranks: dict[str, int | None] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """The one with most devices."""
        return min(self.by_job, key=lambda job: (-self.by_job[job], job), default="")


def held_by_pods(
    document: Document, pods: Iterable[tuple[Path, Any]], *, namespace: str | None = None
) -> dict[str, Held]:
    """What pods hold on each node; with ``namespace``, jobs are those of it alone."""
    found: dict[str, Held] = {}
    members: dict[tuple[str, str], list[Pod]] = {}
    for path, item in pods:
        entry = document.mapping(item, path)
        spec = document.mapping(entry.get("spec"), (*path, "spec"))
        status = document.mapping(entry.get("status"), (*path, "status"))
        node = document.text(spec, "nodeName", (*path, "spec"))
        if not node or document.text(status, "phase", (*path, "status")) in _ENDED:
            continue
        requested = requests(document, spec, (*path, "spec"))
        if requested:
            found.setdefault(node, Held()).by_resource.update(requested)
        metadata = document.mapping(entry.get("metadata"), (*path, "metadata"))
        place = document.text(metadata, "namespace", (*path, "metadata"))
        if namespace is not None and place != namespace:
            continue
        identity = identity_of(document, metadata, (*path, "metadata"))
        if not requested and not identity.has_every_group:
            continue
        is_leaving = metadata.get("deletionTimestamp") is not None
        pod = Pod(node, place, sum(requested.values()), identity, is_leaving)
        members.setdefault((identity.job, place), []).append(pod)

    names = Counter(job for job, _ in members)
    for (job, place), pods_of_job in members.items():
        name = job if names[job] == 1 else f"{job} ({place})"
        ranks = node_ranks(pods_of_job)
        for pod in filter(attrgetter("n_devices"), pods_of_job):
            found[pod.node].by_job[name] += pod.n_devices
            found[pod.node].ranks[name] = ranks[pod.node]
    return found


def requests(document: Document, spec: Mapping[str, Any], path: Path) -> Counter[str]:
    """Devices that a pod is given: what its containers ask for together, or one that runs before them alone.

    An init container that goes on running (restartPolicy: Always) counts with the containers and those after it.
    """
    running: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for index, item in enumerate(document.items(spec.get("initContainers"), (*path, "initContainers"))):
        place = (*path, "initContainers", index)
        container = document.mapping(item, place)
        asked = _of_container(document, container, place)
        peak |= running + asked
        if container.get("restartPolicy") == "Always":
            running += asked
    for index, item in enumerate(document.items(spec.get("containers"), (*path, "containers"))):
        place = (*path, "containers", index)
        running += _of_container(document, document.mapping(item, place), place)
    return peak | running


def _of_container(document: Document, container: dict[str, Any], path: Path) -> Counter[str]:
    place = (*path, "resources")
    resources = document.mapping(container.get("resources"), place)
    limits = document.mapping(resources.get("limits"), (*place, "limits"))
    asked = document.mapping(resources.get("requests"), (*place, "requests"))
    if not limits and not asked:
        return Counter()
    return +Counter({name: quantity(asked.get(name, limits.get(name))) for name in RESOURCES})


def quantity(value: object) -> int:
    """A number of devices as Kubernetes writes it: ``"8"``, 8, and in theory ``"1k"``; 0 where it is none."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,9})(k?)", value)
        return int(match.group(1)) * (1000 if match.group(2) else 1) if match else 0
    return value if type(value) is int and value > 0 else 0


def identity_of(document: Document, metadata: dict[str, Any], path: Path) -> Identity:
    """Of which job a pod is, by its labels, else by its name, else by its owner."""
    labels = document.mapping(metadata.get("labels"), (*path, "labels"))
    marks = {**document.mapping(metadata.get("annotations"), (*path, "annotations")), **labels}
    name = document.text(metadata, "name", path)
    job_name = next((_text(marks, key) for key in _JOB_NAMES if _text(marks, key)), "")
    completion = _number(marks, _COMPLETION)

    if jobset := _text(marks, _JOBSET + "jobset-name"):
        overall = _number(marks, _JOBSET + "job-global-index")
        if overall is not None:
            return Identity(jobset, ("", overall), completion, has_every_group=True)
        group = (_text(marks, _JOBSET + "replicatedjob-name"), _number(marks, _JOBSET + "job-index") or 0)
        return Identity(jobset, group, completion, has_every_group=True)
    if lws := _text(marks, _LWS + "name"):
        group = ("", _number(marks, _LWS + "group-index") or 0)
        return Identity(lws, group, _number(marks, _LWS + "worker-index"), has_every_group=True)
    if training := _text(marks, _KUBEFLOW + "job-name"):
        role = (_text(marks, _KUBEFLOW + "replica-type") or _text(marks, _KUBEFLOW + "job-role")).lower()
        group = ("", _FIRST_ROLES.get(role, 2))
        return Identity(training, group, _number(marks, _KUBEFLOW + "replica-index"))
    if volcano := _text(marks, "volcano.sh/job-name"):
        task = _text(marks, "volcano.sh/task-spec")
        return Identity(volcano, (task, _FIRST_ROLES.get(task.lower(), 2)), _number(marks, "volcano.sh/task-index"))
    if job_name and completion is not None:
        return Identity(job_name, index=completion)
    if (place := _number(marks, "apps.kubernetes.io/pod-index")) is not None and name.endswith(f"-{place}"):
        return Identity(name.removesuffix(f"-{place}"), index=place)
    if match := _NAMED.fullmatch(name):
        return Identity(match["job"], ("", _FIRST_ROLES[match["role"]]), int(match["index"]))
    owners = document.items(metadata.get("ownerReferences"), (*path, "ownerReferences"))
    owner = document.mapping(owners[0], (*path, "ownerReferences", 0)) if owners else {}
    return Identity(job_name or _text(owner, "name") or name)


def _text(holder: Mapping[str, Any], key: str) -> str:
    value = holder.get(key)
    return value if isinstance(value, str) else ""


def _number(holder: Mapping[str, Any], key: str) -> int | None:
    text = _text(holder, key)
    return int(text) if _DIGITS.fullmatch(text) else None


def node_ranks(pods: Sequence[Pod]) -> dict[str, int | None]:
    """The rank of each node in a job: its pod's where every node holds one, else their order by first pod."""
    staying = [pod for pod in pods if not pod.is_leaving]
    placed = _pod_ranks(staying or pods)
    first: dict[str, int] = {}
    for node, rank in placed:
        first[node] = min(rank, first.get(node, rank))
    if len(first) == len(placed) == len(set(first.values())):
        found = first
    else:
        found = {node: rank for rank, node in enumerate(sorted(first, key=lambda node: (first[node], node)))}
    return {pod.node: found.get(pod.node) for pod in pods}


def _pod_ranks(pods: Iterable[Pod]) -> list[tuple[str, int]]:
    """Node and rank of every pod that has devices and an index."""
    placed: list[tuple[str, tuple[str, int], int]] = []
    width: dict[tuple[str, int], int] = {}
    has_every_group = False
    for pod in pods:
        group, index = pod.identity.group, pod.identity.index
        has_every_group |= pod.identity.has_every_group
        if not pod.n_devices:
            width.setdefault(group, 0)
        elif index is not None:
            width[group] = max(width.get(group, 0), index + 1)
            placed.append((pod.node, group, index))
    if has_every_group:
        width = _with_missing_groups(width)
    begins, total = {}, 0
    for group in sorted(width):
        begins[group] = total
        total += width[group]
    return [(node, begins[group] + index) for node, group, index in placed]


def _with_missing_groups(width: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """Groups whose pods have no node yet are taken to be as large as the largest one of their name."""
    found = dict(width)
    for name in {name for name, _ in width}:
        known = {number: size for (other, number), size in width.items() if other == name}
        for number in range(min(max(known), MAX_GROUPS)):
            found.setdefault((name, number), max(known.values()))
    return found
