"""A step as a Chrome trace: opens in ui.perfetto.dev and chrome://tracing.

One process per pipeline stage, with a track for what it computes, one for what it sends to its neighbours, and one for
what it exchanges with its replicas. The pipeline is a replay of every operation; what comes before and after it are the
estimate's terms. Times are in microseconds, as the format wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlcalc.costmodel.anatomy.pipeline import pipeline_time_s
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.plans import value_of
from dlcalc.costmodel.timeline import Event, Timeline

COMPUTE, SEND, REPLICAS = 0, 1, 2
TRACKS = {COMPUTE: "compute", SEND: "pipeline communication", REPLICAS: "data-parallel communication"}
MICROSECONDS = 1e6
CATEGORY = {
    "forward": "forward",
    "backward": "backward",
    "input gradient": "backward",
    "weight gradient": "backward",
    "send": "communication",
}


def chrome_trace(name: str, found: Estimate, timeline: Timeline) -> dict[str, Any]:
    """The trace of one step of a point."""
    terms = {term: float(value) for term, value in found.step.terms().items()}
    step = found.step
    gather_s, reduce_s = float(step.param_gather_sent_s), float(step.grad_reduce_sent_s)
    exposed_gather_s, exposed_reduce_s = terms["param_gather_s"], terms["grad_reduce_s"]
    start_s = max(exposed_gather_s, 0.0)
    end_s = start_s + timeline.end_s
    events: list[dict[str, Any]] = list(_names(name, found, timeline))
    for event in timeline.events:
        events.append(_slice(event, start_s))
    for stage in range(timeline.n_devices):
        events += _around(stage, start_s, end_s, gather_s, reduce_s, exposed_reduce_s, terms)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "run": name,
            "schedule": str(value_of("schedule", float(found.plans.schedule))),
            "step_time_s": float(found.step_time_s),
            "pipeline_time_s": pipeline_time_s(found),
            "replayed_pipeline_time_s": timeline.end_s,
        },
    }


def _names(name: str, found: Estimate, timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Titles of processes and tracks."""
    plan = found.plans
    per_stage = int(plan.tp * plan.cp * plan.dp)
    for stage in range(timeline.n_devices):
        title = f"stage {stage} ({per_stage} devices): {name}"
        yield {"ph": "M", "pid": stage, "name": "process_name", "args": {"name": title}}
        yield {"ph": "M", "pid": stage, "name": "process_sort_index", "args": {"sort_index": stage}}
        for track, label in TRACKS.items():
            yield {"ph": "M", "pid": stage, "tid": track, "name": "thread_name", "args": {"name": label}}
            yield {"ph": "M", "pid": stage, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}


def _slice(event: Event, offset_s: float) -> dict[str, Any]:
    """One operation. Perfetto colours slices by their names without numbers."""
    op = event.op
    entry = _entry(
        event.device,
        SEND if op.kind == "send" else COMPUTE,
        f"{op.kind} {op.micro_batch}",
        CATEGORY[op.kind],
        offset_s + event.start_s,
        offset_s + event.end_s,
    )
    entry["args"] = {"micro_batch": op.micro_batch, "chunk": op.chunk}
    if op.way:
        entry["args"]["direction"] = "upstream"
    return entry


def _around(
    stage: int,
    start_s: float,
    end_s: float,
    gather_s: float,
    reduce_s: float,
    exposed_reduce_s: float,
    terms: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """What a stage exchanges with its replicas before, behind and after the pipeline, and the optimizer.

    What is hidden is drawn behind the pipeline's beginning and end in one piece; under ZeRO 2 and 3 it is really spread
    over all micro-batches.
    """
    done_s = end_s + max(exposed_reduce_s, 0.0)
    if gather_s > 0:
        latest_s = start_s - terms["param_gather_s"] + gather_s
        yield _entry(stage, REPLICAS, "gather parameters", "communication", 0.0, min(latest_s, end_s))
    if reduce_s > 0:
        earliest_s = max(done_s - reduce_s, start_s if gather_s <= 0 else min(start_s + gather_s, end_s))
        yield _entry(stage, REPLICAS, "reduce gradients", "communication", earliest_s, done_s)
    for label in ("optimizer", "overhead"):
        if terms[f"{label}_s"] > 0:
            yield _entry(stage, COMPUTE, label, label, done_s, done_s + terms[f"{label}_s"])
            done_s += terms[f"{label}_s"]


def _entry(pid: int, tid: int, name: str, category: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "cat": category,
        "ts": start_s * MICROSECONDS,
        "dur": max(end_s - start_s, 0.0) * MICROSECONDS,
    }
