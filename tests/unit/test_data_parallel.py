"""What data-parallel ranks exchange: in how many pieces, behind which passes, and what they hold of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.calculators.communication import all_gather_time_s
from dlcalc.costmodel.anatomy.traffic import axis_facts
from dlcalc.costmodel.data_parallel import (
    behind_chunks_s,
    bucket_params,
    chunk_windows_count,
    collectives_count,
    last_piece_fraction,
)
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.layer_comm import ring_link
from dlcalc.costmodel.placement import links
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.search.study import resolved_recipes
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.space import RecipeSpec

H100 = load_hardware("h100")
GIB = 2.0**30


def estimated(model, framework, changes=None, hardware=H100, batch=64, **plan) -> Estimate:
    recipe = Recipe(seq_len=4096, global_batch=batch, precision="bf16", framework=load_framework(framework, changes))
    return estimate(load_model(model), hardware, recipe, Plans.point(**plan))


def test_sharded_weights_are_gathered_a_layer_at_a_time():
    """On 4,096 ranks each of 34 gathers waits for a ring of 511 nodes; in one it would wait once."""
    found = estimated("llama3-8b", "torchtitan", batch=4096, dp=4096, zero_stage=3)
    n_params = 8_030_261_248
    rates = H100.calibration
    gather = {"node": rates.node_collectives["all_gather"], "fabric": rates.fabric_collectives["all_gather"]}
    each = float(all_gather_time_s(2.0 * n_params / 34, found.links.shard, **gather))
    assert float(found.step.param_gather_sent_s) == pytest.approx(2 * 34 * each, rel=1e-6)
    assert each > 511 * 8e-6
    together = float(all_gather_time_s(2.0 * n_params, found.links.shard, **gather))
    assert 34 * each > 2 * together


@pytest.mark.parametrize(("ranks", "elements"), [(8, 40e6), (40, 40e6), (2048, 2.048e9)])
def test_megatrons_buckets_grow_with_the_ranks(ranks, elements):
    assert bucket_params(ranks, load_framework("megatron")) == elements
    fixed = load_framework("megatron", {"bucket_elements_per_rank": 0})
    assert bucket_params(ranks, fixed) == 40e6


def pieces(framework, elements, changes=None, **plan):
    model, profile = load_model("llama3-8b"), load_framework(framework, changes)
    return float(collectives_count(model, Plans.point(**plan), np.asarray(elements), profile))


def test_a_stage_is_cut_into_layers_chunks_or_buckets():
    """Llama 3 8B has 32 layers, an embedding and a head."""
    assert pieces("torchtitan", 8e9, zero_stage=3) == pieces("fsdp_accelerate", 8e9, zero_stage=2) == 34
    assert pieces("torchtitan", 4e9, pp=2, zero_stage=1) == 17  # what ZeRO 3 is in its pipelines
    assert pieces("torchtitan", 1e6, pp=64, zero_stage=3) == 1
    assert pieces("deepspeed", 8e9, zero_stage=1) == 16
    assert pieces("deepspeed", 1e6, zero_stage=1) == 1
    interleaved = {"pp": 2, "vpp": 4, "schedule": "interleaved", "zero_stage": 1}
    assert pieces("megatron", 4e9, **interleaved) == 4  # a buffer of each chunk, whole where nothing is overlapped
    assert pieces("megatron", 4e9, overlap_grad=1, **interleaved) == 3 + 1e9 / 40e6
    assert pieces("megatron", 4e9, {"buckets_first_chunk": False}, overlap_grad=1, **interleaved) == 4e9 / 40e6
    assert pieces("megatron", 4e9, pp=2, vpp=2, schedule="zb-v", zero_stage=1) == 1


def test_the_last_piece_is_a_layer_a_bucket_or_a_chunk():
    model = load_model("llama3-8b")

    def last(framework, elements, **plan):
        profile = load_framework(framework)
        return float(last_piece_fraction(model, Plans.point(**plan), np.asarray(elements), profile))

    assert last("torchtitan", 8e9, zero_stage=3) == pytest.approx(1 / 34)
    assert last("megatron", 4e9, zero_stage=1) == 0.01
    interleaved = {"pp": 2, "vpp": 4, "schedule": "interleaved", "zero_stage": 1}
    assert last("megatron", 4e9, dp=2048, **interleaved) == 0.25  # a bucket of 2 G, of which a chunk has half


def simulated_exposed_s(sent_s: float, pass_s: float, pp: int, vpp: int) -> float:
    """Chunks end their last passes pp chunk passes apart, each sending as it goes, one thing at a time."""
    chunk_pass, chunk_sent, step = pass_s / vpp, sent_s / vpp, pass_s / vpp / 200
    left, now = 0.0, 0.0
    for chunk in range(vpp):
        start = chunk * pp * chunk_pass
        left = max(0.0, left - (start - now))
        for _ in range(200):  # as the chunk's own pass goes on, its part is there to be sent
            left = max(0.0, left + chunk_sent / 200 - step)
        now = start + chunk_pass
    return left


@given(sent_s=st.floats(0.0, 20.0), pp=st.sampled_from([2, 4, 8]), vpp=st.integers(1, 6))
def test_chunks_of_an_interleaved_stage_hide_what_a_replay_hides(sent_s, pp, vpp):
    plans = Plans.point(pp=pp, vpp=vpp, schedule="interleaved" if vpp > 1 else "1f1b", zero_stage=1)
    pass_s = 1.0
    hidden = min(
        float(behind_chunks_s(np.asarray(sent_s), np.asarray(pass_s), plans)),
        pass_s * float(chunk_windows_count(plans)),
    )
    assert sent_s - hidden == pytest.approx(simulated_exposed_s(sent_s, pass_s, pp, vpp), abs=0.02 * max(1.0, sent_s))


def test_chunks_of_a_v_end_together():
    plans = Plans.point(pp=4, vpp=2, schedule="zb-v", zero_stage=1)
    assert float(chunk_windows_count(plans)) == 1
    assert float(behind_chunks_s(np.asarray(5.0), np.asarray(1.0), plans)) == 5


@pytest.mark.parametrize("plan", [{"zero_stage": 3, "pp": 4}, {"zero_stage": 2}, {"zero_stage": 3}])
def test_a_report_counts_the_exchanges_of_the_step(plan):
    """torchtitan's pipelines keep what they gathered: one gather and one scatter of each layer a step."""
    found = estimated("llama3-8b", "torchtitan", dp=16, **plan)
    data = next(axis for axis in axis_facts(found) if axis.axis == "DP")
    sent = float(found.step.grad_reduce_sent_s + found.step.param_gather_sent_s)
    assert sum(call.sent_s for call in data.collectives) == pytest.approx(sent)


def test_replicas_meet_behind_the_last_backward_pass_alone():
    """However many micro-batches there are: HSDP adds up its shards once a step."""
    slow = H100.model_copy(
        update={"fabric": H100.fabric.model_copy(update={
            "nic_gbit_per_s_per_device": H100.fabric.nic_gbit_per_s_per_device.model_copy(update={"value": 12.5})
        })}
    )  # fmt: skip
    few, many = (
        estimated(
            "llama3-8b",
            "torchtitan",
            hardware=slow,
            batch=256 * n,
            dp=256,
            dp_replicate=32,
            zero_stage=3,
            overlap_grad=1,
        ).step
        for n in (1, 8)
    )
    exposed = [float(step.terms()["grad_reduce_s"]) for step in (few, many)]
    assert exposed[0] > 1.0
    assert exposed[1] > 0.9 * exposed[0]


def test_replicated_experts_are_sharded_over_a_shard_group():
    """46.7 G parameters in 16 bytes over 8 devices, not over 256."""
    found = estimated("mixtral-8x7b", "torchtitan", batch=256, dp=256, dp_replicate=32, zero_stage=3)
    holds = found.footprint
    states = float(np.max(holds.weights_bytes + holds.gradients_bytes + holds.optimizer_bytes))
    assert states == pytest.approx(46.7e9 * 16 / 8, rel=0.01)
    assert not bool(found.fits)
    whole = estimated("mixtral-8x7b", "torchtitan", batch=256, dp=256, zero_stage=3)
    assert float(found.step.param_gather_sent_s) < float(whole.step.param_gather_sent_s)  # inside nodes


def test_deepspeed_gathers_when_the_optimizer_is_done():
    """Nothing hides what ZeRO 1 and 2 gather; ZeRO 3 gathers behind the passes."""
    overlapped = {"dp": 64, "overlap_grad": 1, "overlap_param": 1}
    steps = {stage: estimated("llama2-7b", "deepspeed", zero_stage=stage, **overlapped).step for stage in (1, 2, 3)}
    shown = {stage: float(step.terms()["param_gather_s"]) for stage, step in steps.items()}
    assert shown[1] == float(steps[1].param_gather_sent_s) > 0
    assert shown[2] == float(steps[2].param_gather_sent_s)
    assert shown[3] < 0.5 * float(steps[3].param_gather_sent_s)


def test_gradients_of_offloaded_states_are_on_the_host():
    plan = {"dp": 8, "zero_stage": 3, "offload_optimizer": 1}
    for framework, on_device in (("torchtitan", 0.0), ("deepspeed", 0.0), ("megatron", 70.6e9 * 4 / 8)):
        found = estimated("llama3-70b", framework, **plan)
        assert float(np.max(found.footprint.gradients_bytes)) == pytest.approx(on_device, rel=0.01)


def test_trainers_that_sum_in_fp32_after_the_pass_keep_a_stage_of_16_bit_gradients():
    """nanotron: 2 bytes for every parameter of the stage, not of a layer."""
    plan = {"tp": 2, "pp": 2, "dp": 8, "zero_stage": 1}
    kept, layer = (
        estimated("llama3-8b", "nanotron", {"keeps_16_bit_gradients": flag}, **plan).footprint for flag in (True, False)
    )
    more = float(np.max(kept.buffers_bytes) - np.max(layer.buffers_bytes)) / GIB
    assert more == pytest.approx(2 * 8.03e9 / 4 / GIB, rel=0.1)


def test_pytorch_has_one_kernel_for_layer_norm():
    profile = load_framework("fsdp_accelerate")
    assert not profile.fused_norm
    assert profile.for_norm("layernorm").fused_norm
    assert profile.for_norm("rmsnorm") is profile
    gpt, unfused = load_model("gpt3-175b"), {"fused_norm": False}
    one, other = (
        estimated("gpt3-175b", "megatron_legacy", changes, tp=8, pp=8, dp=1).step_time_s for changes in (None, unfused)
    )
    assert gpt.norm == "layernorm"
    assert float(one) == float(other)


@pytest.mark.parametrize(("devices_per_nic", "tp", "quicker"), [(1, 1, 1.0), (2, 1, 2.0), (2, 2, 1.0), (8, 2, 4.0)])
def test_the_edge_of_a_ring_has_a_shared_port_alone(devices_per_nic, tp, quicker):
    """Of a context-parallel ring over two nodes one device of each sends; others with other tensor ranks beside it."""
    shared = H100.model_copy(update={"fabric": H100.fabric.model_copy(update={"devices_per_nic": devices_per_nic})})
    plans = Plans.point(tp=tp, cp=16 // tp, dp=2)
    rate, usual = (
        float(ring_link(links(plans, machine).cp, plans.tp, machine).fabric_bytes_per_s) for machine in (shared, H100)
    )
    assert rate == quicker * usual == quicker * H100.fabric.nic_bytes_per_s_per_device


def test_a_loss_in_chunks_is_that_of_torchtitan_today():
    """Where a launch is to be written; measured runs were made before. Of multi-token prediction there is none."""
    spec = RecipeSpec(seq_len=8192, global_batch=16, target="torchtitan")
    (today,) = resolved_recipes(spec)
    (own,) = resolved_recipes(spec.model_copy(update={"profile": {"cross_entropy": "sharded"}}))
    assert (today.framework.cross_entropy, own.framework.cross_entropy) == ("chunked", "sharded")
    assert load_framework("torchtitan").cross_entropy == "sharded"
    plan = Plans.point(dp=8, zero_stage=3, micro_batch=2, recompute="op_sac")
    holds = [
        {
            recipe.framework.cross_entropy: float(
                np.max(estimate(model, H100, recipe, plan).footprint.working_set_bytes)
            )
            for recipe in (today, own)
        }
        for model in (load_model("llama3-8b"), load_model("llama3-8b").model_copy(update={"mtp_layers": 1}))
    ]
    assert holds[0]["chunked"] < 0.3 * holds[0]["sharded"]
    assert holds[1]["chunked"] == holds[1]["sharded"]
