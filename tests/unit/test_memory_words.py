"""Usable, free and limit: one meaning each."""

from __future__ import annotations

from dlcalc.report.memory_words import limit_words, need_and_limit, need_of_usable
from dlcalc.utils.units import GIB


def test_words():
    assert need_of_usable(64.9 * GIB, 79.1 * GIB) == "64.9 of 79.1 GiB"
    assert need_and_limit(83.1 * GIB, 75.1 * GIB) == "83.1 GiB, limit 75.1 GiB"
    assert limit_words(80 * GIB, 76 * GIB) == "limit 76.0 GiB, as 5.0 % of the memory is kept free"
    assert limit_words(80 * GIB, 80 * GIB) == "limit 80.0 GiB, which is all that is usable"
