"""Writes a study: blocks of plans in, finished Parquet files out.

Any process may write a shard, one process keeps the manifest:

    with open_study(directory, origin, resume=True) as study:
        header = study.header(scenario, names)           # small, picklable: goes to the workers
        with ShardWriter(directory, header, shard) as rows:
            rows.write(block)                            # as often as wanted; arrays may be reused afterwards
            rows.describe(start=..., stop=..., n_plans=..., n_fit=..., refused=...)
        study.add(rows.record)
        study.finish(summary)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dlcalc.errors import ResultError
from dlcalc.results.differences import differences, inputs_of, read_inputs, write_inputs
from dlcalc.results.files import (
    MANIFEST_NAME,
    SUMMARY_NAME,
    disk_errors,
    is_note,
    is_ours,
    is_partial,
    is_shard,
    locked,
    names_in,
    note_name,
    remove,
    write_text,
)
from dlcalc.results.manifest import (
    Manifest,
    PlacedRecord,
    ShardRecord,
    Status,
    StudyOrigin,
    noted_shards,
    read_manifest,
)
from dlcalc.results.placed import PlacedTables, forget_placed, write_placed
from dlcalc.results.schema import METADATA_PREFIX, SCHEMA_VERSION, WORDS
from dlcalc.results.shard import ShardHeader
from dlcalc.results.storage import Location, ObjectPath, file_sha256
from dlcalc.utils.jsontext import to_json

Shards = Mapping[tuple[int, int], ShardRecord]
"""Records by (scenario, shard)."""

_SAVE_EVERY_S = 1.0


class StudyWriter:
    """The manifest of a study being written. Made by :func:`open_study`."""

    def __init__(self, directory: Location, origin: StudyOrigin, finished: Shards, replaced: Shards) -> None:
        self.directory = directory
        self._origin = origin
        self._manifest = Manifest.of(origin)
        self._finished = dict(finished)
        self._replaced = dict(replaced)
        self.n_kept = len(finished)
        """Shards of an earlier run that are not searched again."""
        self._unsaved: set[str] = set()
        self._placed: PlacedRecord | None = None
        self._write("running")

    @property
    def finished(self) -> Shards:
        """Finished shards by (scenario, shard): those need not be evaluated again."""
        return self._finished

    @property
    def manifest(self) -> Manifest:
        """Of what is finished."""
        return self._manifest.with_shards(self._finished, "running", self._placed)

    def header(self, scenario: int, names: Mapping[str, tuple[str, ...]]) -> ShardHeader:
        """What the files of ``scenario`` share; ``names`` gives the words behind the codes of word columns."""
        origin = self._origin.scenarios[scenario]
        constants: dict[str, str | int] = {
            "scenario": origin.name,
            "model": origin.model.name,
            "hardware": origin.hardware.name,
            "devices": origin.devices,
            "precision": origin.recipe.precision,
            "framework": origin.recipe.framework.name,
            "seq_len": origin.recipe.seq_len,
            "global_batch": origin.recipe.global_batch,
        }
        metadata = self._metadata() | {METADATA_PREFIX + "scenario": json.dumps(origin.model_dump(mode="json"))}
        return ShardHeader(
            scenario=scenario,
            constants=constants,
            names={name: tuple(names[name]) for name in WORDS},
            metadata=metadata,
            study_sha256=self._manifest.study_sha256,
        )

    def _metadata(self) -> dict[str, str]:
        """What every file of the study says of it."""
        said = {
            "schema_version": str(SCHEMA_VERSION),
            "version": self._origin.dlcalc_version,
            "study": self._origin.study,
            "space": self._origin.space_text,
            "settings": json.dumps(self._origin.settings),
        }
        return {METADATA_PREFIX + key: text for key, text in said.items()}

    def place(self, tables: PlacedTables) -> None:
        """Write the placed plans beside the rows."""
        self._placed = write_placed(self.directory, tables, self._metadata())

    def add(self, record: ShardRecord) -> None:
        """Count a finished shard. The manifest follows within a second, so that many small shards cost little."""
        self._finished[record.key] = record
        self._unsaved.add(note_name(record.file))
        if time.monotonic() - self._saved_at_s >= _SAVE_EVERY_S:
            self.save()

    def amend(self, record: ShardRecord) -> None:
        """Say otherwise what is known of a shard that was added; :meth:`finish` writes it."""
        self._finished[record.key] = record

    def drop(self, scenario: int) -> None:
        """Forget and delete the shards of ``scenario``, to write it again in another form."""
        dropped = [record for record in self._finished.values() if record.scenario == scenario]
        for records in (self._finished, self._replaced):
            for key in [key for key in records if key[0] == scenario]:
                del records[key]
        self._write("running")
        for record in dropped:
            (self.directory / record.file).unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and call the study complete."""
        self._replaced.clear()
        named = {record.file for record in self._finished.values()}
        with disk_errors(self.directory):
            remove(self.directory, lambda name: is_partial(name) or (is_shard(name) and name not in named))
        write_text(self.directory / SUMMARY_NAME, to_json(summary) + "\n", durable=True)
        self._write("complete")

    def save(self) -> None:
        """Bring the manifest up to date."""
        if self._unsaved:
            self._write("running")

    def _write(self, status: Status) -> None:
        manifest = self._manifest.with_shards({**self._replaced, **self._finished}, status, self._placed)
        write_text(self.directory / MANIFEST_NAME, manifest.text(), durable=status == "complete")
        for name in self._unsaved:
            with suppress(OSError):
                (self.directory / name).unlink()
        self._unsaved.clear()
        self._saved_at_s = time.monotonic()


@contextmanager
def open_study(
    directory: Location, origin: StudyOrigin, *, resume: bool = False, overwrite: bool = False
) -> Iterator[StudyWriter]:
    """A study being written in ``directory``; nobody else can write there meanwhile.

    A directory that holds the same study is gone on with if it was interrupted or ``resume`` is given, and written
    again otherwise, each shard kept until the new one takes its place. One that holds another study is refused unless
    ``overwrite``; one that holds something else always.
    """
    with disk_errors(directory):
        if isinstance(directory, Path) and os.path.exists(directory) and not os.path.isdir(directory):
            raise ResultError(f"{directory}: a file is in the way; choose another place with -o")
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        finished, replaced = _shards_there(directory, origin, resume=resume, overwrite=overwrite)
        with disk_errors(directory):
            (directory / SUMMARY_NAME).unlink(missing_ok=True)
            forget_placed(directory)
        write_inputs(directory, inputs_of(origin))
        study = StudyWriter(directory, origin, finished, replaced)
        named = {record.file for record in (*finished.values(), *replaced.values())}
        with disk_errors(directory):  # after the manifest, which says from now on what counts
            remove(directory, lambda name: is_partial(name) or is_note(name) or (is_shard(name) and name not in named))
        try:
            yield study
        except BaseException:
            with suppress(ResultError):  # what stopped the search is what the user must hear of
                study.save()
            raise
        study.save()


def _shards_there(directory: Location, origin: StudyOrigin, *, resume: bool, overwrite: bool) -> tuple[Shards, Shards]:
    """The shards of an earlier run that still count, and those that stay until they are written again.

    ``ResultError`` when the directory holds something else.
    """
    names = names_in(directory)
    if overwrite and MANIFEST_NAME in names:
        return {}, {}
    if MANIFEST_NAME not in names:
        if foreign := [name for name in names if not is_ours(name)]:
            raise ResultError(
                f"{directory}: holds other files ({foreign[0]}) and no result; choose another place with -o"
            )
        if not overwrite and (shards := [name for name in names if is_shard(name)]):
            raise ResultError(
                f"{directory}: holds plans ({shards[0]}) but not what made them ({MANIFEST_NAME} is missing); put it "
                "back, choose another place with -o, or replace them with --overwrite"
            )
        return {}, {}
    there, now = read_manifest(directory), Manifest.of(origin)
    noted = noted_shards(directory, there)
    is_view = all(record.holds_all_that_fit for record in (*there.shards, *noted.values()))
    if differing := differences(there, now, read_inputs(directory), inputs_of(origin), any_order=is_view):
        listed = "\n  ".join(differing)
        raise ResultError(
            f"{directory}: holds the result of another study; choose another place with -o, or replace it with "
            f"--overwrite. What differs:\n  {listed}"
        )
    whole = {record.key: record for record in there.shards if _is_whole(directory / record.file, record)}
    missing = {key: record for key, record in noted.items() if key not in whole}
    whole |= {key: record for key, record in missing.items() if _is_whole(directory / record.file, record)}
    if there.settings.get("sort") != now.settings.get("sort"):
        whole = {key: record.without_leaders() for key, record in whole.items()}
    return ({}, whole) if there.status == "complete" and not resume else (whole, {})


def _is_whole(path: Location, record: ShardRecord) -> bool:
    """Whether a shard's file is still what was written; if not, the shard is evaluated again."""
    try:
        if path.stat().st_size != record.n_bytes:
            return False
        return isinstance(path, ObjectPath) or file_sha256(path) == record.sha256  # a store checks what it keeps
    except OSError:
        return False
