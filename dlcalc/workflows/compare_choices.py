"""Questions with a limit: what a budget buys, and what a deadline costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from dlcalc.errors import InfeasibleSpaceError
from dlcalc.report.compare_facts import Candidate, Choice, CompareFacts, Range, Verdict
from dlcalc.report.compare_words import nearest_words
from dlcalc.utils import units
from dlcalc.workflows.compare_inputs import Asked

Question = Literal["fastest", "cheapest", "smallest"]


def verdict(value: Range | None, limit: float | None) -> Verdict | None:
    """Whether ``value`` keeps within ``limit``, and whether that is sure."""
    if limit is None or value is None:
        return None
    if value.value > limit:
        return "beyond"
    return "within" if value.high <= limit else "perhaps"


def choices(candidates: Sequence[Candidate], asked: Asked) -> tuple[Choice, ...]:
    """The fastest within the budget, and the cheapest in time (the smallest cluster where no price is known).

    With both limits, each holds for both.
    """
    if asked.budget_usd is None and asked.deadline_days is None:
        return ()
    limits = _limits_in_words(asked)
    within = [one for one in candidates if _over_factor(one, asked) <= 1.0]
    miss = None if within else min(candidates, key=lambda one: _over_factor(one, asked))
    priced = [one for one in within if one.cost_usd is not None]
    questions: list[tuple[Question, Sequence[Candidate], Callable[[Candidate], float]]] = []
    if asked.budget_usd is not None:
        questions.append(("fastest", within, _days))
    if asked.deadline_days is not None and (priced or not within):
        questions.append(("cheapest", priced, _cost))
    if asked.deadline_days is not None and within and not priced:
        questions.append(("smallest", within, lambda one: float(one.devices)))
    return tuple(
        Choice(
            question=question,
            limits=limits,
            best=min(among, key=value, default=None),
            nearest_miss=miss,
            over_factor=_over_factor(miss, asked) if miss else None,
            n_within=len(within),
            n_candidates=len(candidates),
        )
        for question, among, value in questions
    )


def _limits_in_words(asked: Asked) -> str:
    words = []
    if asked.budget_usd is not None:
        words.append(f"within {units.money(asked.budget_usd)}")
    if asked.deadline_days is not None:
        words.append(f"in {asked.deadline_days:,g} days")
    return " and ".join(words)


def _days(one: Candidate) -> float:
    return one.days.value if one.days else float("inf")


def _cost(one: Candidate) -> float:
    return one.cost_usd.value if one.cost_usd else float("inf")


def _over_factor(one: Candidate, asked: Asked) -> float:
    """How many times the tighter of the limits it takes; at most 1 is within."""
    over = [0.0]
    if asked.budget_usd is not None:
        over.append(_cost(one) / asked.budget_usd)
    if asked.deadline_days is not None:
        over.append(_days(one) / asked.deadline_days)
    return max(over)


def nothing_within(facts: CompareFacts) -> InfeasibleSpaceError | None:
    """The error of a comparison of which no model has a plan within the limits, or None."""
    asked = [choice for section in facts.sections for choice in section.choices]
    if not asked or any(choice.best for choice in asked):
        return None
    firsts = [(section.model, section.choices[0]) for section in facts.sections]
    lines = [f"{model}: nothing {nearest_words(choice)}" for model, choice in firsts]
    return InfeasibleSpaceError("\n".join(lines))
