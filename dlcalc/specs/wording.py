"""What a schema complains about, in the words of somebody who edits a file.

Pydantic reports one error per field, and per alternative of a union. Here an error finds the value it is about, the
alternatives that were clearly not meant are dropped, and what remains becomes one short sentence: what is wrong, with
the value given, and what would be right.
"""

from __future__ import annotations

import re
import types
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from dlcalc.errors import nearest, suggestion

Path: TypeAlias = tuple[Hashable, ...]
"""Keys and indices from the top of the data to a value."""

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "frozen_set_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "none_required": "null",
}
"""Errors that say the value is of the wrong kind altogether, and the kind that was expected."""

_BOUNDS = {
    "greater_than": "be greater than {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be less than {lt}",
    "less_than_equal": "be at most {le}",
    "multiple_of": "be a multiple of {multiple_of}",
    "finite_number": "be a finite number",
    "string_pattern_mismatch": "match {pattern}",
}
_LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
}
_BOOLEAN_WORDS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_LONGEST_SHOWN = 60


class Complaint(NamedTuple):
    """Something wrong with the value at ``path``; several errors are alternatives of which none fits."""

    path: Path
    errors: tuple[ErrorDetails, ...]


class _Located(NamedTuple):
    path: Path
    branches: tuple[tuple[Path, str], ...]
    """Unions passed on the way: where, and which alternative was tried."""
    error: ErrorDetails


def complaints(errors: Iterable[ErrorDetails], data: object) -> list[Complaint]:
    """The ``errors`` of a validation of ``data``, each with its place, one per union."""
    return list(_of_likely_branches([_located(error, data) for error in errors], depth=0))


def worded(complaint: Complaint, spec_class: type[BaseModel]) -> str:
    """One sentence on ``complaint``, which came out of a validation by ``spec_class``."""
    error = complaint.errors[0]
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        return "required key is missing"
    if kind == "extra_forbidden":
        return "no such key; " + suggestion(str(complaint.path[-1]), _keys_at(spec_class, error["loc"][:-1]))
    if kind == "literal_error" and error["loc"][-1] == "[key]":
        return "no such key; " + suggestion(str(given), _choices(context["expected"]))
    if kind == "invalid_key":
        return "a key must be text; put it in quotes"
    if kind in {"value_error", "assertion_error"}:
        return str(context["error"])
    if _is_kind(error):
        return _kind_text(complaint.errors)
    if kind in _LENGTHS:
        bound, limit, unit = _LENGTHS[kind]
        n_wanted: int = context[limit]
        return f"must have {bound} {n_wanted} {unit}{'s' * (n_wanted != 1)}, not {len(given)}"
    if kind in _BOUNDS:
        shown_context = {name: shown(value) for name, value in context.items()}
        return f"must {_BOUNDS[kind].format(**shown_context)}, not {shown(given)}"
    if kind == "union_tag_invalid":
        key, known = context["discriminator"].strip("'"), _listed(_choices(context["expected_tags"]))
        return f"{key} must be one of {known}, not {shown(context['tag'])}"
    text = error["msg"].replace("Input should", "must", 1)
    return f"{text[0].lower()}{text[1:]}, not {shown(given)}"


def shown(value: object) -> str:
    """``value`` as a file would hold it, cut to a few words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            cut = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "..."
            return repr(cut)
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case float():
            return f"{value:.15g}"
        case int() if abs(value) >= 10**_LONGEST_SHOWN:
            return f"a number of {len(str(abs(value)))} digits"
        case _:
            return str(value)


def path_text(path: Path) -> str:
    """``("device", "tiles", 0)`` as ``device.tiles[0]``."""
    text = "".join(f"[{part}]" if type(part) is int else f".{_key_text(part)}" for part in path)
    return text.removeprefix(".")


def data_path(loc: Sequence[int | str], data: object) -> Path:
    """The part of pydantic's ``loc`` that names keys and indices of ``data``, without names of alternatives."""
    return _walk(loc, data)[0]


def _key_text(key: object) -> str:
    text = key if isinstance(key, str) else shown(key)
    if not text.isprintable() or not text:
        text = repr(text)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def _located(error: ErrorDetails, data: object) -> _Located:
    loc = error["loc"]
    if error["type"] in {"missing", "invalid_key"}:  # the last part names no value
        path, branches = _walk(loc[:-1], data)
        return _Located((*path, loc[-1]), branches, error)
    return _Located(*_walk(loc, data), error)


def _walk(loc: Sequence[int | str], data: object) -> tuple[Path, tuple[tuple[Path, str], ...]]:
    """Split ``loc`` into the path of a value and the alternatives of unions named on the way."""
    path: list[Hashable] = []
    branches: list[tuple[Path, str]] = []
    for part in loc:
        match data:
            case dict() if part in data:
                data = data[part]
            case list() if isinstance(part, int) and 0 <= part < len(data):
                data = data[part]
            case _:
                branches.append((tuple(path), str(part)))
                continue
        path.append(part)
    return tuple(path), tuple(branches)


def _of_likely_branches(found: Sequence[_Located], *, depth: int) -> Iterator[Complaint]:
    """For each union, the alternative that fits best; if the value fits none, all of them as one complaint."""
    unions: dict[Path, dict[str, list[_Located]]] = {}
    for item in found:
        if len(item.branches) <= depth:
            yield Complaint(item.path, (item.error,))
        else:
            place, branch = item.branches[depth]
            unions.setdefault(place, {}).setdefault(branch, []).append(item)

    for place, by_branch in unions.items():
        likely = [items for items in by_branch.values() if not all(_excludes(item, place) for item in items)]
        if likely:
            yield from _of_likely_branches(min(likely, key=len), depth=depth + 1)
        else:
            yield Complaint(place, tuple(item.error for items in by_branch.values() for item in items))


def _excludes(item: _Located, place: Path) -> bool:
    """Whether the value at ``place`` is of another kind than the alternative expects."""
    return item.path == place and _is_kind(item.error)


def _is_kind(error: ErrorDetails) -> bool:
    return error["type"] in _KINDS or error["type"] in {"literal_error", "enum"}


def _kind_text(errors: Sequence[ErrorDetails]) -> str:
    """``must be a whole number or auto, not 'aut'; did you mean auto?``."""
    given = errors[0]["input"]
    choices: list[str] = []
    expected: list[str] = []
    for error in errors:
        if error["type"] in _KINDS:
            expected.append(_KINDS[error["type"]])
        else:
            new = _choices(error["ctx"]["expected"])
            choices += new
            expected.append(_listed(new) if len(new) == 1 or len(errors) > 1 else "one of " + _listed(new))
    return f"must be {_listed(dict.fromkeys(expected))}, not {shown(given)}{_hint(given, errors, choices)}"


def _hint(given: object, errors: Sequence[ErrorDetails], choices: Iterable[str]) -> str:
    """What would be right, where the value given shows what was meant."""
    kinds = {_KINDS.get(error["type"], "") for error in errors}
    if isinstance(given, str):
        near = nearest(given, choices)
        if near:
            return f"; did you mean {_listed(near)}?"
        if "true or false" in kinds and given.lower() in _BOOLEAN_WORDS:
            return f"; write {_BOOLEAN_WORDS[given.lower()]}"
        digits = re.sub(r"_|[,\s](?=\d{3}\b)", "", given[:_LONGEST_SHOWN])
        if kinds & {"a whole number", "a number"} and re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", digits):
            return f"; write {digits}" + (" without quotes" if digits == given else "")
    elif "text" in kinds and isinstance(given, int | float):
        return "; put it in quotes"
    return ""


def _choices(expected: str) -> list[str]:
    """The values in pydantic's ``"'a', 'b' or 3"``."""
    return [quoted or bare for quoted, bare in re.findall(r"'([^']*)'|([^\s,']+)", expected.replace(" or ", ", "))]


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} or {last}" if first else last


def _keys_at(spec_class: type[BaseModel], loc: Iterable[int | str]) -> set[str]:
    """Every key allowed in the mapping at ``loc``."""
    places: list[Any] = [spec_class]
    for part in loc:
        named = [place for place in places if _is_alternative(place, part)]
        places = named or [inner for place in places for inner in _inner_types(place, part)]
    models = [place for place in places if isinstance(place, type) and issubclass(place, BaseModel)]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def _is_alternative(annotation: object, part: int | str) -> bool:
    """Whether ``part`` of a loc is no key but names this member of a union: by its class, or by its own tag."""
    if not isinstance(annotation, type) or not issubclass(annotation, BaseModel) or part in annotation.model_fields:
        return False
    tags = (get_args(field.annotation) for field in annotation.model_fields.values())
    return part == annotation.__name__ or any(part in tag for tag in tags)


def _inner_types(annotation: object, part: int | str) -> list[Any]:
    """The types that a value of type ``annotation`` may hold at ``part`` of a loc."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if part in {name, field.alias}:
                return _alternatives(field.annotation)
        return [annotation]  # a name that pydantic made up, such as that of a validator
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return _alternatives(arguments[1])
    if arguments and isinstance(part, int):
        return [inner for argument in arguments if argument is not Ellipsis for inner in _alternatives(argument)]
    return [annotation]


def _alternatives(annotation: object) -> list[Any]:
    """The members of a union, bare of ``Annotated``; a list of one for anything else."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [inner for argument in get_args(annotation) for inner in _alternatives(argument)]
    return [annotation]
