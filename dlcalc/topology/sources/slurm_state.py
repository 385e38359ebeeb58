"""What ``scontrol show nodes`` and ``show jobs`` say: which nodes are free, and which job holds the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from dlcalc.topology.fabric import FabricNode
from dlcalc.topology.sources.hostlist import expand

_PAIR = re.compile(r"(?:^|(?<=\s))([A-Za-z][A-Za-z/:_]*)=(.*?)(?=\s+[A-Za-z][A-Za-z/:_]*=|$)")
_GPUS = re.compile(r"(?:^|,)gpu(?::(?:[^:,()]+|\(null\)))?:(\d+)")

_IN_USE = {"ALLOCATED", "COMPLETING", "MIXED"}
_IDLE = {"IDLE"}
_HARMLESS = {"CLOUD", "DYNAMIC_NORM", "DYNAMIC_FUTURE", "POWERED_DOWN", "POWERING_UP", "POWER_UP", "PLANNED"}
"""Flags of nodes that a job can be given: Slurm powers up those that are down to save power."""
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "RESIZING", "STAGE_OUT"}


def records(line: str) -> dict[str, str]:
    """``Key=value Key=value`` with keys in lower case; a value may hold spaces, and ends where a key begins."""
    found: dict[str, str] = {}
    for key, value in _PAIR.findall(line):
        found.setdefault(key.lower(), value.strip())
    return found


def job_of(jobs: Iterable[dict[str, str]]) -> dict[str, tuple[str, int, str]]:
    """Of each node that one job holds alone or first: its name, the node's place in its node list, its id."""
    found: dict[str, tuple[str, int, str]] = {}
    for job in sorted(jobs, key=lambda job: (len(job.get("jobid", "")), job.get("jobid", ""))):
        if job.get("jobstate", "").split("+")[0].upper() not in _RUNNING:
            continue
        try:
            names = expand(job.get("nodelist", "")) if job.get("nodelist") not in {None, "(null)"} else []
        except ValueError:
            continue
        for rank, name in enumerate(names):
            found.setdefault(name, (job.get("jobname") or job.get("jobid", ""), rank, job.get("jobid", "")))
    return found


def node_of(
    name: str,
    switches: tuple[str, ...],
    record: dict[str, str],
    job: tuple[str, int, str] | None,
    *,
    node_devices: int | None,
) -> FabricNode:
    """A node as Slurm sees it; without devices of type gpu, it is taken to have ``node_devices``."""
    n_told = _n_devices(record.get("gres", ""))
    n_devices = n_told or node_devices or FabricNode("x").n_devices
    state, why = _state(record, n_devices=n_devices, needed=node_devices or n_devices)
    is_busy = state == "busy" and job is not None
    host = record.get("nodehostname", "")
    return FabricNode(
        name,
        switches,
        host="" if host == name else host,
        n_devices=n_devices,
        state=state,
        job=job[0] if is_busy and job else "",
        rank=job[1] if is_busy and job else None,
        why_unusable=why,
    )


def _state(record: dict[str, str], *, n_devices: int, needed: int) -> tuple[Literal["free", "busy", "unusable"], str]:
    """Slurm's state (``IDLE+DRAIN``, ``MIXED*``) as ours, and why a node that is neither free nor busy is not."""
    base, *flags_told = record.get("state", "UNKNOWN").upper().split("+")
    flags = {flag.strip("*") for flag in flags_told} | ({"NOT_RESPONDING"} if base.endswith("*") else set())
    base = base.rstrip("*~#!%$@^-")
    bad = flags - _HARMLESS
    n_used = _n_devices(record.get("gresused", ""))
    if base == "MIXED" and not bad and "gresused" in record and n_devices - n_used >= needed:
        return "free", ""
    if base in _IN_USE or "COMPLETING" in flags:
        return "busy", ""
    if base in _IDLE and not bad:
        return "free", ""
    reason = record.get("reason", "")
    told = "+".join([base, *sorted(bad)]).lower()
    return "unusable", f"{told}: {reason}" if reason else told


def _n_devices(gres: str) -> int:
    return sum(map(int, _GPUS.findall(gres)))
