"""What is in a checkpoint, as a tree on the terminal; and what differs between two.

Rows of a tree add up: neighbours that differ in a number alone (``layers.0-31``) are one row with their sum, and each
shape says how often it is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlcalc.checkpoint.contents import Tensor
from dlcalc.checkpoint.difference import Difference, Line, lines
from dlcalc.checkpoint.roles import parts_of
from dlcalc.checkpoint.summary import Alike, Count, Group, Summary, alike, tree
from dlcalc.utils.printable import printable
from dlcalc.utils.units import count, short_count, size

ROWS_PER_GROUP = 24
LINES_SHOWN = 60
TIES_SHOWN = 8
VALUES_SHOWN = 12
_LONGEST_NAME = 70
_LEAST_NAME = 24
_ROOMY_WIDTH = 100
"""Of a terminal that has a place for the number of tensors, too."""
_PIPE_WIDTH = 240
"""Where no terminal is too narrow, nothing is cut off."""


@dataclass(frozen=True)
class _Row:
    """A line of the tree."""

    name: str
    count: Count
    dtypes: str
    shape: str


def print_checkpoint(summary: Summary, console: Console, depth: int | None = None) -> None:
    """Totals, the tree of each role, ties, and values."""
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _PIPE_WIDTH
    checkpoint = summary.checkpoint
    files = (
        f"{count(checkpoint.n_files)} file{'s' if checkpoint.n_files != 1 else ''} of {size(checkpoint.files_bytes)}"
    )
    console.print(f"{printable(str(checkpoint.path))}: {checkpoint.format}, {files}", soft_wrap=True)
    if summary.pattern is not None:
        console.print(f"only names in which {printable(summary.pattern)} is found", soft_wrap=True)
    console.print()
    if summary.entries:
        console.print(_totals(summary))
        for role in summary.by_role:
            console.print()
            console.print(_tree_table(tree(summary.entries, role), console, depth))
    else:
        console.print("no tensors" + (" of such a name" if summary.pattern is not None else ""))
    for paragraph in _remarks(summary):
        console.print()
        console.print(paragraph, soft_wrap=True)


def _totals(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for heading in ("tensors", "parameters", "", "bytes", ""):
        table.add_column(heading, justify="right")
    for role, counted in summary.by_role.items():
        table.add_row(*_sums(role, counted))
        if role == "optimizer" and len(summary.by_kind) > 1:
            for kind, part in summary.by_kind.items():
                table.add_row(*_sums(f"  {kind}", part))
    if len(summary.by_role) > 1:
        table.add_row(*_sums("total", summary.total))
    for dtype, counted in summary.by_dtype.items():
        table.add_row(*_sums(f"in {dtype}", counted))
    return table


def _sums(label: str, counted: Count) -> tuple[str, ...]:
    return (
        label,
        count(counted.tensors),
        count(counted.parameters),
        short_count(counted.parameters),
        count(counted.size_bytes),
        size(counted.size_bytes),
    )


def _tree_table(root: Group, console: Console, depth: int | None) -> Table:
    guides = ("|-- ", "`-- ", "|   ", "    ") if console.options.ascii_only else ("├── ", "└── ", "│   ", "    ")
    cells = [
        (
            row.name,
            count(row.count.tensors),
            short_count(row.count.parameters),
            size(row.count.size_bytes),
            row.dtypes,
            row.shape,
        )
        for row in _rows(root.inner.values(), "", guides, depth)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(root.name, no_wrap=True, overflow="ellipsis", min_width=_LEAST_NAME)
    headings = ("tensors", "parameters", "bytes", "dtype", "shape")
    shown = [position for position in range(1, 6) if position > 1 or console.width >= _ROOMY_WIDTH]
    for position in shown:
        heading = headings[position - 1]
        width = max(len(heading), *(len(row[position]) for row in cells)) if heading != "shape" else None
        justify: Literal["left", "right"] = "right" if position <= 3 else "left"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", min_width=width)
    for row in cells:
        table.add_row(Text(row[0]), *(Text(row[position]) for position in shown))
    return table


def _rows(
    groups: Iterable[Group], indent: str, guides: Sequence[str], depth: int | None, times: int = 1
) -> Iterator[_Row]:
    """The rows below a group, ``times`` of which stand beside each other."""
    if depth == 0:
        return
    found = alike(groups)
    shown = found if len(found) <= ROWS_PER_GROUP else found[: ROWS_PER_GROUP - 1]
    for position, item in enumerate(shown):
        is_last = position == len(found) - 1
        name, bottom, n_each = _chain(item)
        branch, below = (guides[1], guides[3]) if is_last else (guides[0], guides[2])
        yield _Row(
            indent + branch + printable(name, _LONGEST_NAME),
            _times(item.count, times),
            item.dtypes[0] + (f" +{len(item.dtypes) - 1}" if len(item.dtypes) > 1 else ""),
            _shape(bottom, times * n_each),
        )
        inner_depth = None if depth is None else depth - 1 - name.count(".")
        if inner_depth is None or inner_depth > 0:
            yield from _rows(bottom.inner.values(), indent + below, guides, inner_depth, times * n_each)
    if len(found) > len(shown):
        rest = Count()
        for item in found[len(shown) :]:
            rest.add(item.count)
        yield _Row(f"{indent}{guides[1]}({len(found) - len(shown)} more)", _times(rest, times), "", "")


def _chain(item: Alike) -> tuple[str, Group, int]:
    """A row's name with those of groups that have nothing beside them, the lowest group, and how often it is there."""
    name, group = item.name, item.groups[0]
    while len(group.inner) == 1 and group.entry is None and item.n_groups == 1:
        (group,) = group.inner.values()
        name = f"{name}.{group.name}"
    return name, group, item.n_groups


def _times(counted: Count, times: int) -> Count:
    return Count(counted.tensors * times, counted.parameters * times, counted.size_bytes * times)


def _shape(group: Group, times: int) -> str:
    entry = group.entry
    if entry is None:
        return ""
    often = f"{times} x " if times > 1 else ""
    tied = f" = {printable(entry.tied_to, _LONGEST_NAME)}" if entry.tied_to else ""
    return f"{often}{list(entry.tensor.shape)}{tied}"


def _remarks(summary: Summary) -> Iterator[str]:
    """What else there is to say, a paragraph each."""
    if summary.optimizer:
        yield f"Optimizer state, by the names of its tensors: {summary.optimizer}."
    if summary.ties:
        yield _listed("Tied, the same memory and counted once:", [" = ".join(_shown(names)) for names in summary.ties])
    if summary.shared:
        yield _listed("Parts of one storage:", [", ".join(_shown(names)) for names in summary.shared])
    if summary.unused_bytes:
        yield f"{size(summary.unused_bytes)} of storages belong to no tensor: a slice is saved with the whole."
    if values := sorted(summary.checkpoint.contents.values, key=lambda value: len(parts_of(value.name))):
        named = [
            f"  {printable(value.name, _LONGEST_NAME)} = {printable(value.text or f'({value.type})', 60)}"
            for value in values
        ]
        more = f"\n  and {len(named) - VALUES_SHOWN:,} more" if len(named) > VALUES_SHOWN else ""
        yield f"Other values: {len(named):,}\n" + "\n".join(named[:VALUES_SHOWN]) + more
    for note in summary.checkpoint.contents.notes:
        yield f"Note: {printable(note)}"


def _shown(names: Sequence[str]) -> list[str]:
    more = [f"{len(names) - TIES_SHOWN} more"] if len(names) > TIES_SHOWN else []
    return [printable(name, _LONGEST_NAME) for name in names[:TIES_SHOWN]] + more


def _listed(title: str, items: Sequence[str]) -> str:
    more = [f"and {len(items) - TIES_SHOWN:,} more"] if len(items) > TIES_SHOWN else []
    return "\n  ".join([title, *items[:TIES_SHOWN], *more])


# ---- two checkpoints


def print_difference(found: Difference, console: Console) -> None:
    """Names that only one has, and shapes and dtypes that differ."""
    here, there = (printable(str(checkpoint.path)) for checkpoint in (found.here, found.there))
    console.print(f"- {here}: {count(len(found.here.contents.tensors))} tensors", soft_wrap=True)
    console.print(f"+ {there}: {count(len(found.there.contents.tensors))} tensors", soft_wrap=True)
    console.print()
    changed = [(pair.here.name, f"{_said(pair.here)} -> {_said(pair.there)}") for pair in found.changed]
    for title, mark, rows in (
        ("only in the first", "-", [(tensor.name, _said(tensor)) for tensor in found.only_here]),
        ("only in the second", "+", [(tensor.name, _said(tensor)) for tensor in found.only_there]),
        ("different", "~", changed),
    ):
        if rows:
            console.print(f"{title}: {count(len(rows))}")
            for line in _limited(lines(rows)):
                console.print(f"{mark} {line}", soft_wrap=True)
            console.print()
    if found.is_none:
        console.print(f"The same names, shapes and dtypes: {count(found.n_same)} tensors.")
    else:
        console.print(f"Alike: {count(found.n_same)} tensors.")


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _limited(found: Sequence[Line]) -> Iterator[str]:
    for line in found[:LINES_SHOWN]:
        often = f" ({line.n_tensors:,} of them)" if line.n_tensors > 1 else ""
        yield f"{printable(line.name, 2 * _LONGEST_NAME)}  {line.text}{often}"
    if len(found) > LINES_SHOWN:
        yield f"and {len(found) - LINES_SHOWN:,} more; --json has them all"
