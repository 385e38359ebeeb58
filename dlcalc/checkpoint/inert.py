"""What stands for Python objects while a pickle is read: plain records that cannot do anything.

Mappings are lists of keys and values, so that no key out of a file is ever hashed or compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MOST_ATTRIBUTES = 256
"""Of the objects whose attributes are looked up; a lookup goes through them one by one."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A class or function that the pickle names; it is never imported."""

    module: str
    name: str

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Mapping:
    """A dict, whatever its class."""

    flat: list[Any] = field(default_factory=list)
    """Keys and values in turn."""

    def __len__(self) -> int:
        return len(self.flat) // 2

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.flat[::2], self.flat[1::2], strict=True)

    def get(self, key: str) -> Any:  # noqa: ANN401 - a pickle holds anything
        """The last value of ``key``, or None; None also of a mapping too large to be an object's attributes."""
        flat = self.flat
        if len(flat) > 2 * MOST_ATTRIBUTES:
            return None
        for place in range(len(flat) - 2, -1, -2):
            if isinstance(flat[place], str) and flat[place] == key:
                return flat[place + 1]
        return None


@dataclass(eq=False, slots=True)
class Record:
    """What calling a class would have made."""

    symbol: Symbol
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] | None = None
    """What was appended to it, if it is a kind of list."""
    content: Mapping | None = None
    """What was put into it, if it is a kind of dict."""

    def attribute(self, name: str) -> Any:  # noqa: ANN401 - a pickle holds anything
        """An attribute that its state sets, or None."""
        return attribute_in(self.state, name)


def attribute_in(state: object, name: str) -> Any:  # noqa: ANN401 - a pickle holds anything
    """An attribute in the state of an object: a mapping, or one of the instance's dict and one of its slots."""
    for part in state[:2] if isinstance(state, tuple) else (state,):
        if isinstance(part, Mapping) and (found := part.get(name)) is not None:
            return found
    return None


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that were not read."""

    n_bytes: int


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A piece of memory that the file holds outside its pickle."""

    key: str
    dtype: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a view of a storage; None: it has no data in the file."""

    shape: tuple[int, ...]
    dtype: str
    storage: StorageRef | None
    strides: tuple[int, ...] = ()
    offset: int = 0
