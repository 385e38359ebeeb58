"""From what the user names (a file, or a service) to a fabric whose nodes say whether they can be used, and why not.

Every source is read whole: nodes of another zone or kind, and excluded ones, stay in the fabric as unusable, so that a
picture shows them and an answer can say how many there were.
"""

from __future__ import annotations

import bisect
import fnmatch
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dlcalc.errors import TopologyError, nearest, suggestion
from dlcalc.specs.load import read_text
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.sources.ec2 import read_ec2, read_ec2_reservations
from dlcalc.topology.sources.file import read_fabric_file
from dlcalc.topology.sources.hostlist import expand
from dlcalc.topology.sources.kubernetes import read_kubernetes
from dlcalc.topology.sources.plain import save_fabric
from dlcalc.topology.sources.slurm import read_slurm

__all__ = ["SERVICES", "exclusions", "read_fabric", "save_fabric"]

SERVICES = ("ec2", "ec2-reservations", "kubernetes", "slurm")
"""Words that ask a service; anything else is the name of a file."""

MAX_TOLD = 8
MAX_NEIGHBOURS = 2000


def read_fabric(
    topology: str,
    *,
    region: str | None = None,
    zone: str | None = None,
    instance_type: str | None = None,
    job_prefix: str | None = None,
    kube_context: str | None = None,
    namespace: str | None = None,
    exclude: Collection[str] = (),
    node_devices: int | None = None,
) -> Fabric:
    """The fabric that ``topology`` names: a service, or a file saved from one or written by hand.

    Nodes outside ``region``, ``zone`` and ``instance_type`` (which may hold ``*``), with fewer than ``node_devices``
    devices, or in ``exclude`` (by name or host, hostlists too) are unusable. With ``job_prefix``, such a job must run.
    """
    fabric = _read(
        topology,
        region=region,
        zone=zone,
        instance_type=instance_type,
        kube_context=kube_context,
        namespace=namespace,
        node_devices=node_devices,
    )
    where = fabric.source if topology in SERVICES else topology
    if not fabric.nodes:
        raise TopologyError(f"{where}: there are no nodes")
    wanted = {"region": region, "zone": zone, "instance_type": instance_type}
    judges = [_of_kind(fabric, kind, pattern, where) for kind, pattern in wanted.items() if pattern is not None]
    if node_devices is not None:
        judges.append(_with_devices(node_devices))
    if exclude:
        judges.append(_not_among(_named(fabric, exclude, where)))
    fabric = _judged(fabric, judges)
    if job_prefix is not None and not fabric.of_job(job_prefix):
        raise TopologyError(_no_such_job(fabric, job_prefix, where))
    return fabric


def _read(
    topology: str,
    *,
    region: str | None,
    zone: str | None,
    instance_type: str | None,
    kube_context: str | None,
    namespace: str | None,
    node_devices: int | None,
) -> Fabric:
    if topology == "slurm":
        return read_slurm(node_devices=node_devices)
    if topology in {"ec2", "ec2-reservations"}:
        read = read_ec2 if topology == "ec2" else read_ec2_reservations
        return read(region=region, zone=zone, instance_type=instance_type, node_devices=node_devices)
    if topology == "kubernetes":
        return read_kubernetes(
            context=kube_context,
            namespace=namespace,
            region=region,
            zone=zone,
            instance_type=instance_type,
            node_devices=node_devices,
        )
    file = Path(topology)
    if not os.path.exists(file) and "/" not in topology and "." not in topology:
        near = nearest(topology, SERVICES)
        hint = f"; did you mean {' or '.join(near)}?" if near else f" and no service ({', '.join(SERVICES)})"
        raise TopologyError(f"--topology {topology}: no such file{hint}")
    return read_fabric_file(file, namespace=namespace, node_devices=node_devices)


Judge = Callable[[FabricNode], str]
"""Why a node cannot be used; empty: it can."""


def _of_kind(fabric: Fabric, kind: str, wanted: str, where: str) -> Judge:
    """Nodes whose ``kind`` is another cannot be used; an error if that leaves none."""
    word = kind.replace("_", " ")
    there = Counter(getattr(node, kind) for node in fabric.nodes)
    fitting = {said for said in there if fnmatch.fnmatchcase(said, wanted)}
    if not fitting:
        if set(there) == {""}:
            raise TopologyError(f"{where}: no node says its {word}, so {wanted} cannot be chosen")
        known = ", ".join(f"{said or 'not known'} ({count:,})" for said, count in there.most_common(MAX_TOLD))
        raise TopologyError(f"{where}: no node is of {word} {wanted}; there are {known}")

    def judge(node: FabricNode) -> str:
        said = getattr(node, kind)
        if said in fitting:
            return ""
        return f"{word} {said}, not {wanted}" if said else f"{word} is not known"

    return judge


def _with_devices(node_devices: int) -> Judge:
    return lambda node: f"has {node.n_devices} devices, not {node_devices}" if node.n_devices < node_devices else ""


def _not_among(names: Collection[str]) -> Judge:
    return lambda node: "excluded" if node.name in names else ""


def _judged(fabric: Fabric, judges: Sequence[Judge]) -> Fabric:
    """Free nodes of which something is said cannot be used; busy ones stay what they are."""
    if not judges:
        return fabric

    def judged(node: FabricNode) -> FabricNode:
        if node.state != "free":
            return node
        why = next(filter(None, (judge(node) for judge in judges)), "")
        return replace(node, state="unusable", why_unusable=why) if why else node

    return replace(fabric, nodes=tuple(map(judged, fabric.nodes)))


def _named(fabric: Fabric, items: Collection[str], where: str) -> set[str]:
    """Names of the nodes that ``items`` mean, by name, host or hostlist; an error if there is none of that name."""
    by_host: dict[str, list[str]] = {}
    for node in fabric.nodes:
        by_host.setdefault(node.host_name, []).append(node.name)
    known = fabric.by_name.keys() | by_host.keys()
    found: set[str] = set()
    for item in sorted(items):
        for name in _names_of(item, known):
            if name not in known:
                near = nearest(name, _neighbours(name, known))
                told = suggestion(name, near) if near else f"{where} has {len(fabric.nodes):,} nodes, none so"
                raise TopologyError(f"--exclude {name}: no such node; {told}")
            found.update([name] if name in fabric.by_name else by_host[name])
    return found


def _neighbours(name: str, known: Collection[str]) -> Sequence[str]:
    """All of ``known``, or of very many those that begin as ``name`` does."""
    names = sorted(known)
    place = bisect.bisect_left(names, name)
    return names[max(0, place - MAX_NEIGHBOURS) : place + MAX_NEIGHBOURS]


def _names_of(item: str, known: Collection[str]) -> list[str]:
    if item in known or not set("[,") & set(item):
        return [item]
    try:
        return expand(item)
    except ValueError as error:
        raise TopologyError(f"--exclude {item}: {error}") from None


def exclusions(items: Iterable[str]) -> set[str]:
    """What ``--exclude`` was given: names, and for ``@FILE`` every name in it (one per line, ``#`` is a comment).

    Whether such nodes exist is for ``read_fabric`` to say.
    """
    found: set[str] = set()
    for item in items:
        if item == "@":
            raise TopologyError("--exclude @: the name of a file is missing after @")
        lines = read_text(Path(item[1:])).splitlines() if item.startswith("@") else [item]
        found.update(name for line in lines for name in line.split("#", 1)[0].split())
    return found


def _no_such_job(fabric: Fabric, prefix: str, where: str) -> str:
    jobs = sorted({node.job for node in fabric.nodes if node.state == "busy" and node.job})
    if not jobs:
        return f"{where}: no node says which job it holds, so none of {prefix} is known"
    near = nearest(prefix, jobs)
    shown = near or jobs[:MAX_TOLD]
    more = f" and {len(jobs) - MAX_TOLD:,} more" if not near and len(jobs) > MAX_TOLD else ""
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(shown)}{more}"
    return f"{where}: no job begins with {prefix}; {told}"
