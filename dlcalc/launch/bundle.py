"""All files of a launch, by name: what the trainer reads, what starts it, what to expect, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dlcalc import __version__
from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.machines import checked_hosts
from dlcalc.launch.measured_row import measured_table
from dlcalc.launch.ranks import slurm_hostfile
from dlcalc.launch.readme import README, readme
from dlcalc.launch.schedulers.write import Scheduler, scheduled
from dlcalc.launch.shell import checked_name
from dlcalc.launch.train_script import TRAIN_SCRIPT, train_script
from dlcalc.utils.jsontext import to_json

MANIFEST, HOSTFILE = "launch.json", "hostfile"
FORMAT = 1
"""Of launch.json; raised when a key changes its name or meaning."""


def bundle(job: Job, emitted: Emitted, scheduler: Scheduler) -> Mapping[str, str]:
    """The files of ``job``; the same job always gives the same text."""
    on_hosts = _together({TRAIN_SCRIPT: train_script(job, emitted)}, emitted.files)
    hosts = checked_hosts(job)
    table = measured_table(job)
    files = _together(
        on_hosts,
        scheduled(job, emitted, scheduler, on_hosts),
        {HOSTFILE: slurm_hostfile(hosts, node_tasks=1)} if hosts else {},
        table.files,
    )
    about = {
        MANIFEST: to_json(manifest(job, emitted, scheduler, sorted([*files, MANIFEST, README]))) + "\n",
        README: readme(job, emitted, scheduler, table, files),
    }
    return _together(files, about)


def manifest(job: Job, emitted: Emitted, scheduler: Scheduler, files: list[str]) -> dict[str, Any]:
    """What programs read of the launch."""
    told = job.prediction
    return {
        "format": FORMAT,
        "dlcalc": __version__,
        "name": checked_name(job),
        "target": job.target,
        "scheduler": scheduler,
        "container": job.container,
        "model": job.model.model_dump(mode="json"),
        "hardware": job.hardware.name,
        "devices": job.devices,
        "host_devices": job.host_devices,
        "hosts": list(job.hosts),
        "recipe": {
            "seq_len": job.recipe.seq_len,
            "global_batch": job.recipe.global_batch,
            "precision": job.recipe.precision,
            "framework": job.recipe.framework.name,
            "mfu_convention": job.recipe.mfu_convention,
            "cuda_graphs": job.recipe.cuda_graphs,
        },
        "plan": job.plan.as_dict(),
        "chunk_layers": list(job.chunk_layers),
        "estimate": {
            **asdict(told),
            "framework": job.recipe.framework.name,
            "other_costs": [asdict(other) for other in job.other_costs],
        },
        "notes": [*job.told, *emitted.notes],
        "files": files,
    }


def _together(*parts: Mapping[str, str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for part in parts:
        for name, text in part.items():
            if name in files or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{name!r} cannot be a file of the bundle: it is taken, or lies outside of it")
            files[name] = text
    return files
