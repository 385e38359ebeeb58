"""Which job: by its degrees, or by a plan of a result or a run file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcalc.errors import DlcalcError, TopologyError
from dlcalc.search.run import Run
from dlcalc.topology.fabric import FabricNode
from dlcalc.workflows.run import open_run

USUAL_NODE_DEVICES = 8
DEGREES = ("tp", "pp", "dp", "cp", "ep", "etp")


@dataclass(frozen=True, kw_only=True)
class JobChoice:
    """What a user says of a job: degrees, or a plan that has them."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    node_devices: int | None = None
    plan: Path | None = None
    rank: int | None = None
    scenario: str | None = None


def degrees_of(chosen: JobChoice) -> tuple[dict[str, int], Run | None]:
    """Degrees as given, or from the plan."""
    given = {name: getattr(chosen, name) for name in DEGREES}
    said = {name: degree for name, degree in given.items() if degree is not None}
    if chosen.plan is None:
        for option, value in (("--rank", chosen.rank), ("--scenario", chosen.scenario)):
            if value is not None:
                raise TopologyError(f"{option} picks a plan: give --plan as well")
        missing = [f"--{name}" for name in ("tp", "pp", "dp") if name not in said]
        if missing:
            raise TopologyError(f"{' and '.join(missing)} missing: give --tp, --pp and --dp, or --plan")
        return said, None
    if said:
        raise TopologyError(f"--{next(iter(said))} and --plan both say the degrees; give one of them")
    run = open_run(chosen.plan, rank=chosen.rank, scenario=chosen.scenario).resolve({})
    return {name: int(getattr(run.plan, name)) for name in DEGREES}, run


def node_devices_of(given: int | None, run: Run | None, nodes: Sequence[FabricNode]) -> int:
    """Devices of a node: as told, else the plan's where nodes have so many, else what all nodes have."""
    if given is not None:
        return given
    sizes = {node.n_devices for node in nodes}
    planned = run.hardware.node.devices_of_job(run.devices) if run else USUAL_NODE_DEVICES
    if planned in sizes or len(sizes) != 1:
        return planned
    return sizes.pop()


def write_text(file: Path, text: str) -> None:
    """Write a file; one line if that cannot be."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
