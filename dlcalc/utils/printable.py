"""Text from files nobody vouches for, made safe to print: one line, no control characters, not endless."""

from __future__ import annotations


def printable(text: str, longest: int = 0) -> str:
    """``text`` with whatever does not print escaped, and shortened to ``longest`` characters if that is given."""
    if longest and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def without_surrogates(text: str) -> str:
    """``text`` with halves of UTF-16 pairs, which no encoder takes, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
