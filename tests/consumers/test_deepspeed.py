"""What is written for DeepSpeed, given to DeepSpeed: its configuration's checks, its engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="the consumers' environment has deepspeed")
os.environ["DS_ACCELERATOR"] = "cpu"

from deepspeed.runtime.config import DeepSpeedConfig

from dlcalc.calculators.params import total_params
from dlcalc.costmodel.targets.transformers_models import misfit_of, model_type_of
from dlcalc.launch.trainers.deepspeed import config, emit
from dlcalc.launch.trainers.transformers_model import LAYER_CLASSES, SCRIPT_FILE, model_config
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from tests.launch_jobs import job, refusals
from tests.launch_spaces import best_jobs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, transformers and deepspeed warn of their own doings

ON_CPU = str(Path(__file__).with_name("hugging_face_on_cpu.py"))
NAMES = sorted(file.stem for file in (Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
MODELS = [name for name in NAMES if not misfit_of(load_model(name))]
TINY = {"name": "tiny", "n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
TINY |= {"ffn_hidden_size": 128, "vocab_size": 256, "max_seq": 512}
GPT = {"n_kv_heads": 4, "learned_positions": True, "linear_bias": True, "norm": "layernorm", "gated_mlp": False}
FREE = {"zero_stages": (1, 0, 2, 3)}


class Ranks:
    """What DeepSpeed asks of a model-parallel unit."""

    def __init__(self, dp):
        self.dp = dp

    def get_data_parallel_world_size(self):
        return self.dp


def checked(settings, dp, monkeypatch):
    """DeepSpeed's own reading of the JSON, as a rank of ``dp`` would do it."""
    import deepspeed.runtime.config as module

    monkeypatch.setattr(module.dist, "get_rank", lambda *_, **__: 0)
    return DeepSpeedConfig(json.loads(json.dumps(settings)), mpu=Ranks(dp))


@pytest.mark.parametrize(
    "plan",
    [
        {"zero_stage": 0, "overlap_grad": 0, "overlap_param": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "recompute": "full"},
        {"zero_stage": 3, "offload_optimizer": 1},
        {"zero_stage": 3, "overlap_param": 0},
        {"zero_stage": 1, "tp": 2},
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_its_configuration_is_the_plan(plan, precision, monkeypatch):
    one = job("deepspeed", dp=8, micro_batch=2, precision=precision, allow=FREE, **plan)
    assert not refusals(one)
    found = checked(config(one), one.plan.dp, monkeypatch)
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu) == (128, 2)
    assert found.gradient_accumulation_steps == one.micro_batches
    assert found.zero_config.stage == one.plan.zero_stage
    assert found.tensor_parallel_config.autotp_size in {0, one.plan.tp} - ({0} if one.plan.tp > 1 else set())
    assert (found.bfloat16_config.enabled, found.float16_config.enabled) == (precision == "bf16", precision == "fp16")
    if one.plan.zero_stage:
        assert found.zero_config.overlap_comm == one.plan.overlap_grad
        assert (found.zero_config.prefetch_bucket_size > 0) == (one.plan.zero_stage < 3 or one.plan.overlap_param)
        offloaded = found.zero_config.offload_optimizer
        assert (offloaded is not None and offloaded.device == "cpu") == one.plan.offload_optimizer


def test_the_best_plans_of_shipped_spaces_are_taken(monkeypatch):
    found = list(best_jobs("deepspeed"))
    assert {one.name for one in found} >= {"llama3_70b_h100", "llama3_8b_fragmented"}
    for one in found:
        assert checked(config(one), one.plan.dp, monkeypatch).train_batch_size == one.recipe.global_batch


def test_it_refuses_another_batch(monkeypatch):
    settings = config(job("deepspeed", dp=8, allow=FREE))
    with pytest.raises(AssertionError, match="train_batch_size is not equal"):
        checked(settings, 4, monkeypatch)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_transformers_has_as_many_parameters_as_ours(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = load_model(name)
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config(model)))
    found.tie_weights()
    assert sum(weights.numel() for weights in found.parameters()) == total_params(model)
    assert LAYER_CLASSES[model_type_of(model)] in {type(module).__name__ for module in found.modules()}


@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"attention_bias": True, "qk_norm": True}, GPT])
def test_small_models_of_every_type_have_as_many_parameters(change):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = ModelSpec(**(TINY | change))
    with torch.device("meta"):
        found = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config(model)))
    assert sum(weights.numel() for weights in found.parameters()) == total_params(model)


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        (GPT, {"dp": 2, "zero_stage": 3, "recompute": "full"}),
        ({}, {"tp": 2, "zero_stage": 3}),
    ],
    ids=["sharded", "tensor"],
)
def test_it_trains(change, plan, tmp_path):
    one = job("deepspeed", ModelSpec(**(TINY | change)), seq_len=128, global_batch=4, allow=FREE, **plan)
    assert not refusals(one)
    for name, text in emit(one).files.items():
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ON_CPU, "deepspeed",
         str(tmp_path / SCRIPT_FILE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRAIN_STEPS": "2", "DS_ACCELERATOR": "cpu"},
        timeout=240,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert "step 2: loss 5." in ran.stdout  # log 256 = 5.5: random tokens teach nothing
