"""Megatron's short forms of lists: which layers are of a kind, and which sit on which pipeline chunk.

Layers of a kind are a list of ones and zeros, written like ``([0]*3+[1]*58)``; chunks are written like
``Et*3|(tt|)*29mL``: E the embedding, t a layer, m a multi-token-prediction module, L the loss, | between chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

MAX_ENTRIES = 100_000
"""Of a list written out; more is a mistake or an attack."""


class PatternError(ValueError):
    """The text is no such list."""


def pattern_of(kinds: Sequence[bool]) -> str:
    """Ones and zeros, runs of the same joined: ``([0]*3+[1]*58)``."""
    period = next((p for p in range(2, len(kinds) // 2 + 1) if _repeats(kinds, p)), len(kinds))
    if len(set(kinds)) == 1:
        period = len(kinds)
    runs = "+".join(f"[{int(kind)}]*{len(list(run))}" for kind, run in groupby(kinds[:period]))
    return f"({runs})" if period == len(kinds) else f"({runs})*{len(kinds) // period}"


def _repeats(kinds: Sequence[bool], period: int) -> bool:
    return len(kinds) % period == 0 and all(kind == kinds[i % period] for i, kind in enumerate(kinds))


def kinds_of(text: str) -> tuple[bool, ...]:
    """The list that a pattern of ``[...]``, ``+``, ``*`` and parentheses stands for. Nothing is evaluated."""
    tokens = re.findall(r"\d+|[\[\](),+*]", text.replace(" ", ""))
    if "".join(tokens) != text.replace(" ", ""):
        raise PatternError(f"{text!r} is no list such as ([0]*3+[1]*58)")
    reader = _Reader(tokens, text)
    entries = reader.total()
    if reader.at < len(tokens):
        raise PatternError(f"{text!r} is no list such as ([0]*3+[1]*58)")
    if any(entry not in (0, 1) for entry in entries):
        raise PatternError(f"{text!r} has entries other than 0 and 1")
    return tuple(bool(entry) for entry in entries)


class _Reader:
    """Reads sums of products of lists and whole numbers."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self.text, self.at, self.depth = tokens, text, 0, 0

    def total(self) -> list[int]:
        entries = self.product()
        while self.next() == "+":
            self.at += 1
            more = self.product()
            self.check_size(len(entries) + len(more))
            entries = entries + more
        return entries

    def product(self) -> list[int]:
        factors: list[list[int] | int] = [self.factor()]
        while self.next() == "*":
            self.at += 1
            factors.append(self.factor())
        lists = [factor for factor in factors if isinstance(factor, list)]
        if len(lists) != 1:
            raise self.wrong()
        (entries,) = lists
        for factor in factors:
            if isinstance(factor, int):
                self.check_size(len(entries) * factor)
                entries = entries * factor
        return entries

    def factor(self) -> list[int] | int:
        token = self.take()
        if token.isdigit():
            return int(token[:9])
        if token == "[":
            return self.literal()
        if token != "(" or self.depth > 50:
            raise self.wrong()
        self.depth += 1
        inner = self.total()
        self.depth -= 1
        if self.take() != ")":
            raise self.wrong()
        return inner

    def literal(self) -> list[int]:
        entries = []
        while (token := self.take()) != "]":
            if token.isdigit():
                entries.append(int(token[:9]))
            elif token != ",":
                raise self.wrong()
        return entries

    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.next()
        if token is None:
            raise self.wrong()
        self.at += 1
        return token

    def check_size(self, n_entries: int) -> None:
        if n_entries > MAX_ENTRIES:
            raise PatternError(f"{self.text!r} has {n_entries:,} entries")

    def wrong(self) -> PatternError:
        return PatternError(f"{self.text!r} is no list such as ([0]*3+[1]*58)")


def layout_of(chunk_layers: Sequence[int], *, mtp_layers: int = 0) -> str:
    """The chunks in the order a token passes them; the embedding is on the first, the loss on the last."""
    last = len(chunk_layers) - 1
    return "|".join(
        ("E" if chunk == 0 else "") + _times("t", layers) + (_times("m", mtp_layers) + "L" if chunk == last else "")
        for chunk, layers in enumerate(chunk_layers)
    )


def _times(letter: str, count: int) -> str:
    return letter * count if count < 3 else f"{letter}*{count}"


def chunks_of(text: str) -> list[str]:
    """The letters of every chunk, short forms written out."""
    whole = text.replace(",", "").replace(" ", "")
    for short_form in (r"\(([^()]+)\)\*(\d+)", r"([EtmL|])\*(\d+)"):
        whole = re.sub(short_form, lambda match: _written_out(match, text), whole)
        if len(whole) > MAX_ENTRIES:
            raise PatternError(f"{text!r} has {len(whole):,} letters")
    odd = re.search(r"[^EtmL|]", whole)
    if odd:
        raise PatternError(f"{text!r} has {odd.group()!r}, where only E, t, m, L, | and (...)*N have a meaning")
    return whole.split("|")


def _written_out(match: re.Match[str], text: str) -> str:
    count = int(match.group(2)[:9])
    if count * len(match.group(1)) > MAX_ENTRIES:
        raise PatternError(f"{text!r} has {count * len(match.group(1)):,} letters")
    return match.group(1) * count
