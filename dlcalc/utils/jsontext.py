"""JSON that every parser reads: numpy numbers as numbers, NaN and infinity as null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: object, *, indent: int | None = 1) -> str:
    """``value`` as standard JSON text."""
    if indent is None:
        return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    return _indented(plain(value), indent, "\n")


def _indented(value: Any, indent: int, line: str) -> str:  # noqa: ANN401 - JSON is anything
    """As ``json.dumps`` writes it, but containers without containers in them by its fast encoder."""
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = line + " " * indent
    items = value.values() if isinstance(value, dict) else value
    if not any(isinstance(item, (dict, list)) for item in items):
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=("," + inner, ": "))
        return f"{text[0]}{inner}{text[1:-1]}{line}{text[-1]}"
    texts = (_indented(item, indent, inner) for item in items)
    if isinstance(value, list):
        return f"[{inner}{(',' + inner).join(texts)}{line}]"
    pairs = (f"{json.dumps(key, ensure_ascii=False)}: {text}" for key, text in zip(value, texts, strict=True))
    return f"{{{inner}{(',' + inner).join(pairs)}{line}}}"


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """``value`` built of dict, list, str, int, finite float, bool and None alone."""
    kind = type(value)
    if kind in (str, int, bool, type(None)) or (kind is float and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
