"""Where a result lies: a directory, or the objects under an address such as ``s3://bucket/prefix``.

:class:`ObjectPath` answers to what the rest of this package asks of a ``Path``. An object store has no rename, and
needs none: an object is there, whole, once its upload has ended, and not at all before. It has no locks either, so
nothing keeps two searches out of one prefix.

Credentials come from the environment, as they do for every other tool of the store, or are left out on purpose:
``gs://anonymous@bucket``. What the address says after ``?`` (``endpoint_override``, ``region``, ``scheme``) goes to
pyarrow, which knows ``s3://`` and ``gs://`` (also ``gcs://``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from dlcalc.errors import ResultError

T = TypeVar("T")

SCHEMES = ("s3", "gs", "gcs")
ANONYMOUS_SCHEMES = ("gs", "gcs")
ANONYMOUS = "anonymous"
"""The user in an address that shows the store no credentials."""
GCS_PATIENCE_S = 60
"""Before a Google store that does not answer is given up, unless the address says ``retry_limit_seconds``; Google's own
default is a quarter of an hour."""
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<key>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
_KEPT = "what was finished is kept: run again with --resume"
_LONGEST_REASON = 200
_REFUSED = (
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|CLIENT|UNAUTHENTICATED|PERMISSION_DENIED|"
    r"status (code: )?40[13]|ermission"
)
_NO_CREDENTIALS = "Could not create a OAuth2 access token"


@dataclass(frozen=True)
class ObjectPath:
    """An object of a store, or the prefix of many; the filesystem behind it is opened when it is first needed."""

    scheme: str
    key: str
    """``bucket/prefix/name``."""
    query: str = ""
    user: str = ""
    """Whoever asks: nobody in particular, or ``anonymous``."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self._user_part}{self.key}" + (f"?{self.query}" if self.query else "")

    @property
    def _user_part(self) -> str:
        return f"{self.user}@" if self.user else ""

    def __truediv__(self, name: str) -> ObjectPath:
        return replace(self, key=f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name

    @property
    def bucket(self) -> str:
        return self.key.partition("/")[0]

    @property
    def parent(self) -> ObjectPath:
        return replace(self, key=self.key.rpartition("/")[0])

    def resolve(self) -> ObjectPath:
        """Itself: a store has no links."""
        return self

    def exists(self) -> bool:
        from pyarrow.fs import FileType

        return bool(self._asked(lambda fs: fs.get_file_info(self.key)).type != FileType.NotFound)

    def mkdir(self, **_options: bool) -> None:
        """Make sure of the bucket; prefixes need not be made."""
        from pyarrow.fs import FileType

        if self._asked(lambda fs: fs.get_file_info(self.bucket)).type == FileType.NotFound:
            raise ResultError(f"{self}: no bucket {self.bucket!r}, or none that these credentials may see")

    def rmdir(self) -> None:
        """Nothing: a prefix goes with its last object."""

    def stat(self) -> ObjectStat:
        """Its size; ``FileNotFoundError`` where there is nothing."""
        found = self._asked(lambda fs: fs.get_file_info(self.key))
        if not found.is_file:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return ObjectStat(int(found.size))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._asked(lambda fs: fs.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def read_text(self, encoding: str = "utf-8") -> str:
        def read(fs: Any) -> bytes:  # noqa: ANN401 - a pyarrow filesystem
            with fs.open_input_stream(self.key, compression=None) as file:
                return bytes(file.read())

        return self._asked(read).decode(encoding)

    @property
    def filesystem(self) -> Any:  # noqa: ANN401 - a pyarrow filesystem
        """In which :attr:`key` is the path."""
        return self._asked(lambda fs: fs)

    def open_input(self) -> Any:  # noqa: ANN401 - a pyarrow file
        """To be read in any order, as Parquet is."""
        return self._asked(lambda fs: fs.open_input_file(self.key))

    def names(self) -> list[str]:
        """Of the objects directly under this prefix."""
        from pyarrow.fs import FileSelector

        self.mkdir()
        found = self._asked(lambda fs: fs.get_file_info(FileSelector(self.key, allow_not_found=True)))
        return [info.base_name for info in found]

    def upload(self, file: Path) -> None:
        """The content of ``file`` under this name, in one piece: whatever goes wrong, nothing half is left."""

        def copy(fs: Any) -> None:  # noqa: ANN401 - a pyarrow filesystem
            with file.open("rb") as source, fs.open_output_stream(self.key, compression=None) as target:
                shutil.copyfileobj(source, target, 1 << 22)

        self._asked(copy)

    def _asked(self, ask: Callable[[Any], T]) -> T:
        """The answer of the store; ``ResultError`` says what is wrong with address, network or credentials."""
        from pyarrow import ArrowException

        try:
            return ask(_filesystem(self.scheme, f"{self._user_part}{self.bucket}", self.query))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, ArrowException) as error:
            raise store_error(self, error) from error


@dataclass(frozen=True)
class ObjectStat:
    """What a store says of an object."""

    st_size: int


Location = Path | ObjectPath


def location(place: str | Location) -> Location:
    """Where ``place`` is: an address of a store we know, or a path."""
    if isinstance(place, (Path, ObjectPath)):
        return place
    address = _ADDRESS.fullmatch(place)
    if address is None:
        return Path(place)
    scheme, key = address["scheme"].lower(), address["key"].strip("/")
    if scheme == "file":
        return Path("/" + key)
    if scheme not in SCHEMES:
        raise ResultError(f"{place}: no store is known by {scheme}://; known: {', '.join(SCHEMES)}, and paths")
    user = ""
    if scheme in ANONYMOUS_SCHEMES and key.startswith(f"{ANONYMOUS}@"):
        user, _, key = key.partition("@")
    if "@" in key.partition("/")[0]:
        raise ResultError(f"{scheme}://...: credentials do not belong in an address; {_credentials(scheme)}")
    if not key:
        raise ResultError(f"{place}: names no bucket; write {scheme}://bucket/prefix")
    return ObjectPath(scheme, key, address["query"] or "", user)


@cache
def _filesystem(scheme: str, bucket: str, query: str) -> Any:  # noqa: ANN401 - a pyarrow filesystem
    from pyarrow.fs import FileSystem

    if scheme in ANONYMOUS_SCHEMES and "retry_limit_seconds" not in query:
        query += ("&" if query else "") + f"retry_limit_seconds={GCS_PATIENCE_S}"
    filesystem, _ = FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))
    return filesystem


def is_directory(place: Location) -> bool:
    """Whether it is a directory; what an object store holds is taken as one until it is read."""
    return os.path.isdir(place) if isinstance(place, Path) else True


def fetch(source: Location, target: Path) -> None:
    """Copy ``source`` to this machine."""
    if isinstance(source, Path):
        shutil.copyfile(source, target)
        return
    with source.open_input() as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 22)


def listed(directory: Location) -> list[str]:
    """Names of what lies directly in ``directory``."""
    return os.listdir(directory) if isinstance(directory, Path) else directory.names()


def readable(path: Location) -> Any:  # noqa: ANN401 - what Parquet reads
    """What a Parquet reader takes for ``path``."""
    return path if isinstance(path, Path) else path.open_input()


def file_sha256(path: Location) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") if isinstance(path, Path) else path.open_input() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(path: Location) -> Path:
    """Where ``path`` is written before it is published: beside it, or in the temporary folder on its way to a store.

    No two writers share one, on whatever machine: a shard may be written twice when its worker was given up for lost.
    """
    folder = path.parent if isinstance(path, Path) else Path(tempfile.gettempdir())
    return folder / f".{path.name}.{uuid4().int}.partial"


def publish(partial: Path, path: Location) -> None:
    """Let what was written appear under its name, whole."""
    if isinstance(path, Path):
        partial.replace(path)
        return
    path.upload(partial)
    with suppress(OSError):
        partial.unlink()


@contextmanager
def store_errors(path: Location) -> Iterator[None]:
    """What a store answers while one of its objects is read, in one line; of a local file nothing is changed."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if isinstance(path, ObjectPath):
            raise store_error(path, error) from error
        raise


def store_error(path: ObjectPath, error: Exception) -> ResultError:
    """What is wrong with address, network, credentials or bucket."""
    text = _said(error)
    code = next(iter(re.findall(r"AWS Error ([A-Z_]+)", text)), "")
    if _NO_CREDENTIALS in text:
        why = text.rpartition("underlying error message was: ")[2]
        return ResultError(f"{path}: no credentials ({why[:_LONGEST_REASON]}); {_credentials(path.scheme)}")
    if isinstance(error, ValueError):
        return ResultError(f"{path}: not an address of a store: {text[:_LONGEST_REASON]}")
    if code == "NO_SUCH_BUCKET":
        return ResultError(f"{path}: no bucket {path.bucket!r}")
    if code == "NETWORK_CONNECTION" or re.search(r"timed out|resolve|CURL error", text, re.IGNORECASE):
        why = text.rpartition("Details: ")[2] if "Details: " in text else text
        return ResultError(
            f"{path}: the store does not answer ({why[:_LONGEST_REASON]}); check the network, and endpoint_override "
            f"in the address if the store is not the public one ({_KEPT})"
        )
    if re.search(_REFUSED, str(error)):
        reason = code.replace("_", " ").lower() or "access denied"
        return ResultError(f"{path}: the store refuses the credentials ({reason}); {_credentials(path.scheme)}")
    return ResultError(f"{path}: the store says: {text[:_LONGEST_REASON]} ({_KEPT})")


def _said(error: Exception) -> str:
    """The words of a store's answer, without what its client says of itself."""
    text = " ".join(str(error).split())
    if "google::cloud::Status" in text:
        text = text.rpartition("google::cloud::Status")[2].partition(" error_info=")[0]
        text = text.rpartition("with a last message of ")[2].lstrip("(")
    return text


def _credentials(scheme: str) -> str:
    if scheme == "s3":
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
    return (
        "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account, or write "
        f"{scheme}://{ANONYMOUS}@bucket/prefix where none are asked for"
    )


def missing_from(directory: Location, name: str, sha256: str) -> str | None:
    """Why this process cannot write to the study in ``directory``; None when it sees the very same ``name`` there."""
    try:
        found = file_sha256(directory / name)
    except FileNotFoundError:
        found = ""
    except ResultError as error:
        return str(error)
    except OSError as error:
        return f"{directory}: cannot be read on {socket.gethostname()} ({error.strerror})"
    if found == sha256:
        return None
    return (
        f"{directory}: not seen from {socket.gethostname()}; write to a file system that every worker shares, under "
        "the same path, or to an object store (-o s3://bucket/prefix)"
    )
