"""``train.sh``: what runs on every host. It sets the environment and becomes torchrun; it knows no scheduler.

Where the processes meet comes from torchrun's own variables (https://docs.pytorch.org/docs/stable/elastic/run.html):
PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT. Kubeflow sets them in every pod, the
scripts for Slurm and ssh set them alike; on one host none is needed.
"""

from __future__ import annotations

from dlcalc.launch.environment import Setting, settings
from dlcalc.launch.job import Emitted, Job, Variable, Word
from dlcalc.launch.ranks import DEFAULT_PORT
from dlcalc.launch.shell import checked_name, comment, default, literal, script, word

TRAIN_SCRIPT = "train.sh"
HERE = 'HERE="$(CDPATH=\'\' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"'
"""The folder of the script that says so."""
RENDEZVOUS = ("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT")
OF_SEVERAL_HOSTS = {
    "PET_NODE_RANK": "which of the hosts this is, from 0",
    "PET_MASTER_ADDR": "name or address of host 0, which the others reach",
}


def train_script(job: Job, emitted: Emitted) -> str:
    """The script as text, for bash."""
    command = [*_python_path(emitted), "", *_command(emitted)]
    return script(
        [
            "#!/usr/bin/env bash",
            *comment(f"{checked_name(job)}: {job.target} on {job.devices} devices ({job.hardware.name}). "),
            "# Runs on every host, from wherever this folder is. Whatever is set before it starts is kept:",
            "#   NAME=value bash train.sh [OPTION ...]      further options go to the trainer, behind those below",
            "# shellcheck disable=SC2016 # what stands between single quotes is meant as it is",
            "set -euo pipefail",
            *([HERE] if any("$HERE" in line for line in command) else []),
            "",
            *_hosts(job),
            "",
            *_variables(job, emitted),
            "# Environment.",
            *(line for setting in settings(job, emitted) for line in _exported(setting)),
            *command,
        ]
    )


def variables(emitted: Emitted) -> tuple[Variable, ...]:
    """What the environment decides, each once."""
    found: dict[str, Variable] = {}
    for one in (*emitted.program, *(part for option in emitted.options for part in option)):
        if isinstance(one, Variable) and found.setdefault(one.name, one).default != one.default:
            raise ValueError(f"{one.name} has two defaults: {found[one.name].default!r} and {one.default!r}")
    return tuple(found.values())


def known_names(job: Job, emitted: Emitted) -> tuple[str, ...]:
    """Every variable that the script reads from its caller."""
    names = [one.name for one in variables(emitted)] + [one.name for one in settings(job, emitted)]
    return tuple(dict.fromkeys([*names, *RENDEZVOUS]))


def _hosts(job: Job) -> list[str]:
    hosts, devices = job.n_hosts, job.host_devices
    planned = f"{job.devices} devices, as {hosts} host{'s' if hosts > 1 else ''} of {devices}"
    return [
        "# Where the processes are and where they meet.",
        f'nodes="${{PET_NNODES:-{hosts}}}"',
        f'per_node="${{PET_NPROC_PER_NODE:-{devices}}}"',
        'if ! [[ "$nodes" =~ ^[1-9][0-9]*$ && "$per_node" =~ ^[1-9][0-9]*$ ]] || '
        f"(( nodes * per_node != {job.devices} )); then",
        f'  echo "train.sh: the plan is for {planned};'
        ' PET_NNODES=$nodes times PET_NPROC_PER_NODE=$per_node is another number" >&2',
        "  exit 2",
        "fi",
        "missing=()",
        "if (( nodes > 1 )); then",
        *(
            f'  [[ -n "${{{name}:-}}" ]] || missing+=({literal(f"{name}: {meaning}")})'
            for name, meaning in OF_SEVERAL_HOSTS.items()
        ),
        "fi",
        "rendezvous=(",
        '  --nnodes "$nodes"',
        '  --nproc-per-node "$per_node"',
        '  --node-rank "${PET_NODE_RANK:-0}"',
        '  --master-addr "${PET_MASTER_ADDR:-127.0.0.1}"',
        f'  --master-port "${{PET_MASTER_PORT:-{DEFAULT_PORT}}}"',
        ")",
    ]


def _variables(job: Job, emitted: Emitted) -> list[str]:
    lines = ["# Yours to decide."] if variables(emitted) else []
    for one in variables(emitted):
        lines += comment(one.meaning)
        if one.default is None:
            lines.append(f'[[ -n "${{{one.name}:-}}" ]] || missing+=({literal(f"{one.name}: {one.meaning}")})')
        else:
            lines += default(one.name, one.default)
    return [
        *lines,
        "if (( ${#missing[@]} > 0 )); then",
        "  printf 'train.sh: set %s\\n' \"${missing[@]}\" >&2",
        "  exit 2",
        "fi",
        "",
    ]


def _exported(setting: Setting) -> list[str]:
    if setting.value is None:
        return [*comment(setting.why), f'[[ "${{{setting.name}:-}}" != 1 ]] || unset {setting.name}']
    if setting.is_shell:
        lines = [f'[[ -n "${{{setting.name}:-}}" ]] || {setting.name}={setting.value}']
    else:
        lines = default(setting.name, setting.value)
    if len(lines) == 1 and not setting.is_shell:
        return [*comment(setting.why), f"export {lines[0]}"]
    return [*comment(setting.why), *lines, f"export {setting.name}"]


def _python_path(emitted: Emitted) -> list[str]:
    """Modules of the bundle can be imported."""
    if not any(file.endswith(".py") for file in emitted.files):
        return []
    return ["# modules beside this script", 'export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"']


def _command(emitted: Emitted) -> list[str]:
    program = _words(emitted.program)
    if not emitted.options:
        return [f'exec torchrun "${{rendezvous[@]}}" {program} "$@"']
    return [
        "options=(",
        *(f"  {_words(option)}" for option in emitted.options),
        ")",
        f'exec torchrun "${{rendezvous[@]}}" {program} "${{options[@]}}" "$@"',
    ]


def _words(words: tuple[Word, ...]) -> str:
    return " ".join(word(one) for one in words)
