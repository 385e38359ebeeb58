"""The use case behind ``dlcalc-report``: a result as a whole, and one of its plans. Never click, never colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dlcalc import __version__
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.timeline import Timeline
from dlcalc.errors import DlcalcError, InfeasibleSpaceError, ResultError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.page.shell import require_plotly
from dlcalc.report.study_facts import (
    Cloud,
    Density,
    MeshCell,
    PlanFacts,
    PlanPoint,
    Provenance,
    Refusals,
    ScenarioBest,
    ScenarioFacts,
    Source,
    StudyFacts,
    TermDifference,
    Why,
)
from dlcalc.report.study_page import study_page
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.results.reader import Result, Row, open_result
from dlcalc.search.run import ResultRow
from dlcalc.specs.base import Quoted
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.uncertainty import Uncertainty, load_uncertainty
from dlcalc.utils import units
from dlcalc.utils.units import SECONDS_PER_DAY, SECONDS_PER_HOUR
from dlcalc.workflows import RELATIVE_SPREAD, breakdown
from dlcalc.workflows_run import citations, drawable_timeline, row_of, scenario_name, write_text
from dlcalc.workflows_sensitivity import sensitivity_of
from dlcalc.workflows_survey import (
    BEYOND_CAPACITY,
    COLUMNS,
    MESH,
    ROWS,
    Leaders,
    MeshBest,
    Survey,
    knobs_of,
    leaders,
    ranks_of,
    rows_at,
    survey,
)

TOP_OF_ALL, TOP_OF_MESHES = 5, 5
"""Plans whose step and memory are shown term by term: the best, and the fastest of so many further meshes."""
MOST_POINTS = 2000
"""Rows that are drawn one by one; more are counted in cells."""
MOST_MESHES = 150
"""Meshes whose best plan is a line of the parallel coordinates."""
DRIFT = 1e-3
"""How far an estimate of now may be from the row before it is said."""


def study_report(
    path: Path, *, rank: int = 1, scenario: str | None = None, sensitivity: bool = True
) -> tuple[StudyFacts, Timeline | None]:
    """What there is to say of the result in ``path`` and of its plan of rank ``rank``; and that plan's pipeline."""
    if not path.exists():
        raise ResultError(f"{path}: does not exist; give the result directory of a search")
    if not path.is_dir():
        raise ResultError(f"{path}: not a directory; give the result directory of a search")
    result = open_result(path)
    notes: list[str] = []
    name = _scenario(result, scenario, notes)
    origin = result.origin(name)
    if not result.is_complete:
        notes.append("the search was not finished; this is what it has found so far")
    study = _Study(result, name, origin, rank)
    if not study.leaders.n_fit:
        if rank > 1:
            raise DlcalcError(f"{path}: --rank {rank}: {name} has no rows that fit")
        return study.facts(notes, source=None, sensitivity=False), None
    source = study.source()
    return study.facts(notes, source, sensitivity=sensitivity), drawable_timeline(source)


def check_page(out: Path) -> None:
    """Say before any work is done that a page cannot be drawn, or not where it is to go."""
    require_plotly("-o")
    if not out.parent.is_dir():
        raise DlcalcError(f"{out}: cannot be written: no directory {out.parent}")
    if out.is_dir():
        raise DlcalcError(f"{out}: cannot be written: it is a directory; name a file in it")


def write_page(out: Path, facts: StudyFacts, timeline: Timeline | None) -> None:
    """The report as one file."""
    write_text(out, study_page(facts, timeline))


def as_document(facts: StudyFacts) -> dict[str, Any]:
    """The object of ``--json``."""
    return asdict(facts)


def nothing_fits(facts: StudyFacts) -> InfeasibleSpaceError | None:
    """The error of a scenario in which no plan fits, or None."""
    if facts.plan is not None:
        return None
    reasons = sorted(facts.refusals.reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = "; ".join(f"{units.count(number)} {reason}" for reason, number in reasons if number)
    head = f"none of {units.count(facts.refusals.n_plans)} plans of {facts.scenario.name} fits"
    return InfeasibleSpaceError(f"{head}: {listed}" if listed else head)


def _scenario(result: Result, wanted: str | None, notes: list[str]) -> str:
    """The scenario that is asked for, or the first that has rows, or else the first."""
    if wanted is None and not any(shard.n_rows for shard in result.shards()):
        return result.scenarios[0]
    return scenario_name(result, wanted, notes)


class _Study:
    """One scenario of a result, read once."""

    def __init__(self, result: Result, name: str, origin: ScenarioOrigin, rank: int) -> None:
        self.result, self.name, self.origin, self.rank = result, name, origin, rank
        self.headroom = float(origin.space.get("memory_headroom", 0.0))
        self.capacity_bytes = _capacity_bytes(origin)
        self.placed = result.placed_plans(name)
        self.by = "memory_bytes" if result.settings().get("sort") == "memory" else "step_time_s"
        self.uncertainty = load_uncertainty()
        self.leaders = leaders(result, name, max(TOP_OF_ALL, rank), by=self.by, capacity_bytes=self.capacity_bytes)

    def facts(self, notes: list[str], source: ResultRow | None, *, sensitivity: bool) -> StudyFacts:
        refusals = self._refusals()
        if source is None:
            return self._frame(notes, refusals, source)
        seen, rows = self._looked_at()
        top = tuple(self._top(seen, rows))
        plan = next(one for one in top if one.rank == self.rank)
        notes += [note for note in source.notes if note not in notes] + self._drift(plan)
        ordered = seen.by_speed()
        best = rows[ordered[0][1].index]
        fit = self.leaders.n_fit
        if self._n_fit() > fit:
            kept = f"{units.count(fit)} of {units.count(self._n_fit())} plans that fit"
            notes.append(f"the search kept {kept}: the charts show these")
        summary = self._summary()
        return self._frame(
            notes,
            refusals,
            source,
            plan=plan,
            why=_why(plan, top),
            n_within_2_percent=seen.n_near,
            n_not_told_apart=seen.n_not_told_apart,
            worth_measuring=tuple(knobs_of(row) for row in summary.get("worth_measuring", ())),
            top=top,
            cloud=self._cloud(seen, rows),
            heat=tuple(_cells(seen, rows)),
            mesh_best=tuple(_point(rows[found.index]) for _, found in ordered[:MOST_MESHES]),
            n_meshes=len(ordered),
            sensitivity=sensitivity_of(self.origin, best) if sensitivity else None,
        )

    def _frame(self, notes: Sequence[str], refusals: Refusals, source: ResultRow | None, **found: Any) -> StudyFacts:  # noqa: ANN401
        """What is known also where nothing fits, and ``found``."""
        absent: dict[str, Any] = {
            "plan": None, "why": None, "n_within_2_percent": 0, "n_not_told_apart": 0, "worth_measuring": (),
            "top": (), "cloud": None, "heat": (), "mesh_best": (), "n_meshes": 0, "sensitivity": None,
        }  # fmt: skip
        return StudyFacts(
            study=self.result.manifest.study,
            scenario=self._scenario(refusals),
            notes=tuple(notes),
            coverage=self.uncertainty.coverage,
            scenarios=tuple(_scenario_bests(self.result, self.by)),
            refusals=refusals,
            placed=self.result.placed.topology if self.placed and self.result.placed else None,
            provenance=_provenance(self.result, self.origin, self.uncertainty, source),
            **(absent | found),
        )

    def _scenario(self, refusals: Refusals) -> ScenarioFacts:
        origin, recipe = self.origin, self.origin.recipe
        return ScenarioFacts(
            name=self.name,
            model=origin.model.name,
            hardware=origin.hardware.name,
            hardware_description=origin.hardware.description,
            devices=origin.devices,
            precision=recipe.precision,
            framework=recipe.framework.name,
            seq_len=recipe.seq_len,
            global_batch=recipe.global_batch,
            mfu_convention=recipe.mfu_convention,
            token_budget=recipe.token_budget,
            usd_per_device_hour=origin.hardware.price.usd_per_device_hour if origin.hardware.price else None,
            capacity_bytes=self.capacity_bytes,
            memory_headroom=self.headroom,
            n_plans=refusals.n_plans,
            n_fit=self._n_fit(),
        )

    def _n_fit(self) -> int:
        return sum(shard.n_fit for shard in self.result.shards(self.name))

    def _summary(self) -> Mapping[str, Any]:
        """What the search printed of this scenario, if it came to its end."""
        if not self.result.is_complete:
            return {}
        found = self.result.summary().get("scenarios", ())
        return next((one for one in found if one.get("name") == self.name), {})

    def _refusals(self) -> Refusals:
        shards = self.result.shards(self.name)
        reasons: dict[str, int] = {}
        for shard in shards:
            for reason, number in shard.refused.items():
                reasons[reason] = reasons.get(reason, 0) + number
        n_plans = sum(shard.n_plans for shard in shards)
        ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        misses = tuple(self._summary().get("nearest_misses", ()))
        return Refusals(n_plans, n_plans - self._n_fit(), {k: n for k, n in ordered.items() if n}, misses)

    # ---- rows ----

    def _looked_at(self) -> tuple[Survey, dict[int, Row]]:
        """All rows seen once, and those that are shown."""
        found = self.leaders
        first = rows_at(self.result, self.name, found.index[:1])[int(found.index[0])]
        wide = first["step_time_high_s"] / first["step_time_s"] - 1.0
        seen = survey(
            self.result,
            self.name,
            found,
            capacity_bytes=self.capacity_bytes,
            memory_step_bytes=self._memory_step_bytes(),
            told_apart_s=found.fastest_s * (1.0 + RELATIVE_SPREAD * wide),
        )
        shown = {*found.index[:TOP_OF_ALL].tolist(), *found.index[self.rank - 1 : self.rank].tolist()}
        wanted = {*shown, *seen.front.tolist(), *(mesh.index for mesh in seen.meshes.values())}
        if found.n_rows <= MOST_POINTS:
            for batch in self.result.batches(self.name, columns=["plan_index"]):
                wanted |= set(batch.column("plan_index").to_pylist())
        return seen, rows_at(self.result, self.name, wanted)

    def _memory_step_bytes(self) -> float:
        keeps_all = self.leaders.n_rows > self.leaders.n_fit
        return self.capacity_bytes * (BEYOND_CAPACITY if keeps_all else 1.0) * (1 + 1e-9) / COLUMNS

    def _cloud(self, seen: Survey, rows: Mapping[int, Row]) -> Cloud:
        few = self.leaders.n_rows <= MOST_POINTS
        counts = tuple(tuple(int(count) for count in row) for row in seen.counts)
        return Cloud(
            n_rows=self.leaders.n_rows,
            n_fit=self.leaders.n_fit,
            n_beyond=0 if few else seen.n_beyond,
            front=tuple(_point(rows[int(index)]) for index in seen.front),
            points=tuple(_point(row) for row in rows.values()) if few else (),
            density=None if few else Density(self._memory_step_bytes(), self.leaders.best_mfu / ROWS, counts),
        )

    # ---- plans ----

    def _top(self, seen: Survey, rows: Mapping[int, Row]) -> Iterator[PlanFacts]:
        """The plans that are shown term by term: the best, the best of further meshes, and the one that is wanted."""
        shown = self._placed_ranks() if self.placed else self._ranks(seen, rows)
        for rank, row in sorted(shown.items()):
            if self.placed:
                found = self.source(rank).resolve({}).estimate()
            else:
                found = _estimate(self.origin, row)
            yield _plan_facts(self.origin, row, rank, found)

    def source(self, rank: int | None = None) -> ResultRow:
        """The row of a rank with all that made it, as ``3dtrn`` takes it."""
        return row_of(self.result, self.result.directory, rank or self.rank, self.name, HardwareRegistry())

    def _ranks(self, seen: Survey, rows: Mapping[int, Row]) -> dict[int, Row]:
        """By rank, which for the best of a mesh has to be counted."""
        index = self.leaders.index.tolist()
        if self.rank > len(index):
            n_fit = units.count(self.leaders.n_fit)
            raise DlcalcError(f"{self.result.directory}: --rank {self.rank}: {self.name} has {n_fit} rows that fit")
        shown = {rank: rows[index[rank - 1]] for rank in (*range(1, min(TOP_OF_ALL, len(index)) + 1), self.rank)}
        meshes = {_mesh(row) for row in shown.values()}
        others = [rows[best.index] for mesh, best in seen.by_speed() if mesh not in meshes][:TOP_OF_MESHES]
        ranks = ranks_of(self.result, self.name, others, by=self.by, capacity_bytes=self.capacity_bytes)
        return shown | {ranks[row["plan_index"]]: row for row in others}

    def _placed_ranks(self) -> dict[int, Row]:
        rows = {rank: _as_placed(row) for rank, row in enumerate(self.placed, 1)}
        shown = {rank: rows[rank] for rank in (*range(1, min(TOP_OF_ALL, len(rows)) + 1), self.rank)}
        meshes = {_mesh(row) for row in shown.values()}
        others: dict[tuple[int, ...], int] = {}
        for rank, row in rows.items():
            if _mesh(row) not in meshes:
                others.setdefault(_mesh(row), rank)
        return shown | {rank: rows[rank] for rank in sorted(others.values())[:TOP_OF_MESHES]}

    def _drift(self, plan: PlanFacts) -> list[str]:
        """That this version estimates otherwise than the one that searched."""
        now_s = sum(plan.time_s.values())
        if abs(now_s / plan.step_time_s - 1.0) <= DRIFT:
            return []
        return [
            f"this version of dlcalc estimates {units.duration(now_s, 4)} where the result says "
            f"{units.duration(plan.step_time_s, 4)}; terms and what more hardware would give are this version's"
        ]


def _capacity_bytes(origin: ScenarioOrigin) -> float:
    return origin.hardware.device.hbm_bytes * (1.0 - float(origin.space.get("memory_headroom", 0.0)))


def _point(row: Mapping[str, Any]) -> PlanPoint:
    return PlanPoint(knobs_of(row), row["step_time_s"], row["mfu"], row["memory_bytes"])


def _cells(seen: Survey, rows: Mapping[int, Row]) -> Iterator[MeshCell]:
    """The best of every tp and pp over all other degrees."""
    cells: dict[tuple[int, int], list[MeshBest]] = {}
    for mesh, found in seen.by_speed():
        cells.setdefault((mesh[MESH.index("tp")], mesh[MESH.index("pp")]), []).append(found)
    for (tp, pp), found_here in sorted(cells.items()):
        n_rows = sum(found.n_rows for found in found_here)
        yield MeshCell(tp, pp, n_rows, _point(rows[found_here[0].index]))


def _estimate(origin: ScenarioOrigin, row: Mapping[str, Any]) -> Estimate:
    return estimate(
        origin.model,
        origin.hardware,
        origin.recipe,
        Plans.point(**knobs_of(row)),
        custom_split=tuple(origin.space.get("custom_split") or ()) or None,
        memory_headroom=float(origin.space.get("memory_headroom", 0.0)),
    )


def _as_placed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A placed row with what it takes on its nodes in place of what it would take on paper."""
    return {**row, **{name.removeprefix("placed_"): value for name, value in row.items() if name.startswith("placed_")}}


def _budget(origin: ScenarioOrigin, step_time_s: float) -> tuple[float | None, float | None]:
    """Days and dollars of the token budget."""
    recipe, price = origin.recipe, origin.hardware.price
    if not recipe.token_budget:
        return None, None
    seconds = recipe.token_budget / recipe.tokens_per_step * step_time_s
    cost = seconds / SECONDS_PER_HOUR * origin.devices * price.usd_per_device_hour if price else None
    return seconds / SECONDS_PER_DAY, cost


def _plan_facts(origin: ScenarioOrigin, row: Mapping[str, Any], rank: int, found: Estimate) -> PlanFacts:
    terms = breakdown(found)
    days, cost_usd = _budget(origin, row["step_time_s"])
    quantities = (
        "step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "hfu", "tokens_per_s_per_device", "memory_bytes",
        "headroom_bytes",
    )  # fmt: skip
    return PlanFacts(
        rank=rank,
        plan=knobs_of(row),
        days=days,
        cost_usd=cost_usd,
        time_s=terms["time_s"],
        memory_terms_bytes=terms["memory_bytes"],
        **{name: row[name] for name in quantities},
    )


def _mesh(row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(row[knob] for knob in MESH)


def _why(plan: PlanFacts, top: Sequence[PlanFacts]) -> Why | None:
    """Against the best plan; the best one against the best of another mesh."""
    if plan.rank != 1:
        return _against(plan, top[0], is_runner_up=False)
    others = [one for one in top if _mesh(one.plan) != _mesh(plan.plan)]
    return _against(plan, others[0], is_runner_up=True) if others else None


def _against(plan: PlanFacts, other: PlanFacts, *, is_runner_up: bool) -> Why:
    names = {**plan.time_s, **other.time_s}
    terms = [TermDifference(name, plan.time_s.get(name, 0.0), other.time_s.get(name, 0.0)) for name in names]
    return Why(other, is_runner_up, tuple(sorted(terms, key=lambda term: -abs(term.more_s))))


# ---- the other scenarios ------------------------------------------------------------------------------------------


def _scenario_bests(result: Result, by: str) -> Iterator[ScenarioBest]:
    """The best of every scenario of which something is finished, as the search ranked it."""
    for name in result.scenarios:
        if result.shards(name):
            yield _scenario_best(result, name, by)


def _scenario_best(result: Result, name: str, by: str) -> ScenarioBest:
    shards, origin = result.shards(name), result.origin(name)
    recipe = origin.recipe
    found: Leaders = leaders(result, name, 1, by=by, capacity_bytes=_capacity_bytes(origin))
    best: dict[str, Any] = {}
    if found.n_fit:
        row = rows_at(result, name, found.index)[int(found.index[0])]
        days, cost_usd = _budget(origin, row["step_time_s"])
        copied = ("step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "memory_bytes")
        best = {key: row[key] for key in copied} | {"days": days, "cost_usd": cost_usd}
        best["tokens_per_s"] = recipe.tokens_per_step / row["step_time_s"]
    return ScenarioBest(
        name=name,
        model=origin.model.name,
        hardware=origin.hardware.name,
        devices=origin.devices,
        precision=recipe.precision,
        framework=recipe.framework.name,
        seq_len=recipe.seq_len,
        global_batch=recipe.global_batch,
        n_plans=sum(shard.n_plans for shard in shards),
        n_fit=sum(shard.n_fit for shard in shards),
        plan=knobs_of(row) if found.n_fit else None,
        **best,
    )


# ---- where it comes from ------------------------------------------------------------------------------------------


def _provenance(
    result: Result, origin: ScenarioOrigin, uncertainty: Uncertainty, source: ResultRow | None
) -> Provenance:
    manifest, calibration = result.manifest, origin.hardware.calibration
    return Provenance(
        result=str(result.directory),
        status=manifest.status,
        result_version=manifest.dlcalc_version,
        report_version=__version__,
        space_text=manifest.space_text,
        space_sha256=manifest.space_sha256,
        settings=manifest.settings,
        hardware=tuple(_sources(origin.hardware)),
        calibration=calibration.provenance,
        is_measured=calibration.measured,
        uncertainty=uncertainty.provenance,
        framework=f"{origin.recipe.framework.name}: {origin.recipe.framework.description}",
        citations=citations(source) if source is not None else (),
    )


def _sources(hardware: HardwareSpec) -> Iterator[Source]:
    """Every number of the machine with where it was read."""
    for part in (hardware.device, hardware.node, hardware.fabric):
        for name, value in _quoted(part):
            yield Source(name.replace("_", " "), f"{value.value:g}", value.source)
    if hardware.price:
        price = hardware.price
        yield Source("usd per device hour", f"{price.usd_per_device_hour:g} ({price.date})", price.source)


def _quoted(part: BaseModel) -> Iterator[tuple[str, Quoted]]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Quoted):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name} {key}", item) for key, item in value.items() if isinstance(item, Quoted))
