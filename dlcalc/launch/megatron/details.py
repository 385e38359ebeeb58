"""Positions, activation and routing of a network in the options of Megatron-Core, and back; what none of them can say.

Source: megatron-core 0.19.2, https://github.com/NVIDIA/Megatron-LM/tree/core_r0.19.0/megatron
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from dlcalc.launch.megatron.options import Value
from dlcalc.launch.megatron.said import Said
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_details import Activation, Rotary, RotaryScaling, Router
from dlcalc.specs.target import Target

PLAIN = RotaryScaling(kind="yarn")
"""YaRN as Megatron has it where nothing is said."""
LLAMA3 = RotaryScaling(kind="llama3", factor=8.0, original_max_seq=8192)
"""The one that --use-rope-scaling is."""
GATE, FUNCTION = "gated_linear_unit", "activation_func"
"""Settings that are fields of Megatron-Bridge and no options of Megatron-LM."""
STRETCHES = ("yarn", "llama3", "linear")
BALANCE_TYPES = {"batch": "aux_loss", "sequence": "seq_aux_loss"}
UPDATE_RATE = 1e-3
GATED: Mapping[Activation, str] = {"silu": "swiglu", "quick_gelu": "quick_geglu"}
UNGATED: Mapping[Activation, str | None] = {"gelu": None, "gelu_tanh": None, "relu2": "squared_relu"}
"""Flags of activations; None: the default."""


# ---- positions


def position_settings(model: ModelSpec) -> dict[str, Value]:
    """Of rotary embeddings. Under latent attention YaRN's serve unstretched ones too, as that kernel is fused."""
    rotary, scaling = model.rotary, model.rotary.scaling
    if model.learned_positions:
        return {"position_embedding_type": "learned_absolute"}
    kind = scaling.kind if scaling else None
    stretched = kind == "yarn" and (model.is_mla or not model.mtp_layers)
    found: dict[str, Value] = {
        "position_embedding_type": "yarn" if stretched and not model.is_mla else "rope",
        "rotary_base": round(rotary.base) if rotary.base else None,
        "rotary_percent": rotary.fraction if rotary.fraction != 1 else None,
    }
    if model.is_mla or stretched:
        found |= _yarn(scaling if scaling and stretched else PLAIN)
    if model.is_mla:
        found["rope_type"] = "yarn"
    elif scaling and kind == "llama3":
        found |= {"use_rope_scaling": True, "rope_scaling_factor": scaling.factor}
    elif scaling and kind == "linear":
        found["rotary_seq_len_interpolation_factor"] = round(scaling.factor)
    return found


def _yarn(scaling: RotaryScaling) -> dict[str, Value]:
    return {
        "rotary_scaling_factor": scaling.factor,
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
        "yarn_original_max_position_embeddings": scaling.original_max_seq,
        "yarn_beta_fast": scaling.beta_fast,
        "yarn_beta_slow": scaling.beta_slow,
        "yarn_correction_range_round_to_int": scaling.rounds,
    }


def rotary_of(said: Said) -> Rotary:
    """The rotary embedding that options describe."""
    base, fraction = said.get("rotary_base"), said.get("rotary_percent")
    return Rotary(
        base=float(base) if isinstance(base, int | float) and "rotary_base" in said.values else None,
        fraction=fraction if isinstance(fraction, float) and 0 < fraction <= 1 else 1.0,
        scaling=_scaling_of(said),
    )


def _scaling_of(said: Said) -> RotaryScaling | None:
    latent = said.on("multi_latent_attention")
    stretch = said.number("rotary_scaling_factor", 1.0)
    if stretch > 1 and (said.get("rope_type") != "rope" if latent else said.get("position_embedding_type") == "yarn"):
        return RotaryScaling(
            kind="yarn",
            factor=stretch,
            original_max_seq=said.count("yarn_original_max_position_embeddings") or PLAIN.original_max_seq,
            beta_fast=said.number("yarn_beta_fast", PLAIN.beta_fast) or PLAIN.beta_fast,
            beta_slow=said.number("yarn_beta_slow", PLAIN.beta_slow) or PLAIN.beta_slow,
            mscale=said.number("mscale", PLAIN.mscale),
            mscale_all_dim=said.number("mscale_all_dim", PLAIN.mscale_all_dim),
            rounds=said.get("yarn_correction_range_round_to_int") is not False,
        )
    if said.on("use_rope_scaling"):
        return LLAMA3.model_copy(update={"factor": said.number("rope_scaling_factor", LLAMA3.factor)})
    linear = said.number("rotary_seq_len_interpolation_factor", 0.0)
    return RotaryScaling(kind="linear", factor=linear) if linear > 1 else None


# ---- activation


def activation_settings(model: ModelSpec) -> dict[str, Value]:
    """The gate and its function; where Megatron-LM has no flag of it, the usual one."""
    flag = GATED.get(model.activates_by, "swiglu") if model.gated_mlp else UNGATED.get(model.activates_by)
    return {
        "swiglu": flag == "swiglu",
        "quick_geglu": flag == "quick_geglu",
        "squared_relu": flag == "squared_relu",
        "activation_func_clamp_value": model.activation_limit,
        "glu_linear_offset": model.activation_offset or None,
        GATE: model.gated_mlp,
        FUNCTION: model.activates_by,
    }


def activation_of(said: Said) -> dict[str, object]:
    """Fields of a model."""
    limit = said.get("activation_func_clamp_value")
    flags: Mapping[str, Activation] = {"swiglu": "silu", "quick_geglu": "quick_gelu", "squared_relu": "relu2"}
    function = said.values.get(FUNCTION) or next((name for flag, name in flags.items() if said.on(flag)), "gelu")
    return {
        "gated_mlp": bool(said.values.get(GATE, said.on("swiglu") or said.on("quick_geglu"))),
        "activation": function if function in get_args(Activation) else None,
        "activation_limit": float(limit) if isinstance(limit, int | float) and limit > 0 else None,
        "activation_offset": said.number("glu_linear_offset", 0.0),
    }


# ---- routing


def routing_settings(model: ModelSpec) -> dict[str, Value]:
    """How experts are chosen and weighed."""
    router = model.router
    settings: dict[str, Value] = {
        "moe_router_score_function": router.scores,
        # one weight alone has no gradient behind a softmax over the chosen
        "moe_router_pre_softmax": router.scores == "softmax" and (model.top_k == 1 or not router.normalizes),
        "moe_router_topk_scaling_factor": router.scale if router.scale != 1 else None,
    }
    if router.bias_update is not None and router.scores == "sigmoid":
        settings |= {"moe_router_enable_expert_bias": True, "moe_router_bias_update_rate": router.bias_update}
    if router.balance_loss:
        settings["moe_router_load_balancing_type"] = (BALANCE_TYPES[router.balances],)
        settings["moe_aux_loss_coeff"] = (f"{router.balance_loss:g}",)
    return settings


def router_of(said: Said) -> Router:
    """The router that options describe."""
    scores = said.get("moe_router_score_function")
    if scores not in ("softmax", "sigmoid"):
        said.notes.append(f"The router's scores ({scores}) are taken for sigmoids.")
    kinds, losses = _words(said, "moe_router_load_balancing_type"), _words(said, "moe_aux_loss_coeff")
    if len(kinds) > 1:
        said.notes.append(f"Of the ways to balance experts ({', '.join(kinds)}) the first is kept.")
    loss = float(losses[0]) if losses and kinds[0] != "none" else 0.0
    scale = said.number("moe_router_topk_scaling_factor", 1.0)
    return Router(
        scores="softmax" if scores == "softmax" else "sigmoid",
        normalizes=not said.on("moe_router_pre_softmax") or said.count("moe_router_topk") == 1,
        scale=scale if scale > 0 else 1.0,
        bias_update=said.number("moe_router_bias_update_rate", UPDATE_RATE)
        if said.on("moe_router_enable_expert_bias")
        else None,
        balance_loss=loss if loss > 0 else None,
        balances="sequence" if kinds and kinds[0] == "seq_aux_loss" else "batch",
    )


def _words(said: Said, name: str) -> tuple[str, ...]:
    value = said.get(name)
    return value if isinstance(value, tuple) else (str(value),)


# ---- what cannot be said


def unsaid(model: ModelSpec, target: Target) -> Iterator[str]:
    """Parts of the network that no option of ``target`` describes, and what is trained instead."""
    if not model.learned_positions:
        yield from _unsaid_of_positions(model, target)
    if target == "megatron-lm":
        function, flags = model.activates_by, GATED if model.gated_mlp else UNGATED
        if function not in flags:
            yield f"MLPs use {'SwiGLU' if model.gated_mlp else 'GELU'}: Megatron-LM has no flag for {function} here."
    if model.is_moe:
        yield from _unsaid_of_router(model)


def _unsaid_of_positions(model: ModelSpec, target: Target) -> Iterator[str]:
    rotary, scaling = model.rotary, model.rotary.scaling
    if rotary.base is None:
        yield "The model does not say the base of its rotary embedding: 10,000 is Megatron's. No time depends on it."
    elif rotary.base != round(rotary.base):
        yield f"The base of the rotary embedding is {round(rotary.base)}, not {rotary.base:g}: it must be whole."
    if scaling is None:
        return
    lm = target == "megatron-lm"
    if scaling.kind not in STRETCHES or (model.is_mla and scaling.kind != "yarn"):
        yield f"Positions are not stretched: Megatron has no {scaling.kind} scaling here."
    elif scaling.kind == "yarn" and model.mtp_layers and not model.is_mla:
        yield "Positions are not stretched: Megatron has YaRN beside multi-token prediction in latent attention alone."
    elif scaling.kind == "yarn" and model.is_mla and lm:
        for name, usual in (("original_max_seq", 4096), ("beta_fast", 32.0), ("beta_slow", 1.0)):
            if getattr(scaling, name) != usual:
                yield (
                    f"YaRN's {name} is {usual:g}, not {getattr(scaling, name):g}: Megatron-LM has no flag for it under "
                    "latent attention, Megatron-Bridge a field."
                )
    elif scaling.kind == "linear" and lm and scaling.factor != round(scaling.factor):
        yield f"Positions are stretched {round(scaling.factor)} times, not {scaling.factor:g}: it must be whole."
    elif scaling.kind == "llama3":
        told = {"factor"} if target == "megatron-bridge" else set()
        for name in ("factor", "original_max_seq", "low_freq_factor", "high_freq_factor"):
            if name not in told and getattr(scaling, name) != getattr(LLAMA3, name):
                yield f"Llama 3's {name} is {getattr(LLAMA3, name):g} in Megatron, not {getattr(scaling, name):g}."


def _unsaid_of_router(model: ModelSpec) -> Iterator[str]:
    router = model.router
    if router.scores == "sigmoid" and not router.normalizes and model.top_k > 1:
        yield "Weights of a token's experts add up to one: Megatron normalizes sigmoids, which this model does not."
    if router.bias_update is not None and router.scores != "sigmoid":
        yield "Experts are not balanced by a bias: Megatron has that for sigmoid scores alone."
