"""Bytes that leave a node in a step, each counted by hand."""

from __future__ import annotations

import math

import pytest

from dlcalc.calculators.params import total_params
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.node_traffic import NodeTraffic, node_traffic
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe

SEQ_LEN, GLOBAL_BATCH = 4096, 128
PER_PARAMETER = 4 + 2  # Megatron reduces gradients in fp32 and gathers weights in 16 bits


def traffic(model: str, framework: str = "megatron", **knobs: float) -> NodeTraffic:
    recipe = Recipe(seq_len=SEQ_LEN, global_batch=GLOBAL_BATCH, precision="bf16", framework=load_framework(framework))
    plan = Plans.point(zero_stage=1, **knobs)
    return node_traffic(estimate(load_model(model), load_hardware("h100"), recipe, plan))


def test_a_ring_over_four_nodes_sends_three_quarters_of_all_out_of_each():
    """tp = 8 fills a node, which thus holds the whole model; its eight rings together carry it."""
    found = traffic("llama3-8b", tp=8, dp=4, sequence_parallel=1)
    held = float(total_params(load_model("llama3-8b")))
    assert found.dp_bytes == pytest.approx(PER_PARAMETER * held * 3 / 4, rel=2e-3)  # norms are held whole by every rank
    assert found == NodeTraffic(dp_bytes=found.dp_bytes)


def test_a_ring_that_has_several_ranks_on_a_node_enters_it_once():
    """tp = 1: one ring of 32 ranks, eight of them on each node."""
    held = float(total_params(load_model("llama3-8b")))
    assert traffic("llama3-8b", dp=32).dp_bytes == pytest.approx(PER_PARAMETER * held * 31 / 32, rel=1e-9)


def test_stages_send_every_activation_and_its_gradient():
    """32 micro-batches a step and replica, one replica on a node: 16 bits x 4096 tokens x 4096 wide, both ways."""
    found = traffic("llama3-8b", tp=8, pp=4, dp=4, sequence_parallel=1)
    assert found.pp_bytes == 2 * (GLOBAL_BATCH / 4) * 2 * SEQ_LEN * 4096


def test_tokens_for_experts_elsewhere_leave_the_node():
    """ep = 16 over two nodes: half of the 16 ranks are elsewhere; dispatch and combine, forward and backward."""
    assert traffic("mixtral-8x7b", dp=16, ep=8).ep_bytes == 0  # within a node
    wide = traffic("qwen3-30b-a3b", dp=16, ep=16)
    model = load_model("qwen3-30b-a3b")
    routed_bytes = 2 * SEQ_LEN * model.top_k * model.hidden_size
    assert wide.ep_bytes == pytest.approx(8 * (GLOBAL_BATCH / 16) * 4 * model.n_moe_layers * routed_bytes / 2)


def test_a_dispatcher_that_knows_nodes_sends_a_token_once_to_each():
    """Eight of 128 experts on two nodes: all but one draw in some 300 have some on both, instead of eight copies."""
    plan = {"dp": 16.0, "ep": 16.0}
    once, each = traffic("qwen3-30b-a3b", "megatron_bridge", **plan), traffic("qwen3-30b-a3b", **plan)
    assert once.ep_bytes == pytest.approx(each.ep_bytes * 2 * (1 - math.comb(64, 8) / math.comb(128, 8)) / 8)
