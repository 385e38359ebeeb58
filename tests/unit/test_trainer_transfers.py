"""What a trainer's way of sending and laying out tensors costs: ratios that follow from counting."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.calculators.stages import stage_layers_count
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.stage_params import embedding_copies_count, stage_params
from dlcalc.costmodel.stage_times import model_times
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe

MODEL, HARDWARE = load_model("gpt3-175b"), load_hardware("a100_80gb")


def terms(profile, framework="megatron_legacy", model=MODEL, **plan):
    recipe = Recipe(seq_len=2048, global_batch=256, precision="bf16", framework=load_framework(framework, profile))
    found = estimate(model, HARDWARE, recipe, Plans.point(schedule="1f1b", **plan))
    return {name.removesuffix("_s"): float(np.asarray(value)) for name, value in found.step.terms().items()}


PIPELINE = {"tp": 8, "pp": 8, "dp": 2, "recompute": "full", "zero_stage": 0}
UNTIED = MODEL.model_copy(update={"tied_embeddings": False})
MTP = UNTIED.model_copy(update={"mtp_layers": 1})
SHARED_GB = 12288 * MODEL.vocab_size / 8 / 1e9
"""Elements of an eighth of the embedding."""


def test_both_ends_of_a_pipeline_add_up_the_gradients_of_a_shared_embedding():
    """Four bytes an element over a NIC of 25 GB/s, at 0.9 of that."""
    tied, untied = (terms({}, model=model, **PIPELINE)["grad_reduce"] for model in (MODEL, UNTIED))
    assert tied - untied == pytest.approx(SHARED_GB * 4 / 25 / 0.9, rel=0.01)
    alone = PIPELINE | {"pp": 1}
    one_matrix, two = (terms({}, model=model, **alone)["grad_reduce"] for model in (MODEL, UNTIED))
    assert one_matrix < two  # nothing to add up


def test_multi_token_prediction_needs_the_embedding_where_the_loss_is():
    """So does a tied head, which has it instead of its own; a V has both ends on one device."""
    copies = {
        name: stage_params(model, plans, layers(model, plans)).stage_dense[-1]
        for name, model in {"tied": MODEL, "untied": UNTIED, "mtp": MTP}.items()
        for plans in [Plans.point(**PIPELINE)]
    }
    one_layer = MTP.model_copy(update={"vocab_size": 8})
    plans = Plans.point(**PIPELINE)
    without = stage_params(one_layer, plans, layers(one_layer, plans)).stage_dense[-1]
    assert copies["tied"] == pytest.approx(copies["untied"], rel=1e-6)
    assert copies["mtp"] - without == pytest.approx(2 * (SHARED_GB * 1e9 - 12288), rel=1e-6)
    folded = Plans.point(**PIPELINE | {"schedule": "zb-v", "vpp": 2})
    assert not np.any(embedding_copies_count(MTP, layers(MTP, folded)))


def layers(model, plans):
    where = {knob: getattr(plans, knob) for knob in ("pp", "vpp", "schedule", "split")}
    return stage_layers_count(model, **where)


def test_transfers_in_turn_take_twice_those_that_cross():
    crossing = terms({"sends_and_receives_in_turn": False}, model=UNTIED, **PIPELINE)
    in_turn = terms({"sends_and_receives_in_turn": True}, model=UNTIED, **PIPELINE)
    assert in_turn["pp_comm"] == pytest.approx(2 * crossing["pp_comm"])
    assert in_turn["matmul"] == crossing["matmul"]


def test_scattered_sends_cross_the_fabric_once_and_are_gathered_inside_the_node():
    """An eighth of the bytes over the NIC; the gather runs at the node's rate, some ten times the NIC's."""
    whole = terms({"scatters_stage_sends": False}, **PIPELINE)["pp_comm"]
    scattered = terms({"scatters_stage_sends": True}, **PIPELINE)["pp_comm"]
    assert whole / 8 < scattered < whole / 2


def test_sequence_parallel_ranks_have_scattered_already():
    plan = {**PIPELINE, "sequence_parallel": True}
    assert terms({"scatters_stage_sends": True}, **plan) == terms({"scatters_stage_sends": False}, **plan)


@pytest.mark.parametrize(("micro_batch", "copies"), [(1, False), (2, True)])
def test_one_sequence_lies_contiguously_whatever_is_outermost(micro_batch, copies):
    plan = {"tp": 8, "pp": 8, "dp": 2, "micro_batch": micro_batch, "sequence_parallel": True}
    batch, sequence = (
        terms({"batch_outermost": outermost}, framework="megatron", **plan)["tp_comm"] for outermost in (True, False)
    )
    assert (batch > sequence) == copies
    assert batch >= sequence


def test_without_overlap_the_input_gradient_is_exchanged_in_the_open():
    plan = {"tp": 8, "pp": 8, "dp": 2, "sequence_parallel": True}
    hidden, exposed = (
        terms({"overlaps_input_grad": on}, framework="megatron", **plan)["tp_comm"] for on in (True, False)
    )
    assert exposed > hidden


def test_memory_that_comes_back_is_that_of_the_largest_layer_on_a_stage():
    """DeepSeek-V3 has its dense layers on the first stage: there an MLP 18,432 wide comes back, elsewhere nothing."""
    model, h100 = load_model("deepseek-v3"), load_hardware("h100")
    recipe = Recipe(seq_len=4096, global_batch=256, precision="bf16", framework=load_framework("megatron_bridge"))
    plan = {"pp": 4, "dp": 16, "ep": 16, "split": "embedding_and_loss", "schedule": "1f1b", "zero_stage": 1}
    none, mlp = (
        estimate(model, h100, recipe, Plans.point(**plan, recompute=mode)).footprint.working_set_bytes.ravel()
        for mode in ("none", "mlp")
    )
    per_token = 2 * (7168 + 3 * 18432)  # its input, gate, up and their product, in 16 bits
    assert mlp[0] - none[0] == pytest.approx(4096 * per_token, rel=0.01)
    assert mlp[1] == none[1]


@pytest.mark.parametrize("mode", ["none", "moe"])
def test_experts_that_run_again_are_launched_again(mode):
    """Where the host alone decides, running experts again takes their launches once more, and no others."""
    model, h100 = load_model("qwen3-30b-a3b"), load_hardware("h100")
    framework = load_framework("megatron_bridge", {"host_launch_us": 80_000.0})
    recipe = Recipe(seq_len=256, global_batch=8, precision="bf16", framework=framework)
    found = estimate(model, h100, recipe, Plans.point(dp=8, micro_batch=1, recompute=mode, zero_stage=1))
    times = model_times(model, found.plans, found.links, found.machine)
    attention, experts = (float(times.kinds[kind].host_s) for kind in ("full", "moe"))
    again_s = (mode == "moe") * model.n_layers * experts
    assert float(found.step.recompute_s) == pytest.approx(again_s, rel=1e-6)
    assert experts > 10 * attention  # 128 on one device
