"""Numbers as people type them on a command line: ``70b``, ``64x8``, ``52.4``; nonsense is one clear line.

``what`` is the option, for the message. A number is plain decimal text: no ``nan``, ``inf`` or ``1_000``.
"""

from __future__ import annotations

import math
import re

from dlcalc.errors import DlcalcError

SMALLEST, LARGEST = 1e-9, 1e18
"""Beyond these, no quantity of training makes sense, and products may overflow."""
MAX_DEVICES = 10_000_000

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([a-z]*)", re.ASCII | re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9][\w. ()-]*", re.ASCII | re.IGNORECASE)
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NOT_NUMBERS = {"nan", "inf", "infinity"}


def is_number(text: str) -> bool:
    """Whether ``text`` is meant as a number, whatever its value."""
    return bool(_NUMBER.fullmatch(text.strip())) or text.strip().lstrip("+-").casefold() in _NOT_NUMBERS


def positive_number(text: str, what: str, example: str = "52.4") -> float:
    """``text`` as a number above 0."""
    if not _NUMBER.fullmatch(text.strip()):
        raise DlcalcError(f"{what}: {_shown(text)} is not a number above 0, such as {example}")
    return _in_range(float(text), text, what)


def dollars(text: str, what: str, example: str) -> float:
    """US dollars: ``50e6``, ``50M``, ``$2.49``."""
    plain = text.strip().removeprefix("$").strip()
    found = _SIZE.fullmatch(plain)
    if found is not None and found[2].casefold() in _SUFFIXES:
        return _in_range(float(found[1]) * _SUFFIXES[found[2].casefold()], text, what)
    if not _NUMBER.fullmatch(plain):
        raise DlcalcError(f"{what}: {_shown(text)} is not a number of US dollars above 0, such as {example}")
    return _in_range(float(plain), text, what)


def positive_count(text: str, what: str, example: str) -> int:
    """``text`` as a whole number above 0; ``8e3`` is one."""
    if not _NUMBER.fullmatch(text.strip()) or not float(text).is_integer():
        raise DlcalcError(f"{what}: {_shown(text)} is not a whole number above 0, such as {example}")
    return int(_in_range(float(text), text, what))


def fraction(text: str, what: str) -> float:
    """``text`` as a share: above 0 and at most 1."""
    if _NUMBER.fullmatch(text.strip()) and SMALLEST <= float(text) <= 1.0:
        return float(text)
    percent = "; 95 % is 0.95" if is_number(text) and 1 < float(text) <= 100 else ""
    raise DlcalcError(f"{what}: {_shown(text)} is not a number above 0 and at most 1, such as 0.95{percent}")


def device_count(text: str, what: str) -> int:
    """``512``, or nodes times devices of each: ``64x8``."""
    factors = text.strip().casefold().split("x")
    if not 1 <= len(factors) <= 2 or not all(re.fullmatch(r"\d{1,18}", factor, re.ASCII) for factor in factors):
        raise DlcalcError(
            f"{what}: {_shown(text)} is neither a number of devices, such as 512, nor nodes x devices, such as 64x8"
        )
    n_devices = math.prod(map(int, factors))
    if not 1 <= n_devices <= MAX_DEVICES:
        raise DlcalcError(f"{what}: {_shown(text)} is {n_devices:,} devices; it must be from 1 to {MAX_DEVICES:,}")
    return n_devices


def model_size(text: str, what: str) -> float | None:
    """Parameters that ``70b``, ``1.5t`` or ``350m`` stands for; None if it is no size but a name or a path."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        if is_number(text):
            raise DlcalcError(f"{what}: {_shown(text)} is not a size; sizes are such as 350m, 70b or 1.5t")
        return None
    number, suffix = found.groups()
    if suffix.casefold() not in _SUFFIXES:
        unit = f"{suffix!r} is no unit" if suffix else "the unit is missing"
        raise DlcalcError(f"{what}: {_shown(text)} is not a size: {unit}; sizes are such as 350m, 70b or 1.5t")
    return _in_range(float(number) * _SUFFIXES[suffix.casefold()], text, what)


def token_count(text: str, what: str) -> float:
    """Tokens that ``15T``, ``300b`` or ``15e12`` stands for."""
    if _NUMBER.fullmatch(text.strip()):
        return _in_range(float(text), text, what)
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].casefold() not in _SUFFIXES:
        raise DlcalcError(f"{what}: {_shown(text)} is not a number of tokens; they are such as 15T, 300b or 15e12")
    return _in_range(float(found[1]) * _SUFFIXES[found[2].casefold()], text, what)


def named_number(text: str, what: str, example: str, *, is_money: bool = False) -> tuple[str, float]:
    """``NAME=NUMBER``, the number above 0."""
    usual_name, _, usual = example.partition("=")
    name, sign, value = (part.strip() for part in text.rpartition("="))
    alone = "" if sign else value
    if alone and is_number(alone.removeprefix("$")):
        name, value = "", alone
    elif alone and _NAME.fullmatch(alone):
        name, value = alone, ""
    elif not sign:
        raise DlcalcError(f"{what}: {_shown(text)} is not NAME=NUMBER, such as {example}")
    if not name or not value:
        missing = "number" if name else "name"
        right = f"{name or usual_name}={value or usual}"
        raise DlcalcError(f"{what}: {_shown(text)} has no {missing}; write NAME=NUMBER, such as {what} {right}")
    read = dollars if is_money else positive_number
    return name, read(value, f"{what} {name}", usual)


def _in_range(value: float, text: str, what: str) -> float:
    if not value > 0:
        raise DlcalcError(f"{what}: {_shown(text)} must be above 0")
    if not SMALLEST <= value <= LARGEST:
        raise DlcalcError(f"{what}: {_shown(text)} must be between {SMALLEST:g} and {LARGEST:g}")
    return value


def _shown(text: str) -> str:
    """What was typed, on one line and not too long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
