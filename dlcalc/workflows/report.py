"""The use case behind ``dlcalc-report``: a result as a whole, and one of its plans. Never click, never colours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlcalc.costmodel.timeline import Timeline
from dlcalc.errors import DlcalcError, InfeasibleSpaceError, ResultError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.page.shell import require_plotly
from dlcalc.report.study_facts import (
    Cloud,
    Density,
    PlanFacts,
    Refusals,
    ScenarioFacts,
    StudyFacts,
)
from dlcalc.report.study_page import study_page
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.results.reader import Result, Row, open_result
from dlcalc.results.storage import Location, is_directory, location
from dlcalc.search.result_row import ResultRow
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.utils import units
from dlcalc.workflows.report_parts import (
    as_placed,
    capacity_bytes,
    cells_of,
    estimate_of,
    mesh_of,
    plan_facts,
    point_of,
    provenance_of,
    scenario_bests,
    why_of,
)
from dlcalc.workflows.result_rows import row_of, scenario_name
from dlcalc.workflows.run import drawable_timeline, write_text
from dlcalc.workflows.search_summary import RELATIVE_SPREAD
from dlcalc.workflows.sensitivity import sensitivity_of
from dlcalc.workflows.survey import (
    BEYOND_CAPACITY,
    COLUMNS,
    ROWS,
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
    path: Location | str, *, rank: int = 1, scenario: str | None = None, sensitivity: bool = True
) -> tuple[StudyFacts, Timeline | None]:
    """What there is to say of the result in ``path`` and of its plan of rank ``rank``; and that plan's pipeline."""
    path = location(path)
    if isinstance(path, Path) and not os.path.exists(path):
        raise ResultError(f"{path}: does not exist; give the result directory of a search")
    if not is_directory(path):
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
    if not os.path.isdir(out.parent):
        raise DlcalcError(f"{out}: cannot be written: no directory {out.parent}")
    if os.path.isdir(out):
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
        self.capacity_bytes = capacity_bytes(origin)
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
        if self.by == "memory_bytes":
            notes.append("plans are ranked by memory, as the search was told to")
        summary = self._summary()
        return self._frame(
            notes,
            refusals,
            source,
            plan=plan,
            why=why_of(plan, top),
            n_within_2_percent=seen.n_near,
            n_not_told_apart=seen.n_not_told_apart,
            worth_measuring=tuple(knobs_of(row) for row in summary.get("worth_measuring", ())),
            top=top,
            cloud=self._cloud(seen, rows),
            heat=tuple(cells_of(seen, rows)),
            mesh_best=tuple(point_of(rows[found.index]) for _, found in ordered[:MOST_MESHES]),
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
            scenarios=tuple(scenario_bests(self.result, self.by)),
            refusals=refusals,
            placed=self.result.placed.topology if self.placed and self.result.placed else None,
            provenance=provenance_of(self.result, self.origin, self.uncertainty, source),
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
            usable_bytes=origin.hardware.device.hbm_bytes,
            limit_bytes=self.capacity_bytes,
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
            front=tuple(point_of(rows[int(index)]) for index in seen.front),
            points=tuple(point_of(row) for row in rows.values()) if few else (),
            density=None if few else Density(self._memory_step_bytes(), self.leaders.best_mfu / ROWS, counts),
        )

    # ---- plans ----

    def _top(self, seen: Survey, rows: Mapping[int, Row]) -> Iterator[PlanFacts]:
        """The plans that are shown term by term: the best, the best of further meshes, and the one that is wanted."""
        shown = self._placed_ranks() if self.placed else self._ranks(seen, rows)
        for rank, row in sorted(shown.items()):
            found = self.source(rank).resolve({}).estimate() if self.placed else estimate_of(self.origin, row)
            yield plan_facts(self.origin, row, rank, found)

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
        meshes = {mesh_of(row) for row in shown.values()}
        others = [rows[best.index] for mesh, best in seen.by_speed() if mesh not in meshes][:TOP_OF_MESHES]
        ranks = ranks_of(self.result, self.name, others, by=self.by, capacity_bytes=self.capacity_bytes)
        return shown | {ranks[row["plan_index"]]: row for row in others}

    def _placed_ranks(self) -> dict[int, Row]:
        rows = {rank: as_placed(row) for rank, row in enumerate(self.placed, 1)}
        shown = {rank: rows[rank] for rank in (*range(1, min(TOP_OF_ALL, len(rows)) + 1), self.rank)}
        meshes = {mesh_of(row) for row in shown.values()}
        others: dict[tuple[int, ...], int] = {}
        for rank, row in rows.items():
            if mesh_of(row) not in meshes:
                others.setdefault(mesh_of(row), rank)
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
