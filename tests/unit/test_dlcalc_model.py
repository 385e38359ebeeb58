"""dlcalc-model, and how a model is found."""

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dlcalc.calculators.params import total_params
from dlcalc.dlcalc_model import main
from dlcalc.errors import DlcalcError, SpecError, UnknownNameError
from dlcalc.report.model_report import report_model
from dlcalc.specs.load import config_dir
from dlcalc.specs.model_registry import load_model, model_names

CONFIGS = Path(__file__).parents[1] / "data" / "hf_configs"
NAMES = [
    "llama2-7b",
    "llama2-13b",
    "llama2-70b",
    "llama3-8b",
    "llama3-70b",
    "llama3-405b",
    "gpt3-175b",
    "megatron-22b",
    "megatron-530b",
    "megatron-1t",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "deepseek-v2",
    "deepseek-v3",
    "kimi-k2",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "nemotron-4-340b",
    "mpt-7b",
    "mpt-30b",
]


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def counted(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---- what it prints


def test_llama3_8b_in_full():
    """8,030,261,248 is the size of the published checkpoint."""
    answer = counted("llama3-8b", "--seq-len", "8192")
    assert answer["parameters_total"] == answer["parameters_active"] == answer["parameters_trained"] == 8_030_261_248
    assert answer["parameters_embedding"] == answer["parameters_head"] == 128_256 * 4096
    assert answer["weights_bytes"] == 2 * 8_030_261_248
    assert answer["training_state_bytes"] == 18 * 8_030_261_248
    matmuls = 6 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096)
    scores = 12 * 32 * 4096 * 8192
    assert answer["flops_per_token"] == {
        "full_attention": matmuls + scores,
        "causal_attention": matmuls + scores / 2,
        "six_n": 6 * 8_030_261_248,
    }


@pytest.mark.parametrize("name", NAMES)
def test_sublayers_add_up_to_the_totals(name):
    answer = counted(name)
    total = answer["parameters_trained"]
    assert sum(row["parameters"] for row in answer["sublayers"]) == total
    assert total == answer["parameters_total"] + answer["parameters_mtp"]
    assert sum(row["parameters_active"] for row in answer["sublayers"]) == answer["parameters_active"]
    forward = sum(row["forward_flops_per_token"] for row in answer["sublayers"])
    assert 3 * forward == pytest.approx(answer["flops_per_token"]["full_attention"], rel=1e-12)


def test_only_trained_bytes_count_multi_token_prediction():
    answer = counted("deepseek-v3")
    assert answer["parameters_total"] == 671_026_404_352
    assert answer["training_state_bytes"] == 18 * (answer["parameters_total"] + answer["parameters_mtp"])


@pytest.mark.parametrize(("name", "seq_len"), [("llama3-8b", 4096), ("mpt-7b", 2048)])
def test_sequences_are_4096_tokens_or_the_models_longest(name, seq_len):
    assert counted(name)["seq_len"] == seq_len


def test_tables_show_every_number_of_the_json():
    text = run("deepseek-v3").stdout
    report = report_model(load_model("deepseek-v3"), seq_len=4096)
    numbers = [getattr(report, field.name) for field in fields(report) if field.name.startswith("parameters_")]
    for number in [*numbers, report.weights_bytes, report.training_state_bytes]:
        assert f"{number:,}" in text
    assert all(row.name in text and f"{row.parameters:,}" in text for row in report.sublayers)
    assert all(convention in text for convention in report.flops_per_token)


def test_a_dense_model_has_no_rows_of_what_it_lacks():
    names = [row["name"] for row in counted("llama3-8b")["sublayers"]]
    assert names == ["embedding", "attention", "dense MLP", "final norm", "LM head"]


def test_the_list_has_every_built_in_model():
    text, rows = run("--list").stdout, counted("--list")
    assert [row["name"] for row in rows] == sorted(NAMES)
    assert all(name in text for name in NAMES)


def test_colours_are_left_out_of_a_pipe():
    assert "\x1b[" not in run("llama3-8b").stdout


# ---- how a model is found


def test_built_in_models_are_those_promised_and_cite_their_source():
    assert sorted(model_names()) == sorted(NAMES)
    for name in NAMES:
        assert load_model(name).source.startswith("https://")


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("llama-3-70b", "llama3-70b"),
        ("llama3.1-70b", "llama3-70b"),
        ("LLAMA3_70B", "llama3-70b"),
        ("meta-llama/Llama-3.1-405B", "llama3-405b"),
        ("deepseek-r1", "deepseek-v3"),
        ("gpt-3", "gpt3-175b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
    ],
)
def test_models_answer_to_the_names_people_write(called, name):
    assert load_model(called) == load_model(name)


def test_no_two_models_share_a_name():
    models = [yaml.safe_load(file.read_text()) for file in (config_dir() / "models").glob("*.yaml")]
    names = [name.casefold() for model in models for name in (model["name"], *model.get("aliases", ()))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", sorted((config_dir() / "models").glob("*.yaml")), ids=lambda file: file.stem)
def test_files_are_called_after_their_model(file):
    assert load_model(file).name == file.stem


BUILT_IN_CONFIGS = {
    "llama2-7b": "llama-2-7b",
    "llama2-70b": "llama-2-70b",
    "llama3-8b": "llama-3.1-8b",
    "llama3-70b": "llama-3.1-70b",
    "llama3-405b": "llama-3.1-405b",
    "mixtral-8x7b": "mixtral-8x7b-v0.1",
    "mixtral-8x22b": "mixtral-8x22b-v0.1",
    **{name: name for name in NAMES if (CONFIGS / f"{name}.json").is_file()},
}


@pytest.mark.parametrize(("name", "config"), BUILT_IN_CONFIGS.items())
def test_built_in_models_say_what_their_config_says(name, config):
    own = {"name": "", "aliases": (), "source": ""}
    if name == "deepseek-v3":  # whose report alone has the loss that its experts were balanced with
        own["router"] = load_model(CONFIGS / f"{config}.json").router
        assert load_model(name).router == own["router"].model_copy(update={"balance_loss": 0.0001})
    assert load_model(name).model_copy(update=own) == load_model(CONFIGS / f"{config}.json").model_copy(update=own)


def test_a_folder_stands_for_the_config_in_it(tmp_path):
    (tmp_path / "config.json").write_text((CONFIGS / "gpt2.json").read_text())
    assert total_params(load_model(str(tmp_path))) == 124_439_808


# ---- what bad input gets


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


def test_a_misspelt_name_gets_the_nearest_ones():
    assert refused("lama3-8b").startswith("error: unknown model 'lama3-8b'; did you mean llama3-8b")
    assert "known: " in refused("zzz")
    with pytest.raises(UnknownNameError):
        load_model("zzz")


def test_a_missing_or_foreign_file_is_one_line(tmp_path):
    assert refused(str(tmp_path / "model.yaml")) == f"error: {tmp_path}/model.yaml: no such file\n"
    assert refused(str(tmp_path)) == f"error: {tmp_path}/config.json: no such file\n"
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    assert "must end in .yaml, .yml, .json" in refused(str(notes))
    with pytest.raises(DlcalcError):
        load_model(notes)


def test_mistakes_in_a_model_file_are_told_by_line(tmp_path):
    good = (config_dir() / "models" / "llama3-8b.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(good.replace("n_heads: 32", "n_hedas: 32").replace("n_layers: 32", "n_layers: many"))
    with pytest.raises(SpecError) as caught:
        load_model(file)
    assert str(caught.value).splitlines() == [
        f"{file}:1: n_heads: required key is missing",
        f"{file}:5: n_layers: must be a whole number, not 'many'",
        f"{file}:7: n_hedas: no such key; did you mean n_heads or n_kv_heads or head_bias?",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 5},
        {"n_layers": 10**9},
        {"n_experts": 8},
        {"n_experts": 8, "top_k": 9, "expert_ffn_hidden_size": 1},
        {"kv_lora_rank": 512},
        {"norms_per_layer": 3},
        {"hidden_size": 0},
    ],
)
def test_impossible_dimensions_are_refused(tmp_path, changes):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((config_dir() / "models" / "llama3-8b.yaml").read_text()) | changes))
    assert refused(str(file)).startswith(f"error: {file}:")


@pytest.mark.parametrize("arguments", [(), ("llama3-8b", "--list"), ("llama3-8b", "--seq-len", "0"), ("a", "b")])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments).exit_code == 2


def test_help_is_instant():
    """Measured against an empty interpreter, because machines differ; numpy alone takes 60 ms or more."""
    check = "import sys, dlcalc.dlcalc_model; sys.exit(bool({'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dlcalc.dlcalc_model", "--help"], check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - start < 2.0
