"""Small studies that are really searched, for tests of what reads their results."""

from __future__ import annotations

import json
from pathlib import Path

from dlcalc.specs.model_registry import load_model
from dlcalc.workflows.search import run_search

SMALL = """
study: {study}
model: {model}
hardware: {hardware}
cluster: {{devices: {devices}}}
recipe: {{seq_len: 4096, global_batch: 128, precision: bf16, framework: megatron, token_budget: 1.0e11}}
space: {space}
"""
FEW = "{cp: 1, micro_batch: [1, 2], recompute: [none, full], zero_stage: 1}"
"""Some thousand plans."""


def searched(
    folder: Path,
    study: str = "small",
    *,
    model: str = "llama3-8b",
    hardware: str = "h100",
    devices: str = "16",
    space: str = FEW,
    **choices: object,
) -> Path:
    """The result of a small study below ``folder``."""
    file = folder / f"{study}.yaml"
    file.write_text(
        SMALL.format(study=study, model=model, hardware=hardware, devices=devices, space=space), encoding="utf-8"
    )
    run_search(file, out=folder / study, jobs=1, **choices)  # type: ignore[arg-type]
    return folder / study


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def evil_model(folder: Path) -> str:
    """A model that calls itself ``EVIL``, as a space file in ``folder`` names it."""
    model = load_model("llama3-8b").model_copy(update={"name": EVIL, "aliases": ()})
    text = json.dumps(model.model_dump(mode="json", exclude_defaults=True))
    (folder / "evil_model.yaml").write_text(text, encoding="utf-8")
    return "./evil_model.yaml"
