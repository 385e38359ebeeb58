"""A trainer's own configuration, read: one function for all of them."""

from __future__ import annotations

from pathlib import Path

from dlcalc.errors import DlcalcError
from dlcalc.launch.imported import Imported
from dlcalc.specs.target import READABLE, Target

LARGEST_BYTES = 4 * 2**20
"""Of a configuration; a larger file is something else."""


def read_trainer_file(source: Target, file: Path) -> Imported:
    """What the configuration in ``file`` tells ``source`` to do."""
    text = _text_of(file)
    match source:
        case "megatron-lm":
            from dlcalc.launch.readers import megatron_lm

            return megatron_lm.read(text, file)
        case "megatron-bridge":
            from dlcalc.launch.readers import megatron_bridge

            return megatron_bridge.read(text, file)
        case "torchtitan":
            from dlcalc.launch.readers import torchtitan

            return torchtitan.read(text, file)
        case "deepspeed":
            from dlcalc.launch.readers import deepspeed

            return deepspeed.read(text, file)
        case _:
            raise DlcalcError(f"--from {source}: only {', '.join(READABLE)} can be read")


def _text_of(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise DlcalcError(f"{file}: larger than any trainer's configuration ({LARGEST_BYTES // 2**20} MiB)")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DlcalcError(f"{file}: not text (byte {error.start} is no UTF-8)") from error
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from error
