"""torchtitan: what is written is read back as the same plan, and what it cannot run is refused."""

import contextlib
import json
import shlex
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcalc.calculators.params import trained_params
from dlcalc.costmodel.targets.torchtitan import family_of, misfit_of
from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Variable
from dlcalc.launch.readers.torchtitan import read
from dlcalc.launch.trainers.torchtitan import FILE, emit
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from tests.launch_jobs import job, refusals
from tests.launch_parts import same_torchtitan_details

MODELS = ("llama3-8b", "qwen3-32b", "qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-20b")
DEGREES = st.sampled_from([1, 1, 1, 2, 4])


def command(written) -> str:
    """The options as a shell would be told them; the number of steps is the environment's."""
    words = [word.default if isinstance(word, Variable) else word for option in written.options for word in option]
    return shlex.join(["torchrun", "-m", "torchtitan.train", *words])


def read_back(written, folder):
    (folder / FILE).write_text(written.files[FILE])
    return read(command(written), folder / "args.txt")


UNCOMPILED = dict.fromkeys(("fused_norm", "fused_activation", "fused_residual", "fused_rope"), False)


@st.composite
def plans(draw):
    """Plans that may or may not run; those that do not are left out by the caller."""
    tp, cp, pp, dp = (draw(DEGREES) for _ in range(4))
    stage = draw(st.sampled_from([0, 2, 3, 3]))
    schedule = draw(st.sampled_from(["1f1b", "interleaved", "zb-v", "gpipe"])) if pp > 1 else "1f1b"
    sharded = tp > 1 and draw(st.booleans())
    return {
        "tp": tp,
        "cp": cp,
        "pp": pp,
        "dp": dp,
        "ep": draw(DEGREES),
        "etp": draw(st.sampled_from([1, tp])),
        "vpp": draw(st.sampled_from([2, 3, 4])) if schedule == "interleaved" else 2 if schedule == "zb-v" else 1,
        "schedule": schedule,
        "split": draw(st.sampled_from(["even", "embedding_and_loss"])),
        "micro_batch": draw(st.sampled_from([1, 2, 3])),
        "recompute": draw(st.sampled_from(["none", "full", "op_sac"])),
        "zero_stage": stage,
        "dp_replicate": draw(st.sampled_from([1, 1, 2])) if stage == 3 else 1,
        "sequence_parallel": float(sharded),
        "overlap_param": float(stage > 0),
        "overlap_tp": float(sharded and draw(st.booleans())),
        "offload_optimizer": float(draw(st.booleans())),
    }


@settings(max_examples=60, deadline=None)
@given(knobs=plans(), model=st.sampled_from(MODELS), precision=st.sampled_from(["bf16", "fp8"]))
def test_what_is_written_is_read_back_as_the_same_job(tmp_path_factory, knobs, model, precision):
    allow = {"zero_stages": (0, 2, 3)} | (UNCOMPILED if knobs["schedule"] == "zb-v" else {})
    one = job("torchtitan", model, global_batch=192, precision=precision, allow=allow, **knobs)
    assume(not refusals(one))
    found = read_back(emit(one), tmp_path_factory.mktemp("job"))

    same = found.knobs | ({"zero_stage": one.plan.zero_stage} if one.plan.dp * one.plan.cp == 1 else {})
    if one.plan.dp * one.plan.cp == 1:  # nothing is sharded, whatever the stage
        same |= {"overlap_param": one.plan.overlap_param}
    if one.plan.pp > 1 and one.model.n_layers % (one.plan.pp * one.plan.vpp) == 0:
        same |= {"split": one.plan.split}  # the two splits may be of the same layers
    expected = one.plan.as_dict() | ({} if one.plan.pp > 1 else {"split": "even"})
    assert same == expected
    assert (found.seq_len, found.global_batch, found.precision) == (8192, 192, precision)
    assert found.devices == one.devices
    assert trained_params(found.model) == trained_params(one.model)
    assert found.model.layer_is_moe == one.model.layer_is_moe
    assert found.model.layer_is_windowed == one.model.layer_is_windowed
    same_torchtitan_details(found.model, one.model)


def test_a_script_that_starts_the_job_is_read(tmp_path):
    one = job("torchtitan", tp=2, pp=2, dp=4, sequence_parallel=1, recompute="full")
    written = emit(one)
    (tmp_path / FILE).write_text(written.files[FILE])
    options = command(written).split("torchtitan.train ")[1].replace(" --", " \\\n  --")
    script = f'#!/bin/bash\nset -eu  # it\'s strict\nhere="$(dirname "$0")"\nexec torchrun "$here/{FILE}" {options}\n'
    assert read(script, tmp_path / "train.sh").knobs == one.plan.as_dict()


def test_what_torchrun_is_told_says_how_many_devices(tmp_path):
    """Without a degree of data parallelism, which torchtitan then takes from the world size."""
    line = (
        "torchrun --nproc_per_node=8 --nnodes 4 --rdzv_backend c10d -m torchtitan.train --module llama3 --config"
        " llama3_8b --parallelism.tensor_parallel_degree 2 --training.local_batch_size 2 --compile.enable 2>&1 | tee l"
    )
    found = read(line, tmp_path / "run.sh")
    assert (found.devices, found.global_batch, found.knobs["tp"]) == (32, 32, 2)
    assert read(line.replace("--nnodes 4", '--nnodes "$N"'), tmp_path / "run.sh").devices is None
    with pytest.raises(DlcalcError, match=r"run.sh:1: training.local_batch_size: must be .* not '\$B'"):
        read(line.replace("batch_size 2", "batch_size $B"), tmp_path / "run.sh")


@pytest.mark.parametrize(
    ("knobs", "told", "fused"),
    [
        ({"dp": 8}, "", None),
        ({"dp": 8}, "--compile.no-enable", False),
        ({"pp": 2, "dp": 4, "vpp": 2, "schedule": "zb-v"}, "", False),
    ],
)
def test_what_is_not_compiled_is_not_fused(knobs, told, fused, tmp_path):
    one = job("torchtitan", allow=UNCOMPILED if fused is False else None, **knobs)
    written = emit(one)
    (tmp_path / FILE).write_text(written.files[FILE])
    line = command(written).replace("--compile.enable ", f"{told} ") if told else command(written)
    assert read(line, tmp_path / "args.txt").profile.get("fused_norm") is fused


def test_layers_of_every_chunk_are_written_and_read(tmp_path):
    layers = (3, 5, 5, 5, 5, 5, 4, 0)
    split = job("torchtitan", pp=4, vpp=2, schedule="interleaved", split="custom", custom_split=layers, global_batch=64)
    assert "CHUNK_LAYERS = (3, 5, 5, 5, 5, 5, 4, 0)" in emit(split).files[FILE]
    found = read_back(emit(split), tmp_path)
    assert (found.knobs["split"], found.custom_split) == ("custom", layers)


def test_options_say_the_plan():
    plan = {"tp": 4, "pp": 2, "dp": 4, "cp": 2, "dp_replicate": 2, "sequence_parallel": 1, "overlap_tp": 1}
    written = emit(job("torchtitan", global_batch=64, micro_batch=2, recompute="op_sac", **plan))
    words = command(written)
    for option in (
        "--parallelism.data_parallel_replicate_degree 2",
        "--parallelism.data_parallel_shard_degree 2",
        "--parallelism.context_parallel_degree 2",
        "--parallelism.pipeline_parallel_microbatch_size 2",
        "--training.local_batch_size 16",  # 64 sequences over dp 4: one filling of the pipeline
        "--training.global_batch_size 64",
        "--compile.enable-async-tensor-parallel",
        "--parallelism.fsdp_reshard_after_forward default",
    ):
        assert option in words
    assert written.options[-1] == ("activation-checkpoint:selective",)


@pytest.mark.parametrize(
    ("model", "knobs", "reason"),
    [
        ("llama3-8b", {"tp": 16, "sequence_parallel": 1}, "tp to divide the KV heads"),
        ("qwen3-30b-a3b", {"tp": 2, "sequence_parallel": 1}, "experts are split over tp without ep"),
        ("qwen3-30b-a3b", {"tp": 2, "dp": 2, "ep": 2, "etp": 2, "sequence_parallel": 1}, "not split under ep > 1"),
        ("llama3-8b", {"pp": 2, "zero_stage": 2}, "say zero_stage 3"),
        ("llama3-8b", {"dp": 2, "zero_stage": 1}, "no such ZeRO stage"),
        ("llama3-8b", {"dp": 2, "cp": 4, "dp_replicate": 4}, "replicas over dp alone"),
        ("llama3-8b", {"dp": 2, "overlap_grad": 0, "overlap_param": 0}, "always overlaps the gradient"),
        ("llama3-8b", {"recompute": "full", "recompute_layers": 4}, "all layers or none"),
        ("llama3-8b", {"pp": 8, "dp": 32}, "a micro-batch per stage"),
        ("llama3-8b", {"pp": 4, "schedule": "dualpipe"}, "no such schedule"),
        ("deepseek-v3", {"pp": 2}, "multi-token prediction in a pipeline"),
        ("gpt3-175b", {}, "no model with an MLP without a gate"),
    ],
)
def test_what_it_cannot_run_is_refused_with_the_reason(model, knobs, reason):
    assert any(f"torchtitan{rest}" for rest in refusals(job("torchtitan", model, **knobs)) if reason in rest), reason


def test_a_model_that_no_family_has_is_not_written():
    with pytest.raises(DlcalcError, match="torchtitan has no model with an MLP without a gate"):
        emit(job("torchtitan", "gpt3-175b"))


@pytest.mark.parametrize(
    ("change", "family"),
    [
        ({}, "llama3"),
        ({"qk_norm": True}, "qwen3"),
        ({"qkv_bias": True}, "llama3"),
        ({"mlp_bias": True}, None),
        ({"sliding_window": 512}, None),
        ({"alibi": True}, None),
        ({"norms_per_layer": 4}, None),
    ],
)
def test_the_family_is_the_one_that_has_the_layers(change, family):
    model = load_model("llama3-8b").model_copy(update=change)
    assert family_of(model) == family
    assert bool(misfit_of(model)) == (family is None)


def test_hostile_names_stay_text(tmp_path):
    name = '$(rm -rf ~)\'"""\n\\N{DASH}'
    one = job("torchtitan", ModelSpec(**{**load_model("llama3-8b").model_dump(), "name": name}))
    assert read_back(emit(replace(one, name=name)), tmp_path).model.name == name


OLD_TOML = """\
[model]
name = "llama3"
flavor = "8B"
converters = ["float8"]

[training]
local_batch_size = 2
seq_len = 8192
steps = 1000

[parallelism]
data_parallel_replicate_degree = 2
data_parallel_shard_degree = 4
tensor_parallel_degree = 2
enable_async_tensor_parallel = true
pipeline_parallel_degree = 1

[activation_checkpoint]
mode = "selective"
selective_ac_option = "op"
"""


def test_the_toml_of_older_releases_is_read(tmp_path):
    found = read(OLD_TOML, tmp_path / "job.toml")
    assert found.model.name == "llama3-8b"
    assert (found.precision, found.global_batch, found.devices) == ("fp8", 16, 16)
    wanted = {"tp": 2, "dp": 8, "dp_replicate": 2, "overlap_tp": True, "sequence_parallel": True, "recompute": "op_sac"}
    assert wanted.items() <= found.knobs.items()
    assert found.ignored == ("training.steps",)


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (
            "tensor_parallel_degree = 2",
            "tensor_paralel_degree = 2",
            r"14: parallelism.tensor_paralel_degree: no such option; did",
        ),
        ("local_batch_size = 2", "local_batch_size = 0", "7: training.local_batch_size: must be a whole number from 1"),
        (
            "local_batch_size = 2",
            "local_batch_size = nan",
            "7: training.local_batch_size: must be a whole number from 1",
        ),
        ("seq_len = 8192", "seq_len = " + "9" * 200, "8: training.seq_len: must be a whole number from 1"),
        ("seq_len = 8192", "seq_len = " + "9" * 9000, "neither a command line, JSON nor TOML"),
        (
            "seq_len = 8192",
            "seq_len = 1\nseq_len = 2",
            "neither a command line, JSON nor TOML: cannot overwrite a value",
        ),
        ("seq_len = 8192", "seq_len = " + "[" * 5000, "neither a command line, JSON nor TOML"),
        ('mode = "selective"', 'mode = "memory"', "no such mode: 'memory'; known: none, selective, full"),
        ('option = "op"', 'option = "2"', "'2' is not modelled; op is"),
    ],
)
def test_mistakes_are_told_with_file_line_and_field(tmp_path, was, now, message):
    with pytest.raises(DlcalcError, match=f"job.toml:.*{message}"):
        read(OLD_TOML.replace(was, now), tmp_path / "job.toml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        '{"training": 7, "model_spec": []}',
        '{"model_spec": {"model": {"layers": [[[]]], "dim": "x"}}}',
        '{"model_spec": {"model": {"layers": [{"attention": {"n_heads": 0}}], "dim": 1e400}}}',
        '{"a": ' * 2000,
        "{" + '"training": {"seq_len": NaN}' + "}",
        '{"training": {}, "training": {}}',
        "--module 'x",
        "--module ../../etc/passwd --config a",
        "--training.seq_len",
        "--training.seq_len 5 --training.seq_len 6",
        "--parallelism.pipeline_parallel_schedule Sideways",
        "--parallelism.pipeline_parallel_degree 2 --module llama3 --config llama3_8b"
        " --parallelism.pipeline_parallel_layers_per_stage 1",
        "\x00",
    ],
)
def test_hostile_input_is_answered_or_refused(tmp_path, text):
    with contextlib.suppress(DlcalcError):
        assert read(text, tmp_path / "job").source == "torchtitan"


@pytest.mark.parametrize(
    "module",
    [
        "import os; os.system('false')",
        "MODEL = __import__('os')",
        "MODEL = " + "(" * 500,
        "MODEL = {'n_layers': 1}",
        "\0",
    ],
)
def test_a_module_beside_the_file_is_read_and_never_run(tmp_path, module):
    (tmp_path / "mine.py").write_text(module)
    with contextlib.suppress(DlcalcError):
        assert read("--module mine --config emitted", tmp_path / "args").model is None


def test_a_log_is_read_as_the_dump_in_it(tmp_path):
    dump = {
        "training": {"local_batch_size": 2},
        "parallelism": {"data_parallel_shard_degree": 8, "tensor_parallel_degree": "x"},
    }
    written = json.dumps(dump, indent=2)
    log = f"[titan] starting\n[titan] 2026 - INFO - Running with configs: {written}\n[titan] more {{}}\n"
    with pytest.raises(DlcalcError, match=r"log.json:8: parallelism.tensor_parallel_degree: must be a whole number"):
        read(log, tmp_path / "log.json")
    assert read(log.replace('"x"', "4"), tmp_path / "log.json").knobs["tp"] == 4
