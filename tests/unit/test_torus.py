"""Shares and hops of groups in a torus, against the links that bytes really cross, counted one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dlcalc.calculators.torus import all_to_all_hops_factor, axes_count, ring_links_fraction, ring_steps_count


def busiest_link(length, n_axes, closes):
    """Shares of one n-th that the busiest link carries in an all-to-all, by shortest ways, one axis after the other."""
    loads: dict[tuple, float] = {}
    for start, end in product(product(range(length), repeat=n_axes), repeat=2):
        here = list(start)
        for axis in range(n_axes):
            ahead = (end[axis] - here[axis]) % length if closes else end[axis] - here[axis]
            ways = [(ahead, 1.0)]
            if closes:
                back = ahead - length
                ways = [(min(ahead, back, key=abs), 1.0)] if ahead != -back else [(ahead, 0.5), (back, 0.5)]
            for steps, part in ways:
                at = here[axis]
                for _ in range(abs(steps)):
                    link = (*here[:axis], at, *here[axis + 1 :], axis, steps > 0)
                    loads[link] = loads.get(link, 0.0) + part
                    at = (at + (1 if steps > 0 else -1)) % length
            here[axis] = end[axis]
    return max(loads.values())


@pytest.mark.parametrize(
    ("length", "n_axes", "closes"),
    [(4, 1, True), (8, 1, True), (4, 2, True), (6, 2, True), (4, 3, True), (4, 2, False), (6, 2, False), (4, 3, False)],
)
def test_an_all_to_all_takes_what_its_busiest_link_does(length, n_axes, closes):
    devices = np.float64(length**n_axes)
    slice_ = {"n_axes": n_axes, "n_devices": devices, "closes": np.float64(closes)}
    links_used = float(ring_links_fraction(devices, **slice_)) * 2 * n_axes
    of_equation = float(all_to_all_hops_factor(devices, **slice_)) * length**n_axes / links_used
    assert of_equation == pytest.approx(busiest_link(length, n_axes, closes))


@pytest.mark.parametrize(("n_axes", "closes", "links"), [(2, True, 4), (2, False, 2), (3, True, 6), (3, False, 3)])
def test_an_all_gather_of_a_whole_slice_uses_the_links_of_a_corner(n_axes, closes, links):
    devices = np.float64(4.0**n_axes)
    share = ring_links_fraction(devices, n_axes=n_axes, n_devices=devices, closes=np.float64(closes))
    assert float(share) * 2 * n_axes == pytest.approx(links)


@pytest.mark.parametrize("sizes", [(4, 64), (16, 16), (8, 32), (64, 4)])
def test_groups_of_a_mesh_never_have_more_axes_than_there_are(sizes):
    spanned = [float(axes_count(np.float64(n), n_axes=2, n_devices=np.float64(256))) for n in sizes]
    assert all(one >= 1.0 for one in spanned)
    if min(sizes) >= 16:
        assert sum(spanned) == pytest.approx(2.0)


def test_larger_groups_have_no_fewer_links_and_no_fewer_steps():
    n_ranks = 2.0 ** np.arange(1, 13)
    slice_ = {"n_axes": 3, "n_devices": np.float64(4096)}
    share = ring_links_fraction(n_ranks, **slice_, closes=np.float64(1))
    assert np.all(np.diff(share) >= 0)
    assert np.all(np.diff(ring_steps_count(n_ranks, **slice_)) >= 0)
    assert np.all(share <= 1.0)


def test_alone_there_is_nothing_to_pass_on():
    assert float(ring_steps_count(np.float64(1), n_axes=2, n_devices=np.float64(256))) == 0.0
