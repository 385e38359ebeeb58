"""What is written for Megatron-Bridge, taken by Megatron-Bridge 0.6.2 itself, and its own dump of it read back."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings

from dlcalc.launch.readers.megatron_bridge import read
from dlcalc.launch.trainers.megatron_bridge import PROGRAM, SETTINGS_FILE, emit
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.model_registry import load_model
from tests.megatron_jobs import SPACES, best_jobs, drawn_jobs, job_from, recipe_of, same_network, same_plan

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and what it imports warn of much that is not ours
KINDS = (
    "llama3-8b",
    "gpt3-175b",
    "qwen3-32b",
    "nemotron-4-340b",
    "mixtral-8x7b",
    "gpt-oss-20b",
    "deepseek-v3",
    "kimi-k2",
)
"""A model of every kind; an answer takes a second or two, most of it for the dump."""
HF_CONFIGS = Path(__file__).parent.parent / "data" / "hf_configs"
ASKED = Path(__file__).with_name("bridge_without_device.py")


class Bridge:
    """A process that has Megatron-Bridge loaded."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ASKED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.ask(PROGRAM) == "ready"

    def ask(self, what):
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def verdict(self, job, *, overrides=(), change=None):
        emitted = emit(job)
        tree = yaml.safe_load(emitted.files[SETTINGS_FILE])
        if change:
            group, _, field = change[0].partition(".")
            tree[group][field] = change[1]
        return self.ask(
            {
                "settings": yaml.safe_dump(tree),
                "environment": dict(emitted.environment),
                "devices": job.devices,
                "overrides": ["train.train_iters=20", *overrides],
                "places": [f"{group}.{field}" for group, fields in tree.items() for field in fields],
            }
        )


@pytest.fixture(scope="module")
def bridge():
    for package in ("megatron-bridge", "megatron-core", "hydra-core", "transformers", "triton"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs megatron-bridge 0.6.2 and what it imports; {package} is not installed")
    found = Bridge()
    with found.process:  # closes its pipes, at which it ends, and waits
        yield found


def check(bridge, job) -> None:
    """It is accepted whole, and what Megatron-Bridge keeps of it is the same plan and model."""
    verdict = bridge.verdict(job)
    assert not verdict["problem"]
    assert verdict["lost"] == []
    assert verdict["dp"] == job.plan.dp
    found = read(verdict["dump"], Path("run_config.yaml"))
    same_plan(job, found)
    same_network(found.model, job.model, positions=False)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_is_accepted_and_read_back_from_the_dump(bridge, name):
    model = load_model(name)
    knobs = {"tp": 2, "sequence_parallel": 1, "pp": 2, "dp": 4, "zero_stage": 1, "overlap_grad": 1, "overlap_param": 1}
    split = "even" if model.n_layers % 2 == 0 else "embedding_and_loss"
    check(bridge, job_from("megatron-bridge", model, recipe_of("megatron-bridge"), {**knobs, "split": split}))


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(drawn=drawn_jobs("megatron-bridge"))
def test_every_plan_that_is_not_refused_is_accepted(bridge, drawn):
    job, against = drawn
    assume(not against)
    check(bridge, job)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.stem)
def test_the_best_plans_of_the_shipped_spaces_are_accepted(bridge, space):
    for job in best_jobs(space, "megatron-bridge", most=1):
        check(bridge, job)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("train.global_batch_size", 63), "divisible"),
        (("model.pipeline_model_parallel_size", 3), "divisible"),
        (("model.num_attention_heads", 30), "multiple of tensor_model_parallel_size"),
        (("model.recompute_granularity", "full"), "recompute_method"),
    ],
)
def test_the_consumer_refuses_what_is_wrong(bridge, change, problem):
    job = job_from("megatron-bridge", load_model("llama3-8b"), recipe_of("megatron-bridge"), {"tp": 4, "dp": 2})
    assert problem in bridge.verdict(job, change=change)["problem"]


READERS = {
    "deepseek-v3": ("deepseek.deepseek_v3_bridge", "DeepSeekV3Bridge"),
    "deepseek-v2": ("deepseek.deepseek_v2_bridge", "DeepSeekV2Bridge"),
    "kimi-k2": ("kimi.kimi_bridge", "KimiK2Bridge"),
    "gpt-oss-120b": ("gpt_oss.gpt_oss_bridge", "GPTOSSBridge"),
    "qwen3-32b": ("qwen.qwen3_bridge", "Qwen3Bridge"),
    "qwen3-30b-a3b": ("qwen.qwen3_moe_bridge", "Qwen3MoEBridge"),
    "llama-3.1-70b": ("llama.llama_bridge", "LlamaBridge"),
}
_NETWORK = """num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups layernorm_epsilon rotary_base
rotary_percent position_embedding_type gated_linear_unit activation_func activation_func_clamp_value glu_linear_offset
add_bias_linear add_qkv_bias qk_layernorm share_embeddings_and_output_weights softmax_type window_size num_moe_experts
moe_router_topk moe_ffn_hidden_size moe_router_score_function moe_router_topk_scaling_factor
moe_router_enable_expert_bias moe_shared_expert_intermediate_size moe_router_num_groups moe_router_group_topk
moe_layer_freq q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim rotary_scaling_factor mscale
mscale_all_dim original_max_position_embeddings beta_fast beta_slow yarn_rotary_scaling_factor
yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow yarn_correction_range_round_to_int rope_scaling
rope_scaling_factor mtp_num_layers"""
NETWORK = tuple(_NETWORK.split())
"""Fields that decide which network is trained."""


@pytest.mark.parametrize("name", READERS)
def test_a_published_model_becomes_the_network_that_megatron_bridge_makes_of_it(bridge, name):
    """From the same config.json: our settings, and Megatron-Bridge's own conversion."""
    file = HF_CONFIGS / f"{name}.json"
    model, config = load_huggingface_config(file), json.loads(file.read_text())
    module, reader = READERS[name]
    theirs = bridge.ask(
        {"reader": [f"megatron.bridge.models.{module}", reader], "config": config, "fields": [*NETWORK, "kv_channels"]}
    )
    job = job_from("megatron-bridge", model, recipe_of("megatron-bridge"), {"dp": 8})
    ours = yaml.safe_load(emit(job).files[SETTINGS_FILE])["model"]
    idle = {"num_query_groups"} if model.is_mla else set()
    idle |= set() if model.is_moe else {field for field in NETWORK if field.startswith("moe_")}
    for field in set(NETWORK) - idle:
        if field in ours:
            assert ours[field] == theirs[field], field
        else:  # not said, because the network has no such thing
            assert theirs[field] in (None, False, 0, 1), field
    assert model.is_mla or ours["kv_channels"] == theirs["kv_channels"] or theirs["kv_channels"] is None
    assert {"rotary_base", "layernorm_epsilon", "activation_func"} <= ours.keys()


def test_unknown_fields_are_noticed_and_overrides_are_taken(bridge):
    job = job_from("megatron-bridge", load_model("llama3-8b"), recipe_of("megatron-bridge"), {"dp": 8})
    assert bridge.verdict(job, change=("model.tensor_paralel", 2))["lost"] == ["model.tensor_paralel"]
    assert "Could not override" in bridge.verdict(job, overrides=["model.tensor_paralel=2"])["problem"]
    dump = yaml.safe_load(bridge.verdict(job, overrides=["train.micro_batch_size=2"])["dump"])
    assert (dump["train"]["micro_batch_size"], dump["train"]["train_iters"]) == (2, 20)
