"""From nested containers to named tensors and values: ``{"model": {"0.weight": t}}`` has ``model.0.weight``.

The walk is bounded in depth, in entries and in the length of names, because containers out of a file may contain
themselves or each other many times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlcalc.checkpoint.contents import Contents, Tensor, Value
from dlcalc.checkpoint.faults import DamagedError
from dlcalc.checkpoint.inert import Blob, Mapping, Record, StorageRef, Symbol, TensorRef

MAX_DEPTH = 100
MAX_ENTRIES = 2_000_000
MAX_NAME = 4096
MAX_NAMES = 256_000_000
"""Characters of all names together."""
_LONGEST_TEXT = 60
_SCALARS = (bool, int, float, str)
_LONGEST_BITS = 256
_FEW = 8


def flatten(root: object) -> Contents:
    """Every tensor and value in ``root``, in its order, by name."""
    tensors: list[Tensor] = []
    values: list[Value] = []
    storages: dict[str, int] = {}
    for name, leaf in _leaves(root):
        if isinstance(leaf, TensorRef):
            storage = leaf.storage
            if storage is None:
                tensors.append(Tensor(name, leaf.shape, leaf.dtype))
                continue
            storages[storage.key] = max(storage.size_bytes, storages.get(storage.key, 0))
            tensors.append(Tensor(name, leaf.shape, leaf.dtype, storage.key, (leaf.strides, leaf.offset)))
        else:
            values.append(Value(name, *_described(leaf)))
    return Contents(tuple(tensors), tuple(values), storages)


def _leaves(root: object) -> Iterator[tuple[str, object]]:
    """Names and what has no further parts, depth first."""
    waiting: list[tuple[str, object, int]] = [("", root, 0)] if _parts(root) else []
    if not waiting:
        yield "(root)", root
    n_entries = n_characters = 0
    while waiting:
        name, item, depth = waiting.pop()
        parts = _parts(item)
        n_entries += 1 + (len(parts) if parts else 0)
        n_characters += len(name)
        if n_entries > MAX_ENTRIES or n_characters > MAX_NAMES:
            raise DamagedError(f"it unfolds to more than {MAX_ENTRIES:,} entries, which no checkpoint needs")
        if parts is None:
            yield name, item
            continue
        if depth == MAX_DEPTH:
            raise DamagedError(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
        for label, part in reversed(parts):
            longer = f"{name}.{label}" if name else label
            if len(longer) > MAX_NAME:
                raise DamagedError(f"it has a name of more than {MAX_NAME:,} characters")
            waiting.append((longer, part, depth + 1))


def _parts(item: object) -> list[tuple[str, Any]] | None:
    """What is in a container, by label; None of a leaf. A list of plain numbers and texts is a leaf."""
    if isinstance(item, Mapping):
        return [(_label(key), value) for key, value in item.pairs()] or None
    if isinstance(item, (list, tuple)):
        plain = all(part is None or isinstance(part, (*_SCALARS, Blob)) for part in item)
        return None if plain else [(str(index), part) for index, part in enumerate(item)]
    if isinstance(item, Record):
        return _record_parts(item) or None
    return None


def _record_parts(record: Record) -> list[tuple[str, Any]]:
    """An object's attributes, items and pairs."""
    state = record.state
    states = state if isinstance(state, tuple) else (state,)
    mappings = [part for part in (*states[:_FEW], record.content) if isinstance(part, Mapping)]
    pairs = [(_label(key), value) for mapping in mappings for key, value in mapping.pairs()]
    return pairs + [(str(index), value) for index, value in enumerate(record.items or ())]


def _label(key: object) -> str:
    """A mapping's key as a part of a name."""
    if isinstance(key, str):
        return key or "''"
    if isinstance(key, Symbol):
        return key.full_name
    if isinstance(key, tuple) and len(key) <= _FEW and all(isinstance(part, _SCALARS) for part in key):
        return ", ".join(map(_scalar_text, key))
    if key is None or isinstance(key, _SCALARS):
        return _scalar_text(key)
    return f"({type(key).__name__.lower()})"


def _described(leaf: object) -> tuple[str, str]:
    """A value's type, and what it says."""
    match leaf:
        case Symbol():
            return "name", leaf.full_name
        case Blob():
            return "bytes", f"{leaf.n_bytes:,} bytes"
        case StorageRef():
            return "storage", f"{leaf.size_bytes:,} bytes"
        case Record(symbol=Symbol(name="_reconstruct"), state=(_, tuple(shape), *_)):
            return "numpy array", f"[{', '.join(map(_scalar_text, shape[:_FEW]))}]"
        case Record():
            plain = [_scalar_text(arg) for arg in leaf.args[:_FEW] if arg is None or isinstance(arg, _SCALARS)]
            return leaf.symbol.full_name, ", ".join(plain)[:_LONGEST_TEXT]
        case Mapping():
            return "dict", "empty"
        case list() | tuple():
            few = ", ".join(_scalar_text(part) for part in leaf[:_FEW] if not isinstance(part, Blob))
            return type(leaf).__name__, f"[{few}]"[:_LONGEST_TEXT] if len(leaf) <= _FEW else f"{len(leaf):,} items"
        case None:
            return "None", "None"
        case _:
            return type(leaf).__name__, _scalar_text(leaf)


def _scalar_text(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _LONGEST_BITS:
        return f"an integer of {value.bit_length():,} bits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
