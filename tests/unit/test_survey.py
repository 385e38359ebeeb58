"""The rows of a result looked at batch by batch: the same whatever the batches are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlcalc.errors import DlcalcError
from dlcalc.results.reader import Result, open_result
from dlcalc.workflows.survey import leaders, ranks_of, rows_at, survey
from tests.studies import searched


class InSmallBatches(Result):
    """The same rows, 37 at a time."""

    def batches(self, scenario=None, *, columns=None, n_rows=37):
        return super().batches(scenario, columns=columns, n_rows=n_rows)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    space = "{cp: [1, 2], micro_batch: [1, 2], recompute: [none, full], zero_stage: [0, 1]}"
    return open_result(searched(tmp_path_factory.mktemp("studies"), space=space, keep="all"))


@pytest.fixture(scope="module")
def small(result) -> Result:
    return InSmallBatches(Path(result.directory), result.manifest)


def name_and_capacity(result):
    (name,) = result.scenarios
    return name, 0.95 * result.origin(name).hardware.device.hbm_bytes


@pytest.mark.parametrize("by", ["step_time_s", "memory_bytes"])
@pytest.mark.parametrize("count", [1, 5, 10_000_000])
def test_leaders_do_not_depend_on_batches(result, small, by, count):
    name, capacity = name_and_capacity(result)
    whole, parts = (leaders(one, name, count, by=by, capacity_bytes=capacity) for one in (result, small))
    assert whole.index.tolist() == parts.index.tolist()
    assert whole.n_rows > whole.n_fit == parts.n_fit > 300
    assert len(whole.index) == min(count, whole.n_fit)
    assert (whole.fastest_s, whole.best_mfu) == (parts.fastest_s, parts.best_mfu)
    rows = [row for row in result.rows(name) if row["memory_bytes"] <= capacity]
    rows.sort(key=lambda row: (row[by], row["step_time_s"], row["plan_index"]))
    assert whole.index.tolist() == [row["plan_index"] for row in rows[:count]]


def test_a_survey_does_not_depend_on_batches(result, small):
    name, capacity = name_and_capacity(result)
    found = leaders(result, name, 1, by="step_time_s", capacity_bytes=capacity)
    asked = {"capacity_bytes": capacity, "memory_step_bytes": capacity / 90, "told_apart_s": 1.1 * found.fastest_s}
    whole, parts = (survey(one, name, found, **asked) for one in (result, small))
    assert whole.meshes == parts.meshes
    assert whole.front.tolist() == parts.front.tolist()
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() + whole.n_beyond == found.n_rows
    assert (whole.n_near, whole.n_not_told_apart) == (parts.n_near, parts.n_not_told_apart)
    assert sum(mesh.n_rows for mesh in whole.meshes.values()) == found.n_fit
    assert min(mesh.step_time_s for mesh in whole.meshes.values()) == found.fastest_s


def test_ranks_are_places_in_the_order_of_the_leaders(result, small):
    name, capacity = name_and_capacity(result)
    order = leaders(result, name, 10_000_000, by="step_time_s", capacity_bytes=capacity).index.tolist()
    chosen = [order[place] for place in (0, 17, len(order) // 2, len(order) - 1)]
    rows = rows_at(small, name, chosen)
    assert sorted(rows) == sorted(chosen)
    for one in (result, small):
        ranks = ranks_of(one, name, rows.values(), by="step_time_s", capacity_bytes=capacity)
        assert ranks == {index: order.index(index) + 1 for index in chosen}


def test_a_row_that_is_gone_is_said_to_be(result):
    with pytest.raises(DlcalcError, match="are gone"):
        rows_at(result, result.scenarios[0], [10**12])
