"""Finds a model: a built-in name, a model YAML or a Hugging Face config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dlcalc.errors import DlcalcError, UnknownNameError
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.load import config_dir, load_spec
from dlcalc.specs.model import ModelSpec

SUFFIXES = (".yaml", ".yml", ".json")


def load_model(name_or_path: str | Path) -> ModelSpec:
    """The model called so, or described by the file (or the folder of a ``config.json``) there.

    Names ignore case and take ``_`` for ``-``. A file ends in .yaml, .yml or .json; any other JSON file than a
    Hugging Face ``config.json`` is refused for what it lacks.
    """
    if isinstance(name_or_path, str) and (built_in := _built_in_models().get(_plain(name_or_path))):
        return built_in
    file = Path(name_or_path)
    if os.path.isdir(file):
        file /= "config.json"
    suffix = file.suffix.lower()
    if suffix == ".json":
        return load_huggingface_config(file)
    if suffix in SUFFIXES:
        return load_spec(file, ModelSpec)
    if os.path.isfile(file):
        raise DlcalcError(f"{file}: the name of a model file must end in {', '.join(SUFFIXES)}")
    raise UnknownNameError("model", str(name_or_path), _built_in_models())


def model_names() -> tuple[str, ...]:
    """The built-in models, without their aliases."""
    return tuple(sorted({model.name for model in _built_in_models().values()}))


def is_built_in(name: str) -> bool:
    """Whether a built-in model is called so."""
    return _plain(name) in _built_in_models()


@cache
def _built_in_models() -> Mapping[str, ModelSpec]:
    """Every built-in model by its name and by each of its aliases."""
    models: dict[str, ModelSpec] = {}
    for file in sorted((config_dir() / "models").glob("*.yaml")):
        model = load_spec(file, ModelSpec)
        for name in (model.name, *model.aliases):
            models[_plain(name)] = model
    return models


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", "-")
