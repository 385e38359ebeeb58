"""From a YAML or JSON file to a spec; with ``marked_yaml``, the only place that knows files and line numbers.

Whatever is wrong with a file comes out as one ``SpecError`` that lists every mistake by line:
``file:line: field: what is wrong; what would be right``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dlcalc.errors import DlcalcError, FieldError, Problem, SpecError, nearest
from dlcalc.specs import wording
from dlcalc.specs.marked_yaml import Marks, Mistake, NotYaml, read_marked
from dlcalc.specs.wording import data_path, path_text, shown, worded

AnySpec = TypeVar("AnySpec", bound=BaseModel)

MAX_FILE_BYTES = 20_000_000
MAX_PROBLEMS = 100
"""Told in full; further ones are counted."""


def load_spec(
    file: Path,
    spec_class: type[AnySpec],
    transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
) -> AnySpec:
    """Read ``file`` as a ``spec_class``; ``transform`` may change the data before it is checked."""
    data, marks = load_yaml(file)
    if transform is not None and isinstance(data, dict):
        data = dict(transform(data))
    return parse_spec(data, spec_class, file=file, marks=marks)


def parse_spec(
    data: object,
    spec_class: type[AnySpec],
    *,
    file: Path,
    marks: Marks,
    prefix: wording.Path = (),
) -> AnySpec:
    """Check ``data`` as a ``spec_class``; it stands at the path ``prefix`` in ``file``, whose marks are ``marks``.

    A whole number written as a float (``1e12``) is taken as the integer it is where an integer is wanted.
    """
    if not isinstance(data, dict):
        text = f"must be a mapping (key: value), not {shown(data)}"
        raise SpecError(file, (Problem(marks.line_of(prefix), path_text(prefix) or spec_class.__name__, text),))
    try:
        return spec_class.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    mended = _with_whole_floats_as_ints(data, details)
    if mended is not data:
        return parse_spec(mended, spec_class, file=file, marks=marks, prefix=prefix)
    raise _schema_error(details, data, spec_class, file=file, marks=marks, prefix=prefix)


def config_dir() -> Path:
    """Folder of built-in models, machines and framework profiles: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def spec_error(file: Path, marks: Marks, path: wording.Path, text: str) -> SpecError:
    """An error about the value at ``path`` of ``file``, for mistakes that only show outside the schema."""
    return SpecError(file, (Problem(marks.line_of(path), path_text(path) or file.name, text),))


@contextmanager
def about(*field: str | int) -> Iterator[None]:
    """What goes wrong inside is about ``field`` of a file not known here, unless it names a file of its own."""
    try:
        yield
    except SpecError:
        raise
    except FieldError as error:
        raise FieldError((*field, *error.field), error.text) from error
    except DlcalcError as error:
        raise FieldError(field, str(error)) from error


@contextmanager
def told_by_line(file: Path) -> Iterator[None]:
    """Mistakes about a field inside are told with the line of ``file`` on which it stands."""
    try:
        yield
    except FieldError as error:
        raise spec_error(file, load_yaml(file)[1], error.field, error.text) from error


def load_yaml(file: Path) -> tuple[Any, Marks]:
    """The data in a YAML (or, by its suffix, JSON) file, and the line of everything in it."""
    return parse_yaml(read_text(file), file=file)


def parse_yaml(text: str, *, file: Path) -> tuple[Any, Marks]:
    """The data in ``text``, which stands in ``file``, and the line of everything in it."""
    try:
        if file.suffix.lower() == ".json":
            return _read_json(text)
        return read_marked(text)
    except Mistake as mistake:
        raise _listing(file, mistake.problems) from None


def read_text(file: Path, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """What is written in ``file``, or the reason why that cannot be said."""
    try:
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise _file_error(file, "no such file" + _similar_files(file)) from None
    except IsADirectoryError:
        raise _file_error(file, "is a directory, not a file") from None
    except PermissionError:
        raise _file_error(file, "cannot be read: permission denied") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _file_error(file, f"cannot be read: {reason.lower()}") from None
    if len(content) > max_bytes:
        raise _file_error(file, f"is larger than {max_bytes // 10**6} MB")
    if not content.strip():
        raise _file_error(file, "the file is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = f"the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise SpecError(file, (Problem(line, "encoding", text),)) from None


def _similar_files(file: Path) -> str:
    try:
        names = [entry.name for entry in file.parent.iterdir() if entry.suffix == file.suffix]
    except (OSError, ValueError):
        return ""
    near = nearest(file.name, names)
    return f"; did you mean {' or '.join(str(file.with_name(name)) for name in near)}?" if near else ""


def _read_json(text: str) -> tuple[Any, Marks]:
    """JSON is read as JSON; only its lines and repeated keys are found as in YAML, where that works."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(Problem(error.lineno, "syntax", f"not JSON: {error.msg[0].lower()}{error.msg[1:]}")) from None
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return read_marked(text)
    try:
        return data, read_marked(text)[1]
    except NotYaml:  # JSON escapes that YAML does not have
        return data, Marks(1)


def _with_whole_floats_as_ints(data: dict[str, Any], details: Iterable[ErrorDetails]) -> dict[str, Any]:
    """``data`` itself, or a copy in which each ``1e12`` given for an integer is one."""
    mended = data
    for error in details:
        given = error["input"]
        if (
            error["type"] not in {"int_type", "int_from_float"}
            or not isinstance(given, float)
            or not given.is_integer()
        ):
            continue
        if mended is data:
            mended = copy.deepcopy(data)
        *way, last = data_path(error["loc"], data)
        holder: Any = mended
        for part in way:
            holder = holder[part]
        holder[last] = int(given)
    return mended


def _schema_error(
    details: Sequence[ErrorDetails],
    data: object,
    spec_class: type[BaseModel],
    *,
    file: Path,
    marks: Marks,
    prefix: wording.Path,
) -> SpecError:
    found = [(marks.line_of(prefix + complaint.path), complaint) for complaint in wording.complaints(details, data)]
    found.sort(key=lambda item: item[0])
    problems = [
        Problem(line, path_text(prefix + complaint.path) or spec_class.__name__, worded(complaint, spec_class))
        for line, complaint in found[:MAX_PROBLEMS]
    ]
    return SpecError(file, tuple(problems), n_more=max(0, len(found) - MAX_PROBLEMS))


def _listing(file: Path, problems: Sequence[Problem]) -> SpecError:
    in_order = sorted(problems, key=lambda problem: problem.line)
    return SpecError(file, tuple(in_order[:MAX_PROBLEMS]), n_more=max(0, len(in_order) - MAX_PROBLEMS))


def _file_error(file: Path, text: str) -> SpecError:
    return SpecError(file, (Problem(0, "", text),))
