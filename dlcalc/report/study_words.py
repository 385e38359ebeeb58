"""Numbers of a study's report as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcalc.utils import units

NOTHING = "-"


def label(name: str) -> str:
    """A term as people say it."""
    return name.replace("_", " ")


def signed(value: float, text: Callable[[float], str]) -> str:
    """A difference with its sign."""
    if not value:
        return NOTHING
    return ("+" if value > 0 else "-") + text(abs(value))


def times_of(values_s: Sequence[float | None]) -> tuple[str, list[str]]:
    """Header and cells of a column of step times, all in one unit."""
    scale, unit = (1.0, "s") if max((value or 0.0 for value in values_s), default=1.0) >= 1 else (1e-3, "ms")
    return f"step {unit}", [NOTHING if value is None else units.significant(value / scale, 4) for value in values_s]


def faster(before_s: float, after_s: float) -> float:
    """By what share of itself a rate grows when its time shrinks."""
    return before_s / after_s - 1.0


def or_dash(value: float | None, text: Callable[[float], str]) -> str:
    """What is known of a value."""
    return NOTHING if value is None else text(value)
