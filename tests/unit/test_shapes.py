"""Which axes of a grid each term lives on.

A term on an axis too many costs the search its speed; one on an axis too few ignores a knob that it should read. Both
are an argument forgotten somewhere, and neither changes a test of single plans.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from dlcalc.costmodel.estimate import estimate
from tests.scenarios import scenario

AXES = ("mesh", "data", "pipe", "batch", "redo", "tensor")

TIME = {
    "matmul_s": "mesh batch",
    "attention_s": "mesh batch",
    "memory_bound_s": "mesh batch tensor",
    "launch_s": "mesh batch tensor",
    "tp_comm_s": "mesh batch tensor",
    "cp_comm_s": "mesh batch",
    "ep_comm_s": "mesh batch",
    "pp_comm_s": "mesh pipe batch tensor",
    "recompute_s": "mesh pipe batch redo tensor",
    "offload_s": "mesh pipe batch redo tensor",
    "imbalance_s": "mesh pipe batch redo tensor",
    "bubble_s": "mesh pipe batch redo tensor",
    "optimizer_s": "mesh data pipe",
    "overhead_s": "mesh data pipe batch",
    "grad_reduce_sent_s": "mesh data pipe batch",
    "param_gather_sent_s": "mesh data pipe batch",
}
OVERLAP = {
    "grad_limit_s": "mesh data pipe batch",
    "grad_factor": "mesh data pipe batch",
    "gather_limit_s": "mesh data pipe batch",
    "gather_forward_s": "mesh data pipe batch tensor",
    "gather_factor": "mesh data batch",
    "backward_s": "mesh pipe batch redo tensor",
}
MEMORY = {  # beside the axis of stages
    "weights_bytes": "mesh data pipe",
    "gradients_bytes": "mesh data pipe",
    "optimizer_bytes": "mesh data pipe",
    "gathered_weights_bytes": "mesh data",
    "buffers_bytes": "mesh data pipe",
    "activations_bytes": "mesh pipe batch redo tensor",
    "working_set_bytes": "mesh pipe batch redo tensor",
    "stage_buffers_bytes": "mesh pipe batch tensor",
    "overlap_buffers_bytes": "mesh batch tensor",
    "dispatch_buffers_bytes": "",  # there is one of racks only
    "context_bytes": "",
}
TOTALS = {
    "pipeline_s": "mesh pipe batch redo tensor",
    "sent_s": "mesh data pipe batch",
    "states_bytes": "mesh data pipe",
    "passing_bytes": "mesh pipe batch redo tensor",
}


@pytest.fixture(scope="module")
def found():
    case = scenario("dense", "full")
    assert min(case.shape) > 1  # or an axis would not show
    return estimate(case.model, case.hardware, case.recipe, case.plans(0, 2))


def axes_of(array):
    """Names of the axes on which an array is longer than 1."""
    lengths = ((1,) * len(AXES) + np.shape(array))[-len(AXES) :]
    return " ".join(name for name, length in zip(AXES, lengths, strict=True) if length > 1)


def term_names(of):
    return {field.name for field in fields(of) if not field.name.endswith("slack_factor")} - {"overlap"}


@pytest.mark.parametrize("name", TIME)
def test_a_term_of_time_lives_on(found, name):
    assert axes_of(getattr(found.step, name)) == TIME[name]


@pytest.mark.parametrize("name", OVERLAP)
def test_an_overlap_lives_on(found, name):
    assert axes_of(getattr(found.step.overlap, name)) == OVERLAP[name]


@pytest.mark.parametrize("name", MEMORY)
def test_a_term_of_memory_lives_on(found, name):
    assert axes_of(getattr(found.footprint, name)) == MEMORY[name]


@pytest.mark.parametrize("name", TOTALS)
def test_a_total_lives_on(found, name):
    part = found.step if name.endswith("_s") else found.footprint
    assert axes_of(getattr(part, name)) == TOTALS[name]


def test_no_term_is_forgotten_here(found):
    assert term_names(found.step) == TIME.keys()
    assert term_names(found.step.overlap) == OVERLAP.keys()
    assert term_names(found.footprint) == MEMORY.keys()


def test_only_the_two_totals_are_full_size(found):
    assert axes_of(found.step_time_s) == axes_of(found.memory_bytes) == " ".join(AXES)
    assert axes_of(found.mfu_seconds) == "mesh"
    assert axes_of(found.recompute_flops_factor) == "mesh pipe redo"  # layers are counted by chunk


def test_no_refusal_needs_more_than_three_axes(found):
    """Refusals are counted on their own axes, which is why counting costs nothing."""
    assert all(len(axes_of(mask).split()) <= 3 for mask in found.refused.values())
    assert max(mask.size for mask in found.refused.values()) < len(found.plans) / 100
