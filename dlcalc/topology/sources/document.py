"""What a source said, as plain data, and where each value of it stands.

A saved answer of a large cluster is hundreds of megabytes of JSON, far more than a file that people write. It is read
as JSON alone, and the line of a value is looked for only when there is something to say about it.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dlcalc.errors import DlcalcError, Problem, SpecError, TopologyError
from dlcalc.specs.load import MAX_FILE_BYTES, parse_yaml, spec_error
from dlcalc.specs.marked_yaml import Marks
from dlcalc.specs.wording import path_text, shown

MAX_JSON_BYTES = 1_000_000_000
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Document:
    """Data that a file holds, or that a service answered."""

    source: Path | str
    """The file, or the service by the name that people know it by."""
    data: Any
    marks: Marks | None = None

    def error(self, path: tuple[Hashable, ...], text: str) -> DlcalcError:
        """Something is wrong with the value at ``path``."""
        if isinstance(self.source, Path):
            return spec_error(self.source, self.marks or Marks(1), path, text)
        place = path_text(path)
        return TopologyError(f"{self.source}: {place}: {text}" if place else f"{self.source}: {text}")

    def items(self, data: object, path: tuple[Hashable, ...]) -> list[Any]:
        """``data``, which stands at ``path``, as a list; null is an empty one."""
        if data is None:
            return []
        if not isinstance(data, list):
            raise self.error(path, f"must be a list, not {shown(data)}")
        return data

    def mapping(self, data: object, path: tuple[Hashable, ...]) -> dict[str, Any]:
        """``data``, which stands at ``path``, as a mapping; null is an empty one."""
        if data is None:
            return {}
        if not isinstance(data, dict):
            raise self.error(path, f"must be a mapping (key: value), not {shown(data)}")
        return data

    def text(self, holder: dict[str, Any], key: str, path: tuple[Hashable, ...], *, needed: bool = False) -> str:
        """The text at ``key`` of ``holder``, which stands at ``path``; empty where it may be missing and is."""
        value = holder.get(key)
        if isinstance(value, str) and (value or not needed):
            return value
        if value is None and not needed:
            return ""
        if value is None:
            raise self.error((*path, key), "required key is missing" if key not in holder else "must not be null")
        raise self.error((*path, key), f"must be text, not {shown(value)}")


def parse_document(file: Path, text: str) -> Document:
    """``text``, which ``file`` holds, as JSON or else as YAML."""
    if file.suffix.lower() != ".json" and text.lstrip()[:1] not in {"{", "["}:
        return Document(file, *parse_yaml(_limited(file, text), file=file))
    try:
        return Document(file, json.loads(text, object_pairs_hook=_without_repeats), JsonMarks(text))
    except json.JSONDecodeError as error:
        if file.suffix.lower() in {".yaml", ".yml"}:  # flow style is YAML too
            return Document(file, *parse_yaml(_limited(file, text), file=file))
        raise _syntax_error(file, error, text) from None
    except RecursionError:
        raise SpecError(file, (Problem(1, "syntax", "lists and mappings are nested too deep"),)) from None
    except _RepeatedKeyError as error:
        problem = f"the key {shown(error.key)} is given twice in one mapping; remove one"
        raise SpecError(file, (Problem(_line_of_repeat(text, error.key), "syntax", problem),)) from None
    except ValueError as error:  # a number of thousands of digits
        raise SpecError(file, (Problem(1, "syntax", f"not JSON: {str(error).splitlines()[0]}"),)) from None


def _limited(file: Path, text: str) -> str:
    if len(text) > MAX_FILE_BYTES:
        told = f" is larger than {MAX_FILE_BYTES // 10**6} MB, too large for YAML; save it as JSON"
        raise SpecError(file, (Problem(0, "", told.strip()),))
    return text


def _syntax_error(file: Path, error: json.JSONDecodeError, text: str) -> SpecError:
    msg = error.msg.removesuffix(" starting at")
    told = f"not JSON: {msg[0].lower()}{msg[1:]}"
    if not text[error.pos :].strip() or msg == "Unterminated string":
        told += "; the file ends here, so it may have been cut off"
    elif error.msg == "Extra data":
        told = (
            "a second document starts here; a file holds one answer: accounts and regions name switches each in their "
            "own way, so their answers cannot be put together"
        )
    return SpecError(file, (Problem(error.lineno, "syntax", told),))


class _RepeatedKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _line_of_repeat(text: str, key: str) -> int:
    """Where the first mapping that holds ``key`` twice holds it again."""
    decoder = json.JSONDecoder()
    open_keys: list[set[str]] = []
    for match in re.finditer(r'("(?:[^"\\]|\\.)*")\s*(:?)|[{}]', text):
        token, colon = match.groups()
        if token is None:
            if match.group() == "{":
                open_keys.append(set())
            else:
                open_keys.pop()
        elif colon:
            name = decoder.decode(token)
            if name == key and name in open_keys[-1]:
                return text.count("\n", 0, match.start()) + 1
            open_keys[-1].add(name)
    return 1


class JsonMarks(Marks):
    """Lines of a JSON text, found when asked for: one pass over each list or mapping on the way."""

    def __init__(self, text: str) -> None:
        super().__init__(1)
        self._text = text
        self._known: dict[int, dict[Hashable, tuple[int, int]]] = {}
        self._decoder = json.JSONDecoder()

    def line_of(self, path: tuple[Hashable, ...]) -> int:
        """Line of the key or item at ``path``, or of the innermost thing on the way there that exists."""
        place = start = self._after_space(0)
        for part in path:
            found = self._inside(start).get(part)
            if found is None:
                break
            place, start = found
        return bisect.bisect_right(self._newlines, place - 1) + 1

    @cached_property
    def _newlines(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self._text)]

    def _after_space(self, index: int) -> int:
        match = _SPACE.match(self._text, index)
        return match.end() if match else index

    def _inside(self, start: int) -> dict[Hashable, tuple[int, int]]:
        """Of what begins at ``start``: where each key or item stands, and where its value begins."""
        if start not in self._known:
            self._known[start] = dict(self._entries(start))
        return self._known[start]

    def _entries(self, start: int) -> Iterable[tuple[Hashable, tuple[int, int]]]:
        opening = self._text[start : start + 1]
        if opening not in {"{", "["}:
            return
        index, n_items = self._after_space(start + 1), 0
        while self._text[index] not in "}]":
            key: Hashable = n_items
            place = index
            if opening == "{":
                key, index = self._decoder.raw_decode(self._text, index)
                index = self._after_space(self._after_space(index) + 1)
            yield key, (place, index)
            n_items += 1
            index = self._after_space(self._decoder.raw_decode(self._text, index)[1])
            if self._text[index] == ",":
                index = self._after_space(index + 1)
