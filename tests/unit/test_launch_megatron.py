"""Jobs as Megatron's options and fields, and back: laws over drawn models and plans, and every form of a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dlcalc.errors import SpecError
from dlcalc.launch.job import PlanValues
from dlcalc.launch.megatron.options import BY_FLAG, BY_NAME, OPTIONS
from dlcalc.launch.megatron.patterns import PatternError, chunks_of, kinds_of, layout_of, pattern_of
from dlcalc.launch.readers import megatron_bridge as bridge_reader
from dlcalc.launch.readers import megatron_lm as reader
from dlcalc.launch.trainers import megatron_bridge, megatron_lm
from dlcalc.specs.model_details import Rotary, RotaryScaling, Router
from dlcalc.specs.model_registry import load_model, model_names
from tests.megatron_jobs import command_line, drawn_jobs, job_from, reasons_against, recipe_of, same_network, same_plan

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
FILE = Path("args.sh")
LONG = RotaryScaling(kind="longrope", factor=8.0)
MODEL_LINE = "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --vocab-size 32000"
LINE = (
    f"{MODEL_LINE} --max-position-embeddings 4096 --seq-length 4096 --micro-batch-size 1 --global-batch-size 64 --bf16"
)


# ---- laws


@PATIENT
@given(drawn=drawn_jobs("megatron-lm"))
def test_what_is_written_for_megatron_lm_is_read_back(drawn):
    job, against = drawn
    assume(not against)
    found = reader.read(command_line(megatron_lm.emit(job)), FILE)
    same_plan(job, found)
    same_network(found.model, job.model)
    changed = {"grad_reduce_bytes", "attention", "dropout", *(() if in_pieces(job) else ("fused_rope",))}
    assert not changed & found.profile.keys() or job.recipe.framework.name != "megatron"


def in_pieces(job):
    """Rotary positions without a fused kernel."""
    return job.model.rotary.scaling is not None and job.model.rotary.scaling.kind == "yarn" and not job.model.is_mla


@PATIENT
@given(drawn=drawn_jobs("megatron-bridge"))
def test_what_is_written_for_megatron_bridge_is_read_back(drawn):
    job, against = drawn
    assume(not against)
    text = megatron_bridge.emit(job).files[megatron_bridge.SETTINGS_FILE]
    found = bridge_reader.read(text, Path("run.yaml"))
    same_plan(job, found)
    same_network(found.model, job.model, positions=False)  # it has no more positions than tokens of a sequence


@given(kinds=st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_pattern_stands_for_its_layers(kinds):
    assert kinds_of(pattern_of(kinds)) == tuple(kinds)


@given(chunks=st.lists(st.integers(0, 30), min_size=1, max_size=20), mtp=st.integers(0, 2))
def test_a_layout_stands_for_its_chunks(chunks, mtp):
    written = chunks_of(layout_of(chunks, mtp_layers=mtp))
    assert [chunk.count("t") for chunk in written] == chunks
    assert written[0].startswith("E")
    assert written[-1].endswith("m" * mtp + "L")


# ---- short forms


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("([0]*3+[1]*5)", [0, 0, 0, 1, 1, 1, 1, 1]),
        ("([1]*3+[0]*2)*2", [1, 1, 1, 0, 0] * 2),
        ("[0,1]*2", [0, 1, 0, 1]),
        ("2*[1]", [1, 1]),
        ("([0]+[1]*2)", [0, 1, 1]),
    ],
)
def test_patterns_are_read_without_being_evaluated(text, kinds):
    assert kinds_of(text) == tuple(bool(kind) for kind in kinds)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "[0]*", "([0]", "3*4", "[2]", "[0]*9999999*9999999", "[0][1]", "", "[1"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(PatternError):
        kinds_of(text)


@pytest.mark.parametrize("text", ["Et*3x|L", "(t|)*99999999999", "E|tL;"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(PatternError):
        chunks_of(text)


def test_layouts_of_megatrons_documentation():
    """The layout of DeepSeek-V3 over 16 x 2 chunks; from Megatron-LM's documentation of flexible layouts."""
    chunks = chunks_of("Et*3|(tt|)*29,m|L")
    assert len(chunks) == 32
    assert chunks[0] == "Ettt"
    assert chunks[1:30] == ["tt"] * 29
    assert chunks[30:] == ["m", "L"]


def test_every_option_has_one_flag_and_one_name():
    assert len(BY_NAME) == len(BY_FLAG) == len(OPTIONS)


# ---- what a file may look like


def knobs(text, file=FILE):
    return dict(reader.read(text, file).knobs)


def test_a_line_takes_the_trainers_defaults():
    found = reader.read(f"pretrain_gpt.py {LINE} --tensor-model-parallel-size 4 --num-experts 8", FILE)
    assert found.knobs["etp"] == 4  # that of the attention, unless said
    assert found.knobs["sequence_parallel"] is False
    assert found.knobs["zero_stage"] == 0
    assert found.knobs["schedule"] == "1f1b"
    assert (found.model.ffn_hidden_size, found.model.expert_ffn_hidden_size) == (4 * 4096, 4 * 4096)
    assert found.model.linear_bias is False  # all layers are mixtures of experts
    assert found.model.attention_bias
    assert found.model.learned_positions
    assert found.profile["dropout"] is True  # 0.1, by default


def test_a_script_is_read_with_its_arrays_comments_and_plain_variables():
    script = f"""#!/bin/bash
# --tensor-model-parallel-size 99 is only a comment
export CUDA_DEVICE_MAX_CONNECTIONS=1
TP=4
SEQ_LENGTH=8192   # tokens
MODEL_ARGS=(
    {MODEL_LINE} --micro-batch-size 1 --global-batch-size 64 --bf16
    --seq-length "$SEQ_LENGTH" --max-position-embeddings ${{SEQ_LENGTH}}
    --sequence-parallel
)
PARALLEL_ARGS="
    --tensor-model-parallel-size $TP
"
torchrun --nproc_per_node=8 --nnodes 4 --master_addr $MASTER_ADDR pretrain_gpt.py \\
    ${{MODEL_ARGS[@]}} \\
    --tensor-model-parallel-size ${{TP}} \\
    --pipeline-model-parallel-size ${{PP:-2}} \\
    --data-path $DATA --save '/a b/c' 2>&1 | tee log.txt
"""
    found = reader.read(script, FILE)
    assert found.knobs["tp"] == 4
    assert found.knobs["pp"] == 2
    assert found.knobs["sequence_parallel"] is True
    assert found.seq_len == 8192
    assert found.devices == 32
    assert "--data-path" in found.ignored
    assert found.ignored.count("--save") == 1


def test_arguments_of_megatrons_functional_tests_are_read():
    text = """ENV_VARS:
  CUDA_DEVICE_MAX_CONNECTIONS: 1
MODEL_ARGS:
  --num-layers: 12
  --hidden-size: 512
  --num-attention-heads: 8
  --log-params-norm: true
  --bf16: true
  --recompute-activations: false
  --micro-batch-size: 4
  --global-batch-size: 32
  --seq-length: 1024
  --max-position-embeddings: 1024
  --tensor-model-parallel-size: 2
  --pipeline-model-parallel-size: 2
  --pipeline-model-parallel-layout: Et*4\\\\|(tt\\\\|)*3tL
  --recompute-granularity: selective
  --recompute-modules: "[layernorm moe_act]"
  --use-distributed-optimizer: true
  --vocab-size: 50304
  --disable-bias-linear: true
TEST_TYPE: regular
"""
    with pytest.raises(SpecError, match="5 chunks are no multiple of the 2 stages"):
        reader.read(text, Path("model_config.yaml"))
    text = text.replace("Et*4\\\\|(tt\\\\|)*3tL", "Et*3\\\\|(ttt\\\\|)*2tttL")
    found = reader.read(text, Path("model_config.yaml"))
    assert (found.knobs["vpp"], found.knobs["split"]) == (2, "even")
    assert found.knobs["recompute"] == "norm_act"
    assert found.knobs["zero_stage"] == 1
    assert "--log-params-norm" in found.ignored


def test_plain_yaml_takes_flags_and_the_names_megatron_keeps():
    text = "\n".join(
        [
            *(
                f"{name}: {value}"
                for name, value in {"num_layers": 8, "hidden-size": 512, "--num-attention-heads": 8}.items()
            ),
            "vocab_size: 1000\nseq_length: 128\nmicro_batch_size: 1\nbf16: true",
            "add_bias_linear: false\nuntie_embeddings_and_output_weights: true\nmoe_layer_freq: 1\nfp8_format: hybrid",
        ]
    )
    found = reader.read(text, Path("run.yaml"))
    assert (found.model.linear_bias, found.model.tied_embeddings, found.precision) == (False, False, "fp8")
    assert found.global_batch is None
    assert any("global batch is not said" in note for note in found.notes)


PP = "--pipeline-model-parallel-size"


@pytest.mark.parametrize(
    ("extra", "split", "chunks"),
    [
        ("--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4", "even", None),
        ("--pipeline-model-parallel-size 4 --pipeline-model-parallel-layout Et*8|t*8|t*8|t*8L", "even", None),
        ("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 5", "custom", (5, 9, 9, 9)),
        (
            f"{PP} 3 --decoder-first-pipeline-num-layers 10 --decoder-last-pipeline-num-layers 8",
            "custom",
            (10, 14, 8),
        ),
        (f"{PP} 2 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
         "embedding_and_loss", None),
        ("--pipeline-model-parallel-size 3 --account-for-loss-in-pipeline-split", "loss", None),
    ],
)  # fmt: skip
def test_every_way_to_deal_out_layers_is_understood(extra, split, chunks):
    found = reader.read(f"{LINE} {extra}", FILE)
    assert (found.knobs["split"], found.custom_split) == (split, chunks)


@pytest.mark.parametrize(
    ("extra", "knob", "value"),
    [
        ("--recompute-activations", "recompute", "selective"),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1", "recompute_layers", -1),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 3", "recompute_layers", 3),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 32", "recompute_layers", -1),
        ("--use-distributed-optimizer", "zero_stage", 1),
        ("--use-megatron-fsdp", "zero_stage", 3),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", "zero_stage", 2),
        ("--use-torch-fsdp2", "zero_stage", 3),
        ("--use-torch-fsdp2 --torch-fsdp2-no-reshard-after-forward", "zero_stage", 2),
        ("--use-distributed-optimizer --num-distributed-optimizer-instances 2", "dp_replicate", 2),
        ("--sequence-parallel", "sequence_parallel", False),  # off without tensor parallelism, as in Megatron
        ("--cpu-offloading-num-layers=4", "offload_layers", 4),
    ],
)
def test_options_mean_knobs(extra, knob, value):
    assert knobs(f"{LINE} {extra}")[knob] == value


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ("--tensor-model-parallel 2", "no such option; did you mean --tensor-model-parallel-size?"),
        ("--sequence-paralel", "no such option; did you mean --sequence-parallel?"),
        ("--tensor-model-parallel-size two", "must be a whole number, not 'two'"),
        ("--tensor-model-parallel-size", "needs a value"),
        ("--tensor-model-parallel-size 0", "must be at least 1, not 0"),
        ("--tensor-model-parallel-size $TP", "its value is the variable $TP, which this file does not set"),
        ("--tensor-model-parallel-size $(nproc)", "its value is what a command prints ($(nproc))"),
        ("--swiglu yes", "takes no value, but is followed by 'yes'"),
        ("--fp8-format hybird", "no such value as 'hybird'; did you mean hybrid?"),
        ("--fp16", "contradicts --bf16"),
        ("--fp8-format hybrid --fp4-format e2m1", "contradicts --fp8-format"),
        ("--swiglu --squared-relu", "contradicts --swiglu"),
        ("--multi-latent-attention --group-query-attention", "contradicts --multi-latent-attention"),
        ("--recompute-granularity full", "full needs --recompute-method"),
        ("--recompute-granularity selective --recompute-method uniform", "belongs to full recomputation"),
        ("--overlap-param-gather --overlap-grad-reduce", "needs --use-distributed-optimizer or"),
        ("--overlap-param-gather --use-distributed-optimizer", "needs --overlap-grad-reduce"),
        ("--tp-comm-overlap", "needs --sequence-parallel"),
        ("--num-layers-per-virtual-pipeline-stage 3", "3 does not divide the 32 layers of a stage"),
        ("--pipeline-model-parallel-size 3", "32 layers do not divide evenly over 3 stages"),
        ("--pipeline-model-parallel-layout Et*30L", "has 30 layers (t), where there must be 32"),
        ("--num-experts 8 --moe-layer-freq ([0]*3+[1]*5)", "is a list of 8 layers, but there are 32"),
        ("--num-experts 8 --expert-model-parallel-size 3", "3 does not divide the 8 experts"),
        ("--expert-model-parallel-size 2", "needs --num-experts"),
        ("--num-layers 16", "16, but line 1 says 32; an option has one value"),
        ("--hybrid-layer-pattern M*M*", "describes layers that no model of ours has"),
        ("--window-size left", "must be two numbers such as 127,0"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_line_and_option(extra, problem):
    with pytest.raises(SpecError) as caught:
        reader.read(f"{LINE} \\\n  {extra}", FILE)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("args.sh:2: --") or "(t)" in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no option (--name) of Megatron-LM"),
        ("python train.py", "holds no option (--name) of Megatron-LM"),
        ("--bf16 'open", "1: syntax: the quote ' is not closed"),
        (LINE.replace("--num-layers 32", ""), "--num-layers is missing, and Megatron has no default for it"),
        (LINE.replace("--vocab-size 32000", "--tokenizer-type HuggingFaceTokenizer"), "add --vocab-size"),
        (
            LINE.replace("--num-attention-heads 32", "--num-attention-heads 30"),
            "30 heads do not divide the hidden size",
        ),
    ],
)
def test_files_that_describe_no_run_are_refused(text, problem):
    with pytest.raises(SpecError) as caught:
        reader.read(text, FILE)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_that_the_environment_decides_are_not_told():
    line = f"{LINE} --bf16"
    assert reader.read(f"torchrun --nnodes=2 --nproc-per-node=8 pretrain_gpt.py {line}", FILE).devices == 16
    assert reader.read(f'torchrun --nnodes="${{N:-2}}" --nproc-per-node=8 pretrain_gpt.py {line}', FILE).devices is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bf16: 3", "2: bf16: must be true or false, not 3"),
        ("tensor_model_parallel_size: true", "2: tensor_model_parallel_size: must be a value, not true"),
        (
            "--tensor-model-paralel-size: 2",
            "2: --tensor-model-paralel-size: no such option; did you mean --tensor-model-pa",
        ),
        ("bf16: [", "syntax"),
    ],
)
def test_mistakes_in_yaml_are_told_with_line_and_key(line, problem):
    with pytest.raises(SpecError) as caught:
        reader.read(f"num_layers: 2\n{line}\n", Path("run.yaml"))
    assert problem in str(caught.value)


def test_nothing_of_a_script_is_executed(tmp_path):
    trace = tmp_path / "executed"
    script = f"X=$(touch {trace}) Y=`touch {trace}`\n{LINE} --lr $(touch {trace}) --data-path `touch {trace}`\n"
    assert reader.read(script, FILE).seq_len == 4096
    assert not trace.exists()


@given(text=st.text(max_size=300))
def test_any_text_is_read_or_refused_in_one_line(text):
    for read in (reader.read, bridge_reader.read):
        with pytest.raises(SpecError) as caught:
            read(text, FILE)
        assert str(caught.value)


# ---- Megatron-Bridge's file


BRIDGE = """model:
  _target_: megatron.bridge.models.gpt_provider.GPTModelProvider
  num_layers: 32
  hidden_size: 4096
  num_attention_heads: 32
  vocab_size: 32000
  seq_length: 4096
  tensor_model_parallel_size: 2
  expert_model_parallel_size: 4
  num_moe_experts: 8
  activation_func: {_target_: torch.nn.functional.silu, _call_: false}
  gated_linear_unit: true
train: {micro_batch_size: 1, global_batch_size: 64}
mixed_precision: bf16_with_fp8_current_scaling_mixed
ddp: {use_distributed_optimizer: true, overlap_grad_reduce: true}
comm_overlap: {tp_comm_overlap: false}
rng: {seed: 1}
"""


@pytest.mark.parametrize(
    ("word", "scaling", "flag"),
    [("current", "tensor", "tensorwise"), ("delayed", "delayed", "delayed"), ("subchannel", "block", "blockwise")],
)
def test_what_a_scale_of_8_bits_covers_is_read_and_written(word, scaling, flag):
    said = bridge_reader.read(BRIDGE.replace("current", word), Path("run_config.yaml"))
    assert said.scaling == scaling
    recipe = recipe_of("megatron-lm", precision="fp8").model_copy(update={"scaling": scaling})
    assert flags(job_from("megatron-lm", LLAMA, recipe, {"dp": 8}))["--fp8-recipe"] == (flag,)


def test_a_dump_with_a_precision_by_name_takes_the_bridges_defaults():
    found = bridge_reader.read(BRIDGE, Path("run_config.yaml"))
    assert found.precision == "fp8"
    assert found.knobs["etp"] == 1  # with experts spread out, unlike Megatron-LM
    assert found.model.gated_mlp
    assert found.model.tied_embeddings
    assert found.knobs["overlap_param"] is True  # on, where overlap is configured and the optimizer sharded
    assert found.ignored == ("rng",)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("tensor_model_parallel", "tensor_model_paralel", "8: model.tensor_model_paralel_size: no such field; did you"),
        ("parallel_size: 2", "parallel_size: two", "8: model.tensor_model_parallel_size: must be a whole number, not"),
        ("fp8_current_scaling", "fp8_currant_scaling", "did you mean bf16_with_fp8_current_scaling_mixed?"),
        ("train:", "trainn:", "13: trainn: no such group; did you mean train?"),
        ("model:", "modle:", "holds no group 'model'"),
        ("  num_layers: 32\n", "", "model.num_layers is missing"),
        ("train: {micro", "train: 3\nother: {micro", "must be a mapping of fields to values"),
        ("gated_linear_unit: true", "sequence_parallel: 2", "must be true or false, not 2"),
    ],
)  # fmt: skip
def test_mistakes_in_a_bridge_file_are_told_with_line_and_field(old, new, problem):
    with pytest.raises(SpecError) as caught:
        bridge_reader.read(BRIDGE.replace(old, new), Path("run_config.yaml"))
    assert problem in str(caught.value)
    assert str(caught.value).startswith("run_config.yaml:")


# ---- what no estimate reads


def test_deepseek_v3_is_routed_and_stretched_as_published():
    """Values of https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json."""
    job = job_from("megatron-lm", load_model("deepseek-v3"), recipe_of("megatron-lm"), {"dp": 8})
    told = flags(job)
    for flag, words in {
        "--moe-router-score-function": ["sigmoid"],
        "--moe-router-enable-expert-bias": [],
        "--moe-router-topk-scaling-factor": ["2.5"],
        "--moe-router-num-groups": ["8"],
        "--moe-router-group-topk": ["4"],
        "--moe-router-load-balancing-type": ["seq_aux_loss"],
        "--rotary-scaling-factor": ["40"],
        "--mscale-all-dim": ["1"],
        "--norm-epsilon": ["1e-06"],
    }.items():
        assert list(told[flag]) == words, flag
    assert not {"--moe-router-pre-softmax", "--yarn-beta-fast"} & told.keys()


def test_gpt_oss_has_its_activation_sinks_windows_and_biases():
    """Values of https://huggingface.co/openai/gpt-oss-120b/blob/main/config.json, and of its code in transformers."""
    told = flags(job_from("megatron-lm", load_model("gpt-oss-120b"), recipe_of("megatron-lm"), {"dp": 8}))
    for flag, words in {
        "--quick-geglu": [],
        "--activation-func-clamp-value": ["7"],
        "--glu-linear-offset": ["1"],
        "--softmax-type": ["learnable"],
        "--window-size": ["127,0"],
        "--position-embedding-type": ["yarn"],
        "--rotary-base": ["150000"],
        "--rotary-scaling-factor": ["32"],
        "--no-yarn-correction-range-round-to-int": [],
        "--no-rope-fusion": [],
    }.items():
        assert list(told[flag]) == words, flag
    assert not {"--disable-bias-linear", "--swiglu"} & told.keys()


@pytest.mark.parametrize(
    ("name", "target", "changes", "note"),
    [
        ("kimi-k2", "megatron-lm", {}, "YaRN's beta_fast is 32, not 1"),
        ("kimi-k2", "megatron-bridge", {}, None),
        ("llama3-8b", "megatron-lm", {"rotary": Rotary(base=5e5, scaling=LONG)}, "has no longrope scaling"),
        ("llama3-8b", "megatron-lm", {"activation": "gelu_tanh"}, "no flag for gelu_tanh"),
        ("llama3-8b", "megatron-bridge", {"activation": "gelu_tanh"}, None),
        ("llama3-8b", "megatron-lm", {"rotary": Rotary()}, "does not say the base of its rotary embedding"),
        ("deepseek-v3", "megatron-lm", {"router": Router(scores="sigmoid", normalizes=False)}, "normalizes sigmoids"),
        ("mixtral-8x7b", "megatron-lm", {"router": Router(bias_update=0.01)}, "for sigmoid scores alone"),
    ],
)  # fmt: skip
def test_what_no_option_says_is_a_note(name, target, changes, note):
    emitter = {"megatron-lm": megatron_lm, "megatron-bridge": megatron_bridge}[target]
    job = job_from(target, load_model(name).model_copy(update=changes), recipe_of(target), {"dp": 8})
    notes = " ".join(emitter.emit(job).notes)
    assert note in notes if note else not any(word in notes for word in ("YaRN", "no flag"))


# ---- what Megatron cannot run


LLAMA = load_model("llama3-8b")
MIXTRAL = load_model("mixtral-8x7b")
OUTSIDE = {
    "megatron-lm has no ALiBi": {"alibi": True},
    "megatron-lm has no norm behind the embedding": {"embedding_norm": True},
    "megatron-lm has no bias on the LM head": {"head_bias": True},
    "megatron-lm has two norms in every layer": {"norms_per_layer": 4},
    "megatron-lm has biases in every LayerNorm and in no RMSNorm": {"norm": "layernorm", "norm_bias": False},
    "megatron-lm has biases on all linear layers, or on none but Q, K and V": {"mlp_bias": True},
    "megatron-lm has no multi-token prediction with learned positions": {"mtp_layers": 1, "learned_positions": True},
}


@pytest.mark.parametrize("reason", OUTSIDE)
def test_networks_that_no_option_describes_are_refused(reason):
    recipe = recipe_of("megatron-lm")
    assert reasons_against(LLAMA, recipe, {"dp": 8}) == []
    assert reasons_against(LLAMA.model_copy(update=OUTSIDE[reason]), recipe, {"dp": 8}) == [reason]


EP = {"dp": 8, "ep": 8, "overlap_ep": 1}


@pytest.mark.parametrize(
    ("model", "knobs", "graphs", "reason"),
    [
        (LLAMA, {"dp": 8, "recompute": "norm_act"}, False, "recomputes activation functions of experts only"),
        (LLAMA, {"dp": 8, "offload_optimizer": 1}, False, "offloads the optimizer only where it is sharded"),
        (LLAMA, {"dp": 4, "pp": 2, "offload_layers": 1}, False, "offloads activations in no pipeline"),
        (LLAMA, {"dp": 8, "offload_layers": 1, "recompute": "selective"}, False, "offloads activations or recomputes"),
        (LLAMA, {"dp": 8, "offload_layers": 32}, False, "offloads fewer layers than there are"),
        (LLAMA, {"dp": 8, "offload_layers": 1}, True, "offloads activations without CUDA graphs only"),
        (MIXTRAL, {"dp": 8, "recompute": "full"}, True, "has no CUDA graphs of experts that are recomputed"),
        (MIXTRAL, {**EP, "pp": 2}, False, "overlaps experts in a pipeline only with vpp > 1"),
        (MIXTRAL, {"dp": 8, "recompute": "moe"}, True, "has no CUDA graphs of experts that are recomputed"),
        (MIXTRAL, {**EP, "recompute": "full"}, False, "overlaps experts that are not recomputed"),
        (MIXTRAL, {**EP, "recompute": "selective+moe"}, False, "overlaps experts that are not recomputed"),
        (MIXTRAL, {**EP, "zero_stage": 3}, True, "overlaps experts of sharded weights without CUDA graphs only"),
        (MIXTRAL.model_copy(update={"mtp_layers": 2}), EP, False, "overlaps experts with one multi-token-prediction"),
        (MIXTRAL.model_copy(update={"n_shared_experts": 1, "shared_ffn_hidden_size": 100}),
         {"tp": 8, "sequence_parallel": 1}, False, "needs tp to divide the width of the shared experts"),
        (load_model("gpt-oss-20b"), {"cp": 16}, False, "has attention with sinks over cp by all-to-all only"),
        (load_model("deepseek-v2"), {"cp": 8, "ep": 8, "cp_exchange": 2}, False, "has latent attention over cp in"),
        (load_model("gpt-oss-20b"), {"tp": 2, "etp": 2, "sequence_parallel": 1}, False, "has no biases of experts"),
    ],
)  # fmt: skip
def test_plans_that_megatron_refuses_are_refused(model, knobs, graphs, reason):
    recipe = recipe_of("megatron-lm", cuda_graphs=graphs)
    assert any(found.startswith(f"megatron-lm {reason}") for found in reasons_against(model, recipe, knobs))


def test_of_the_shipped_models_only_mpt_cannot_be_run():
    """MPT has ALiBi; every other model has a plan."""
    recipe = recipe_of("megatron-lm")
    refused = {
        name
        for name in model_names()
        if any("megatron-lm" in why for why in reasons_against(load_model(name), recipe, {}))
    }
    assert refused == {"mpt-7b", "mpt-30b"}


# ---- single settings


def flags(job) -> dict[str, tuple]:
    return {option[0]: option[1:] for option in megatron_lm.emit(job).options}


def test_uneven_chunks_are_laid_out_one_by_one():
    job = job_from("megatron-lm", LLAMA, recipe_of("megatron-lm"), {"pp": 4, "split": "embedding_and_loss"})
    (layout,) = flags(job)["--pipeline-model-parallel-layout"]
    assert tuple(chunk.count("t") for chunk in chunks_of(layout)) == job.chunk_layers == (8, 8, 9, 7)


def test_the_host_queue_follows_what_is_overlapped():
    """Before Blackwell one queue orders communication first; sharded weights and overlapped experts want many."""
    recipe = recipe_of("megatron-lm")
    queues = [
        megatron_lm.emit(job_from("megatron-lm", model, recipe, knobs, machine=machine)).environment[
            "CUDA_DEVICE_MAX_CONNECTIONS"
        ]
        for model, knobs, machine in (
            (LLAMA, {"tp": 2}, "h100"),
            (LLAMA, {"tp": 2}, "b200"),
            (LLAMA, {"dp": 8, "zero_stage": 1}, "h100"),
            (LLAMA, {"dp": 8, "zero_stage": 3}, "h100"),
            (MIXTRAL, EP, "h100"),
        )
    ]
    assert queues == ["1", "32", "32", "32", "32"]


def test_every_knob_of_a_plan_changes_what_is_written():
    """No knob is lost on the way: each one, changed alone, gives other options."""
    base = {"tp": 2, "pp": 2, "dp": 8, "ep": 4, "zero_stage": 1, "sequence_parallel": 1}
    changed = {
        "cp_exchange": "all_to_all",
        "tp": 4, "cp": 2, "pp": 4, "ep": 8, "etp": 2, "vpp": 2, "micro_batch": 2, "recompute": "selective",
        "zero_stage": 0, "dp_replicate": 2, "sequence_parallel": 0, "overlap_grad": 1, "overlap_param": 1,
        "overlap_tp": 1, "overlap_ep": 1, "offload_optimizer": 1, "offload_layers": 1, "split": "embedding_and_loss",
    }  # fmt: skip
    written = {field.name for field in fields(PlanValues)} - {"dp", "schedule", "recompute_layers"}
    assert written == set(changed)  # dp follows from the devices, the schedule from vpp, the layers need full
    recipe = recipe_of("megatron-lm")
    for knob, value in changed.items():
        start = {**base, "cp": 2} if knob == "cp_exchange" else base
        before, after = (
            megatron_lm.emit(job_from("megatron-lm", MIXTRAL, recipe, one)).options
            for one in (start, {**start, knob: value})
        )
        assert after != before, knob


@pytest.mark.parametrize(
    ("network", "mode"), [("", "mlp"), ("--num-experts 8 ", "moe"), ("--num-experts 8 --moe-layer-freq 2 ", "mlp+moe")]
)
def test_modules_of_layers_that_the_model_lacks_are_passed_over(network, mode):
    """As Megatron does, which asks each layer what it is."""
    asked = "--recompute-granularity selective --recompute-modules mlp moe"
    found = reader.read(f"pretrain_gpt.py {LINE} {network}{asked}", FILE)
    assert (found.knobs["recompute"], [note for note in found.notes if "Recomputation" in note]) == (mode, [])
