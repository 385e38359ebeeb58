"""The model that a torchtitan job trains: from our own module's literals, a dump of the configuration, or its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlcalc.errors import Problem, SpecError
from dlcalc.launch.trainers.torchtitan import COPIED
from dlcalc.specs.load import parse_spec, read_text
from dlcalc.specs.marked_yaml import Marks
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model

BY_NAME: Mapping[tuple[str, str], str] = {
    ("llama3", "8b"): "llama3-8b",
    ("llama3", "70b"): "llama3-70b",
    ("llama3", "405b"): "llama3-405b",
    ("qwen3", "32b"): "qwen3-32b",
    ("qwen3", "30b-a3b"): "qwen3-30b-a3b",
    ("qwen3", "235b-a22b"): "qwen3-235b-a22b",
    ("deepseek_v3", "236b"): "deepseek-v2",
    ("deepseek_v3", "671b"): "deepseek-v3",
    ("gpt_oss", "20b"): "gpt-oss-20b",
    ("gpt_oss", "120b"): "gpt-oss-120b",
}
"""torchtitan's own models and flavours that there is a file of."""

LITERALS = ("MODEL", "CHUNK_LAYERS", "PRECISION")
GPT_OSS = {
    "attention_bias": True,
    "attention_sinks": True,
    "expert_bias": True,
    "activation": "quick_gelu",
    "activation_offset": 1.0,
}
ROPE_KINDS = {"llama": "llama3", "yarn": "yarn"}

YARN_NAMES = {
    "rope_factor": "factor",
    "original_seq_len": "original_max_seq",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "rounds",
}
LLAMA_NAMES = {
    "scaling_factor": "factor",
    "original_max_position_embeddings": "original_max_seq",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
}
ROUTER_NAMES = {"score_func": "scores", "route_norm": "normalizes", "route_scale": "scale"}


def named_model(family: str, flavor: str) -> ModelSpec | None:
    """One of torchtitan's own by name (``llama3``, ``llama3_8b`` or ``8B``); None: no file of ours has it."""
    known = BY_NAME.get((family, flavor.lower().removeprefix(f"{family}_").replace("_", "-")))
    if known is None:
        return None
    model = load_model(known)
    return model.model_copy(update={"mtp_layers": 0}) if model.mtp_layers else model  # its default is without


def literals_beside(file: Path, module: str) -> dict[str, Any]:
    """What stands at the top of the module that was written beside ``file``; it is read, never run."""
    beside = file.parent / f"{module}.py"
    if not re.fullmatch(r"\w{1,100}", module) or not beside.is_file():
        return {}
    try:
        tree = ast.parse(read_text(beside))
        return {
            target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id in LITERALS
        }
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        text = "does not begin with MODEL, CHUNK_LAYERS and PRECISION as literals"
        raise SpecError(beside, (Problem(line, "MODEL", text),)) from None


def model_of_literals(literals: object, file: Path) -> ModelSpec:
    """The model of our own module."""
    data: Any = literals if isinstance(literals, dict) else {}
    fields = {name: data[name] for name in COPIED if name in data}
    fields |= {"name": data.get("name"), **_layers(data.get("moe_layers"), data.get("windowed_layers"))}
    fields |= _details(data.get("rope"), data.get("router"), data.get("balancing_rate"), data.get("mscale_all_dim"))
    fields["norm_epsilon"] = data.get("norm_epsilon")
    if data.get("family") == "gpt_oss":
        fields |= GPT_OSS | {"activation_limit": data.get("swiglu_limit")}
    return parse_spec(fields, ModelSpec, file=file, marks=Marks(1))


def model_of_dump(spec: Mapping[str, Any], file: Path, marks: Marks) -> ModelSpec:
    """The model of a dumped configuration (``model_spec``)."""
    model = _mapping(spec.get("model"))
    layers = [_mapping(layer) for layer in _list(model.get("layers"))]
    if not layers:
        raise SpecError(file, (Problem(marks.line, "model_spec.model.layers", "must list the model's layers"),))
    attention = [_mapping(layer.get("attention")) for layer in layers]
    moe = [bool(layer.get("moe")) for layer in layers]
    windows = [one.get("sliding_window_size") for one in attention]
    fields = {
        "name": f"{spec.get('name')}-{spec.get('flavor')}",
        "n_layers": len(layers),
        "hidden_size": model.get("dim"),
        "vocab_size": model.get("vocab_size"),
        "tied_embeddings": model.get("enable_weight_tying", False),
        "max_seq": _at(attention[0], "rope", "max_seq_len"),
        "mtp_layers": len(_list(model.get("mtp_layers"))),
        "sliding_window": next((window for window in windows if window), 0),
        **_attention(attention[0], model.get("dim")),
        **_mlp(layers),
        **_layers(moe, [bool(window) for window in windows]),
    }
    block = _mapping(next((layer.get("moe") for layer in layers if layer.get("moe")), None))
    fields |= _details(
        attention[0].get("rope"), block.get("router"), block.get("load_balance_coeff"), attention[0].get("mscale")
    )
    fields["norm_epsilon"] = _at(layers[0], "attention_norm", "eps")
    if spec.get("name") == "gpt_oss":
        limit = _at(block, "routed_experts", "inner_experts", "swiglu_limit")
        fields |= GPT_OSS | {"qkv_bias": False, "activation_limit": limit}
    kept = {name: value for name, value in fields.items() if value is not None}
    return parse_spec(kept, ModelSpec, file=file, marks=marks)


def _attention(one: Mapping[str, Any], dim: object) -> dict[str, Any]:
    heads = one.get("n_heads")
    if one.get("kv_lora_rank"):
        latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        sizes = {name: one.get(name) for name in latent}
        return {"n_heads": heads, "n_kv_heads": heads, "head_dim": one.get("v_head_dim"), **sizes}
    whole = isinstance(dim, int) and isinstance(heads, int) and heads > 0
    return {
        "n_heads": heads,
        "n_kv_heads": one.get("n_kv_heads") or heads,
        "head_dim": one.get("head_dim") or (dim // heads if whole else None),  # type: ignore[operator]
        "qk_norm": bool(one.get("qk_norm")),
        "qkv_bias": bool(_at(one, "qkv_linear", "wqkv", "bias") or _at(one, "qkv_linear", "wq", "bias")),
    }


def _mlp(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dense = next((layer for layer in layers if layer.get("feed_forward")), {})
    moe = _mapping(next((layer.get("moe") for layer in layers if layer.get("moe")), None))
    width = _at(moe, "routed_experts", "inner_experts", "hidden_dim")
    fields = {"ffn_hidden_size": _at(dense, "feed_forward", "w1", "out_features") or width}
    if moe:
        shared = _at(moe, "shared_experts", "w1", "out_features")
        fields |= {
            "n_experts": moe.get("num_experts"),
            "top_k": _at(moe, "router", "top_k"),
            "expert_ffn_hidden_size": width,
            "shared_ffn_hidden_size": shared or 0,
            "n_shared_experts": 1 if shared else 0,
            "router_bias": bool(_at(moe, "router", "gate", "bias")),
        }
    return fields


def _details(rope: object, router: object, rate: object, mscale: object) -> dict[str, Any]:
    """Positions and routing, whose keys are torchtitan's own in our module and in a dump."""
    said, routed = _mapping(rope), _mapping(router)
    kind = ROPE_KINDS.get(str(said.get("scaling")))
    names = YARN_NAMES if kind == "yarn" else LLAMA_NAMES
    scaling = {ours: said[theirs] for theirs, ours in names.items() if kind and said.get(theirs) is not None}
    if kind == "yarn" and isinstance(mscale, int | float):
        scaling |= {"mscale_all_dim": mscale} | ({"mscale": mscale} if mscale else {})
    rotary = {"base": said.get("theta"), "scaling": {"kind": kind, **scaling} if kind else None}
    fields: dict[str, Any] = {"rotary": {key: value for key, value in rotary.items() if value is not None}}
    if routed:
        found = {ours: routed.get(theirs) for theirs, ours in ROUTER_NAMES.items()} | {"bias_update": rate}
        fields["router"] = {key: value for key, value in found.items() if value is not None}
        groups, reached = routed.get("num_expert_groups"), routed.get("num_limited_groups")
        fields |= {"expert_groups": groups or 0, "expert_groups_per_token": reached or 0}
    return fields


def _layers(moe: object, windowed: object) -> dict[str, Any]:
    """Patterns over the layers, where they differ."""
    fields: dict[str, Any] = {}
    if isinstance(moe, list | tuple) and any(moe) and not all(moe):
        fields["moe_pattern"] = tuple(bool(one) for one in moe)
    if isinstance(windowed, list | tuple) and any(windowed):
        fields["window_pattern"] = tuple(bool(one) for one in windowed)
    return fields


def _at(data: object, *path: str) -> Any:  # noqa: ANN401 (whatever stands there)
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
