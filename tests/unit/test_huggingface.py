"""Reading a Hugging Face config.json: each architecture's own traps, and what a bad file gets."""

import json
import random
from pathlib import Path

import pytest

from dlcalc.calculators.params import active_params, total_params
from dlcalc.errors import SpecError
from dlcalc.specs.huggingface import ADAPTERS, load_huggingface_config

CONFIGS = Path(__file__).parents[1] / "data" / "hf_configs"


def config_of(name: str, **changes: object) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text()) | changes


@pytest.fixture
def read(tmp_path):
    def read(config: object):
        file = tmp_path / "config.json"
        file.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))
        return load_huggingface_config(file)

    return read


@pytest.fixture
def refusal(read):
    """The one problem that a config is refused for, without the file's name: ``line: field: text``."""

    def refusal(config: object) -> str:
        with pytest.raises(SpecError) as caught:
            read(config)
        (problem,) = caught.value.problems
        return str(problem)

    return refusal


# ---- what architectures do differently


def test_head_dim_is_taken_where_given_and_derived_where_not(read):
    assert read(config_of("mistral-nemo-12b")).head_dim == 128  # 32 heads on a hidden size of 5120
    assert read(config_of("mistral-nemo-12b", head_dim=None)).head_dim == 160
    qwen3 = config_of("qwen3-0.6b")
    del qwen3["head_dim"]
    assert read(qwen3).head_dim == 128  # 16 heads on 1024: Qwen3's own default, not 64


def test_kv_heads_default_to_heads_or_to_what_the_architecture_says(read):
    assert read(config_of("llama-7b")).n_kv_heads == 32
    mistral = config_of("mistral-7b-v0.1")
    del mistral["num_key_value_heads"]
    assert read(mistral).n_kv_heads == 8


def test_qwen2_has_biases_on_q_k_and_v_without_saying_so(read):
    model = read(config_of("qwen2-7b"))
    assert (model.qkv_bias, model.attention_bias, model.linear_bias) == (True, False, False)


def test_deepseek_head_dim_is_the_rotary_part_and_is_not_read(read):
    model = read(config_of("deepseek-v3", head_dim=64))
    assert (model.head_dim, model.qk_head_dim, model.value_head_dim) == (128, 192, 128)


def test_deepseek_without_a_query_rank_projects_queries_directly(read):
    model = read(config_of("deepseek-v2-lite"))
    assert (model.q_lora_rank, model.kv_lora_rank, model.is_mla) == (0, 512, True)


def test_multi_token_prediction_goes_by_two_names(read):
    config = config_of("deepseek-v3")
    assert read(config).mtp_layers == 1
    del config["num_nextn_predict_layers"]
    assert read(config).mtp_layers == 0
    assert read(config | {"num_mtp_layers": 2}).mtp_layers == 2


def test_kimi_k2_is_deepseek_v3_by_another_name(read):
    as_kimi = read(config_of("kimi-k2"))
    as_deepseek = read(config_of("kimi-k2", model_type="deepseek_v3"))
    assert as_kimi.model_copy(update={"source": ""}) == as_deepseek.model_copy(update={"source": ""})
    assert (as_kimi.n_experts, as_kimi.n_heads, as_kimi.first_dense_layers) == (384, 64, 1)


@pytest.mark.parametrize("field", ["num_experts", "num_local_experts"])
def test_experts_are_counted_under_the_names_of_transformers_4_and_5(read, field):
    config = config_of("qwen3-30b-a3b")
    n_experts = config.pop("num_experts")
    assert read(config | {field: n_experts}).n_experts == 128


def test_rope_parameters_of_transformers_5_change_nothing(read):
    config = config_of("llama-3.1-8b")
    newer = dict(config)
    newer["rope_parameters"] = {"rope_theta": newer.pop("rope_theta"), **newer.pop("rope_scaling")}
    assert read(newer) == read(config)
    by_kind = newer | {"rope_parameters": {"full_attention": newer["rope_parameters"]}}
    assert read(by_kind) == read(config)


def test_gpt_oss_heads_are_wider_than_its_hidden_size(read):
    model = read(config_of("gpt-oss-20b"))
    assert model.n_heads * model.head_dim == 4096 != model.hidden_size
    assert (model.sliding_window, model.window_pattern) == (128, (True, False))
    assert (model.attention_sinks, model.expert_bias, model.router_bias) == (True, True, True)
    assert read(config_of("gpt-oss-20b", layer_types=None)) == model


def test_gemma_ties_its_embeddings_and_norms_four_times_a_layer(read):
    model = read(config_of("gemma-2-9b"))
    assert (model.tied_embeddings, model.norms_per_layer, model.qk_norm) == (True, 4, False)
    assert (model.sliding_window, model.window_pattern) == (4096, (True, False))


def test_gemma3_fills_what_its_nested_config_leaves_out(read):
    model = read(config_of("gemma-3-4b"))
    assert (model.n_heads, model.n_kv_heads, model.head_dim, model.vocab_size) == (8, 4, 256, 262_208)
    assert (model.sliding_window, model.qk_norm, model.tied_embeddings) == (1024, True, True)
    assert model.layer_is_windowed[:6] == (True, True, True, True, True, False)
    assert sum(model.layer_is_windowed) == 34 - 5
    assert "text_config" in model.source


def test_gemma3_text_stands_alone(read):
    nested = config_of("gemma-3-4b")
    alone = read(nested["text_config"])
    assert alone.model_copy(update={"source": ""}) == read(nested).model_copy(update={"source": ""})


@pytest.mark.parametrize(
    ("outer", "inner", "name"),
    [
        ("qwen3_vl", "qwen3_vl_text", "qwen3-0.6b"),
        ("qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3-30b-a3b"),
        ("kimi_k25", "kimi_k2", "kimi-k2"),
    ],
)
def test_the_language_model_of_a_multimodal_one_is_read_from_inside(read, outer, inner, name):
    vision = {"vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}}
    nested = read({"model_type": outer, "text_config": config_of(name, model_type=inner), **vision})
    own = {"source": ""}
    assert nested.model_copy(update=own) == read(config_of(name)).model_copy(update=own)


def test_whether_a_multimodal_model_ties_is_said_outside(read):
    config = config_of("gemma-3-4b", tie_word_embeddings=False)
    assert not read(config).tied_embeddings


def test_qwen_windows_are_off_unless_switched_on(read):
    windowed = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    assert read(config_of("qwen2-7b", max_window_layers=20)).sliding_window == 0
    model = read(config_of("qwen2-7b", **windowed))
    assert model.layer_is_windowed == (False,) * 20 + (True,) * 8
    assert read(config_of("qwen2-7b", **windowed | {"max_window_layers": 28})).sliding_window == 0
    listed = read(config_of("qwen2-7b", **windowed, layer_types=["sliding_attention", "full_attention"] * 14))
    assert listed.window_pattern == (True, False)


@pytest.mark.parametrize(("window", "expected"), [(4096, 4096), (None, 0)])
def test_mistral_and_phi3_window_every_layer_or_none(read, window, expected):
    for name in ("mistral-7b-v0.1", "phi-3-mini-4k", "mixtral-8x7b-v0.1"):
        model = read(config_of(name, sliding_window=window))
        assert model.sliding_window == expected
        assert set(model.layer_is_windowed) == {window is not None}


def test_dense_layers_among_experts_are_found_however_they_are_written(read):
    assert read(config_of("deepseek-v3")).layer_is_moe == (False,) * 3 + (True,) * 58
    assert read(config_of("deepseek-v3")).first_dense_layers == 3
    every_third = read(config_of("deepseek-v3", moe_layer_freq=3)).layer_is_moe
    assert [layer for layer, is_moe in enumerate(every_third) if is_moe] == list(range(3, 61, 3))
    stepped = read(config_of("qwen3-30b-a3b", decoder_sparse_step=2)).layer_is_moe
    assert stepped == (False, True) * 24
    punctured = read(config_of("qwen3-30b-a3b", mlp_only_layers=[5, 47])).layer_is_moe
    assert [layer for layer, is_moe in enumerate(punctured) if not is_moe] == [5, 47]
    assert not read(config_of("qwen3-30b-a3b", mlp_only_layers=list(range(48)))).is_moe


def test_qwen2_moe_shares_one_gated_expert_of_its_own_width(read):
    model = read(config_of("qwen1.5-moe-a2.7b"))
    assert (model.n_shared_experts, model.shared_ffn_hidden_size, model.shared_expert_gate) == (1, 5632, True)


def test_gpt2_mlp_is_four_times_its_width_unless_n_inner_says_more(read):
    assert read(config_of("gpt2-xl")).ffn_hidden_size == 6400  # null in the file
    assert read(config_of("gpt2", n_inner=1000)).ffn_hidden_size == 1000
    assert read(config_of("gpt2")).learned_positions


def test_gpt_neox_biases_follow_attention_bias_on_attention_alone(read):
    model = read(config_of("gpt-neox-20b", attention_bias=False))
    assert (model.attention_bias, model.mlp_bias, model.norm) == (False, True, "layernorm")


def test_mpt_learns_positions_only_without_alibi(read):
    config = config_of("mpt-7b")
    assert not read(config).learned_positions
    without = config["attn_config"] | {"alibi": False}
    model = read(config | {"attn_config": without})
    assert model.learned_positions
    assert total_params(model) - total_params(read(config)) == 2048 * 4096
    assert not read(config | {"attn_config": without, "learned_pos_emb": False}).learned_positions


def test_mpt_biases_norms_and_mlp_width_are_read(read):
    model = read(config_of("mpt-7b", no_bias=False, expansion_ratio=3))
    assert (model.linear_bias, model.norm_bias, model.ffn_hidden_size) == (True, True, 3 * 4096)
    shared = {"attn_type": "grouped_query_attention", "kv_n_heads": 8}
    assert read(config_of("mpt-7b", attn_config=shared)).n_kv_heads == 8
    assert read(config_of("mpt-7b", attn_config={"attn_type": "multiquery_attention"})).n_kv_heads == 1


def test_a_model_is_called_after_its_folder_or_its_file(tmp_path):
    text = json.dumps(config_of("gpt2"))
    (tmp_path / "my-model").mkdir()
    for place, name in (("my-model/config.json", "my-model"), ("ORG--Name_config.json", "ORG--Name")):
        (tmp_path / place).write_text(text)
        assert load_huggingface_config(tmp_path / place).name == name


def test_code_that_a_config_asks_for_is_not_run(read, tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    model = read(config_of("deepseek-v3", auto_map={"AutoConfig": "configuration_evil.Config"}))
    assert model.n_experts == 256
    assert not marker.exists()


# ---- what a bad file gets


def test_an_unsupported_architecture_names_itself_and_the_supported_ones(refusal):
    text = refusal({"architectures": [], "model_type": "nemotron_h", "hidden_size": 64})
    assert text.startswith("3: model_type: 'nemotron_h' is not supported; supported: deepseek_v2, deepseek_v3, ")
    assert all(model_type in text for model_type in ADAPTERS)
    nested = refusal({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}})
    assert nested.startswith("2: model_type: 'llama4' (text_config: 'llama4_text') is not supported")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": "4096"}, "hidden_size: must be a whole number, not '4096'"),
        ({"hidden_size": 4096.5}, "hidden_size: must be a whole number, not 4096.5"),
        ({"hidden_size": True}, "hidden_size: must be a whole number, not true"),
        ({"hidden_size": 0}, "hidden_size: must lie between 1 and 2147483647, not 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: must lie between 1 and 10000, not 1000000000"),
        ({"vocab_size": 10**100}, "vocab_size: must lie between 1 and 2147483647, not a number of 101 digits"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false, not 'no'"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            "hidden_size: 4096 is not a multiple of num_attention_heads = 7, and no head_dim is given",
        ),
    ],
)
def test_nonsense_is_refused_at_its_line(refusal, changes, problem):
    config = config_of("llama-2-7b", **changes)
    lines = json.dumps(config, indent=1).splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.startswith(f' "{problem.partition(":")[0]}"'))
    assert refusal(config) == f"{line}: {problem}"


def test_a_missing_field_is_named_at_the_object_it_is_missing_from(refusal):
    config = config_of("llama-2-7b")
    del config["intermediate_size"]
    assert refusal(config) == "1: intermediate_size: missing; a llama config needs it"
    nested = config_of("gemma-3-4b")
    line = json.dumps(nested, indent=1)[: json.dumps(nested, indent=1).index('"text_config"')].count("\n") + 1
    del nested["text_config"]["hidden_size"]
    assert refusal(nested) == f"{line}: text_config.hidden_size: missing; a gemma3_text config needs it"


def test_rules_between_fields_are_told_in_one_line(refusal):
    heads = refusal(config_of("llama-2-7b", num_key_value_heads=5))
    assert heads.startswith("1: llama: n_kv_heads = 5 must divide n_heads = 32")
    experts = refusal(config_of("mixtral-8x7b-v0.1", num_experts_per_tok=9))
    assert experts.startswith("1: mixtral: top_k = 9 must lie between 1 and n_experts = 8")


def test_layer_types_are_checked(refusal):
    short = refusal(config_of("gpt-oss-20b", layer_types=["full_attention"]))
    assert short.endswith("layer_types: has 1 entries for num_hidden_layers = 24")
    linear = refusal(config_of("gpt-oss-20b", layer_types=["linear_attention"] * 24))
    assert linear.endswith("layer_types: 'linear_attention' is not supported; only full and sliding attention are")


def test_mpt_variants_without_an_equation_are_refused(refusal):
    assert "attn_config.qk_ln" in refusal(config_of("mpt-7b", attn_config={"qk_ln": True}))
    assert "needs kv_n_heads" in refusal(config_of("mpt-7b", attn_config={"attn_type": "grouped_query_attention"}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"hidden_size": 1}', '{"model_type": 3}', "\x00", "}{"])
def test_what_is_no_config_is_refused(read, text):
    with pytest.raises(SpecError):
        read(text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_huggingface_config(tmp_path / "config.json")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_a_damaged_config_is_read_or_refused_but_never_breaks(read, file):
    """Every field in turn missing, null, and replaced by each kind of nonsense."""
    original = json.loads(file.read_text())
    chooser = random.Random(file.stem)
    nonsense = [None, -1, 0, 1, 2.5, "x", [], {}, True, [None], ["x"], 1e300, float("nan"), 10**30]
    for field in original:
        for value in (None, chooser.choice(nonsense), chooser.choice(nonsense)):
            try:
                model = read(original | {field: value})
            except SpecError:
                continue
            assert 0 < active_params(model) <= total_params(model)
