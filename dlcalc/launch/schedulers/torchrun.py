"""A job without a scheduler: ``start.sh`` on one host, which reaches the others by ssh; ``host.sh`` on each of them.

``host.sh`` can also be started on every host alike, by whatever runs commands everywhere (pdsh, parallel-ssh): where
hosts are placed it finds its rank by the name of the host.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.launch.job import Emitted, Job
from dlcalc.launch.machines import INSIDE, checked_hosts, checked_image, docker_devices, mounted
from dlcalc.launch.ranks import rank_by_host_name
from dlcalc.launch.shell import checked_name, comment, literal, script
from dlcalc.launch.train_script import HERE, RENDEZVOUS, known_names

START, ON_HOST = "start.sh", "host.sh"


_EVERYWHERE = (
    "running=()",
    'stop() { (( ${#running[@]} == 0 )) || kill "${running[@]}" 2>/dev/null || true; }',
    "trap stop EXIT",
    "trap 'exit 130' INT TERM",
    'for rank in "${!hosts[@]}"; do',
    '  command="$(printf \'%q \' env "${settings[@]}" "PET_NODE_RANK=$rank" bash "$HERE/host.sh" "$@")"',
    "  # a terminal of its own, so that what runs there ends with this script",
    '  ssh -tt -o BatchMode=yes -- "${hosts[rank]}" "cd $(printf %q "$PWD") && exec $command" </dev/null &',
    '  running+=("$!")',
    "done",
    'for _ in "${running[@]}"; do',
    "  wait -n # the first that fails ends the script, and with it the others",
    "done",
)
"""Starts the hosts; the first that fails ends the others."""


def files(job: Job, emitted: Emitted, bundle: Mapping[str, str]) -> Mapping[str, str]:
    """The two scripts; ``bundle`` is what lies beside them."""
    hosts, names = checked_hosts(job), known_names(job, emitted)
    title = comment(f"{checked_name(job)}: {job.target} on {job.devices} devices ({job.hardware.name}).")
    start = _start_elsewhere(job, names) if job.n_hosts > 1 or hosts else _start_here()
    return {
        START: script(["#!/usr/bin/env bash", *title, *start]),
        ON_HOST: script(["#!/usr/bin/env bash", *title, *_on_host(job, names, hosts)]),
    }


def _start_here() -> list[str]:
    return [
        "# Starts the job on this host: bash start.sh [OPTION ...]; further options go to the trainer.",
        "set -euo pipefail",
        HERE,
        'exec bash "$HERE/host.sh" "$@"',
    ]


def _start_elsewhere(job: Job, names: tuple[str, ...]) -> list[str]:
    forwarded = [name for name in names if name not in RENDEZVOUS]
    return [
        "# Starts the job on every host in the file hostfile, one a line, the first being host 0; reached by ssh",
        "# without a password, with this folder at the same place: bash start.sh [OPTION ...]",
        "# shellcheck disable=SC2029 # commands are put together here, for the hosts to run",
        "set -euo pipefail",
        HERE,
        'if [[ ! -f "$HERE/hostfile" ]]; then',
        f'  echo "start.sh: write the names of {job.n_hosts} hosts to $HERE/hostfile, one a line" >&2',
        "  exit 2",
        "fi",
        "hosts=()",
        'while read -r host _ || [[ -n "$host" ]]; do',
        '  [[ -z "$host" || "$host" == "#"* ]] || hosts+=("$host")',
        'done < "$HERE/hostfile"',
        f"if (( ${{#hosts[@]}} != {job.n_hosts} )); then",
        f'  echo "start.sh: hostfile names ${{#hosts[@]}} hosts; the plan needs {job.n_hosts}" >&2',
        "  exit 2",
        "fi",
        "",
        "# What the caller decided goes along.",
        "settings=()",
        *_listed("names", [*forwarded, "PET_MASTER_PORT"]),
        'for name in "${names[@]}"; do',
        '  [[ -z "${!name:-}" ]] || settings+=("$name=${!name}")',
        "done",
        f"settings+=(PET_NNODES={job.n_hosts} PET_NPROC_PER_NODE={job.host_devices})",
        'settings+=("PET_MASTER_ADDR=${hosts[0]}")',
        "",
        *_EVERYWHERE,
    ]


def _on_host(job: Job, names: tuple[str, ...], hosts: tuple[str, ...]) -> list[str]:
    image = checked_image(job)
    lines = [
        "# Runs the processes of this host: bash host.sh [OPTION ...]; further options go to the trainer.",
        "# shellcheck disable=SC2016 # what stands between single quotes is meant as it is",
        "set -euo pipefail",
        HERE,
    ]
    if hosts:
        lines += [
            'if [[ -z "${PET_NODE_RANK:-}" ]]; then',
            *(f"  {line}" for line in rank_by_host_name(hosts)),
            '  export PET_NODE_RANK="$node_rank"',
            "fi",
            f'export PET_NNODES="${{PET_NNODES:-{len(hosts)}}}"',
            f'export PET_MASTER_ADDR="${{PET_MASTER_ADDR:-{hosts[0]}}}"',
        ]
    if image is None:
        return [*lines, 'exec bash "$HERE/train.sh" "$@"']
    return [
        *lines,
        *mounted("HERE"),
        *mounted("PWD"),
        "container=(",
        f"  --rm --network=host --ipc=host --ulimit=memlock=-1 --ulimit=stack=67108864 {docker_devices(job)}",
        f'  --volume="$HERE:{INSIDE}:ro" --volume="$PWD:$PWD" --workdir="$PWD"',
        ")",
        "[[ ! -e /dev/infiniband ]] || container+=(--device=/dev/infiniband)",
        *_listed("names", list(names)),
        'for name in "${names[@]}"; do',
        '  [[ -z "${!name:-}" ]] || container+=(--env="$name=${!name}")',
        "done",
        f'exec docker run "${{container[@]}}" {literal(image)} bash {INSIDE}/train.sh "$@"',
    ]


def _listed(array: str, names: list[str]) -> list[str]:
    return [f"{array}=(", *(f"  {name}" for name in names), ")"]
