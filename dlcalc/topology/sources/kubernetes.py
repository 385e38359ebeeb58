"""Kubernetes' view of the fabric: labels of nodes, and what pods hold; live through the official client, or saved.

A node is free when it is ready, schedulable, and has enough devices that no pod requests. On AWS nodes go by their
instance ids; those without labels of network nodes are asked of EC2, where that answers for the same account.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from dlcalc.errors import DlcalcError, TopologyError, suggestion
from dlcalc.topology.fabric import Fabric, FabricNode, State
from dlcalc.topology.sources.document import Document
from dlcalc.topology.sources.ec2 import fabric_of_instances, joined_by_zone, topology_of_instances
from dlcalc.topology.sources.labels import AWS, FAMILIES, INSTANCE_TYPE, REGION, ZONE, Family, chains_of, domain_of
from dlcalc.topology.sources.pods import RESOURCES, Held, held_by_pods, quantity

PAGE = 500
TIMEOUT_S = (5.0, 60.0)
"""To connect; to read an answer."""
ATTEMPTS = 4
"""Of one page, where the server is busy; waits double from one second."""
RUNNING_PODS = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"

_AWS_ID = re.compile(r"aws:///[^/]*/(i-[0-9a-f]{8,17})")
_EC2_ID = re.compile(r"i-[0-9a-f]{8,17}")
_CSI = "csi.volume.kubernetes.io/nodeid"
_BAD_TAINTS = ("node.kubernetes.io/", "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupt")
_BUSY_SERVER = {429, 500, 502, 503, 504}
_EXPIRED_PAGE = 410

Item = tuple[tuple[str | int, ...], Any]


# What was answered


def is_kubernetes(data: object) -> bool:
    """Whether ``data`` is a list of objects, as kubectl prints it."""
    return isinstance(data, dict) and "items" in data and str(data.get("kind", "List")).endswith("List")


def fabric_of_objects(document: Document, *, namespace: str | None = None, node_devices: int | None = None) -> Fabric:
    """The fabric in what ``kubectl get nodes -o json`` printed, or better ``kubectl get nodes,pods -A -o json``."""
    data = document.mapping(document.data, ())
    listed = str(data.get("kind", ""))
    by_kind: dict[str, list[Item]] = {}
    for index, item in enumerate(document.items(data["items"], ("items",))):
        path = ("items", index)
        kind = document.mapping(item, path).get("kind") or listed.removesuffix("List")
        by_kind.setdefault(str(kind), []).append((path, item))
    nodes, pods = by_kind.get("Node", []), by_kind.get("Pod")
    if not nodes:
        held = ", ".join(f"{len(items):,} {kind or 'objects'}" for kind, items in by_kind.items()) or "nothing"
        raise document.error((), f"holds no nodes, but {held}; save `kubectl get nodes,pods -A -o json`")
    fabric, _ = _fabric(document, nodes, pods, namespace=namespace, node_devices=node_devices)
    return joined_by_zone(fabric)


def _fabric(
    document: Document,
    nodes: Sequence[Item],
    pods: Sequence[Item] | None,
    *,
    namespace: str | None,
    node_devices: int | None,
) -> tuple[Fabric, Family | None]:
    """Nodes that have devices, and the family of labels that said the switches above them."""
    seen = [_seen(document, path, item) for path, item in nodes]
    machines = [node for node in seen if node.resource]
    if not machines:
        kinds = ", ".join(RESOURCES)
        raise TopologyError(f"{document.source}: none of {len(seen):,} nodes has devices (capacity of {kinds})")
    held = held_by_pods(document, pods or (), namespace=namespace)
    chains, family = chains_of([node.labels for node in machines])
    instances = Counter(node.instance for node in machines)
    found = []
    for node, chain in zip(machines, chains, strict=True):
        is_instance = node.instance and instances[node.instance] == 1
        found.append(_fabric_node(node, chain, held.get(node.name, Held()), bool(is_instance), node_devices))
    fabric = Fabric(tuple(found), source=str(document.source), remarks=tuple(_remarks(seen, pods, found, family)))
    return fabric, family


@dataclass(frozen=True)
class _Seen:
    """What is read of one node."""

    name: str
    labels: Mapping[str, str]
    instance: str
    """EC2's id; empty elsewhere."""
    resource: str
    n_devices: int
    n_allocatable: int
    trouble: str
    """Why nothing can be scheduled; empty: it can."""


def _seen(document: Document, path: tuple[str | int, ...], item: object) -> _Seen:
    entry = document.mapping(item, path)
    metadata = document.mapping(entry.get("metadata"), (*path, "metadata"))
    spec = document.mapping(entry.get("spec"), (*path, "spec"))
    status = document.mapping(entry.get("status"), (*path, "status"))
    labels = document.mapping(metadata.get("labels"), (*path, "metadata", "labels"))
    for key, value in labels.items():
        if not isinstance(value, str):
            document.text(labels, key, (*path, "metadata", "labels"), needed=True)
    capacity = document.mapping(status.get("capacity"), (*path, "status", "capacity"))
    allocatable = document.mapping(status.get("allocatable"), (*path, "status", "allocatable"))
    resource = next((name for name in RESOURCES if quantity(capacity.get(name)) or quantity(allocatable.get(name))), "")
    return _Seen(
        name=document.text(metadata, "name", (*path, "metadata"), needed=True),
        labels=labels,
        instance=_instance_id(document, metadata, spec, path),
        resource=resource,
        n_devices=max(quantity(capacity.get(resource)), quantity(allocatable.get(resource))),
        n_allocatable=quantity(allocatable.get(resource, capacity.get(resource))),
        trouble=_trouble(document, spec, status, path),
    )


def _instance_id(
    document: Document, metadata: dict[str, Any], spec: dict[str, Any], path: tuple[str | int, ...]
) -> str:
    match = _AWS_ID.fullmatch(document.text(spec, "providerID", (*path, "spec")))
    if match:
        return match.group(1)
    annotations = document.mapping(metadata.get("annotations"), (*path, "metadata", "annotations"))
    try:
        drivers = json.loads(annotations.get(_CSI) or "{}")
    except (TypeError, ValueError):
        return ""
    said = drivers.values() if isinstance(drivers, dict) else ()
    return next((value for value in said if isinstance(value, str) and _EC2_ID.fullmatch(value)), "")


def _trouble(document: Document, spec: dict[str, Any], status: dict[str, Any], path: tuple[str | int, ...]) -> str:
    place = (*path, "status", "conditions")
    conditions = [
        document.mapping(item, (*place, index))
        for index, item in enumerate(document.items(status.get("conditions"), place))
    ]
    ready = next((condition for condition in conditions if condition.get("type") == "Ready"), {})
    if ready.get("status") != "True":
        reason = ready.get("reason")
        return f"not ready ({reason})" if isinstance(reason, str) and reason else "not ready"
    if spec.get("unschedulable") is True:
        return "cordoned"
    place = (*path, "spec", "taints")
    for index, item in enumerate(document.items(spec.get("taints"), place)):
        taint = document.mapping(item, (*place, index))
        key = document.text(taint, "key", (*place, index))
        if key.startswith(_BAD_TAINTS) and taint.get("effect") in ("NoSchedule", "NoExecute"):
            return f"tainted {key}"
    return ""


def _fabric_node(
    node: _Seen, chain: tuple[str, ...], held: Held, is_instance: bool, node_devices: int | None
) -> FabricNode:
    n_held = held.by_resource[node.resource]
    needed = min(node_devices or node.n_devices, node.n_devices)
    state: State = "free"
    why = ""
    if n_held and (node.trouble or node.n_allocatable - n_held < needed):
        state = "busy"
    elif node.trouble:
        state, why = "unusable", node.trouble
    elif node.n_allocatable < needed:
        state, why = "unusable", f"{node.n_allocatable} of {node.n_devices} devices are healthy"
    job = held.job if state == "busy" else ""
    return FabricNode(
        name=node.instance if is_instance else node.name,
        switches=chain,
        host=node.name if is_instance else "",
        n_devices=node.n_devices,
        state=state,
        job=job,
        rank=held.ranks.get(job),
        domain=domain_of(node.labels),
        instance_type=node.labels.get(INSTANCE_TYPE, ""),
        zone=node.labels.get(ZONE, ""),
        region=node.labels.get(REGION, ""),
        why_unusable=why,
    )


def _remarks(
    seen: Sequence[_Seen], pods: Sequence[Item] | None, nodes: Sequence[FabricNode], family: Family | None
) -> Iterator[str]:
    if pods is None:
        yield "pods are not in the file, so nodes that hold jobs look free; save `kubectl get nodes,pods -A -o json`"
    if len(nodes) < len(seen):
        yield f"{len(seen) - len(nodes):,} nodes without devices are left out"
    n_silent = sum(not node.switches for node in nodes)
    if family is None:
        yield "no node has labels that say what switches are above it"
    elif n_silent:
        yield f"{n_silent:,} nodes have no labels {family.name}"


# The cluster


def read_kubernetes(
    *,
    context: str | None = None,
    namespace: str | None = None,
    region: str | None = None,
    zone: str | None = None,
    instance_type: str | None = None,
    node_devices: int | None = None,
) -> Fabric:
    """Nodes and pods of the cluster that the kubeconfig (or the pod this runs in) points to."""
    with _cluster(context) as cluster:
        wanted = {INSTANCE_TYPE: instance_type, ZONE: zone}
        selector = ",".join(f"{key}={value}" for key, value in wanted.items() if value and _is_plain(value))
        nodes = cluster.listed("nodes", label_selector=selector) if selector else []
        nodes = nodes or cluster.listed("nodes")
        pods, remarks = _running_pods(cluster, namespace)
        document = Document(cluster.name, {"nodes": nodes, "pods": pods})
        fabric, family = _fabric(
            document,
            [(("nodes", index), item) for index, item in enumerate(nodes)],
            [(("pods", index), item) for index, item in enumerate(pods)],
            namespace=namespace,
            node_devices=node_devices,
        )
    fabric = replace(fabric, remarks=(*fabric.remarks, *remarks))
    if family is AWS or family not in FAMILIES:
        fabric = _with_ec2(fabric, family, region)
    return joined_by_zone(fabric)


def _is_plain(value: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", value) is not None


def _running_pods(cluster: _Cluster, namespace: str | None) -> tuple[list[Any], tuple[str, ...]]:
    try:
        return cluster.listed("pods", field_selector=RUNNING_PODS), ()
    except _NotAllowedError as error:
        if namespace is None:
            told = (
                f"{error}; without them nodes that hold jobs look free. Ask for it, or give --namespace to count the "
                "pods of one namespace alone"
            )
            raise TopologyError(told) from None
    pods = cluster.listed("pods", namespace=namespace, field_selector=RUNNING_PODS)
    return pods, (f"only pods of {namespace} can be seen; nodes that other namespaces use look free",)


def _with_ec2(fabric: Fabric, family: Family | None, region: str | None) -> Fabric:
    """``fabric`` with what EC2 says of instances whose labels say nothing, if it is the same account that answers."""
    silent = [node for node in fabric.nodes if _EC2_ID.fullmatch(node.name) and not (node.switches and family is AWS)]
    if not silent:
        return fabric
    asked = [node for node in fabric.nodes if _EC2_ID.fullmatch(node.name)]
    found: dict[str, FabricNode] = {}
    who = ""
    try:
        for place in sorted({node.region or region or "" for node in asked}):
            ids = [node.name for node in asked if (node.region or region or "") == place]
            entries, who = topology_of_instances(ids, region=place or None)
            answer = fabric_of_instances(Document(who, {"Instances": list(entries.values())}), region=place)
            found |= {node.name: node for node in answer.nodes if node.switches}
    except DlcalcError as error:
        return _remarked(fabric, f"{len(silent):,} instances have no labels of network nodes, and {error}")
    labelled = [node for node in asked if node.switches and family is AWS]
    if any(node.name not in found or not _agree(found[node.name], node) for node in labelled):
        told = f"{who} is not the account whose network nodes the labels name; {len(silent):,} instances have none"
        return _remarked(fabric, told)
    nodes = tuple(
        replace(node, switches=found[node.name].switches, domain=node.domain or found[node.name].domain)
        if node.name in found
        else replace(node, switches=() if found else node.switches)
        for node in fabric.nodes
    )
    return _remarked(replace(fabric, nodes=nodes), f"{who} said the network nodes of {len(found):,} instances")


def _agree(a: FabricNode, b: FabricNode) -> bool:
    """Whether the shorter of two chains is how the other begins; zones that were put on top do not count."""
    shorter = min(len(a.switches), len(b.switches))
    return a.switches[:shorter] == b.switches[:shorter]


def _remarked(fabric: Fabric, remark: str) -> Fabric:
    return replace(fabric, remarks=(*fabric.remarks, remark))


class _NotAllowedError(TopologyError):
    """The cluster knows who asks, and says no."""


@dataclass(frozen=True)
class _Cluster:
    """A client of one cluster."""

    api: Any
    name: str

    def listed(self, kind: str, *, namespace: str | None = None, **selectors: str) -> list[Any]:
        """Every object of ``kind``, page by page; from the beginning again if a page took too long to be asked for."""
        if kind == "nodes":
            call = self.api.list_node
        elif namespace is None:
            call = self.api.list_pod_for_all_namespaces
        else:
            call, selectors = self.api.list_namespaced_pod, {**selectors, "namespace": namespace}
        what = kind if namespace is None else f"{kind} in {namespace}"
        for _ in range(2):
            found = self._pages(call, what, selectors)
            if found is not None:
                return found
        raise TopologyError(f"{self.name}: the list of {what} changes faster than it can be read; try again")

    def _pages(self, call: Callable[..., Any], what: str, selectors: Mapping[str, str]) -> list[Any] | None:
        """None: the server no longer holds the list that the next page belongs to."""
        items: list[Any] = []
        token: str | None = None
        while True:
            more = {} if token is None else {"_continue": token}
            answer = self._answer(call, what, {**selectors, **more})
            if answer is None:
                return None
            try:
                page = json.loads(answer)
                items += page["items"] or []
                following = (page.get("metadata") or {}).get("continue") or None
            except (ValueError, TypeError, KeyError, AttributeError):
                raise TopologyError(f"{self.name}: what answers is no Kubernetes API server") from None
            if following is None:
                return items
            if following == token:
                raise TopologyError(f"{self.name}: the server answers one page of {what} again and again")
            token = following

    def _answer(self, call: Callable[..., Any], what: str, arguments: Mapping[str, str]) -> bytes | None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        for attempt in range(ATTEMPTS):
            try:
                response = call(limit=PAGE, _preload_content=False, _request_timeout=TIMEOUT_S, **arguments)
                data: bytes = response.data
                response.release_conn()
                return data
            except ApiException as error:
                if error.status == _EXPIRED_PAGE and "_continue" in arguments:
                    return None
                if error.status not in _BUSY_SERVER or attempt == ATTEMPTS - 1:
                    _refuse(self.name, what, error)
                time.sleep(2.0**attempt)
            except HTTPError as error:
                raise TopologyError(f"{self.name}: cannot be reached: {_reason(error)}") from None
        raise AssertionError("the last attempt answers or raises")


def _refuse(name: str, what: str, error: Any) -> NoReturn:  # noqa: ANN401 - the client has no types
    try:
        told = " ".join(str(json.loads(error.body)["message"]).split())
    except (TypeError, ValueError, KeyError):
        told = str(error.reason)
    if error.status == 401:
        raise TopologyError(f"{name}: the credentials were refused (401); log in again")
    if error.status == 403 and "system:anonymous" in told:
        raise TopologyError(f"{name}: the kubeconfig gives no credentials, and nobody may list {what} (403)")
    if error.status == 403:
        raise _NotAllowedError(f"{name}: not allowed to list {what} (403): {told[:300]}")
    raise TopologyError(f"{name}: cannot list {what} ({error.status}): {told[:300]}")


def _reason(error: Exception) -> str:
    """The innermost reason of a failed connection, in one line."""
    inner: BaseException = error
    while isinstance(deeper := getattr(inner, "reason", None), BaseException):
        inner = deeper
    told = " ".join(str(inner).split())
    told = re.sub(r"^<?[\w.]*(HTTPSConnection|HTTPConnection)[^>]*>?: ", "", told)
    if "CERTIFICATE_VERIFY_FAILED" in told:
        return f"its certificate is not what the kubeconfig trusts ({told[-120:]})"
    return told[:300]


@contextlib.contextmanager
def _cluster(context: str | None) -> Iterator[_Cluster]:
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        raise TopologyError("kubernetes: its client is not installed; pip install 'dlcalc[topology]'") from None
    # The client makes one of a class that it guards against being made by name.
    settings = type.__call__(client.Configuration)
    name = _configure(config, settings, context)
    settings.retries = 0  # those of urllib3 are told on the terminal
    api: Any = client.ApiClient(configuration=settings)
    try:
        yield _Cluster(client.CoreV1Api(api), name)
    finally:
        api.rest_client.pool_manager.clear()
        api.close()


def _configure(config: Any, settings: Any, context: str | None) -> str:  # noqa: ANN401 - the client has no types
    """Fill ``settings``, and say by what name people know the cluster."""
    import yaml

    paths = os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(os.path.expanduser(path)) for path in paths.split(os.pathsep) if path]
    if not any(file.exists() for file in files):
        if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
            return _configure_in_cluster(config, settings)
        told = " and ".join(map(str, files))
        raise TopologyError(f"kubernetes: no kubeconfig at {told}; set KUBECONFIG, or read a saved file")
    try:
        contexts, current = config.list_kube_config_contexts(config_file=paths)
        names = [entry["name"] for entry in contexts]
        chosen = context or current["name"]
        if chosen not in names:
            raise TopologyError(f"kubernetes: no context {chosen} in {paths}; {suggestion(chosen, names)}")
        with _complaints() as said:
            config.load_kube_config(
                config_file=paths, context=chosen, client_configuration=settings, persist_config=False
            )
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise TopologyError(f"kubernetes: {paths}: {' '.join(str(error).split())[:300]}") from None
    except (AttributeError, KeyError, TypeError):
        raise TopologyError(f"kubernetes: {paths}: is no kubeconfig") from None
    if said:
        raise TopologyError(f"kubernetes {chosen}: the login that the kubeconfig names failed: {said[0][:300]}")
    return f"kubernetes {chosen}"


def _configure_in_cluster(config: Any, settings: Any) -> str:  # noqa: ANN401 - the client has no types
    try:
        config.load_incluster_config(client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise TopologyError(f"kubernetes: in this pod: {' '.join(str(error).split())[:300]}") from None
    return "kubernetes (this pod's cluster)"


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client writes to the log about a login command that fails, instead of raising it."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                said.append(" ".join(record.getMessage().split()))

    handler = Collect()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)
