"""A Hugging Face ``config.json`` as a ModelSpec.

One small adapter per ``model_type`` says what that architecture's own code does with the file: which fields it reads,
what it assumes where one is missing, which biases and norms it has without saying so. Nothing in the file is executed
and nothing is fetched. Of a multimodal model only the language model is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dlcalc.errors import Problem, SpecError
from dlcalc.specs.base import MAX_LAYERS
from dlcalc.specs.huggingface_details import details_of
from dlcalc.specs.huggingface_fields import Config, Dimensions
from dlcalc.specs.load import load_yaml, spec_error
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.wording import shown


def load_huggingface_config(file: Path) -> ModelSpec:
    """The model that a ``config.json`` describes."""
    values, marks = load_yaml(file)
    if not isinstance(values, dict):
        raise spec_error(file, marks, (), f"must be an object with a model_type, not {shown(values)}")
    config = _language_model(Config(file, values, marks))
    model_type = config.model_type
    dimensions = {
        "name": _model_name(file, values),
        "source": f"Hugging Face config.json, model_type {'.'.join((*config.path, model_type))}",
        **ADAPTERS[model_type](config),
        **details_of(config),
    }
    try:
        return ModelSpec(**dimensions)
    except ValidationError as error:
        where = marks.line_of(config.path) or 1
        problems = (f"{_field_names(e['loc'])}{e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise SpecError(file, tuple(Problem(where, model_type, text) for text in problems)) from None


def _field_names(loc: Iterable[object]) -> str:
    return "".join(f"{part}: " for part in loc)


def _model_name(file: Path, values: Mapping[str, Any]) -> str:
    """What to call the model: what the file says, else its folder, else its own name."""
    said = values.get("_name_or_path")
    if isinstance(said, str) and said.strip("./"):
        return said.rstrip("/").rsplit("/", 1)[-1]
    if file.name == "config.json" and file.resolve().parent.name:
        return file.resolve().parent.name
    return file.stem.removesuffix("_config")


def _language_model(config: Config) -> Config:
    """The object that describes the language model: the file itself, or the ``text_config`` of a multimodal model."""
    if not config.model_type:
        raise config.refused("model_type", "missing; it names the architecture of a Hugging Face model")
    text = config.section("text_config")
    if config.model_type == "gemma3" and text.values:
        text = text.with_defaults(model_type="gemma3_text")
    if text.model_type in ADAPTERS and not config.has("hidden_size"):
        outer = {field: config.values[field] for field in ("tie_word_embeddings",) if config.has(field)}
        return replace(text, values={**text.values, **outer})
    if config.model_type in ADAPTERS:
        return config
    inner = f" (text_config: {text.model_type!r})" if text.model_type else ""
    known = ", ".join(sorted(ADAPTERS))
    raise config.refused("model_type", f"{config.model_type!r}{inner} is not supported; supported: {known}")


# ---- what architectures share


def _transformer(config: Config, *, tied: bool = False) -> Dimensions:
    """Fields that every architecture since Llama names alike."""
    n_heads = config.count("num_attention_heads")
    return {
        "n_layers": config.count("num_hidden_layers", most=MAX_LAYERS),
        "hidden_size": config.count("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": config.count("num_key_value_heads", default=n_heads),
        "head_dim": _head_dim(config, "hidden_size", "num_attention_heads"),
        "ffn_hidden_size": config.count("intermediate_size"),
        "vocab_size": config.count("vocab_size"),
        "max_seq": config.count("max_position_embeddings", default=4096),
        "tied_embeddings": config.flag("tie_word_embeddings", default=tied),
    }


def _head_dim(config: Config, hidden_field: str, heads_field: str) -> int:
    """Width of a head: as given, else the hidden size divided among the heads."""
    if config.has("head_dim"):
        return config.count("head_dim")
    hidden, heads = config.count(hidden_field), config.count(heads_field)
    if hidden % heads:
        raise config.refused(
            hidden_field, f"{hidden} is not a multiple of {heads_field} = {heads}, and no head_dim is given"
        )
    return hidden // heads


def _all_layers_windowed(config: Config) -> Dimensions:
    return {"sliding_window": config.count("sliding_window", default=0, least=0)}


def _some_layers_windowed(config: Config, default: Callable[[int], bool]) -> Dimensions:
    """Windowed layers as ``layer_types`` lists them, else those for which ``default(layer)`` holds."""
    n_layers = config.count("num_hidden_layers", most=MAX_LAYERS)
    window = config.count("sliding_window", default=0, least=0)
    kinds = config.listed("layer_types")
    if kinds and len(kinds) != n_layers:
        raise config.refused("layer_types", f"has {len(kinds)} entries for num_hidden_layers = {n_layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise config.refused("layer_types", f"{shown(kind)} is not supported; only full and sliding attention are")
    windowed = [kind == "sliding_attention" for kind in kinds] or [default(layer) for layer in range(n_layers)]
    if not window or not any(windowed):
        return {}
    return {"sliding_window": window, "window_pattern": _shortest_period(windowed)}


def _shortest_period(flags: Sequence[bool]) -> tuple[bool, ...]:
    """The shortest pattern that repeats to ``flags``: six local, one global layer, rather than a list of 62."""
    for length in range(1, len(flags)):
        if all(flag == flags[i % length] for i, flag in enumerate(flags)):
            return tuple(flags[:length])
    return tuple(flags)


def _experts(config: Config, *, width: int, is_moe: Iterable[bool]) -> Dimensions:
    """Routed experts on the layers where ``is_moe`` holds; nothing if there are none."""
    pattern = tuple(is_moe)
    if not any(pattern):
        return {}
    n_dense = pattern.index(True)
    layout: Dimensions = {"first_dense_layers": n_dense} if all(pattern[n_dense:]) else {"moe_pattern": pattern}
    return {
        "n_experts": config.count("num_local_experts", "num_experts", "n_routed_experts"),
        "top_k": config.count("num_experts_per_tok", "experts_per_token"),
        "expert_ffn_hidden_size": width,
        **layout,
    }


# ---- one adapter per architecture


def _llama(config: Config) -> Dimensions:
    return {
        **_transformer(config),
        "attention_bias": config.flag("attention_bias", default=False),
        "mlp_bias": config.flag("mlp_bias", default=False),
    }


def _mistral(config: Config) -> Dimensions:
    config = config.with_defaults(num_key_value_heads=8, sliding_window=4096)
    return {**_transformer(config), **_all_layers_windowed(config)}


def _mixtral(config: Config) -> Dimensions:
    config = config.with_defaults(num_key_value_heads=8)
    dimensions = {**_transformer(config), **_all_layers_windowed(config)}
    every_layer = [True] * dimensions["n_layers"]
    return {**dimensions, **_experts(config, width=dimensions["ffn_hidden_size"], is_moe=every_layer)}


def _qwen_window(config: Config) -> Dimensions:
    if not config.flag("use_sliding_window", default=False):
        return {}
    config = config.with_defaults(sliding_window=4096)
    first_windowed = config.count("max_window_layers", default=28, least=0)
    return _some_layers_windowed(config, lambda layer: layer >= first_windowed)


def _qwen2(config: Config) -> Dimensions:
    return {**_transformer(config), **_qwen_window(config), "qkv_bias": True}


def _qwen3(config: Config) -> Dimensions:
    config = config.with_defaults(head_dim=128)
    return {
        **_transformer(config),
        **_qwen_window(config),
        "qk_norm": True,
        "attention_bias": config.flag("attention_bias", default=False),
    }


def _qwen_experts(config: Config) -> Dimensions:
    """Every decoder_sparse_step-th layer has experts, unless mlp_only_layers names it."""
    n_layers = config.count("num_hidden_layers", most=MAX_LAYERS)
    step = config.count("decoder_sparse_step", default=1)
    dense = config.listed("mlp_only_layers")
    is_moe = [layer not in dense and (layer + 1) % step == 0 for layer in range(n_layers)]
    return _experts(config, width=config.count("moe_intermediate_size"), is_moe=is_moe)


def _qwen2_moe(config: Config) -> Dimensions:
    dimensions = {
        **_transformer(config),
        **_qwen_experts(config),
        "qkv_bias": config.flag("qkv_bias", default=True),
    }
    if config.flag("use_sliding_window", default=False):
        config = config.with_defaults(sliding_window=4096)
        n_alternating = config.count("max_window_layers", default=28, least=0)
        dimensions |= _some_layers_windowed(config, lambda layer: layer % 2 == 0 and layer < n_alternating)
    if "n_experts" in dimensions:
        dimensions |= {
            "n_shared_experts": 1,
            "shared_ffn_hidden_size": config.count("shared_expert_intermediate_size"),
            "shared_expert_gate": True,
        }
    return dimensions


def _qwen3_moe(config: Config) -> Dimensions:
    dimensions = {
        **_transformer(config),
        **_qwen_experts(config),
        "qk_norm": True,
        "attention_bias": config.flag("attention_bias", default=False),
    }
    if config.flag("use_sliding_window", default=False):
        dimensions |= _all_layers_windowed(config.with_defaults(sliding_window=4096))
    return dimensions


def _deepseek(config: Config) -> Dimensions:
    """DeepSeek-V2 and V3: latent attention; ``head_dim``, where given, is the rotary part and is not read."""
    n_heads, n_layers = config.count("num_attention_heads"), config.count("num_hidden_layers", most=MAX_LAYERS)
    nope = config.count("qk_nope_head_dim", least=0)
    dimensions = {
        **_transformer(config.with_defaults(head_dim=nope)),
        "n_kv_heads": n_heads,
        "head_dim": nope,
        "q_lora_rank": config.count("q_lora_rank", default=0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": config.count("qk_rope_head_dim", least=0),
        "v_head_dim": config.count("v_head_dim"),
        "attention_bias": config.flag("attention_bias", default=False),
        "mlp_bias": config.model_type == "deepseek_v2" and config.flag("mlp_bias", default=False),
    }
    if config.has("n_routed_experts") or config.has("num_local_experts") or config.has("num_experts"):
        first = config.count("first_k_dense_replace", default=0, least=0)
        every = config.count("moe_layer_freq", default=1)
        width = config.count("moe_intermediate_size")
        is_moe = [layer >= first and layer % every == 0 for layer in range(n_layers)]
        dimensions |= _experts(config, width=width, is_moe=is_moe)
        n_shared = config.count("n_shared_experts", default=0, least=0)
        dimensions |= {"n_shared_experts": n_shared, "shared_ffn_hidden_size": n_shared * width}
        if config.count("n_group", default=0, least=0) > 1:
            dimensions["expert_groups_per_token"] = config.count("topk_group", default=0, least=0)
            dimensions["expert_groups"] = config.count("n_group")
    if config.model_type != "deepseek_v2":
        dimensions["mtp_layers"] = config.count("num_nextn_predict_layers", "num_mtp_layers", default=0, least=0)
    return dimensions


def _gpt_oss(config: Config) -> Dimensions:
    config = config.with_defaults(head_dim=64, num_key_value_heads=8, sliding_window=128)
    dimensions = _transformer(config)
    every_layer = [True] * dimensions["n_layers"]
    return {
        **dimensions,
        **_some_layers_windowed(config, lambda layer: layer % 2 == 0),
        **_experts(config, width=dimensions["ffn_hidden_size"], is_moe=every_layer),
        "attention_bias": config.flag("attention_bias", default=True),
        "attention_sinks": True,
        "expert_bias": True,
        "router_bias": True,
    }


def _gemma2(config: Config) -> Dimensions:
    config = config.with_defaults(head_dim=256, num_key_value_heads=4, sliding_window=4096)
    return {
        **_transformer(config, tied=True),
        **_some_layers_windowed(config, lambda layer: layer % 2 == 0),
        "norms_per_layer": 4,
        "attention_bias": config.flag("attention_bias", default=False),
    }


def _gemma3(config: Config) -> Dimensions:
    config = config.with_defaults(
        vocab_size=262_208,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131_072,
        sliding_window=4096,
    )
    every = config.count("sliding_window_pattern", default=6)
    return {
        **_transformer(config, tied=True),
        **_some_layers_windowed(config, lambda layer: (layer + 1) % every != 0),
        "norms_per_layer": 4,
        "qk_norm": True,
        "attention_bias": config.flag("attention_bias", default=False),
    }


def _phi3(config: Config) -> Dimensions:
    """Fused QKV and gate-up matrices, which hold what separate ones would."""
    return {**_transformer(config), **_all_layers_windowed(config)}


def _gpt2(config: Config) -> Dimensions:
    hidden, n_heads = config.count("n_embd"), config.count("n_head")
    return {
        "n_layers": config.count("n_layer", most=MAX_LAYERS),
        "hidden_size": hidden,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": _head_dim(config, "n_embd", "n_head"),
        "ffn_hidden_size": config.count("n_inner", default=4 * hidden),
        "vocab_size": config.count("vocab_size"),
        "max_seq": config.count("n_positions", "n_ctx"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "learned_positions": True,
        "gated_mlp": False,
        "norm": "layernorm",
        "linear_bias": True,
    }


def _gpt_neox(config: Config) -> Dimensions:
    """Attention and MLP read the same input, each through a norm of its own; that moves no parameter."""
    return {
        **_transformer(config),
        "gated_mlp": False,
        "norm": "layernorm",
        "attention_bias": config.flag("attention_bias", default=True),
        "mlp_bias": True,
    }


def _mpt(config: Config) -> Dimensions:
    """Positions are learned only where ALiBi (on unless said otherwise) and rotary embeddings are off."""
    attention = config.section("attn_config")
    if attention.flag("qk_ln", default=False):
        raise attention.refused("qk_ln", "norms over all query and key heads together are not supported")
    hidden, n_heads = config.count("d_model"), config.count("n_heads")
    kv_heads = {"multihead_attention": n_heads, "multiquery_attention": 1}
    kind = attention.word("attn_type", default="multihead_attention")
    if kind not in kv_heads and not attention.has("kv_n_heads"):
        raise attention.refused("attn_type", f"{kind!r} needs kv_n_heads")
    alibi = attention.flag("alibi", default=True)
    positionless = alibi or attention.flag("rope", default=False)
    has_bias = not config.flag("no_bias", default=True)
    rms = "rmsnorm" in config.word("norm_type", default="low_precision_layernorm")
    return {
        "n_layers": config.count("n_layers", most=MAX_LAYERS),
        "hidden_size": hidden,
        "n_heads": n_heads,
        "n_kv_heads": attention.count("kv_n_heads", default=kv_heads.get(kind, n_heads)),
        "head_dim": _head_dim(config, "d_model", "n_heads"),
        "ffn_hidden_size": config.count("expansion_ratio", default=4) * hidden,
        "vocab_size": config.count("vocab_size"),
        "max_seq": config.count("max_seq_len", default=2048),
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "learned_positions": config.flag("learned_pos_emb", default=True) and not positionless,
        "alibi": alibi,
        "gated_mlp": False,
        "norm": "rmsnorm" if rms else "layernorm",
        "norm_bias": has_bias and not rms,
        "linear_bias": has_bias,
    }


ADAPTERS: Mapping[str, Callable[[Config], Dimensions]] = {
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "mpt": _mpt,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "qwen3_vl_moe_text": _qwen3_moe,
    "qwen3_vl_text": _qwen3,
}
"""By model_type."""
