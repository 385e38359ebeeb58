"""Why one plan is better than another: a chain of what-ifs from the one to the other, split term by term.

From the other run to the winner one thing changes after the other: the machine under the same plan, then the recipe,
then the plan (with the number of devices, and the nodes it is placed on). Each step of the chain is an estimate of its
own, so the factors of the steps multiply to the whole ratio; within a step each term of the time has a share of the
factor (``calculators.ratios``), and these multiply to it. What is compared is device-seconds per token, in which runs
of different sizes and batches compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from math import isfinite

import numpy as np

from dlcalc.calculators.ratios import term_factor
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.report.compare_facts import Candidate, Difference, Factor, MachineInputs, Objective, TermFactor, is_better
from dlcalc.report.memory_words import need_and_limit
from dlcalc.report.plan_words import plan_words
from dlcalc.search.run import Run
from dlcalc.utils import units

MACHINE, RECIPE, PLAN = "machine", "recipe", "plan"
RECIPE_WORDS = ("precision", "framework", "seq_len", "global_batch")
ROUNDING = 1e-12
"""A term whose factor is nearer to 1 has not changed."""
KNOBS_SAID = 5


@dataclass(frozen=True)
class Contender:
    """A candidate with all that is needed to estimate it again, elsewhere."""

    facts: Candidate
    run: Run
    inputs: MachineInputs


def difference(winner: Contender, other: Contender, objective: Objective) -> Difference | None:
    """Why ``winner`` is better by ``objective``; None where their ratio is no number."""
    best, rest = winner.facts.value(objective.name), other.facts.value(objective.name)
    assert best is not None  # of what is not known nothing wins
    assert rest is not None
    if not (isfinite(best.value) and isfinite(rest.value) and min(best.value, rest.value) > 0):
        return None  # a job that never ends
    ratio = best.value / rest.value if objective.largest else rest.value / best.value
    steps, as_if = _chain(winner, other)
    near, far = (best.low, rest.high) if objective.largest else (best.high, rest.low)
    return Difference(
        winner=winner.facts.name,
        other=other.facts.name,
        ratio=ratio,
        told_apart=is_better(objective, near, far),
        factors=(*steps, *_outside(winner, other, objective)),
        as_if=as_if,
    )


# ---- what is no part of the step ----------------------------------------------------------------------------------


def _outside(winner: Contender, other: Contender, objective: Objective) -> list[Factor]:
    """Devices, price, power, token budget and failures, as far as ``objective`` reads them."""
    best, rest = winner.facts, other.facts
    factors = []
    if objective.name in ("step_time", "days") and best.devices != rest.devices:
        change = f"{rest.devices:,} -> {best.devices:,} devices"
        factors.append(Factor("devices", change, best.devices / rest.devices))
    if objective.name == "tokens_per_dollar":
        factors += _rate("price", "/device-hour", other.inputs.usd_per_device_hour, winner.inputs.usd_per_device_hour)
    if objective.name == "energy":
        factors += _rate("power", " W per device", other.inputs.watts_per_device, winner.inputs.watts_per_device)
    if objective.name in ("days", "energy") and best.tokens and rest.tokens and best.tokens != rest.tokens:
        change = f"{units.short_count(rest.tokens)} -> {units.short_count(best.tokens)} tokens"
        factors.append(Factor("tokens", change, rest.tokens / best.tokens))
    if objective.name != "step_time" and best.goodput and rest.goodput:
        before, after = rest.goodput.goodput_fraction, best.goodput.goodput_fraction
        if before != after:
            change = f"goodput {units.percent(before)} -> {units.percent(after)}"
            factors.append(Factor("goodput", change, after / before))
    return factors


def _rate(what: str, unit: str, before: float | None, after: float | None) -> list[Factor]:
    """Less of it is better."""
    assert before is not None  # else the objective would have no value
    assert after is not None
    if before == after:
        return []
    sign = "$" if what == "price" else ""
    change = f"{sign}{units.significant(before)} -> {sign}{units.significant(after)}{unit}"
    return [Factor(what, change, before / after)]  # type: ignore[arg-type] # price or power


# ---- the step -----------------------------------------------------------------------------------------------------


def _chain(winner: Contender, other: Contender) -> tuple[list[Factor], str | None]:
    """Factors of the changes between two runs, in the first order of which every step can run."""
    changes = _changes(winner.run, other.run)
    first: tuple[list[tuple[str, Run]], str | None] | None = None
    for order in permutations(changes):
        states = _states(winner.run, other.run, order)
        problem = _problem(states)
        if problem is None:
            return _factors(states, winner, other), None
        if first is None and _has_time(states):
            first = states, problem
    if first is None:
        at_once = [("", other.run), (MACHINE, winner.run)]
        why = "neither machine has the other's precision: machine, recipe and plan at once"
        return _factors(at_once, winner, other), why
    return _factors(first[0], winner, other), first[1]


def _changes(winner: Run, other: Run) -> list[str]:
    """What differs, in the order in which it is rather changed."""
    machine = [] if winner.hardware == other.hardware else [MACHINE]
    recipe = [] if winner.recipe == other.recipe else [RECIPE]
    return [*machine, *recipe, PLAN]


def _states(winner: Run, other: Run, order: Sequence[str]) -> list[tuple[str, Run]]:
    """The runs on the way, with what was changed last; the first is ``other`` and the last ``winner``."""
    states, run = [("", other)], other
    for change in order[:-1]:
        match change:
            case "machine":
                run = replace(run, hardware=winner.hardware, placed=None)
            case "recipe":
                run = replace(run, recipe=winner.recipe)
            case _:
                run = replace(run, plan=winner.plan, custom_split=winner.custom_split, placed=None)
        states.append((change, run))
    return [*states, (order[-1], winner)]


def _has_time(states: Sequence[tuple[str, Run]]) -> bool:
    """Whether every run on the way has a step time, be it that of a plan which does not fit."""
    for _, run in states:
        if run.recipe.precision not in run.hardware.precisions:
            return False
        if not isfinite(_estimate(run)[1]):
            return False
    return True


def _problem(states: Sequence[tuple[str, Run]]) -> str | None:
    """Why a run on the way cannot run; None where all can."""
    for _, run in states[1:-1]:
        if run.recipe.precision not in run.hardware.precisions:
            return f"{run.hardware.name} has no {run.recipe.precision}"
        found, seconds = _estimate(run)
        reasons = [reason for reason, mask in found.refused.items() if bool(np.any(mask))]
        memory = float(found.memory_bytes)
        if memory > found.capacity_bytes:
            reasons.append(f"{OUT_OF_MEMORY} ({need_and_limit(memory, found.capacity_bytes)})")
        if reasons or not isfinite(seconds):
            plan = plan_words({knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS})
            return f"{plan} on {run.devices:,} {run.hardware.name} {'; '.join(reasons)}: its time as if it ran"
    return None


def _estimate(run: Run) -> tuple[Estimate, float]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a plan that is refused may divide by zero
        found = run.estimate()
        return found, float(found.step_time_s)


def _factors(states: Sequence[tuple[str, Run]], winner: Contender, other: Contender) -> list[Factor]:
    found = []
    terms = [_device_seconds(run) for _, run in states]
    for (before, after), (old, new) in zip(pairwise(states), pairwise(terms), strict=True):
        slow, fast = sum(old.values()), sum(new.values())
        if slow == fast and old == new:
            continue
        what = after[0]
        before_s, after_s = np.array([old[term] for term in old]), np.array([new[term] for term in old])
        shares = np.asarray(term_factor(slow_term_s=before_s, fast_term_s=after_s, slow_s=slow, fast_s=fast))
        split = [TermFactor(term, old[term], new[term], float(share)) for term, share in zip(old, shares, strict=True)]
        changed = [one for one in split if abs(one.factor - 1.0) > ROUNDING]
        split = sorted(changed, key=lambda one: -abs(np.log(one.factor)))
        change = _change_words(what, before[1], after[1], winner, other)
        found.append(Factor(what, change, slow / fast, tuple(split)))  # type: ignore[arg-type] # one of the changes
    return found


def _device_seconds(run: Run) -> Mapping[str, float]:
    """Terms of the step, in device-seconds per token."""
    found, _ = _estimate(run)
    per_token = run.devices / run.recipe.tokens_per_step
    return {name.removesuffix("_s"): float(value) * per_token for name, value in found.step.terms().items()}


def _change_words(what: str, before: Run, after: Run, winner: Contender, other: Contender) -> str:
    if what == MACHINE:
        return f"{other.facts.machine} -> {winner.facts.machine}"
    if what == RECIPE:
        pairs = [(name, _recipe_word(before, name), _recipe_word(after, name)) for name in RECIPE_WORDS]
        said = [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]
        return ", ".join(said) or "profile of the framework"
    knobs = [
        (knob, *(value_of(knob, float(getattr(run.plan, knob))) for run in (before, after)))
        for knob in KNOBS
        if float(getattr(before.plan, knob)) != float(getattr(after.plan, knob))
    ]
    said = [f"{knob} {_knob_word(old)} -> {_knob_word(new)}" for knob, old, new in knobs]
    left_out = len(said) - KNOBS_SAID
    if left_out > 1:
        said = [*said[:KNOBS_SAID], f"{left_out} more"]
    if before.devices != after.devices:
        said = [f"{before.devices:,} -> {after.devices:,} devices", *said]
    return ", ".join(said) or ("nodes" if after.placed or before.placed else "memory that is left free")


def _recipe_word(run: Run, name: str) -> str:
    return run.recipe.framework.name if name == "framework" else str(getattr(run.recipe, name))


def _knob_word(value: int | bool | str) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
