"""Parameter counts: against models built on the meta device from the same config, and against papers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from dlcalc.calculators import params
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model

CONFIGS = Path(__file__).parents[1] / "data" / "hf_configs"
SAME_CODE = {"kimi_k2": "deepseek_v3"}
"""Architectures that are another's under a new name."""


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch builds the models to compare with")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers builds the models to compare with")


def built_counts(transformers, config: dict, model: ModelSpec) -> tuple[int, int]:
    """Total and active parameters of the language model that transformers builds, on the meta device."""
    import torch

    fields = dict(config.get("text_config", config))
    model_type = fields.pop("model_type")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        built = transformers.AutoModelForCausalLM.from_config(
            transformers.CONFIG_MAPPING[SAME_CODE.get(model_type, model_type)](**fields)
        )
    total = sum(parameter.numel() for parameter in built.parameters())  # shared tensors come once
    routed = sum(parameter.numel() for name, parameter in built.named_parameters() if ".experts." in name)
    idle = routed * (model.n_experts - model.top_k) // model.n_experts if routed else 0
    return total, total - idle


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_counts_are_those_of_the_model_transformers_builds(transformers, file):
    config = json.loads(file.read_text())
    model = load_huggingface_config(file)
    total, active = built_counts(transformers, config, model)
    assert params.total_params(model) == total
    assert params.active_params(model) == active


VARIANTS = [
    ("llama-2-7b", {"attention_bias": True}),
    ("llama-2-7b", {"mlp_bias": True, "tie_word_embeddings": True}),
    ("llama-2-7b", {"head_dim": 96, "num_key_value_heads": 4}),
    ("llama-2-7b", {"num_key_value_heads": None}),
    ("mistral-7b-v0.1", {"head_dim": None, "tie_word_embeddings": True}),
    ("qwen2-7b", {"use_sliding_window": True, "max_window_layers": 2}),
    ("qwen3-0.6b", {"attention_bias": True, "tie_word_embeddings": False}),
    ("qwen1.5-moe-a2.7b", {"qkv_bias": False}),
    ("qwen1.5-moe-a2.7b", {"mlp_only_layers": [0, 2]}),
    ("qwen1.5-moe-a2.7b", {"decoder_sparse_step": 2}),
    ("qwen3-30b-a3b", {"mlp_only_layers": [1], "decoder_sparse_step": 2}),
    ("qwen3-30b-a3b", {"mlp_only_layers": [0, 1, 2, 3]}),
    ("qwen3-30b-a3b", {"num_experts": None, "num_local_experts": 16}),
    ("deepseek-v2", {"attention_bias": True, "mlp_bias": True}),
    ("deepseek-v2-lite", {"attention_bias": True, "first_k_dense_replace": 2}),
    ("deepseek-v3", {"first_k_dense_replace": 0, "n_shared_experts": 2, "head_dim": 64}),
    ("deepseek-v3", {"q_lora_rank": None, "attention_bias": True}),
    ("gpt-oss-20b", {"attention_bias": False, "tie_word_embeddings": True}),
    ("gpt-oss-20b", {"layer_types": None, "num_key_value_heads": 2}),
    ("gemma-2-9b", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gemma-3-1b", {"attention_bias": True, "vocab_size": 1000}),
    ("phi-3-mini-4k", {"num_key_value_heads": 8, "tie_word_embeddings": True}),
    ("gpt2", {"n_inner": 1000}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt-neox-20b", {"attention_bias": False, "use_parallel_residual": False}),
    ("mpt-7b", {"attn_config": None, "tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda value: str(value)[:60])
def test_every_option_of_a_config_moves_the_count_as_in_transformers(transformers, tmp_path, name, changes):
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | changes
    config |= {field: 4 for field in ("num_hidden_layers", "n_layer", "n_layers") if field in config}
    config = {field: value for field, value in config.items() if field != "layer_types" or value is None}
    if changes.get("num_experts", 0) is None:
        del config["num_experts"]  # what transformers 5 writes
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    model = load_huggingface_config(file)
    assert (params.total_params(model), params.active_params(model)) == built_counts(transformers, config, model)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        pytest.param("llama2-7b", 6.7, id="llama2-7b"),  # huggingface.co model pages, to the printed digit
        pytest.param("llama2-13b", 13.0, id="llama2-13b"),
        pytest.param("llama2-70b", 69.0, id="llama2-70b"),
        pytest.param("llama3-8b", 8.03, id="llama3-8b"),
        pytest.param("llama3-70b", 70.6, id="llama3-70b"),
        pytest.param("llama3-405b", 406, id="llama3-405b"),
        pytest.param("gpt3-175b", 174.6, id="gpt3-175b"),  # narayanan2021, section 5
        pytest.param("mixtral-8x7b", 46.7, id="mixtral-8x7b"),
        pytest.param("mixtral-8x22b", 141, id="mixtral-8x22b"),
        pytest.param("qwen3-32b", 32.8, id="qwen3-32b"),  # arXiv 2505.09388
        pytest.param("qwen3-30b-a3b", 30.5, id="qwen3-30b-a3b"),
        pytest.param("qwen3-235b-a22b", 235, id="qwen3-235b-a22b"),
        pytest.param("deepseek-v2", 236, id="deepseek-v2"),  # arXiv 2405.04434
        pytest.param("deepseek-v3", 671, id="deepseek-v3"),  # arXiv 2412.19437
        pytest.param("gpt-oss-20b", 20.91, id="gpt-oss-20b"),  # arXiv 2508.10925, table 1
        pytest.param("gpt-oss-120b", 116.83, id="gpt-oss-120b"),
        pytest.param("mpt-7b", 6.65, id="mpt-7b"),
        pytest.param("mpt-30b", 29.96, id="mpt-30b"),
    ],
)
def test_built_in_models_have_their_published_size(name, billions):
    rounding = 0.5 * 10 ** -len(str(billions).partition(".")[2])
    assert params.total_params(load_model(name)) / 1e9 == pytest.approx(billions, abs=rounding)


def test_nemotron_4_340b_matches_its_paper():
    """arXiv 2406.11704, section 2.1: 9.4 billion embedding, 331.6 billion other parameters."""
    model = load_model("nemotron-4-340b")
    embeddings = params.embedding_params(model) + params.head_params(model)
    assert embeddings / 1e9 == pytest.approx(9.4, abs=0.05)
    assert (params.total_params(model) - embeddings) / 1e9 == pytest.approx(331.6, abs=0.05)


def test_gpt_oss_matches_the_parts_of_its_model_card():
    """arXiv 2508.10925, table 1, in billions; it counts the LM head as active, the embedding not."""
    model = load_model("gpt-oss-120b")
    attention = model.n_layers * params.attention_sublayer_params(model)
    mlp = model.n_layers * params.moe_sublayer_params(model)
    vocabulary = params.embedding_params(model) + params.head_params(model)
    active = params.active_params(model) - params.embedding_params(model)
    published = {"MLP": 114.71, "attention": 0.96, "embedding and head": 1.16, "active": 5.13}
    counted = {"MLP": mlp, "attention": attention, "embedding and head": vocabulary, "active": active}
    assert {part: round(count / 1e9, 2) for part, count in counted.items()} == published


@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-v2", 21), ("qwen3-235b-a22b", 22), ("mixtral-8x22b", 39)],
)
def test_active_parameters_match_what_the_makers_say(name, billions):
    """To whole billions, arXiv 2405.04434, 2505.09388 and mistral.ai/news/mixtral-8x22b."""
    assert params.active_params(load_model(name)) / 1e9 == pytest.approx(billions, abs=0.5)


@pytest.mark.parametrize(
    ("n_layers", "hidden_size", "n_heads", "billions"),
    [
        (24, 2304, 24, 1.7),
        (30, 3072, 32, 3.6),
        (36, 4096, 32, 7.5),
        (40, 6144, 48, 18.4),
        (48, 8192, 64, 39.1),
        (60, 10240, 80, 76.1),
        (80, 12288, 96, 145.6),
        (96, 16384, 128, 310.1),
        (105, 20480, 128, 529.6),
        (128, 25600, 160, 1008.0),
    ],
)
def test_gpts_match_narayanan2021_table_1(n_layers, hidden_size, n_heads, billions):
    shape = {"n_layers": n_layers, "hidden_size": hidden_size, "ffn_hidden_size": 4 * hidden_size}
    heads = {"n_heads": n_heads, "n_kv_heads": n_heads, "head_dim": hidden_size // n_heads}
    model = load_model("gpt3-175b").model_copy(update=shape | heads)
    assert params.total_params(model) / 1e9 == pytest.approx(billions, abs=0.05)  # one printed decimal


def test_equation_2_of_narayanan2021_lacks_only_the_final_norm():
    """P = 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h)); the norm before the head has 2 h more."""
    model = load_model("megatron-530b")
    layers, h, vocab, seq = model.n_layers, model.hidden_size, model.vocab_size, model.max_seq
    assert params.total_params(model) == 12 * layers * h**2 + 13 * layers * h + (vocab + seq) * h + 2 * h


def test_deepseek_v3_with_multi_token_prediction_is_its_checkpoint():
    """685 billion on its model page: embedding and head once more, and an fp32 scale per 128 x 128 block of fp8."""
    model = load_model("deepseek-v3")
    repeated = params.embedding_params(model) + params.head_params(model)
    scales = params.trained_params(model) / 128**2
    assert (params.trained_params(model) + repeated + scales) / 1e9 == pytest.approx(685, abs=0.5)
    assert params.trained_params(model) == params.total_params(model) + params.mtp_params(model)


# ---- shards

TP = np.array([1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize("name", ["llama3-8b", "gpt-oss-120b", "deepseek-v3", "gpt3-175b", "mixtral-8x7b"])
def test_arrays_give_what_single_degrees_give(name):
    model = load_model(name)
    ep = TP[:, None]
    grid = params.moe_layer_params(model, tp=TP, ep=ep, etp=2.0) + params.dense_layer_params(model, tp=TP)
    points = [
        [params.moe_layer_params(model, tp=t, ep=e, etp=2.0) + params.dense_layer_params(model, tp=t) for t in TP]
        for e in TP
    ]
    assert np.array_equal(grid, points)


@pytest.mark.parametrize("name", ["llama3-8b", "gpt-oss-120b", "deepseek-v3", "gpt3-175b", "qwen3-30b-a3b"])
def test_shards_of_all_ranks_hold_the_model_once_and_copies_of_what_is_not_divided(name):
    model = load_model(name)
    for tp in (2.0, 4.0):
        copies = (
            params.attention_norm_params(model)
            + (model.hidden_size if model.attention_bias or model.linear_bias else 0.0)
            + (model.hidden_size * (model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim) * model.is_mla)
        )
        shards = tp * params.attention_sublayer_params(model, tp=tp)
        assert shards == params.attention_sublayer_params(model) + (tp - 1) * copies


def test_kv_heads_are_copied_beyond_their_number():
    """qwen3-30b-a3b: 4 KV heads of 128 on 8 ranks, one each, twice."""
    model = load_model("qwen3-30b-a3b")
    query_and_output = 2 * 2048 * 32 * 128 / 8
    key_and_value = 2 * 2048 * 128
    norms = 2048 + 2 * 128
    assert params.attention_sublayer_params(model, tp=8.0) == query_and_output + key_and_value + norms


def test_experts_are_spread_over_ep_and_cut_by_etp():
    """gpt-oss-20b: 32 experts on 8 ranks are 4; cut in two, each keeps its whole down bias."""
    model = load_model("gpt-oss-20b")
    one_half = 3 * 2880 * 2880 / 2 + 2 * 2880 / 2 + 2880
    assert params.moe_expert_params(model, ep=8.0, etp=2.0) == 4 * one_half


def test_the_vocabulary_is_padded_as_megatron_does():
    """50257 rows to a multiple of 128 x 8 = 1024 are 51200, 6400 a rank; without padding, an eighth rounded up."""
    model = load_model("gpt3-175b").model_copy(update={"vocab_size": 50257})
    assert params.embedding_params(model, tp=8.0, vocab_multiple=128.0) == 6400 * model.hidden_size
    assert params.embedding_params(model, tp=8.0) == 6283 * model.hidden_size
    assert params.embedding_params(model) == 50257 * model.hidden_size
