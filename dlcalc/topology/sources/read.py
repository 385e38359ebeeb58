"""From what the user names (a file, or a service) to a fabric whose nodes say whether they can be used, and why not.

Every source is read whole: nodes of another zone or kind, and excluded ones, stay in the fabric as unusable, so that a
picture shows them and an answer can say how many there were.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable
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
    if not fabric.nodes:
        raise TopologyError(f"{fabric.source or topology}: there are no nodes")
    for kind, wanted in (("region", region), ("zone", zone), ("instance_type", instance_type)):
        if wanted is not None:
            fabric = _only_of_kind(fabric, kind, wanted)
    if node_devices is not None:
        fabric = _with_enough_devices(fabric, node_devices)
    fabric = _without(fabric, exclude)
    if job_prefix is not None and not fabric.of_job(job_prefix):
        raise TopologyError(_no_such_job(fabric, job_prefix))
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
    if not file.exists() and "/" not in topology and "." not in topology:
        near = nearest(topology, SERVICES)
        hint = f"; did you mean {' or '.join(near)}?" if near else f" and no service ({', '.join(SERVICES)})"
        raise TopologyError(f"--topology {topology}: no such file{hint}")
    return read_fabric_file(file, namespace=namespace, node_devices=node_devices)


def _only_of_kind(fabric: Fabric, kind: str, wanted: str) -> Fabric:
    """Nodes whose ``kind`` is another cannot be used; an error if that leaves none."""
    word = kind.replace("_", " ")

    def complaint(node: FabricNode) -> str:
        said = getattr(node, kind)
        if fnmatch.fnmatchcase(said, wanted):
            return ""
        return f"{word} {said}, not {wanted}" if said else f"{word} is not known"

    there = Counter(getattr(node, kind) for node in fabric.nodes)
    if not any(fnmatch.fnmatchcase(said, wanted) for said in there):
        if set(there) == {""}:
            raise TopologyError(f"{fabric.source}: no node says its {word}, so {wanted} cannot be chosen")
        known = ", ".join(f"{said or 'not known'} ({count:,})" for said, count in there.most_common(MAX_TOLD))
        raise TopologyError(f"{fabric.source}: no node is of {word} {wanted}; there are {known}")
    return _unusable_where(fabric, complaint)


def _with_enough_devices(fabric: Fabric, node_devices: int) -> Fabric:
    def complaint(node: FabricNode) -> str:
        return f"has {node.n_devices} devices, not {node_devices}" if node.n_devices < node_devices else ""

    return _unusable_where(fabric, complaint)


def _unusable_where(fabric: Fabric, complaint: Callable[[FabricNode], str]) -> Fabric:
    """Free nodes of which something is said cannot be used; busy ones stay what they are."""

    def judged(node: FabricNode) -> FabricNode:
        why = complaint(node) if node.state == "free" else ""
        return replace(node, state="unusable", why_unusable=why) if why else node

    return replace(fabric, nodes=tuple(map(judged, fabric.nodes)))


def _without(fabric: Fabric, exclude: Collection[str]) -> Fabric:
    if not exclude:
        return fabric
    named: dict[str, list[str]] = {}
    for node in fabric.nodes:
        for name in dict.fromkeys((node.name, node.host_name)):
            named.setdefault(name, []).append(node.name)
    gone: set[str] = set()
    for item in sorted(exclude):
        for name in _names_of(item, named):
            if name not in named:
                near = nearest(name, named)
                told = suggestion(name, near) if near else f"{fabric.source} has {len(fabric.nodes):,} nodes, none so"
                raise TopologyError(f"--exclude {name}: no such node; {told}")
            gone.update(named[name])
    return _unusable_where(fabric, lambda node: "excluded" if node.name in gone else "")


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


def _no_such_job(fabric: Fabric, prefix: str) -> str:
    jobs = sorted({node.job for node in fabric.nodes if node.state == "busy" and node.job})
    if not jobs:
        return f"{fabric.source}: no node says which job it holds, so none of {prefix} is known"
    near = nearest(prefix, jobs)
    shown = near or jobs[:MAX_TOLD]
    more = f" and {len(jobs) - MAX_TOLD:,} more" if not near and len(jobs) > MAX_TOLD else ""
    told = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(shown)}{more}"
    return f"{fabric.source}: no job begins with {prefix}; {told}"
