"""The use case behind ``dlcalc-compare``: the best plans of searched studies side by side. Never click, never colours.

Every scenario is represented by its fastest plan, which at a given number of devices is also the cheapest one and the
one that takes least energy. It is estimated again from the specs that its result carries.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from dlcalc.errors import DlcalcError, InfeasibleSpaceError
from dlcalc.report.compare_facts import (
    OBJECTIVES,
    Axis,
    Candidate,
    Change,
    CompareFacts,
    Curve,
    Group,
    MachineInputs,
    NothingFits,
    Objective,
    Section,
    Winner,
)
from dlcalc.report.compare_rows import arrow_table, csv_text
from dlcalc.results.storage import Location
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.workflows.compare_candidates import best_of, contender_of, machine_labels, open_results
from dlcalc.workflows.compare_choices import choices
from dlcalc.workflows.compare_difference import Contender, difference
from dlcalc.workflows.compare_inputs import DEVICE_ALONE, Asked, machine_inputs


def run_compare(results: Sequence[Location | str], asked: Asked) -> CompareFacts:
    """Everything there is to say of the best plans of ``results``."""
    opened = open_results(results)
    found, empty, notes = best_of(opened)
    missing = [one.facts for one in empty]
    if not found:
        nearest = [f"{one.scenario}: {one.nearest}" if one.nearest else one.scenario for one in missing]
        raise InfeasibleSpaceError("\n".join(["no plan of any scenario fits", *nearest[:4]]))
    labels = machine_labels([one.run for one in found], [str(one.result.manifest.study) for one in found])
    machines = {label: one.run.hardware for label, one in zip(labels, found, strict=True)}
    idle = {one.hardware.name: one.hardware for one in empty}  # their prices may be given all the same
    inputs = machine_inputs({**idle, **machines}, asked)
    coverage = load_uncertainty().coverage
    contenders = [contender_of(one, label, inputs[label], asked) for one, label in zip(found, labels, strict=True)]
    objective = _objective(contenders, asked)
    _check_limits(contenders, asked)
    models = list(dict.fromkeys(one.facts.model for one in contenders))
    sections = [
        _section(
            model,
            [one for one in contenders if one.facts.model == model],
            [one for one in missing if one.model == model],
            objective,
            asked,
        )
        for model in models
    ]
    without = dict.fromkeys(one.model for one in missing if one.model not in models)
    notes += [f"{model}: no plan of any scenario fits" for model in without]
    notes += _unknown(contenders, machines, inputs) + _several([one.facts for one in contenders])
    return CompareFacts(
        results=tuple(str(path) for path in results),
        by=asked.by,
        objective=objective,
        coverage=coverage,
        pue=asked.pue,
        budget_usd=asked.budget_usd,
        deadline_days=asked.deadline_days,
        failures=asked.failures,
        inputs=tuple(inputs[label] for label in machines),
        sections=tuple(sections),
        notes=tuple(notes),
    )


def _unknown(
    contenders: Sequence[Contender], machines: Mapping[str, object], inputs: Mapping[str, MachineInputs]
) -> list[str]:
    """Why columns are empty."""
    found = [inputs[label] for label in machines]
    notes = [
        f"the price of {one.machine} is not known, nor what it costs: --price {one.machine}=USD_PER_DEVICE_HOUR"
        for one in found
        if one.usd_per_device_hour is None
    ]
    notes += [
        f"the power of {one.machine} is not known, nor its energy: --power {one.machine}=WATTS_PER_DEVICE"
        for one in found
        if one.watts_per_device is None
    ]
    alone = [one.machine for one in found if one.watts_per_device and one.power_source.startswith(DEVICE_ALONE)]
    if alone:
        notes.append(
            f"the power of {', '.join(alone)} is that of devices without their hosts: "
            f"--power {alone[0]}=WATTS_PER_DEVICE"
        )
    if any(one.facts.tokens is None for one in contenders):
        notes.append("a recipe without a token budget has no days, cost and energy: --tokens, such as --tokens 15T")
    return notes


def _several(candidates: Sequence[Candidate]) -> list[str]:
    """Scenarios that differ in nothing that the tables show, of which the best stands for all."""
    alike = Counter((one.model, one.machine, one.devices, one.precision) for one in candidates)
    return [
        f"{count} scenarios are {model} on {devices:,} {machine} in {precision}; tables show the best of them"
        for (model, machine, devices, precision), count in alike.items()
        if count > 1
    ]


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
    smallest = min(one.facts.tokens_per_step for one in contenders)
    if asked.tokens is not None and asked.tokens < smallest:
        raise DlcalcError(
            f"--tokens: {asked.tokens:,g} are fewer than one step takes ({smallest:,.0f}); trillions are written as 15T"
        )
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
    """Best first; of equals, as jobs that never end are, the smaller cluster, then the faster one."""

    def key(one: Contender) -> tuple[float, int, float]:
        value = one.facts.value(objective.name)
        assert value is not None  # _objective saw to it
        rank = -value.value if objective.largest else value.value
        return rank, one.facts.devices, -one.facts.tokens_per_s.value

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
    """One per machine and precision, in the order of the ranking; of several scenarios on one count the best."""
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
    """At each device count the best, and the best of another machine or precision; none where no job gets anywhere."""
    winners = []
    for count in sorted({one.facts.devices for one in ordered}):
        there = [one for one in ordered if one.facts.devices == count]
        best = there[0]
        if best.facts.goodput and not best.facts.goodput.makes_progress:
            continue
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
    _write(file, csv_text(facts).encode())


def write_parquet(facts: CompareFacts, file: Path) -> None:
    """The table of all scenarios as Parquet."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(arrow_table(facts), content, compression="zstd")
    _write(file, content.getvalue())


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error
