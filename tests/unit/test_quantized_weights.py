"""Quantized weights beside those in 16 bits: where both are kept, and how much that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlcalc.calculators.params import trained_params
from dlcalc.costmodel.quantized_weights import gathers_quantized
from dlcalc.launch.readers import megatron_lm as reader
from dlcalc.launch.trainers import megatron_lm
from dlcalc.specs.model_registry import load_model
from tests.launch_jobs import job
from tests.megatron_jobs import command_line

FILE = Path("train.sh")
MODEL = load_model("llama3-8b")
LINEAR = trained_params(MODEL) - 2 * MODEL.vocab_size * MODEL.hidden_size - MODEL.hidden_size
"""All but the embedding, the LM head and the last norm."""


def memory(precision, framework="megatron", allow=None, **knobs):
    target = {"megatron": "megatron-lm", "torchtitan": "torchtitan"}[framework]
    return job(target, "llama3-8b", "b200", precision=precision, allow=allow, **knobs).prediction.memory_bytes


@pytest.mark.parametrize(
    ("precision", "knobs", "each"),
    [
        ("fp8", {"dp": 1, "zero_stage": 0, "overlap_param": 0}, 2.0),
        ("mxfp8", {"dp": 1, "zero_stage": 0, "overlap_param": 0}, 2.0625),
        ("nvfp4", {"dp": 1, "zero_stage": 0, "overlap_param": 0}, 1.125),
        ("fp8", {"dp": 8, "zero_stage": 1, "offload_optimizer": 1}, 2.0),
        ("fp8", {"dp": 8, "zero_stage": 1}, 0.0),  # gathered, and kept in fp8 alone
        ("mxfp8", {"dp": 8, "zero_stage": 1}, 0.0),
        ("fp8", {"dp": 8, "zero_stage": 3}, -2 / 32),  # whole layers come and go, two of 32 at a time, in fp8
        ("bf16", {"dp": 1, "zero_stage": 0, "overlap_param": 0}, 0.0),
    ],
)
def test_copies_are_counted_where_both_are_kept(precision, knobs, each):
    """Against a trainer that keeps none, which is what differs."""
    without = memory(precision, allow={"caches_quantized_weights": False}, **knobs)
    assert memory(precision, **knobs) - without == pytest.approx(each * LINEAR, rel=1e-3, abs=1.0)


def test_a_run_without_fp8_gathering_needs_more():
    """--fp8-param-gather left out: its sharded optimizer gathers 16 bits, of which fp8 copies are made."""
    one = job("megatron-lm", "llama3-8b", precision="fp8", dp=8, zero_stage=1)
    text = command_line(megatron_lm.emit(one))
    assert "--fp8-param-gather" in text
    told = reader.read(text, FILE)
    left_out = reader.read(text.replace("--fp8-param-gather", ""), FILE)
    assert "gathers_quantized_weights" not in told.profile
    assert left_out.profile["gathers_quantized_weights"] is False
    more = memory("fp8", dp=8, zero_stage=1, allow={"gathers_quantized_weights": False})
    assert more - memory("fp8", dp=8, zero_stage=1) == pytest.approx(2 * LINEAR, rel=1e-3)


def test_torchtitan_keeps_no_copies():
    """Its float8 layers quantize a gathered weight anew in every pass."""
    knobs = {"dp": 8, "zero_stage": 3, "recompute": "full"}
    copies = {"caches_quantized_weights": True, "gathers_quantized_weights": False}
    assert memory("fp8", "torchtitan", **knobs) == memory("fp8", "torchtitan", allow=copies, **knobs)


def test_the_question_is_the_same_for_one_plan_and_for_many():
    stages = np.arange(4.0)
    for precision in ("bf16", "fp8", "mxfp8", "nvfp4"):
        many = gathers_quantized(precision, zero_stage=stages, offload_optimizer=np.zeros(4))
        one_by_one = [gathers_quantized(precision, zero_stage=int(stage), offload_optimizer=0) for stage in stages]
        assert list(many) == one_by_one
