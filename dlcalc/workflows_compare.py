"""The use case behind ``dlcalc-compare``: the best plans of searched studies side by side. Never click, never colours.

Every scenario is represented by its fastest plan, which at a given number of devices is also the cheapest one and the
one that takes least energy. It is estimated again from the specs that its result carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from dlcalc import __version__
from dlcalc.calculators import goodput
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.errors import DlcalcError, InfeasibleSpaceError, ResultError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.compare_facts import (
    OBJECTIVES,
    Axis,
    Candidate,
    Change,
    CompareFacts,
    Curve,
    Failures,
    Goodput,
    Group,
    MachineInputs,
    NothingFits,
    Objective,
    Range,
    Section,
    Winner,
)
from dlcalc.report.compare_rows import arrow_table, csv_text
from dlcalc.report.summary import miss_sentence
from dlcalc.results.reader import Result, open_result
from dlcalc.search.run import Run
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.utils.units import SECONDS_PER_DAY, SECONDS_PER_HOUR
from dlcalc.workflows_choices import choices, verdict
from dlcalc.workflows_difference import Contender, difference
from dlcalc.workflows_inputs import Asked, machine_inputs
from dlcalc.workflows_run import row_of


@dataclass(frozen=True)
class _Found:
    """The best plan of a scenario as it was read."""

    result: Result
    scenario: str
    run: Run
    n_plans: int
    n_fit: int
    placed_on: str | None
    notes: tuple[str, ...]


def run_compare(results: Sequence[Path], asked: Asked) -> CompareFacts:
    """Everything there is to say of the best plans of ``results``."""
    opened = _open(results)
    found, empty, notes = _best_of(opened)
    if not found:
        nearest = [f"{one.scenario}: {one.nearest}" if one.nearest else one.scenario for one in empty]
        raise InfeasibleSpaceError("\n".join(["no plan of any scenario fits", *nearest[:4]]))
    labels = _labels([one.run for one in found], [str(one.result.manifest.study) for one in found])
    inputs = machine_inputs(labels, [one.run for one in found], asked)
    coverage = load_uncertainty().coverage
    contenders = [_contender(one, label, inputs[label], asked) for one, label in zip(found, labels, strict=True)]
    objective = _objective(contenders, asked)
    _check_limits(contenders, asked)
    models = list(dict.fromkeys(one.facts.model for one in contenders))
    empty_models = [one.model for one in empty]
    sections = [
        _section(
            model,
            [one for one in contenders if one.facts.model == model],
            [one for one in empty if one.model == model],
            objective,
            asked,
        )
        for model in models
    ]
    notes += [f"{model}: no plan of any scenario fits" for model in dict.fromkeys(empty_models) if model not in models]
    return CompareFacts(
        results=tuple(str(path) for path in results),
        by=asked.by,
        objective=objective,
        coverage=coverage,
        pue=asked.pue,
        budget_usd=asked.budget_usd,
        deadline_days=asked.deadline_days,
        failures=asked.failures,
        inputs=tuple(inputs[label] for label in dict.fromkeys(labels)),
        sections=tuple(sections),
        notes=tuple(notes),
    )


# ---- reading ------------------------------------------------------------------------------------------------------


def _open(paths: Sequence[Path]) -> list[Result]:
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise DlcalcError(f"{path}: given twice")
        seen[path.resolve()] = path
    return [open_result(path) for path in paths]


def _best_of(results: Sequence[Result]) -> tuple[list[_Found], list[NothingFits], list[str]]:
    """The best plan of each scenario, the scenarios without one, and what is to be known of the results."""
    found: list[_Found] = []
    empty: list[NothingFits] = []
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


def _read(result: Result, name: str) -> _Found:
    """The fastest row of a scenario, as placed where it was."""
    row = row_of(result, result.directory, 1, name, HardwareRegistry(), by="step_time_s")
    run = row.resolve({})
    shards = result.shards(name)
    return _Found(
        result=result,
        scenario=name,
        run=run,
        n_plans=sum(shard.n_plans for shard in shards),
        n_fit=sum(shard.n_fit for shard in shards),
        placed_on=result.placed.topology if row.placed is not None and result.placed else None,
        notes=(f"{name}: nothing of it was placed; estimated without placement",)
        if result.placed and row.placed is None
        else (),
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


def _nothing_fits(result: Result, name: str, nearest: str | None) -> NothingFits:
    origin = result.origin(name)
    return NothingFits(
        result=str(result.directory),
        scenario=name,
        model=origin.model.name,
        machine=origin.hardware.name,
        devices=origin.devices,
        precision=origin.recipe.precision,
        n_plans=sum(shard.n_plans for shard in result.shards(name)),
        nearest=nearest,
    )


def _labels(runs: Sequence[Run], studies: Sequence[str]) -> list[str]:
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


def _contender(found: _Found, label: str, inputs: MachineInputs, asked: Asked) -> Contender:
    run, recipe = found.run, found.run.recipe
    estimate = run.estimate()
    step_s = float(estimate.step_time_s)
    low, high = step_time_interval_factors(run.model, run.hardware, recipe, run.plan, load_uncertainty())
    step = Range(step_s, step_s * float(low), step_s * float(high))
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
        mfu=float(estimate.mfu),
        hfu=float(estimate.hfu),
        mfu_convention=recipe.mfu_convention,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_device=per_device,
        memory_bytes=float(estimate.memory_bytes),
        headroom_bytes=run.hardware.device.hbm_bytes - float(estimate.memory_bytes),
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
    return Goodput(float(between_s), float(interval_s), float(first_s), 1.0 / float(factor))


# ---- what is compared ---------------------------------------------------------------------------------------------


def _objective(contenders: Sequence[Contender], asked: Asked) -> Objective:
    """What was asked for, else tokens per dollar where every price is known; an error where it cannot be told."""
    unpriced = _machines_without(contenders, "usd_per_device_hour")
    name = asked.objective
    if name is None:
        if not unpriced:
            return OBJECTIVES["tokens_per_dollar"]
        why = f"the price of {unpriced[0]} is not known: --price {unpriced[0]}=USD_PER_DEVICE_HOUR"
        chosen = replace(OBJECTIVES["step_time"], why=why)
    else:
        chosen = OBJECTIVES[name]
    if chosen.name == "tokens_per_dollar" and unpriced:
        raise _no_price("--objective tokens_per_dollar", unpriced)
    if chosen.name == "energy" and (without := _machines_without(contenders, "watts_per_device")):
        raise DlcalcError(
            f"--objective energy: the power of {', '.join(without)} is not known; "
            f"give it: --power {without[0]}=WATTS_PER_DEVICE"
        )
    if chosen.name in ("days", "energy"):
        _check_tokens(contenders, f"--objective {chosen.name}")
    if chosen.name == "step_time":
        sizes = sorted({one.facts.tokens_per_step for one in contenders})
        if len(sizes) > 1:
            raise DlcalcError(
                f"--objective step_time: steps of {sizes[0]:,.0f} and of {sizes[-1]:,.0f} tokens do not compare; "
                f"compare --objective days or tokens_per_dollar"
            )
    return chosen


def _machines_without(contenders: Sequence[Contender], what: str) -> list[str]:
    return list(dict.fromkeys(one.facts.hardware for one in contenders if getattr(one.inputs, what) is None))


def _no_price(option: str, machines: Sequence[str]) -> DlcalcError:
    return DlcalcError(
        f"{option}: the price of {', '.join(machines)} is not known; give it: --price {machines[0]}=USD_PER_DEVICE_HOUR"
    )


def _check_tokens(contenders: Sequence[Contender], option: str) -> None:
    without = [one.facts.scenario for one in contenders if one.facts.tokens is None]
    if without:
        raise DlcalcError(f"{option}: {without[0]} has no token budget; give one, such as --tokens 15T")


def _check_limits(contenders: Sequence[Contender], asked: Asked) -> None:
    for option, given in (("--budget-usd", asked.budget_usd), ("--deadline-days", asked.deadline_days)):
        if given is not None:
            _check_tokens(contenders, option)
    if asked.budget_usd is not None and (unpriced := _machines_without(contenders, "usd_per_device_hour")):
        raise _no_price("--budget-usd", unpriced)


def _section(
    model: str, contenders: Sequence[Contender], empty: Sequence[NothingFits], objective: Objective, asked: Asked
) -> Section:
    ordered = _ranked(contenders, objective)
    winners = _winners(ordered, objective)
    return Section(
        model=model,
        groups=_groups(ordered, objective, asked.by),
        candidates=tuple(one.facts for one in ordered),
        nothing_fits=tuple(empty),
        curves=_curves(ordered, empty),
        winners=winners,
        changes=_changes(winners),
        choices=choices([one.facts for one in ordered], asked),
    )


def _ranked(contenders: Sequence[Contender], objective: Objective) -> list[Contender]:
    """Best first; of equals the smaller cluster, then the earlier one."""

    def key(one: Contender) -> tuple[float, int]:
        value = one.facts.value(objective.name)
        assert value is not None  # _objective saw to it
        return -value.value if objective.largest else value.value, one.facts.devices

    return sorted(contenders, key=key)


def _groups(ordered: Sequence[Contender], objective: Objective, by: Sequence[Axis]) -> tuple[Group, ...]:
    members: dict[tuple[str | int, ...], list[Contender]] = {}
    for one in ordered:
        members.setdefault(tuple(one.facts.axis(axis) for axis in by), []).append(one)
    first = next(iter(members.values()))[0]
    return tuple(
        Group(
            rank=position + 1,
            key=dict(zip(by, key, strict=True)),
            best=group[0].facts,
            n_scenarios=len(group),
            difference=difference(first, group[0], objective) if position else None,
        )
        for position, (key, group) in enumerate(members.items())
    )


def _curves(ordered: Sequence[Contender], empty: Sequence[NothingFits]) -> tuple[Curve, ...]:
    """One per machine and precision, best point first in the order of the ranking; of equal counts the best."""
    keys = list(dict.fromkeys((one.facts.machine, one.facts.precision) for one in ordered))
    curves = []
    for machine, precision in keys:
        by_count: dict[int, Candidate] = {}
        for one in ordered:
            if (one.facts.machine, one.facts.precision) == (machine, precision):
                by_count.setdefault(one.facts.devices, one.facts)
        points = [by_count[count] for count in sorted(by_count)]
        first = points[0].tokens_per_s_per_device.value
        missing = {one.devices for one in empty if (one.machine, one.precision) == (points[0].hardware, precision)}
        curves.append(
            Curve(
                machine=machine,
                precision=precision,
                points=tuple(points),
                scaling=tuple(point.tokens_per_s_per_device.value / first for point in points),
                does_not_fit=tuple(sorted(missing - by_count.keys())),
            )
        )
    return tuple(curves)


def _winners(ordered: Sequence[Contender], objective: Objective) -> tuple[Winner, ...]:
    """At each device count the best, and the best of another machine or precision."""
    winners = []
    for count in sorted({one.facts.devices for one in ordered}):
        there = [one for one in ordered if one.facts.devices == count]
        best = there[0]
        others = [one for one in there if _kind(one.facts) != _kind(best.facts)]
        winners.append(
            Winner(
                devices=count,
                best=best.facts,
                runner_up=others[0].facts if others else None,
                difference=difference(best, others[0], objective) if others else None,
            )
        )
    return tuple(winners)


def _kind(candidate: Candidate) -> str:
    return f"{candidate.machine}, {candidate.precision}"


def _changes(winners: Sequence[Winner]) -> tuple[Change, ...]:
    return tuple(
        Change(before.devices, after.devices, _kind(before.best), _kind(after.best))
        for before, after in pairwise(winners)
        if _kind(before.best) != _kind(after.best)
    )


def named_axes(by: Sequence[str]) -> tuple[Axis, ...]:
    """What to group by; hardware unless told."""
    known: Mapping[str, Axis] = {axis: axis for axis in ("hardware", "model", "devices", "precision")}
    return tuple(known[axis] for axis in dict.fromkeys(by)) or ("hardware",)


# ---- files --------------------------------------------------------------------------------------------------------


def write_csv(facts: CompareFacts, file: Path) -> None:
    """The table of all scenarios as CSV."""
    try:
        file.write_text(csv_text(facts), encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def write_parquet(facts: CompareFacts, file: Path) -> None:
    """The table of all scenarios as Parquet."""
    import pyarrow.parquet as pq

    try:
        pq.write_table(arrow_table(facts), file, compression="zstd")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error
