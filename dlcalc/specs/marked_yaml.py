"""YAML text to plain data, with the line of every key and item, in bounded time and memory.

Scalars follow YAML 1.2's core schema, so what people write is what they get: ``1e12`` is a number, ``on`` and ``12:30``
are text, and only ``true`` and ``false`` are booleans. Anchors, aliases and merge keys (``<<``) work; a key given
twice is a mistake. Aliases count with all they stand for, so a few lines that expand to millions of values are refused
before anybody walks them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from dlcalc.errors import Problem
from dlcalc.specs.wording import path_text

MAX_VALUES = 1_000_000
MAX_DEPTH = 64
MAX_DIGITS = 400

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # used for its event stream alone
_TAG_PREFIX = "tag:yaml.org,2002:"
_SCALAR = re.compile(
    r"""(?P<null>null|Null|NULL|~|)
      | (?P<true>true|True|TRUE)
      | (?P<false>false|False|FALSE)
      | (?P<int>[-+]?[0-9]+)
      | (?P<octal>0o[0-7]+)
      | (?P<hex>0x[0-9a-fA-F]+)
      | (?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)
      | (?P<inf>[-+]?)\.(?:inf|Inf|INF)
      | (?P<nan>\.nan|\.NaN|\.NAN)""",
    re.VERBOSE,
)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HINTS = {
    "mapping values are not allowed in this context": "; is a key indented wrongly, or a text with a colon not quoted?",
    "could not find expected ':'": "; is a colon missing after a key?",
    "found unexpected end of stream": "; is a closing quote missing?",
}


class Mistake(Exception):  # noqa: N818 (no error of ours: load.py turns it into one)
    """The text cannot be read: where and why."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems


class NotYaml(Mistake):
    """The text is no YAML; it may still be JSON."""


@dataclass(slots=True)
class Marks:
    """Where a value stands: its line, and the marks of what it holds."""

    line: int
    key_lines: dict[Hashable, int] = field(default_factory=dict)
    inner: dict[Hashable, Marks] = field(default_factory=dict)
    """By key of a mapping, or by index of a list."""

    def line_of(self, path: tuple[Hashable, ...]) -> int:
        """Line of the key or item at ``path``, or of the innermost thing on the way there that exists."""
        line, marks = self.line, self
        for part in path:
            inner = marks.inner.get(part)
            if inner is None:
                return line
            line = marks.key_lines.get(part, inner.line)
            marks = inner
        return line

    def within(self, path: tuple[Hashable, ...]) -> Marks:
        """Marks of the value at ``path``, which must exist; its own line is its key's."""
        marks = self
        for part in path:
            marks = marks.inner[part]
        return Marks(self.line_of(path), marks.key_lines, marks.inner)


class _Node(NamedTuple):
    value: Any
    marks: Marks
    size: int
    is_merge: bool = False


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    value: list[Any] | dict[Hashable, Any]
    marks: Marks
    anchor: str | None
    size: int = 1
    key: tuple[Hashable, int] | None = None
    merge_line: int = 0
    """Line of its ``<<``; 0 without one."""
    merged: _Node | None = None
    """What ``<<`` stands for; None until it comes."""


def read_marked(text: str) -> tuple[Any, Marks]:
    """The data in ``text`` and where it stands; raises ``Mistake`` if it cannot be read."""
    odd = _UNPRINTABLE.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise NotYaml(Problem(line, "syntax", f"the control character U+{ord(odd.group()):04X} is not allowed"))
    composer = _Composer()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        raise NotYaml(_syntax_problem(error, text)) from None
    if composer.repeated:
        raise Mistake(*composer.repeated)
    if composer.root is None:
        raise Mistake(Problem(0, "", "the file is empty"))
    return composer.root.value, composer.root.marks


class _Composer:
    """Takes events one by one and holds what is open; never recursive, so depth cannot exhaust the stack."""

    def __init__(self) -> None:
        self.root: _Node | None = None
        self.repeated: list[Problem] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, _Node | None] = {}  # None: still open
        self._n_values = 0

    def take(self, event: yaml.Event) -> None:
        """Add ``event`` to the tree."""
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.NodeEvent):
            self._n_values += 1
            _check_count(self._n_values, line)
        match event:
            case yaml.ScalarEvent():
                node = _scalar(event, line)
                if event.anchor:
                    self._anchors[event.anchor] = node
                self._place(node, line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._start(event, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                self._place(self._aliased(str(event.anchor), line), line)
            case yaml.DocumentStartEvent() if self.root is not None:
                raise _mistake(line, "a second document (---) starts here; a file holds one")
            case _:
                pass

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in {None, "!", _TAG_PREFIX + ("map" if is_mapping else "seq")}:
            raise _unsupported_tag(event.tag, line)
        if len(self._open) >= MAX_DEPTH:
            raise _mistake(line, f"lists and mappings are nested more than {MAX_DEPTH} deep")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append(_Open({} if is_mapping else [], Marks(line), event.anchor))

    def _end(self) -> None:
        done = self._open.pop()
        if done.merged is not None:
            _merge(done)
        node = _Node(done.value, done.marks, done.size)
        if done.anchor:
            self._anchors[done.anchor] = node
        self._place(node, done.marks.line)

    def _aliased(self, name: str, line: int) -> _Node:
        if name not in self._anchors:
            raise _mistake(line, f"no anchor &{name} stands before the alias *{name}")
        node = self._anchors[name]
        if node is None:
            raise _mistake(line, f"the alias *{name} stands inside what &{name} names")
        return node._replace(is_merge=False)

    def _place(self, node: _Node, line: int) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        parent.size += node.size
        _check_count(parent.size, line)
        if isinstance(parent.value, list):
            parent.marks.inner[len(parent.value)] = node.marks
            parent.value.append(node.value)
        elif parent.merge_line and parent.merged is None:
            parent.merged = node
        elif parent.key is None:
            self._take_key(parent, node, line)
        else:
            key, key_line = parent.key
            parent.key = None
            parent.value[key] = node.value
            parent.marks.key_lines[key] = key_line
            parent.marks.inner[key] = node.marks

    def _take_key(self, parent: _Open, node: _Node, line: int) -> None:
        key = node.value
        if isinstance(key, list | dict):
            raise _mistake(line, "a key must be text, not a list or a mapping")
        if node.is_merge:
            if parent.merge_line:
                raise _mistake(line, f"<< is given twice, first on line {parent.merge_line}; give it a list")
            parent.merge_line = line
            return
        first_line = parent.marks.key_lines.get(key)
        if first_line is not None:
            text = f"this key is given twice, first on line {first_line}; remove one"
            self.repeated.append(Problem(line, path_text((key,)), text))
        parent.key = (key, line)


def _scalar(event: yaml.ScalarEvent, line: int) -> _Node:
    text: str = event.value
    marks = Marks(line)
    if event.tag not in {None, "!", _TAG_PREFIX + "str"}:
        raise _unsupported_tag(event.tag, line)
    if event.tag is not None or not event.implicit[0]:
        return _Node(text, marks, 1)
    return _Node(_plain_value(text, line), marks, 1, is_merge=text == "<<")


def _plain_value(text: str, line: int) -> object:
    """What an unquoted scalar means in the core schema."""
    match = _SCALAR.fullmatch(text)
    kind = match.lastgroup if match else None
    if kind is None:
        return text
    if len(text) > MAX_DIGITS:
        raise _mistake(line, f"a number of {len(text):,} characters; at most {MAX_DIGITS} are read")
    match kind:
        case "null":
            return None
        case "true" | "false":
            return kind == "true"
        case "int":
            return int(text)
        case "octal":
            return int(text[2:], 8)
        case "hex":
            return int(text[2:], 16)
        case "nan":
            return float("nan")
        case "inf":
            return float("-inf" if text.startswith("-") else "inf")
        case _:
            return float(text)


def _merge(into: _Open) -> None:
    """Add the keys of what ``<<`` names; a key given by the mapping itself, or by an earlier source, stays."""
    assert isinstance(into.value, dict)
    assert into.merged is not None
    for source, marks in _sources(into.merged):
        if not isinstance(source, dict):
            raise _mistake(marks.line, "<< takes the alias of a mapping, or a list of such aliases")
        for key, value in source.items():
            if key not in into.value:
                into.value[key] = value
                into.marks.key_lines[key] = marks.key_lines[key]
                into.marks.inner[key] = marks.inner[key]


def _sources(merged: _Node) -> Iterator[tuple[object, Marks]]:
    if isinstance(merged.value, list):
        for index, source in enumerate(merged.value):
            yield source, merged.marks.inner[index]
    else:
        yield merged.value, merged.marks


def _check_count(n_values: int, line: int) -> None:
    if n_values > MAX_VALUES:
        raise _mistake(line, f"more than {MAX_VALUES:,} values, aliases counted with all they stand for")


def _mistake(line: int, text: str) -> Mistake:
    return Mistake(Problem(line, "syntax", text))


def _unsupported_tag(tag: str, line: int) -> Mistake:
    short = tag.replace(_TAG_PREFIX, "!!", 1)
    return _mistake(line, f"the tag {short[:60]} is not supported; write the plain value")


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    """The parser's complaint as one line, at the place where it noticed."""
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    line = min(mark.line + 1, len(lines)) if mark else 1
    problem = str(error.problem or "not YAML")
    if mark and mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
        return Problem(line, "syntax", "a tab cannot indent YAML; use spaces")
    told = problem + _HINTS.get(problem, "")
    if error.context:
        started = error.context_mark.line + 1 if error.context_mark else line
        told += f" ({error.context}" + (f" that starts on line {started})" if started != line else ")")
    return Problem(line, "syntax", told)
