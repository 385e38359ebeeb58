"""What the topology commands found, as data: the tables, the JSON and the pages are made of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dlcalc.report.topology_page import DrawnRing
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Placement
from dlcalc.topology.rings import GroupHops, GroupKind


@dataclass(frozen=True)
class Assignment:
    """A job and the nodes it is given."""

    fabric: Fabric
    placement: Placement
    hosts: tuple[str, ...]
    """By node rank."""
    rank_to_node: Mapping[int, str]
    plan: str | None = None
    step_time_s: float | None = None
    """Of the plan, placed so; None without a plan, or where rates are not known."""
    unplaced_step_time_s: float | None = None
    """Of the plan on a fabric where every link has the rate of the NIC."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class KindHops:
    """All groups of one kind."""

    kind: GroupKind
    groups: tuple[GroupHops, ...]
    """As placed, longest first."""
    best_on_own_hops: int
    """Total of this kind in the best placement on the same nodes."""
    best_on_free_hops: int
    """And in the best one on the free nodes and its own."""

    @property
    def n_groups(self) -> int:
        return sum(group.n_groups for group in self.groups)

    @property
    def total_hops(self) -> int:
        return sum(group.hops * group.n_groups for group in self.groups)

    @property
    def mean_hops(self) -> float:
        return self.total_hops / self.n_groups

    @property
    def longest_hops(self) -> int:
        return max(group.hops for group in self.groups)


@dataclass(frozen=True)
class Shortfall:
    """What a placement lacks to the best known one."""

    best: Placement
    extra_hops: float
    """Of all rings."""
    extra_fraction: float
    """Of the best one's hops; 0 where neither leaves its node."""

    @classmethod
    def of(cls, actual: Placement, best: Placement) -> Self:
        """``actual`` against ``best``."""
        extra = actual.cost_hops - best.cost_hops
        return cls(best, extra, extra / best.cost_hops if best.cost_hops else 0.0)


@dataclass(frozen=True)
class StepCost:
    """Step times of a plan as placed, and placed best."""

    actual_s: float
    best_on_own_s: float
    best_on_free_s: float


@dataclass(frozen=True)
class Evaluation:
    """How a running job sits on its fabric."""

    fabric: Fabric
    job_name: str
    job: JobShape
    kinds: tuple[KindHops, ...]
    """Of groups that leave a node."""
    actual: Placement
    best_on_own: Shortfall
    best_on_free: Shortfall
    n_moved: int
    """Nodes of the best placement on the free cluster that are not the job's."""
    plan: str | None
    step: StepCost | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A page that was written."""

    fabric: Fabric
    rings: tuple[DrawnRing, ...]
    page: Path
    remarks: tuple[str, ...] = ()


def candidates_document(fabric: Fabric) -> dict[str, Any]:
    """How many nodes there are, and which of them are no candidates although nobody uses them."""
    states = Counter(node.state for node in fabric.nodes)
    return {
        "nodes": len(fabric.nodes),
        "free": states["free"],
        "busy": states["busy"],
        "unusable": {node.name: node.why_unusable for node in fabric.nodes if node.state == "unusable"},
        "without_topology_data": [node.name for node in fabric.without_data()],
    }


def _placement_document(placement: Placement) -> dict[str, Any]:
    return {
        "rings": placement.rings,
        "cost_hops": placement.cost_hops,
        "lower_bound_hops": placement.lower_bound_hops,
        "proved_optimal": placement.proved_optimal,
        "objective": placement.objective,
        "cost": placement.cost,
        "lower_bound": placement.lower_bound,
        "gap": placement.gap,
        "method": placement.method,
    }


def assignment_document(found: Assignment) -> dict[str, Any]:
    """The object of ``topoassign --json``."""
    return {
        **_placement_document(found.placement),
        "rank_to_node": found.rank_to_node,
        "hosts": found.hosts,
        "job": asdict(found.placement.job),
        "plan": found.plan,
        "step_time_s": found.step_time_s,
        "unplaced_step_time_s": found.unplaced_step_time_s,
        "fabric": {"source": found.fabric.source, **candidates_document(found.fabric)},
        "remarks": (*found.fabric.remarks, *found.remarks),
    }


def evaluation_document(found: Evaluation) -> dict[str, Any]:
    """The object of ``topoeval --json``."""
    return {
        "job_name": found.job_name,
        "job": asdict(found.job),
        "groups": {
            kind.kind: {
                "groups": [{"nodes": one.nodes, "n_groups": one.n_groups, "hops": one.hops} for one in kind.groups],
                "n_groups": kind.n_groups,
                "total_hops": kind.total_hops,
                "mean_hops": kind.mean_hops,
                "longest_hops": kind.longest_hops,
                "best_on_own_hops": kind.best_on_own_hops,
                "best_on_free_hops": kind.best_on_free_hops,
            }
            for kind in found.kinds
        },
        "rings": found.actual.rings,
        "cost_hops": found.actual.cost_hops,
        **{
            name: {
                **_placement_document(short.best),
                "extra_hops": short.extra_hops,
                "extra_fraction": short.extra_fraction,
            }
            for name, short in (("best_on_own", found.best_on_own), ("best_on_free", found.best_on_free))
        },
        "nodes_to_move": found.n_moved,
        "plan": found.plan,
        "step_time": asdict(found.step) if found.step else None,
        "fabric": {"source": found.fabric.source, **candidates_document(found.fabric)},
        "remarks": (*found.fabric.remarks, *found.remarks),
    }


def drawing_document(found: Drawing) -> dict[str, Any]:
    """The object of ``topoviz --json``."""
    return {
        "page": str(found.page),
        "rings": {ring.label: ring.nodes for ring in found.rings},
        "switches": len(found.fabric.tier),
        "tiers": found.fabric.n_tiers,
        "fabric": {"source": found.fabric.source, **candidates_document(found.fabric)},
        "remarks": found.remarks,
    }
