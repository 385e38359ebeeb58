"""One plan taken apart: the parts are those of the estimate."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.costmodel.anatomy.kernels import SUBLAYERS, matmul_facts
from dlcalc.costmodel.anatomy.memory import op_activations, stage_memory
from dlcalc.costmodel.anatomy.pipeline import pipeline_facts
from dlcalc.costmodel.anatomy.traffic import AxisFacts, axis_facts
from dlcalc.costmodel.cross_dc import across_data_centres
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.every_stage import times_of
from dlcalc.costmodel.footprint import layer_activations
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.run import CrossDcSection

PLANS = {
    "dense": ("llama3-70b", Plans.point(tp=8, pp=4, dp=4, zero_stage=1, sequence_parallel=1, recompute="selective")),
    "no-sp": ("gpt3-175b", Plans.point(tp=8, pp=8, dp=2, recompute="full")),
    "experts": (
        "deepseek-v2",
        Plans.point(
            tp=2, pp=4, dp=16, ep=8, zero_stage=1, sequence_parallel=1, recompute="norm_act", split="embedding_and_loss"
        ),
    ),
    "windows": ("gpt-oss-20b", Plans.point(tp=4, cp=2, dp=8, ep=4, zero_stage=1, sequence_parallel=1)),
    "fsdp": ("llama3-8b", Plans.point(dp=32, zero_stage=3, dp_replicate=2, recompute="op_sac")),
}  # fmt: skip


def one(name: str, profile: FrameworkProfile | None = None, **more: float) -> Estimate:
    model, plan = PLANS[name]
    values = {knob: float(getattr(plan, knob)) for knob in plan.__dataclass_fields__} | more
    framework = profile or load_framework("megatron")
    recipe = Recipe(seq_len=4096, global_batch=128, precision="bf16", framework=framework)
    return estimate(load_model(model), load_hardware("h100"), recipe, Plans.point(**values))


def axes(found: Estimate) -> dict[str, AxisFacts]:
    return {axis.axis: axis for axis in axis_facts(found)}


@pytest.mark.parametrize("name", PLANS)
def test_matmuls_have_the_flops_of_the_model(name):
    """On one device, all layers of a kind: 2 per parameter and token, but for what tensor parallelism replicates."""
    found = one(name)
    for row in matmul_facts(found):
        groups, tokens, inner, outer = row.device_shape
        assert row.forward_flops == 2 * groups * tokens * inner * outer
        assert row.forward_flops_per_s < found.machine.hardware.device.peak_flops_per_s("bf16")
        assert row.bound in ("compute", "memory", "launch")
        whole = np.prod(row.shape)
        degree = float(found.plans.tp * found.plans.cp * found.plans.ep)
        assert whole / np.prod(row.device_shape) <= degree * (1 + 1e-9)


def test_partitioned_shapes_of_llama_70b():
    """8,192 wide, 64 heads of 128 and 8 KV heads, 28,672 in the MLP, gate and up in one matmul, tp = 8."""
    shapes = {row.name: (row.shape, row.device_shape) for row in matmul_facts(one("dense"))}
    assert shapes["qkv"] == ((1, 4096, 8192, 10240), (1, 4096, 8192, 1280))
    assert shapes["out"] == ((1, 4096, 8192, 8192), (1, 4096, 1024, 8192))
    assert shapes["up"] == ((1, 4096, 8192, 57344), (1, 4096, 8192, 7168))
    assert shapes["down"] == ((1, 4096, 28672, 8192), (1, 4096, 3584, 8192))
    assert shapes["head"] == ((1, 4096, 8192, 128256), (1, 4096, 8192, 16032))


@pytest.mark.parametrize("name", PLANS)
def test_the_fullest_of_all_stages_is_the_estimates_peak(name):
    found = one(name)
    stages = stage_memory(found, None)
    assert len(stages) == int(found.plans.pp)
    assert max(stage.total_bytes for stage in stages) == pytest.approx(float(found.memory_bytes), rel=1e-12)
    for stage in stages:
        assert sum(stage.bytes_by_term.values()) == pytest.approx(stage.total_bytes, rel=1e-9)
    assert sum(stage.layers for stage in stages) == found.model.n_layers


@pytest.mark.parametrize("name", PLANS)
def test_activations_by_operation_are_those_of_the_footprint(name):
    found = one(name)
    tokens = found.plans.micro_batch * found.machine.recipe.seq_len / found.plans.cp
    layer = layer_activations(found.model, found.plans, found.machine, tokens)
    rows = op_activations(found)
    for kind, kept in layer.kept.items():
        own = [row for row in rows if row.sublayer == SUBLAYERS[kind]]
        if own:
            assert sum(row.kept_bytes for row in own) == pytest.approx(float(kept), rel=1e-12)
            assert sum(row.without_recompute_bytes for row in own) == pytest.approx(float(layer.whole[kind]), rel=1e-12)
    assert {row.sublayer for row in rows} & {"MLP", "MoE"}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_sent_is_hidden_or_exposed(name):
    for axis in axis_facts(one(name)):
        listed_s = sum(call.calls_per_step * call.call_s for call in axis.collectives)
        assert axis.sent_s == pytest.approx(listed_s, rel=1e-9 if axis.axis != "DP" else 2e-3)
        assert axis.exposed_s <= axis.sent_s * (1 + 1e-9)
        assert axis.exposed_s + axis.hidden_s == pytest.approx(axis.sent_s)
        for call in axis.collectives:
            assert call.latency_s > 0
            assert call.bandwidth_s > 0
            assert call.link == ("node" if call.n_ranks == call.ranks_per_node else "fabric")


@pytest.mark.parametrize("name", ["dense", "no-sp", "experts", "windows"])
def test_forward_exchanges_over_tensor_parallel_ranks_are_all_exposed(name):
    """Nothing hides them without overlap_tp, so the calls listed take what the sublayers' forward passes say."""
    found = one(name, overlap_tp=0.0)
    times, model = times_of(found), found.model
    counts = {"windowed": sum(model.layer_is_windowed), "moe": model.n_moe_layers}
    counts |= {"full": model.n_layers - counts["windowed"], "dense": model.n_dense_layers}
    exposed_s = sum(counts[kind] * float(one_kind.forward.tp_comm_s) for kind, one_kind in times.kinds.items())
    exposed_s += float(times.embedding.forward.tp_comm_s) + float(times.head.forward.tp_comm_s)
    repeats = 128 / float(found.plans.dp * found.plans.micro_batch * found.plans.pp)
    listed_s = sum(call.sent_s for call in axes(found)["TP"].collectives if call.what.endswith("forward"))
    assert listed_s == pytest.approx(repeats * exposed_s, rel=1e-9)


@pytest.mark.parametrize("name", ["experts", "windows"])
def test_tokens_sent_to_experts_are_all_exposed_without_overlap(name):
    axis = axes(one(name, overlap_ep=0.0))["EP"]
    assert axis.sent_s == pytest.approx(axis.exposed_s, rel=1e-9)


@pytest.mark.parametrize("name", ["experts", "windows"])
def test_what_is_sent_once_to_a_node_is_not_sent_rather_than_hidden(name):
    once = load_framework("megatron").model_copy(update={"dispatches_once_per_node": True})
    over_nodes = {"ep": 32.0} if name == "experts" else {"ep": 16.0}
    axis = axes(one(name, once, overlap_ep=0.0, **over_nodes))["EP"]
    in_full = axes(one(name, overlap_ep=0.0, **over_nodes))["EP"]
    assert axis.sent_s == pytest.approx(axis.exposed_s, rel=1e-9)
    assert axis.hidden_s == pytest.approx(0.0, abs=1e-9 * axis.sent_s)
    assert axis.not_sent_s > 0.05 * axis.sent_s
    setup_s = sum(call.calls_per_step for call in axis.collectives if call.operation == "all_to_all") * 150e-6
    assert axis.sent_s + axis.not_sent_s == pytest.approx(in_full.sent_s + setup_s, rel=1e-9)
    assert in_full.not_sent_s == 0


def test_inside_a_node_a_token_goes_to_a_device_once():
    """Eight experts of a token on four devices: on 3.6 of them, on average."""
    once = load_framework("megatron").model_copy(update={"dispatches_once_per_node": True})
    plan = {"overlap_ep": 0.0, "ep": 4.0}
    axis, in_full = axes(one("experts", once, **plan))["EP"], axes(one("experts", **plan))["EP"]
    dispatch, plain = axis.collectives[0], in_full.collectives[0]
    assert dispatch.spared_s > 0.3 * plain.bandwidth_s
    assert dispatch.latency_s == pytest.approx(plain.latency_s + 150e-6)


@pytest.mark.parametrize("name", PLANS)
def test_exchanges_over_replicas_are_those_of_the_step(name):
    found = one(name)
    sent_s = float(found.step.grad_reduce_sent_s + found.step.param_gather_sent_s)
    assert axes(found)["DP"].sent_s == pytest.approx(sent_s, rel=2e-3)


def test_sends_between_stages_are_those_of_the_step():
    """1f1b hides none of them: two a micro-batch."""
    found = one("dense")
    axis = axes(found)["PP"]
    assert axis.sent_s == pytest.approx(float(found.step.pp_comm_s), rel=1e-9)
    assert axis.collectives[0].calls_per_step == 2 * 128 / 4


def test_pipeline_facts_add_up():
    found = one("dense")
    pipe = pipeline_facts(found, None)
    assert pipe.work_s + pipe.imbalance_s + pipe.bubble_s == pytest.approx(pipe.pipeline_s)
    assert pipe.bubble_fraction == pytest.approx(float(found.step.bubble_s) / pipe.pipeline_s)
    slowest = max(stage.forward_s + stage.backward_s for stage in pipe.stages)
    sends_s = float(found.step.pp_comm_s)
    assert pipe.pipeline_s == pytest.approx(pipe.n_micro_batches * slowest + pipe.bubble_s + sends_s, rel=1e-9)


def test_sharded_states_cross_once_and_whole_ones_twice():
    link = CrossDcSection(n_dcs=2, interconnect_bandwidth_gbps=8000, interconnect_latency_s=0.0)
    whole = across_data_centres(one("no-sp"), link)[1]
    assert (whole.reductions_per_step, whole.gathers_per_step) == (1, 0)
    assert whole.gradient_sent_s == pytest.approx(2 * whole.gradient_bytes / 2 / 1e12)
    sharded = across_data_centres(one("dense"), link)[1]
    assert (sharded.reductions_per_step, sharded.gathers_per_step) == (1, 1)
    assert sharded.gradient_sent_s == pytest.approx(sharded.gradient_bytes / 2 / 1e12)
    assert sharded.weights_sent_s == pytest.approx(sharded.weight_bytes / 2 / 1e12)
    everything = across_data_centres(one("fsdp"), link)[1]
    assert (everything.reductions_per_step, everything.gathers_per_step) == (4, 8)


def test_nothing_of_a_slow_link_is_lost():
    """What is sent shows in the step, but for what hides behind passes."""
    found = one("dense", overlap_grad=0.0, overlap_param=0.0)
    link = CrossDcSection(n_dcs=3, interconnect_bandwidth_gbps=100, interconnect_latency_s=0.02)
    after, facts = across_data_centres(found, link)
    assert facts.hidden_s == pytest.approx(0.0, abs=1e-9)
    sent_s = facts.gradient_sent_s + facts.weights_sent_s
    assert float(after.step_time_s - found.step_time_s) == pytest.approx(sent_s)


def test_a_short_exchange_hides_behind_the_passes():
    link = CrossDcSection(n_dcs=2, interconnect_bandwidth_gbps=1e6, interconnect_latency_s=0.0)
    long_passes = one("dense", overlap_grad=1.0, overlap_param=1.0, micro_batch=8.0)
    facts = across_data_centres(long_passes, link)[1]
    assert facts.hidden_s > 0.5 * (facts.gradient_sent_s + facts.weights_sent_s)
    assert facts.exposed_s > 0  # the last bucket has nothing to hide behind
