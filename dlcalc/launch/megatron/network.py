"""The network that options of Megatron-Core describe."""

from __future__ import annotations

from collections.abc import Callable

from dlcalc.launch.megatron.details import activation_of, rotary_of, router_of
from dlcalc.launch.megatron.patterns import PatternError, kinds_of
from dlcalc.launch.megatron.said import Said
from dlcalc.specs.base import MAX_LAYERS
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_details import Rotary

VOCABULARIES = {"GPT2BPETokenizer": 50257, "Llama2Tokenizer": 32000}
"""Of tokenizers whose type alone says how many tokens they have."""
MODEL_NAME = "imported"
Every = Callable[[int, int], bool]
"""Whether the layer of an index is of a kind, where one layer in so many is set apart."""


def model_of(said: Said) -> ModelSpec:
    """Dimensions of the transformer, with Megatron's defaults for what is not said."""
    n_layers, hidden, heads = (said.whole(name) for name in ("num_layers", "hidden_size", "num_attention_heads"))
    if n_layers > MAX_LAYERS:
        raise said.mistake("num_layers", f"{n_layers} layers are a mistake; at most {MAX_LAYERS} are read")
    latent = said.on("multi_latent_attention")
    position = said.get("position_embedding_type")
    rotary = said.on("use_rotary_position_embeddings")
    fields = {
        "name": MODEL_NAME,
        "n_layers": n_layers,
        "hidden_size": hidden,
        "n_heads": heads,
        "n_kv_heads": _kv_heads(said, heads),
        "head_dim": said.count("kv_channels") or _head_dim(said, hidden, heads),
        "ffn_hidden_size": _mlp_width(said, hidden),
        "vocab_size": _vocabulary(said),
        "max_seq": said.count("max_position_embeddings") or said.whole("seq_length"),
        "tied_embeddings": not said.on("untie_embeddings_and_output_weights"),
        "norm": "rmsnorm" if said.get("normalization") == "RMSNorm" else "layernorm",
        "learned_positions": position == "learned_absolute" and not rotary,
        "qk_norm": said.on("qk_layernorm") and not latent,
        "attention_sinks": said.get("softmax_type") == "learnable",
        "mtp_layers": said.count("mtp_num_layers"),
        "rotary": rotary_of(said) if said.get("position_embedding_type") != "learned_absolute" or rotary else Rotary(),
        "norm_epsilon": said.number("layernorm_epsilon", 0.0) or None if "layernorm_epsilon" in said.values else None,
        **activation_of(said),
        **_windows(said, n_layers),
        **_latents(said),
        **_mixture(said, n_layers),
    }
    return ModelSpec.model_validate({**fields, **_biases(said, fields)})


def _kv_heads(said: Said, heads: int) -> int:
    if not said.on("group_query_attention"):
        return heads
    groups = said.count("num_query_groups", 1)
    if heads % groups:
        raise said.mistake("num_query_groups", f"{groups} groups do not divide the {heads} attention heads")
    return groups


def _head_dim(said: Said, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise said.mistake("num_attention_heads", f"{heads} heads do not divide the hidden size {hidden}")
    return hidden // heads


def _mlp_width(said: Said, hidden: int) -> int:
    given = said.count("ffn_hidden_size")
    return given or (int(4 * hidden * 2 / 3 / 64) * 64 if said.on("swiglu") else 4 * hidden)


def _vocabulary(said: Said) -> int:
    for name in ("vocab_size", "padded_vocab_size"):
        if said.get(name) is not None:
            return said.count(name)
    kind = str(said.get("tokenizer_type"))
    if kind in VOCABULARIES:
        return VOCABULARIES[kind]
    raise said.mistake("tokenizer_type", f"does not say how many tokens there are; add {said.label('vocab_size')}")


def _windows(said: Said, n_layers: int) -> dict[str, object]:
    text = said.get("window_size")
    if text is None:
        return {}
    numbers = str(text).strip("()[] ").replace(" ", "").split(",")
    try:
        before = int(numbers[0][:12])
    except ValueError:
        raise said.mistake("window_size", f"must be two numbers such as 127,0, not {text!r}") from None
    if before < 0:
        return {}
    pattern = _kinds(said, "window_attn_skip_freq", n_layers, every=lambda layer, n: (layer + 1) % n != 0)
    return {"sliding_window": before + 1, "window_pattern": _shortest(pattern or (True,))}


def _latents(said: Said) -> dict[str, object]:
    if not said.on("multi_latent_attention"):
        return {}
    return {
        "q_lora_rank": said.count("q_lora_rank"),
        "kv_lora_rank": said.count("kv_lora_rank"),
        "qk_nope_head_dim": said.count("qk_head_dim"),
        "qk_rope_head_dim": said.count("qk_pos_emb_head_dim"),
        "v_head_dim": said.count("v_head_dim"),
    }


def _mixture(said: Said, n_layers: int) -> dict[str, object]:
    experts = said.count("num_experts")
    if not experts:
        return {}
    top_k = said.count("moe_router_topk")
    if not 0 < top_k <= experts:
        raise said.mistake("moe_router_topk", f"must lie between 1 and the {experts} experts, not {top_k}")
    shared = said.count("moe_shared_expert_intermediate_size")
    width = said.count("moe_ffn_hidden_size") or _mlp_width(said, said.whole("hidden_size"))
    kinds = _kinds(said, "moe_layer_freq", n_layers, every=lambda layer, n: layer % n == 0)
    return {
        "n_experts": experts,
        "top_k": top_k,
        "expert_ffn_hidden_size": width,
        "n_shared_experts": max(1, shared // width) if shared else 0,
        "shared_ffn_hidden_size": shared,
        "shared_expert_gate": said.on("moe_shared_expert_gate"),
        "expert_groups_per_token": said.count("moe_router_group_topk"),
        "expert_groups": said.count("moe_router_num_groups"),
        "router": router_of(said),
        **_mixed_layers(kinds or (True,) * n_layers),
    }


def _mixed_layers(kinds: tuple[bool, ...]) -> dict[str, object]:
    dense_first = kinds.index(True) if True in kinds else len(kinds)
    if all(kinds[dense_first:]):
        return {"first_dense_layers": dense_first}
    return {"moe_pattern": _shortest(kinds)}


def _kinds(said: Said, name: str, n_layers: int, *, every: Every) -> tuple[bool, ...] | None:
    """Of each layer, whether it is of a kind that is given as a list, or as one layer in so many."""
    text = said.get(name)
    if text is None:
        return None
    text = str(text).strip()
    if text.isdigit():
        period = int(text[:9])
        if period < 1:
            raise said.mistake(name, "must be at least 1")
        return tuple(every(layer, period) for layer in range(n_layers))
    try:
        kinds = kinds_of(text)
    except PatternError as error:
        raise said.mistake(name, str(error)) from None
    if len(kinds) != n_layers:
        raise said.mistake(name, f"{text!r} is a list of {len(kinds)} layers, but there are {n_layers}")
    return kinds


def _shortest(kinds: tuple[bool, ...]) -> tuple[bool, ...]:
    """The shortest list that gives the same layers when it is repeated."""
    return next(
        kinds[:period]
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds))
    )


def _biases(said: Said, fields: dict[str, object]) -> dict[str, bool]:
    """One switch gives biases to attention, dense MLPs, experts and routers."""
    is_moe = bool(fields.get("n_experts"))
    if not said.on("add_bias_linear"):
        return {"qkv_bias": said.on("add_qkv_bias")}
    if said.on("multi_latent_attention") or fields.get("shared_ffn_hidden_size"):
        said.notes.append("Biases of linear layers are left out of the model.")
        return {}
    has_dense = fields.get("first_dense_layers") or not all(fields.get("moe_pattern", (True,))) or not is_moe  # type: ignore[arg-type]
    which = "linear_bias" if has_dense else "attention_bias"
    return {which: True, "expert_bias": is_moe, "router_bias": is_moe}
