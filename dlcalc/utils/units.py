"""Numbers as people read them: base units in, short text out. The only place that divides by a GiB."""

from __future__ import annotations

import math

KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40

SECONDS_PER_MINUTE, SECONDS_PER_HOUR, SECONDS_PER_DAY = 60.0, 3600.0, 86400.0

_BINARY = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))

_SIGNIFICANT = 3


def significant(value: float, digits: int = _SIGNIFICANT) -> str:
    """``value`` with ``digits`` significant digits or all those of its whole part: 1,235; 12.3; 0.0123."""
    if not math.isfinite(value):
        return str(value)
    decimals = _decimals(value, digits)
    return f"{value:,.{_decimals(round(value, decimals), digits)}f}"


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def gib(size_bytes: float, decimals: int = 1) -> str:
    """Bytes as a bare number of GiB, for a column that says GiB: 61.3."""
    return f"{size_bytes / GIB:,.{decimals}f}"


def size(size_bytes: float) -> str:
    """Bytes in the unit that suits them: 61.3 GiB, 512 KiB, 17 B."""
    for scale, unit in _BINARY:
        if abs(size_bytes) >= scale:
            return f"{significant(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def duration(time_s: float, digits: int = _SIGNIFICANT) -> str:
    """A time in the unit that suits it: 1.23 s, 45.0 ms, 12 min 5 s, 3 h 12 min, 4.2 days."""
    if not math.isfinite(time_s) or time_s < 0:
        return f"{time_s} s"
    if time_s >= 2 * SECONDS_PER_DAY:
        return f"{significant(time_s / SECONDS_PER_DAY, digits)} days"
    whole = round(time_s)
    if whole >= SECONDS_PER_HOUR:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 2 * SECONDS_PER_MINUTE:
        return f"{whole // 60} min {whole % 60} s"
    for scale, unit in _SMALL_TIMES:
        if time_s >= scale:
            return f"{significant(time_s / scale, digits)} {unit}"
    return "0 s"


def count(number: float) -> str:
    """A count in full: 1,843,200."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """A count to three digits: 1.84 M, 950, 12.3 k."""
    for scale, unit in _DECIMAL:
        if abs(number) >= scale * 0.9995:
            return f"{significant(number / scale)} {unit}"
    return f"{number:.0f}" if number == int(number) else significant(number)


def percent(fraction: float, decimals: int = 1) -> str:
    """A fraction as percent: 47.2 %."""
    return f"{100 * fraction:.{decimals}f} %"


def money(usd: float) -> str:
    """US dollars to three digits: $950, $412 k, $1.23 M."""
    return f"${short_count(round(usd))}"


def days(number: float) -> str:
    """A bare number of days, for a column that says days: 0.42, 4.20, 42.0, 420."""
    return significant(number)
