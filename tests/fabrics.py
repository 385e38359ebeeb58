"""Small random fabrics, and the best placement on them found by trying every one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from hypothesis import strategies as st

from dlcalc.topology.fabric import Fabric, FabricNode, spanning_edges
from dlcalc.topology.job import JobShape

Rings = tuple[tuple[str, ...], ...]


@st.composite
def fabrics(
    draw: st.DrawFn, most_nodes: int = 9, fewest_nodes: int = 1, domains: bool = False, nested: bool = True
) -> Fabric:
    """Forests of any shape: several roots, switches of unequal depth, nodes hanging from any switch."""
    n_switches = draw(st.integers(1, 7))
    top = draw(st.sampled_from([0, 0, -1]))  # of two in three fabrics, one root
    above = [draw(st.integers(min(top, switch - 1), switch - 1)) for switch in range(n_switches)]
    nodes = []
    for at in range(draw(st.integers(fewest_nodes, most_nodes))):
        switch = closest = draw(st.integers(0, n_switches - 1))
        chain = []
        while switch >= 0:
            chain.append(f"s{switch}")
            switch = above[switch]
        domain = f"d{draw(st.integers(0, 2))}" if domains else ""
        domain = f"{domain} of s{closest}" if domains and nested else domain
        nodes.append(FabricNode(f"n{at}", tuple(chain), domain=domain))
    return Fabric(tuple(nodes))


def partitions(names: Sequence[str], n_rings: int, ring_nodes: int) -> Iterator[Rings]:
    """Every choice of disjoint rings, each once."""
    if n_rings == 0:
        yield ()
        return
    for at in range(len(names) - n_rings * ring_nodes + 1):  # the first node used is the first ring's
        for others in itertools.combinations(names[at + 1 :], ring_nodes - 1):
            ring = (names[at], *others)
            left = [name for name in names[at + 1 :] if name not in others]
            for rest in partitions(left, n_rings - 1, ring_nodes):
                yield (ring, *rest)


def hops_of(fabric: Fabric, ring: Sequence[str]) -> int:
    return 2 * spanning_edges(fabric, ring)


def best_by_brute_force(
    fabric: Fabric,
    job: JobShape,
    allowed: Callable[[tuple[str, ...]], bool] = lambda ring: True,
    cost: Callable[[list[int]], float] = sum,
) -> float | None:
    """The least ``cost`` of the hops of the rings over every placement; None where none is allowed."""
    names = list(fabric.by_name)
    known: dict[tuple[str, ...], int | None] = {}

    def hops(ring: tuple[str, ...]) -> int | None:
        if ring not in known:
            one_root = len({fabric.chains[name][-1] for name in ring}) == 1
            known[ring] = hops_of(fabric, ring) if one_root and allowed(ring) else None
        return known[ring]

    best: float | None = None
    for rings in partitions(names, job.n_rings, job.ring_nodes):
        each = [hops(ring) for ring in rings]
        if None not in each:
            total = cost(each)
            best = total if best is None else min(best, total)
    return best


def fragmented(n_nodes: int, *, leaf: int = 16, spine: int = 8, busy: float = 0.3, seed: int = 0) -> Fabric:
    """Three tiers, with nodes taken in runs as jobs take them."""
    rng = random.Random(seed)
    taken: set[int] = set()
    while len(taken) < busy * n_nodes:
        at = rng.randrange(n_nodes)
        taken.update(range(at, min(n_nodes, at + rng.choice([1, 1, 2, 4, 8, 16, 32]))))
    return Fabric(
        tuple(
            FabricNode(
                f"n{at}",
                (f"leaf{at // leaf}", f"spine{at // (leaf * spine)}", "core"),
                state="busy" if at in taken else "free",
            )
            for at in range(n_nodes)
        )
    )
