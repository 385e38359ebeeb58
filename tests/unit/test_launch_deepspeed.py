"""DeepSpeed, Accelerate and nanotron: what is written says the plan, and a DeepSpeed file is read back."""

import ast
import json

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcalc.errors import DlcalcError
from dlcalc.launch.readers.deepspeed import read
from dlcalc.launch.trainers import accelerate, deepspeed, nanotron
from dlcalc.launch.trainers.transformers_model import MODEL_FILE, SCRIPT_FILE
from tests.launch_jobs import job, refusals
from tests.launch_spaces import best_jobs

FREE = {"zero_stages": (0, 1, 2, 3)}


@st.composite
def plans(draw):
    stage = draw(st.integers(0, 3))
    overlap = stage > 0 and draw(st.booleans())
    return {
        "tp": draw(st.sampled_from([1, 1, 2, 4])),
        "dp": draw(st.sampled_from([1, 2, 8])),
        "micro_batch": draw(st.sampled_from([1, 2, 3])),
        "recompute": draw(st.sampled_from(["none", "full"])),
        "zero_stage": stage,
        "overlap_grad": float(overlap),
        "overlap_param": float(overlap and draw(st.booleans())),
        "offload_optimizer": float(draw(st.booleans())),
    }


@settings(max_examples=60, deadline=None)
@given(knobs=plans(), precision=st.sampled_from(["bf16", "fp16"]))
def test_what_is_written_for_deepspeed_is_read_back(tmp_path_factory, knobs, precision):
    one = job("deepspeed", global_batch=96, precision=precision, allow=FREE, **knobs)
    assume(not refusals(one))
    found = read(deepspeed.emit(one).files["ds_config.json"], tmp_path_factory.mktemp("job") / "ds_config.json")
    told = one.plan.as_dict()
    assert told.pop("cp_exchange") == "ring"  # there is nothing to exchange
    if one.plan.tp > 1:  # the file cannot say the batch, hence not dp either
        assert found.global_batch is None
        told.pop("dp")
    else:
        assert found.global_batch == 96
    assert found.knobs == told
    assert (found.precision, found.model) == (precision, None)
    profile = one.recipe.framework
    wanted = {"grad_bytes": profile.grad_bytes, "grad_reduce_bytes": profile.grad_reduce_bytes}
    assert found.profile == wanted | ({"bucket_elements": profile.bucket_elements} if one.plan.zero_stage else {})


def test_a_file_as_people_write_it_is_read(tmp_path):
    text = json.dumps(
        {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": True},
            "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "sub_group_size": 1e9},
            "wall_clock_breakdown": False,
        }
    )
    found = read(text, tmp_path / "ds.json")
    assert found.knobs["zero_stage"] == 3
    assert found.knobs["overlap_grad"]  # what DeepSpeed does at stage 3 when it is not told
    assert "dp" not in found.knobs
    assert found.precision == "fp16"
    assert set(found.ignored) == {"zero_optimization.sub_group_size", "wall_clock_breakdown"}
    assert any("offload_param" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"train_batch_size": 7,\n "zero_optimization": {\n  "stage": 4}}',
            r"3: zero_optimization.stage: must be 0, 1, 2 or 3",
        ),
        (
            '{"train_batch_size": 7,\n "zero_optimization": {"stge": 4}}',
            r"2: zero_optimization.stge: no such option; did you",
        ),
        ('{"train_batch_size": 7, "bf16": {"enabled": true}, "fp16": {"enabled": true}}', "cannot both be enabled"),
        ('{"train_batch_size": 7, "bf16": {"enabled": "yes"}}', "must be true or false, not 'yes'"),
        ('{"bf16": {"enabled": true}}', "either train_batch_size or"),
        ('{"train_batch_size": 1e400}', "must be a whole number"),
        ('{"train_batch_size": NaN}', "must be a whole number"),
        ('{"train_batch_size": 7, "train_batch_size": 8}', "train_batch_size"),
        ('{"train_batch_size": ' + "9" * 5000 + "}", "at most 400 are read"),
        ('{"a": ' * 3000, "nested|deep|JSON|syntax"),
        ("[]", "must be a mapping"),
        ("", "not JSON"),
        (
            '{"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}',
            "must be a multiple of 4 x 1",
        ),
    ],
)
def test_mistakes_are_told_with_file_line_and_field(tmp_path, text, message):
    with pytest.raises(DlcalcError, match=f"ds.json:.*({message})"):
        read(text, tmp_path / "ds.json")


@pytest.mark.parametrize(
    ("target", "model", "knobs", "reason"),
    [
        ("deepspeed", "llama3-8b", {"dp": 2, "pp": 2}, "no pipeline parallelism"),
        ("deepspeed", "llama3-8b", {"tp": 2, "sequence_parallel": 1}, "no sequence parallelism"),
        ("deepspeed", "llama3-8b", {"dp": 2, "zero_stage": 2, "overlap_param": 0}, "one switch for both"),
        ("deepspeed", "mixtral-8x7b", {"dp": 2}, "experts"),
        ("deepspeed", "mpt-7b", {"dp": 2}, "ALiBi"),
        ("fsdp-accelerate", "llama3-8b", {"dp": 2, "tp": 2}, "no tensor parallelism"),
        ("fsdp-accelerate", "llama3-8b", {"dp": 1}, "needs two devices"),
        ("fsdp-accelerate", "llama3-8b", {"dp": 2, "zero_stage": 1}, "no such ZeRO stage"),
        ("nanotron", "llama3-8b", {"dp": 2, "cp": 2}, "no context parallelism"),
        ("nanotron", "qwen3-32b", {"dp": 2}, "query and key norms"),
        ("nanotron", "llama3-8b", {"dp": 2, "zero_stage": 2}, "no such ZeRO stage"),
    ],
)
def test_what_they_cannot_run_is_refused_with_the_reason(target, model, knobs, reason):
    assert any(reason in one and one.startswith(target) for one in refusals(job(target, model, **knobs)))


def test_accelerate_is_told_by_file_and_by_environment():
    written = accelerate.emit(
        job(
            "fsdp-accelerate",
            "qwen3-32b",
            dp=16,
            dp_replicate=2,
            recompute="full",
            offload_optimizer=1,
            global_batch=64,
        )
    )
    told = yaml.safe_load(written.files["accelerate.yaml"])
    assert told["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] == "Qwen3DecoderLayer"
    assert told["parallelism_config"]["parallelism_config_dp_shard_size"] == 8
    assert told["num_processes"] == 16
    environment = {
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": "8",
    }
    assert environment.items() <= written.environment.items()


@pytest.mark.parametrize(("target", "trainer"), [("deepspeed", deepspeed), ("fsdp-accelerate", accelerate)])
def test_the_program_is_python_and_knows_the_batch(target, trainer):
    written = trainer.emit(job(target, dp=4, micro_batch=2, global_batch=64, seq_len=4096))
    ast.parse(written.files[SCRIPT_FILE])
    for line in ("SEQ_LEN = 4096", "MICRO_BATCH = 2", "ACCUMULATION = 8", f"TOKENS_PER_STEP = {64 * 4096}"):
        assert line in written.files[SCRIPT_FILE]
    assert json.loads(written.files[MODEL_FILE])["num_key_value_heads"] == 8


def test_the_best_plans_of_shipped_spaces_are_written_for_nanotron():
    found = list(best_jobs("nanotron"))
    assert {one.name for one in found} >= {"llama3_70b_h100", "llama3_8b_fragmented"}
    for one in found:
        told = yaml.safe_load(nanotron.emit(one).files["nanotron.yaml"])
        degrees = told["parallelism"]["dp"] * told["parallelism"]["tp"] * told["parallelism"]["pp"]
        tokens = told["tokens"]
        assert degrees == one.devices
        sequences = tokens["micro_batch_size"] * tokens["batch_accumulation_per_replica"] * told["parallelism"]["dp"]
        assert sequences == one.recipe.global_batch


def test_nanotron_is_told_the_plan():
    plan = {"tp": 2, "pp": 2, "dp": 4, "sequence_parallel": 1, "overlap_tp": 1, "schedule": "gpipe", "zero_stage": 1}
    batch = {"seq_len": 2048, "global_batch": 64, "micro_batch": 2}
    one = job("nanotron", "llama2-7b", name="x: {y", **plan, **batch)
    assert not [reason for reason in refusals(one) if reason.startswith("nanotron")]
    told = yaml.safe_load(nanotron.emit(one).files["nanotron.yaml"])
    assert told["general"]["run"] == "x: {y"
    wanted = {"dp": 4, "tp": 2, "pp": 2, "pp_engine": "afab", "tp_mode": "REDUCE_SCATTER", "recompute_layer": False}
    assert wanted.items() <= told["parallelism"].items()
    assert told["tokens"]["batch_accumulation_per_replica"] == 8
    assert told["optimizer"]["zero_stage"] == 1
