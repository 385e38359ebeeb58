"""Tables that give up columns before they break lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

_FLEXIBLE_MIN_WIDTH = 36


@dataclass(frozen=True)
class Column:
    """A column of a table: what to leave out first when the terminal is narrow has the highest ``optional``."""

    header: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"
    optional: int = 0
    flexible: bool = False

    def width(self, available: int) -> int:
        """What it needs; a flexible one folds when it would take more than a third of what is there."""
        natural = max(map(len, (self.header, *self.cells)))
        return min(natural, _FLEXIBLE_MIN_WIDTH, available // 3) if self.flexible else natural


def table_of(columns: Sequence[Column], width: int) -> Table:
    """Columns side by side, without the optional ones that ``width`` has no room for."""
    kept = [column for column in columns if column.cells]
    while sum(column.width(width) + 3 for column in kept) > width and any(column.optional for column in kept):
        least = max(kept, key=lambda column: column.optional)
        kept = [column for column in kept if column is not least]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), header_style="bold")
    for column in kept:
        table.add_column(
            Text(column.header),
            justify=column.justify,
            overflow="fold",
            no_wrap=not column.flexible,
            min_width=column.width(width) if column.flexible else None,
        )
    for cells in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return table


def or_dash(value: float | None, text: Callable[[float], str]) -> str:
    """``text`` of a value, or ``-`` where there is none."""
    return "-" if value is None else text(value)
