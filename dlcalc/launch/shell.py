"""Text of others in bash scripts: it stays text, whatever is in it. Pure.

Printable text is quoted as people would; anything else (a newline, a no-break space, half of an escape sequence) is
written byte by byte, in the words of C, so that an option stays on its line and an editor shows what is there.
"""

from __future__ import annotations

import re
import shlex
import textwrap
import unicodedata

from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Beside, Job, Variable, Word
from dlcalc.utils.printable import printable

WIDTH = 118
LONGEST_NAME = 200
_PLAIN = re.compile(r"[A-Za-z0-9_./:,=+@%-]*")
_ODD = frozenset("'\\\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2010\u2011\u2012\u2013\u2014\u2015")
"""What cannot stand between single quotes, or looks like quotes and dashes of the shell."""
_LINE_BREAKING = ("Cc", "Cs", "Zl", "Zp")


def literal(text: str) -> str:
    """``text`` as one word of a script."""
    content = _encoded(text)
    if text.isprintable() and not _ODD & set(text):
        return shlex.quote(text)
    return f"$'{''.join(map(_byte, content))}'"


def _byte(byte: int) -> str:
    if 32 <= byte < 127:
        return f"\\{chr(byte)}" if byte in b"\\'" else chr(byte)
    return f"\\x{byte:02x}"


def word(one: Word) -> str:
    """A word of a command as the script writes it; variables have been given their values above."""
    match one:
        case Variable():
            return f'"${{{one.name}}}"{literal(one.suffix) if one.suffix else ""}'
        case Beside():
            return f'"$HERE"/{literal(one.file)}'
        case _:
            return literal(one)


def default(name: str, value: str) -> list[str]:
    """Lines that give ``name`` a value unless the caller did."""
    if _PLAIN.fullmatch(value):
        return [f'{name}="${{{name}:-{value}}}"']
    return [f'{name}="${{{name}:-}}"', f'[[ -n "${name}" ]] || {name}={literal(value)}']


def comment(text: str) -> list[str]:
    """``text`` as comment lines, whatever is in it."""
    lines = textwrap.wrap(" ".join(printable(part) for part in text.split()), WIDTH - 2) or [""]
    return [f"# {line}".rstrip() for line in lines]


def script(lines: list[str]) -> str:
    """The lines as a file."""
    return "".join(f"{line}\n" for line in lines)


def checked_name(job: Job) -> str:
    """The job's name, unless no queue could show it."""
    name = job.name
    if not name.strip():
        raise DlcalcError("--name: a job needs a name")
    odd = next((letter for letter in name if unicodedata.category(letter) in _LINE_BREAKING), None)
    if odd is not None:
        raise DlcalcError(f"--name {printable(name, 60)!r}: a job's name is one line, without {odd!r}")
    if len(name) > LONGEST_NAME:
        raise DlcalcError(f"--name {name[:40]!r}...: {len(name)} characters; a job's name has at most {LONGEST_NAME}")
    return name


def _encoded(text: str) -> bytes:
    if "\0" in text:
        raise DlcalcError(f"{printable(text, 60)!r}: no argument of a program can hold a zero byte")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DlcalcError(f"{printable(text, 60)!r} is not text (UTF-8)") from None
