"""How good placements are, and how long they take: 64 to 16,384 nodes, against the depth-first heuristic.

    python benchmarks/placement.py [--limit 15] [--seeds 3] [--largest 16384] [--objective hops]

Clusters are fragmented as jobs fragment them: runs of 1 to 32 nodes are taken until three in ten are. Leaf switches
hold 16 nodes, spines 8 leaves, and from 1,024 nodes on pods of 4 spines make a fourth tier. A job takes a share of the free
nodes. *bound* is what no placement can be below, *gap* how far above it the answer is; *depth first* is how far above
the answer a walk through the free nodes is that is cut into rings. Every row is the worst of its seeds, in a process of
its own for the memory, of which numpy and OR-Tools themselves take some 100 MiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import time
from dataclasses import dataclass

from dlcalc.topology.assign import place
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.forest import forest_of
from dlcalc.topology.greedy import depth_first
from dlcalc.topology.job import JobShape

LEAF_NODES, SPINE_LEAVES, POD_SPINES = 16, 8, 4
BUSY = 0.3
CASES = [
    (64, 2, 0.8),
    (64, 4, 0.5),
    (256, 4, 0.5),
    (256, 4, 0.9),
    (256, 16, 0.8),
    (1024, 4, 0.7),
    (1024, 8, 0.9),
    (1024, 32, 0.8),
    (4096, 4, 0.8),
    (4096, 16, 0.7),
    (4096, 16, 0.95),
    (4096, 128, 0.9),
    (16384, 16, 0.8),
    (16384, 64, 0.7),
    (16384, 512, 0.9),
]
"""Nodes, rings, share of the free nodes that the job takes."""


@dataclass(frozen=True)
class Row:
    """One placement."""

    ring_nodes: int
    hops: float
    bound: float
    gap: float
    over: float
    seconds: float
    mib: float


def fragmented(n_nodes: int, seed: int) -> Fabric:
    """Three tiers, or four from 1,024 nodes on, of which some nodes are taken."""
    rng = random.Random(seed)
    taken: set[int] = set()
    while len(taken) < BUSY * n_nodes:
        at = rng.randrange(n_nodes)
        taken.update(range(at, min(n_nodes, at + rng.choice([1, 1, 2, 4, 8, 16, 32]))))
    nodes = []
    for at in range(n_nodes):
        leaf = at // LEAF_NODES
        spine = leaf // SPINE_LEAVES
        pod = [f"pod{spine // POD_SPINES}"] if n_nodes >= 1024 else []
        chain = (f"leaf{leaf}", f"spine{spine}", *pod, "core")
        nodes.append(FabricNode(f"n{at}", chain, state="busy" if at in taken else "free"))
    return Fabric(tuple(nodes))


def measured(case: tuple[int, int, float, int, float, str]) -> Row:
    """Place one case."""
    n_nodes, n_rings, share, seed, limit_s, objective = case
    fabric = fragmented(n_nodes, seed)
    ring_nodes = int(len(fabric.candidates()) * share / n_rings)
    job = JobShape(tp=8, pp=n_rings, dp=ring_nodes)
    place(fragmented(64, 0), JobShape(tp=8, pp=2, dp=18), time_limit_s=1.0)  # load OR-Tools outside the clock
    began = time.perf_counter()
    placed = place(fabric, job, objective=objective, time_limit_s=limit_s)
    seconds = time.perf_counter() - began
    rings = depth_first(forest_of(fabric, fabric.candidates()), n_rings, ring_nodes)
    each = [2.0 * (ring_nodes + ring.edges) for ring in rings]
    walked = max(each) if objective == "worst_ring" else sum(each)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(ring_nodes, placed.cost, placed.lower_bound, placed.gap, walked / placed.cost - 1.0, seconds, mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=15.0, help="seconds a placement may take")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=16384, help="nodes")
    parser.add_argument("--objective", choices=["hops", "worst_ring"], default="hops")
    asked = parser.parse_args()
    print("| nodes | rings x nodes | hops | bound | gap | depth first | time | memory |")
    print("|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for n_nodes, n_rings, share in CASES:
        if n_nodes > asked.largest:
            continue
        rows = []
        for seed in range(asked.seeds):
            with context.Pool(1) as pool:
                rows += pool.map(measured, [(n_nodes, n_rings, share, seed, asked.limit, asked.objective)])
        worst = max(rows, key=lambda row: row.gap)
        print(
            f"| {n_nodes:,} | {n_rings} x {worst.ring_nodes} | {worst.hops:,.0f} | {worst.bound:,.0f} | "
            + (f"{worst.gap:.2%}" if worst.gap else "proved optimal")
            + f" | +{min(row.over for row in rows):.1%} to +{max(row.over for row in rows):.1%} | "
            f"{max(row.seconds for row in rows):.2f} s | {max(row.mib for row in rows):,.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
