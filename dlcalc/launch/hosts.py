"""Host names by node rank, from what ``topoassign --json`` printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlcalc.errors import TopologyError
from dlcalc.launch.job import PlanValues
from dlcalc.launch.ranks import HOST

DEGREES = ("tp", "cp", "pp", "dp", "ep", "etp")


def hosts_of_placement(document: Any, file: Path, plan: PlanValues, host_devices: int) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """The hosts of a placement of ``plan``; another job's placement is refused."""
    if not isinstance(document, dict) or not isinstance(document.get("hosts"), list):
        raise TopologyError(f"{file}: not a placement: what topoassign --json prints has hosts")
    hosts = document["hosts"]
    strange = [host for host in hosts if not isinstance(host, str) or not HOST.fullmatch(host)]
    if strange:
        raise TopologyError(f"{file}: hosts: {strange[0]!r} is no host name")
    job = document.get("job")
    if isinstance(job, Mapping):
        _check_job(job, file, plan)
    if len(hosts) * host_devices != plan.devices:
        raise TopologyError(
            f"{file}: {len(hosts)} hosts of {host_devices} devices do not hold the {plan.devices} devices of the plan"
        )
    return tuple(hosts)


def _check_job(job: Mapping[str, Any], file: Path, plan: PlanValues) -> None:
    other = [f"{knob} = {job[knob]}" for knob in DEGREES if knob in job and job[knob] != getattr(plan, knob)]
    if other:
        own = ", ".join(f"{knob} = {getattr(plan, knob)}" for knob in DEGREES if knob in job)
        raise TopologyError(f"{file}: placed was another job, with {', '.join(other)}; the plan has {own}")
