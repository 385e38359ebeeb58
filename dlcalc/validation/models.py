"""The models that measured runs name: a YAML mapping from name to dimensions, read generously."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dlcalc.errors import DlcalcError, UnknownNameError, nearest
from dlcalc.specs.base import MAX_LAYERS
from dlcalc.specs.load import config_dir
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import is_built_in, load_model, model_names
from dlcalc.specs.wording import shown

LARGEST = 10**9
"""More of anything is a typing error."""


@dataclass(frozen=True)
class Models(Mapping[str, ModelSpec]):
    """What a file of models says; an entry that makes no model is kept with the reason."""

    specs: Mapping[str, ModelSpec]
    refused: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    """Keys that no equation reads."""

    def __getitem__(self, name: str) -> ModelSpec:
        return self.specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def read_models(path: Path) -> Models:
    """The models of a YAML file."""
    try:
        data = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DlcalcError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(data, dict):
        raise DlcalcError(f"{path}: must be a mapping from names of models to their dimensions")
    specs: dict[str, ModelSpec] = {}
    refused: dict[str, str] = {}
    ignored: set[str] = set()
    for name, dims in data.items():
        try:
            specs[str(name)] = model_of(str(name), dims)
        except DlcalcError as error:
            refused[str(name)] = str(error)
        else:
            ignored |= {str(key) for key in dims if key not in ModelSpec.model_fields and key not in UNDERSTOOD}
    return Models(specs, refused, frozenset(ignored))


def models_of_users() -> Models:
    """The models that runs of users may name: those of the published runs, unless a built-in one is called so.

    Published runs of some models (mpt, deepseek) had other dimensions than what is built in and what studies take.
    """
    published = read_models(config_dir() / "measured" / "models.yaml")
    return replace(published, specs={name: one for name, one in published.specs.items() if not is_built_in(name)})


UNDERSTOOD = frozenset({"swa_every", "sliding_window_pattern", "parallel_attn", "causal"})
"""Keys of such a file beside those of a model spec."""


def model_of(name: str, dims: object) -> ModelSpec:
    """A model from its dimensions; unknown keys are left out, missing ones take their usual values."""
    if not isinstance(dims, Mapping):
        raise DlcalcError(f"model {name}: its dimensions are missing")
    known = {key: value for key, value in dims.items() if key in ModelSpec.model_fields and value is not None}
    for key, value in known.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise DlcalcError(f"model {name}: {key} = {shown(value)} is no dimension of a model")
    if odd := next((what for key, what in NOT_A_DECODER.items() if dims.get(key)), ""):
        raise DlcalcError(f"model {name}: {odd}")
    if dims.get("causal") is False:
        raise DlcalcError(f"model {name}: attention that is not causal is not modelled")
    try:
        return _validated(name, known, dims)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DlcalcError(f"model {name}: {where + ': ' if where else ''}{first['msg']}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DlcalcError(f"model {name}: {error}") from error


NOT_A_DECODER = {
    **dict.fromkeys(("encoder_decoder", "is_encoder_decoder"), "encoders beside decoders are not modelled"),
    **dict.fromkeys(
        ("mamba", "mamba_layers", "ssm", "ssm_state", "hybrid_pattern"), "state-space layers are not modelled"
    ),
    **dict.fromkeys(("linear_attention", "lightning_attention"), "linear attention is not modelled"),
}
"""Keys that make another architecture of a model, and why its runs cannot be estimated."""

UNREAD = frozenset({"activation", "router", "rotary", "source", "norm_epsilon"})
"""Fields that no estimate reads, so that no value of theirs keeps a run out."""


def _validated(name: str, known: Mapping[str, Any], dims: Mapping[str, Any]) -> ModelSpec:
    fields = {**known, **_usual(known, dims), "name": name}
    try:
        return ModelSpec.model_validate(fields, strict=False)
    except ValidationError as error:
        wrong = {str(one["loc"][0]) for one in error.errors(include_url=False) if one["loc"]}
        if not wrong or not wrong <= UNREAD:
            raise
    return ModelSpec.model_validate({key: value for key, value in fields.items() if key not in wrong}, strict=False)


def _usual(known: Mapping[str, Any], dims: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the other dimensions where it is not said, and spellings of norms."""
    usual: dict[str, Any] = {}
    heads = known.get("n_heads")
    if heads:
        usual["n_kv_heads"] = known.get("n_kv_heads", heads)
        if "head_dim" not in known and "hidden_size" in known:
            usual["head_dim"] = int(known["hidden_size"]) // int(heads)
    expert_width = known.get("expert_ffn_hidden_size")
    if known.get("n_experts") and not expert_width and "ffn_hidden_size" in known:
        usual["expert_ffn_hidden_size"] = known["ffn_hidden_size"]
    if "ffn_hidden_size" not in known and expert_width:
        usual["ffn_hidden_size"] = expert_width
    if known.get("n_shared_experts") and not known.get("shared_ffn_hidden_size") and expert_width:
        usual["shared_ffn_hidden_size"] = int(known["n_shared_experts"]) * int(expert_width)
    if "norm" in known:
        usual["norm"] = "rmsnorm" if "rms" in str(known["norm"]).lower() else "layernorm"
    if every := next((dims[key] for key in ("swa_every", "sliding_window_pattern") if dims.get(key)), None):
        usual["window_pattern"] = _window_pattern(int(every))
    if dims.get("parallel_attn") and "norms_per_layer" not in known:
        usual["norms_per_layer"] = 1
    return usual


def _window_pattern(every: int) -> tuple[bool, ...]:
    """One layer in ``every`` attends to all tokens, the last of them."""
    if not 1 <= every <= MAX_LAYERS:
        raise ValueError(f"swa_every = {every} must lie between 1 and {MAX_LAYERS}")
    return tuple(layer != every - 1 for layer in range(every)) if every > 1 else (True,)


def find_model(name: str, models: Mapping[str, ModelSpec]) -> ModelSpec:
    """The model called so: among ``models``, else among the built-in ones."""
    if name in models:
        return models[name]
    refused = models.refused if isinstance(models, Models) else {}
    if name in refused:
        raise DlcalcError(refused[name])
    by_plain = {_plain(known): known for known in models}
    if _plain(name) in by_plain:
        return models[by_plain[_plain(name)]]
    try:
        return load_model(name)
    except UnknownNameError:
        near = nearest(name, {*models, *refused, *model_names()})
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise DlcalcError(f"unknown model {name!r}{hint}") from None


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", "-")
