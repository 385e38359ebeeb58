"""Plans run on the cluster by the user's own command, those first that the estimates and the runs so far speak for."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import KNOBS, PER_STAGE, code_of, value_of
from dlcalc.errors import DlcalcError
from dlcalc.report.plan_words import plan_words
from dlcalc.report.summary import MeasuredRow, MeasuredSummary
from dlcalc.results.files import MEASURED_NAME, TRIALS_FOLDER, write_text
from dlcalc.search.coordinates import REDO
from dlcalc.search.found import Leaders
from dlcalc.search.measured_trials import INTERRUPTED, Claim, MeasuredStudy, PlanRun, open_measured_study
from dlcalc.search.measuring import Belief, belief
from dlcalc.search.runner import arguments, run_command
from dlcalc.search.sampled import shown_storage
from dlcalc.search.space import Scenario
from dlcalc.search.variables import Choice
from dlcalc.specs.plan import PlanSection
from dlcalc.specs.sampling import DEFAULT_TIMEOUT_S, SearchSpec
from dlcalc.specs.space import SpaceSpec
from dlcalc.utils.jsontext import to_json
from dlcalc.validation.rows import COLUMNS
from dlcalc.validation.written import row_of_plan
from dlcalc.workflows.sampled import identity_of, study_name
from dlcalc.workflows.sweep import Progress, rows_of

MEASURING = "measuring plans"
OUT_OF_MEMORY_WORDS = ("out of memory", "outofmemory", "oom")
"""In the reason of a run without a time, what tells that memory was the reason."""


@dataclass(frozen=True)
class Candidates:
    """The best plans of a scenario by their estimates, and what is known of each."""

    scenario: Scenario
    index: NDArray[np.int64]
    columns: Mapping[str, Any]

    @classmethod
    def of(cls, scenario: Scenario, leaders: Leaders) -> Candidates:
        index = leaders.best(len(leaders.index), "step_time").index
        return cls(scenario, index, rows_of(scenario, index))

    def knobs(self, position: int) -> dict[str, Any]:
        return {knob: value_of(knob, float(self.columns[knob][position])) for knob in KNOBS}

    @cached_property
    def position(self) -> Mapping[int, int]:
        """By plan index."""
        return {int(plan): position for position, plan in enumerate(self.index)}

    @cached_property
    def choices(self) -> NDArray[np.float64]:
        return np.stack([np.asarray(self.columns[knob], dtype=float) for knob in KNOBS if knob != "dp"], axis=1)

    def belief(self, runs: Sequence[PlanRun]) -> Belief:
        """What is believed of every candidate after ``runs``."""
        timed = [run for run in runs if run.step_time_s is not None and run.plan_index in self.position]
        return belief(
            self.choices,
            self.columns["step_time_s"],
            (self.columns["step_time_low_s"], self.columns["step_time_high_s"]),
            np.array([self.position[run.plan_index] for run in timed], dtype=np.int64),
            np.array([run.step_time_s for run in timed], dtype=float),
            coverage=self.scenario.uncertainty.coverage,
        )


def measure_scenarios(
    space: SpaceSpec,
    scenarios: Sequence[Scenario],
    leaders: Sequence[Leaders],
    directory: Path,
    folder: Path,
    progress: Progress | None,
) -> list[MeasuredSummary]:
    """Run the plans of every scenario that may be its fastest; ``folder`` is where the command is started."""
    spec = space.search
    assert spec is not None
    assert spec.command is not None
    arguments(spec.command, {"plan": "", "trial": ""})  # a mistake in it is found before any work is done
    if any(np.any(scenario.axes[REDO]["recompute_layers"] == PER_STAGE) for scenario in scenarios):
        raise DlcalcError("search: objective: measured: no trainer recomputes other numbers of layers on other stages")
    said, rows = [], []
    for scenario, best in zip(scenarios, leaders, strict=True):
        candidates = Candidates.of(scenario, best)
        name = study_name(spec, space.study, scenario, len(scenarios))
        with closing(_study_of(spec, name, candidates, directory)) as study:
            _measure(spec, study, candidates, directory, folder, progress)
            said.append(_summary(spec, study, candidates, directory / MEASURED_NAME))
            rows += _rows(space.study, study, candidates)
    _write_csv(directory / MEASURED_NAME, rows)
    return said


def _study_of(spec: SearchSpec, name: str, candidates: Candidates, directory: Path) -> MeasuredStudy:
    """The study that keeps the runs; beside the result where no storage is given, since runs are dear."""
    kept = spec if spec.storage is not None else spec.model_copy(update={"storage": "journal"})
    journal = directory.with_name(f"{directory.name}.journal")
    axes = {knob: codes for axis in candidates.scenario.axes for knob, codes in axis.items()}
    knobs = [Choice(knob, tuple(value_of(knob, code) for code in np.unique(axes[knob]).tolist())) for knob in KNOBS]
    return open_measured_study(kept, name, knobs, identity_of(candidates.scenario, spec), journal=str(journal))


def _measure(
    spec: SearchSpec,
    study: MeasuredStudy,
    candidates: Candidates,
    directory: Path,
    folder: Path,
    progress: Progress | None,
) -> None:
    """Run one plan after the other until none can win, or the study has its trials."""
    wanted = [_named(plan, candidates) for plan in spec.warm_start]
    while True:
        study.fail_abandoned()
        runs = study.runs()
        if progress:
            progress(min(len(runs), spec.trials), spec.trials, MEASURING)
        tried = {run.plan_index for run in runs}
        known = candidates.belief(runs)
        position = _next(candidates, known, runs, [plan for plan in wanted if int(candidates.index[plan]) not in tried])
        if position is None or len(runs) >= spec.trials:
            return
        claim = study.claim(
            int(candidates.index[position]),
            candidates.knobs(position),
            {
                "plan": plan_words(candidates.knobs(position)),
                "estimated_step_time_s": round(float(candidates.columns["step_time_s"][position]), 6),
                "believed_step_time_s": round(float(np.exp(known.log_time[position])), 6),
            },
        )
        if claim is not None:
            _run(spec, study, claim, candidates, directory, folder)


def _next(candidates: Candidates, known: Belief, runs: Sequence[PlanRun], wanted: Sequence[int]) -> int | None:
    """The candidate to run next; None where no candidate can be faster than the best time measured."""
    if wanted:
        return wanted[0]
    best_s = min((run.step_time_s for run in runs if run.step_time_s is not None), default=math.inf)
    tried = np.isin(candidates.index, [run.plan_index for run in runs])
    open_ = known.can_win(best_s) & ~tried
    if not open_.any():
        return None
    return int(np.argmax(np.where(open_, known.gain(best_s), -np.inf)))


def _named(plan: PlanSection, candidates: Candidates) -> int:
    """The best candidate with the knobs that ``plan`` names."""
    agrees = np.ones(len(candidates.index), dtype=np.bool_)
    told = plan.model_dump(exclude_none=True)
    for knob, value in told.items():
        wanted = value_of(knob, code_of(knob, value))
        agrees &= np.array(
            [candidates.knobs(row)[knob] == wanted for row in range(len(candidates.index))], dtype=np.bool_
        )
    if not agrees.any():
        listed = ", ".join(f"{knob}={value}" for knob, value in told.items())
        raise DlcalcError(
            f"search: warm_start: none of the {len(candidates.index):,} best plans of {candidates.scenario.name} "
            f"has {listed}"
        )
    return int(np.argmax(agrees))


def _run(
    spec: SearchSpec, study: MeasuredStudy, claim: Claim, candidates: Candidates, directory: Path, folder: Path
) -> None:
    """Write the plan down, run the command, tell what came out."""
    assert spec.command is not None
    place = (directory / TRIALS_FOLDER).absolute()
    place.mkdir(exist_ok=True)
    stem = f"{_file_stem(study.name)}-{claim.number:04d}"
    plan, log = place / f"{stem}.json", place / f"{stem}.log"
    position = candidates.position[claim.plan_index]
    write_text(plan, to_json(_plan_document(candidates, position, claim.number)) + "\n", durable=False)
    words = arguments(spec.command, {"plan": str(plan), "trial": str(claim.number)})
    try:
        outcome = run_command(
            words,
            plan=plan,
            log=log,
            folder=folder,
            timeout_s=spec.timeout_s or DEFAULT_TIMEOUT_S,
            pattern=spec.pattern,
        )
    except BaseException:
        study.fail(claim, INTERRUPTED)
        raise
    if outcome.step_time_s is None:
        study.fail(claim, outcome.problem)
        return
    ratio = outcome.step_time_s / float(candidates.columns["step_time_s"][position])
    study.tell(claim, outcome.step_time_s, {"measured_over_estimated": round(ratio, 4)})


def _file_stem(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def _plan_document(candidates: Candidates, position: int, trial: int) -> dict[str, Any]:
    """What the command is told."""
    scenario = candidates.scenario
    return {
        "scenario": scenario.name,
        "trial": trial,
        "model": scenario.model.name,
        "hardware": scenario.hardware.name,
        "devices": scenario.devices,
        "seq_len": scenario.recipe.seq_len,
        "global_batch": scenario.recipe.global_batch,
        "precision": scenario.recipe.precision,
        "framework": scenario.recipe.framework.name,
        "plan_index": int(candidates.index[position]),
        "plan": candidates.knobs(position),
        "custom_split": list(scenario.custom_split or ()) or None,
        "estimated_step_time_s": float(candidates.columns["step_time_s"][position]),
        "estimated_memory_bytes": float(candidates.columns["memory_bytes"][position]),
    }


# ---- what is said of it


def _summary(spec: SearchSpec, study: MeasuredStudy, candidates: Candidates, file: Path) -> MeasuredSummary:
    runs = [run for run in study.runs() if not run.is_running]
    best_s = min((run.step_time_s for run in runs if run.step_time_s is not None), default=math.inf)
    tried = np.isin(candidates.index, [run.plan_index for run in runs])
    rows = [_row(run, candidates) for run in runs if run.plan_index in candidates.position]
    ratios = [row["measured_step_time_s"] / row["step_time_s"] for row in rows if row["measured_step_time_s"]]
    return {
        "command": spec.command or "",
        "study_name": study.name,
        "storage": shown_storage(spec.storage or "journal"),
        "n_trials": len(runs),
        "n_trials_before": study.n_before,
        "n_trials_failed": sum(run.step_time_s is None for run in runs),
        "n_open": int(np.count_nonzero(candidates.belief(runs).can_win(best_s) & ~tried)),
        "measured_over_estimated": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
        "rows": sorted(rows, key=lambda row: (row["measured_step_time_s"] or math.inf, row["trial"])),
        "csv": str(file),
    }


def _row(run: PlanRun, candidates: Candidates) -> MeasuredRow:
    position = candidates.position[run.plan_index]
    return {
        **candidates.knobs(position),  # type: ignore[typeddict-item]
        "plan_index": run.plan_index,
        "trial": run.number,
        "step_time_s": float(candidates.columns["step_time_s"][position]),
        "measured_step_time_s": run.step_time_s,
        "problem": run.problem,
    }


def _rows(source: str, study: MeasuredStudy, candidates: Candidates) -> list[dict[str, str]]:
    scenario = candidates.scenario
    return [
        row_of_plan(
            scenario.model,
            scenario.hardware,
            scenario.recipe,
            candidates.knobs(candidates.position[run.plan_index]),
            source=source,
            case=f"{scenario.name}: trial {run.number}",
            step_time_s=run.step_time_s,
            out_of_memory=any(word in run.problem.lower() for word in OUT_OF_MEMORY_WORDS),
            custom_split=scenario.custom_split,
        )
        for run in study.runs()
        if not run.is_running and run.plan_index in candidates.position
    ]


def _write_csv(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue(), durable=True)
