"""The directory at the end of a zip file, zip64 included: which members lie where. Only PyTorch's kind of zip.

Python's zipfile would do, but it reads a directory of any size into memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from dlcalc.checkpoint.faults import DamagedError
from dlcalc.checkpoint.source import Source

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY_BYTES = 200_000_000
MAX_INFLATED_BYTES = 64_000_000

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 65_535
_STORED, _DEFLATED = 0, 8
_ALL_ONES_16, _ALL_ONES_32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the zip."""

    header_at: int
    packed_bytes: int
    size_bytes: int
    method: int


def read_directory(file: BinaryIO, file_bytes: int) -> Mapping[str, Member]:
    """Every member of the zip, by name, in the order of the directory."""
    try:
        start, size, n_members = _directory_place(file, file_bytes)
        if n_members > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise DamagedError(f"it has {n_members:,} members, which no checkpoint needs")
        if start + size > file_bytes:
            raise _truncated()
        file.seek(start)
        return _members(file.read(size), n_members, file_bytes)
    except struct.error:
        raise DamagedError("damaged: its zip directory makes no sense") from None


def open_member(file: BinaryIO, member: Member) -> Source:
    """The bytes of ``member``, unpacked if they are packed."""
    file.seek(member.header_at)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise DamagedError("damaged: its zip directory points at no member")
    *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
    start = member.header_at + _LOCAL.size + name_bytes + extra_bytes
    if member.method == _STORED:
        return Source(file, start, start + member.size_bytes)
    if member.method != _DEFLATED:
        raise DamagedError(f"its members are packed by method {member.method}; PyTorch does not pack them")
    file.seek(start)
    unpacked = _inflated(file.read(min(member.packed_bytes, MAX_INFLATED_BYTES)))
    return Source(BytesIO(unpacked), 0, len(unpacked))


def _inflated(packed: bytes) -> bytes:
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_INFLATED_BYTES + 1)
    except zlib.error:
        raise DamagedError("damaged: a packed member does not unpack") from None
    if len(unpacked) > MAX_INFLATED_BYTES:
        raise DamagedError(
            f"it unpacks to more than {MAX_INFLATED_BYTES >> 20} MiB, which no checkpoint's pickle needs"
        )
    return unpacked


def _directory_place(file: BinaryIO, file_bytes: int) -> tuple[int, int, int]:
    """Where the directory starts, its bytes and its members."""
    tail_start = max(0, file_bytes - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read(file_bytes - tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise _truncated()
    _, _, _, _, n_members, size, start, _ = _END.unpack_from(tail, at)
    if n_members == _ALL_ONES_16 or _ALL_ONES_32 in (size, start):
        locator_at = tail_start + at - _END64_LOCATOR.size
        if locator_at >= 0:
            start, size, n_members = _directory_place64(file, locator_at, (start, size, n_members))
    return start, size, n_members


def _directory_place64(file: BinaryIO, locator_at: int, plain: tuple[int, int, int]) -> tuple[int, int, int]:
    file.seek(locator_at)
    signature, _, end64_at, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
    if signature != b"PK\6\7":
        return plain
    file.seek(end64_at)
    signature, *_, n_members, size, start = _END64.unpack(file.read(_END64.size))
    if signature != b"PK\6\6":
        raise DamagedError("damaged: its zip directory makes no sense")
    return start, size, n_members


def _members(directory: bytes, n_members: int, file_bytes: int) -> dict[str, Member]:
    members: dict[str, Member] = {}
    at = 0
    for _ in range(n_members):
        (signature, *_, method, _, _, _, packed, size, name_bytes, extra_bytes, comment_bytes, _, _, _, header_at) = (
            _MEMBER.unpack_from(directory, at)
        )
        if signature != b"PK\1\2":
            raise DamagedError("damaged: its zip directory makes no sense")
        name_at = at + _MEMBER.size
        extra_at = name_at + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if _ALL_ONES_32 in (packed, size, header_at):
            size, packed, header_at = _large(directory[extra_at : extra_at + extra_bytes], size, packed, header_at)
        if header_at + packed > file_bytes:
            raise _truncated()
        name = directory[name_at:extra_at].decode("utf-8", "backslashreplace")
        members[name] = Member(header_at, packed, size, method)
    return members


def _large(extra: bytes, *numbers: int) -> tuple[int, int, int]:
    """Size, packed size and place of a member, of which those that are all ones stand in its zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            n_given = numbers.count(_ALL_ONES_32)
            given = list(struct.unpack_from(f"<{n_given}Q", extra, at + 4))
            size, packed, header_at = (given.pop(0) if number == _ALL_ONES_32 else number for number in numbers)
            return size, packed, header_at
        at += 4 + length
    raise DamagedError("damaged: its zip directory makes no sense")


def _truncated() -> DamagedError:
    return DamagedError("truncated: it starts as a zip file and has no whole directory at its end")
