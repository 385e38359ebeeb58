"""What ``launch.json`` of a bundle knows that the trainer's own file beside it does not say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlcalc.specs.model import ModelSpec
from dlcalc.specs.target import Target

FILE, LARGEST_BYTES = "launch.json", 2**20


@dataclass(frozen=True)
class Beside:
    """None where it does not say, or where there is no such file."""

    devices: int | None = None
    seq_len: int | None = None
    global_batch: int | None = None
    model: ModelSpec | None = None


def told_beside(file: Path, source: Target) -> Beside:
    """Of the bundle that ``file`` is a part of; any other file of that name says nothing."""
    data = _mapping(file.parent / FILE)
    names = data.get("files")
    if data.get("target") != source or not isinstance(names, list) or file.name not in names:
        return Beside()
    recipe = data.get("recipe")
    told: dict[str, Any] = recipe if isinstance(recipe, dict) else {}
    try:
        model = ModelSpec.model_validate_json(json.dumps(data.get("model")))
    except ValidationError:
        model = None
    return Beside(
        devices=_count(data.get("devices")),
        seq_len=_count(told.get("seq_len")),
        global_batch=_count(told.get("global_batch")),
        model=model,
    )


def _mapping(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_BYTES:
            return {}
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
