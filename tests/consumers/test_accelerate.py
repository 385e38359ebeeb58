"""What is written for Accelerate, given to Accelerate: its file, its launcher's environment, FSDP2 itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="the consumers' environment has accelerate")

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import AutoConfig

from dlcalc.launch.trainers.accelerate import CONFIG_FILE, emit
from dlcalc.launch.trainers.transformers_model import SCRIPT_FILE, model_config
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_details import Rotary, RotaryScaling
from tests.launch_jobs import job, refusals
from tests.launch_spaces import best_jobs

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, transformers and accelerate warn of their own doings

ON_CPU = str(Path(__file__).with_name("hugging_face_on_cpu.py"))
TINY = {"name": "tiny", "n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
TINY |= {"ffn_hidden_size": 128, "vocab_size": 256, "max_seq": 512}
ON_HOST = {"OMP_NUM_THREADS": "1", "TRAIN_STEPS": "2", "ACCELERATE_USE_CPU": "true"}
FREE = {"zero_stages": (3, 2)}


@pytest.mark.parametrize(
    "plan",
    [
        {"dp": 8, "recompute": "full"},
        {"dp": 16, "dp_replicate": 2},
        {"dp": 8, "zero_stage": 2},
        {"dp": 8, "offload_optimizer": 1},
    ],
)
def test_its_launcher_sets_the_environment_that_is_written(plan, tmp_path, monkeypatch):
    one = job("fsdp-accelerate", "qwen3-32b", allow=FREE, **plan)
    assert not refusals(one)
    launched(one, tmp_path, monkeypatch)


def test_the_best_plans_of_shipped_spaces_are_taken(tmp_path, monkeypatch):
    found = list(best_jobs("fsdp-accelerate"))
    assert {one.name for one in found} >= {"llama3_70b_h100", "llama3_8b_fragmented"}
    for one in found:
        launched(one, tmp_path, monkeypatch)


def launched(one, tmp_path, monkeypatch):
    """Accelerate's launcher up to the environment that it would start processes with, which must be ours."""
    written = emit(one)
    file = tmp_path / CONFIG_FILE
    file.write_text(written.files[CONFIG_FILE])
    assert load_config_from_file(str(file)).num_processes == one.devices
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # or it launches for CPUs
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    told = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    told, *_ = _validate_launch_command(told)
    theirs = prepare_multi_gpu_env(told)
    assert written.environment.items() <= {name: str(value) for name, value in theirs.items()}.items()
    assert (told.num_machines, told.num_processes) == (one.n_hosts, one.devices)


def test_a_misspelled_key_of_the_file_is_refused(tmp_path):
    file = tmp_path / CONFIG_FILE
    text = emit(job("fsdp-accelerate", dp=8)).files[CONFIG_FILE]
    file.write_text(text.replace("num_processes", "num_proceses"))
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(file))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-7b", "qwen3-32b"])
def test_a_published_model_has_the_same_positions_norms_and_activation(name):
    """What transformers makes of the published config.json, and of what is written for the model read from it."""
    file = Path(__file__).parents[1] / "data" / "hf_configs" / f"{name}.json"
    published = json.loads(file.read_text())
    theirs = AutoConfig.for_model(**published)
    ours = AutoConfig.for_model(**model_config(load_huggingface_config(file)))
    fields = {"rope_parameters", "hidden_act", "head_dim", "intermediate_size", "attention_bias"}
    fields |= {"rms_norm_eps"} if "rms_norm_eps" in published else set()
    assert {one: getattr(ours, one) for one in fields} == {one: getattr(theirs, one) for one in fields}
    assert ours.rope_parameters["rope_theta"] in (5e5, 1e4, 1e6)


def test_it_trains(tmp_path):
    rotary = Rotary(base=1e4, scaling=RotaryScaling(kind="yarn", factor=4.0, original_max_seq=128))
    model = ModelSpec(**(TINY | {"tied_embeddings": True, "qk_norm": True, "rotary": rotary, "norm_epsilon": 1e-6}))
    one = job("fsdp-accelerate", model, seq_len=128, global_batch=4, dp=2, recompute="full")
    assert not refusals(one)
    written = emit(one)
    for name, text in written.files.items():
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ON_CPU, "accelerate",
         str(tmp_path / SCRIPT_FILE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **written.environment, **ON_HOST},
        timeout=240,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert "step 2: loss 5." in ran.stdout  # log 256 = 5.5: random tokens teach nothing
