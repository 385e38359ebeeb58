"""What starts a trainer, before its own options: torchrun with its hosts and processes, which say how many devices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dlcalc.launch.readers.shell_words import Word

COUNTS = {
    "--nnodes": "hosts",
    "--nproc-per-node": "processes",
    "--nproc_per_node": "processes",
}
"""Options of torchrun that say how many devices there are."""
OTHERS = re.compile(
    r"--(node[-_]rank|master[-_](addr|port)|rdzv[-_]\w+|rdzv-\w+|max[-_]restarts|monitor[-_]interval|tee|redirects"
    r"|log[-_]dir|standalone|role|start[-_]method|module|no[-_]python)$"
)
PROGRAMS = ("torchrun", "python", "python3", "exec", "srun")


class Given(NamedTuple):
    """An option as it was written, with the words behind it."""

    line: int
    flag: str
    words: list[Word]


def options_of(words: Sequence[Word], ends: tuple[str, ...] = ()) -> Iterator[Given]:
    """Flags with the words up to the next flag, a program or a word that begins with one of ``ends``.

    ``--flag=word`` is one of each. A script may keep options in an array before the program that takes them.
    """
    given: Given | None = None
    for word in words:
        if re.match(r"--[A-Za-z]", word.text):
            if given:
                yield given
            flag, equals, value = word.text.partition("=")
            given = Given(word.line, flag, [])
            if equals or (word.unset and "=" in word.text):
                given.words.append(word._replace(text=value))
        elif given and (word.text in PROGRAMS or word.text.endswith(".py") or word.text.startswith(ends or "\0")):
            yield given
            given = None
        elif given:
            given.words.append(word)
    if given:
        yield given


def count_said(flag: str, words: Sequence[Word]) -> dict[str, int]:
    """A number of hosts or processes, where the file itself says it: the environment may decide it too."""
    text = words[0].text if words and not words[0].unset and not words[0].defaulted else ""
    return {COUNTS[flag]: int(text)} if re.fullmatch(r"[1-9]\d{0,6}", text) else {}


def devices_of(counts: dict[str, int]) -> int | None:
    """All processes, where hosts and processes of each are known."""
    return counts["hosts"] * counts["processes"] if len(counts) == 2 else None
