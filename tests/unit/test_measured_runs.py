"""What a row of measured runs says, in the cost model's words."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import yaml

from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.framework import AttentionKernel
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.load import config_dir
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.validation import spelling
from dlcalc.validation.compare import compare_runs
from dlcalc.validation.constants import profiles_of
from dlcalc.validation.layouts import expand_layout, layers_per_chunk
from dlcalc.validation.models import model_of, read_models
from dlcalc.validation.profiles import known_frameworks
from dlcalc.validation.rows import (
    COLUMNS,
    HONOURED,
    WITHOUT_EFFECT,
    MeasuredRun,
    ignored_extras,
    parse_extras,
    read_runs,
)
from dlcalc.validation.runs import RunReader, setting_of
from dlcalc.validation.screening import UsableRun
from dlcalc.validation.sources import known_sources

MEASURED = config_dir() / "measured"
REGISTRY = HardwareRegistry()
MODELS = read_models(MEASURED / "models.yaml")
DENSE = {
    "case": "a", "model": "llama3-8b", "hardware": "h100_sxm_80gb", "gpus": "16", "precision": "bf16",
    "framework": "megatron", "seq_len": "8192", "global_batch": "64",
}  # fmt: skip
EXPERTS = {**DENSE, "model": "qwen3-30b-a3b"}
LATENT = {**DENSE, "model": "deepseek-v2"}
TPU = {**DENSE, "hardware": "tpu_v5e", "framework": "maxtext", "gpus": "512", "global_batch": "512"}
"""Two slices of 256."""


def run(fields=DENSE, **changes):
    extras = changes.get("extras", "")
    return MeasuredRun({**fields, **{key: str(value) for key, value in changes.items()}}, parse_extras(extras))


def setting(fields=DENSE, **changes):
    return setting_of(run(fields, **changes), MODELS, REGISTRY)


def knobs(found):
    return {knob: value_of(knob, float(getattr(found.plan, knob))) for knob in KNOBS}


def profile(found):
    return found.recipe.framework


# --- the file ---------------------------------------------------------------------------------------------------


def written(tmp_path, text):
    file = tmp_path / "runs.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_every_row_is_read_in_order(tmp_path):
    rows = read_runs(written(tmp_path, "case,gpus,extras\na,8,x=1; y = 2 ;z\nb,,\n"))
    assert [row.case for row in rows] == ["a", "b"]
    assert rows[0].extras == {"x": "1", "y": "2", "z": ""}
    assert rows[1].text("gpus", "none said") == "none said"


def test_a_file_of_a_spreadsheet_is_read(tmp_path):
    """With a byte order mark, Windows line ends, spaces in the header, a byte that is no UTF-8, short and long rows."""
    rows = read_runs(written(tmp_path, b"\xef\xbb\xbfcase , gpus\r\na\xe9,8\r\nb\r\nc,16,what,is,this\r\n"))
    assert [(row.case, row.text("gpus")) for row in rows] == [("a\ufffd", "8"), ("b", ""), ("c", "16")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a CSV of measured runs"),
        ("a,b\n1,2\n", "must name columns"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "must name columns"),
    ],
)
def test_a_file_without_any_column_of_ours_is_refused(tmp_path, text, complaint):
    with pytest.raises(DlcalcError, match=complaint):
        read_runs(written(tmp_path, text))


def test_a_missing_file_is_said_in_one_line(tmp_path):
    with pytest.raises(DlcalcError, match=r"nowhere\.csv: cannot be read: No such file"):
        read_runs(tmp_path / "nowhere.csv")


def test_a_cell_longer_than_the_csv_module_likes_is_read(tmp_path):
    (row,) = read_runs(written(tmp_path, "case,extras\na," + "x" * 200_000 + "\n"))
    assert len(row.text("extras")) == 200_000


# --- what was measured ------------------------------------------------------------------------------------------


def test_a_step_time_is_as_measured_or_follows_from_the_token_rate():
    assert run(step_time_s="2.5", tokens_per_s_per_gpu="1").measured_step_time_s == 2.5
    # 64 sequences of 8,192 tokens at 4,096 tokens/s on each of 16 devices
    assert run(tokens_per_s_per_gpu="4096").measured_step_time_s == pytest.approx(64 * 8192 / (4096 * 16))
    assert run(mfu="0.5").measured_step_time_s is None
    assert run(step_time_s="nan").measured_step_time_s is None
    assert run(step_time_s="-1").measured_step_time_s is None


def test_one_layer_is_no_step():
    assert run(step_time_s="2.5", extras="scope=one_transformer_layer").measured_step_time_s is None


@pytest.mark.parametrize(("text", "out"), [("1", True), ("0", False), ("true", True), ("", None), ("maybe", None)])
def test_out_of_memory_is_said_or_not(text, out):
    assert run(oom=text).out_of_memory is out


# --- empty fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", sorted(file.stem for file in (config_dir() / "frameworks").glob("*.yaml")))
def test_what_is_empty_takes_the_profile_s_default(framework):
    found = setting(framework=framework)
    default = load_framework(framework)
    plan = knobs(found)
    assert profile(found) == default
    assert (plan["tp"], plan["cp"], plan["pp"], plan["vpp"], plan["dp"], plan["ep"]) == (1, 1, 1, 1, 16, 1)
    assert plan["zero_stage"] == default.zero_stages[0]
    assert plan["recompute"] == default.recompute_modes[0]
    assert plan["overlap_grad"] == default.overlap_grad
    assert found.hardware.node.n_devices == 8
    assert found.remarks == ()


def test_a_row_s_node_and_fabric_replace_the_machine_s():
    found = setting(gpus_per_node=4, internode_gbps_per_gpu=123.5)
    assert found.hardware.node.n_devices == 4
    assert found.hardware.fabric.nic_bytes_per_s_per_device == pytest.approx(123.5e9 / 8)
    assert found.hardware.device == REGISTRY.load("h100").device


@pytest.mark.parametrize("missing", ["model", "hardware", "gpus", "precision", "seq_len", "global_batch"])
def test_what_an_estimate_needs_is_asked_for(missing):
    with pytest.raises(DlcalcError, match=f"^{missing} is missing$"):
        setting(**{missing: ""})


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("gpus", "0", "must lie between 1 and"),
        ("gpus", "-8", "must lie between 1 and"),
        ("gpus", "1e30", "must lie between 1 and"),
        ("gpus", "many", "is not a number"),
        ("gpus", "inf", "is not a number"),
        ("gpus", "7.5", "is not a whole number"),
        ("tp", "3", "tp x cp x pp = 3 does not divide 16 devices"),
        ("zero_stage", "4", "must lie between 0 and 3"),
        ("internode_gbps_per_gpu", "fast", "is not a number"),
        ("internode_gbps_per_gpu", "-1", "is no rate of a link"),
        ("model", "llama3-9b", "unknown model 'llama3-9b'; did you mean llama3-8b"),
        ("hardware", "abacus", "unknown hardware 'abacus'"),
        ("precision", "fp4", "has no precision fp4"),
        ("precision", "int3", "has no precision int3"),
    ],
)
def test_nonsense_is_told_with_its_reason(column, value, complaint):
    with pytest.raises(DlcalcError, match=re.escape(complaint)):
        setting(**{column: value})


def test_numbers_may_be_written_as_spreadsheets_do():
    found = setting(global_batch="1,024", seq_len="8192.0")
    assert (found.recipe.global_batch, found.recipe.seq_len) == (1024, 8192)


def test_a_pipeline_of_absurd_length_is_refused():
    with pytest.raises(DlcalcError, match="no pipeline has more than"):
        setting(gpus=2048, pp=2048)


# --- every column and extra changes what it should ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "changes", "knob", "value"),
    [
        (DENSE, {"tp": 2}, "tp", 2),
        (DENSE, {"tp": 2}, "dp", 8),
        (DENSE, {"cp": 4}, "cp", 4),
        (DENSE, {"pp": 4}, "pp", 4),
        (DENSE, {"pp": 4, "vpp": 2}, "vpp", 2),
        (DENSE, {"pp": 4, "vpp": 2}, "schedule", "interleaved"),
        (DENSE, {"vpp": 2}, "vpp", 1),  # chunks of no pipeline
        (DENSE, {"pp": 4, "extras": "schedule=interleaved_1f1b"}, "vpp", 2),
        (DENSE, {"pp": 4, "extras": "schedule=zbv"}, "schedule", "zb-v"),
        (DENSE, {"pp": 4, "extras": "schedule=zb-h1"}, "schedule", "zb-h1"),
        (DENSE, {"pp": 4, "extras": "schedule=dualpipe"}, "schedule", "dualpipe"),
        (DENSE, {"pp": 4, "extras": "schedule=gpipe"}, "schedule", "gpipe"),
        (DENSE, {"micro_batch": 4}, "micro_batch", 4),
        (DENSE, {"ep": 8}, "ep", 1),  # a dense model has no experts
        (EXPERTS, {"ep": 8}, "ep", 8),
        (EXPERTS, {"ep": 8, "etp": 1, "tp": 2}, "etp", 1),
        (EXPERTS, {"ep": 8, "tp": 2}, "etp", 2),  # Megatron's default: as tp
        (EXPERTS, {"ep": 8, "extras": "a2a_overlap=1"}, "overlap_ep", True),
        (DENSE, {"zero_stage": 3}, "zero_stage", 3),
        (DENSE, {"extras": "megatron_fsdp=1"}, "zero_stage", 3),
        (DENSE, {"zero_stage": 3, "extras": "reshard_after_forward=0"}, "zero_stage", 2),
        (DENSE, {"zero_stage": 3, "extras": "fsdp_shard_group=4"}, "dp_replicate", 4),
        (TPU, {}, "dp_replicate", 2),
        (TPU, {"gpus": 256}, "dp_replicate", 1),
        (TPU, {"extras": "fsdp_shard_group=512"}, "dp_replicate", 1),
        (DENSE, {"tp": 2, "sequence_parallel": "false"}, "sequence_parallel", False),
        (DENSE, {"tp": 2}, "sequence_parallel", True),
        (DENSE, {"sequence_parallel": "true"}, "sequence_parallel", False),  # no ranks to share a sequence
        (DENSE, {"tp": 2, "extras": "tp_comm_overlap=1"}, "overlap_tp", True),
        (DENSE, {"tp": 2, "extras": "async_tp=1"}, "overlap_tp", True),
        (DENSE, {"tp": 2, "extras": "async_tp=0"}, "overlap_tp", False),
        (DENSE, {"extras": "dp_overlap_grad=0"}, "overlap_grad", False),
        (DENSE, {"extras": "dp_overlap_grad=0"}, "overlap_param", False),  # not without the gradient's
        (DENSE, {"extras": "overlap_grad_reduce=0"}, "overlap_grad", False),
        (DENSE, {"extras": "dp_overlap_param=0"}, "overlap_param", False),
        (DENSE, {"extras": "dp_overlap_grad=maybe"}, "overlap_grad", True),  # neither yes nor no: the default
        (DENSE, {"extras": "cpu_offload_layers=5"}, "offload_layers", 5),
        (DENSE, {"recompute": "full"}, "recompute", "full"),
        (DENSE, {"recompute": "full"}, "recompute_layers", -1),
        (DENSE, {"recompute": "selective"}, "recompute", "selective"),
        (DENSE, {"recompute": "other:full block num_layers=5"}, "recompute_layers", 5),
        (DENSE, {"recompute": "other:full block num_layers=5", "pp": 2, "vpp": 2}, "recompute_layers", 5),
        (DENSE, {"recompute": "other:full block num_layers=99"}, "recompute_layers", -1),
        (DENSE, {"recompute": "other:full uniform num_layers=1"}, "recompute_layers", -1),
        (DENSE, {"recompute": "other:full every 2 layers"}, "recompute_layers", 16),
        (DENSE, {"recompute": "other:full every 2 layers", "pp": 2, "vpp": 2}, "recompute_layers", 4),
        (DENSE, {"recompute": "other:layernorm+moe_act"}, "recompute", "norm_act"),
        (DENSE, {"recompute": "other:op_sac_save_sdpa_reducescatter_and_every_other_mm"}, "recompute", "op_sac"),
        (LATENT, {"recompute": "other:mla_up_proj"}, "recompute", "mla_up_proj"),
        (LATENT, {"recompute": "other:moe_act+mla_up_proj"}, "recompute", "norm_act+mla_up_proj"),
        (LATENT, {"recompute": "other:mla_up_proj+mlp"}, "recompute", "mla_up_proj+mlp"),
        (LATENT, {"recompute": "other:moe+mla_up_proj"}, "recompute", "mla_up_proj+moe"),
        (DENSE, {"recompute": "other:mlp"}, "recompute", "mlp"),
        (DENSE, {"recompute": "other:feed-forward only"}, "recompute", "mlp"),
        (DENSE, {"recompute": "other:moe"}, "recompute", "none"),
        (DENSE, {"recompute": "other:core_attn+layernorm"}, "recompute", "selective+norm_act"),
        (DENSE, {"recompute": "other:mla_up_proj+core_attn"}, "recompute", "selective"),
        ({**DENSE, "framework": "maxtext"}, {"recompute": "minimal"}, "recompute", "selective+norm_act"),
        ({**DENSE, "framework": "maxtext"}, {"recompute": "minimal_flash"}, "recompute", "norm_act"),
        (DENSE, {"recompute": "other:mla_up_proj"}, "recompute", "norm_act"),
        (DENSE, {"recompute": "other:core_attn"}, "recompute", "selective"),
        (DENSE, {"recompute": "other:mystery"}, "recompute", "selective"),
        (DENSE, {"recompute": "other:selective_checkpointing"}, "recompute", "selective"),
        (DENSE, {"recompute": "other:selective 2"}, "recompute_layers", 16),
        (DENSE, {"recompute": "other:activation checkpointing"}, "recompute", "full"),
        ({**DENSE, "framework": "torchtitan"}, {"recompute": "selective"}, "recompute", "op_sac"),
    ],
)  # fmt: skip
def test_a_setting_becomes_its_knob(fields, changes, knob, value):
    assert knobs(setting(fields, **changes))[knob] == value


@pytest.mark.parametrize(
    "changes",
    [
        {"framework": "megatron", "pp": "4", "recompute": "op_sac"},
        {"framework": "torchtitan", "recompute": "other:core_attn"},
        {"framework": "nanotron", "zero_stage": "2"},
    ],
)
def test_what_a_run_did_its_trainer_does(changes):
    reader = RunReader({}, HardwareRegistry())
    (found,) = compare_runs([run({**DENSE, "step_time_s": "5"}, **changes)], reader, load_uncertainty())
    assert found.step_time_s is not None
    assert "the framework" not in found.reason


NOTHING = (
    "no activation checkpointing", "gradient_checkpointing=False", "gradient_checkpointing: false", "checkpointing off",
    "without activation checkpointing", "not full", "disabled", "n/a", "-", "no recompute", "no AC", "recompute: off",
    "recompute=none", "not used", "none", "false", "0", "full=False", "none (selective is not supported)", "0.0",
    "everything_saveable", "nan", "–",  # of which the last two say nothing, and the trainer does none
)  # fmt: skip
EVERYTHING = (
    "all", "all layers", "remat", "nothing_saveable", "AC", "activation checkpointing", "gradient checkpointing",
    "full", "other:full", "full (no offload)", "on", "save_qkv_proj", "qkv_proj_offloaded", "save_dot_except_mlp",
    "gradient_checkpointing (use_reentrant=False)", "full use_reentrant=false", "uniform 1",
)  # fmt: skip
COUNTED = {
    "recompute 10 layers": 10, "recompute_num_layers=10": 10, "8 layers/stage": 8, "every 4 layers": 10,
    "ac_freq=2": 20, "block:4": 4, "full block 4": 4, "full, block, 3": 3, "4 of 16 layers": 4,
    "selective 10 layers": 10, "selective_ac_option=2": 20, "selective:2": 20, "selective_layer_2": 20,
}  # fmt: skip
MODES = ("none", "selective", "full")
PARTS = {
    "other:moe_act (no core_attn)": "norm_act", "layer_norm": "norm_act", "layernorms+activations": "norm_act",
    "selective:moe_act": "norm_act", "selective+layernorm": "selective+norm_act",
    "checkpoint_dots": "selective+norm_act",
    "selective:core_attn+moe_act": "selective+norm_act", "remat_policy=minimal": "selective+norm_act",
    "--recompute-activations": "selective",
}  # fmt: skip


def recomputed(written, modes=MODES):
    found = spelling.recompute_mode(written, modes, lacks={"mla_up_proj", "moe"}, layers_per_chunk=lambda: 40)
    return found.mode, found.layers


@pytest.mark.parametrize("written", PARTS)
def test_words_for_recomputing_parts_of_a_layer(written):
    assert recomputed(written) == (PARTS[written], -1)


def test_deepseeks_words_for_what_it_recomputes():
    found = spelling.recompute_mode("rmsnorm and mla up-projection", MODES, lacks=set(), layers_per_chunk=lambda: 4)
    assert found.mode == "norm_act+mla_up_proj"


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("sdpa_math", "unfused"),
        ("flash=0", "unfused"),
        ("use_flash_attn=false", "unfused"),
        ("te_unfused", "unfused"),
        ("vanilla", "unfused"),
        ("dot_product", "unfused"),
        ("sdpa_cudnn", "te_flash"),
        ("fused_softmax", "megatron_fused"),
        ("torch.nn.functional.scaled_dot_product_attention", "flash2"),
        ("fused", "te_flash"),
        ("local", "unfused"),
    ],
)
def test_kernels_by_other_names(written, ours):
    assert profile(setting(attention=written, framework="megatron_bridge")).attention == ours


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({"framework": "lit-gpt"}, "fsdp_composer"),
        ({"framework": "llama-factory"}, "fsdp_accelerate"),
        ({"framework": "nemo_automodel"}, "torchtitan"),
        ({"framework": "megatron_ds"}, "megatron_deepspeed"),
        ({"framework": "PyTorch/XLA", "hardware": "tpu_v5e"}, "maxtext"),
        ({"framework": "fsdp", "tp": 2}, "torchtitan"),
        ({"framework": "megatron", "attention": "eager"}, "megatron_legacy"),
    ],
)
def test_trainers_of_rows_by_other_names(changes, ours):
    assert profile(setting(**changes)).name == ours


@pytest.mark.parametrize(
    ("framework", "stage"),
    [("DeepSpeed ZeRO-3", 3), ("deepspeed zero2", 2), ("ZeRO-Infinity", 3), ("megatron_fsdp", 3), ("pytorch_ddp", 0)],
)
def test_a_stage_in_the_trainers_name(framework, stage):
    assert knobs(setting(framework=framework))["zero_stage"] == stage


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"extras": "grad_accum=4"}, 1),
        ({"extras": "gradient_accumulation_steps=2"}, 2),
        ({}, 1),
        ({"framework": "maxtext"}, 4),
        ({"framework": "maxtext", "micro_batch": 2}, 2),
        ({"extras": "grad_accum=3"}, 1),
    ],
)
def test_a_micro_batch_that_is_not_written(changes, size):
    """64 sequences on 16 ranks."""
    assert knobs(setting(**changes))["micro_batch"] == size


@pytest.mark.parametrize(
    ("precision", "recipe", "scaling"),
    [
        ("fp8_blockwise", "", "block"),
        ("fp8_sc", "", "block"),
        ("fp8_cs", "", "tensor"),
        ("fp8_delayed", "", "delayed"),
        ("float8_rowwise", "", "block"),
        ("fp8", "1x128", "block"),
        ("fp8", "tile", "block"),
        ("fp8", "ds", "delayed"),
    ],
)
def test_what_a_scale_covers_by_other_names(precision, recipe, scaling):
    assert setting(precision=precision, extras=f"fp8_recipe={recipe}").recipe.scaling == scaling


def test_dispatchers_by_other_names():
    once = [
        profile(
            setting(EXPERTS, framework="megatron_bridge", ep=8, extras=f"moe_dispatcher={word}")
        ).dispatches_once_per_node
        for word in ("deep_ep", "flex-hybridep", "hybrid_ep", "flex", "alltoall")
    ]
    assert once == [True, True, True, True, False]


def test_a_slash_makes_no_file_of_a_name():
    """For what runs are fitted by, too."""
    one = run(framework="NVIDIA/Megatron-LM", hardware="NVIDIA H100 80GB / SXM")
    found = setting_of(one, MODELS, REGISTRY)
    assert (profile(found).name, found.hardware.name) == ("megatron", "h100")
    assert set(profiles_of([UsableRun(one, found, 1.0)])) == {"megatron"}


def test_cells_that_say_nothing_are_empty():
    said = setting(micro_batch="n/a", vpp="0", cp="-", zero_stage="ZeRO-1", sequence_parallel="0.0", tp=2)
    assert (knobs(said)["micro_batch"], knobs(said)["cp"], knobs(said)["zero_stage"]) == (1, 1, 1)
    assert knobs(said)["sequence_parallel"] is False
    assert run(oom="OOM").out_of_memory is run(oom="1.0").out_of_memory is True


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ({"encoder_decoder": True}, "encoders"),
        ({"causal": False}, "not causal"),
        ({"mamba": True}, "state-space"),
        ({"linear_attention": True}, "linear attention"),
    ],
)
def test_other_architectures_are_refused(dims, why):
    plain = {"n_layers": 4, "hidden_size": 64, "n_heads": 4, "ffn_hidden_size": 256, "vocab_size": 1000}
    with pytest.raises(DlcalcError, match=why):
        model_of("odd", plain | dims)


def test_what_no_estimate_reads_keeps_no_model_out():
    plain = {"n_layers": 12, "hidden_size": 64, "n_heads": 4, "ffn_hidden_size": 256, "vocab_size": 1000}
    odd = model_of("odd", plain | {"activation": "swiglu", "norm_epsilon": 0, "rotary": True, "source": 3})
    assert odd == model_of("odd", plain)
    assert model_of("p", plain | {"parallel_attn": True}).norms_per_layer == 1
    assert sum(model_of("w", plain | {"sliding_window_pattern": 6, "sliding_window": 128}).layer_is_windowed) == 10


def test_other_delimiters_and_headings(tmp_path):
    text = "\n" + ";".join(DENSE).upper() + "\n" + ";".join(DENSE.values()) + "\n"
    assert read_runs(written(tmp_path, text))[0].fields == DENSE


@pytest.mark.parametrize("written", NOTHING)
def test_words_for_recomputing_nothing(written):
    assert recomputed(written) == ("none", -1)


@pytest.mark.parametrize("written", EVERYTHING)
def test_words_for_recomputing_everything(written):
    assert recomputed(written) == ("full", -1)


@pytest.mark.parametrize("written", COUNTED)
def test_words_for_recomputing_some_layers(written):
    assert recomputed(written) == ("full", COUNTED[written])


@pytest.mark.parametrize("written", ["", "not stated", "unknown", "not reported"])
def test_where_nothing_is_said_the_trainers_default_is_taken(written):
    assert recomputed(written, ("full", "none"))[0] == "full"


@pytest.mark.parametrize("written", ["selective", "selective AC", "selective activation checkpointing"])
def test_selective_is_of_operations_where_the_trainer_selects_them(written):
    assert recomputed(written)[0] == "selective"
    assert recomputed(written, ("none", "op_sac", "full"))[0] == "op_sac"


def test_a_list_of_modules_may_be_quoted():
    assert recomputed("['core_attn', 'layernorm']")[0] == "selective+norm_act"


@pytest.mark.parametrize(
    ("written", "default", "kernel"),
    [
        ("fused", "te_flash", "te_flash"),  # of Megatron-Core today: cuDNN's
        ("fused", "megatron_fused", "megatron_fused"),  # of 2021: the masked softmax
        ("unfused softmax", "te_flash", "unfused"),
        ("no flash attention", "flash2", "unfused"),
        ("flash-attn==1.0.4", "flash2", "flash1"),
        ("flash-attn==2.5.8", "te_flash", "flash2"),
        ("aotriton", "te_flash", "flash2"),
        ("triton", "te_flash", "flash1"),
    ],
)
def test_words_for_attention(written, default, kernel):
    assert spelling.attention_name(written, get_args(AttentionKernel), default).word == kernel


@pytest.mark.parametrize(
    ("written", "vpp", "default", "schedule"),
    [
        ("", 1, "gpipe", "gpipe"),
        ("1F1B", 1, "gpipe", "1f1b"),
        ("FThenB", 1, "1f1b", "gpipe"),
        ("InterleavedZeroBubble", 2, "1f1b", "interleaved"),
        ("DualPipeV", 1, "1f1b", "dualpipe"),
        ("Interleaved1F1B", 2, "gpipe", "interleaved"),
    ],
)
def test_words_for_schedules(written, vpp, default, schedule):
    assert spelling.schedule_name(written, pp=4, vpp=vpp, default=default).word == schedule


@pytest.mark.parametrize(
    ("schedule", "told", "overlaps"), [("dualpipe", "", 1), ("1f1b", "", 0), ("dualpipe", ";a2a_overlap=0", 0)]
)
def test_dualpipe_runs_experts_behind_each_other(schedule, told, overlaps):
    found = setting(LATENT, pp=4, ep=2, extras=f"schedule={schedule}{told}")
    assert float(found.plan.overlap_ep) == overlaps


@pytest.mark.parametrize(
    ("fields", "changes", "field", "value"),
    [
        (DENSE, {"attention": "flash2"}, "attention", "flash2"),
        (DENSE, {"attention": "flash_attn_3"}, "attention", "flash3"),
        (DENSE, {"attention": "tea_leaves"}, "attention", "te_flash"),  # Megatron's own
        (DENSE, {"extras": "kernel=flash_attention2+RMS_kernel"}, "attention", "flash2"),
        (DENSE, {"extras": "rms_kernel=0"}, "fused_norm", False),
        ({**DENSE, "framework": "aleph_scaling"}, {"extras": "rms_kernel=1"}, "fused_norm", True),
        (DENSE, {"extras": "fused_ce=te"}, "cross_entropy", "fused"),
        ({**DENSE, "framework": "torchtitan"}, {"extras": "loss_parallel=1"}, "cross_entropy", "sharded"),
        (DENSE, {"extras": "loss_parallel=1;fused_ce=0"}, "cross_entropy", "parallel"),
        (DENSE, {"extras": "loss_parallel=0"}, "cross_entropy", "gathered"),
        ({**DENSE, "framework": "torchtitan"}, {"extras": "compile=0"}, "fused_activation", False),
        ({**DENSE, "framework": "deepspeed"}, {"extras": "compile=1"}, "fused_rope", True),
        ({**DENSE, "framework": "deepspeed"}, {"extras": "te_op_fuser=1"}, "fused_activation", True),
        (DENSE, {"extras": "grad_dtype=bf16"}, "grad_bytes", 2),
        (DENSE, {"extras": "grad_dtype=bf16"}, "grad_reduce_bytes", 2),
        (DENSE, {"extras": "grad_reduce=bf16"}, "grad_bytes", 2),
        ({**DENSE, "framework": "torchtitan"}, {"extras": "reduce_dtype=bf16"}, "grad_reduce_bytes", 2),
        ({**DENSE, "framework": "torchtitan"}, {"extras": "reduce_dtype=bf16"}, "grad_bytes", 4),
        ({**DENSE, "framework": "fsdp_composer"}, {"extras": "mp_mode=PURE"}, "grad_reduce_bytes", 2),
        (DENSE, {"extras": "precision_aware_opt=1"}, "optimizer_state_bytes", 4),
        (DENSE, {"extras": "optimizer=adam_8bit"}, "optimizer_state_bytes", 2),
        (DENSE, {"extras": "optimizer=adam_fp32_states"}, "optimizer_state_bytes", 8),
        (DENSE, {"extras": "p2p_overlap=0"}, "overlaps_stage_sends", False),
        (EXPERTS, {"extras": "moe_capacity_factor=1.5;moe_pad_to_capacity=1"}, "routed_factor", 1.5),
        (EXPERTS, {"extras": "moe_capacity_factor=1.5"}, "routed_factor", 1.0),  # not padded up to it
        ({**EXPERTS, "framework": "megatron_bridge"}, {"extras": "release=1"}, "dispatches_once_per_node", True),
        ({**EXPERTS, "framework": "megatron_bridge"}, {"extras": "moe_token_drop=1"},
         "dispatches_once_per_node", False),
        ({**EXPERTS, "framework": "megatron_bridge"}, {"extras": "moe_token_drop=1;moe_dispatcher=flex-hybridep"},
         "dispatches_once_per_node", True),
        ({**DENSE, "framework": "fsdp_composer"}, {"framework": "deepspeed", "pp": 2}, "supports_pipeline", True),
    ],
)  # fmt: skip
def test_a_setting_becomes_part_of_the_profile(fields, changes, field, value):
    assert getattr(profile(setting(fields, **changes)), field) == value


@pytest.mark.parametrize(
    ("extras", "whole", "share"),
    [
        ("", False, 1.0),
        ("cuda_graph=none", False, 1.0),
        ("cuda_graph=on", True, 1.0),
        ("cuda_graph=full_iteration", True, 1.0),
        ("cuda_graph=local:full_iteration", True, 1.0),
        ("cuda_graph=transformer_engine:attn", False, 1 / 3),  # 12 of 18 launches are attention's
        ("cuda_graph=attn+mlp", False, 0.01),
    ],
)
def test_graphs_take_launches_off_the_host(extras, whole, share):
    found = setting(extras=extras)
    assert found.recipe.cuda_graphs is whole
    assert profile(found).host_launch_us == pytest.approx(share * load_framework("megatron").host_launch_us)


@pytest.mark.parametrize(
    ("extras", "field", "value"),
    [
        ("n_layers_override=4", "n_layers", 4),
        ("first_dense_layers_override=1;n_layers_override=4", "first_dense_layers", 1),
        ("mtp=2", "mtp_layers", 2),
        ("max_seq=999", "max_seq", 999),
        ("qk_layernorm=1", "qk_norm", True),
    ],
)
def test_a_run_may_differ_from_the_model_it_names(extras, field, value):
    assert getattr(setting(LATENT, extras=extras).model, field) == value


def test_a_source_that_contradicts_itself_is_read_by_its_times():
    rows = {"source": "vtrain_single", "recompute": "full"}
    found = setting(**rows)
    assert knobs(found)["recompute"] == "none"
    assert any("recompute full" in remark for remark in found.remarks)
    assert knobs(setting(recompute="full"))["recompute"] == "full"


def test_what_a_source_implies_without_saying_is_read_so():
    """Micro-batches of two from three step times; interleaved chunks from overlapped sends, where layers divide."""
    found = setting(source="mt_nlg")
    assert knobs(found)["micro_batch"] == 2
    assert any(remark.startswith("micro_batch of mt_nlg taken as 2") for remark in found.remarks)
    assert knobs(setting(source="mt_nlg", micro_batch=1))["micro_batch"] == 1
    staged = {"source": "megatron_lm_readme", "pp": 2, "tp": 8}
    assert (knobs(setting(**staged))["vpp"], knobs(setting(**staged))["schedule"]) == (2, "interleaved")
    assert knobs(setting(**staged, vpp=1))["vpp"] == 1
    assert knobs(setting(**staged, extras="n_layers_override=34"))["vpp"] == 1
    assert knobs(setting(source="megatron_lm_readme"))["vpp"] == 1


def test_every_shipped_row_is_of_a_known_source():
    named = {run.source for file in MEASURED.glob("*.csv") for run in read_runs(file)}
    assert named == set(known_sources())


def test_fp16_keeps_other_gradients_than_bf16():
    fields = {**DENSE, "framework": "megatron_deepspeed"}
    widths = {
        precision: (profile(found).grad_bytes, profile(found).grad_reduce_bytes)
        for precision in ("fp16", "bf16")
        for found in [setting(fields, precision=precision)]
    }
    assert widths == {"fp16": (2, 2), "bf16": (4, 4)}


def test_fewer_layers_than_dense_ones_are_all_dense():
    model = setting({**DENSE, "model": "deepseek-v3"}, extras="n_layers_override=2").model
    assert model.n_dense_layers == 2


@pytest.mark.parametrize(
    ("extras", "kind"),
    [
        ("memory_is=max_over_ranks_torch_max_allocated", "allocated"),
        ("memory_kind=max_reserved", "reserved"),
        ("memory_kind=nvidia-smi", "device"),
        ("", "reserved"),
    ],
)
def test_a_measured_peak_is_of_a_kind(extras, kind):
    assert setting(extras=extras).memory_kind == kind


# --- layers of a pipeline ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "written_out"),
    [
        ("Et*3|(tt|)*2m|L", "Ettt|tt|tt|m|L"),
        ("Et|(t|)*3L", "Et|t|t|t|L"),
        ("E((t*2|)*2)*2L", "Ett|tt|tt|tt|L"),
        ("E t, | t L", "Et|tL"),
    ],
)
def test_a_layout_is_written_out(layout, written_out):
    assert expand_layout(layout) == written_out


def test_a_layout_that_explodes_is_refused():
    with pytest.raises(DlcalcError, match="more than"):
        expand_layout("((((t)*9999)*9999)*9999)*9999")


@pytest.mark.parametrize(
    ("extras", "layers", "pp", "vpp", "expected"),
    [
        ("layers_per_stage=9,7", 16, 2, 1, (9, 7)),
        ("layers_per_stage=[8*3, 4]", 28, 4, 1, (8, 8, 8, 4)),
        ("layers_per_stage=9,7", 16, 2, 2, (5, 4, 4, 3)),  # stage 0 holds chunks 0 and 2
        ("pp_layout=Ett|tt|ttL", 6, 3, 1, (2, 2, 2)),
        ('pp_layout=[["embedding","decoder"],["decoder","loss"]]', 2, 2, 1, (1, 1)),
        ("emb_in_pp_split=1", 31, 4, 1, (7, 8, 8, 8)),
        ("loss_in_pp_split=1", 31, 4, 1, (8, 8, 8, 7)),
        ("emb_in_pp_split=1;loss_in_pp_split=1", 30, 4, 1, None),
        ("", 32, 4, 1, None),
        ("layers_per_stage=16", 16, 1, 1, None),
    ],
)
def test_layers_of_every_chunk(extras, layers, pp, vpp, expected):
    assert layers_per_chunk(parse_extras(extras), n_layers=layers, pp=pp, vpp=vpp) == expected


def test_a_custom_split_reaches_the_plan():
    found = setting(pp=2, extras="layers_per_stage=17,15")
    assert found.custom_split == (17, 15)
    assert knobs(found)["split"] == "custom"


def test_a_split_that_does_not_add_up_is_remarked_and_left():
    found = setting(pp=2, extras="layers_per_stage=17,16")
    assert found.custom_split is None
    assert knobs(found)["split"] == "even"
    assert any("do not add up" in remark for remark in found.remarks)


@pytest.mark.parametrize("extras", ["uneven_pp=1", "emb_in_pp_split=1;loss_in_pp_split=1"])
def test_embedding_and_loss_may_count_as_layers(extras):
    assert knobs(setting(pp=2, extras=extras))["split"] == "embedding_and_loss"


def test_layers_that_do_not_divide_are_split_as_evenly_as_possible():
    assert knobs(setting(pp=2, extras="n_layers_override=31"))["split"] == "embedding_and_loss"


# --- words of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "split", "profile_name"),
    [
        ("megatron-core", False, "megatron"),
        ("Megatron-LM", True, "megatron"),
        ("NeMo 25.04", False, "megatron_bridge"),
        ("megatron_deepspeed_v3", False, "megatron_deepspeed"),
        ("gpt-neox", False, "megatron_deepspeed"),
        ("DeepSpeed ZeRO-3", False, "deepspeed"),
        ("DeepSpeed ZeRO-1", True, "megatron_deepspeed"),
        ("pytorch_fsdp", False, "fsdp_composer"),
        ("FSDP2", False, "torchtitan"),
        ("llm-foundry", False, "fsdp_composer"),
        ("colossalai", True, "megatron"),
        ("my own", False, "megatron"),
        ("", False, "megatron"),
    ],
)
def test_frameworks_by_other_names(written, split, profile_name):
    found = setting(framework=written, tp=2 if split else 1)
    assert profile(found).name == profile_name
    assert [remark for remark in found.remarks if "framework" in remark]


def test_an_unknown_trainer_that_shards_weights_is_taken_for_fsdp():
    assert profile(setting(framework="my own", zero_stage=3)).name == "torchtitan"


@pytest.mark.parametrize("attention", ["megatron_fused", "unfused"])
def test_megatron_before_flash_attention_is_a_profile_of_its_own(attention):
    found = setting(attention=attention)
    assert profile(found).name == "megatron_legacy"
    assert profile(found).attention == attention


@pytest.mark.parametrize(
    ("written", "extras", "hardware", "precision"),
    [
        ("bfloat16", "", "h100", "bf16"),
        ("BF16-mixed", "", "h100", "bf16"),
        ("fp8_e4m3", "", "h100", "fp8"),
        ("fp8", "fp8_recipe=mxfp8", "b200", "mxfp8"),
        ("fp8", "fp8_recipe=mxfp8", "h100", "fp8"),
        ("mxfp8", "", "h100", "fp8"),
        ("fp4", "fp4_recipe=nvfp4", "b200", "nvfp4"),
    ],
)
def test_precisions_by_other_names(written, extras, hardware, precision):
    assert setting(precision=written, extras=extras, hardware=hardware).recipe.precision == precision


def test_what_is_written_in_our_words_gets_no_remark():
    found = setting(attention="flash2", recompute="selective", tp=2, pp=2, dp=4, extras="schedule=1f1b")
    assert found.remarks == ()


def test_a_dp_that_contradicts_the_devices_is_remarked():
    assert any("dp" in remark for remark in setting(dp=3).remarks)


# --- models -----------------------------------------------------------------------------------------------------


def test_missing_dimensions_take_their_usual_values():
    model = model_of("m", {"n_layers": 2, "hidden_size": 512, "n_heads": 8, "ffn_hidden_size": 2048, "vocab_size": 100})
    assert (model.n_kv_heads, model.head_dim) == (8, 64)
    assert model == ModelSpec(
        name="m",
        n_layers=2,
        hidden_size=512,
        n_heads=8,
        n_kv_heads=8,
        head_dim=64,
        ffn_hidden_size=2048,
        vocab_size=100,
    )


EXPERT_DIMS = {
    "n_layers": 4, "hidden_size": 512, "n_heads": 8, "vocab_size": 100, "n_experts": 8, "top_k": 2,
    "expert_ffn_hidden_size": 256, "n_shared_experts": 2,
}  # fmt: skip


def test_widths_of_experts_follow_from_one_another():
    model = model_of("m", EXPERT_DIMS)
    assert (model.shared_ffn_hidden_size, model.ffn_hidden_size) == (512, 256)


@pytest.mark.parametrize(("every", "pattern"), [(2, (True, False)), (6, (True,) * 5 + (False,)), (1, (True,))])
def test_one_layer_in_so_many_attends_to_everything(every, pattern):
    assert model_of("m", {**EXPERT_DIMS, "sliding_window": 128, "swa_every": every}).window_pattern == pattern


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": "512", "n_heads": 8.0, "gated_mlp": 1, "norm": "RMSNorm", "tied_embeddings": "false"},
        {"alibi": True, "attention_sinks": True, "expert_bias": True, "mtp_layers": 1, "linear_bias": True},
        {"q_lora_rank": None, "dropout": 0.1, "colour": "blue"},
    ],
)
def test_models_are_read_generously(odd):
    model = model_of("m", {**EXPERT_DIMS, **odd})
    assert model.hidden_size == 512
    for key in {"alibi", "attention_sinks", "expert_bias", "linear_bias"} & odd.keys():
        assert getattr(model, key) is True


def test_a_file_of_models_keeps_what_is_good_and_says_what_is_not(tmp_path):
    file = tmp_path / "models.yaml"
    bad = {"no_heads": {"n_layers": 2}, "text": "what", "huge": {**EXPERT_DIMS, "hidden_size": 10**30},
           "odd_window": {**EXPERT_DIMS, "swa_every": -3}}  # fmt: skip
    file.write_text(yaml.safe_dump({"good": {**EXPERT_DIMS, "colour": "blue"}, **bad}))
    models = read_models(file)
    assert set(models) == {"good"}
    assert set(models.refused) == set(bad)
    assert models.ignored == {"colour"}
    with pytest.raises(DlcalcError, match="no_heads"):
        setting_of(run(model="no_heads"), models, REGISTRY)


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"a: [", "not YAML"), (b"- 1", "must be a mapping"), (b"\xff\xfe\xff", "not YAML")]
)
def test_a_file_that_holds_no_models_is_refused(tmp_path, content, complaint):
    file = tmp_path / "models.yaml"
    file.write_bytes(content)
    with pytest.raises(DlcalcError, match=complaint):
        read_models(file)


def test_built_in_models_are_known_everywhere():
    assert setting_of(run(model="Mixtral_8x7b"), {}, REGISTRY).model.n_experts == 8


# --- the shipped runs -------------------------------------------------------------------------------------------

SHIPPED = [row for file in sorted(MEASURED.glob("*.csv")) for row in read_runs(file)]


def test_shipped_runs_are_all_there_and_cited():
    assert len(SHIPPED) == 1251
    assert len({(row.source, row.case) for row in SHIPPED}) == len(SHIPPED)
    assert all(row.text("citation") for row in SHIPPED)
    assert all(row.measured_step_time_s or row.out_of_memory or row.is_part_of_a_step for row in SHIPPED)


def test_shipped_runs_are_written_in_our_words():
    reader = RunReader(MODELS, REGISTRY)
    assert {remark for row in SHIPPED for remark in reader.setting(row).remarks} == set()
    assert not MODELS.refused
    assert not MODELS.ignored


def test_rows_that_say_the_same_share_their_objects():
    reader = RunReader(MODELS, REGISTRY)
    settings = [reader.setting(row) for row in SHIPPED]
    assert len({found.group for found in settings}) < len(settings) / 2
    for first, second in pairwise(settings):
        if first.group == second.group:
            assert (first.model, first.recipe, first.custom_split) == (second.model, second.recipe, second.custom_split)


def test_the_documentation_names_every_column_and_every_honoured_key():
    text = (MEASURED / "README.md").read_text()
    for name in (*COLUMNS, *HONOURED):
        assert re.search(rf"\b{name}\b", text), name
    for file in MEASURED.glob("*.csv"):
        assert f"`{file.name}` | {len(read_runs(file))} |" in text


def test_keys_that_are_notes_are_listed_once():
    assert ignored_extras(
        [run(extras="colour=blue;tp_comm_overlap=1"), run(extras=f"colour=red;a=1;{min(WITHOUT_EFFECT)}=1")]
    ) == [
        "a",
        "colour",
    ]


def test_the_shipped_files_are_where_the_package_looks():
    assert {file.stem for file in MEASURED.glob("*.csv")} >= {"hagemann2023", "vtrain_single", "llmfoundry"}
    assert Path(MEASURED / "models.yaml").is_file()


@pytest.mark.parametrize(
    ("written", "shards_weights", "splits_layers", "profile"),
    [
        ("MaxText", True, False, "maxtext"),
        ("jax/paxml", True, True, "maxtext"),
        ("nanotron-main", False, True, "nanotron"),
        ("HF transformers + FSDP", True, False, "fsdp_accelerate"),
        ("HF transformers + FSDP", True, True, "torchtitan"),
        ("GPT-NeoX", False, True, "megatron_deepspeed"),
        ("our own", True, False, "torchtitan"),
        ("our own", False, False, "megatron"),
    ],
)
def test_trainers_by_other_names(written, shards_weights, splits_layers, profile):
    taken = spelling.framework_name(
        written, known_frameworks(), shards_weights=shards_weights, splits_layers=splits_layers
    )
    assert taken.word == profile


@pytest.mark.parametrize("mode", RECOMPUTE_MODES)
def test_our_own_words_of_recomputation_are_read_as_written(mode):
    found = spelling.recompute_mode(mode, RECOMPUTE_MODES, lacks=(), layers_per_chunk=lambda: 8)
    assert (found.mode, found.remark) == (mode, "")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("full: attention + mlp", "full"),
        ("full (attn+mlp+moe)", "full"),
        ("block 4 layers mlp", "full"),
        ("MoE layers every 2", "full"),
        ("attn+mlp", "selective+mlp"),
        ("attention and mlp", "selective+mlp"),
        ("shared_experts", "none"),
        ("moe_router", "none"),
        ("mlp, moe", "mlp+moe"),
    ],
)
def test_parts_named_beside_whole_layers_do_not_stand_for_them(written, expected):
    assert spelling.recompute_mode(written, RECOMPUTE_MODES, lacks=(), layers_per_chunk=lambda: 8).mode == expected
