"""What is written for torchtitan, given to torchtitan: its parser, its mesh, its models, its training loop."""

import dataclasses
import importlib
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchtitan", reason="the consumers' environment has torchtitan")

import torch
from torchtitan.config import ConfigManager
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import pipeline_parallel as pipelines

from dlcalc.calculators.params import trained_params
from dlcalc.costmodel.targets.torchtitan import misfit_of
from dlcalc.launch.job import Beside, Variable
from dlcalc.launch.readers.torchtitan import read
from dlcalc.launch.trainers.torchtitan import FILE, MODULE, emit
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from tests.launch_jobs import job, refusals
from tests.launch_parts import same_torchtitan_details
from tests.launch_spaces import best_jobs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and torchtitan warn of their own doings

ON_CPU = str(Path(__file__).with_name("torchtitan_on_cpu.py"))
NAMES = sorted(file.stem for file in (Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
MODELS = [name for name in NAMES if not misfit_of(load_model(name))]
TINY = {"name": "tiny", "n_layers": 4, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32}
TINY |= {"ffn_hidden_size": 128, "vocab_size": 256, "max_seq": 512}
EXPERTS = {"n_experts": 4, "top_k": 2, "expert_ffn_hidden_size": 64}


def words_of(written, folder, steps=None):
    """Program and arguments as the bundle's script would start them."""
    told = []
    for word in itertools.chain(written.program, *written.options):
        if isinstance(word, Variable):
            told.append(steps or word.default)
        else:
            told.append(str(folder / word.file) if isinstance(word, Beside) else word)
    return told


def parsed(one, folder):
    """torchtitan's own configuration of the job."""
    written = emit(one)
    (folder / FILE).write_text(written.files[FILE])
    sys.modules.pop(MODULE, None)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return ConfigManager().parse_args(words_of(written, folder)[1:])
    finally:
        sys.path.remove(str(folder))


def built(config):
    """The model, without memory, as the trainer builds it."""
    config.model_spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = config.model_spec.model.build()
    model.verify_module_protocol()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_its_model_has_as_many_parameters_as_ours(name, tmp_path):
    model = load_model(name)
    plan = {"tp": 2, "dp": 8, "ep": 4 if model.is_moe else 1, "sequence_parallel": 1, "recompute": "op_sac"}
    found = built(parsed(job("torchtitan", model, seq_len=4096, **plan), tmp_path))
    assert sum(weights.numel() for weights in found.parameters()) == trained_params(model)


def test_its_own_models_of_the_same_name_have_as_many(tmp_path):
    """What the reader takes ``--module llama3 --config llama3_8b`` for."""
    for module, config in (("llama3", "llama3_8b"), ("qwen3", "qwen3_32b"), ("gpt_oss", "gpt_oss_20b")):
        theirs = built(ConfigManager().parse_args(["--module", module, "--config", config]))
        ours = read(f"--module {module} --config {config}", tmp_path / "args").model
        assert sum(weights.numel() for weights in theirs.parameters()) == trained_params(ours)


OWN = {
    "llama3-8b": ("llama3", "llama3_8b"),
    "qwen3-32b": ("qwen3", "qwen3_32b"),
    "deepseek-v3": ("deepseek_v3", "deepseek_v3_671b"),
    "gpt-oss-20b": ("gpt_oss", "gpt_oss_20b"),
}


@pytest.mark.parametrize("name", OWN)
def test_positions_routing_and_activation_are_those_of_its_own_model(name, tmp_path):
    module, config = OWN[name]
    theirs = ConfigManager().parse_args(["--module", module, "--config", config]).model_spec.model.layers[-1]
    ours = parsed(job("torchtitan", name, dp=8), tmp_path).model_spec.model.layers[-1]
    parts = [(ours.attention.rope, theirs.attention.rope)]
    if ours.moe:
        parts.append((ours.moe.router, theirs.moe.router))
        assert ours.moe.load_balance_coeff == theirs.moe.load_balance_coeff
    for one, other in parts:
        for part in dataclasses.fields(one):
            if part.name not in ("gate", "max_seq_len"):  # weights, and sequences that it shortens
                assert getattr(one, part.name) == getattr(other, part.name), part.name
    assert getattr(ours.attention, "mscale", 1.0) == getattr(theirs.attention, "mscale", 1.0)
    if name.startswith("gpt-oss"):
        experts = (layer.moe.routed_experts.inner_experts.swiglu_limit for layer in (ours, theirs))
        assert next(experts) == next(experts) == 7.0


FREE = {"zero_stages": (3, 2, 0), "schedules": ("1f1b", "interleaved", "zb-v", "gpipe")}
UNCOMPILED = dict.fromkeys(("fused_norm", "fused_activation", "fused_residual", "fused_rope"), False)
PLANS = [
    {"dp": 8, "recompute": "full"},
    {"dp": 8, "zero_stage": 2},
    {"dp": 8, "zero_stage": 0, "overlap_param": 0},
    {"dp": 8, "dp_replicate": 2, "offload_optimizer": 1},
    {"tp": 4, "dp": 2, "cp": 2, "sequence_parallel": 1, "overlap_tp": 1, "recompute": "op_sac"},
    {"tp": 2, "pp": 4, "dp": 2, "micro_batch": 2},
    {"pp": 4, "vpp": 4, "schedule": "interleaved", "dp": 2},
    {"pp": 4, "vpp": 2, "schedule": "zb-v", "dp": 2, "split": "embedding_and_loss"},
    {"pp": 2, "schedule": "gpipe", "dp": 2, "cp": 4},
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(f"{knob}{value}" for knob, value in plan.items()))
def test_its_mesh_and_stages_are_the_plan(plan, tmp_path):
    one = job("torchtitan", **plan, allow=FREE | (UNCOMPILED if plan.get("schedule") == "zb-v" else {}))
    assert not refusals(one)
    config = parsed(one, tmp_path)
    dims = ParallelDims.from_config(config.parallelism, world_size=one.devices)
    assert (dims.tp, dims.cp, dims.pp, dims.ep) == (one.plan.tp, one.plan.cp, one.plan.pp, one.plan.ep)
    assert dims.dp_replicate * dims.dp_shard == one.plan.dp
    accumulated = config.training.global_batch_size // (config.training.local_batch_size * one.plan.dp)
    piece = config.training.local_batch_size
    if one.plan.pp > 1:
        piece = config.parallelism.pipeline_parallel_microbatch_size
    assert piece == one.plan.micro_batch
    assert accumulated * config.training.local_batch_size // piece == one.micro_batches
    if one.plan.pp > 1:
        parts = config.parallelism.module_fqns_per_model_part
        assert tuple(sum(name.startswith("layers") for name in part) for part in parts) == one.chunk_layers
        placed = [
            pipelines._get_pp_rank_to_stage_indices_mapping(
                rank, one.plan.pp, config.parallelism.pipeline_parallel_schedule, len(parts)
            )
            for rank in range(one.plan.pp)
        ]
        assert sorted(itertools.chain(*placed)) == list(range(len(parts)))
        assert {len(stages) for stages in placed} == {one.plan.vpp}


def test_what_is_refused_is_refused_by_it_too(tmp_path):
    """Rules of ours that its configuration itself enforces; the others stop a job later."""
    for model, knobs, error in (
        ("llama3-8b", {"tp": 16, "sequence_parallel": 1}, ValueError),  # 8 KV heads
        ("deepseek-v3", {"pp": 2}, NotImplementedError),  # multi-token prediction
        ("deepseek-v3", {"cp": 2}, NotImplementedError),
    ):
        one = job("torchtitan", model, **knobs)
        assert any(reason.startswith("torchtitan") for reason in refusals(one))
        with pytest.raises(error):
            built(parsed(one, tmp_path))
    tied = load_model("llama3-8b").model_copy(update={"tied_embeddings": True})
    with pytest.raises(NotImplementedError, match="tying"):
        built(parsed(job("torchtitan", tied, pp=2), tmp_path))


def test_the_best_plans_of_shipped_spaces_are_taken(tmp_path):
    found = list(best_jobs("torchtitan"))
    assert {one.name for one in found} >= {"llama3_70b_h100", "llama3_8b_fragmented", "qwen3_235b_gb200"}
    for one in found:
        if one.recipe.precision != "bf16":  # converters ask the device; test_linear_layers_are_converted
            one = replace(one, recipe=one.recipe.model_copy(update={"precision": "bf16"}))  # noqa: PLW2901
        config = parsed(one, tmp_path)
        ParallelDims.from_config(config.parallelism, world_size=one.devices)
        assert sum(weights.numel() for weights in built(config).parameters()) == trained_params(one.model)


def test_random_plans_are_refused_by_us_or_taken_by_it(tmp_path):
    """Every plan that we let pass is taken; a sample, as each takes a second."""
    random = np.random.default_rng(7)
    taken = 0
    while taken < 8:
        tp, cp, pp, dp, ep = (int(one) for one in random.choice([1, 2, 4], 5))
        plan = {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "ep": ep, "sequence_parallel": float(tp > 1)}
        one = job("torchtitan", str(random.choice(["llama3-8b", "qwen3-30b-a3b"])), **plan, etp=tp if ep == 1 else 1)
        if refusals(one):
            continue
        config = parsed(one, tmp_path)
        ParallelDims.from_config(config.parallelism, world_size=one.devices)
        built(config)
        taken += 1


def test_a_dump_of_its_configuration_is_read_as_the_job(tmp_path):
    import json

    for name in ("deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b", "llama3-8b"):
        plan = (
            {"tp": 2, "dp": 8, "ep": 4, "sequence_parallel": 1, "recompute": "op_sac"}
            if name != "llama3-8b"
            else {"pp": 4, "dp": 2, "vpp": 2, "schedule": "interleaved", "recompute": "full"}
        )
        one = job("torchtitan", name, **plan)
        found = read(json.dumps(parsed(one, tmp_path).to_dict(), indent=2), tmp_path / "job.json")
        assert found.knobs == one.plan.as_dict()
        assert trained_params(found.model) == trained_params(one.model)
        same_torchtitan_details(found.model, one.model)
        assert (found.global_batch, found.devices, found.seq_len) == (128, one.devices, 8192)


@pytest.mark.parametrize("precision", ["fp8", "mxfp8"])
def test_linear_layers_are_converted(precision, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    for module in ("float8", "mx"):  # the converters ask the device first
        converters = importlib.import_module(f"torchtitan.components.quantization.{module}")
        monkeypatch.setattr(converters, "has_cuda_capability", lambda *_: True)
    hardware = "h100" if precision == "fp8" else "b200"
    model = built(parsed(job("torchtitan", hardware=hardware, precision=precision), tmp_path))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    kind = {"fp8": "Float8Linear", "mxfp8": "MXFP8Linear"}[precision]
    assert kinds["layers.0.attention.qkv_linear.wqkv"] == kinds["layers.31.feed_forward.w2"] == kind
    assert kinds["lm_head"] == "Linear"


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        ({"qk_norm": True}, {"tp": 2, "sequence_parallel": 1, "recompute": "op_sac"}),
        (EXPERTS, {"dp": 2, "ep": 2, "recompute": "full"}),
    ],
    ids=["tensor", "experts"],
)
def test_it_trains(model, plan, tmp_path):
    one = job("torchtitan", ModelSpec(**TINY, **model), seq_len=256, global_batch=4, **plan)
    written = emit(one)
    (tmp_path / FILE).write_text(written.files[FILE])
    words = [word for word in words_of(written, tmp_path, steps="2") if word != "--compile.enable"]  # minutes on a CPU
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ON_CPU, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
        check=False,
    )
    log = ran.stdout + ran.stderr
    assert ran.returncode == 0, log[-3000:]
    log = re.sub("\x1b\\[\\d*m", "", log)  # colours
    assert "step:  2" in log
    assert f"{trained_params(one.model):,} total parameters" in log
