"""Names and files of a result directory: everything that reads or writes one goes through here.

A study's directory is a Parquet dataset plus files whose names start with an underscore or a dot, which every Parquet
reader skips:

    results/<study>/
        s000-000000.parquet         scenario 0, shard 0: complete, or not there
        s000-000001.parquet
        _manifest.json              what made the study, and every finished shard with its counts and hash
        _inputs.json                the resolved models, hardware, recipes and spaces, by the hashes in the manifest
        _summary.json               what was printed: the object of ``--json``
        _measured.csv, _trials/     plans that were run, what the runs were given and printed, where that was asked for
        _placed/                    the best plans as placed on a fabric, where that was asked for (results.placed)
        .s000-000001.parquet.json   what the manifest does not say yet of a shard that is finished
        .lock, .*.partial           while somebody writes
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EDQUOT, EFBIG, ENOSPC, EPERM, EROFS
from typing import Any

from dlcalc.errors import ResultError
from dlcalc.results.storage import Location, ObjectPath, listed, partial_path, publish

MANIFEST_NAME = "_manifest.json"
INPUTS_NAME = "_inputs.json"
SUMMARY_NAME = "_summary.json"
LOCK_NAME = ".lock"
PLACED_FOLDER = "_placed"
MEASURED_NAME = "_measured.csv"
TRIALS_FOLDER = "_trials"

SHARD_NAME = re.compile(r"s\d{3,9}-\d{6,12}\.parquet")
_NOTE_NAME = re.compile(rf"\.{SHARD_NAME.pattern}\.json")
_WRITTEN = rf"({SHARD_NAME.pattern}|\.{SHARD_NAME.pattern}\.json|{MANIFEST_NAME}|{INPUTS_NAME}|{SUMMARY_NAME})"
_PARTIAL_NAME = re.compile(rf"\.{_WRITTEN}\.\d+\.partial")
_MOST_JSON_BYTES = 2**29
"""A manifest has some 40 kB a shard; what is larger than this was not written by dlcalc."""


def shard_name(scenario: int, shard: int) -> str:
    """File name of a shard; sorts in the order of the space."""
    return f"s{scenario:03d}-{shard:06d}.parquet"


def note_name(shard: str) -> str:
    """Name of the file that says what a shard holds until the manifest does."""
    return f".{shard}.json"


def is_ours(name: str) -> bool:
    """Whether a result directory's file ``name`` is one that dlcalc writes."""
    fixed = (MANIFEST_NAME, INPUTS_NAME, SUMMARY_NAME, LOCK_NAME, PLACED_FOLDER, MEASURED_NAME, TRIALS_FOLDER)
    return name in fixed or is_shard(name) or is_note(name) or is_partial(name)


def is_shard(name: str) -> bool:
    """Whether ``name`` is that of a finished shard."""
    return bool(SHARD_NAME.fullmatch(name))


def is_note(name: str) -> bool:
    """Whether ``name`` is that of a shard's note."""
    return bool(_NOTE_NAME.fullmatch(name))


def is_partial(name: str) -> bool:
    """Whether ``name`` is what an interrupted write leaves behind."""
    return bool(_PARTIAL_NAME.fullmatch(name))


def names_in(directory: Location) -> list[str]:
    """Names in a result directory, sorted."""
    try:
        return sorted(listed(directory))
    except FileNotFoundError as error:
        raise ResultError(f"{directory}: no such result directory") from error
    except NotADirectoryError as error:
        raise ResultError(f"{directory}: a file; a result is the directory that dlcalc-search wrote") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"{directory}: cannot be read ({getattr(error, 'strerror', error)})") from error


def text_sha256(text: str) -> str:
    """Hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def remove(directory: Location, unwanted: Callable[[str], bool]) -> None:
    """Delete what dlcalc wrote and no longer wants; never a file it did not write."""
    for name in listed(directory):
        if is_ours(name) and unwanted(name):
            with suppress(FileNotFoundError):
                (directory / name).unlink()


def read_json(path: Location) -> Any:  # noqa: ANN401 - JSON is anything
    """A JSON file of a result directory."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ResultError(f"{path}: damaged: larger than anything dlcalc writes; search again with --overwrite")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: damaged: not JSON ({error}); search again with --overwrite") from error
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error


def write_text(path: Location, text: str, *, durable: bool) -> None:
    """Replace ``path`` by ``text`` in one step, so that a reader sees the old file or the new one.

    ``durable`` makes that hold for a power cut as well.
    """
    partial = partial_path(path)
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
        raise ResultError(f"{path}: {_disk_problem(error, path)}") from error


def _disk_problem(error: OSError, path: Location) -> str:
    kept = "what was finished is kept: run again with --resume"
    if error.errno in (ENOSPC, EDQUOT, EFBIG) and isinstance(path, ObjectPath):
        return (
            f"the temporary folder {tempfile.gettempdir()}, where files lie on their way to the store, is full; free "
            f"some space, or name another one in TMPDIR ({kept})"
        )
    if error.errno in (ENOSPC, EDQUOT):
        return f"the disk is full; free some space ({kept}), or choose another place with -o"
    if error.errno == EFBIG:
        return f"the file would exceed the largest size allowed here ({kept}), or choose another place with -o"
    if error.errno in (EACCES, EPERM, EROFS):
        return f"cannot be written ({os.strerror(error.errno).lower()}); choose another place with -o"
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"cannot be written ({reason})"


@contextmanager
def locked(directory: Location) -> Iterator[None]:
    """Keep a second search out of ``directory``, on systems and file systems that know how.

    The lock is this process's alone: it ends with it, however that ends, and workers do not inherit it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    if isinstance(directory, ObjectPath):  # a store has no locks
        yield
        return
    path = directory / LOCK_NAME
    with disk_errors(directory):
        file = path.open("a")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EACCES, EAGAIN):
                raise ResultError(f"{directory}: another search is writing here; wait for it, or use -o") from error
            # otherwise a file system without locks: go on without
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise ResultError(f"{directory}: another search has just ended here; try again")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
