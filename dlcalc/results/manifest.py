"""What a result directory holds, and what made it.

A file appears under its name only when it is whole (written under a hidden name, then renamed), and counts only with a
record of what it holds: in the manifest, or in its own note until the manifest follows. So whatever interrupts a
search, what is finished can be read, and a second run of the same study goes on from there. Two runs are the same study
when space, resolved scenarios, settings and versions are the same; the files know nothing of block sizes or workers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from dlcalc import __version__
from dlcalc.errors import ResultError
from dlcalc.results.files import (
    MANIFEST_NAME,
    SHARD_NAME,
    is_note,
    names_in,
    note_name,
    read_json,
    shard_name,
    text_sha256,
)
from dlcalc.results.schema import SCHEMA_VERSION
from dlcalc.results.storage import Location
from dlcalc.specs.base import Spec
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

PLACED_TABLES = ("plans.parquet", "placements.parquet")

LEADERS = "leaders"
"""What of a shard's state depends on the order of plans."""

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
        parts = {part: text_sha256(text) for part, text in self.parts().items()}
        return ScenarioDigest(name=self.name, devices=self.devices, parts=parts)

    def parts(self) -> dict[str, str]:
        """As texts that are the same when the parts are."""
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
    file: Annotated[str, Field(pattern=rf"^{SHARD_NAME.pattern}$")]
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

    @property
    def holds_all_that_fit(self) -> bool:
        """Whether no plan that fits was left out: then sorting is a view of the rows."""
        return self.n_rows >= self.n_fit

    def without_leaders(self) -> Self:
        """The same rows, for a search that sorts otherwise."""
        return self.model_copy(update={"state": {name: what for name, what in self.state.items() if name != LEADERS}})


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
            space_sha256=text_sha256(origin.space_text),
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

    @property
    def study_sha256(self) -> str:
        """The same for runs that are the same study."""
        parts = (self.schema_version, self.dlcalc_version, self.study, dict(self.settings))
        return text_sha256(json.dumps([*parts, [scenario.model_dump() for scenario in self.scenarios]], sort_keys=True))


class ShardNote(Spec):
    """What a finished shard holds, said beside it until the manifest says it."""

    study_sha256: str
    record: ShardRecord


def read_manifest(directory: Location) -> Manifest:
    """The manifest of a result directory; ``ResultError`` names what is wrong with it."""
    path = directory / MANIFEST_NAME
    if MANIFEST_NAME not in names_in(directory):
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


def noted_shards(directory: Location, manifest: Manifest) -> dict[tuple[int, int], ShardRecord]:
    """Shards of a study that were finished after its manifest was last written, as the notes beside them say."""
    found = {}
    for name in names_in(directory):
        if not is_note(name):
            continue
        try:
            note = ShardNote.model_validate(read_json(directory / name))
            size = (directory / note.record.file).stat().st_size
        except (ResultError, ValidationError, OSError):
            continue  # the shard did not get its name yet, or the note is damaged and its shard searched again
        record = note.record
        is_of_study = note.study_sha256 == manifest.study_sha256 and record.scenario < len(manifest.scenarios)
        is_own = name == note_name(record.file) and record.file == shard_name(*record.key)
        if is_of_study and is_own and size == record.n_bytes:
            found[record.key] = record
    return found
