"""What the topology commands say of placements that no example makes."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest

from dlcalc.report.terminal import make_console
from dlcalc.report.topology import print_assignment, waiting
from dlcalc.report.topology_facts import Assignment
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape, Placement

RINGS = tuple((f"n{2 * ring:02}", f"n{2 * ring + 1:02}") for ring in range(20))
FABRIC = Fabric(tuple(FabricNode(f"n{n:02}", (f"leaf{n // 2}", "top")) for n in range(40)), source="here")
PLACED = Placement(JobShape(tp=8, pp=20, dp=2), RINGS, "hops", 80, 76, 80, 76, proved_optimal=False)


def said(placement: Placement, *, verbose: bool = False, fabric: Fabric = FABRIC, **more: object) -> str:
    out = io.StringIO()
    found = Assignment(fabric, placement, placement.node_order, {}, **more)
    print_assignment(found, make_console(out), verbose=verbose)
    return out.getvalue()


def test_a_gap_is_never_silent():
    assert "80 hops over 20 rings: no placement has less than 76 hops, so at most 5.26 % above the best." in said(
        PLACED
    )
    proved = replace(PLACED, proved_optimal=True)
    assert "80 hops over 20 rings: proved to be the best." in said(proved)


def test_another_objective_is_named_with_its_unit():
    longest = replace(PLACED, objective="worst_ring", cost=4, lower_bound=4, lower_bound_hops=None, proved_optimal=True)
    assert "80 hops over 20 rings, chosen for hops of the longest ring (4 hops): proved" in said(longest)
    timed = replace(PLACED, objective="seconds", cost=0.5, lower_bound=0.4, lower_bound_hops=None)
    text = " ".join(said(timed).split())
    assert "chosen for time on the links (500.0 ms a step): no placement has less than 400.0 ms a step" in text
    assert "at most 25.00 % above the best" in text


def test_many_rings_are_shortened_unless_asked_for():
    assert "and 4 more rings; -v shows all" in said(PLACED)
    assert "n39" not in said(PLACED)
    assert "n39" in said(PLACED, verbose=True)


def test_step_times_are_compared_with_a_fabric_of_full_rate():
    text = said(PLACED, plan="a plan", step_time_s=1.1, unplaced_step_time_s=1.0)
    assert "a plan: 1.100 s per step on these nodes, 10.0 % more than 1.000 s" in text


def test_control_characters_in_names_do_not_reach_the_terminal():
    nodes = (FabricNode("a\x1b[2J", ("leaf",)), FabricNode("b", why_unusable="\x1b[31mred", state="unusable"))
    placed = Placement(JobShape(tp=8, pp=1, dp=1), (("a\x1b[2J",),), "hops", 0, 0, 0, 0, proved_optimal=True)
    text = said(placed, fabric=Fabric(nodes, source="\x07"))
    assert "\x1b" not in text
    assert "\x07" not in text


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "speaks"), [(Terminal(), True), (io.StringIO(), False)], ids=["terminal", "pipe"])
def test_a_long_wait_is_told_on_a_terminal_alone(stream, speaks):
    with waiting("reading", stream) as say:
        time.sleep(0.5 * speaks)  # it is drawn twelve times a second
        say("placing [now]")
        time.sleep(0.5 * speaks)
    assert ("reading" in stream.getvalue()) == speaks
    assert ("placing [now]" in stream.getvalue()) == speaks
