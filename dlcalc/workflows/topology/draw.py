"""topoviz: the fabric and what runs on it, as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlcalc.errors import TopologyError, UnknownNameError
from dlcalc.report.topology_facts import Drawing
from dlcalc.report.topology_page import DrawnRing, topology_page
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.sources.read import read_fabric, save_fabric
from dlcalc.workflows.topology.jobs import some, write_text


def draw_fabric(
    job_prefix: str | None,
    *,
    topology: str,
    out: Path,
    pp: int | None = None,
    placement: Path | None = None,
    save: Path | None = None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Drawing:
    """The page of a fabric, with the rings of running or of planned jobs."""
    if pp is not None and job_prefix is None:
        raise TopologyError("--pp splits a job into rings: give JOB_PREFIX")
    fabric = read_fabric(topology, job_prefix=job_prefix, **where)
    if save is not None:
        save_fabric(fabric, save)
    remarks = list(fabric.remarks)
    if placement is not None:
        rings = _planned_rings(placement, fabric)
        title = f"{placement.name} on {fabric.source or topology}"
    elif job_prefix is not None:
        rings = _running_rings(fabric, job_prefix, pp or 1)
        title = f"{job_prefix} on {fabric.source or topology}"
    else:
        rings, title = [], fabric.source or topology
    without = [node.name for node in fabric.nodes if not node.switches]
    if without:
        remarks.append(f"no topology data: {some(without)}")
    write_text(out, topology_page(fabric, rings, title=title, remarks=remarks))
    return Drawing(fabric=fabric, rings=tuple(rings), page=out, remarks=tuple(remarks))


def _running_rings(fabric: Fabric, prefix: str, n_rings: int) -> list[DrawnRing]:
    members = fabric.of_job(prefix)
    jobs = list(dict.fromkeys(node.job for node in members))
    found = []
    for job in jobs:
        nodes = [node.name for node in members if node.job == job]
        if len(nodes) % n_rings:
            raise TopologyError(f"job {job} runs on {len(nodes):,} nodes, which are not {n_rings:,} equal stages")
        size = len(nodes) // n_rings
        for stage in range(n_rings):
            label = f"{job if len(jobs) > 1 or n_rings == 1 else ''} {f'stage {stage}' if n_rings > 1 else ''}".strip()
            found.append(DrawnRing(label, tuple(nodes[stage * size : (stage + 1) * size]), stage * size))
    return found


def _planned_rings(file: Path, fabric: Fabric) -> list[DrawnRing]:
    """Rings of what ``topoassign --json`` printed."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TopologyError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"{file}: not what topoassign --json prints ({error})") from error
    rings = document.get("rings") if isinstance(document, dict) else None
    if not isinstance(rings, list) or not all(
        isinstance(ring, list) and ring and all(isinstance(name, str) for name in ring) for ring in rings
    ):
        raise TopologyError(f"{file}: not what topoassign --json prints: rings is no list of lists of nodes")
    found, first, seen = [], 0, set[str]()
    for stage, ring in enumerate(rings):
        for name in ring:
            if name not in fabric.by_name:
                raise TopologyError(f"{file}: {UnknownNameError('node', name, fabric.by_name)}")
            if name in seen:
                raise TopologyError(f"{file}: node {name} is in two places")
            seen.add(name)
        found.append(DrawnRing(f"stage {stage}", tuple(ring), first))
        first += len(ring)
    return found
