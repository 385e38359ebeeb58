"""Directories that torch.distributed.checkpoint writes, by their ``.metadata``: a pickle that says everything.

Of the data files only the sizes are looked at: each must be there and reach as far as the metadata says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from dlcalc.checkpoint import inert
from dlcalc.checkpoint.callables import MAX_ELEMENTS, dtype_name, sizes
from dlcalc.checkpoint.contents import Contents, Tensor, Value
from dlcalc.checkpoint.faults import DamagedError
from dlcalc.checkpoint.flatten import MAX_NAME
from dlcalc.checkpoint.inert import Record
from dlcalc.checkpoint.source import Source
from dlcalc.checkpoint.unpickler import unpickle
from dlcalc.utils.printable import printable

METADATA = ".metadata"
_CLASSES = "torch.distributed.checkpoint.metadata."


@dataclass(frozen=True)
class Extent:
    """How far into a data file the metadata reaches, and for what."""

    reaches_bytes: int
    name: str


def read_distributed(folder: Path) -> tuple[Contents, tuple[Path, ...]]:
    """What a distributed checkpoint contains, and its files."""
    file = folder / METADATA
    with file.open("rb") as stream:
        metadata = unpickle(Source(stream, 0, os.fstat(stream.fileno()).st_size))
    if not _is(metadata, "Metadata"):
        raise DamagedError("a pickle, but not the metadata of torch.distributed.checkpoint")
    contents = _contents(_pairs(metadata, "state_dict_metadata"))
    extents = _extents(_pairs(metadata, "storage_data"))
    return contents, (file, *_checked(folder, extents))


def _contents(entries: Iterable[tuple[Any, Any]]) -> Contents:
    tensors: list[Tensor] = []
    values: list[Value] = []
    notes: list[str] = []
    for name, entry in entries:
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise DamagedError("damaged: a name in its metadata is none")
        if _is(entry, "BytesStorageMetadata"):
            values.append(Value(name, "bytes", ""))
        elif _is(entry, "TensorStorageMetadata"):
            tensor = _tensor(name, entry)
            tensors.append(tensor)
            stored = _stored_elements(entry)
            if stored < prod(tensor.shape):
                notes.append(f"{name}: only {stored:,} of its {prod(tensor.shape):,} elements are stored")
        else:
            raise DamagedError(f"damaged: {printable(name, 100)} is neither tensor nor bytes in its metadata")
    return Contents(tuple(tensors), tuple(values), notes=tuple(notes))


def _tensor(name: str, entry: Record) -> Tensor:
    properties = entry.attribute("properties")
    if not isinstance(properties, Record):
        raise DamagedError(f"damaged: {printable(name, 100)} has no properties in its metadata")
    state = properties.state
    dtype = state[0] if isinstance(state, tuple) and len(state) == 5 else properties.attribute("dtype")
    shape = sizes(entry.attribute("size"))
    if prod(shape) > MAX_ELEMENTS:
        raise DamagedError("damaged: a tensor of more than 2^62 elements")
    return Tensor(name, shape, dtype_name(dtype))


def _stored_elements(entry: Record) -> int:
    chunks = entry.attribute("chunks")
    if not isinstance(chunks, list):
        raise DamagedError("damaged: a tensor has no chunks in its metadata")
    n_elements = 0
    for chunk in chunks:
        if not isinstance(chunk, Record):
            raise DamagedError("damaged: a tensor has no chunks in its metadata")
        n_elements += prod(sizes(chunk.attribute("sizes")))
    return n_elements


def _extents(entries: Iterable[tuple[Any, Any]]) -> dict[str, Extent]:
    """By data file."""
    extents: dict[str, Extent] = {}
    for index, place in entries:
        if not isinstance(index, Record) or not isinstance(place, Record):
            raise DamagedError("damaged: its metadata does not say where data lies")
        path, offset, length = (place.attribute(key) for key in ("relative_path", "offset", "length"))
        name = index.attribute("fqn")
        if not isinstance(path, str) or not isinstance(name, str) or type(offset) is not int or type(length) is not int:
            raise DamagedError("damaged: its metadata does not say where data lies")
        if path not in extents or offset + length > extents[path].reaches_bytes:
            extents[path] = Extent(offset + length, name)
    return extents


def _checked(folder: Path, extents: dict[str, Extent]) -> Iterator[Path]:
    """The data files, each of which must be there and long enough."""
    for path, extent in sorted(extents.items()):
        parts = PurePosixPath(path).parts
        shown = printable(path, 100)
        if "\0" in path or ".." in parts or path.startswith("/"):
            raise DamagedError(f"damaged: its metadata names the file {shown!r}, which is not in the checkpoint")
        file = folder / path
        if not file.is_file():
            raise DamagedError(f"damaged: {shown} is missing, which holds {printable(extent.name, 100)}")
        size_bytes = file.stat().st_size
        if size_bytes < extent.reaches_bytes:
            raise DamagedError(
                f"truncated: {shown} has {size_bytes:,} of {extent.reaches_bytes:,} bytes; "
                f"{printable(extent.name, 100)} is cut off"
            )
        yield file


def _is(item: object, class_name: str) -> bool:
    return isinstance(item, Record) and item.symbol.full_name == _CLASSES + class_name


def _pairs(metadata: Record, attribute: str) -> Iterable[tuple[Any, Any]]:
    found = metadata.attribute(attribute)
    if isinstance(found, inert.Mapping):
        return found.pairs()
    if found is None and attribute == "storage_data":
        return ()
    raise DamagedError(f"damaged: its metadata has no {attribute}")
