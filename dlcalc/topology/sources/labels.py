"""Labels of Kubernetes nodes that say which switches are above them: one family per cloud or tool, each its own order.

One family is read for a whole cluster, that of most nodes: switches of two families cannot be told to be the same.
Where there is none, nodes of one NVLink clique share a switch, and otherwise nodes of one zone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Labels = Mapping[str, str]
Chain = tuple[str, ...]

REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
CLIQUE = "nvidia.com/gpu.clique"

_DOMAINS = (
    CLIQUE,
    "topology.k8s.aws/ultraserver-id",
    "topology.k8s.aws/capacity-block-id",
    "accelerator.topograph.run/domain",
    "network.topology.nvidia.com/accelerator",
    "network.topology.kubernetes.io/accelerator",
)
_AWS_LAYER = re.compile(r"topology\.k8s\.aws/network-node-layer-(\d{1,3})")
_TIER = re.compile(r"fabric\.topograph\.run/tier-(\d{1,3})")
_OLD_PREFIXES = ("network.topology.nvidia.com/", "network.topology.kubernetes.io/")
_OLD_TIERS = (("leaf", "block"), ("spine",), ("core", "datacenter"))
_GCE = "cloud.google.com/gce-topology-"
_OCI_TIERS = (
    ("rdma.local_block_id", "host.rack_id"),
    ("rdma.network_block_id", "host.network_block_id"),
    ("rdma.hpc_island_id", "host.hpc_island_id"),
)
_NO_CLIQUE = re.compile(r"[0-]*\.\d+")
"""Of devices that are in no NVLink domain larger than their node."""


@dataclass(frozen=True)
class Family:
    """Labels that together say one thing."""

    name: str
    chain: Callable[[Labels], Chain]
    """Closest first; empty where a node has none of the labels."""
    is_nested: bool = False
    """Values need only be unique below the value above them."""


def _aws(labels: Labels) -> Chain:
    """Layer 1 is the top."""
    found = [(int(match.group(1)), labels[key]) for key in labels if (match := _AWS_LAYER.fullmatch(key))]
    return tuple(value for _, value in sorted(found, reverse=True) if value)


def _tiers(labels: Labels) -> Chain:
    """Tier 0 is the closest."""
    found = [(int(match.group(1)), labels[key]) for key in labels if (match := _TIER.fullmatch(key))]
    return tuple(value for _, value in sorted(found) if value)


def _old_tiers(labels: Labels) -> Chain:
    found = [[labels.get(prefix + name, "") for prefix in _OLD_PREFIXES for name in names] for names in _OLD_TIERS]
    return tuple(value for values in found for value in [next(filter(None, values), "")] if value)


def _gce(labels: Labels) -> Chain:
    """Block is the coarsest, host the machine itself."""
    return tuple(filter(None, (labels.get(_GCE + name, "") for name in ("host", "subblock", "block"))))


def _oci(labels: Labels) -> Chain:
    found = [[labels.get(f"oci.oraclecloud.com/{name}", "") for name in names] for names in _OCI_TIERS]
    return tuple(value for values in found for value in [next(filter(None, values), "")] if value)


def _clique(labels: Labels) -> Chain:
    clique = labels.get(CLIQUE, "")
    return (clique,) if clique and not _NO_CLIQUE.fullmatch(clique) else ()


def _zone(labels: Labels) -> Chain:
    return tuple(filter(None, (labels.get(ZONE, ""), labels.get(REGION, ""))))


FAMILIES = (
    Family("fabric.topograph.run/tier-*", _tiers),
    Family("network.topology.nvidia.com/*", _old_tiers),
    Family("topology.k8s.aws/network-node-layer-*", _aws),
    Family("cloud.google.com/gce-topology-*", _gce, is_nested=True),
    Family("oci.oraclecloud.com/*", _oci, is_nested=True),
)
AWS = FAMILIES[2]
COARSE = (Family(CLIQUE, _clique), Family("topology.kubernetes.io/{zone,region}", _zone, is_nested=True))


def domain_of(labels: Labels) -> str:
    """The NVLink domain that reaches beyond the node."""
    for key in _DOMAINS:
        value = labels.get(key, "")
        if value and not (key == CLIQUE and _NO_CLIQUE.fullmatch(value)):
            return value
    return ""


def chains_of(nodes: Sequence[Labels]) -> tuple[list[Chain], Family | None]:
    """The switches above each of ``nodes``, closest first, and which labels said so."""
    for families in (FAMILIES, *((family,) for family in COARSE)):
        found = [[family.chain(labels) for labels in nodes] for family in families]
        counts = [sum(map(bool, chains)) for chains in found]
        best = counts.index(max(counts))
        if counts[best]:
            family, chains = families[best], found[best]
            if family.name.startswith(_GCE):
                chains = _without_lone_hosts(chains, nodes)
            return (_qualified(chains) if family.is_nested else chains), family
    return [() for _ in nodes], None


def _without_lone_hosts(chains: Sequence[Chain], nodes: Sequence[Labels]) -> list[Chain]:
    """A host that holds one node is that node, no switch."""
    hosts = [labels.get(_GCE + "host", "") for labels in nodes]
    if max(Counter(filter(None, hosts)).values(), default=0) > 1:
        return list(chains)
    return [chain[1:] if host else chain for chain, host in zip(chains, hosts, strict=True)]


def _qualified(chains: Sequence[Chain]) -> list[Chain]:
    """Values that stand below two others, or on two levels, become ``above/value``."""
    above: dict[str, set[Chain]] = {}
    for chain in set(chains):
        for index, value in enumerate(chain):
            above.setdefault(value, set()).add(chain[index + 1 :])
    shared = {value for value, places in above.items() if len(places) > 1}
    if not shared:
        return list(chains)

    def named(chain: Chain) -> Chain:
        return tuple(
            "/".join(reversed(chain[index:])) if value in shared else value for index, value in enumerate(chain)
        )

    return [named(chain) for chain in chains]
