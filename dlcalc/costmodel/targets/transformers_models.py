"""Which models Hugging Face transformers builds from dimensions alone, for the trainers that bring no models."""

from __future__ import annotations

from typing import Literal

from dlcalc.specs.model import ModelSpec

ModelType = Literal["llama", "qwen2", "qwen3", "gpt2"]


def model_type_of(model: ModelSpec) -> ModelType | None:
    """The ``model_type`` whose layers ``model`` has; None: none of those that are written here."""
    if misfit_of(model):
        return None
    if model.learned_positions:
        return "gpt2"
    if model.qk_norm:
        return "qwen3"
    return "qwen2" if model.qkv_bias else "llama"


def misfit_of(model: ModelSpec) -> str:
    """The first part of ``model`` that keeps it from being any of the types; empty where nothing does."""
    gpt = model.learned_positions
    whole_heads = model.head_dim * model.n_heads == model.hidden_size
    misfits = {
        "experts": model.is_moe,
        "latent attention": model.is_mla,
        "sliding windows": model.sliding_window > 0,
        "attention sinks": model.attention_sinks,
        "ALiBi": model.alibi,
        "a norm behind the embedding": model.embedding_norm,
        "a bias on the LM head": model.head_bias,
        "another number of norms a layer than 2": model.norms_per_layer != 2,
        "multi-token prediction": model.mtp_layers > 0,
        "learned positions in a layer unlike GPT-2's": gpt and not _is_gpt2(model),
        "an MLP without a gate": not gpt and not model.gated_mlp,
        "LayerNorm": not gpt and (model.norm != "rmsnorm" or bool(model.norm_bias)),
        "norms and biases of several models": not gpt and _mixes_biases(model),
        "head_dim other than hidden_size / n_heads": gpt and not whole_heads,
    }
    return next((name for name, found in misfits.items() if found), "")


def _is_gpt2(model: ModelSpec) -> bool:
    return (
        model.linear_bias
        and model.norm == "layernorm"
        and model.norm_bias is not False
        and model.n_kv_heads == model.n_heads
        and not (model.gated_mlp or model.qk_norm)
    )


def _mixes_biases(model: ModelSpec) -> bool:
    """Qwen2 alone has biases on Q, K and V only, Qwen3 alone normalizes them, and neither has biases in the MLP."""
    mlp = model.linear_bias or model.mlp_bias
    return (model.qk_norm and (model.qkv_bias or mlp)) or (model.qkv_bias and (mlp or model.attention_bias))
