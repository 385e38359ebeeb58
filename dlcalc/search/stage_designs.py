"""Pipelines whose stages are not alike: cuts of the layers into unequal chunks, and what each stage recomputes.

Both follow the memory of a schedule: the earlier a stage, the more micro-batches it holds. A cut is ``pp`` x ``vpp``
chunks and three numbers: the layers of the first and of the last chunk over those of the others (an embedding and a
loss are work too), and a slope over the stages. What stages recompute is two: the share of its layers that the first
stage keeps, and how fast the layers kept grow over the stages, 0 for equally many and 1 for as many as the same memory
holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dlcalc.calculators.schedule import in_flight_micro_batches_count
from dlcalc.calculators.stages import CUSTOM
from dlcalc.costmodel.plans import PER_STAGE, Array
from dlcalc.errors import DlcalcError
from dlcalc.search.designs import Described, Designs
from dlcalc.search.space import Axis, Scenario
from dlcalc.search.variables import Choice, Interval, Point, Variable
from dlcalc.specs.recompute import RECOMPUTE_MODES

LEAST_END, MOST_END = 0.1, 1.3
"""Layers of the first and the last chunk over those of the others."""
MOST_SLOPE = 0.6
"""How many more layers the last stage may have than the first, over the mean."""
MOST_GROWTH = 1.5
MANY = 1e6
"""Micro-batches, of a step with more than a pipeline holds."""


def stage_designs(base: Scenario, *, cuts: bool = True, recomputes: bool = False) -> Designs:
    """Pipelines of ``base`` that are cut, or recompute, as unequally as their stages need; of a cut every plan.

    Begins with what trainers offer: equal chunks, an embedding and a loss that count as a layer each, and as much
    recomputation everywhere.
    """
    if cuts and base.custom_split is not None:
        raise DlcalcError("search: uneven_stages samples what recipe: custom_split gives; leave one of them out")
    if recomputes:
        _check_recompute(base)
    asks = "uneven_stages" if cuts else "recompute_per_stage"
    mesh, pipe = base.axes[0], base.axes[2]
    pps = [int(pp) for pp in np.unique(mesh["pp"]) if 1 < pp <= base.model.n_layers]
    vpps = [int(vpp) for vpp in np.unique(pipe["vpp"])]
    if not pps:
        raise DlcalcError(f"search: {asks}: {base.name} has no pipeline (pp > 1) in its space")
    variables: tuple[Variable, ...] = tuple(
        Choice(name, tuple(values)) for name, values in (("pp", pps), ("vpp", vpps)) if len(values) > 1
    )
    if cuts:
        variables += tuple(Interval(name, LEAST_END, MOST_END) for name in ("first_chunk", "last_chunk"))
        variables += (Interval("slope", -MOST_SLOPE, MOST_SLOPE),)
    if recomputes:
        variables += (Interval("kept_first", 0.0, 1.0), Interval("kept_growth", 0.0, MOST_GROWTH))

    def made(point: Point, ending: str) -> Scenario:
        pp, vpp = int(point.get("pp", pps[0])), int(point.get("vpp", vpps[0]))
        if pp * vpp > base.model.n_layers:
            raise DlcalcError(f"{pp} x {vpp} chunks are more than {base.model.n_layers} layers")
        shaped = with_pipeline(base, pp, vpp)
        if cuts:
            first, last, slope = (float(point[name]) for name in ("first_chunk", "last_chunk", "slope"))
            layers = chunk_layers(base.model.n_layers, pp=pp, vpp=vpp, first=first, last=last, slope=slope)
            shaped = with_cut(shaped, layers)
        if recomputes:
            first, growth = float(point["kept_first"]), float(point["kept_growth"])
            shaped = with_recompute(shaped, stage_recompute(shaped, pp, vpp, first=first, growth=growth))
        return replace(shaped, name=f"{base.name}, {ending}")

    def described(scenario: Scenario, point: Point) -> Described:
        degrees = {name: float(point[name]) for name in ("pp", "vpp") if name in point}
        stages = {"stages": " ".join(map(str, scenario.custom_split or ()))} if cuts else {}
        again = {"recomputed": " ".join(map(str, scenario.recipe.stage_recompute or ()))} if recomputes else {}
        return {**stages, **again, **degrees}

    kind = " and ".join(["cuts into stages"] * cuts + ["recomputations"] * recomputes)
    return Designs(kind, base, variables, made, described, _known(base, pps, vpps, cuts=cuts, recomputes=recomputes))


def _known(base: Scenario, pps: list[int], vpps: list[int], *, cuts: bool, recomputes: bool) -> tuple[Point, ...]:
    """Points to begin with."""
    n_layers = base.model.n_layers
    points: list[Point] = []
    for pp, vpp in ((pp, vpp) for pp in pps for vpp in vpps if pp * vpp <= n_layers):
        shared = max(LEAST_END, 1.0 - pp * vpp / (n_layers + 2))  # of a cut that counts embedding and loss as layers
        for end, kept, growth in ((1.0, 1.0, 0.0), (shared, 0.5, 1.0)):
            cut = {"first_chunk": end, "last_chunk": end, "slope": 0.0} if cuts else {}
            again = {"kept_first": kept, "kept_growth": growth} if recomputes else {}
            points.append({"pp": pp, "vpp": vpp, **cut, **again})
    return tuple(points)


def _check_recompute(base: Scenario) -> None:
    """Whether anyone can recompute so."""
    if base.recipe.stage_recompute is not None:
        raise DlcalcError(
            "search: recompute_per_stage samples what recipe: stage_recompute gives; leave one of them out"
        )
    if base.recipe.target is not None:
        raise DlcalcError(
            f"search: recompute_per_stage: {base.recipe.target} recomputes as many layers on one stage as on another; "
            "leave out target"
        )
    if "full" not in base.recipe.framework.recompute_modes:
        raise DlcalcError(f"search: recompute_per_stage: {base.recipe.framework.name} has no full recomputation")


def chunk_layers(n_layers: int, *, pp: int, vpp: int, first: float, last: float, slope: float) -> tuple[int, ...]:
    """Whole layers per chunk in proportion to its weight, one at least."""
    n_chunks = pp * vpp
    stage = np.arange(n_chunks) % pp
    weight = 1.0 + slope * (stage / (pp - 1) - 0.5)
    weight[0] *= first
    weight[-1] *= last
    spare = n_layers - n_chunks
    share: Array = np.maximum(weight / weight.sum() * n_layers - 1.0, 0.0)
    cut = np.floor(np.cumsum(share) / share.sum() * spare + 0.5) if spare and share.sum() > 0 else np.zeros(n_chunks)
    cut[-1] = spare
    return tuple(int(count) + 1 for count in np.diff(cut, prepend=0.0))


def stage_recompute(base: Scenario, pp: int, vpp: int, *, first: float, growth: float) -> tuple[int, ...]:
    """Layers that each stage recomputes of a chunk of its own.

    Of its layers the first stage keeps the share ``first``; another one keeps as many times more as it holds fewer
    micro-batches, to the power of ``growth``.
    """
    split = base.custom_split or (base.model.n_layers / (pp * vpp),) * (pp * vpp)
    layers = np.array([max(split[stage::pp]) for stage in range(pp)], dtype=float)
    in_flight = np.asarray(
        in_flight_micro_batches_count(
            base.axes[2]["schedule"][0], pp=float(pp), vpp=float(vpp), n_micro_batches=MANY, stage=np.arange(float(pp))
        )
    )
    kept = first * layers[0] * (in_flight[0] / in_flight) ** growth
    again = np.ceil(layers) - np.minimum(np.floor(kept + 0.5), np.ceil(layers))
    return tuple(int(count) for count in again)


def with_pipeline(base: Scenario, pp: int, vpp: int) -> Scenario:
    """``base`` with its pipelines of ``pp`` x ``vpp`` chunks only."""
    keep = base.axes[0]["pp"] == pp
    mesh = {knob: values[keep] for knob, values in base.axes[0].items()}
    rows = base.axes[2]["vpp"] == vpp
    pipe = {knob: values[rows] for knob, values in base.axes[2].items()}
    return replace(base, axes=(mesh, base.axes[1], pipe, *base.axes[3:]))


def with_cut(base: Scenario, cut: Sequence[int]) -> Scenario:
    """``base``, whose pipelines have that many chunks, cut like that."""
    _, once = np.unique(base.axes[2]["schedule"], return_index=True)
    pipe = {knob: values[np.sort(once)] for knob, values in base.axes[2].items()}
    pipe["split"] = np.full(len(once), float(CUSTOM))
    return replace(base, axes=(*base.axes[:2], pipe, *base.axes[3:]), custom_split=tuple(cut))


def with_recompute(base: Scenario, layers: Sequence[int]) -> Scenario:
    """``base`` with stages that recompute as many layers of a chunk."""
    redo: Axis = {
        "recompute": np.array([float(RECOMPUTE_MODES.index("full"))]),
        "recompute_layers": np.array([float(PER_STAGE)]),
        "offload_layers": np.zeros(1),
    }
    recipe = base.recipe.model_copy(update={"stage_recompute": tuple(layers)})
    return replace(base, recipe=recipe, axes=(*base.axes[:4], redo, *base.axes[5:]))
