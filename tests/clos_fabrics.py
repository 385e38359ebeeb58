"""Fabrics that several tests place jobs on: made, not read, and the same each time."""

from __future__ import annotations

import random

from dlcalc.topology.fabric import Fabric, FabricNode

RATES = (50e9, 25e9, 12.5e9)


def clos(
    *, spines: int, leaves: int, leaf_nodes: int, busy: float = 0.0, seed: int = 1, rates: tuple[float, ...] = RATES
) -> Fabric:
    """Three tiers; a share of the nodes, drawn at random, holds another job."""
    draw = random.Random(seed)
    nodes = [
        FabricNode(
            name=f"i-{draw.getrandbits(68):017x}",
            switches=(f"leaf-{spine:02}-{leaf:02}", f"spine-{spine:02}", "core"),
            host=f"n-{spine:02}-{leaf:02}-{position:02}",
            state="busy" if draw.random() < busy else "free",
            zone="us-east-1a",
            instance_type="p5.48xlarge",
        )
        for spine in range(spines)
        for leaf in range(leaves)
        for position in range(leaf_nodes)
    ]
    return Fabric(tuple(with_job(node, "other", None) if node.state == "busy" else node for node in nodes), rates)


def with_job(node: FabricNode, job: str, rank: int | None) -> FabricNode:
    return FabricNode(**{**vars(node), "state": "busy", "job": job, "rank": rank})


def running(fabric: Fabric, job: str, n_nodes: int) -> Fabric:
    """The fabric once ``job`` has taken the first free nodes, in the order of the fabric."""
    taken = {node.name: rank for rank, node in enumerate(fabric.candidates()[:n_nodes])}
    return fabric.only(with_job(node, job, taken[node.name]) if node.name in taken else node for node in fabric.nodes)
