"""What a launch bundle is, in a terminal: the plan, what to expect of it, the files, and what must be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dlcalc.costmodel.prediction import Prediction
from dlcalc.report.plan_words import plan_words
from dlcalc.utils import units


@dataclass(frozen=True)
class LaunchFacts(Prediction):
    """A bundle that was written, and what is expected of it."""

    name: str
    target: str
    scheduler: str
    model: str
    hardware: str
    devices: int
    hosts: int
    plan: Mapping[str, int | bool | str]
    folder: str
    files: Mapping[str, str]
    """Text by name."""
    start: str
    """The command that starts the job."""
    notes: tuple[str, ...]


def print_launch(found: LaunchFacts, console: Console) -> None:
    """The bundle in a screen."""
    console.print(
        Text(f"{found.model} on {found.devices} {found.hardware} ({found.hosts} hosts), {found.target}", style="bold")
    )
    console.print(Text(plan_words(found.plan)))
    interval = f"{units.duration(found.step_time_low_s, 3)} to {units.duration(found.step_time_high_s, 3)}"
    console.print(
        Text(
            f"Expect {units.duration(found.step_time_s, 4)} per step (80 % sure: {interval}), "
            f"{found.mfu:.1%} MFU, {found.tokens_per_s_per_device:,.0f} tokens/s per device, "
            f"{found.memory_bytes / units.GIB:.1f} GiB on the fullest device."
        )
    )
    console.print()
    for name, text in found.files.items():
        console.print(Text(f"  {Path(found.folder) / name}  ({text.count(chr(10)):,} lines)"))
    console.print()
    console.print(Text.assemble("Start: ", (found.start, "bold")))
    for note in found.notes:
        console.print(Text(f"Note: {note}"))
