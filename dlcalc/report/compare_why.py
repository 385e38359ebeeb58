"""Why one candidate beats another, as text: a sentence, or a row per difference."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dlcalc.report.compare_facts import CompareFacts, Difference, Factor, Section
from dlcalc.report.tables import Column, table_of

SMALL_FACTOR = 0.02
"""Terms with less effect are not listed."""
TERMS_SAID = 3
WIDE_ENOUGH = 100
KINDS = ("machine", "recipe", "plan", "devices", "price", "power", "tokens", "goodput")
OVERLAP = " (their intervals overlap)"


def print_differences(facts: CompareFacts, section: Section, console: Console) -> None:
    """Why the first group wins over each of the others."""
    found = [group.difference for group in section.groups if group.difference is not None]
    if not found:
        return
    console.print()
    wide = console.width >= WIDE_ENOUGH
    first = f": {difference_words(found[0])}" if wide else ""
    console.print(Text(f"Why {section.groups[0].best.name} wins in {facts.objective.words}{first}"))
    console.print(Text("The factors of a row multiply to its ratio; terms of the step to the factor they explain."))
    print_why([Column("against", [one.other for one in found], "left")], found, console)


def print_why(lead: list[Column], differences: Sequence[Difference], console: Console) -> None:
    """A row per difference; in a narrow terminal a sentence, which leaves no reason out."""
    if console.width >= WIDE_ENOUGH:
        console.print(table_of([*lead, *_why_columns(differences)], console.width))
        return
    for position, difference in enumerate(differences):
        where = "" if lead[0].header == "against" else f"{lead[0].cells[position]} devices: {difference.winner} wins, "
        console.print(Text(f"  {where}{difference_words(difference)}"))


def difference_words(difference: Difference) -> str:
    """``2.05x against 256 h100, bf16: 1.44x machine (matmul 1.30x), 1.11x plan (tp 8 -> 2), 1.29x price (...)``."""
    factors = ", ".join(_factor_words(factor) for factor in difference.factors)
    words = f"{difference.ratio:.2f}x against {difference.other}{'' if difference.told_apart else OVERLAP}"
    words += f": {factors}" if factors else ""
    return words + (f"; {difference.as_if}" if difference.as_if else "")


def _factor_words(factor: Factor) -> str:
    return f"{factor.factor:.2f}x {factor.what} ({_reasons(factor)})"


def _reasons(factor: Factor) -> str:
    """What was changed, and the terms that it acts through."""
    return ": ".join(words for words in (factor.change, _terms(factor)) if words)


def _terms(factor: Factor) -> str:
    """The terms of the step that make most of a factor."""
    large = [one for one in factor.terms if abs(one.factor - 1.0) >= SMALL_FACTOR]
    return ", ".join(f"{one.term.replace('_', ' ')} {one.factor:.2f}x" for one in large[:TERMS_SAID])


def _why_columns(differences: Sequence[Difference]) -> list[Column]:
    """A column per kind of factor, and the reasons of those that are not 1."""
    kinds = [kind for kind in KINDS if any(factor.what == kind for one in differences for factor in one.factors)]
    columns = [Column("ratio", [f"{one.ratio:.2f}x{' ' if one.told_apart else '~'}" for one in differences])]
    for kind in kinds:
        factors = [[factor.factor for factor in one.factors if factor.what == kind] for one in differences]
        columns.append(Column(kind, [f"{values[0]:.2f}x" if values else "-" for values in factors], optional=1))
    reasons = [
        "; ".join(
            [
                *(_cell_reasons(factor) for factor in one.factors if _counts(factor)),
                *([one.as_if] if one.as_if else []),
            ]
        )
        for one in differences
    ]
    return [*columns, Column("why (~ intervals overlap)", reasons, "left", optional=2, flexible=True)]


def _cell_reasons(factor: Factor) -> str:
    """In a row that names both machines, the terms are what is left to say of theirs."""
    return f"machine: {_terms(factor)}" if factor.what == "machine" else f"{factor.what}: {_reasons(factor)}"


def _counts(factor: Factor) -> bool:
    """Whether it is worth words of its own; what is no part of the step is said by its column."""
    return bool(factor.terms) and abs(factor.factor - 1.0) >= SMALL_FACTOR / 2
