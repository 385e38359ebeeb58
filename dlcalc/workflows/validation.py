"""The use case of dlcalc-validate: read measured runs, estimate them, compare, write. Never click, never colours."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.validation_summary import (
    Count,
    ErrorRow,
    MemoryVerdictRow,
    Point,
    RankingRow,
    ScoreRow,
    SweepRow,
    ValidationSummary,
)
from dlcalc.specs.load import config_dir
from dlcalc.specs.uncertainty import Uncertainty, load_uncertainty
from dlcalc.validation import compare
from dlcalc.validation.compare import Comparison, Scores, Sweep
from dlcalc.validation.metrics import ErrorStats, MemoryVerdicts
from dlcalc.validation.models import Models, read_models
from dlcalc.validation.rows import extras_without_effect, ignored_extras, read_runs
from dlcalc.validation.runs import RunReader


def run_validation(
    files: Sequence[Path] = (),
    *,
    models: Path | None = None,
    out: Path | None = None,
    html: Path | None = None,
    hardware_dirs: Sequence[Path] = (),
) -> ValidationSummary:
    """Compare the runs in ``files``, or those that are shipped, with their estimates; write what is asked for."""
    from dlcalc.report import validation_page  # rich is not needed to compare
    from dlcalc.report.page.shell import require_plotly

    began = time.perf_counter()
    if html is not None:
        require_plotly("--html")
    files = list(files) or shipped_runs()
    known = read_models(models or config_dir() / "measured" / "models.yaml")
    uncertainty = load_uncertainty()
    compared = _compared(files, known, hardware_dirs, uncertainty)
    runs = [one.run for one in compared]
    if out is not None:
        compare.write_predictions(out, compared)
    summary: ValidationSummary = {
        "files": [str(file) for file in files],
        "runs": len(runs),
        "estimated": sum(one.step_time_s is not None for one in compared),
        "timed": sum(one.is_timed for one in compared),
        "parts_of_a_step": sum(run.is_part_of_a_step for run in runs),
        "interval": uncertainty.coverage,
        "seconds": time.perf_counter() - began,
        "overall": _score_row(compare.scores("all", compared)),
        "sources": [_score_row(scores) for scores in compare.scores_by_source(compared)],
        "sweeps": [_sweep_row(sweep) for sweep in compare.sweeps(compared)],
        "not_estimated": _counts(compare.unestimated_counts(compared)),
        "refused_though_they_ran": _counts(compare.refusal_counts(compared)),
        "remarks": _counts(compare.remark_counts(compared)),
        "ignored_extras": ignored_extras(runs),
        "extras_without_effect": extras_without_effect(runs),
        "ignored_model_keys": sorted(known.ignored),
        "refused_models": sorted(known.refused.values()),
    }
    if html is not None:
        validation_page.write_page(html, summary, [_point(one) for one in compared])
    return summary


def run_points() -> list[Point]:
    """Every shipped run with its estimate and its knobs, as plots show them."""
    known = read_models(config_dir() / "measured" / "models.yaml")
    return [_point(one) for one in _compared(shipped_runs(), known, (), load_uncertainty())]


def _compared(
    files: Sequence[Path], known: Models, hardware_dirs: Sequence[Path], uncertainty: Uncertainty
) -> list[Comparison]:
    runs = [run for file in files for run in read_runs(file)]
    if not runs:
        raise DlcalcError(f"{', '.join(map(str, files))}: no measured run in it")
    registry = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    return compare.compare_runs(runs, RunReader(known, registry), uncertainty)


def shipped_runs() -> list[Path]:
    """The measured runs that come with dlcalc."""
    return sorted((config_dir() / "measured").glob("*.csv"))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _error_row(stats: ErrorStats) -> ErrorRow:
    return {
        "runs": stats.n,
        "median": _number(stats.median),
        "mean": _number(stats.mean),
        "p90": _number(stats.p90),
        "worst": _number(stats.worst),
        "bias": _number(stats.bias),
    }


def _verdict_row(verdicts: MemoryVerdicts) -> MemoryVerdictRow:
    return {
        "runs": verdicts.n,
        "accuracy": _number(verdicts.accuracy),
        "ran_and_fits": verdicts.ran_and_fits,
        "ran_but_refused": verdicts.ran_but_refused,
        "out_and_refused": verdicts.out_and_refused,
        "out_but_fits": verdicts.out_but_fits,
    }


def _ranking_row(scores: Scores) -> RankingRow:
    sweeps = scores.sweeps
    correlations = [sweep.spearman for sweep in sweeps if math.isfinite(sweep.spearman)]
    return {
        "sweeps": len(sweeps),
        "spearman_mean": _number(scores.mean_over_sweeps("spearman")),
        "spearman_worst": min(correlations, default=None),
        "regret_at_1_mean": _number(scores.mean_over_sweeps("regret_at_1")),
        "regret_at_1_worst": max((sweep.regret_at_1 for sweep in sweeps), default=None),
        "regret_at_3_mean": _number(scores.mean_over_sweeps("regret_at_3")),
        "regret_at_3_worst": max((sweep.regret_at_3 for sweep in sweeps), default=None),
        "choices_out_of_memory": sum(sweep.choices_out_of_memory for sweep in sweeps),
    }


def _score_row(scores: Scores) -> ScoreRow:
    return {
        "source": scores.name,
        "runs": scores.n_runs,
        "estimated": scores.n_estimated,
        "step_time": _error_row(scores.time),
        "memory": _error_row(scores.memory),
        "out_of_memory": _verdict_row(scores.verdicts),
        "interval_coverage": _number(scores.coverage),
        "ranking": _ranking_row(scores),
    }


def _sweep_row(sweep: Sweep) -> SweepRow:
    name = sweep.name
    return {
        "source": name["source"],
        "model": name["model"],
        "hardware": name["hardware"],
        "gpus": name["gpus"],
        "seq_len": name["seq_len"],
        "global_batch": name["global_batch"],
        "timed": sweep.n_timed,
        "out_of_memory": sweep.n_out_of_memory,
        "spearman": _number(sweep.spearman),
        "regret_at_1": sweep.regret_at_1,
        "regret_at_3": sweep.regret_at_3,
        "choices_out_of_memory": sweep.choices_out_of_memory,
    }


def _counts(counted: Iterable[tuple[str, int]]) -> list[Count]:
    return [{"text": text, "runs": number} for text, number in counted]


PLOTTED_KNOBS = tuple(
    knob for knob in KNOBS if knob not in ("recompute_layers", "offload_optimizer", "offload_layers", "dp_replicate")
)


def _point(one: Comparison) -> Point:
    """A run as the plots show it; knobs as they were estimated."""
    knobs = {key: one.run.text(key) for key in ("model", "hardware", "framework", "precision", "gpus", "seq_len")}
    if one.setting is not None:
        knobs["attention"] = one.setting.recipe.framework.attention
        knobs |= {knob: str(value_of(knob, float(getattr(one.setting.plan, knob)))) for knob in PLOTTED_KNOBS}
    return {
        "case": one.run.case,
        "source": one.run.source,
        "measured_s": one.run.measured_step_time_s,
        "estimated_s": one.step_time_s,
        "low_s": one.low_s,
        "high_s": one.high_s,
        "measured_gib": one.run.measured_memory_gib,
        "estimated_gib": one.memory_gib,
        "knobs": knobs,
    }
