"""Which node each rank runs on, in the words of launchers. Pure: a placement in, text out.

Node rank is the position of a node in ``Placement.node_order``; device ranks fill nodes in that order, so node ``i``
holds the ranks ``i * node_devices`` and following. Launchers know a node by its host name, which the fabric has.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from dlcalc.errors import TopologyError
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import Placement

HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:\]-]*")
"""Names and addresses; nothing that a launch file gives a meaning to."""
DEFAULT_PORT = 29500
"""Of torch.distributed."""


def host_names(placement: Placement, fabric: Fabric) -> tuple[str, ...]:
    """What launchers call the nodes, by node rank."""
    hosts = tuple(fabric.by_name[name].host_name for name in placement.node_order)
    for host in hosts:
        if not HOST.fullmatch(host):
            raise TopologyError(f"host name {host!r} cannot be written to a launch file")
    return hosts


def rank_to_node(placement: Placement) -> dict[int, str]:
    """The node of every rank."""
    devices = placement.job.node_devices
    return {
        node_rank * devices + device: name
        for node_rank, name in enumerate(placement.node_order)
        for device in range(devices)
    }


def node_list(hosts: Sequence[str]) -> str:
    """One host a line, by node rank."""
    return _lines(hosts)


def open_mpi_rankfile(hosts: Sequence[str], *, node_devices: int, rank_cores: int = 1) -> str:
    """A rankfile for ``mpirun --rankfile``: every rank is bound to ``rank_cores`` cores of its own.

    Assumes: cores of a node are numbered from 0, and its ranks take them in order.
    """
    lines = []
    for node_rank, host in enumerate(hosts):
        for device in range(node_devices):
            first = device * rank_cores
            cores = f"{first}" if rank_cores == 1 else f"{first}-{first + rank_cores - 1}"
            lines.append(f"rank {node_rank * node_devices + device}={host} slot={cores}")
    return _lines(lines)


def slurm_hostfile(hosts: Sequence[str], *, node_tasks: int) -> str:
    """For ``SLURM_HOSTFILE`` and ``srun --distribution=arbitrary``: the host of every task, a line each."""
    return _lines([host for host in hosts for _ in range(node_tasks)])


def torchrun_script(hosts: Sequence[str], *, node_devices: int, port: int = DEFAULT_PORT) -> str:
    """A shell script to start on every node alike: it finds its node rank by the name of the host.

    The first node is the master. ``NODE_NAME`` says which host this is where ``hostname`` does not.
    """
    return _lines(
        [
            "#!/bin/sh",
            "# Start on every node of the placement: sh torchrun.sh train.py ARGUMENTS",
            *rank_by_host_name(hosts),
            f"exec torchrun --nnodes={len(hosts)} --nproc-per-node={node_devices} --node-rank=$node_rank \\",
            f'  --master-addr={shlex.quote(hosts[0])} --master-port="${{MASTER_PORT:-{port}}}" "$@"',
        ]
    )


def rank_by_host_name(hosts: Sequence[str]) -> list[str]:
    """Lines of a shell script that set ``node_rank`` by the name of the host, or of ``NODE_NAME``."""
    short = _short_names(hosts)
    cases = [
        f"{' | '.join(shlex.quote(word) for word in dict.fromkeys((host, short.get(host, host))))}) node_rank={rank} ;;"
        for rank, host in enumerate(hosts)
    ]
    return [
        'case "${NODE_NAME:=$(hostname)}" in',
        *cases,
        '*) echo "$NODE_NAME is not a node of this placement" >&2; exit 2 ;;',
        "esac",
    ]


def node_affinity(host: str) -> dict[str, object]:
    """The ``affinity`` of a pod that may run on ``host`` alone, found by the name of the Node object."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [host]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def kubernetes_affinities(hosts: Sequence[str]) -> str:
    """YAML: for each completion index the affinity of its pod, to be put at ``spec.affinity`` of that pod.

    A Job has one template for all its indexes, so each index needs a pod (or a Job, or a JobSet's replicated job) of
    its own, or a webhook that patches pods by index.
    """
    lines = ["# completion index (= node rank) -> spec.affinity of its pod"]
    for index, host in enumerate(hosts):
        lines.append(f"- index: {index}")
        lines.append(f"  affinity: {json.dumps(node_affinity(host))}")
    return _lines(lines)


def _short_names(hosts: Sequence[str]) -> Mapping[str, str]:
    """First labels of full names, where they tell all hosts apart; an address has none."""
    short = {host: host.partition(".")[0] for host in hosts}
    whole = {host: name for host, name in short.items() if not name.isdigit()}
    return whole if len(set(whole.values())) == len(whole) else {}


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
