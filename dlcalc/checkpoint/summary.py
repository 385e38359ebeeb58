"""What a checkpoint adds up to: totals, dtypes, ties, and a tree of groups by the prefixes of names.

Tensors that are one memory (tied weights) are counted once: for the first name, and as nothing for the others, so
that groups add up to totals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlcalc.checkpoint.contents import Checkpoint, Tensor
from dlcalc.checkpoint.roles import ROLES, Role, parts_of, role_of

_MOST_DIGITS = 18


@dataclass(slots=True)
class Count:
    """Sums over some tensors."""

    tensors: int = 0
    parameters: int = 0
    size_bytes: int = 0

    def add(self, other: Count) -> None:
        self.tensors += other.tensors
        self.parameters += other.parameters
        self.size_bytes += other.size_bytes

    def as_dict(self) -> dict[str, int]:
        return {"tensors": self.tensors, "parameters": self.parameters, "bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor with what was found out about it."""

    tensor: Tensor
    role: Role
    kind: str
    tied_to: str = ""
    """The first tensor with the same memory, if this is not it."""

    @property
    def counted(self) -> Count:
        return Count(1) if self.tied_to else Count(1, self.tensor.parameters, self.tensor.size_bytes)

    def as_dict(self) -> dict[str, Any]:
        tensor = self.tensor
        return {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "parameters": tensor.parameters,
            "bytes": tensor.size_bytes,
            "role": self.role,
            "kind": self.kind or None,
            "storage": tensor.storage or None,
            "tied_to": self.tied_to or None,
        }


@dataclass(slots=True)
class Group:
    """Tensors whose names start alike. A leaf is one tensor."""

    name: str
    count: Count = field(default_factory=Count)
    dtypes: dict[str, int] = field(default_factory=dict)
    """Tensors by dtype."""
    inner: dict[str, Group] = field(default_factory=dict)
    entry: Entry | None = None

    def as_dict(self, depth: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, **self.count.as_dict(), "dtypes": self.dtypes}
        if self.entry is not None:
            found["shape"] = list(self.entry.tensor.shape)
        if self.inner and depth != 0:
            found["groups"] = [group.as_dict(None if depth is None else depth - 1) for group in self.inner.values()]
        return found


@dataclass(frozen=True)
class Summary:
    """Everything that ckpt-summarize prints of a checkpoint."""

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]
    total: Count
    by_role: dict[Role, Count]
    by_dtype: dict[str, Count]
    by_kind: dict[str, Count]
    """Of the optimizer's state."""
    optimizer: str
    """The optimizer that its state looks like; empty if there is none."""
    ties: tuple[tuple[str, ...], ...]
    """Names of one memory, all of it."""
    shared: tuple[tuple[str, ...], ...]
    """Names of different parts of one memory."""
    unused_bytes: int
    """Of the storages in the file, what no tensor is."""
    pattern: str | None

    def as_dict(self, depth: int | None) -> dict[str, Any]:
        contents = self.checkpoint.contents
        return {
            "path": str(self.checkpoint.path),
            "format": self.checkpoint.format,
            "files": self.checkpoint.n_files,
            "file_bytes": self.checkpoint.files_bytes,
            "filter": self.pattern,
            **self.total.as_dict(),
            "model_parameters": self.by_role["model"].parameters if "model" in self.by_role else 0,
            "dtypes": {dtype: count.as_dict() for dtype, count in self.by_dtype.items()},
            "roles": {role: count.as_dict() for role, count in self.by_role.items()},
            "optimizer": self.optimizer or None,
            "optimizer_state": {kind: count.as_dict() for kind, count in self.by_kind.items()},
            "tied": [list(names) for names in self.ties],
            "shared_storages": [list(names) for names in self.shared],
            "unused_storage_bytes": self.unused_bytes,
            "groups": {role: tree(self.entries, role).as_dict(depth) for role in self.by_role},
            "tensor_list": [entry.as_dict() for entry in self.entries],
            "values": [{"name": value.name, "type": value.type, "text": value.text} for value in contents.values],
            "notes": list(contents.notes),
        }


def filtered(checkpoint: Checkpoint, pattern: re.Pattern[str] | None) -> Checkpoint:
    """``checkpoint`` with only the names in which ``pattern`` is found."""
    if pattern is None:
        return checkpoint
    contents = checkpoint.contents
    kept = replace(
        contents,
        tensors=tuple(tensor for tensor in contents.tensors if pattern.search(tensor.name)),
        values=tuple(value for value in contents.values if pattern.search(value.name)),
    )
    return replace(checkpoint, contents=kept)


def summarize(checkpoint: Checkpoint, pattern: re.Pattern[str] | None = None) -> Summary:
    """Totals of ``checkpoint``, or of its tensors in whose names ``pattern`` is found."""
    whole, checkpoint = checkpoint, filtered(checkpoint, pattern)
    tensors = checkpoint.contents.tensors
    entries = tuple(_entries(tensors))
    same_memory, same_storage = _memory(tensors)
    total = Count()
    by_role: dict[Role, Count] = {}
    by_dtype: dict[str, Count] = {}
    by_kind: dict[str, Count] = {}
    for entry in entries:
        counted = entry.counted
        total.add(counted)
        by_role.setdefault(entry.role, Count()).add(counted)
        by_dtype.setdefault(entry.tensor.dtype, Count()).add(counted)
        if entry.role == "optimizer":
            by_kind.setdefault(entry.kind, Count()).add(counted)
    return Summary(
        checkpoint=checkpoint,
        entries=entries,
        total=total,
        by_role={role: by_role[role] for role in ROLES if role in by_role},
        by_dtype=dict(sorted(by_dtype.items(), key=lambda item: -item[1].size_bytes)),
        by_kind=dict(sorted(by_kind.items(), key=lambda item: -item[1].size_bytes)),
        optimizer=_optimizer(by_kind),
        ties=same_memory,
        shared=same_storage,
        unused_bytes=_unused_bytes(whole),
        pattern=pattern.pattern if pattern else None,
    )


def _entries(tensors: Iterable[Tensor]) -> Iterator[Entry]:
    first: dict[View, str] = {}
    for tensor in tensors:
        owner = first.setdefault(_view(tensor), tensor.name) if _has_memory(tensor) else tensor.name
        yield Entry(tensor, *role_of(tensor), tied_to=owner if owner != tensor.name else "")


View = tuple[str, str, tuple[int, ...], tuple[tuple[int, ...], int]]


def _view(tensor: Tensor) -> View:
    """Equal for two tensors that are the same memory."""
    return tensor.storage, tensor.dtype, tensor.shape, tensor.place


def _has_memory(tensor: Tensor) -> bool:
    return bool(tensor.storage and tensor.parameters)


def _memory(tensors: Sequence[Tensor]) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Names that are the same memory, and names that are different parts of one storage."""
    by_storage: dict[str, dict[View, list[str]]] = {}
    for tensor in filter(_has_memory, tensors):
        by_storage.setdefault(tensor.storage, {}).setdefault(_view(tensor), []).append(tensor.name)
    ties = [tuple(dict.fromkeys(names)) for views in by_storage.values() for names in views.values()]
    shared = [tuple(names[0] for names in views.values()) for views in by_storage.values() if len(views) > 1]
    return tuple(names for names in ties if len(names) > 1), tuple(shared)


def _unused_bytes(checkpoint: Checkpoint) -> int:
    """Of storages, what is left when each view is counted once; a slice is saved with all that it is a slice of."""
    used: Counter[str] = Counter()
    views = {_view(tensor): tensor.size_bytes for tensor in checkpoint.contents.tensors if tensor.storage}
    for (storage, *_), size_bytes in views.items():
        used[storage] += size_bytes
    return sum(max(0, size - used[storage]) for storage, size in checkpoint.contents.storages.items())


def _optimizer(kinds: Iterable[str]) -> str:
    """The optimizer that leaves such state."""
    present = set(kinds)
    for kind, name in (
        ("second moment, rows (Adafactor)", "Adafactor"),
        ("infinity norm (Adamax)", "Adamax"),
        ("momentum product (NAdam)", "NAdam"),
        ("largest second moment (AMSGrad)", "Adam with AMSGrad"),
        ("second moment (Adam)", "Adam or AdamW"),
        ("second moment (8-bit)", "8-bit Adam"),
        ("squared average (RMSprop, Adadelta)", "RMSprop or Adadelta"),
        ("momentum (SGD, Muon)", "SGD with momentum, or Muon"),
        ("first moment (Adam)", "Lion, or Adam in part"),
    ):
        if kind in present:
            return name
    return "unknown" if present else ""


# ---- the tree


def tree(entries: Iterable[Entry], role: Role) -> Group:
    """The tensors of one role by the parts of their names, in the order in which they first appear."""
    root = Group(role)
    for entry in entries:
        if entry.role != role:
            continue
        group = root
        _put(group, entry)
        *outer, last = parts_of(entry.tensor.name)
        for part in outer:
            group = group.inner.setdefault(part, Group(part))
            _put(group, entry)
        leaf = group.inner.setdefault(last, Group(last))
        if leaf.entry is not None:  # two names of the same parts, such as a.b and a/b
            last = f"{last} ({len(group.inner) + 1})"
            leaf = group.inner.setdefault(last, Group(last))
        _put(leaf, entry)
        leaf.entry = entry
    _in_order(root)
    return root


def _put(group: Group, entry: Entry) -> None:
    group.count.add(entry.counted)
    group.dtypes[entry.tensor.dtype] = group.dtypes.get(entry.tensor.dtype, 0) + 1


def _in_order(group: Group) -> None:
    """Numbered groups by number, the others where they first appeared."""
    waiting = [group]
    while waiting:
        current = waiting.pop()
        names = list(current.inner)
        numbered = [name for name in names if _is_number(name)]
        if len(numbered) > 1:
            place = {name: (names.index(numbered[0]), int(name)) for name in numbered}
            plain = {name: (position, -1) for position, name in enumerate(names) if name not in place}
            order = {**plain, **place}
            current.inner = {name: current.inner[name] for name in sorted(names, key=order.__getitem__)}
        waiting.extend(current.inner.values())


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS


@dataclass(frozen=True, slots=True)
class Alike:
    """Neighbouring groups that differ in nothing but a number in their name, as one."""

    name: str
    groups: tuple[Group, ...]
    count: Count
    dtypes: tuple[str, ...]

    @property
    def n_groups(self) -> int:
        return len(self.groups)


def alike(groups: Iterable[Group]) -> list[Alike]:
    """Neighbours of equal structure and shapes joined, if their numbers are: ``0`` to ``31`` become ``0-31``."""
    runs: list[list[Group]] = []
    expected: object = None
    for group in groups:
        stem, number = _numbered(group.name)
        structure = _structure(group)
        if runs and number is not None and (stem, number, structure) == expected:
            runs[-1].append(group)
        else:
            runs.append([group])
        expected = None if number is None else (stem, number + 1, structure)
    return [_joined(run) for run in runs]


def _numbered(name: str) -> tuple[str, int | None]:
    """A name without the number at its end, and that number."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :]) if 0 < len(name) - len(stem) <= _MOST_DIGITS else None


def _structure(group: Group) -> object:
    """What two groups must share to be shown as one; hashing it once per level keeps it small."""
    tensor = group.entry.tensor if group.entry else None
    own = (tensor.shape, tensor.dtype, bool(group.entry and group.entry.tied_to)) if tensor else None
    return hash((own, tuple((name, _structure(inner)) for name, inner in group.inner.items())))


def _joined(run: Sequence[Group]) -> Alike:
    count = Count()
    for group in run:
        count.add(group.count)
    first, last = run[0].name, run[-1].name
    stem, _ = _numbered(first)
    name = first if len(run) == 1 else f"{first}-{last[len(stem) :]}"
    dtypes: Counter[str] = Counter()
    for group in run:
        dtypes.update(group.dtypes)
    return Alike(name, tuple(run), count, tuple(dtype for dtype, _ in dtypes.most_common()))
