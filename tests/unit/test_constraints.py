"""Every reason to refuse a plan: one that it refuses, and a neighbour that it lets pass."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.costmodel.estimate import OUT_OF_MEMORY, estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe

DENSE, LATENT = "llama3-8b", "deepseek-v2"  # 32 layers, 32 heads, 8 KV heads; 160 experts
V, INTERLEAVED, DUAL = {"schedule": "zb-v"}, {"schedule": "interleaved"}, {"schedule": "dualpipe"}


def masks(model, plan, framework="megatron", changes=None, **recipe):
    settled = Recipe(
        **{"seq_len": 8192, "global_batch": 128, "precision": "bf16", **recipe},
        framework=load_framework(framework, changes),
    )
    split = CUSTOM_SPLIT if plan.get("split") == "custom" else None
    return estimate(load_model(model), load_hardware("h100"), settled, Plans.point(**plan), custom_split=split).refused


CASES = [
    # reason, model, refused, passes, framework
    ("tp does not divide the attention heads", DENSE, {"tp": 3}, {"tp": 4}, "megatron"),
    ("tp and the KV heads do not divide each other", DENSE, {"tp": 12}, {"tp": 16}, "megatron"),
    ("tp and the KV heads do not divide each other", DENSE, {"tp": 16}, {"tp": 8}, "torchtitan"),
    ("tp does not divide the MLP width", DENSE, {"tp": 3}, {"tp": 7}, "megatron"),
    ("the sequence does not split into 2 cp parts", DENSE, {"cp": 3}, {"cp": 4}, "megatron"),
    ("more pipeline stages than layers", DENSE, {"pp": 35}, {"pp": 34}, "megatron"),
    ("dp does not divide the global batch", DENSE, {"dp": 48}, {"dp": 64}, "megatron"),
    ("the framework has no tensor parallelism", DENSE, {"tp": 2}, {"tp": 1}, "fsdp_composer"),
    ("the framework has no context parallelism", DENSE, {"cp": 2}, {"cp": 1}, "fsdp_composer"),
    ("the framework has no pipeline parallelism", DENSE, {"pp": 2}, {"pp": 1}, "fsdp_composer"),
    ("ep does not divide the experts", LATENT, {"dp": 64, "ep": 64}, {"dp": 32, "ep": 32}, "megatron"),
    ("etp does not divide the expert width", LATENT, {"tp": 5, "etp": 5}, {"tp": 4, "etp": 4}, "megatron"),
    ("etp x ep does not divide the devices of a stage", LATENT, {"dp": 4, "ep": 8}, {"dp": 8, "ep": 8}, "megatron"),
    (
        "dp x micro_batch does not divide the global batch",
        DENSE,
        {"dp": 64, "micro_batch": 4},
        {"dp": 64, "micro_batch": 2},
        "megatron",
    ),
    ("the layers do not split evenly over pp x vpp", DENSE, {"pp": 5}, {"pp": 4}, "megatron"),
    (
        "splitting the embedding and the loss needs pp > 1",
        DENSE,
        {"split": "embedding_and_loss"},
        {"split": "embedding_and_loss", "pp": 2},
        "megatron",
    ),
    (
        "a pipeline chunk would hold nothing",
        DENSE,
        {"pp": 16, "vpp": 3, "split": "embedding_and_loss", **INTERLEAVED},
        {"pp": 17, "vpp": 2, "split": "embedding_and_loss", **INTERLEAVED},
        "megatron",
    ),
    (
        "a pipeline chunk would hold nothing",
        "deepseek-v3",
        {"pp": 16, "vpp": 4, "ep": 4, "split": "loss", **INTERLEAVED},
        {"pp": 16, "vpp": 2, "ep": 4, "split": "loss", **INTERLEAVED},
        "megatron",
    ),
    (
        "interleaving needs vpp > 1 and pp > 1",
        DENSE,
        {"pp": 4, **INTERLEAVED},
        {"pp": 4, "vpp": 2, **INTERLEAVED},
        "megatron",
    ),
    (
        "interleaving needs vpp > 1 and pp > 1",
        DENSE,
        {"vpp": 2, **INTERLEAVED},
        {"pp": 2, "vpp": 2, **INTERLEAVED},
        "megatron",
    ),
    (
        "vpp > 1 needs an interleaved or V-shaped schedule",
        DENSE,
        {"pp": 4, "vpp": 2},
        {"pp": 4, "vpp": 2, **V},
        "megatron",
    ),
    (
        "the schedule needs exactly two chunks per stage",
        DENSE,
        {"pp": 4, "vpp": 4, **V},
        {"pp": 4, "vpp": 2, **V},
        "megatron",
    ),
    ("the schedule needs pp > 1", DENSE, {"schedule": "gpipe"}, {"schedule": "gpipe", "pp": 2}, "megatron"),
    ("dualpipe needs an even pp", DENSE, {"pp": 5, **DUAL}, {"pp": 4, **DUAL}, "megatron"),
    (
        "interleaving needs micro-batches in multiples of pp",
        DENSE,
        {"pp": 4, "vpp": 2, "dp": 64, **INTERLEAVED},
        {"pp": 4, "vpp": 2, "dp": 32, **INTERLEAVED},
        "megatron",
    ),
    (
        "the schedule needs at least two micro-batches per stage",
        DENSE,
        {"pp": 4, "dp": 32, **DUAL},  # 4 micro-batches
        {"pp": 4, "dp": 16, **DUAL},  # 8
        "megatron",
    ),
    (
        "only full recomputation counts layers",
        DENSE,
        {"recompute": "selective", "recompute_layers": 4},
        {"recompute": "full", "recompute_layers": 4},
        "megatron",
    ),
    (
        "as many layers recomputed as a chunk holds, which is all",
        DENSE,
        {"recompute": "full", "recompute_layers": 8, "pp": 4},
        {"recompute": "full", "recompute_layers": 7, "pp": 4},
        "megatron",
    ),
    (  # two stages of eight layers a device
        "as many layers recomputed as a chunk holds, which is all",
        DENSE,
        {"recompute": "full", "recompute_layers": 8, "pp": 4, **DUAL},
        {"recompute": "full", "recompute_layers": 7, "pp": 4, **DUAL},
        "megatron",
    ),
    (  # four chunks of four layers a stage
        "as many layers recomputed as a chunk holds, which is all",
        DENSE,
        {"recompute": "full", "recompute_layers": 4, "pp": 2, "vpp": 4, **INTERLEAVED},
        {"recompute": "full", "recompute_layers": 3, "pp": 2, "vpp": 4, **INTERLEAVED},
        "megatron",
    ),
    (
        "more layers offloaded than a stage holds",
        DENSE,
        {"pp": 4, "offload_layers": 9},
        {"pp": 4, "offload_layers": 8},
        "megatron",
    ),
    (
        "recomputing latent projections needs latent attention",
        DENSE,
        {"recompute": "mla_up_proj"},
        {"recompute": "full"},
        "megatron",
    ),
    ("recomputing experts needs some", DENSE, {"recompute": "moe"}, {"recompute": "mlp"}, "megatron_bridge"),
    (
        "recomputing dense MLPs needs some",
        "mixtral-8x7b",
        {"recompute": "mlp"},
        {"recompute": "moe"},
        "megatron_bridge",
    ),
    (
        "sequence parallelism needs tp > 1",
        DENSE,
        {"sequence_parallel": 1},
        {"sequence_parallel": 1, "tp": 2},
        "megatron",
    ),
    (
        "sequence parallelism needs tp x cp to divide the sequence",
        DENSE,
        {"sequence_parallel": 1, "tp": 2, "cp": 3},
        {"sequence_parallel": 1, "tp": 2, "cp": 4},
        "megatron",
    ),
    (
        "overlapping tp needs sequence parallelism",
        DENSE,
        {"tp": 2, "overlap_tp": 1},
        {"tp": 2, "overlap_tp": 1, "sequence_parallel": 1},
        "megatron",
    ),
    (
        "overlapping tp needs tp within a node",
        DENSE,
        {"tp": 16, "overlap_tp": 1, "sequence_parallel": 1},
        {"tp": 8, "overlap_tp": 1, "sequence_parallel": 1},
        "megatron",
    ),
    ("overlapping experts needs ep > 1", LATENT, {"overlap_ep": 1}, {"overlap_ep": 1, "ep": 2, "dp": 2}, "megatron"),
    (
        "all-to-all over cp needs tp x cp to divide the KV heads",
        DENSE,
        {"cp_exchange": 1, "cp": 3},
        {"cp_exchange": 2, "cp": 3},
        "megatron",
    ),
    (
        "experts under tp > 1 need sequence parallelism",
        LATENT,
        {"tp": 2},
        {"tp": 2, "sequence_parallel": 1},
        "megatron",
    ),
    (
        "replicas must divide dp x cp",
        DENSE,
        {"dp": 8, "dp_replicate": 3, "zero_stage": 3},
        {"dp": 8, "dp_replicate": 4, "zero_stage": 3},
        "torchtitan",
    ),
    (
        "replicas of one device shard nothing",
        DENSE,
        {"dp": 8, "dp_replicate": 8, "zero_stage": 3},
        {"dp": 8, "cp": 2, "dp_replicate": 8, "zero_stage": 3},
        "torchtitan",
    ),
    (
        "replicas of experts are not modelled",
        LATENT,
        {"dp": 8, "ep": 2, "dp_replicate": 2, "zero_stage": 3},
        {"dp": 8, "dp_replicate": 2, "zero_stage": 3},
        "megatron_bridge",
    ),
    (
        "replicas need sharded states",
        DENSE,
        {"dp": 8, "dp_replicate": 2},
        {"dp": 8, "dp_replicate": 2, "zero_stage": 1},
        "megatron",
    ),
    (
        "sharding gradients or parameters excludes a pipeline here",
        DENSE,
        {"pp": 2, "dp": 2, "zero_stage": 2},
        {"pp": 2, "dp": 2, "zero_stage": 1},
        "megatron",
    ),
    (
        "overlapping the parameter gather needs sharded states",
        DENSE,
        {"dp": 2, "overlap_grad": 1, "overlap_param": 1},
        {"dp": 2, "overlap_grad": 1, "overlap_param": 1, "zero_stage": 1},
        "megatron",
    ),
    (
        "overlapping the parameter gather needs the gradient's overlapped",
        DENSE,
        {"dp": 2, "overlap_param": 1, "zero_stage": 1},
        {"dp": 2, "overlap_param": 1, "overlap_grad": 1, "zero_stage": 1},
        "megatron",
    ),
    ("the framework has no such schedule", DENSE, {"pp": 4, "vpp": 2, **V}, {"pp": 4}, "megatron"),
    (
        "the framework has no such schedule",
        DENSE,
        {"pp": 4, "vpp": 2, **V},
        {"pp": 4, "vpp": 2, **INTERLEAVED},
        "torchtitan",
    ),
    ("the framework has no such recomputation", DENSE, {"recompute": "op_sac"}, {"recompute": "selective"}, "megatron"),
    (
        "the framework has no such recomputation",
        DENSE,
        {"recompute": "norm_act"},
        {"recompute": "op_sac"},
        "torchtitan",
    ),
    ("the framework has no such ZeRO stage", DENSE, {"dp": 2, "zero_stage": 2}, {"dp": 2, "zero_stage": 1}, "megatron"),
    (
        "the framework has no such ZeRO stage",
        DENSE,
        {"dp": 2, "zero_stage": 1},
        {"dp": 2, "zero_stage": 3},
        "torchtitan",
    ),
    (
        "activation offload excludes a pipeline",
        DENSE,
        {"pp": 2, "offload_layers": 2},
        {"offload_layers": 2},
        "megatron",
    ),
    (
        "custom_split has another number of chunks than pp x vpp",
        DENSE,
        {"pp": 2, "vpp": 2, "split": "custom", **INTERLEAVED},
        {"pp": 2, "split": "custom"},
        "megatron",
    ),
]
CUSTOM_SPLIT = (15, 17)


@pytest.mark.parametrize(("reason", "model", "refused", "passes", "framework"), CASES)
def test_a_reason_refuses_what_it_says_and_no_more(reason, model, refused, passes, framework):
    assert bool(masks(model, refused, framework)[reason])
    assert not bool(masks(model, passes, framework)[reason])


def test_every_reason_is_tried():
    assert {case[0] for case in CASES} == set(masks(DENSE, {})) | set(masks(LATENT, {}))


def test_torchtitan_shards_parameters_within_a_pipeline():
    plan = {"pp": 2, "dp": 2, "zero_stage": 3}
    reason = "sharding gradients or parameters excludes a pipeline here"
    assert not bool(masks(DENSE, plan, "torchtitan")[reason])


def test_a_profile_may_say_that_activations_are_offloaded_in_a_pipeline():
    plan, reason = {"pp": 2, "offload_layers": 2}, "activation offload excludes a pipeline"
    assert not bool(masks(DENSE, plan, changes={"offloads_in_pipeline": True})[reason])


def test_a_custom_split_needs_its_chunks():
    """Without one, every pipeline has another number of chunks than none."""
    recipe = Recipe(seq_len=8192, global_batch=128, precision="bf16", framework=load_framework("megatron"))
    plan = Plans.point(pp=2, zero_stage=1, split="custom")
    assert not bool(estimate(load_model(DENSE), load_hardware("h100"), recipe, plan).runs)
    assert bool(estimate(load_model(DENSE), load_hardware("h100"), recipe, plan, custom_split=CUSTOM_SPLIT).runs)


def test_a_plan_is_refused_for_everything_that_is_wrong():
    found = masks(DENSE, {"tp": 3, "cp": 3, "vpp": 2, "zero_stage": 1})
    assert {reason for reason, mask in found.items() if mask} == {
        "tp does not divide the attention heads",
        "tp and the KV heads do not divide each other",
        "tp does not divide the MLP width",
        "the sequence does not split into 2 cp parts",
        "vpp > 1 needs an interleaved or V-shaped schedule",
    }


def test_memory_refuses_apart_from_the_rest():
    """70 B parameters in 16 bits are 140 GB: not on one device of 80 GB."""
    recipe = Recipe(seq_len=8192, global_batch=8, precision="bf16", framework=load_framework("megatron"))
    found = estimate(load_model("llama3-70b"), load_hardware("h100"), recipe, Plans.point(zero_stage=1))
    assert OUT_OF_MEMORY not in found.refused
    assert bool(found.runs)
    assert not bool(found.fits)


def test_headroom_is_kept_free():
    recipe = Recipe(seq_len=8192, global_batch=8, precision="bf16", framework=load_framework("megatron"))
    model, hardware, plan = (
        load_model("llama3-8b"),
        load_hardware("h100"),
        Plans.point(tp=8, recompute="full", zero_stage=1),
    )
    memory = float(estimate(model, hardware, recipe, plan).memory_bytes)
    for free in (0.0, 0.1, 0.5, 0.9, 0.99):
        found = estimate(model, hardware, recipe, plan, memory_headroom=free)
        assert bool(found.fits) == (memory <= hardware.device.hbm_bytes * (1 - free))
    assert np.isfinite(memory)
