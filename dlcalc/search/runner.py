"""One run of the user's command: started without a shell, timed out, its step time read from what it printed."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dlcalc.errors import DlcalcError, suggestion

PLACEHOLDERS = ("plan", "trial")
PLAN_VARIABLE = "DLCALC_PLAN"
"""Environment variable with the path of the plan, for commands that take no arguments."""
TAIL_BYTES = 1_000_000
"""Of the output, what is searched for the step time."""
GRACE_S = 5.0
"""Between asking a command to end and ending it."""


@dataclass(frozen=True)
class Outcome:
    """A step time, or why there is none."""

    step_time_s: float | None = None
    problem: str = ""


def arguments(command: str, values: Mapping[str, str]) -> list[str]:
    """The words of ``command`` with its placeholders filled in: nothing in a value can become another word."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise DlcalcError(f"search: command: {command!r} cannot be read: {str(error).lower()}") from error
    for word in words:
        for name in re.findall(r"\{(\w*)\}", word):
            if name not in PLACEHOLDERS:
                raise DlcalcError(f"search: command: {{{name}}} stands for nothing; {suggestion(name, PLACEHOLDERS)}")
    return [re.sub(r"\{(plan|trial)\}", lambda match: values[match[1]], word) for word in words]


def run_command(
    words: Sequence[str], *, plan: Path, log: Path, folder: Path, timeout_s: float, pattern: re.Pattern[str]
) -> Outcome:
    """Run ``words`` in ``folder``; everything it prints goes to ``log``."""
    environment = {**os.environ, PLAN_VARIABLE: str(plan)}
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except FileNotFoundError as error:
        raise DlcalcError(f"search: command: {words[0]}: no such program (from {folder.resolve()})") from error
    except OSError as error:
        raise DlcalcError(f"search: command: {words[0]}: {str(error.strerror).lower()}") from error
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return Outcome(problem=f"no end within {timeout_s:g} s")
    except BaseException:
        _end(process)
        raise
    if code != 0:
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome(problem=f"{ended}{_last_words(log)}")
    return step_time_in(log, pattern)


def step_time_in(log: Path, pattern: re.Pattern[str]) -> Outcome:
    """The step time that the output names last."""
    found = [match[1] for match in pattern.finditer(_tail(log))]
    if not found:
        return Outcome(problem=f"the output has no match of {pattern.pattern}{_last_words(log)}")
    try:
        step_time_s = float(found[-1])
    except ValueError:
        return Outcome(problem=f"{found[-1]!r} is no step time")
    if not (math.isfinite(step_time_s) and step_time_s > 0):
        return Outcome(problem=f"a step of {found[-1]} s is not possible")
    return Outcome(step_time_s)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and whatever it started."""
    for how, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            if how == signal.SIGTERM:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            return
