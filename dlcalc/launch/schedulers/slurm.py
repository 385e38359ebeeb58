"""A job for Slurm: ``sbatch job.sbatch`` in the bundle's folder, which all hosts can read.

One task per host runs ``train.sh``, which starts a process per device. Options are those of
https://slurm.schedmd.com/sbatch.html and srun.html; containers through pyxis (https://github.com/NVIDIA/pyxis), or
apptainer where the image is a .sif file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.machines import (
    INSIDE,
    apptainer_devices,
    checked_hosts,
    checked_image,
    is_apptainer,
    mounted,
    pyxis_image,
)
from dlcalc.launch.ranks import DEFAULT_PORT
from dlcalc.launch.shell import checked_name, comment, literal, script

SCRIPT = "job.sbatch"
_PLAIN = re.compile(r"[A-Za-z0-9_./:,=+@\[\]-]+")


def files(job: Job, emitted: Emitted, bundle: Mapping[str, str]) -> Mapping[str, str]:
    """The batch script; ``bundle`` is what lies beside it."""
    name, hosts, image = checked_name(job), checked_hosts(job), checked_image(job)
    lines = [
        "#!/bin/bash",
        *comment(f"{name}: {job.target} on {job.devices} devices ({job.hardware.name})."),
        "# Submit from the folder of this file: sbatch job.sbatch [OPTION ...]; further options go to the trainer.",
        *_directives(job, name, hosts),
        "# Yours to set, here or on the command line: --account, --partition, --time.",
        "",
        "# shellcheck disable=SC2016 # what stands between single quotes is meant as it is",
        "set -euo pipefail",
        'HERE="${BUNDLE:-${SLURM_SUBMIT_DIR:-$PWD}}" # Slurm runs a copy of this file from elsewhere',
        'if [[ ! -f "$HERE/train.sh" ]]; then',
        '  echo "job.sbatch: no train.sh in $HERE; submit from its folder, or BUNDLE=/its/path sbatch job.sbatch" >&2',
        "  exit 2",
        "fi",
        "export HERE",
        "",
        "# Where the processes meet: on the first host, which runs task 0.",
        f'export PET_NNODES="${{SLURM_JOB_NUM_NODES:-{job.n_hosts}}}" PET_NPROC_PER_NODE={job.host_devices}',
        f'export PET_MASTER_PORT="${{PET_MASTER_PORT:-{DEFAULT_PORT}}}"',
        *_master(hosts),
        "",
        *_tasks(job, image, placed=bool(hosts)),
    ]
    return {SCRIPT: script(lines)}


def _directives(job: Job, name: str, hosts: tuple[str, ...]) -> list[str]:
    options = [
        f"--job-name={directive_value(name)}",
        f"--nodes={job.n_hosts}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={job.host_devices}",
        "--exclusive",
        "--time=01:00:00",
        "--output=train-%j.out",
        "--open-mode=append",
        "--requeue",
    ]
    if hosts:
        options.append(f"--nodelist={directive_value(','.join(hosts))}")
    return [f"#SBATCH {option}" for option in options]


def directive_value(text: str) -> str:
    """``text`` as sbatch reads it from a #SBATCH line: between double quotes a backslash keeps the letter behind it."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _master(hosts: tuple[str, ...]) -> list[str]:
    if hosts:
        return [
            f"export PET_MASTER_ADDR={literal(hosts[0])}",
            "# Task i runs on line i of the placement.",
            'export SLURM_HOSTFILE="$HERE/hostfile"',
        ]
    return [
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'export PET_MASTER_ADDR="${hosts[0]}"',
    ]


def _tasks(job: Job, image: str | None, *, placed: bool) -> list[str]:
    options = ["--kill-on-bad-exit=1", '--cpus-per-task="${SLURM_CPUS_ON_NODE:-1}"', "--cpu-bind=none"]
    options += ["--distribution=arbitrary"] if placed else []
    before, command = [], "bash"
    if image and is_apptainer(image):
        before = mounted("HERE")
        command = f'apptainer exec {apptainer_devices(job)} --bind "$HERE:{INSIDE}:ro" {literal(image)} bash'
    elif image:
        before = [*mounted("HERE"), *mounted("PWD")]
        options += [
            f"--container-image={literal(pyxis_image(image))}",
            f'--container-mounts="$HERE:{INSIDE}:ro,$PWD:$PWD"',
            '--container-workdir="$PWD"',
        ]
    train = f"{INSIDE}/train.sh" if image else "$HERE/train.sh"
    return [
        *before,
        "srun=(",
        *(f"  {option}" for option in options),
        ")",
        "# Every task puts in its own number.",
        f'task=\'PET_NODE_RANK="$SLURM_PROCID" exec bash "{train}" "$@"\'',
        f'srun "${{srun[@]}}" {command} -c "$task" train.sh "$@"',
    ]
