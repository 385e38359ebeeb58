"""FLOPs per token: op by op against what torch counts while the model runs, and against published throughputs."""

import json
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from dlcalc.calculators.flops import (
    TokenFlops,
    attention_scores_flops,
    forward_token_flops,
    model_flops_per_token_flops,
)
from dlcalc.calculators.params import active_params, embedding_params, total_params
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.model_registry import load_model

CONFIGS = Path(__file__).parents[1] / "data" / "hf_configs"
SAME_CODE = {"kimi_k2": "deepseek_v3"}
SEQ, LAYERS = 64, 4
"""Shorter than every window, so that windowed layers attend to all of it, as eager attention computes."""


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch counts the FLOPs to compare with")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers builds the models to compare with")


def four_layers(file: Path) -> tuple[str, dict]:
    """Type and fields of a language model of four layers, otherwise as published."""
    config = json.loads(file.read_text())
    config = dict(config.get("text_config", config))
    config |= {field: LAYERS for field in ("num_hidden_layers", "n_layer", "n_layers") if field in config}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:LAYERS]
    model_type = config.pop("model_type")
    return SAME_CODE.get(model_type, model_type), config


def counted(transformers, file: Path, *, backward: bool = False) -> dict[str, int]:
    """What torch counts in one sequence of SEQ tokens, on the meta device: by module and op."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model_type, config = four_layers(file)
    counter = FlopCounterMode(display=False)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        built = transformers.AutoModelForCausalLM.from_config(
            transformers.CONFIG_MAPPING[model_type](**config),
            attn_implementation="eager",
            experts_implementation="batched_mm",  # the tokens' own experts, without looking at the routing
        ).eval()
        with counter:
            tokens, mask = torch.zeros(1, SEQ, dtype=torch.long), torch.zeros(1, 1, SEQ, SEQ)
            logits = built(tokens, attention_mask=mask, use_cache=False).logits
            if backward:
                logits.sum().backward()
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    by_module["total"] = counter.get_total_flops()
    return by_module


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_forward_flops_are_those_torch_counts(transformers, file):
    model = load_huggingface_config(file).model_copy(update={"n_layers": LAYERS, "mtp_layers": 0})
    estimate = forward_token_flops(model, seq_len=SEQ, causal=False)
    measured = counted(transformers, file)
    assert SEQ * estimate.total_flops == measured["total"]

    def modules(*suffixes: str) -> int:
        return sum(flops for name, flops in measured.items() if name.endswith(suffixes))

    attention = estimate.attention_projections_flops + estimate.attention_scores_flops
    assert SEQ * attention == modules(".self_attn", ".attn", ".attention")
    mlp = estimate.dense_mlp_flops + estimate.routed_experts_flops + estimate.shared_experts_flops
    assert SEQ * (mlp + estimate.router_flops) == modules(".mlp", ".ffn")
    assert SEQ * estimate.head_flops == modules(".lm_head", ".embed_out")


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2", "gemma-2-9b", "deepseek-v2-lite"])
def test_training_costs_three_forward_passes(transformers, name):
    file = CONFIGS / f"{name}.json"
    model = load_huggingface_config(file).model_copy(update={"n_layers": LAYERS})
    training = model_flops_per_token_flops(model, seq_len=SEQ, convention="full_attention")
    assert SEQ * training == counted(transformers, file, backward=True)["total"]


# tokens/s and TFLOP/s per device as printed in Megatron-Bridge's docs/performance-summary-archive.md, containers 25.09
# to 26.02.01. They count causal attention and leave the router out; for gpt-oss also its MLP's gate and its windows.
# Five of the 47 rows there, not repeated here, differ by 0.06 to 0.18 %, more than the printed digits allow.
PRINTED = [
    ("llama3-8b", 8192, 31508, 1622),
    ("llama3-8b", 8192, 14451, 744),
    ("llama3-70b", 8192, 3837, 1724),
    ("llama3-70b", 8192, 1639, 736),
    ("qwen3-30b-a3b", 4096, 26373, 607),
    ("qwen3-30b-a3b", 4096, 26084, 600),
    ("qwen3-30b-a3b", 4096, 9058, 208),
    ("deepseek-v3", 4096, 2689, 699),
    ("gpt-oss-120b", 4096, 15754, 428),
    ("gpt-oss-120b", 4096, 13722, 373),
    ("gpt-oss-120b", 4096, 5993, 163),
]


@pytest.mark.parametrize(("name", "seq_len", "tokens_per_s", "tflops_per_s"), PRINTED)
def test_causal_convention_turns_printed_token_rates_into_printed_flop_rates(name, seq_len, tokens_per_s, tflops_per_s):
    model = load_model(name)
    if name == "gpt-oss-120b":
        model = model.model_copy(update={"gated_mlp": False, "sliding_window": 0})
    flops = model_flops_per_token_flops(model, seq_len=seq_len, convention="causal_attention")
    moe_layers = model.n_moe_layers + (model.mtp_layers if model.is_moe else 0)
    without_router = flops - 3 * moe_layers * 2 * model.hidden_size * model.n_experts
    rounding = 0.5 + 0.5 * without_router / 1e12  # both are printed whole
    assert tokens_per_s * without_router / 1e12 == pytest.approx(tflops_per_s, abs=rounding)


def test_full_attention_is_narayanan2021_equation_3_without_recomputation():
    """72 B s l h^2 (1 + s / (6 h) + V / (12 l h)): the paper's 96 with recomputation is 72 without."""
    model = load_model("gpt3-175b")
    layers, h, vocab, seq = model.n_layers, model.hidden_size, model.vocab_size, 2048
    published = 72 * layers * h**2 * (1 + seq / (6 * h) + vocab / (12 * layers * h))
    flops = model_flops_per_token_flops(model, seq_len=seq, convention="full_attention")
    assert flops == pytest.approx(published, rel=1e-12)


def test_full_attention_is_palm_appendix_b_for_a_model_without_biases():
    """6 N + 12 L H Q T, N without the embedding, which multiplies nothing, and without norms."""
    model = load_model("llama3-8b")
    norms = (2 * model.n_layers + 1) * model.hidden_size
    n_params = total_params(model) - embedding_params(model) - norms
    palm = 6 * n_params + 12 * model.n_layers * model.n_heads * model.head_dim * 8192
    assert model_flops_per_token_flops(model, seq_len=8192, convention="full_attention") == palm


def test_causal_attention_halves_scores_alone():
    model = load_model("llama3-8b")
    full = forward_token_flops(model, seq_len=8192, causal=False)
    causal = forward_token_flops(model, seq_len=8192, causal=True)
    for term in fields(TokenFlops):
        share = 0.5 if term.name == "attention_scores_flops" else 1.0
        assert getattr(causal, term.name) == share * getattr(full, term.name)


@pytest.mark.parametrize(("seq_len", "window"), [(4096, 128), (512, 512), (100, 512), (4096, 0)])
def test_windowed_attention_counts_the_pairs_of_the_mask(seq_len, window):
    """Against the mask itself; the equation leaves out at most half a key a query, the diagonal's."""
    model = load_model("gpt-oss-120b")
    query, key = np.arange(seq_len)[:, None], np.arange(seq_len)[None, :]
    kept = (key <= query) & (key > query - (window or seq_len))
    flops_per_key = 4 * model.n_heads * model.head_dim
    counted_keys = attention_scores_flops(model, seq_len=seq_len, causal=True, window=window) / flops_per_key
    assert counted_keys == pytest.approx(kept.sum() / seq_len, abs=0.5)


def test_six_n_is_six_per_active_parameter_whatever_the_sequence():
    model = load_model("mixtral-8x7b")
    flops = model_flops_per_token_flops(model, seq_len=np.array([512.0, 32768.0]), convention="six_n")
    assert flops.tolist() == [6.0 * active_params(model)] * 2


@pytest.mark.parametrize("convention", ["full_attention", "causal_attention", "six_n"])
def test_sequences_can_be_an_array(convention):
    model = load_model("deepseek-v3")
    lengths = np.array([1024.0, 4096.0, 131072.0])
    one_by_one = [model_flops_per_token_flops(model, seq_len=s, convention=convention) for s in lengths]
    assert model_flops_per_token_flops(model, seq_len=lengths, convention=convention).tolist() == one_by_one
