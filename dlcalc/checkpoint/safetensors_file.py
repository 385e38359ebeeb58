"""Safetensors: eight bytes of length, a JSON header that says all there is to know, and the data.

The header is checked as the format demands: no name twice, every tensor as many bytes as its shape and dtype take, no
gap and no overlap, and the file ends with the last tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from dlcalc.checkpoint.contents import Contents, Tensor, Value
from dlcalc.checkpoint.faults import DamagedError
from dlcalc.checkpoint.flatten import MAX_NAME
from dlcalc.utils.printable import printable, without_surrogates

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_CONTAINERS = 6_000_000
"""Objects and lists in a JSON document; a tensor takes three."""
_LENGTH_BYTES = 8

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F6_E2M3": "float6_e2m3",
    "F6_E3M2": "float6_e3m2",
    "F4": "float4_e2m1",
}


def starts_as_safetensors(start: bytes) -> bool:
    """Whether a file that starts so may be one."""
    return len(start) > _LENGTH_BYTES and start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_safetensors(file: BinaryIO, file_bytes: int) -> Contents:
    """What a safetensors file contains, by its header."""
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if file_bytes < _LENGTH_BYTES:
        raise DamagedError("truncated: too short for a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise DamagedError(f"damaged: it says that its header has {length:,} bytes; {MAX_HEADER_BYTES:,} are the most")
    if length > file_bytes - _LENGTH_BYTES:
        raise DamagedError(f"truncated: its header has {length:,} bytes, and the file only {file_bytes:,}")
    header = read_json_object(file.read(length), "its header")
    extra = header.pop("__metadata__", {})
    if not isinstance(extra, dict):
        raise DamagedError("damaged: __metadata__ in its header is no mapping")
    data_bytes = file_bytes - _LENGTH_BYTES - length
    tensors = _tensors(header, data_bytes)
    values = tuple(Value(f"__metadata__.{key[:MAX_NAME]}", "str", str(text)[:60]) for key, text in extra.items())
    return Contents(tensors, values)


def _tensors(header: Mapping[str, Any], data_bytes: int) -> tuple[Tensor, ...]:
    found: list[tuple[int, int, Tensor]] = []
    for name, entry in header.items():
        begin, end, tensor = _tensor(name, entry)
        found.append((begin, end, tensor))
    at = 0
    for begin, end, tensor in sorted(found, key=lambda item: item[:2]):
        if begin != at:
            what = "overlaps the one before" if begin < at else f"starts {begin - at:,} bytes after the one before ends"
            raise DamagedError(f"damaged: the data of {printable(tensor.name, 100)} {what}")
        at = end
    if at > data_bytes:
        raise DamagedError(f"truncated: it has {data_bytes:,} of {at:,} bytes of data")
    if at < data_bytes:
        raise DamagedError(f"damaged: {data_bytes - at:,} bytes follow its last tensor")
    return tuple(tensor for _, _, tensor in found)


def _tensor(name: str, entry: object) -> tuple[int, int, Tensor]:
    shown = printable(name, 100)
    if len(name) > MAX_NAME:
        raise DamagedError(f"damaged: a name of {len(name):,} characters in its header")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise DamagedError(f"damaged: {shown} has not dtype, shape and data_offsets in its header")
    if dtype not in _DTYPES:
        raise DamagedError(f"{shown} has an unknown dtype {printable(dtype, 40)!r}")
    if len(shape) > 64 or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise DamagedError(f"damaged: the shape of {shown} is none")
    tensor = Tensor(name, tuple(shape), _DTYPES[dtype])
    if not 0 <= begin <= end or end - begin != tensor.size_bytes:
        raise DamagedError(f"damaged: {shown} takes {tensor.size_bytes:,} bytes, and its header says {end - begin:,}")
    return begin, end, tensor


def read_json_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object out of a file, of bounded size and with no key twice."""
    if content.count(b"{") + content.count(b"[") > MAX_CONTAINERS:
        raise DamagedError(f"{what} holds more than a checkpoint needs")
    try:
        document = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"damaged: {what} is not JSON: {printable(str(error), 120)}") from None
    if not isinstance(document, dict):
        raise DamagedError(f"damaged: {what} is no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {without_surrogates(key): value for key, value in pairs}
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
