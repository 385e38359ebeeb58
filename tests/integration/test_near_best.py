"""However many plans are near the best: a bounded number is kept by name, and all are counted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from dlcalc.results.files import MANIFEST_NAME, SUMMARY_NAME
from dlcalc.search import executors
from dlcalc.search import found as searches
from dlcalc.search.found import NEAR_BEST
from dlcalc.workflows.search import run_search
from dlcalc.workflows.search_summary import NEAR_ROWS
from tests.studies import SMALL

MOST = 2


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "WORTH_A_SHARD", 1 << 11)
    monkeypatch.setattr(searches, "NEAR_MOST", MOST)
    file = tmp_path / "small.yaml"
    file.write_text(
        SMALL.format(
            study="small", model="llama3-8b", hardware="h100", devices="[16, 32]", space="{cp: 1, micro_batch: [1, 2]}"
        )
    )
    return file


def near_by_rows(folder):
    """By scenario, how many rows are within 2 % of its fastest."""
    rows = pd.read_parquet(folder).astype({"scenario": str})
    return {
        name: int((own.step_time_s <= NEAR_BEST * own.step_time_s.min()).sum())
        for name, own in rows.groupby("scenario")
    }


@pytest.mark.parametrize("keep", ["feasible", "pareto", 50])
def test_all_that_are_near_are_counted_and_few_are_named(space, tmp_path, keep):
    run_search(space, out=tmp_path / "all", keep="feasible", jobs=1)
    expected = near_by_rows(tmp_path / "all")
    assert min(expected.values()) > MOST
    summary = run_search(space, out=tmp_path / "r", keep=keep, jobs=1)
    assert {one["name"]: one["n_within_2_percent"] for one in summary["scenarios"]} == expected
    assert all(len(one["within_2_percent"]) == min(MOST, NEAR_ROWS) for one in summary["scenarios"])
    shards = json.loads((tmp_path / "r" / MANIFEST_NAME).read_text())["shards"]
    for position in (0, 1):
        named = [shard["state"]["near"][0] for shard in shards if shard["scenario"] == position]
        assert len(named) > 3
        assert len(np.concatenate(named)) <= MOST


def test_what_is_counted_is_the_same_in_any_order_and_after_resuming(space, tmp_path):
    whole = run_search(space, out=tmp_path / "one", keep="feasible", jobs=1)
    run_search(space, out=tmp_path / "two", keep="feasible", jobs=2)
    for number in (0, 3):
        (tmp_path / "two" / f"s001-{number:06d}.parquet").unlink()
    again = run_search(space, out=tmp_path / "two", keep="feasible", jobs=1, resume=True)
    for one, other in zip(whole["scenarios"], again["scenarios"], strict=True):
        assert one == other
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir() if file.name != SUMMARY_NAME}
    assert {name: (tmp_path / "two" / name).read_bytes() for name in files} == files


def test_a_count_that_stops_at_what_was_kept_says_so(space, tmp_path):
    kept_two = run_search(space, out=tmp_path / "two", keep=2, jobs=1)["scenarios"][0]
    kept_all = run_search(space, out=tmp_path / "all", keep="feasible", jobs=1)["scenarios"][0]
    assert kept_two["n_not_told_apart"] == 2 < kept_all["n_not_told_apart"] < 1000
    assert kept_two["more_not_told_apart"]
    assert "more_not_told_apart" not in kept_all
