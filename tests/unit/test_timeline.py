"""The replay of a step against the closed forms that the estimate uses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.calculators.schedule import SCHEDULES, bubble_time_s, in_flight_micro_batches_count
from dlcalc.costmodel.anatomy.pipeline import pipeline_time_s
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.every_stage import ChunkTimes, chunks_of, device_times
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.timeline import CannotRunError, Timeline, orders_of, pipeline_timeline, replay
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe

CHUNKS = {"interleaved": 2, "zb-v": 2}


def point(schedule: str, pp: int, vpp: int | None = None, **more: float | str) -> Plans:
    return Plans.point(**{"dp": 2, **more}, schedule=schedule, pp=pp, vpp=vpp or CHUNKS.get(schedule, 1))


def found(plan: Plans, micro_batches: int, model: str = "llama3-70b", hardware: str = "h100") -> Estimate:
    batch = int(plan.dp) * micro_batches
    recipe = Recipe(seq_len=4096, global_batch=batch, precision="bf16", framework=load_framework("megatron"))
    return estimate(load_model(model), load_hardware(hardware), recipe, plan)


def equal_stages(schedule: str, pp: int, micro_batches: int, vpp: int, f: float, i: float, w: float) -> Timeline:
    """A replay where a micro-batch takes ``f``, ``i`` and ``w`` on every device."""
    plan = point(schedule, pp, vpp)
    model = load_model("llama3-70b")
    share = np.full(pp * vpp, 1.0 / vpp)
    times = ChunkTimes(share * f, share * (i + w), share * w)
    return replay(orders_of(plan, micro_batches), chunks_of(model, plan), times, send_s=0.0, sends_block=False)


seconds = st.floats(0.5, 2.0)


@given(
    schedule=st.sampled_from(["1f1b", "gpipe", "zb-h1", "interleaved", "zb-v"]),
    pp=st.integers(2, 5),
    rounds=st.integers(2, 3),
    w=seconds,
    f_over_w=st.floats(1, 2),
    i_over_f=st.floats(1, 2),
)
def test_equal_stages_take_what_the_closed_forms_say(schedule, pp, rounds, w, f_over_w, i_over_f):
    """Where those are exact: w <= f <= b - w."""
    m, f = pp * rounds, w * f_over_w
    i = f * i_over_f
    vpp = CHUNKS.get(schedule, 1)
    bubble = bubble_time_s(
        SCHEDULES.index(schedule), pp=pp, vpp=vpp, n_micro_batches=m, forward_s=f, backward_s=i + w, weight_grad_s=w
    )
    took = equal_stages(schedule, pp, m, vpp, f, i, w).end_s
    assert took == pytest.approx(m * (f + i + w) + float(bubble), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_more_is_in_flight_than_memory_counts(schedule):
    """Micro-batches that have gone forward and not yet all the way back, on the first device."""
    pp, m, vpp = 4, 16, CHUNKS.get(schedule, 1)
    events = equal_stages(schedule, pp, m, vpp, 1.0, 1.0, 1.0).events
    whole = schedule not in ("zb-h1", "zb-v", "dualpipe")
    held = peak = 0
    for event in sorted((e for e in events if e.device == 0), key=lambda e: (e.end_s, e.op.kind != "forward")):
        ends = event.op.kind == ("backward" if whole else "weight gradient") or (
            not whole and event.op.kind == "backward"
        )
        held += (event.op.kind == "forward") - ends
        peak = max(peak, held)
    counted = float(
        in_flight_micro_batches_count(SCHEDULES.index(schedule), pp=pp, vpp=vpp, n_micro_batches=m, stage=0)
    )
    assert peak <= counted * vpp + 1e-9
    assert peak >= counted * vpp - 1


@pytest.mark.parametrize(("model", "ep"), [("llama3-70b", 1), ("deepseek-v2", 8)])
@pytest.mark.parametrize(
    ("schedule", "vpp", "too_long"),
    [
        # at worst, by the docstring of pipeline_time_s, with stages within 20% of each other
        ("1f1b", 1, 0.07),
        ("gpipe", 1, 0.07),
        ("interleaved", 5, 0.12),
        ("zb-h1", 1, 0.06),
        ("zb-v", 2, 0.06),
        ("dualpipe", 1, 0.12),
    ],
)
def test_a_real_pipeline_takes_what_the_estimate_says(model, ep, schedule, vpp, too_long):
    """The LM head makes the last stage longer; the estimate may be too long by what its docstring says."""
    mesh = {"tp": 8, "dp": 2 * ep, "ep": ep, "sequence_parallel": 1}
    plan = point(schedule, 4, vpp, split="embedding_and_loss", recompute="selective", **mesh)
    one = found(plan, 16, model)
    replayed, estimated = pipeline_timeline(one).end_s, pipeline_time_s(one)
    assert -0.015 <= estimated / replayed - 1 <= too_long


def test_a_pipeline_of_one_stage_is_exact():
    one = found(point("1f1b", 1, tp=8, sequence_parallel=1), 8)
    assert pipeline_timeline(one).end_s == pytest.approx(pipeline_time_s(one), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_happens_once_and_in_order(schedule):
    vpp = CHUNKS.get(schedule, 1)
    one = found(point(schedule, 4, tp=8, sequence_parallel=1), 16)
    events = pipeline_timeline(one).events
    passes = [event.op for event in events if event.op.kind != "send"]
    assert len(set(passes)) == len(passes)
    assert sum(op.kind == "forward" for op in passes) == 16 * 4 * vpp
    assert sum(op.kind in ("backward", "input gradient") for op in passes) == 16 * 4 * vpp
    assert sum(op.kind == "input gradient" for op in passes) == sum(op.kind == "weight gradient" for op in passes)
    for device in range(4):
        own = sorted((e.start_s, e.end_s) for e in events if e.device == device and e.is_blocking)
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(own))


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp", "micro_batches"),
    [("interleaved", 4, 2, 14), ("dualpipe", 3, 1, 12), ("dualpipe", 4, 1, 6), ("zb-v", 4, 1, 16), ("gpipe", 4, 2, 16)],
)
def test_a_schedule_that_cannot_run_says_so(schedule, pp, vpp, micro_batches):
    with pytest.raises(CannotRunError):
        orders_of(point(schedule, pp, vpp), micro_batches)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("split", ["even", "embedding_and_loss"])
def test_three_stages_bound_all_others(schedule, split):
    """What the estimate assumes of the first, the fullest and the last stage holds of every stage."""
    one = found(point(schedule, 8, tp=4, sequence_parallel=1, split=split), 16)
    stages = chunks_of(one.model, one.plans).stages
    assert float(np.sum(stages.layers)) == one.model.n_layers * (2 if schedule == "dualpipe" else 1)
    every, bounding = device_times(one, stages), device_times(one, one.stages)
    for term in ("forward_s", "backward_s"):
        assert np.max(getattr(every, term)) == pytest.approx(np.max(getattr(bounding, term)), rel=1e-12)
