"""A job in the words of its scheduler: one function for all of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.schedulers import kubernetes, slurm, torchrun

Scheduler = Literal["slurm", "trainjob", "jobset", "pytorchjob", "torchrun"]
SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)


def scheduled(job: Job, emitted: Emitted, scheduler: Scheduler, bundle: Mapping[str, str]) -> Mapping[str, str]:
    """Files that start the job, by name; ``bundle`` is what hosts need besides: ``train.sh`` and what it names."""
    match scheduler:
        case "slurm":
            return slurm.files(job, emitted, bundle)
        case "torchrun":
            return torchrun.files(job, emitted, bundle)
        case "trainjob" | "jobset" | "pytorchjob":
            return kubernetes.files(job, emitted, bundle, kind=scheduler)


START: Mapping[Scheduler, str] = {
    "slurm": "sbatch job.sbatch",
    "torchrun": "bash start.sh",
    "trainjob": "kubectl create -f job.yaml",
    "jobset": "kubectl create -f job.yaml",
    "pytorchjob": "kubectl create -f job.yaml",
}
"""What starts a job, in the folder of its bundle."""


def start_command(scheduler: Scheduler, folder: Path) -> str:
    """What a shell runs to start the job in ``folder``."""
    return f"cd {shlex.quote(str(folder))} && {START[scheduler]}"
