"""Finds, extends and holds hardware; never a formula.

A machine is asked for by name, by one of its aliases, or by the path of a YAML file. Names ignore case and take ``-``
for ``_``. They are looked up among the specs handed in as objects, then in the user's folders in their order, then
among the built-in ones; so a user's ``h100.yaml`` replaces the built-in machine, and may extend it:

    name: our_h100
    description: H100 nodes behind our own switches
    extends: h100
    fabric:
      nic_gbit_per_s_per_device: {value: 200, source: "ib_write_bw between two nodes, 2026-03-01"}

Mappings are merged key by key, except a quoted number, which is replaced together with its source; ``null`` removes
what was inherited. A machine's name, description, aliases and price are its own. ``calibration: {like: h100}`` takes
another machine's fitted constants and says that they were not measured on this one.

Only the files that a machine needs are read in full; of the others just the name and the aliases.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Any

import yaml

from dlcalc.errors import Problem, SpecError, UnknownNameError, nearest
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.load import config_dir, load_yaml, parse_spec, spec_error
from dlcalc.specs.marked_yaml import Marks

ENVIRONMENT_VARIABLE = "DLCALC_HARDWARE_PATH"
SUFFIXES = (".yaml", ".yml")
OWN_KEYS = frozenset({"name", "description", "aliases", "price", "extends"})
"""What a machine does not inherit."""


@dataclass(frozen=True)
class HardwareRow:
    """A line of the table of all machines; None where the machine does not have it."""

    name: str
    aliases: tuple[str, ...]
    hbm_gib: float
    bf16_tflops: float | None
    fp8_tflops: float | None
    hbm_tb_per_s: float
    n_devices_per_node: int
    link_gb_per_s: float
    nic_gbit_per_s: float
    usd_per_device_hour: float | None
    measured: bool
    description: str


@dataclass(frozen=True)
class HardwareRegistry:
    """Every machine that a study can name: injected objects, the user's folders, the built-in files."""

    folders: Sequence[Path] = ()
    """The user's, searched in this order before the built-in ones."""
    specs: Sequence[HardwareSpec] = ()
    """Machines made by a program; they win over every file."""

    def with_specs(self, *specs: HardwareSpec) -> HardwareRegistry:
        """This registry with ``specs`` added; the latest of equal names wins."""
        return replace(self, specs=(*specs, *self.specs))

    def load(self, name_or_path: str | Path) -> HardwareSpec:
        """The machine called so, or described by the YAML file there."""
        if is_file_name(name_or_path):
            return _Reader(self).read(Path(name_or_path))
        name = str(name_or_path)
        for spec in self.specs:
            if _plain(name) in map(_plain, (spec.name, *spec.aliases)):
                return spec
        file = next(self.files(name), None)
        if file is None:
            raise self.unknown(name)
        return _Reader(self).read(file)

    def names(self, *, aliases: bool = False) -> list[str]:
        """What can be loaded, sorted; with ``aliases``, by every name there is."""
        found = {spec.name for spec in self.specs}
        if aliases:
            found.update(chain.from_iterable(spec.aliases for spec in self.specs))
        for folder in self._all_folders():
            for entry in _index(folder):
                found.update(entry.names if aliases else entry.names[:1])
        return sorted(found)

    def rows(self) -> list[HardwareRow]:
        """One row per machine, sorted by name."""
        return [_row(self.load(name)) for name in self.names()]

    def unknown(self, name: str) -> UnknownNameError:
        """The error that suggests an alias if one is near, and otherwise lists the machines by their own names."""
        aliases = self.names(aliases=True)
        return UnknownNameError("hardware", name, aliases if nearest(name, aliases) else self.names())

    def files(self, name: str) -> Iterator[Path]:
        """Every file of that name, the one to take first."""
        for folder in self._all_folders():
            for entry in _index(folder):
                if _plain(name) in map(_plain, entry.names):
                    yield entry.file

    def _all_folders(self) -> tuple[Path, ...]:
        return (*self.folders, config_dir())


def load_hardware(name_or_path: str | Path, *, search_path: Sequence[Path] = ()) -> HardwareSpec:
    """The machine called so, or described by the YAML file there; ``search_path`` are the user's folders."""
    return HardwareRegistry(tuple(search_path)).load(name_or_path)


def known_hardware(search_path: Sequence[Path] = ()) -> list[str]:
    """The names that ``load_hardware`` takes, without aliases."""
    return HardwareRegistry(tuple(search_path)).names()


def hardware_rows(search_path: Sequence[Path] = ()) -> list[HardwareRow]:
    """The table of all machines."""
    return HardwareRegistry(tuple(search_path)).rows()


def hardware_search_path(options: Iterable[Path], environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The user's folders: those given on the command line, then those in DLCALC_HARDWARE_PATH (split by colons)."""
    listed = environment.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep)
    return (*options, *(Path(folder) for folder in listed if folder))


def is_file_name(name_or_path: str | Path) -> bool:
    """Whether this asks for a file rather than for a name; ``p5.48xlarge`` is a name."""
    return isinstance(name_or_path, Path) or os.sep in name_or_path or name_or_path.lower().endswith(SUFFIXES)


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def _row(spec: HardwareSpec) -> HardwareRow:
    peaks = {precision: peak.value for precision, peak in spec.device.peak_tflops.items()}
    return HardwareRow(
        name=spec.name,
        aliases=spec.aliases,
        hbm_gib=(spec.device.usable_hbm_gib or spec.device.hbm_gib).value,
        bf16_tflops=peaks.get("bf16"),
        fp8_tflops=peaks.get("fp8"),
        hbm_tb_per_s=spec.device.hbm_tb_per_s.value,
        n_devices_per_node=spec.node.n_devices,
        link_gb_per_s=spec.node.link_gb_per_s.value,
        nic_gbit_per_s=spec.fabric.nic_gbit_per_s_per_device.value,
        usd_per_device_hour=spec.price.usd_per_device_hour if spec.price else None,
        measured=spec.calibration.measured,
        description=spec.description,
    )


# ---- which file has which names


@dataclass(frozen=True)
class _Entry:
    """A hardware file and the names it answers to, its own first."""

    file: Path
    names: tuple[str, ...]


def _index(folder: Path) -> tuple[_Entry, ...]:
    """The hardware files of a folder; one name in two of them is an error."""
    if not folder.is_dir():
        raise SpecError(folder, (Problem(0, "", "no such folder of hardware files"),))
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return _index_of(tuple((file, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _index_of(stamped_files: tuple[tuple[Path, int], ...]) -> tuple[_Entry, ...]:
    entries = tuple(_Entry(file, names) for file, _ in stamped_files if (names := _names_in(file)))
    owner: dict[str, Path] = {}
    for entry in entries:
        for name in dict.fromkeys(map(_plain, entry.names)):
            if name in owner:
                problem = f"{name} is also a name of {owner[name].name} in the same folder; a name must be unique"
                key = "name" if name == _plain(entry.names[0]) else "aliases"
                raise spec_error(entry.file, load_yaml(entry.file)[1], (key,), problem)
            owner[name] = entry.file
    return entries


def _names_in(file: Path) -> tuple[str, ...]:
    """Name and aliases of a hardware file, from as little of it as possible; none if it describes something else."""
    name, is_hardware = "", False
    aliases: tuple[str, ...] = ()
    try:
        with file.open("rb") as stream:
            for key, value in _top_level(stream):
                if key == "name":
                    name = str(value)
                elif key == "aliases" and isinstance(value, list):
                    aliases = tuple(value)
                is_hardware = is_hardware or key in {"device", "extends"}
                if name and aliases and is_hardware:
                    break
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return (file.stem,)  # whoever asks for it is told what is wrong with it
    return tuple(dict.fromkeys((name or file.stem, *aliases))) if is_hardware else ()


def _top_level(stream: IO[bytes]) -> Iterator[tuple[str, object]]:
    """Keys of a document's outermost mapping, in order, with their text or list of texts; None for a mapping."""
    depth = 0
    key: str | None = None
    items: list[str] = []
    for event in yaml.parse(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        match event:
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                depth += 1
                items = []
                if depth == 2 and key is not None and isinstance(event, yaml.MappingStartEvent):
                    yield key, None
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                depth -= 1
                if depth == 1 and key is not None:
                    if isinstance(event, yaml.SequenceEndEvent):
                        yield key, items
                    key = None
            case yaml.ScalarEvent() if depth == 1 and key is None:
                key = event.value
            case yaml.ScalarEvent() if depth == 1 and key is not None:
                yield key, event.value
                key = None
            case yaml.ScalarEvent() if depth == 2:
                items.append(event.value)
            case _:
                pass


# ---- one file on top of another

Tree = dict[Hashable, Any]

_LINES = 10**9
"""The lines of the n-th file read are counted from n times this, so that merged marks still know their file."""


@dataclass
class _Reader:
    """Reads one machine and what it takes from others."""

    registry: HardwareRegistry
    read_files: list[Path] = field(default_factory=list)
    named_on: dict[Path, int] = field(default_factory=dict)
    """Line of the file that was asked for through which another file came in."""

    def read(self, file: Path) -> HardwareSpec:
        data, marks = self._resolved(file, ())
        try:
            return parse_spec(data, HardwareSpec, file=file, marks=marks)
        except SpecError as error:
            raise self._placed(error) from None

    def _resolved(self, file: Path, below: tuple[Path, ...]) -> tuple[Tree, Marks]:
        """All that ``file`` says, inherits and takes from a like machine; ``below`` are the files that led here."""
        data, marks = self._extended(file, below)
        calibration = data.get("calibration")
        if not isinstance(calibration, dict) or "like" not in calibration:
            return data, marks
        inner, path = _inner(marks, "calibration"), ("calibration", "like")
        here = self.read_files[inner.line // _LINES]
        like, like_marks = self._other(here, _local(marks), path, calibration["like"], (*below, file))
        fitted = like.get("calibration")
        if not isinstance(fitted, dict):
            return data, marks  # the schema says what is missing
        fitted = _of_a_node_like(data.get("node"), fitted)
        told = {
            "measured": False,
            "provenance": f"not measured on this machine; as on {like.get('name')}: {fitted.get('provenance')}",
            **{key: value for key, value in calibration.items() if key != "like"},
        }
        told_marks = Marks(inner.line, inner.key_lines, {**dict.fromkeys(told, inner), **inner.inner})
        taken = _merged(told, told_marks, fitted, _inner(like_marks, "calibration"))
        return (
            {**data, "calibration": taken[0]},
            Marks(marks.line, marks.key_lines, {**marks.inner, "calibration": taken[1]}),
        )

    def _extended(self, file: Path, below: tuple[Path, ...]) -> tuple[Tree, Marks]:
        data, plain_marks = load_yaml(file)
        if not isinstance(data, dict):
            raise spec_error(file, plain_marks, (), "must be a mapping (key: value) that describes a machine")
        marks = _shifted(plain_marks, len(self.read_files) * _LINES)
        self.read_files.append(file)
        if "extends" not in data:
            return data, marks
        base, base_marks = self._other(file, plain_marks, ("extends",), data["extends"], (*below, file))
        own = {key: value for key, value in data.items() if key != "extends"}
        return _merged(own, marks, *_without(OWN_KEYS, base, base_marks))

    def _other(
        self, file: Path, marks: Marks, path: tuple[str, ...], name: object, below: tuple[Path, ...]
    ) -> tuple[Tree, Marks]:
        """What the machine ``name`` says in full, for ``file``, which names it at ``path``."""
        if not isinstance(name, str):
            raise spec_error(file, marks, path, "must be the name of a machine")
        candidates = [file.parent / name] if is_file_name(name) else list(self.registry.files(name))
        if not candidates:
            raise spec_error(file, marks, path, str(self.registry.unknown(name)))
        fresh = [candidate for candidate in candidates if candidate not in below]
        if not fresh:
            way = " -> ".join(step.stem for step in (*below, candidates[0]))
            raise spec_error(file, marks, path, f"the machines take from one another in a circle: {way}")
        self.named_on[fresh[0]] = self.named_on.get(file, marks.line_of(path))
        if path == ("extends",):
            return self._extended(fresh[0], below)
        return self._resolved(fresh[0], below)

    def _placed(self, error: SpecError) -> SpecError:
        """``error`` with the file and line of every problem, which may be those of an extended machine."""
        asked = self.read_files[0]
        files = [self.read_files[problem.line // _LINES] for problem in error.problems]
        blamed = asked if asked in files else files[0]
        problems = tuple(
            Problem(problem.line % _LINES, problem.field, problem.text)
            if file == blamed
            else Problem(self.named_on[file], problem.field, f"{problem.text} ({file}:{problem.line % _LINES})")
            for file, problem in zip(files, error.problems, strict=True)
        )
        return SpecError(blamed, problems, error.n_more)


def _of_a_node_like(node: object, fitted: Tree) -> Tree:
    """``fitted`` without what the lender's switch does, where the borrower's reduces nothing."""
    rates = fitted.get("node_collectives")
    if (isinstance(node, dict) and node.get("in_network_reduction")) or not isinstance(rates, dict):
        return fitted
    plain = {
        operation: {key: value for key, value in of_operation.items() if not str(key).startswith("in_network_")}
        if isinstance(of_operation, dict)
        else of_operation
        for operation, of_operation in rates.items()
    }
    return {**fitted, "node_collectives": plain}


def _merged(data: Tree, marks: Marks, base: Tree, base_marks: Marks) -> tuple[Tree, Marks]:
    """``base`` with what ``data`` says; neither is changed."""
    merged = {key: value for key, value in base.items() if key not in data}
    key_lines = {**base_marks.key_lines, **marks.key_lines}
    inner = {**base_marks.inner, **marks.inner}
    for key, value in data.items():
        if value is None:
            continue
        if _can_merge(value, base.get(key)):
            merged[key], inner[key] = _merged(value, _inner(marks, key), base[key], _inner(base_marks, key))
        else:
            merged[key] = value
    return merged, Marks(marks.line, key_lines, inner)


def _without(keys: frozenset[str], data: Tree, marks: Marks) -> tuple[Tree, Marks]:
    def left(mapping: dict[Hashable, Any]) -> dict[Hashable, Any]:
        return {key: value for key, value in mapping.items() if key not in keys}

    return left(data), Marks(marks.line, left(marks.key_lines), left(marks.inner))


def _inner(marks: Marks, key: Hashable) -> Marks:
    return marks.inner.get(key) or Marks(marks.line)  # JSON may come without marks


def _can_merge(value: object, base: object) -> bool:
    """Whether both are mappings of several things; a quoted number and ``{like: ...}`` are one thing."""
    if not isinstance(value, dict) or not isinstance(base, dict):
        return False
    return not {"value", "source", "like"} & value.keys()


def _shifted(marks: Marks, lines: int) -> Marks:
    return Marks(
        marks.line + lines,
        {key: line + lines for key, line in marks.key_lines.items()},
        {key: _shifted(inner, lines) for key, inner in marks.inner.items()},
    )


def _local(marks: Marks) -> Marks:
    """``marks`` with the lines of their files."""
    return Marks(
        marks.line % _LINES,
        {key: line % _LINES for key, line in marks.key_lines.items()},
        {key: _local(inner) for key, inner in marks.inner.items()},
    )
