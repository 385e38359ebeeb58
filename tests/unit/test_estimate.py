"""What an estimate is put together from: passes, what is counted by chunk, what is kept, what the host link carries."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from dlcalc.calculators.flops import forward_token_flops
from dlcalc.calculators.params import dense_layer_params, trained_params
from dlcalc.calculators.schedule import DUALPIPE, INTERLEAVED, ONE_F_ONE_B
from dlcalc.costmodel.anatomy.traffic import axis_facts
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.every_stage import device_times
from dlcalc.costmodel.footprint import offloaded_layer_bytes
from dlcalc.costmodel.layer_comm import cp_comm_s
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import links
from dlcalc.costmodel.plans import ALL_LAYERS, Plans, number
from dlcalc.costmodel.recomputation import recomputed_fraction
from dlcalc.costmodel.stage_times import model_times
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import RECOMPUTE_MODES

H100 = load_hardware("h100")
LLAMA = load_model("llama3-8b")  # 32 layers
SHARDED = {"tp": 2, "sequence_parallel": True}


def recipe(framework="megatron", changes=None, **settings) -> Recipe:
    usual = {"seq_len": 8192, "global_batch": 64, "precision": "bf16"}
    return Recipe(**{**usual, **settings}, framework=load_framework(framework, changes))


def estimated(framework="megatron", changes=None, hardware=H100, **plan) -> Estimate:
    return estimate(LLAMA, hardware, recipe(framework, changes), Plans.point(**plan))


# --- what the host takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.8, 1.43])
def test_launches_take_longer_on_a_slower_host(factor):
    other = H100.model_copy(update={"calibration": H100.calibration.model_copy(update={"host_factor": factor})})
    usual, slower = (
        model_times(LLAMA, found.plans, found.links, found.machine)
        for found in (estimated(hardware=machine) for machine in (H100, other))
    )
    assert float(slower.kinds["dense"].host_s) == pytest.approx(factor * float(usual.kinds["dense"].host_s))
    assert float(slower.kinds["dense"].forward.total_s) == float(usual.kinds["dense"].forward.total_s)


def test_traffic_of_experts_has_a_factor_of_its_own():
    plan = {"tp": 2, "sequence_parallel": 1, "dp": 8, "zero_stage": 1}
    like_others, more = (
        estimate(
            load_model("mixtral-8x7b"), H100, recipe("megatron", {"expert_pass_ratio": factor}), Plans.point(**plan)
        )
        for factor in (1.0, 10.0)
    )
    assert float(more.step.memory_bound_s) > 1.5 * float(like_others.step.memory_bound_s)
    assert float(more.step.matmul_s) == float(like_others.step.matmul_s)


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_launches_that_the_device_waits_for_come_on_top(micro_batch):
    """All of them: the sum of device and host. None: the longer of the two."""
    longer, between, both = (
        float(
            estimated(changes={"host_launch_us": 20.0, "unhidden_launches": share}, micro_batch=micro_batch).step_time_s
        )
        for share in (0.0, 0.5, 1.0)
    )
    assert longer < both
    assert longer <= between <= both
    device = float(estimated(changes={"host_launch_us": 1e-9}, micro_batch=micro_batch).step_time_s)
    host_s = 64 / micro_batch * 3 * (32 * 18 + 20) * 20e-6  # forward and twice backward; layers, head
    assert both - device == pytest.approx(host_s, rel=1e-6)


@pytest.mark.parametrize(
    ("plan", "profile", "exchanges"),
    [
        pytest.param({"tp": 2}, {"overlaps_input_grad": False}, 4, id="two all-reduces a pass"),
        pytest.param({"tp": 2}, {"overlaps_input_grad": True}, 2, id="those of the backward pass hide"),
        pytest.param(
            {"tp": 8}, {"overlaps_input_grad": False, "fused_projections": False}, 7, id="one for each projection"
        ),
        pytest.param({**SHARDED, "overlap_tp": False}, {"overlaps_input_grad": False}, 10, id="gathers and scatters"),
        pytest.param({**SHARDED, "overlap_tp": False}, {"overlaps_input_grad": True}, 6, id="but for two that hide"),
        pytest.param({"tp": 1}, {"overlaps_input_grad": False}, 0, id="nobody to hand over to"),
    ],
)
def test_an_exchange_is_handed_over(plan, profile, exchanges):
    """So often a layer, where nothing hides it; the embedding and the head exchange a few times more."""
    found = {
        handover: estimated(
            changes={**profile, "host_launch_us": 1e-9, "exchange_handover_us": handover}, **plan, micro_batch=4
        )
        for handover in (0.0, 100.0)
    }
    promptly, late = (float(one.step_time_s) for one in found.values())
    assert (late - promptly) / (16 * 100e-6) == pytest.approx(32 * exchanges, abs=5)
    for one in found.values():
        talk = {axis.axis: axis for axis in axis_facts(one)}
        assert not exchanges or talk["TP"].sent_s >= talk["TP"].exposed_s * (1 - 1e-9)


def test_small_kernels_of_routing_take_a_floor_each():
    """14 forward, besides the router's matmul and what moves the tokens, and twice that backward, in every layer."""
    model, plan = load_model("qwen3-30b-a3b"), Plans.point(ep=8, dp=8, zero_stage=1)
    floor_us = H100.calibration.memory.launch_us
    slower = H100.calibration.memory.model_copy(update={"launch_us": floor_us + 1000.0})
    machines = (H100, H100.model_copy(update={"calibration": H100.calibration.model_copy(update={"memory": slower})}))
    quickly, slowly = (
        float(estimate(model, machine, recipe(changes={"host_launch_us": 1e-9}), plan).step_time_s)
        for machine in machines
    )
    routing = 3 * 14 * model.n_layers * 8e-3  # 8 micro-batches, a millisecond each
    assert slowly - quickly > routing


# --- what is recomputed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "layers", "fraction"),
    [
        pytest.param({"recompute_layers": 4}, 16, 1 / 4, id="one chunk"),
        pytest.param({"recompute_layers": 1, "vpp": 4, "schedule": INTERLEAVED}, 16, 1 / 4, id="one of each of four"),
        pytest.param({"recompute_layers": 2, "schedule": DUALPIPE}, 16, 1 / 4, id="two of each of two stages"),
        pytest.param({"recompute_layers": 5, "vpp": 4, "schedule": INTERLEAVED}, 16, 1, id="no more than there are"),
        pytest.param({"recompute_layers": 0}, 16, 0, id="none"),
        pytest.param({"recompute_layers": ALL_LAYERS, "vpp": 4, "schedule": INTERLEAVED}, 16, 1, id="all"),
        pytest.param({"recompute_layers": 2}, 0, 0, id="of nothing"),
    ],
)
def test_layers_are_recomputed_by_chunk(plan, layers, fraction):
    assert float(recomputed_fraction(Plans.point(**plan), number(layers))) == fraction


def test_chunks_multiply_what_is_recomputed():
    """One of each of four chunks of 4 layers is four of 16: the same work again, the same HFU, the same layers kept."""
    plan = {"pp": 2, "zero_stage": 1, "recompute": "full"}
    whole = estimated(**plan, recompute_layers=4)
    chunks = estimated(**plan, recompute_layers=1, vpp=4, schedule=INTERLEAVED)
    more = estimated(**plan, recompute_layers=4, vpp=2, schedule=INTERLEAVED)
    assert float(chunks.step.recompute_s) == pytest.approx(float(whole.step.recompute_s), rel=1e-12)
    assert float(chunks.recompute_flops_factor) == float(whole.recompute_flops_factor) > 1
    assert float(more.step.recompute_s) == pytest.approx(2 * float(whole.step.recompute_s), rel=1e-12)
    assert float(more.recompute_flops_factor) - 1 == pytest.approx(2 * (float(whole.recompute_flops_factor) - 1))


# --- sharded parameters in a pipeline --------------------------------------------------------------------------------


def test_torchtitan_gathers_once_in_a_pipeline():
    """Its ZeRO 3 then exchanges and keeps what ZeRO 1 does; without a pipeline it is ZeRO 3."""
    plan = {"dp": 8, "overlap_grad": 1, "overlap_param": 1, "cp_exchange": "all_gather"}
    for pp, alike in ((2, True), (1, False)):
        third, first = (estimated("torchtitan", pp=pp, zero_stage=stage, **plan) for stage in (3, 1))
        assert float(third.plans.zero_stage) == 3  # what was written stays
        assert (float(third.step_time_s) == float(first.step_time_s)) == alike
        assert (float(third.memory_bytes) == float(first.memory_bytes)) == alike
        assert bool(third.runs)
        assert not bool(first.runs)  # and is what decides whether it runs


@pytest.mark.parametrize(
    ("framework", "precision", "per_element"),
    [("megatron", "bf16", 20), ("megatron_bridge", "bf16", 20), ("megatron", "fp8", 14), ("torchtitan", "bf16", 0)],
)
def test_overlapping_tp_takes_ten_buffers_of_a_micro_batch(framework, precision, per_element):
    """Of user buffers alone: six of what is gathered, four of what is scattered, each 8,192 tokens x 4,096 wide."""
    plan = {"tp": 4, "dp": 2, "sequence_parallel": 1, "micro_batch": 2}
    settled = recipe(framework, precision=precision)
    apart, behind = (estimate(LLAMA, H100, settled, Plans.point(**plan, overlap_tp=on)).footprint for on in (0, 1))
    more = float(behind.peak_bytes) - float(apart.peak_bytes)
    assert more == pytest.approx(per_element * 2 * 8192 * 4096, abs=1.0)
    assert float(behind.terms_of_peak()["overlap_buffers_bytes"]) == pytest.approx(more, abs=1.0)
    assert float(behind.reserved_bytes) == float(apart.reserved_bytes)


@pytest.mark.parametrize(
    ("mode", "matmul", "exchange"),
    [("full", 1.0, 0.5), ("mlp", 1.0, 0.5), ("op_sac", 0.5, 0.0), ("norm_act", 0.0, 0.0)],
)
def test_recomputation_that_stops_early_leaves_out_the_end_of_a_layer(mode, matmul, exchange):
    """The down projection, whose output no gradient needs, and the second of the MLP's two exchanges."""
    plan = {**SHARDED, "dp": 8, "recompute": mode}
    whole, early = (estimated("torchtitan", {"recomputes_to_the_end": flag}, **plan) for flag in (True, False))
    dense = model_times(LLAMA, early.plans, early.links, early.machine).kinds["dense"]
    left_out = matmul * dense.matmuls["down"][1].forward_s + exchange * dense.forward.tp_comm_s
    passes = 64 / 8 * LLAMA.n_layers  # micro-batches, layers
    saved = float(whole.step.recompute_s) - float(early.step.recompute_s)
    assert saved == pytest.approx(passes * float(left_out), rel=1e-9, abs=1e-9)
    assert float(whole.hfu) / float(whole.mfu) >= float(early.hfu) / float(early.mfu)


@pytest.mark.parametrize(("model", "mode", "kind"), [("llama3-8b", "mlp", "dense"), ("mixtral-8x7b", "moe", "moe")])
def test_of_a_sublayer_recomputed_alone_the_whole_forward_pass_runs_again(model, mode, kind):
    """But the norm of experts, which begin after it."""
    spec, plan = load_model(model), {"tp": 2, "sequence_parallel": 1, "dp": 8, "zero_stage": 1}
    settled = recipe("megatron_bridge")
    found = estimate(spec, H100, settled, Plans.point(**plan, recompute=mode))
    one = model_times(spec, found.plans, found.links, found.machine).kinds[kind].forward
    passes = settled.global_batch / 8 * spec.n_layers
    again_s = float(one.total_s) - (mode == "moe") * float(one.norm_s)
    assert float(found.step.recompute_s) == pytest.approx(passes * again_s, rel=1e-9)
    flops = forward_token_flops(spec, seq_len=float(settled.seq_len), causal=False)
    again = flops.dense_mlp_flops + flops.moe_flops
    assert float(found.hfu / found.mfu) == pytest.approx(1 + again / (3 * flops.total_flops))


def test_a_fully_recomputed_layer_that_stops_early_runs_three_passes_and_a_part():
    """Of Llama 3 8B's matmuls the down projections are 27 %: HFU over MFU is 1 + 0.73 of a third, attention whole."""
    early = estimated("torchtitan", dp=16, recompute="full")
    forward = forward_token_flops(LLAMA, seq_len=8192.0, causal=False)
    again = forward.total_flops - forward.head_flops - forward.dense_mlp_flops / 3
    assert float(early.hfu) / float(early.mfu) == pytest.approx(1 + again / (3 * forward.total_flops))


SENDING = {"tp": 4, "sequence_parallel": True, "pp": 4, "dp": 1, "schedule": INTERLEAVED}


def sends_s(vpp, nic_gbit_per_s=400.0, **changes) -> tuple[float, float]:
    """What a step waits for sends between stages, and what they take: four stages on four nodes."""
    fabric = H100.fabric
    quoted = fabric.nic_gbit_per_s_per_device.model_copy(update={"value": nic_gbit_per_s})
    machine = H100.model_copy(
        update={
            "fabric": fabric.model_copy(update={"nic_gbit_per_s_per_device": quoted}),
            "node": H100.node.with_devices(4),
        }
    )
    found = estimated(changes=changes, hardware=machine, **SENDING, vpp=vpp)
    sent = next(axis for axis in axis_facts(found) if axis.axis == "PP")
    return float(found.step.pp_comm_s), 64 * 2 * vpp * sent.collectives[0].call_s


@pytest.mark.parametrize("vpp", [2, 4, 8])
def test_hidden_sends_slow_the_passes_that_hide_them(vpp):
    """As often as there are chunks: more of them fill the pipeline and send more."""
    waited, sent = sends_s(vpp)
    assert waited == pytest.approx(load_framework("megatron").overlap_slowdown * sent)
    assert sends_s(vpp, overlaps_stage_sends=False)[0] == pytest.approx(sent)


def test_a_pass_hides_no_more_than_it_lasts():
    """At 1 Gbit/s a send takes longer than a chunk: what exceeds its forward pass shows."""
    waited, sent = sends_s(8, nic_gbit_per_s=1.0)
    assert 0.5 * sent < waited < sent


def test_gathering_for_every_micro_batch_sends_more_and_keeps_less():
    plan = {"pp": 2, "dp": 8, "zero_stage": 3}
    once = estimated("torchtitan", **plan)
    always = estimated("torchtitan", {"gathers_once_in_pipeline": False}, **plan)
    micro_batches = 64 / 8
    sent = float(always.step.param_gather_sent_s) / float(once.step.param_gather_sent_s)
    assert sent == pytest.approx(2 * micro_batches, rel=0.05)  # forward and backward, each time; by layers, not buckets
    assert np.all(always.footprint.weights_bytes < once.footprint.weights_bytes)


def test_pytorchs_pipelines_scatter_when_all_passes_are_done():
    """Whole fp32 gradients until then, whatever ZeRO 2 or 3 is called, and nothing to hide behind."""
    plan = {"pp": 2, "dp": 4, "overlap_grad": 1}
    whole, two, three = (estimated("torchtitan", **plan, zero_stage=stage) for stage in (1, 2, 3))
    for found in (two, three):
        assert float(found.memory_bytes) == float(whole.memory_bytes)
        assert found.step.terms()["grad_reduce_s"] == found.step.grad_reduce_sent_s > 0
    behind = estimated("torchtitan", {"accumulates_whole_gradients": "never"}, **plan, zero_stage=3)
    assert behind.step.terms()["grad_reduce_s"] < behind.step.grad_reduce_sent_s
    always = {"gathers_once_in_pipeline": False}
    kept, shared = (
        estimated("torchtitan", {**always, "accumulates_whole_gradients": when}, **plan, zero_stage=3)
        for when in ("in_pipeline", "never")
    )
    assert np.all(kept.footprint.gradients_bytes == pytest.approx(4 * shared.footprint.gradients_bytes))
    assert float(shared.step.grad_reduce_sent_s) == pytest.approx(16 * float(kept.step.grad_reduce_sent_s))


def test_no_sync_keeps_whole_gradients_and_scatters_once():
    """Accelerate: bf16 gradients of all parameters instead of an eighth in fp32; one micro-batch has none to add up."""
    plan = {"dp": 8, "zero_stage": 3}
    shared = estimated("fsdp_accelerate", {"accumulates_whole_gradients": "never"}, **plan)
    whole = estimated("fsdp_accelerate", **plan)
    params = trained_params(whole.model)
    assert float(np.max(whole.footprint.gradients_bytes)) == pytest.approx(2 * params, rel=0.01)
    assert float(np.max(shared.footprint.gradients_bytes)) == pytest.approx(4 * params / 8, rel=0.01)
    assert float(shared.step.grad_reduce_sent_s) == pytest.approx(8 * float(whole.step.grad_reduce_sent_s))
    alone = plan | {"micro_batch": 8}
    assert float(estimated("fsdp_accelerate", **alone).memory_bytes) == float(
        estimated("fsdp_accelerate", {"accumulates_whole_gradients": "never"}, **alone).memory_bytes
    )


def test_a_compiler_gathers_a_matrix_and_not_a_layer():
    """Up of an MLP is the largest: 8 bytes of each of its weights rather than of all the layer's, and the head's."""
    sharded = {"dp": 8, "zero_stage": 3, "recompute": RECOMPUTE_MODES.index("full")}
    layer, matrix = (estimated("maxtext", {"gathers_by_matrix": flag}, **sharded) for flag in (False, True))
    assert float(matrix.footprint.gathered_weights_bytes) == 8 * LLAMA.hidden_size * LLAMA.ffn_hidden_size
    assert float(layer.footprint.gathered_weights_bytes) == pytest.approx(8 * dense_layer_params(LLAMA), rel=1e-3)
    at_loss = np.max(matrix.footprint.working_set_bytes) - np.max(layer.footprint.working_set_bytes)
    assert at_loss == 2 * LLAMA.vocab_size * LLAMA.hidden_size


def test_a_tpus_runtime_has_set_its_own_memory_apart():
    plan = {"dp": 8, "zero_stage": 3}
    assert float(estimated("maxtext", hardware=load_hardware("tpu_v5e"), **plan).footprint.context_bytes) == 0
    assert float(estimated("maxtext", **plan).footprint.context_bytes) == 0.8 * 2**30


def test_losses_of_predicted_tokens_wait_for_that_of_the_next():
    """DeepSeek-V3's one: 4 bytes more of each of 8,192 x 129,280 logits while the main loss is worked out."""
    model = load_model("deepseek-v3")
    plan = Plans.point(pp=8, dp=8, ep=8, zero_stage=1, recompute=RECOMPUTE_MODES.index("full"))
    with_it, without = (
        estimate(of, H100, recipe("megatron", {"cross_entropy": "parallel"}), plan)
        for of in (model, model.model_copy(update={"mtp_layers": 0}))
    )
    more = np.max(with_it.footprint.working_set_bytes) - np.max(without.footprint.working_set_bytes)
    assert more == 4 * 8192 * model.vocab_size


@pytest.mark.parametrize(
    ("precision", "zero_stage", "offload_optimizer", "linear"),
    [("fp8", 1, 0, 1.0), ("fp8", 3, 0, 1.0), ("fp8", 1, 1, 2.0), ("mxfp8", 1, 0, 2.0), ("nvfp4", 1, 0, 0.5625)],
)
def test_weights_that_live_in_low_precision_are_gathered_so(precision, zero_stage, offload_optimizer, linear):
    """Embedding and head in 16 bits; nothing of them where the optimizer hands 16 bits back, or in mxfp8."""
    plan = {"dp": 8, "zero_stage": zero_stage, "offload_optimizer": offload_optimizer}
    b200 = load_hardware("b200")
    found = estimate(LLAMA, b200, recipe("megatron", precision=precision), Plans.point(**plan))
    data = next(axis for axis in axis_facts(found) if axis.axis == "DP")
    sent = sum(c.size_bytes * c.calls_per_step for c in data.collectives if c.operation == "all_gather")
    times = 2 * 8 if zero_stage == 3 else 1
    outer = 2 * LLAMA.vocab_size * LLAMA.hidden_size
    assert sent == pytest.approx(times * (linear * (trained_params(LLAMA) - outer) + 2 * outer), rel=1e-3)
    assert float(found.step.param_gather_sent_s) == pytest.approx(
        sum(c.sent_s for c in data.collectives if c.operation == "all_gather")
    )


def test_nanotron_reduces_after_all_passes_at_zero_1():
    """Whole gradients on every rank, twice the bytes of a scatter, and nothing to hide behind; at ZeRO 0 DDP hides."""
    plan = {"dp": 8, "overlap_grad": 1}
    first, none = (estimated("nanotron", **plan, zero_stage=stage) for stage in (1, 0))
    assert float(first.step.grad_reduce_sent_s) == pytest.approx(float(none.step.grad_reduce_sent_s))
    assert first.step.terms()["grad_reduce_s"] == first.step.grad_reduce_sent_s
    assert none.step.terms()["grad_reduce_s"] < 0.5 * none.step.grad_reduce_sent_s
    scattered = estimated("nanotron", {"all_reduces_at_stages": ()}, **plan, zero_stage=1)
    assert float(first.step.grad_reduce_sent_s) > 1.6 * float(scattered.step.grad_reduce_sent_s)


def quantized(framework, precision, changes=None, scaling=None, **plan):
    plan = {"tp": 4, "sequence_parallel": 1, "dp": 8, "zero_stage": 1} | plan
    of = recipe(framework, changes, precision=precision, **({"scaling": scaling} if scaling else {}))
    return estimate(LLAMA, load_hardware("b200"), of, Plans.point(**plan))


def test_weights_are_quantized_once_a_step_where_they_are_kept_so():
    """Eight micro-batches on eight ranks: seven times 6 bytes a weight less; the host looks them up all the same."""
    kept, again = (quantized("megatron", "fp8", {"caches_quantized_weights": flag}) for flag in (True, False))
    linear = (trained_params(LLAMA) - 2 * LLAMA.vocab_size * LLAMA.hidden_size) / 4
    rate = kept.machine.hbm_bytes_per_s * kept.machine.memory.hbm_fraction
    saved = float(again.step.memory_bound_s) - float(kept.step.memory_bound_s)
    assert saved == pytest.approx(7 * 6 * linear / rate, rel=0.01)
    host = [model_times(LLAMA, e.plans, e.links, e.machine).kinds["dense"].host_s for e in (kept, again)]
    assert float(host[0]) == float(host[1])


@pytest.mark.parametrize(
    ("framework", "precision", "scaling", "each"),
    [
        ("megatron", "fp8", None, 1.0), ("megatron", "fp8", "block", 1.0), ("megatron", "bf16", None, 2.0),
        ("torchtitan", "fp8", None, 1.0), ("torchtitan", "fp8", "block", 2.0),
    ],
)  # fmt: skip
def test_inputs_are_gathered_as_they_are_multiplied(framework, precision, scaling, each):
    """But where a scale is of a row, outside of Transformer Engine; head and embedding in 16 bits."""
    found = quantized(framework, precision, scaling=scaling, zero_stage=3 if framework == "torchtitan" else 1)
    tensor = next(axis for axis in axis_facts(found) if axis.axis == "TP")
    gathered = [call for call in tensor.collectives if call.operation == "all_gather"]
    sizes = {call.size_bytes for call in gathered}
    assert sizes == {each * 8192 * LLAMA.hidden_size, 2.0 * 8192 * LLAMA.hidden_size}
    assert tensor.exposed_s + tensor.hidden_s == pytest.approx(tensor.sent_s)


def gathered_calls(found: Estimate) -> float:
    data = next(axis for axis in axis_facts(found) if axis.axis == "DP")
    return sum(call.calls_per_step for call in data.collectives if call.operation == "all_gather")


def test_zero_2_of_fsdp_gathers_for_every_micro_batch():
    """Eight of them, each copied out of its buffer and its gradients into one; a pipeline keeps what it gathered."""
    once, always = (
        estimated("torchtitan", {"gathers_again_at_stage_2": flag}, dp=8, zero_stage=2) for flag in (False, True)
    )
    gathered = float(always.step.param_gather_sent_s) / float(once.step.param_gather_sent_s)
    assert gathered == pytest.approx(8, rel=0.05)  # by layers, not buckets
    assert gathered_calls(always) == 8 * 34
    assert float(always.step.overhead_s) > float(once.step.overhead_s)
    piped = (
        estimated("torchtitan", {"gathers_again_at_stage_2": flag}, dp=4, pp=2, zero_stage=2).step
        for flag in (False, True)
    )
    one, other = (float(step.param_gather_sent_s) for step in piped)
    assert one == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize(("zero_stage", "precision", "reduces"), [(1, "bf16", 1), (1, "fp16", 1), (0, "bf16", 0)])
def test_deepspeeds_optimizers_reduce_whole_gradients(zero_stage, precision, reduces):
    """An all-reduce where others scatter; without shards everybody does."""
    found = [
        estimate(
            LLAMA, H100, recipe("megatron_deepspeed", {"all_reduces_at_stages": stages}, precision=precision),
            Plans.point(dp=16, zero_stage=zero_stage),
        )
        for stages in ((), (1,))
    ]  # fmt: skip
    scattered, whole = (float(one.step.grad_reduce_sent_s) for one in found)
    assert (whole > 1.5 * scattered) == bool(reduces)
    for one, sent in zip(found, (scattered, whole), strict=True):
        data = next(axis for axis in axis_facts(one) if axis.axis == "DP")
        calls = [call for call in data.collectives if call.what == "gradients"]
        assert sum(call.call_s * call.calls_per_step for call in calls) == pytest.approx(sent)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{}, {"pp": 4, "dp": 2}, {"dp": 8, "micro_batch": 2, "recompute": "selective"}])
def test_what_passes_fragments_and_what_stays_does_not(plan):
    """The peak is states + (1 + slack) x what passes + context, on the fullest stage."""
    slack = 0.25
    found = estimated(changes={"allocator_slack": slack}, zero_stage=1, **plan).footprint
    terms = {field.name: getattr(found, field.name) for field in fields(found) if field.name.endswith("_bytes")}
    passing = sum(terms[name] for name in ("activations_bytes", "working_set_bytes", "stage_buffers_bytes"))
    stays = sum(terms.values()) - passing - found.context_bytes
    peaks = stays + (1 + slack) * passing + found.context_bytes
    assert float(found.peak_bytes) == pytest.approx(np.max(peaks), rel=1e-12)
    assert float(found.reserved_bytes) == pytest.approx(np.max(peaks - found.context_bytes), rel=1e-12)
    assert float(found.allocated_bytes) == pytest.approx(np.max(stays + passing), rel=1e-12)
    of_peak = found.terms_of_peak()
    fullest = np.argmax(peaks)
    assert float(of_peak["allocator_bytes"]) == pytest.approx(float(slack * np.ravel(passing)[fullest]), rel=1e-12)
    assert float(sum(of_peak.values())) == pytest.approx(float(found.peak_bytes), rel=1e-12)


def test_states_are_as_large_however_much_fragments():
    less, more = (estimated(changes={"allocator_slack": slack}, zero_stage=1).footprint for slack in (0.0, 0.5))
    np.testing.assert_array_equal(less.states_bytes, more.states_bytes)
    assert float(less.reserved_bytes) == float(less.allocated_bytes) == float(more.allocated_bytes)


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tp", "cp"),
    [pytest.param(1, 16, id="8 on a node"), pytest.param(4, 4, id="2"), pytest.param(8, 2, id="1")],
)
def test_a_ring_of_keys_and_values_leaves_a_node_on_one_nic(tp, cp):
    """A rank hands its block to the next one, so that a node's last rank sends alone, however many there are."""
    plans, machine = Plans.point(tp=tp, cp=cp), Machine(H100, recipe(seq_len=1 << 20))
    nothing, kv_heads = number(0.0), number(8.0)
    forward, backward = cp_comm_s(LLAMA, plans, links(plans, H100), machine, nothing, nothing, kv_heads, kv_heads)
    bytes_per_rank = 2 * 2 * (1 << 20) * 8 * 128 / cp  # keys and values, 16 bits, heads of 128
    rate = H100.fabric.nic_bytes_per_s_per_device * H100.calibration.fabric_collectives["all_gather"].bus_fraction
    assert float(forward) == pytest.approx((cp - 1) * bytes_per_rank / rate, rel=0.02)  # latencies are the rest
    assert float(backward) == 2 * float(forward)  # gradients go round as well


def hosted(rate_gb_per_s):
    """H100 with another link to the host."""
    link = H100.node.host_link_gb_per_s.model_copy(update={"value": rate_gb_per_s})
    return H100.model_copy(update={"node": H100.node.model_copy(update={"host_link_gb_per_s": link})})


@pytest.mark.parametrize("layers", [4, 32])
def test_offloaded_layers_move_out_behind_forward_and_back_behind_backward(layers):
    """At 0.8 of the datasheet rate; a fast way back does not make up for a slow way out."""
    plan = {"tp": 8, "sequence_parallel": 1, "zero_stage": 1}
    plain = estimated(**plan)
    kept = device_times(plain, plain.stages)
    forward, backward = float(kept.forward_s[0]), float(kept.backward_s[0])
    assert forward < backward
    each = float(offloaded_layer_bytes(LLAMA, Plans.point(**plan, offload_layers=layers), plain.machine))
    for moved in (0.5 * forward, 0.5 * (forward + backward), 2 * backward):  # seconds one way
        rate = layers * each / (0.8 * moved)
        found = estimated(**plan, offload_layers=layers, hardware=hosted(rate / 1e9))
        assert found.machine.hardware.node.host_bytes_per_s == pytest.approx(rate)
        times = device_times(found, found.stages)
        shown = max(0.0, moved - forward) + max(0.0, moved - backward)
        assert float(times.forward_s[0]) == forward
        assert float(times.backward_s[0]) - backward == pytest.approx(shown, abs=1e-9 * backward)
        assert float(found.step.offload_s) == pytest.approx(64 * shown, abs=1e-9 * backward)


def test_a_device_of_dualpipe_moves_what_one_of_its_stages_keeps():
    """A micro-batch meets one of the two stages: on average half of the layers that the device keeps on the host."""
    plan = {"pp": 2, "zero_stage": 1, "hardware": hosted(1.0)}  # a link so slow that it is all that counts
    single = estimated(**plan, offload_layers=8, schedule=ONE_F_ONE_B)
    double = estimated(**plan, offload_layers=16, schedule=DUALPIPE)
    assert float(double.step.offload_s) == pytest.approx(float(single.step.offload_s), rel=1e-9)


def test_hosts_that_are_fast_enough_cost_nothing():
    plan = {"tp": 8, "sequence_parallel": 1, "zero_stage": 1}
    found, plain = estimated(**plan, offload_layers=16, hardware=hosted(1e5)), estimated(**plan)
    assert float(found.step_time_s) == float(plain.step_time_s)
    assert float(found.memory_bytes) < float(plain.memory_bytes)
