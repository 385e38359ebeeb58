"""From results to what is compared: the fastest plan of each scenario, estimated again from its own specs.

At a given number of devices the fastest plan is also the cheapest one and the one that takes least energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlcalc import __version__
from dlcalc.calculators import goodput
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.costmodel.prediction import Prediction
from dlcalc.errors import DlcalcError, ResultError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.compare_facts import (
    Candidate,
    Failures,
    Goodput,
    MachineInputs,
    NothingFits,
    Range,
)
from dlcalc.report.summary import miss_sentence
from dlcalc.results.reader import Result, open_result
from dlcalc.results.storage import Location, location
from dlcalc.search.run import Run
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.utils.units import SECONDS_PER_DAY, SECONDS_PER_HOUR
from dlcalc.workflows.compare_choices import verdict
from dlcalc.workflows.compare_difference import Contender
from dlcalc.workflows.compare_inputs import Asked
from dlcalc.workflows.result_rows import row_of


@dataclass(frozen=True)
class Found:
    """The best plan of a scenario as it was read."""

    result: Result
    scenario: str
    run: Run
    n_plans: int
    n_fit: int
    placed_on: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Empty:
    """A scenario of which nothing fits, and the machine that it is about."""

    facts: NothingFits
    hardware: HardwareSpec


# ---- reading ------------------------------------------------------------------------------------------------------


def open_results(paths: Sequence[Location | str]) -> list[Result]:
    """The results in ``paths``, each once."""
    seen: dict[Location, Location] = {}
    for path in map(location, paths):
        if path.resolve() in seen:
            raise DlcalcError(f"{path}: given twice")
        seen[path.resolve()] = path
    return [open_result(path) for path in seen.values()]


def best_of(results: Sequence[Result]) -> tuple[list[Found], list[Empty], list[str]]:
    """The best plan of each scenario, the scenarios without one, and what is to be known of the results."""
    found: list[Found] = []
    empty: list[Empty] = []
    notes: list[str] = []
    for result in results:
        notes += _notes_of(result)
        nearest = _nearest_misses(result)
        for name in result.scenarios:
            shards = result.shards(name)
            if not shards:
                notes.append(f"{result.directory}: nothing of {name} is finished yet; it is left out")
            elif any(shard.n_fit for shard in shards):
                found.append(_read(result, name))
            else:
                empty.append(_nothing_fits(result, name, nearest.get(name)))
    if not found and not empty:
        raise ResultError("; ".join(notes) or "no scenario")
    for one in found:
        notes += [note for note in one.notes if note not in notes]
    return found, empty, notes


def _notes_of(result: Result) -> list[str]:
    notes = []
    if not result.is_complete:
        notes.append(f"{result.directory}: the search was not finished; these are the best plans found so far")
    if result.manifest.dlcalc_version != __version__:
        notes.append(
            f"{result.directory}: searched with dlcalc {result.manifest.dlcalc_version}, "
            f"estimated again with {__version__}"
        )
    if result.settings().get("sort") == "memory" and result.settings().get("keep") == "top":
        notes.append(
            f"{result.directory}: kept are the plans that need least memory; the fastest may not be among them: "
            f"search again without --sort memory"
        )
    return notes


def _read(result: Result, name: str) -> Found:
    """The fastest row of a scenario, as placed where it was."""
    row = row_of(result, result.directory, 1, name, HardwareRegistry(), by="step_time_s")
    run = row.resolve({})
    shards = result.shards(name)
    notes: tuple[str, ...] = ()
    if result.placed and row.placed is None:
        notes = (f"{result.directory}: nothing of {name} was placed; estimated without placement",)
    elif result.placed:
        notes = (f"{result.directory}: {name} is compared as placed on {result.placed.topology}",)
    return Found(
        result=result,
        scenario=name,
        run=run,
        n_plans=sum(shard.n_plans for shard in shards),
        n_fit=sum(shard.n_fit for shard in shards),
        placed_on=result.placed.topology if row.placed is not None and result.placed else None,
        notes=notes,
    )


def _nearest_misses(result: Result) -> dict[str, str | None]:
    """Of each scenario of a finished study."""
    if not result.is_complete:
        return {}
    found = {}
    for scenario in result.summary().get("scenarios", ()):
        said = miss_sentence(scenario)
        found[scenario["name"]] = said and said.replace(f"nearest in {scenario['name']}: ", "")
    return found


def _nothing_fits(result: Result, name: str, nearest: str | None) -> Empty:
    origin = result.origin(name)
    facts = NothingFits(
        result=str(result.directory),
        scenario=name,
        model=origin.model.name,
        machine=origin.hardware.name,
        devices=origin.devices,
        precision=origin.recipe.precision,
        n_plans=sum(shard.n_plans for shard in result.shards(name)),
        nearest=nearest,
    )
    return Empty(facts, origin.hardware)


def machine_labels(runs: Sequence[Run], studies: Sequence[str]) -> list[str]:
    """Names of machines; with the study's, where two studies mean different machines by one name."""
    meant: dict[str, list[object]] = {}
    for run in runs:
        specs = meant.setdefault(run.hardware.name, [])
        if run.hardware not in specs:
            specs.append(run.hardware)
    return [
        run.hardware.name if len(meant[run.hardware.name]) == 1 else f"{run.hardware.name} ({study})"
        for run, study in zip(runs, studies, strict=True)
    ]


# ---- one candidate ------------------------------------------------------------------------------------------------


def contender_of(found: Found, label: str, inputs: MachineInputs, asked: Asked) -> Contender:
    """A scenario's best plan with all that is compared."""
    run, recipe = found.run, found.run.recipe
    estimate = run.estimate()
    told = Prediction.of(estimate)
    step = Range(told.step_time_s, told.step_time_low_s, told.step_time_high_s)
    tokens_per_s = _inverse(step, recipe.tokens_per_step)
    lost = _goodput(run.devices, asked.failures)
    share = lost.goodput_fraction if lost else 1.0
    tokens = asked.tokens or recipe.token_budget
    days = _inverse(tokens_per_s, tokens / SECONDS_PER_DAY / share if share else np.inf) if tokens else None
    watts = inputs.watts_per_device * asked.pue if inputs.watts_per_device else None
    usd_per_s = inputs.usd_per_device_hour / SECONDS_PER_HOUR if inputs.usd_per_device_hour else None
    per_device = _times(tokens_per_s, 1.0 / run.devices)
    cost = _times(days, SECONDS_PER_DAY * run.devices * usd_per_s) if days and usd_per_s else None
    facts = Candidate(
        result=str(found.result.directory),
        scenario=found.scenario,
        model=run.model.name,
        machine=label,
        hardware=run.hardware.name,
        devices=run.devices,
        precision=recipe.precision,
        framework=recipe.framework.name,
        seq_len=recipe.seq_len,
        global_batch=recipe.global_batch,
        n_plans=found.n_plans,
        n_fit=found.n_fit,
        plan={knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS},
        placed_on=found.placed_on,
        step_time_s=step,
        time_s={name.removesuffix("_s"): float(value) for name, value in estimate.step.terms().items()},
        mfu=told.mfu,
        hfu=float(estimate.hfu),
        mfu_convention=recipe.mfu_convention,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_device=per_device,
        memory_bytes=told.memory_bytes,
        headroom_bytes=run.hardware.device.hbm_bytes - told.memory_bytes,
        goodput=lost,
        tokens=tokens,
        days=days,
        cost_usd=cost,
        energy_j=_times(days, SECONDS_PER_DAY * run.devices * watts) if days and watts else None,
        tokens_per_usd=_times(per_device, share / usd_per_s) if usd_per_s else None,
        tokens_per_j=_times(per_device, share / watts) if watts else None,
        within_budget=verdict(cost, asked.budget_usd),
        within_deadline=verdict(days, asked.deadline_days),
    )
    return Contender(facts, run, inputs)


def _times(of: Range, factor: float) -> Range:
    return Range(of.value * factor, of.low * factor, of.high * factor)


def _inverse(of: Range, numerator: float) -> Range:
    """``numerator`` over a range: its ends change places."""
    return Range(numerator / of.value, numerator / of.high, numerator / of.low)


def _goodput(devices: int, failures: Failures | None) -> Goodput | None:
    if failures is None:
        return None
    between_s = goodput.job_failure_interval_s(
        device_failure_interval_s=failures.device_failure_interval_s, n_devices=float(devices)
    )
    write_s = failures.checkpoint_write_s
    interval_s = goodput.checkpoint_interval_s(checkpoint_write_s=write_s, failure_interval_s=between_s)
    first_s = goodput.first_order_checkpoint_interval_s(checkpoint_write_s=write_s, failure_interval_s=between_s)
    factor = goodput.failure_time_factor(
        interval_s=interval_s,
        checkpoint_write_s=write_s,
        restart_s=failures.restart_s,
        failure_interval_s=between_s,
    )
    least_s = goodput.least_failure_interval_s(checkpoint_write_s=write_s, restart_s=failures.restart_s)
    progress = float(between_s) > float(least_s)
    share = 1.0 / float(factor) if progress else 0.0
    return Goodput(float(between_s), float(interval_s), float(first_s), share, progress)
