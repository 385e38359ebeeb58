"""The Python interface gives what the commands give."""

from __future__ import annotations

import pytest

import dlcalc
from dlcalc.costmodel.plans import KNOBS
from dlcalc.errors import DlcalcError, UnknownNameError

PLAN = {"tp": 4, "pp": 2, "dp": 2, "sequence_parallel": True, "micro_batch": 1}


def test_an_estimate_explains_its_step():
    found = dlcalc.estimate("llama3-8b", "h100", seq_len=8192, global_batch=128, **PLAN)
    assert found.devices == 16
    assert found.refused == ()
    assert sum(found.time_s.values()) == pytest.approx(found.step_time_s, rel=1e-9)
    assert sum(found.memory_terms_bytes.values()) == pytest.approx(found.memory_bytes, rel=1e-9)
    assert found.tokens_per_s_per_device == pytest.approx(128 * 8192 / found.step_time_s / 16)


def test_a_plan_that_cannot_run_says_why():
    found = dlcalc.estimate("llama3-70b", "h100", seq_len=8192, global_batch=128, tp=3, dp=2)
    assert "tp does not divide the attention heads" in found.refused
    assert "needs more memory than the device has" in found.refused


def test_the_search_agrees_with_the_estimate_of_its_best_plan():
    answer = dlcalc.search(
        {
            "study": "api",
            "model": "llama3-8b",
            "hardware": "h100",
            "cluster": {"devices": 16},
            "recipe": {"seq_len": 8192, "global_batch": 128},
        }
    )
    best = dict(answer["scenarios"][0]["best"][0])
    knobs = {k: best[k] for k in best if k in KNOBS}
    found = dlcalc.estimate("llama3-8b", "h100", seq_len=8192, global_batch=128, **knobs)
    assert (found.step_time_s, found.mfu, found.memory_bytes) == (
        best["step_time_s"],
        best["mfu"],
        best["memory_bytes"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tpp": 4}, "unknown knob 'tpp'"),
        ({"recompute": "fulll"}, "did you mean full"),
        ({"precision": "nvfp4"}, "h100 has no nvfp4"),
        ({"framework": "megatronn"}, "did you mean megatron"),
    ],
)
def test_a_mistake_is_named(arguments, message):
    with pytest.raises((UnknownNameError, DlcalcError), match=message):
        dlcalc.estimate("llama3-8b", "h100", seq_len=8192, global_batch=128, **arguments)
