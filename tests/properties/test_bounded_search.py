"""Whatever the space: what is found without working out every plan is what working out every plan finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search import bounded
from dlcalc.search import found as searches
from dlcalc.search.exhaustive import count_within, evaluate, search_block
from dlcalc.search.found import NEAR_BEST, Found
from dlcalc.search.pareto import ParetoFilter, front
from dlcalc.search.study import scenarios_of
from dlcalc.specs.space import SpaceSpec
from tests.scenarios import EVERYTHING

REGISTRY = HardwareRegistry()
MOST_PLANS = 300_000


def some(*values):
    """A few of the values, in any order."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


spaces = st.fixed_dictionaries(
    {
        "study": st.just("drawn"),
        "model": st.sampled_from(["llama3-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2", "llama3-70b"]),
        "hardware": st.sampled_from(["a100_40gb", "h100", "b200", "mi300x", "trn2"]),
        "cluster": st.fixed_dictionaries({"devices": st.sampled_from([4, 8, 12, 16, 32, 64])}),
        "recipe": st.fixed_dictionaries(
            {
                "seq_len": st.sampled_from([2048, 8192, 32768]),
                "global_batch": st.sampled_from([48, 64, 128, 512]),
                "framework": st.sampled_from(["megatron", "torchtitan", "deepspeed"]),
                "profile": st.sampled_from([{}, EVERYTHING]),
            }
        ),
        "space": st.fixed_dictionaries(
            {},
            optional={
                "zero_stage": some(0, 1, 2, 3),
                "dp_replicate": st.just("full"),
                "micro_batch": some(1, 2, 3, 4, 8),
                "schedule": st.just("full"),
                "recompute": st.just("full"),
                "recompute_layers": some("all", 1, 2, 4),
                "offload_layers": some(0, 1, 4),
                "overlap_grad": st.just("full"),
                "overlap_param": st.just("full"),
                "offload_optimizer": st.just("full"),
                "sequence_parallel": st.just("full"),
                "split": st.just(["even", "embedding_and_loss"]),
            },
        ),
        "constraints": some("tp <= node", "pp * vpp <= 8", "micro_batches >= pp", "zero_stage < 3 or pp == 1"),
        "memory_headroom": st.sampled_from([0.0, 0.1, 0.5]),
    }
)


def drawn_scenario(space):
    """The scenario of a drawn space; one that is refused as a whole, or has too many plans, is drawn again."""
    try:
        (case,) = scenarios_of(SpaceSpec.model_validate(space), Path(), REGISTRY)
    except DlcalcError:
        case = None
    assume(case is not None and case.n_plans <= MOST_PLANS)
    return case


class Everything:
    """Every plan worked out, flat."""

    def __init__(self, case):
        every = evaluate(case, 0, case.shape[0])
        self.step, self.memory, self.runs = (
            np.broadcast_to(values, case.shape).ravel()
            for values in (every.step_time_s, every.memory_bytes, every.runs)
        )
        self.fits = self.runs & (self.memory <= every.capacity_bytes)
        self.refused = Counter({k: np.count_nonzero(np.broadcast_to(m, case.shape)) for k, m in every.refused.items()})
        self.refused[OUT_OF_MEMORY] = np.count_nonzero(self.runs & ~self.fits)

    def best(self, which, count, key):
        index = np.flatnonzero(which)
        order = (index, self.step[index]) if key == "step_time" else (index, self.step[index], self.memory[index])
        return index[np.lexsort(order)][:count].tolist()


def searched(case, block_rows, *, keep, key, what):
    """A search in blocks of some mesh rows; of the front, what the filter let through."""
    found, passed = Found(), []
    pareto = ParetoFilter() if what == "pareto" else None
    for start in range(0, case.shape[0], block_rows):
        stop = min(start + block_rows, case.shape[0])
        known = {"bound": found.bound(keep, key), "fastest": found.fastest}
        rows = None if what == "top" else passed.append
        part = search_block(case, start, stop, keep=keep, key=key, rows=rows, what=what, pareto=pareto, **known)
        found.add(part, keep=keep, key=key)
    return found, passed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    space=spaces,
    block_rows=st.sampled_from([1, 3, 8, 1000]),
    keep=st.sampled_from([1, 10, 300]),
    key=st.sampled_from(["step_time", "memory"]),
    what=st.sampled_from(["top", "pareto"]),
)
def test_bounds_change_nothing(space, block_rows, keep, key, what):
    case = drawn_scenario(space)
    every = Everything(case)
    found, passed = searched(case, block_rows, keep=keep, key=key, what=what)
    assert found.n_plans == case.n_plans
    assert found.n_fit == np.count_nonzero(every.fits)
    assert found.n_refused == case.n_plans - found.n_fit
    assert +found.refused == +every.refused
    assert found.leaders.index.tolist() == every.best(every.fits, keep, key)
    event("something fits" if found.n_fit else "something runs" if every.runs.any() else "nothing runs")
    if found.n_fit:
        near = every.fits & (every.step <= NEAR_BEST * every.step[every.fits].min())
        assert sorted(found.near.index.tolist()) == np.flatnonzero(near).tolist()
    else:
        assert found.misses.index.tolist() == every.best(every.runs, 5, "memory")
    if what == "pareto" and found.n_fit:
        candidates = np.unique(np.concatenate([columns["plan_index"] for columns in passed]))
        fit = np.flatnonzero(every.fits)
        front_of_all = fit[front(every.step[fit], every.memory[fit])]
        kept = candidates[front(every.step[candidates], every.memory[candidates])]
        assert kept.tolist() == front_of_all.tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(space=spaces, block_rows=st.sampled_from([1, 5, 1000]), most=st.sampled_from([1, 4, 50]), data=st.data())
def test_a_few_are_kept_near_the_best_and_all_are_counted(space, block_rows, most, data):
    case = drawn_scenario(space)
    every = Everything(case)
    wide = 1.5  # so that many are near
    key = data.draw(st.sampled_from(["step_time", "memory"]))
    what = data.draw(st.sampled_from(["top", "feasible"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searches, "NEAR_MOST", most)
        for module in (searches, bounded):
            patch.setattr(module, "NEAR_BEST", wide)
        found, _ = searched(case, block_rows, keep=3, key=key, what=what)
    near = every.fits & (every.step <= wide * every.step[every.fits].min(initial=np.inf))
    assert found.near.index.tolist() == every.best(near, most, "step_time")
    if np.count_nonzero(near) > most:
        assert found.lacks_near
        blocks = [(start, min(start + block_rows, case.shape[0])) for start in range(0, case.shape[0], block_rows)]
        counts = [count_within(case, start, stop, wide * found.fastest) for start, stop in blocks]
        assert sum(counts) == np.count_nonzero(near)
        event("more than are kept")
    elif not found.lacks_near:
        assert found.n_near == np.count_nonzero(near)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(space=spaces, block_rows=st.sampled_from([1, 5, 1000]))
def test_rows_of_all_that_fit_come_in_the_order_of_the_space(space, block_rows):
    case = drawn_scenario(space)
    every = Everything(case)
    found, passed = searched(case, block_rows, keep=10, key="step_time", what="feasible")
    index = np.concatenate([columns["plan_index"] for columns in passed]) if passed else np.empty(0)
    assert index.tolist() == np.flatnonzero(every.fits).tolist()
    assert found.leaders.index.tolist() == every.best(every.fits, 10, "step_time")
    if len(index):
        steps = np.concatenate([columns["step_time_s"] for columns in passed])
        np.testing.assert_array_equal(steps, every.step[every.fits])
