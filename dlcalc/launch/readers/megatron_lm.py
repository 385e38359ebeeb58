"""Megatron-LM's arguments: a command line or script, or YAML of argument names. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dlcalc.errors import Problem, SpecError
from dlcalc.launch.imported import Imported
from dlcalc.launch.megatron.known import KNOWN
from dlcalc.launch.megatron.options import BY_FLAG, BY_NAME, EFFECTLESS, Option
from dlcalc.launch.megatron.said import Place, Said, parsed, unknown
from dlcalc.launch.megatron.understand import imported
from dlcalc.launch.readers.launcher import COUNTS, OTHERS, PROGRAMS, count_said, devices_of
from dlcalc.launch.readers.shell_words import Word, shell_words
from dlcalc.specs.marked_yaml import Marks, Mistake, read_marked

ARGUMENTS_KEY = "MODEL_ARGS"
"""Of the YAML files that Megatron's functional tests are written in."""
_YAML_KEY = re.compile(r"^[\"']?[\w-]+[\"']?\s*:(\s|$)")


def read(text: str, file: Path) -> Imported:
    """One run of ``pretrain_gpt.py``."""
    said = Said(file)
    if is_yaml(text, file):
        _read_yaml(text, said)
        return imported(said, "megatron-lm")
    devices = _read_words(shell_words(text, file), said)
    return imported(said, "megatron-lm", devices=devices)


def is_yaml(text: str, file: Path) -> bool:
    """By the name of the file, or because its first line is a key."""
    if file.suffix.lower() in (".yaml", ".yml"):
        return True
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return bool(_YAML_KEY.match(first))


class _Given(NamedTuple):
    """An option as it was written, with the words behind it."""

    place: Place
    flag: str
    words: list[Word]


def _read_words(words: list[Word], said: Said) -> int | None:
    """Everything said on a command line; the devices that torchrun was told of."""
    counts: dict[str, int] = {}
    for given in _options(words, said):
        if given.flag in COUNTS:
            counts |= count_said(given.flag, given.words)
        elif option := BY_FLAG.get(given.flag):
            if option.name in EFFECTLESS and any(word.unset or word.executed for word in given.words):
                said.ignore(given.flag)
                continue
            _check_known(given, said)
            _set(said, option, [word.text for word in given.words], given.place)
        elif given.flag in KNOWN:
            said.ignore(given.flag)
        elif not OTHERS.fullmatch(given.flag):
            unknown(said, given.flag, BY_FLAG, given.place)
    return devices_of(counts)


def _options(words: list[Word], said: Said) -> Iterator[_Given]:
    """Flags with the words up to the next flag; ``--flag=word`` is one of each."""
    given: _Given | None = None
    for word in words:
        if re.match(r"--[A-Za-z]", word.text):
            if given:
                yield given
            flag, equals, value = word.text.partition("=")
            given = _Given(Place(word.line, flag), flag, [])
            if equals or (word.unset and "=" in word.text):
                given.words.append(word._replace(text=value))
        elif given and _ends_options(word, given):
            yield given
            given = None
        elif given:
            given.words.append(word)
        elif word.text.endswith(".py") or word.text in PROGRAMS:
            continue
    if given:
        yield given
    elif not said.values and not any(word.text.startswith("--") for word in words):
        raise SpecError(said.file, (Problem(0, "", "holds no option (--name) of Megatron-LM"),))


def _ends_options(word: Word, given: _Given) -> bool:
    """Whether a word belongs to no option: the program itself, an array of options, or what follows a switch."""
    option = BY_FLAG.get(given.flag)
    full = option is not None and option.kind != "words" and len(given.words) >= (option.kind not in ("on", "off"))
    other = option is None and bool(given.words)
    is_list = bool(word.unset) and not word.text
    return (full or other) and (is_list or word.text.endswith(".py") or word.text in PROGRAMS)


def _check_known(given: _Given, said: Said) -> None:
    """An option that counts must have values that the file itself says."""
    for word in given.words:
        if word.unset:
            names = " and ".join(f"${name}" for name in dict.fromkeys(word.unset))
            raise said.error(given.place, f"its value is the variable {names}, which this file does not set")
        if word.executed:
            raise said.error(given.place, f"its value is what a command prints ({word.text}); write the value itself")


def _set(said: Said, option: Option, words: list[str], place: Place) -> None:
    if option.kind in ("on", "off"):
        if words:
            raise said.error(place, f"takes no value, but is followed by {words[0]!r}")
        said.set(option.name, option.kind == "on", place)
    else:
        said.set(option.name, parsed(said, option, words, place), place)


# ---- YAML


def _read_yaml(text: str, said: Said) -> None:
    """Argument names as keys, at the top or under ``MODEL_ARGS``; with or without dashes in front."""
    try:
        data, marks = read_marked(text)
    except Mistake as mistake:
        raise SpecError(said.file, mistake.problems) from None
    if isinstance(data, dict) and ARGUMENTS_KEY in data:
        data, marks = data[ARGUMENTS_KEY], marks.within((ARGUMENTS_KEY,))
    if not isinstance(data, dict):
        raise SpecError(said.file, (Problem(marks.line, ARGUMENTS_KEY, "must be a mapping of arguments to values"),))
    for key, value in data.items():
        _read_entry(str(key), value, Place(_line(marks, key), str(key)), said)


def _line(marks: Marks, key: object) -> int:
    return marks.line_of((key,))


def _read_entry(key: str, value: object, place: Place, said: Said) -> None:
    """One key: the name of a flag, or the name under which Megatron keeps its value."""
    flag = "--" + key.lstrip("-").replace("_", "-")
    is_flag = flag in BY_FLAG
    option = BY_FLAG.get(flag) or BY_NAME.get(key.replace("-", "_"))
    if option is None:
        if key in KNOWN or flag in KNOWN:
            said.ignore(key)
        else:
            unknown(said, flag, BY_FLAG, place)
    elif value is None or (is_flag and value is False):
        return  # as if it was not there
    elif isinstance(value, bool) != (option.kind in ("on", "off")):
        wanted = "a value" if isinstance(value, bool) else "true or false"
        raise said.error(place, f"must be {wanted}, not {str(value).lower()}")
    elif isinstance(value, bool):
        said.set(option.name, option.kind == "on" if is_flag else value, place)
    else:
        said.set(option.name, parsed(said, option, _yaml_words(option, value), place), place)


def _yaml_words(option: Option, value: object) -> list[str]:
    """The words that Megatron's own test launcher would pass: lists in brackets and escapes are taken apart."""
    if isinstance(value, (list, tuple)):
        return [str(word) for word in value]
    text = re.sub(r"\\+([|()*])", r"\1", str(value))
    if option.kind == "words":
        return text.strip("[]").replace(",", " ").split()
    return [text]
