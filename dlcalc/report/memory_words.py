"""Memory in words, with one meaning for each of them everywhere.

Usable is what a device has for programs; free is usable less what a plan needs; the limit is usable less what a study
keeps free, and a plan beyond it is refused.
"""

from __future__ import annotations

from dlcalc.utils import units


def need_of_usable(memory_bytes: float, usable_bytes: float, decimals: int = 1) -> str:
    """``64.9 of 79.1 GiB``."""
    return f"{units.gib(memory_bytes, decimals)} of {units.gib(usable_bytes, decimals)} GiB"


def need_and_limit(memory_bytes: float, limit_bytes: float) -> str:
    """Of a plan that is refused: ``83.1 GiB, limit 75.1 GiB``."""
    return f"{units.gib(memory_bytes)} GiB, limit {units.gib(limit_bytes)} GiB"


def limit_words(usable_bytes: float, limit_bytes: float) -> str:
    """Where the limit is and why there: ``limit 75.1 GiB, as 5.0 % of the memory is kept free``."""
    kept = 1.0 - limit_bytes / usable_bytes
    why = f"as {units.percent(kept)} of the memory is kept free" if kept > 0 else "which is all that is usable"
    return f"limit {units.gib(limit_bytes)} GiB, {why}"
