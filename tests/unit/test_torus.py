"""Shares and hops of groups in a torus, against the links that bytes really cross, counted one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dlcalc.calculators.torus import Slice, all_to_all_hops_factor, ring_links_fraction, ring_steps_count
from dlcalc.costmodel.placement import links as placed
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware


def busiest_link(lengths, n_closed):
    """Shares of one n-th that the busiest link carries in an all-to-all, by shortest ways, one axis after the other."""
    loads: dict[tuple, float] = {}
    for start, end in product(product(*map(range, lengths)), repeat=2):
        here = list(start)
        for axis, length in enumerate(lengths):
            closes = axis < n_closed
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


ALONE = np.float64(1.0)
"""Between the ranks of a group that lies along axes from their beginning."""


def torus(n_devices, n_axes, *, closes=True, reshapes=False):
    return Slice(n_axes, np.float64(n_devices), np.float64(closes * n_axes), reshapes)


def links(n_ranks, stride, job):
    """Of a device, to its group."""
    return float(ring_links_fraction(np.float64(n_ranks), np.float64(stride), job)) * 2 * job.n_axes


@pytest.mark.parametrize(
    ("length", "n_axes", "closes"),
    [(4, 1, True), (8, 1, True), (4, 2, True), (6, 2, True), (4, 3, True), (4, 2, False), (6, 2, False), (4, 3, False)],
)
@pytest.mark.parametrize("reshapes", [False, True])
def test_an_all_to_all_takes_what_its_busiest_link_does(length, n_axes, closes, reshapes):
    devices = np.float64(length**n_axes)
    job = torus(devices, n_axes, closes=closes, reshapes=reshapes)
    sent = (length**n_axes - 1) / links(devices, 1, job)  # shares of one rank to the others, by all its links at once
    assert float(all_to_all_hops_factor(devices, ALONE, job)) * sent == pytest.approx(
        busiest_link([length] * n_axes, n_axes * closes)
    )


@pytest.mark.parametrize("n_closed", [0, 1, 2])
def test_an_all_to_all_of_a_slice_that_is_longer_along_one_axis(n_closed):
    """4 x 8 whose longer axis closes, or both, or neither."""
    job = Slice(2, np.float64(32), np.float64(n_closed), reshapes=False)
    sent = 31 / links(32, 1, job)
    found = float(all_to_all_hops_factor(np.float64(32), ALONE, job)) * sent
    assert found == pytest.approx(busiest_link([8, 4], n_closed))


@pytest.mark.parametrize(
    ("n_ranks", "stride", "used"),
    [
        (16, 1, 2),  # the axis of sixteen, which closes
        (8, 16, 1),  # that of eight is a line
        (128, 1, 3),
        (8, 1, 1),  # half of sixteen
        (16, 8, 15 / (1 / (2 / 8) + 7 * 2 / 1)),  # two shares of the longer axis, then along the other
    ],
)
def test_the_longer_axis_of_8_x_16_closes(n_ranks, stride, used):
    """As on a v5e or v6e: 128 devices."""
    assert links(n_ranks, stride, Slice(2, np.float64(128), np.float64(1), reshapes=False)) == pytest.approx(used)
    if stride == 1:
        of_tp = placed(Plans.point(tp=n_ranks, dp=128 // n_ranks), load_hardware("tpu_v5e")).tp
        assert float(of_tp.node_bytes_per_s) == pytest.approx(used / 4 * 200e9)


@pytest.mark.parametrize(("n_axes", "closes", "corner"), [(2, True, 4), (2, False, 2), (3, True, 6), (3, False, 3)])
def test_an_all_gather_of_a_whole_slice_uses_the_links_of_a_corner(n_axes, closes, corner):
    for reshapes in (False, True):
        assert links(4.0**n_axes, 1, torus(4.0**n_axes, n_axes, closes=closes, reshapes=reshapes)) == pytest.approx(
            corner
        )


@pytest.mark.parametrize(
    ("n_ranks", "stride", "used"),
    [
        (16, 1, 2),  # an axis of sixteen
        (16, 16, 2),  # the other one
        (8, 1, 1),  # half of an axis is a line, whose end has one link
        (2, 8, 2 / 8),  # the rest of it, shared with seven other groups
        (32, 8, 31 / (1 / (2 / 8) + 15 * 2 / 2)),  # that first, two shares then round the whole other axis
        (64, 4, 63 / (3 / (2 / 4) + 15 * 4 / 2)),
        (32, 1, 31 / (1 * 1 / 1 + 15 * 2 / 2)),  # pairs first, along a line of two
        (2, 1, 1),
    ],
)
def test_groups_of_a_slice_of_fixed_shape(n_ranks, stride, used):
    """16 x 16, ranks in order along the first axis and then the second; gathered part by part."""
    assert links(n_ranks, stride, torus(256, 2)) == pytest.approx(used)


@pytest.mark.parametrize(("n_ranks", "stride", "used"), [(8, 1, 2), (64, 8, 4), (512, 1, 6), (2, 1, 1)])
def test_a_slice_that_is_cut_to_its_groups_has_whole_axes_for_them(n_ranks, stride, used):
    assert links(n_ranks, stride, torus(512, 3, reshapes=True)) == pytest.approx(used)


@pytest.mark.parametrize(("devices", "used"), [(2, 1), (4, 2), (8, 3)])
def test_a_few_devices_have_fewer_axes(devices, used):
    """2 x 2 x 1 of a 3D torus: two links each, as nothing closes."""
    assert links(devices, 1, torus(devices, 3, closes=False)) == pytest.approx(used)


@pytest.mark.parametrize("reshapes", [False, True])
def test_no_group_has_more_links_than_its_device(reshapes):
    n_ranks = 2.0 ** np.arange(1, 13)
    for stride in 2.0 ** np.arange(0, 12):
        fits = n_ranks * stride <= 4096
        part = ring_links_fraction(n_ranks[fits], np.full(fits.sum(), stride), torus(4096, 3, reshapes=reshapes))
        assert np.all((part > 0) & (part <= 1 + 1e-12))


def test_larger_groups_take_no_fewer_steps():
    steps = ring_steps_count(2.0 ** np.arange(1, 13), torus(4096, 3))
    assert np.all(np.diff(steps) >= 0)


def test_alone_there_is_nothing_to_pass_on():
    assert float(ring_steps_count(np.float64(1), torus(256, 2))) == 0.0
    assert float(all_to_all_hops_factor(np.float64(1), ALONE, torus(256, 2))) == 1.0
