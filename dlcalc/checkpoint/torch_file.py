"""Files that torch.save writes: zip archives since PyTorch 1.6, and the pickles in a row of before.

Of a zip, the member ``data.pkl`` is read, and of every other only where it lies. An old file is pickles of a magic
number, a version, the machine, the object and the list of its storages, and then those: each its number of elements and
its bytes, of which only the numbers are read. Neither needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

from dlcalc.checkpoint import inert
from dlcalc.checkpoint.callables import storage_of
from dlcalc.checkpoint.contents import DTYPE_BITS, Contents
from dlcalc.checkpoint.faults import DamagedError
from dlcalc.checkpoint.flatten import flatten
from dlcalc.checkpoint.inert import StorageRef
from dlcalc.checkpoint.source import Source
from dlcalc.checkpoint.unpickler import unpickle
from dlcalc.checkpoint.zip_directory import Member, open_member, read_directory

ZIP_START = b"PK\3\4"
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ALIGNMENT_BYTES = 8


class _Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, StorageRef] = {}

    def find(self, persistent_id: object) -> StorageRef:
        found = storage_of(persistent_id)
        known = self.by_key.setdefault(found.key, found)
        if known.size_bytes != found.size_bytes:
            raise DamagedError("damaged: its pickle gives two sizes of one storage")
        return found


def read_torch_zip(file: BinaryIO, file_bytes: int) -> Contents:
    """What a file of torch.save contains."""
    members = read_directory(file, file_bytes)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if not pickles:
        raise DamagedError("a zip file without data.pkl; torch.save did not write it")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in members:
        raise DamagedError("a TorchScript program, not a checkpoint; torch.save(module.state_dict()) writes one")
    storages = _Storages()
    root = unpickle(open_member(file, members[pickles[0]]), persistent=storages.find)
    _check_members(storages.by_key, members, prefix)
    return flatten(root)


def _check_members(storages: Mapping[str, StorageRef], members: Mapping[str, Member], prefix: str) -> None:
    for key, storage in storages.items():
        member = members.get(f"{prefix}data/{key}")
        if member is None:
            raise DamagedError(f"damaged: the storage data/{key} is missing")
        if member.size_bytes < storage.size_bytes:
            raise DamagedError(
                f"damaged: the storage data/{key} has {member.size_bytes:,} of its {storage.size_bytes:,} bytes"
            )


def read_torch_legacy(file: BinaryIO, file_bytes: int) -> Contents:
    """What a file of torch.save of before 1.6 contains."""
    source = Source(file, 0, file_bytes)
    if unpickle(source) != _MAGIC_NUMBER:
        raise DamagedError("a pickle, but not of torch.save")
    version = unpickle(source)
    if version != _PROTOCOL_VERSION:
        raise DamagedError(f"damaged: its version is not {_PROTOCOL_VERSION}")
    machine = unpickle(source)
    little = not isinstance(machine, inert.Mapping) or machine.get("little_endian") is not False
    storages = _Storages()
    root = unpickle(source, persistent=storages.find)
    keys = unpickle(source)
    _check_data(source, keys, storages.by_key, little_endian=little)
    return flatten(root)


def _check_data(source: Source, keys: object, storages: Mapping[str, StorageRef], *, little_endian: bool) -> None:
    """That after the pickles every storage is there, whole."""
    if not isinstance(keys, list) or set(storages) != {key for key in keys if isinstance(key, str)}:
        raise DamagedError("damaged: the storages listed are not those of its tensors")
    for key in keys:
        storage = storages[key]
        if source.left_bytes < _ALIGNMENT_BYTES:
            raise DamagedError(f"truncated: the storage {key} is missing")
        n_elements = int.from_bytes(source.take(8), "little" if little_endian else "big", signed=True)
        if n_elements * DTYPE_BITS[storage.dtype] != storage.size_bytes * 8:
            raise DamagedError(f"damaged: the storage {key} has not the size that its tensors say")
        if source.left_bytes < storage.size_bytes:
            missing = storage.size_bytes - source.left_bytes
            raise DamagedError(f"truncated: the storage {key} lacks {missing:,} of its {storage.size_bytes:,} bytes")
        source.skip(storage.size_bytes)
