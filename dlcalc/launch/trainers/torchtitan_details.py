"""Positions, routing and norms of a model as literals of torchtitan's module; and what its parts cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dlcalc.costmodel.targets.torchtitan import Family
from dlcalc.specs.model import ModelSpec

ROPE_THETA: Mapping[str, float] = {"llama3": 5e5, "qwen3": 1e6, "deepseek_v3": 1e4, "gpt_oss": 1.5e5}
"""Rotary base of each family's own models, where a model does not say."""
NORM_EPSILON = 1e-5
BALANCING_RATE = 1e-3
"""Of the bias that balances experts, torchtitan's own way."""
COMPLEX = ("llama3", "deepseek_v3")
"""Families whose rotary embedding can be stretched as Llama 3's is."""
OWN_LIMIT, OWN_OFFSET = 7.0, 1.0
"""Of gpt_oss' activation."""


def details(model: ModelSpec, family: Family) -> dict[str, Any]:
    """Literals, everything said."""
    router = model.router
    return {
        "rope": _rope(model, family),
        "mscale_all_dim": model.rotary.scaling.mscale_all_dim if model.rotary.scaling else 0.0,
        "norm_epsilon": model.norm_epsilon or NORM_EPSILON,
        "router": {
            "score_func": router.scores,
            "route_norm": router.normalizes,
            "route_scale": router.scale,
            "num_expert_groups": model.expert_groups if _limited(model) else None,
            "num_limited_groups": model.expert_groups_per_token if _limited(model) else None,
        },
        "balancing_rate": router.bias_update or BALANCING_RATE,
        "swiglu_limit": model.activation_limit or OWN_LIMIT,
    }


def _limited(model: ModelSpec) -> bool:
    return model.expert_groups > 1 and model.expert_groups_per_token > 0


def _rope(model: ModelSpec, family: Family) -> dict[str, Any]:
    scaling = model.rotary.scaling
    found: dict[str, Any] = {"theta": model.rotary.base or ROPE_THETA[family]}
    if scaling is None or not _stretches(model, family):
        return found
    if scaling.kind == "llama3":
        return found | {
            "scaling": "llama",
            "scaling_factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq,
        }
    return found | {
        "scaling": "yarn",
        "rope_factor": scaling.factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "original_seq_len": scaling.original_max_seq,
        "truncate": scaling.rounds,
    }


def _stretches(model: ModelSpec, family: Family) -> bool:
    """YaRN scales attention too, which two families do."""
    scaling = model.rotary.scaling
    if scaling is None:
        return True
    if scaling.kind == "llama3":
        return family in COMPLEX
    return scaling.kind == "yarn" and family in ("deepseek_v3", "gpt_oss")


def unsaid(model: ModelSpec, family: Family) -> Iterator[str]:
    """Parts of the model that these literals do not say, and what is trained instead."""
    rotary, scaling = model.rotary, model.rotary.scaling
    if rotary.base is None:
        yield f"The model does not say its rotary base: {ROPE_THETA[family]:g} is that of torchtitan's own {family}."
    if rotary.fraction != 1:
        yield f"All dimensions of a head turn, not {rotary.fraction:.0%}: torchtitan has no part of them."
    if scaling is not None and not _stretches(model, family):
        yield f"Positions are not stretched: torchtitan's {family} has no {scaling.kind} scaling."
    if scaling is not None and scaling.kind == "yarn" and family == "deepseek_v3":
        if scaling.mscale != scaling.mscale_all_dim:
            yield "YaRN scales attention on all dimensions alone (mscale_all_dim), as torchtitan has no other."
    elif scaling is not None and scaling.kind == "yarn" and (scaling.mscale, scaling.mscale_all_dim) != (1, 0):
        yield "YaRN's scale of attention is its authors' own (mscale 1)."
    yield from _unsaid_of_activation(model, family)
    if model.is_moe and model.router.bias_update is None:
        yield "Experts are balanced by a bias, torchtitan's own way, not by a loss: it has none."
    elif model.is_moe and model.router.balance_loss:
        yield "Experts are balanced by their bias alone: torchtitan has no loss for that."
    if model.expert_groups_per_token and not _limited(model):
        yield "The router is not limited to groups of experts: the model does not say how many there are."


def _unsaid_of_activation(model: ModelSpec, family: Family) -> Iterator[str]:
    if family == "gpt_oss":
        if model.activates_by != "quick_gelu" or model.activation_offset != OWN_OFFSET:
            yield "MLPs use gpt-oss' own activation (quick GELU, clamped, plus one): its experts have no other."
        elif model.activation_limit is None:
            yield f"The activation is clamped at {OWN_LIMIT:g}, as the model does not say its limit."
    elif model.activates_by != "silu" or model.activation_limit:
        yield f"MLPs use SwiGLU: torchtitan's {family} has no other activation."
