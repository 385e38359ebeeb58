"""The sources of the equations that an estimate used, by watching it being made."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any

import numpy as np

from dlcalc.calculators.references import REFERENCES
from dlcalc.report.run_facts import Citation
from dlcalc.search.run import Run, RunSource
from dlcalc.workflows.run_facts import estimate_run


def citations(source: RunSource) -> tuple[Citation, ...]:
    """The sources of the equations whose results this run's estimate is made of, by observation."""
    run = source.resolve({})
    used = _equations_used(run)
    by_key: dict[str, set[str]] = {}
    for name, docstring in used.items():
        source_text = "".join(re.findall(r"Source: .*", docstring, re.DOTALL))
        for key in re.findall(r"\[(\w+)\]", source_text):
            by_key.setdefault(key, set()).add(name)
    return tuple(
        Citation(key, ref.title, ref.authors, ref.year, ref.url, tuple(sorted(by_key[key])))
        for key, ref in sorted(REFERENCES.items())
        if key in by_key
    )


def _equations_used(run: Run) -> dict[str, str]:
    """Equations that return something other than zero while ``run`` is estimated, with their docstrings."""
    used: dict[str, str] = {}
    modules = {
        module.__file__: module for name, module in sys.modules.items() if name.startswith("dlcalc.calculators.")
    }

    def watch(frame: FrameType, event: str, value: Any) -> None:  # noqa: ANN401 whatever a function returns
        code = frame.f_code
        module = modules.get(code.co_filename)
        if module is None or event != "return":
            return
        function = getattr(module, code.co_name, None)
        if getattr(function, "__code__", None) is not code or code.co_name.startswith("_"):
            return
        if _is_something(value):
            used[code.co_name] = (function.__doc__ or "") if function else ""

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        found, _ = estimate_run(run)
        found.step_time_s, found.memory_bytes  # noqa: B018 worked out when first asked for
    finally:
        sys.setprofile(before)
    return used


def _is_something(value: Any) -> bool:  # noqa: ANN401 whatever an equation returns
    """Whether an equation's result is anything but zero."""
    if is_dataclass(value):
        return any(_is_something(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return any(_is_something(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return any(_is_something(item) for item in value)
    return value is not None and bool(np.any(value))
