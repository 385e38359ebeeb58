"""The Python file that torchtitan imports: the model's dimensions as literals, then how its own parts make the model.

torchtitan has no option for a model's dimensions: ``--module`` names a Python module, ``--config`` a function of it.
The literals stand first, so that ``readers.torchtitan`` can read them back without running anything.
"""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from typing import Any

HEAD = '''\
"""Model, data and start of one job on torchtitan 0.3."""

'''

BODY = '''
import importlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw, register_moe_load_balancing_hook
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import ParallelismConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common import config_utils as parts
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

FAMILY = importlib.import_module(f"torchtitan.models.{MODEL['family']}")
INIT = {"weight": partial(nn.init.trunc_normal_, std=0.02), "bias": nn.init.zeros_}
ONES = {"weight": nn.init.ones_}
EXPERTS = {name: INIT["weight"] for name in ("w1_EFD", "w2_EDF", "w3_EFD")}


class RandomTokens(BaseDataLoader):
    """Random tokens, the same in every run; what a step costs does not depend on them."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        pass

    def __init__(self, config, *, dp_rank, seq_len, local_batch_size, **_):
        self.shape = (local_batch_size, seq_len + 1)
        self.random = torch.Generator().manual_seed(dp_rank)
        self.positions = torch.arange(seq_len).expand(local_batch_size, seq_len)

    def __iter__(self):
        while True:
            tokens = torch.randint(MODEL["vocab_size"], self.shape, generator=self.random)
            yield {"input": tokens[:, :-1], "positions": self.positions.clone()}, tokens[:, 1:]

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class NoTokenizer(BaseTokenizer):
    """Random tokens need none."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config, **_):
        super().__init__()

    def encode(self, *args, **kwargs):
        raise RuntimeError("these tokens are random numbers; a run on text needs a tokenizer of its own")

    def decode(self, *args, **kwargs):
        raise RuntimeError("these tokens are random numbers; a run on text needs a tokenizer of its own")

    def get_vocab_size(self):
        return MODEL["vocab_size"]


def _norm(width):
    return RMSNorm.Config(normalized_shape=width, eps=MODEL["norm_epsilon"], param_init=ONES)


def _rope():
    m = MODEL
    kind = ComplexRoPE if m["family"] in ("llama3", "deepseek_v3") else CosSinRoPE
    width = m["qk_rope_head_dim"] if m["family"] == "deepseek_v3" else m["head_dim"]
    return kind.Config(dim=width, max_seq_len=m["max_seq"], **m["rope"])


def _attention(layer):
    m = MODEL
    shared = {"dim": m["hidden_size"], "n_heads": m["n_heads"], "rope": _rope()}
    if m["family"] == "deepseek_v3":
        ranks = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        config = FAMILY.make_mla_attention_config(
            **shared, **{name: m[name] for name in ranks}, layer_id=layer, attn_backend="flex",
            mscale=m["mscale_all_dim"], linear_init=INIT, norm_init=ONES, depth_init=lambda _: INIT,
        )
        config.q_norm.eps = config.kv_norm.eps = m["norm_epsilon"]
        return config
    shared |= {"n_kv_heads": m["n_kv_heads"], "head_dim": m["head_dim"]}
    if m["family"] == "gpt_oss":
        window = m["sliding_window"] if m["windowed_layers"][layer] else None
        return FAMILY._make_gptoss_attn_config(
            **shared, layer_id=layer, attn_backend="flex", sliding_window_size=window
        )
    config = parts.make_gqa_config(
        **shared, fuse_qkv=True, wqkv_param_init=INIT, wo_param_init=INIT,
        inner_attention=parts.get_attention_config("flex"), qk_norm=_norm(m["head_dim"]) if m["qk_norm"] else None,
    )
    config.qkv_linear.wqkv.bias = m["qkv_bias"]
    return config


def _mlp(width):
    return parts.make_ffn_config(dim=MODEL["hidden_size"], hidden_dim=width, w1_param_init=INIT, w2w3_param_init=INIT)


def _experts(layer):
    m = MODEL
    sizes = {
        "dim": m["hidden_size"], "hidden_dim": m["expert_ffn_hidden_size"], "num_experts": m["n_experts"],
        "top_k": m["top_k"],
    }
    router = parts.make_router_config(
        dim=m["hidden_size"], num_experts=m["n_experts"], top_k=m["top_k"], gate_param_init=INIT,
        bias=m["router_bias"], **m["router"],
    )
    if m["family"] == "gpt_oss":
        experts = FAMILY._make_gptoss_experts_config(**sizes, layer_id=layer, moe_comm_backend="standard")
        experts.inner_experts.swiglu_limit = m["swiglu_limit"]
        return FAMILY.GptOssMoE.Config(
            num_experts=m["n_experts"], router=router, routed_experts=experts, load_balance_coeff=m["balancing_rate"]
        )
    return parts.make_moe_config(
        num_experts=m["n_experts"], router=router, load_balance_coeff=m["balancing_rate"],
        routed_experts=parts.make_routed_experts_config(**sizes, param_init=EXPERTS, comm_backend="standard"),
        shared_experts=_mlp(m["shared_ffn_hidden_size"]) if m["shared_ffn_hidden_size"] else None,
    )


def _layer(layer):
    m = MODEL
    block = {
        "llama3": "Llama3TransformerBlock", "qwen3": "Qwen3TransformerBlock",
        "deepseek_v3": "DeepSeekV3TransformerBlock", "gpt_oss": "GptOssTransformerBlock",
    }[m["family"]]
    is_moe = m["moe_layers"][layer]
    return getattr(FAMILY, block).Config(
        attention=_attention(layer), attention_norm=_norm(m["hidden_size"]), ffn_norm=_norm(m["hidden_size"]),
        feed_forward=None if is_moe else _mlp(m["ffn_hidden_size"]), moe=_experts(layer) if is_moe else None,
    )


def _model():
    m = MODEL
    name = {"llama3": "Llama3Model", "qwen3": "Qwen3Model", "deepseek_v3": "DeepSeekV3Model", "gpt_oss": "GptOssModel"}
    layers = [_layer(layer) for layer in range(m["n_layers"])]
    further = {}
    if m["mtp_layers"]:
        further["mtp_layers"] = FAMILY._build_mtp_layers(
            layers[-1], dim=m["hidden_size"], num_mtp_layers=m["mtp_layers"]
        )
    ends = {"num_embeddings": m["vocab_size"], "embedding_dim": m["hidden_size"]}
    skipped = {"weight": skip_param_init} if m["tied_embeddings"] else INIT
    config = getattr(FAMILY, name[m["family"]]).Config(
        dim=m["hidden_size"], vocab_size=m["vocab_size"], layers=layers, norm=_norm(m["hidden_size"]),
        tok_embeddings=Embedding.Config(**ends, param_init=skipped), enable_weight_tying=m["tied_embeddings"],
        lm_head=Linear.Config(in_features=m["hidden_size"], out_features=m["vocab_size"], param_init=INIT), **further,
    )
    for converter in _converters():
        config = converter.build().convert(config)
    return config


def _converters():
    """Linear layers inside the transformer's layers, routers apart, in PRECISION; needs torchao."""
    from torchtitan.components import quantization as q

    compiled = {"model_compile_enabled": COMPILED}
    inside = [f"layers.{n}.{part}." for n in range(MODEL["n_layers"]) for part in ("attention", "feed_forward")]
    inside += [f"layers.{n}.moe.shared_experts." for n in range(MODEL["n_layers"])]
    dense = {
        "bf16": [],
        "fp8": [q.Float8LinearConverter.Config(filter_fqns=["lm_head", "router.gate"], **compiled)],
        "mxfp8": [q.MXFP8LinearConverter.Config(fqns=inside, **compiled)],
        "nvfp4": [q.NVFP4LinearConverter.Config(fqns=inside, **compiled)],
    }[PRECISION]
    experts = {
        "fp8": [q.Float8GroupedExpertsConverter.Config(**compiled)],
        "mxfp8": [q.MXFP8GroupedExpertsConverter.Config(**compiled)],
    }
    return dense + (experts.get(PRECISION, []) if any(MODEL["moe_layers"]) else [])


def _stages():
    """Modules of each pipeline chunk."""
    if CHUNK_LAYERS is None:
        return None
    first, stages = 0, []
    for count in CHUNK_LAYERS:
        stages.append([f"layers.{layer}" for layer in range(first, first + count)])
        first += count
    stages[0].insert(0, "tok_embeddings")
    stages[-1] += ["norm", "lm_head"]
    return stages


def _loss():
    if MODEL["mtp_layers"]:
        return FAMILY.MTPLoss.Config(global_vocab_size=MODEL["vocab_size"])
    return ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=MODEL["vocab_size"]))


def emitted():
    """The configuration that the command line starts from."""
    apply = {"llama3": "llama", "qwen3": "qwen3", "deepseek_v3": "deepseekv3", "gpt_oss": "gptoss"}[MODEL["family"]]
    return Trainer.Config(
        model_spec=ModelSpec(
            name=MODEL["family"], flavor=MODEL["name"], model=_model(),
            parallelize_fn=getattr(FAMILY, f"parallelize_{apply}"), pipelining_fn=pipeline_llm,
            post_optimizer_build_fn=register_moe_load_balancing_hook if any(MODEL["moe_layers"]) else None,
            state_dict_adapter=None,
        ),
        loss=_loss(), optimizer=default_adamw(lr=3e-4), lr_scheduler=LRSchedulersContainer.Config(warmup_steps=10),
        dataloader=RandomTokens.Config(), tokenizer=NoTokenizer.Config(), metrics=MetricsProcessor.Config(log_freq=1),
        parallelism=ParallelismConfig(module_fqns_per_model_part=_stages()),
    )


if __name__ == "__main__":
    from torchtitan.train import main

    main()
'''


def module_text(
    *, model: Mapping[str, Any], chunk_layers: tuple[int, ...] | None, precision: str, compiled: bool
) -> str:
    """The file's text; every value is written as a Python literal."""
    layers = f"CHUNK_LAYERS = {pprint.pformat(chunk_layers, compact=True, width=110)}\n"
    rest = f"PRECISION = {precision!r}\nCOMPILED = {compiled}\n"
    return (
        f"{HEAD}MODEL = {pprint.pformat(dict(model), compact=True, width=110, sort_dicts=False)}\n{layers}{rest}{BODY}"
    )
