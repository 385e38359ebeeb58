"""What a user reads of placed plans: each outcome in its own words, within the terminal's width."""

from __future__ import annotations

import io

import pytest

from dlcalc.report.placed import placed_headline, print_placed
from dlcalc.report.summary import nothing_placed
from dlcalc.report.terminal import make_console

GIB = 2.0**30
KNOBS = {
    "tp": 8, "cp": 1, "pp": 4, "dp": 8, "ep": 1, "etp": 1, "vpp": 5, "schedule": "interleaved", "micro_batch": 1,
    "recompute": "none", "recompute_layers": -1, "zero_stage": 1, "dp_replicate": 1, "sequence_parallel": True,
    "overlap_grad": True, "overlap_param": True, "overlap_tp": False, "overlap_ep": False, "offload_optimizer": False,
    "cp_exchange": "ring", "offload_layers": 0, "split": "even",
}  # fmt: skip


def row(placed_rank, rank, **changes):
    """A plan of 12 s on paper and 12.6 s as placed."""
    return KNOBS | {
        "plan_index": 100 + placed_rank, "rank": rank, "placed_rank": placed_rank, "placement": 0, "step_time_s": 12.0,
        "mfu": 0.47, "memory_bytes": 61 * GIB, "headroom_bytes": 18 * GIB, "placed_step_time_s": 12.6,
        "placed_step_time_low_s": 11.0, "placed_step_time_high_s": 15.0, "placed_mfu": 0.448, "placed_hfu": 0.448,
        "placed_tokens_per_s_per_device": 1000.0, "hops": 158.0, "lower_bound_hops": 151.2, "proved_optimal": False,
        "added_s": {"grad_reduce": 0.6}, "slower_links": {"shard": 0.25},
    } | changes  # fmt: skip


def placed(**changes):
    found = {
        "topology": "fabric.yaml", "n_nodes": 64, "n_free_nodes": 40, "without_data": [], "why_none": None,
        "n_meshes": 12, "n_placements": 3, "not_placed": {},
        "n_faster_on_paper": 0, "order_changed": False, "best": [row(1, 1), row(2, 2)],
        "first_on_paper": row(1, 1), "breakdown": None, "rings": [["a", "b", "c", "d", "e", "f", "g", "h"]] * 4,
        "machines_per_node": 1,
    }  # fmt: skip
    return found | changes


def text(found, width=120):
    stream = io.StringIO()
    console = make_console(stream)
    console.width = width
    print_placed(found, console)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    return " ".join(stream.getvalue().split())


def test_an_order_that_stays():
    said = text(placed())
    assert "#1 on paper with 12.00 s" in said
    assert "The order is the same with and without placement. Placing adds 5.0 % (grad reduce +600 ms; its " in said
    assert "data-parallel rings get 25 % of the NIC)" in said
    assert (
        "Its 4 rings of 8 nodes take 158 hops (no placement has fewer than 152); the first: a, b, c, d, e, f, ..."
        in said
    )


def test_hops_are_between_parts_of_nvlink_domains_that_are_nodes():
    """A ring of 8 machines takes 16 hops at least, one of 2 racks does not."""
    assert "Its 4 rings of 2 nodes (8 machines) take 158 hops" in text(placed(machines_per_node=4))


def test_another_best_plan():
    best = row(1, 7, tp=4, dp=16, slower_links={}, added_s={}, placed_step_time_s=12.0, proved_optimal=True)
    said = text(placed(order_changed=True, best=[best, row(2, 1)], first_on_paper=row(2, 1)))
    assert "tp4 pp4 vpp5 dp16" in said
    assert "#7 on paper" in said
    assert "First on paper: tp8 pp4 vpp5 dp8" in said
    assert "as placed it is #2, 5.0 % behind: placing adds 5.0 %" in said
    assert "The best as placed: placing costs it less than 0.1 %." in said
    assert "(proved optimal)" in said


def test_the_same_best_plan_and_others_behind_it():
    said = text(placed(order_changed=True, best=[row(1, 1), row(2, 5)]))
    assert "The best plan is the same with and without placement, the order after it is not." in said


def test_the_best_plan_on_paper_may_be_one_that_cannot_be_placed():
    said = text(placed(order_changed=True, best=[row(1, 2), row(2, None)], first_on_paper=None, not_placed={"odd": 3}))
    assert "The best plan on paper is none that can be placed." in said
    assert "3 more cannot be placed: odd." in said


@pytest.mark.parametrize(
    ("n", "told"),
    [
        (0, "No other mesh can be faster: all that were not placed are slower than this on paper already."),
        (1, "1 mesh not tried is faster than this on paper; --place-meshes 13 would try it."),
        (30, "30 meshes not tried are faster than this on paper; --place-meshes 42 would try them."),
    ],
)
def test_whether_more_meshes_could_help(n, told):
    assert told in text(placed(n_faster_on_paper=n))


def test_nothing_placed_and_nodes_without_data():
    found = placed(why_none="it needs 64 nodes and 40 are free", best=[], without_data=[f"n{n}" for n in range(8)])
    assert placed_headline(found) == (
        "nothing, since it needs 64 nodes and 40 are free (40 of 64 nodes of fabric.yaml are free; n0, n1, n2, n3, n4, "
        "n5 and 2 more are without topology data, no candidates)."
    )
    assert "Best" not in text(found)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_width(width):
    assert "Placed:" in text(placed(), width)


def test_only_a_study_of_which_nothing_could_be_placed_is_an_error():
    none, some = placed(why_none="no room", best=[]), placed()
    summary = {"scenarios": [{"name": "one", "placed": none}, {"name": "two", "placed": some}]}
    assert nothing_placed(summary) is None
    assert nothing_placed({"scenarios": [{"name": "one"}]}) is None
    error = nothing_placed({"scenarios": [{"name": "one", "placed": none}]})
    assert str(error) == "nothing could be placed on fabric.yaml: one: no room"
    assert error.exit_code == 3
