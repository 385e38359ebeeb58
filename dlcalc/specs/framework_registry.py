"""Finds a framework profile: a built-in name or the path of a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlcalc.errors import FieldError, UnknownNameError, suggestion
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.load import config_dir, load_spec


def framework_names() -> tuple[str, ...]:
    """The built-in profiles."""
    return tuple(sorted(file.stem for file in (config_dir() / "frameworks").glob("*.yaml")))


def load_framework(name_or_path: str, changes: Mapping[str, Any] | None = None) -> FrameworkProfile:
    """The profile called so, with some of its settings replaced by ``changes``."""
    folder = config_dir() / "frameworks"
    file = folder / f"{name_or_path}.yaml"
    if not os.path.isfile(file):
        file = Path(name_or_path)
        if file.suffix not in (".yaml", ".yml"):
            raise UnknownNameError("framework", name_or_path, framework_names())
    profile = load_spec(file, FrameworkProfile)
    if not changes:
        return profile
    for key in changes:
        if key not in FrameworkProfile.model_fields:
            text = f"no such setting; {suggestion(key, FrameworkProfile.model_fields)}"
            raise FieldError(("profile", key), text)
    try:
        return FrameworkProfile.model_validate({**profile.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise FieldError(("profile", *first["loc"]), f"{first['msg']}, not {first['input']!r}") from error
