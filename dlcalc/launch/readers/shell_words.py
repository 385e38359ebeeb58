"""Words of a shell command or script, with the line of each.

Nothing is executed; for variables, only what plain assignments of the same file say is put in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dlcalc.errors import Problem, SpecError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"(?:export\s+|readonly\s+|local\s+)?({_NAME})\+?=")
_VARIABLE = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})(?:\[[@*]\])?(?::?-([^{{}}$`]*))?\}}|([@*#?$!0-9]))")
_SEPARATORS = frozenset("();&|<>")
_UNQUOTED = re.compile(r"\(\[[\d\[\](),+*]+(?=\s|$)|E[tm()*\d,|]+L(?=\s|$)")
"""Lists and layouts of layers, which a file of arguments has as they are, though a shell needs quotes."""
MAX_VALUE = 100_000
"""Letters of a word with its variables put in."""


class Word(NamedTuple):
    """One word: its text, its line, and the variables in it that nobody sets."""

    text: str
    line: int
    unset: tuple[str, ...] = ()
    executed: bool = False
    """It holds a command substitution, whose output is not known."""
    defaulted: bool = False
    """A variable in it has the default that the word gives it; the environment may say otherwise."""


@dataclass
class _Raw:
    """A word as it is being read, in pieces that variables are put into or not."""

    line: int
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    quoted: bool = False

    def add(self, text: str, *, expands: bool) -> None:
        if self.pieces and self.pieces[-1][1] == expands:
            self.pieces[-1] = self.pieces[-1][0] + text, expands
        else:
            self.pieces.append((text, expands))

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.pieces)


def shell_words(text: str, file: Path) -> list[Word]:
    """All words in order, variables put in where the file itself sets them to plain text."""
    values: dict[str, str | None] = {}
    found: list[Word] = []
    for raw in _raw_words(text, file):
        assignment = _ASSIGNMENT.match(raw.plain)
        if assignment and not raw.plain.startswith("-"):
            name, rest = assignment.group(1), raw.plain[assignment.end() :]
            word = _expanded(raw, values)
            value = None if word.unset or word.executed else word.text.partition("=")[2]
            values[name] = value if name not in values or values[name] == value else None
            if not rest:
                values[name] = None  # an array, whose words follow, or nothing
            continue
        word = _expanded(raw, values)
        if word.text or raw.quoted or word.unset or word.executed:
            found.append(word)
    return found


def _expanded(raw: _Raw, values: Mapping[str, str | None]) -> Word:
    unset: list[str] = []
    executed = defaulted = False
    parts = []
    for piece, expands in raw.pieces:
        if not expands:
            parts.append(piece)
            continue
        executed = executed or "`" in piece or "$(" in piece

        def put_in(match: re.Match[str]) -> str:
            name = match.group(1) or match.group(2) or match.group(4)
            value = values.get(name)
            nonlocal defaulted
            if value is None and match.group(3) is not None:
                value, defaulted = match.group(3), True
            if value is None:
                unset.append(name)
                return ""
            return value

        parts.append(_VARIABLE.sub(put_in, piece))
    return Word("".join(parts)[:MAX_VALUE], raw.line, tuple(unset), executed, defaulted)


def _raw_words(text: str, file: Path) -> Iterator[_Raw]:
    """Split at blanks and at the shell's separators, outside quotes; comments and joined lines are dropped."""
    line, at, word = 1, 0, None
    while at < len(text):
        letter = text[at]
        if word is None and (unquoted := _UNQUOTED.match(text, at)):
            word = _Raw(line)
            word.add(unquoted.group(), expands=False)
            at = unquoted.end()
        elif letter in "\n \t\r" or (letter in _SEPARATORS and not _opens_substitution(text, at)):
            if word:
                yield word
            word = None
            line += letter == "\n"
            at += 1
        elif letter == "#" and word is None:
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif letter == "\\":
            following = text[at + 1 : at + 2]
            at += 3 if text[at + 1 : at + 3] == "\r\n" else 2
            if following in ("\n", "\r"):
                line += 1
            else:
                word = word or _Raw(line)
                word.add(following, expands=False)
        else:
            word = word or _Raw(line)
            at, n_lines = _take(text, at, word, file)
            line += n_lines
    if word:
        yield word


def _opens_substitution(text: str, at: int) -> bool:
    return text[at] == "(" and at > 0 and text[at - 1] == "$"


def _take(text: str, at: int, word: _Raw, file: Path) -> tuple[int, int]:
    """Add the quoted text, the expansion or the letter at ``at`` to the word; where to go on, and lines passed."""
    letter = text[at]
    if letter in "'\"":
        end = _closing_quote(text, at)
        if end < 0:
            raise SpecError(file, (Problem(word.line, "syntax", f"the quote {letter} is not closed"),))
        inside = text[at + 1 : end]
        word.quoted = True
        if letter == '"':
            inside = re.sub(r'\\(["\\$`\n])', lambda m: "" if m.group(1) == "\n" else m.group(1), inside)
        word.add(inside, expands=letter == '"')
        return end + 1, text.count("\n", at, end)
    opened = {"${": "}", "$(": ")"}.get(text[at : at + 2])
    end = text.find(opened, at) if opened else -1
    if end > 0:
        word.add(text[at : end + 1], expands=True)
        return end + 1, text.count("\n", at, end)
    word.add(letter, expands=True)
    return at + 1, 0


def _closing_quote(text: str, at: int) -> int:
    quote = text[at]
    end = at + 1
    while end < len(text) and text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    return end if end < len(text) else -1
