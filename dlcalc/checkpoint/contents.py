"""What a checkpoint contains: named tensors, the storages behind them, and named other values. Never tensor data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

DTYPE_BITS: dict[str, int] = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 64),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 32),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16", "bits16"), 16),
    **dict.fromkeys(("int8", "uint8", "bool", "qint8", "quint8", "bits8", "bits1x8", "bits2x4", "bits4x2"), 8),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 8),
    **dict.fromkeys(("float6_e2m3", "float6_e3m2"), 6),
    "float4_e2m1fn_x2": 8,
    "float4_e2m1": 4,
    "quint4x2": 4,
    "quint2x4": 2,
    "complex128": 128,
}
"""By PyTorch's names, and safetensors' where PyTorch has none."""

VALUES_PER_ELEMENT = {"float4_e2m1fn_x2": 2}
"""Numbers in one element, where they are packed."""


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a dense tensor, rounded up to whole ones."""
    return -(-prod(shape) * DTYPE_BITS[dtype] // 8)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str = ""
    """The memory it is part of, unique within the checkpoint; empty if it has its own."""
    place: tuple[tuple[int, ...], int] = ((), 0)
    """Strides and offset in that memory, in elements."""

    @property
    def parameters(self) -> int:
        return prod(self.shape) * VALUES_PER_ELEMENT.get(self.dtype, 1)

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Value:
    """One named value that is no tensor."""

    name: str
    type: str
    text: str
    """What it says, shortened; empty for containers and bytes."""


@dataclass(frozen=True)
class Contents:
    """What one file, or all files of a checkpoint, contain."""

    tensors: tuple[Tensor, ...]
    values: tuple[Value, ...] = ()
    storages: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each storage that tensors name."""
    notes: tuple[str, ...] = ()

    def under(self, prefix: str) -> Contents:
        """The same with ``prefix`` before every name, and storages that are its own."""
        own = self.apart(prefix)
        return replace(
            own,
            tensors=tuple(replace(tensor, name=prefix + tensor.name) for tensor in own.tensors),
            values=tuple(replace(value, name=prefix + value.name) for value in own.values),
            notes=tuple(prefix + note for note in own.notes),
        )

    def apart(self, file: str) -> Contents:
        """The same with storages that are ``file``'s own, whatever other files call theirs."""
        return replace(
            self,
            tensors=tuple(
                replace(tensor, storage=f"{file}:{tensor.storage}") if tensor.storage else tensor
                for tensor in self.tensors
            ),
            storages={f"{file}:{key}": size for key, size in self.storages.items()},
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was found on disk."""

    path: Path
    format: str
    n_files: int
    files_bytes: int
    contents: Contents


def joined(parts: list[Contents]) -> Contents:
    """Several files' contents as one."""
    return Contents(
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        values=tuple(value for part in parts for value in part.values),
        storages={key: size for part in parts for key, size in part.storages.items()},
        notes=tuple(note for part in parts for note in part.notes),
    )
