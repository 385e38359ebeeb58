"""What is to be placed: the nodes of a job as rings, and what a placement of them looks like.

Ranks are laid out tp fastest, then cp, then dp, then pp, and fill nodes in order. A pipeline stage of ``tp x cp x dp``
devices fills whole nodes: its nodes, in order, are one ring, along which its data-parallel groups reduce. A stage
smaller than a node shares it with its neighbours, and the ring is that one node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlcalc.errors import TopologyError

Objective = Literal["hops", "seconds", "worst_ring"]


@dataclass(frozen=True)
class JobShape:
    """Degrees of a plan on nodes of ``node_devices``."""

    tp: int
    pp: int
    dp: int
    cp: int = 1
    ep: int = 1
    etp: int = 1
    node_devices: int = 8

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "cp", "ep", "etp", "node_devices"):
            if getattr(self, name) < 1:
                raise TopologyError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.n_devices % self.node_devices:
            raise TopologyError(
                f"tp x cp x dp x pp = {self.n_devices} devices do not fill nodes of {self.node_devices}"
            )
        fills, divides = self.stage_devices % self.node_devices == 0, self.node_devices % self.stage_devices == 0
        if not (fills or divides):
            raise TopologyError(
                f"a pipeline stage of tp x cp x dp = {self.stage_devices} devices neither fills nodes of "
                f"{self.node_devices} nor divides one"
            )
        if self.stage_devices % (self.ep * self.etp):
            raise TopologyError(
                f"ep x etp = {self.ep * self.etp} must divide the {self.stage_devices} devices of a pipeline stage"
            )

    @property
    def stage_devices(self) -> int:
        return self.tp * self.cp * self.dp

    @property
    def n_devices(self) -> int:
        return self.stage_devices * self.pp

    @property
    def n_nodes(self) -> int:
        return self.n_devices // self.node_devices

    @property
    def ring_nodes(self) -> int:
        """Nodes of one ring."""
        return max(1, self.stage_devices // self.node_devices)

    @property
    def n_rings(self) -> int:
        return self.n_nodes // self.ring_nodes

    @property
    def tp_nodes(self) -> int:
        """Consecutive nodes that one tensor-parallel group spans; more than one only inside an NVLink domain."""
        return max(1, -(-self.tp // self.node_devices))

    @property
    def ep_nodes(self) -> int:
        """Consecutive nodes that one expert-parallel group spans."""
        return max(1, self.ep * self.etp // self.node_devices)


@dataclass(frozen=True)
class Placement:
    """The nodes of every ring, in ring order, and how good that is."""

    job: JobShape
    rings: tuple[tuple[str, ...], ...]
    """``rings[i][j]`` is the node of ranks ``(i * ring_nodes + j) * node_devices`` and following."""
    objective: Objective
    cost_hops: float
    """Sum over rings of the closed tour; whatever the objective was."""
    lower_bound_hops: float | None
    """No placement on these candidates has fewer; None where the objective was another."""
    cost: float
    """In the units of the objective: hops, seconds per step, hops of the worst ring."""
    lower_bound: float
    proved_optimal: bool
    method: str = ""

    @property
    def node_order(self) -> tuple[str, ...]:
        """Nodes by node rank."""
        return tuple(node for ring in self.rings for node in ring)

    @property
    def gap(self) -> float:
        """How far above the best possible cost this one can be, as a share of the bound; 0 where proved."""
        return 0.0 if self.proved_optimal or self.lower_bound <= 0 else self.cost / self.lower_bound - 1.0
