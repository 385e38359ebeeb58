"""What a result directory holds, and what made it.

A study's directory is a Parquet dataset plus files whose names start with an underscore, which every
Parquet reader skips:

    results/<study>/
        s000-000000.parquet     scenario 0, shard 0: complete, or not there
        s000-000001.parquet
        _manifest.json          what made the study, and every finished shard with its counts and hash
        _summary.json           what was printed: the object of ``--json``
        _placed/                the best plans as placed on a fabric, where that was asked for (results.placed)

A file appears under its name only when it is whole (written under a hidden name, then renamed), and counts only
once the manifest names it. So whatever interrupts a search, what is finished can be read, and a second run of the
same study goes on from there. Two runs are the same study when space, resolved scenarios, settings and versions
are the same; the files know nothing of block sizes or workers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, EFBIG, ENOSPC, EPERM, EROFS
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from dlcalc import __version__
from dlcalc.errors import ResultError
from dlcalc.results.schema import SCHEMA_VERSION
from dlcalc.results.storage import Location, names_in, partial_of, publish
from dlcalc.specs.base import Spec
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

MANIFEST_NAME = "_manifest.json"
SUMMARY_NAME = "_summary.json"
LOCK_NAME = ".lock"
PLACED_FOLDER = "_placed"
PLACED_TABLES = ("plans.parquet", "placements.parquet")

_SHARD_NAME = re.compile(r"s\d{3,}-\d{6,}\.parquet")
_PARTIAL_NAME = re.compile(r"\.(s\d{3,}-\d{6,}\.parquet|_manifest\.json|_summary\.json)\..*\.partial")
_MAX_DIFFERENCES = 12

Status = Literal["running", "complete"]
Settings = Mapping[str, str | int | float | bool | None]


class ScenarioOrigin(Spec):
    """What made the rows of one scenario: everything needed to estimate them again."""

    name: str
    devices: PositiveInt
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    space: dict[str, Any] = Field(default_factory=dict)
    """The resolved knobs and constraints, as JSON would hold them."""

    def digest(self) -> ScenarioDigest:
        """Hashes of the parts, to tell which of them differs."""
        parts = {part: _sha256(text) for part, text in self._parts().items()}
        return ScenarioDigest(name=self.name, devices=self.devices, parts=parts)

    def _parts(self) -> dict[str, str]:
        specs = {"model": self.model, "hardware": self.hardware, "recipe": self.recipe}
        texts = {part: json.dumps(spec.model_dump(mode="json"), sort_keys=True) for part, spec in specs.items()}
        return texts | {"space": json.dumps(self.space, sort_keys=True)}


class StudyOrigin(Spec):
    """What made a study: the space file as written, the choices of the command, and the resolved scenarios."""

    study: str
    space_text: str
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Choices that change what is written, such as ``keep``."""
    scenarios: Annotated[tuple[ScenarioOrigin, ...], Field(min_length=1)]
    dlcalc_version: str = __version__

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [scenario.name for scenario in self.scenarios]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two scenarios are named {name!r}; every scenario needs its own name")
        return self


class ScenarioDigest(Spec):
    """A scenario's name and the hashes of what made it."""

    name: str
    devices: PositiveInt
    parts: dict[str, str]


class ShardRecord(Spec):
    """A finished file: the plans it stands for and the rows it holds."""

    scenario: NonNegativeInt
    shard: NonNegativeInt
    start: NonNegativeInt
    stop: NonNegativeInt
    """Plan indices [start, stop) were evaluated."""
    file: Annotated[str, Field(pattern=rf"^{_SHARD_NAME.pattern}$")]
    n_rows: NonNegativeInt
    n_bytes: PositiveInt
    sha256: str
    n_plans: NonNegativeInt
    n_fit: NonNegativeInt
    refused: dict[str, int] = Field(default_factory=dict)
    state: dict[str, Any] = Field(default_factory=dict)
    """What the search needs to go on without reading the rows (its leaders, the nearest misses)."""

    @property
    def key(self) -> tuple[int, int]:
        return self.scenario, self.shard


class TableRecord(Spec):
    """A finished table that is not a shard."""

    n_rows: NonNegativeInt
    n_bytes: PositiveInt
    sha256: str


class PlacedRecord(Spec):
    """That the best plans were placed on a fabric, and what with."""

    topology: str
    fabric_sha256: str
    settings: dict[str, str | int | float]
    plans: TableRecord
    placements: TableRecord

    @property
    def tables(self) -> dict[str, TableRecord]:
        """By file name."""
        return dict(zip(PLACED_TABLES, (self.plans, self.placements), strict=True))


class Manifest(Spec):
    """The state of a result directory."""

    format: Literal["dlcalc-study"] = "dlcalc-study"
    schema_version: int = SCHEMA_VERSION
    dlcalc_version: str
    study: str
    status: Status
    space_sha256: str
    space_text: str
    settings: dict[str, str | int | float | bool | None]
    scenarios: tuple[ScenarioDigest, ...]
    placed: PlacedRecord | None = None
    """Not part of what tells studies apart: rows do not depend on it."""
    shards: tuple[ShardRecord, ...] = ()

    @model_validator(mode="after")
    def _shards_are_told_apart(self) -> Self:
        keys = [shard.key for shard in self.shards]
        if len(set(keys)) < len(keys) or len({shard.file for shard in self.shards}) < len(keys):
            raise ValueError("the same shard is listed twice")
        if any(shard.scenario >= len(self.scenarios) for shard in self.shards):
            raise ValueError("a shard belongs to no scenario")
        return self

    @classmethod
    def of(cls, origin: StudyOrigin) -> Self:
        """The manifest of a study of which nothing is finished yet."""
        return cls(
            dlcalc_version=origin.dlcalc_version,
            study=origin.study,
            status="running",
            space_sha256=_sha256(origin.space_text),
            space_text=origin.space_text,
            settings=origin.settings,
            scenarios=tuple(scenario.digest() for scenario in origin.scenarios),
        )

    def with_shards(
        self, shards: Mapping[tuple[int, int], ShardRecord], status: Status, placed: PlacedRecord | None = None
    ) -> Self:
        """The same study with these shards finished, and its best plans placed."""
        ordered = tuple(shards[key] for key in sorted(shards))
        return self.model_copy(update={"shards": ordered, "status": status, "placed": placed})

    def text(self) -> str:
        """As JSON, one line per shard."""
        unused = {"placed"} if self.placed is None else set()  # so that what was not placed reads as it always did
        head = self.model_copy(update={"shards": ()}).model_dump_json(indent=1, exclude=unused)
        shards = ",\n  ".join(shard.model_dump_json() for shard in self.shards)
        return head.removesuffix("[]\n}") + f"[\n  {shards}\n ]\n}}\n"

    def differences(self, other: Manifest) -> list[str]:
        """Why ``other`` is not the same study, one line per difference; empty when it is."""
        lines = [
            f"{what}: {ours} there, {theirs} now"
            for what, ours, theirs in (
                ("study", self.study, other.study),
                ("dlcalc", self.dlcalc_version, other.dlcalc_version),
                ("schema", self.schema_version, other.schema_version),
            )
            if ours != theirs
        ]
        lines += _setting_differences(self.settings, other.settings)
        scenarios = _scenario_differences(self.scenarios, other.scenarios)
        if scenarios and self.space_sha256 != other.space_sha256:
            lines += _text_differences(self.space_text, other.space_text)
        return lines + scenarios


def _setting_differences(ours: Settings, theirs: Settings) -> list[str]:
    keys = sorted(ours.keys() | theirs.keys())
    return [f"{key}: {ours.get(key)} there, {theirs.get(key)} now" for key in keys if ours.get(key) != theirs.get(key)]


def _scenario_differences(ours: tuple[ScenarioDigest, ...], theirs: tuple[ScenarioDigest, ...]) -> list[str]:
    """Scenarios by position, because shards name them by position."""
    if [scenario.name for scenario in ours] != [scenario.name for scenario in theirs]:
        return [f"scenarios: {_names(ours)} there, {_names(theirs)} now"]
    lines = []
    for old, new in zip(ours, theirs, strict=True):
        changed = [part for part in old.parts if old.parts[part] != new.parts.get(part)]
        changed += [] if old.devices == new.devices else ["devices"]
        if changed:
            lines.append(f"scenario {new.name}: different {', '.join(changed)}")
    return lines


def _names(scenarios: tuple[ScenarioDigest, ...]) -> str:
    shown = ", ".join(scenario.name for scenario in scenarios[:4])
    return shown if len(scenarios) <= 4 else f"{shown} and {len(scenarios) - 4} more"


def _text_differences(ours: str, theirs: str) -> list[str]:
    """Changed lines of the space file, ``-`` there and ``+`` now."""
    lines = difflib.unified_diff(ours.splitlines(), theirs.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    left_out = len(changed) - _MAX_DIFFERENCES
    return changed[:_MAX_DIFFERENCES] + ([f"... and {left_out} more lines"] if left_out > 0 else [])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shard_name(scenario: int, shard: int) -> str:
    """File name of a shard; sorts in the order of the space."""
    return f"s{scenario:03d}-{shard:06d}.parquet"


def is_ours(name: str) -> bool:
    """Whether a result directory's file ``name`` is one that dlcalc writes."""
    fixed = (MANIFEST_NAME, SUMMARY_NAME, LOCK_NAME, PLACED_FOLDER)
    return name in fixed or bool(_SHARD_NAME.fullmatch(name) or is_partial(name))


def is_partial(name: str) -> bool:
    """Whether ``name`` is what an interrupted write leaves behind."""
    return bool(_PARTIAL_NAME.fullmatch(name))


def read_manifest(directory: Location) -> Manifest:
    """The manifest of a result directory; ``ResultError`` names what is wrong with it."""
    path = directory / MANIFEST_NAME
    try:
        names = names_in(directory)
    except FileNotFoundError as error:
        raise ResultError(f"{directory}: no such result directory") from error
    except NotADirectoryError as error:
        raise ResultError(f"{directory}: a file; a result is the directory that dlcalc-search wrote") from error
    except OSError as error:
        raise ResultError(f"{directory}: cannot be read ({error.strerror})") from error
    if MANIFEST_NAME not in names:
        raise ResultError(f"{directory}: not a result of dlcalc-search ({MANIFEST_NAME} is missing)")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != Manifest.model_fields["format"].default:
        raise ResultError(f"{path}: not the manifest of a dlcalc study")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path}: written by dlcalc {document.get('dlcalc_version')} with schema "
            f"{document.get('schema_version')}, but this is dlcalc {__version__} with schema "
            f"{SCHEMA_VERSION}; read it with the version that wrote it, or search again with --overwrite"
        )
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultError(f"{path}: damaged: {where}: {first['msg']}; search again with --overwrite") from error


def read_json(path: Location) -> Any:  # noqa: ANN401 - JSON is anything
    """A JSON file of a result directory."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: damaged: not JSON ({error}); search again with --overwrite") from error
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error


def write_text(path: Location, text: str, *, durable: bool) -> None:
    """Replace ``path`` by ``text`` in one step, so that a reader sees the old file or the new one.

    ``durable`` makes that hold for a power cut as well.
    """
    partial = partial_of(path)
    with disk_errors(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            publish(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink()


@contextmanager
def disk_errors(path: Location) -> Iterator[None]:
    """Whatever the file system answers, said in one line with what to do about it."""
    try:
        yield
    except OSError as error:
        raise ResultError(f"{path}: {_disk_problem(error)}") from error


def _disk_problem(error: OSError) -> str:
    kept = "what was finished is kept: run again with --resume"
    if error.errno in (ENOSPC, EDQUOT):
        return f"the disk is full; free some space ({kept}), or choose another place with -o"
    if error.errno == EFBIG:
        return f"the file would exceed the largest size allowed here ({kept}), or choose another place with -o"
    if error.errno in (EACCES, EPERM, EROFS):
        return f"cannot be written ({os.strerror(error.errno).lower()}); choose another place with -o"
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"cannot be written ({reason})"
