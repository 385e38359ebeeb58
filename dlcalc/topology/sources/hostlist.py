"""Slurm's short form of many names: ``n[0-3,12,018]``, ``rack[0-1]n[00-15],login``.

A range keeps the width of its first number: ``[08-11]`` is 08, 09, 10, 11.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

MAX_NAMES = 1_000_000

_PART = re.compile(r"\[([^][]*)\]|([^][]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand(text: str) -> list[str]:
    """Every name of a hostlist, in its order; raises ``ValueError`` with the reason where it is none."""
    names: list[str] = []
    for word in _words(text):
        names += _names(word)
        if len(names) > MAX_NAMES:
            raise ValueError(f"stands for more than {MAX_NAMES:,} names")
    return names


def _words(text: str) -> Iterator[str]:
    """Split at commas outside brackets."""
    depth, begin = 0, 0
    for index, letter in enumerate(text):
        if letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
        if depth not in {0, 1}:
            raise ValueError(f"{_cut(text)} has a bracket too many")
        if letter == "," and depth == 0:
            yield from filter(None, [text[begin:index].strip()])
            begin = index + 1
    if depth:
        raise ValueError(f"{_cut(text)} lacks a closing bracket")
    yield from filter(None, [text[begin:].strip()])


def _names(word: str) -> list[str]:
    parts: list[list[str]] = []
    n_names = 1
    for match in _PART.finditer(word):
        ranges, plain = match.groups()
        parts.append([plain] if ranges is None else _numbers(ranges, word))
        n_names *= len(parts[-1])
        if n_names > MAX_NAMES:
            raise ValueError(f"{_cut(word)} stands for more than {MAX_NAMES:,} names")
    return ["".join(found) for found in itertools.product(*parts)]


def _numbers(ranges: str, word: str) -> list[str]:
    found: list[str] = []
    for piece in ranges.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if match is None or len(piece) > 40:
            raise ValueError(f"{_cut(piece.strip())!r} in {_cut(word)} is no number and no range of numbers")
        first, last = match.group(1), match.group(2) or match.group(1)
        low, high = int(first), int(last)
        if high < low:
            raise ValueError(f"the range {piece.strip()} in {_cut(word)} runs backwards")
        if high - low >= MAX_NAMES or len(found) > MAX_NAMES:
            raise ValueError(f"{_cut(word)} stands for more than {MAX_NAMES:,} names")
        found += [str(number).zfill(len(first)) for number in range(low, high + 1)]
    return found


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."
