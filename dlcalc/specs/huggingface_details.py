"""What a ``config.json`` says of a network beyond its dimensions: rotary positions, router, activation, norms.

Defaults are those of each architecture's own configuration class, as for dimensions.

Source: https://github.com/huggingface/transformers, configuration and modeling files of each architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.specs.huggingface_fields import Config, Dimensions
from dlcalc.specs.model_details import Activation, Rotary, RotaryScaling, Router

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""By the names of files."""
USUAL_ACTIVATION: Mapping[str, Activation] = {"gpt2": "gelu_tanh", "gpt_neox": "gelu", "mpt": "gelu"}
SCALINGS = ("yarn", "llama3", "linear", "longrope", "dynamic")
BIAS_UPDATE = 0.001
"""Of DeepSeek-V3's training: https://arxiv.org/abs/2412.19437 section 4.2; no file has it."""
USUAL_BASE = {"mixtral": 1e6, "gpt_oss": 1.5e5, "gemma3_text": 1e6}
WITHOUT_ROTARY = ("gpt2", "mpt")
"""The latter's, off unless switched on, are not read."""


def details_of(config: Config) -> Dimensions:
    """Fields of a ModelSpec that no estimate reads."""
    kind = config.model_type
    word = config.values.get("hidden_activation") or config.values.get("hidden_act")
    word = word or config.values.get("activation_function")
    details: Dimensions = {
        "norm_epsilon": config.number("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
        "activation": ACTIVATIONS.get(str(word), USUAL_ACTIVATION.get(kind)),
        "router": _router(config),
    }
    if kind not in WITHOUT_ROTARY:
        details["rotary"] = _rotary(config)
    if kind == "gpt_oss":  # whose file says silu; its code has another
        details |= {"activation": "quick_gelu", "activation_limit": config.number("swiglu_limit", default=7.0)}
        details["activation_offset"] = 1.0
    return details


# ---- positions


def _rotary(config: Config) -> Rotary:
    """Transformers 5 has everything in ``rope_parameters``, by kinds of layers where these differ."""
    newer = config.section("rope_parameters")
    newer = newer.section("full_attention") if newer.has("full_attention") else newer
    older = config.section("rope_scaling")
    fraction = config.number("partial_rotary_factor", "rotary_pct") or newer.number("partial_rotary_factor")
    fraction = fraction or (0.25 if config.model_type == "gpt_neox" else 1.0)
    usual = USUAL_BASE.get(config.model_type, 10_000.0)
    return Rotary(
        base=config.number("rope_theta", "rotary_emb_base") or newer.number("rope_theta", default=usual),
        fraction=min(fraction, 1.0),
        scaling=_scaling(older if older.values else newer, config),
    )


def _scaling(told: Config, config: Config) -> RotaryScaling | None:
    kind = told.word("rope_type", default=told.word("type", default="default"))
    if kind not in SCALINGS:
        return None
    outer = config.number("original_max_position_embeddings")
    original = told.number("original_max_position_embeddings", default=outer)
    longest = config.number("max_position_embeddings")
    stretch = longest / original if longest and original else 1.0
    factor = told.number("factor", default=stretch) or 1.0
    told_apart = {name: told.number(name) for name in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")}
    return RotaryScaling(
        kind=kind,  # type: ignore[arg-type] # one of SCALINGS
        factor=factor,
        original_max_seq=round(original or longest or 4096),
        mscale=told.number("mscale", default=1.0) or 1.0,
        mscale_all_dim=told.number("mscale_all_dim") or 0.0,
        rounds=told.flag("truncate", default=True),
        **{name: value for name, value in told_apart.items() if value is not None},
    )


# ---- experts


def _router(config: Config) -> Router:
    match config.model_type:
        case "deepseek_v2" | "deepseek_v3" | "kimi_k2":
            return _router_of_deepseek(config)
        case "qwen2_moe" | "qwen3_moe" | "qwen3_vl_moe_text":
            normalizes = config.flag("norm_topk_prob", default=config.model_type == "qwen3_vl_moe_text")
            return Router(normalizes=normalizes, balance_loss=config.number("router_aux_loss_coef"))
        case "mixtral":
            return Router(balance_loss=config.number("router_aux_loss_coef"))
    return Router()


def _router_of_deepseek(config: Config) -> Router:
    """V3's is meant to need no loss: a bias per expert, moved after every step, decides who is chosen."""
    second = config.model_type == "deepseek_v2"
    scores = config.word("scoring_func", default="softmax" if second else "sigmoid")
    if scores not in ("softmax", "sigmoid"):
        raise config.refused("scoring_func", f"{scores!r} is not supported; softmax and sigmoid are")
    biased = config.word("topk_method", default="greedy" if second else "noaux_tc") == "noaux_tc"
    return Router(
        scores="sigmoid" if scores == "sigmoid" else "softmax",
        normalizes=config.flag("norm_topk_prob", default=not second),
        scale=config.number("routed_scaling_factor", default=1.0 if second else 2.5) or 1.0,
        bias_update=BIAS_UPDATE if biased else None,
        balance_loss=config.number("aux_loss_alpha"),
        balances="sequence" if config.flag("seq_aux", default=True) else "batch",
    )
