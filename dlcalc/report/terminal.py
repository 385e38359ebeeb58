"""The terminal, or what stands in for it: a console of the right width, and a progress bar."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from dlcalc.utils import units

_PIPE_WIDTH = 120
_MIN_WIDTH = 40
_REFRESH_S = 0.1
SEARCHING = "searching"


def make_console(file: IO[str] | None = None) -> Console:
    """A console on ``file`` (stdout): the terminal's width, or a comfortable one in a pipe."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _PIPE_WIDTH
    console.width = max(console.width, _MIN_WIDTH)
    return console


class _Rate(ProgressColumn):
    """Plans per second, and the time left at that rate."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.description != SEARCHING:
            return Text("")
        left = (task.remaining or 0) / task.speed
        return Text(f"{units.short_count(task.speed)} plans/s, {units.duration(max(left, 0.0))} left")


class SearchProgress:
    """A progress bar on stderr; does nothing where stderr is not a terminal.

    Called with the plans done and the plans in all, as often as the search likes.
    """

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None) -> None:
        stream = file if file is not None else sys.stderr
        self._quiet, self._stream = quiet, stream
        self._shown = not quiet and stream.isatty()
        self._last_s = 0.0
        if self._shown:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                _Rate(),
                console=Console(file=stream, highlight=False),
                transient=True,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(SEARCHING, total=None)

    def __enter__(self) -> Self:
        if self._shown:
            self._bar.start()
        return self

    def __call__(self, done: int, total: int, what: str = SEARCHING) -> None:
        """``done`` of ``total`` plans are behind us, or of whatever ``what`` is done to."""
        if not self._shown:
            return
        now_s = time.monotonic()
        if now_s - self._last_s < _REFRESH_S and done < total:
            return
        self._last_s = now_s
        self._bar.update(self._task, completed=done, total=total, description=what, refresh=True)

    def say(self, text: str) -> None:
        """A line beside the bar; also where there is no bar."""
        if self._shown:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        elif not self._quiet:
            print(text, file=self._stream)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            self._bar.stop()
