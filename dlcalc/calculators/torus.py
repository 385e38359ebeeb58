"""What a group of devices gets of the links of a torus, where each device has two links along every axis.

A job's slice is as long along every axis as along any other, or twice as long along the first ones (8 x 16). Ranks lie
along the axes in their order, so a group of ``n_ranks`` that are ``stride`` apart takes a part of one axis, then whole
axes, then a part of another. Where slices can be cut to the job (optical switches between cubes), axes are as long as
groups need them, and a group has the share of the axes that its logarithm says.

Rates are fractions of all links of a device together.

Ignores: slices that are longer than twice along one axis, other layouts of ranks (blocks instead of lines), and twisted
tori.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINKS_PER_AXIS = 2.0
"""One each way. A ring that closes uses both; the end of a line has one."""
_DIGITS = 9
"""To which a logarithm is whole."""


class Slice(NamedTuple):
    """The torus that a job runs on."""

    n_axes: int
    n_devices: Array
    """Of the job, in one torus."""
    closed_axes: Array
    """How many axes close to rings, the first ones, which are the longest."""
    reshapes: bool
    """Whether axes are as long as the job's groups need them."""

    @property
    def axes(self) -> Array:
        """Axes longer than one: a slice of four devices has two."""
        return np.clip(np.floor(np.log2(np.maximum(self.n_devices, 2.0))), 1.0, float(self.n_axes))

    @property
    def closes(self) -> NDArray[np.bool_]:
        """Whether every axis closes to a ring."""
        return np.asarray(self.closed_axes >= self.axes)

    @property
    def doublings(self) -> tuple[Array, Array]:
        """Logarithm to base 2 of an axis's length, and how many axes, the first ones, are twice as long."""
        total = np.round(np.log2(np.maximum(self.n_devices, 2.0)), _DIGITS)
        whole = total == np.floor(total)
        shorter = np.where(whole, np.floor(total / self.axes), total / self.axes)
        return shorter, np.where(whole, total - shorter * self.axes, 0.0)


class _Pieces(NamedTuple):
    """A group along the axes: ranks, links of a device to them, and how far the longest way is in links of an axis."""

    first: Array
    first_links: Array
    whole: Array
    whole_links: Array
    last: Array
    busiest: Array
    """Of an all-to-all: time of the busiest link, for each byte of a rank and the rate of one link."""


def ring_links_fraction(n_ranks: Array, stride: Array, torus: Slice) -> Array:
    """Part of a device's links that an all-gather (or reduce-scatter) of the group gets.

    Gathered along one part after the other, the one with fewest links first, while there is least to move: of n =
    first x last x whole ranks, first - 1 shares, (last - 1) x first, and (whole - 1) x first x last. Ranks that are
    strided within an axis share it with the groups between them; lines, and axes that do not close, have one link.

    Source: [austin2025] part 3, all-gather over several axes, with and without wraparound; [derived] parts of axes.
    """
    if torus.reshapes:
        share = _axes_share(n_ranks, torus)
        closed = np.where(torus.closes, share, np.clip(share, 1.0, np.maximum(torus.axes / 2.0, 1.0)))
        return np.where(n_ranks == 2.0, 1.0 / LINKS_PER_AXIS, closed) / torus.n_axes
    part = _pieces(n_ranks, stride, torus)
    moved = (part.first - 1.0) / part.first_links + (part.last - 1.0) * part.first
    moved = moved + (part.whole - 1.0) * part.first * part.last / np.maximum(part.whole_links, 1.0)
    return np.where(n_ranks > 1.0, (n_ranks - 1.0) / np.maximum(moved, 1e-9), 1.0) / (LINKS_PER_AXIS * torus.n_axes)


def ring_steps_count(n_ranks: Array, torus: Slice) -> Array:
    """Steps of an all-gather that goes along one axis after the other, both ways at once: half of each axis.

    Source: [austin2025] part 3, latency of an all-gather.
    """
    spanned = _axes_share(n_ranks, torus)
    return np.where(n_ranks > 1.0, np.maximum(spanned * n_ranks ** (1.0 / spanned) / LINKS_PER_AXIS, 1.0), 0.0)


def all_to_all_hops_factor(n_ranks: Array, stride: Array, torus: Slice) -> Array:
    """Time of an all-to-all over that of sending all but a rank's own share at :func:`ring_links_fraction`.

    In a ring of n the two halves exchange n^2 / 4 shares each way over two links, so the busiest carries n / 8 of what
    a rank holds; in a line the middle one carries twice that.

    Source: [austin2025] part 3, all-to-all.
    """
    share = ring_links_fraction(n_ranks, stride, torus)
    if torus.reshapes:
        spanned = _axes_share(n_ranks, torus)
        length = np.maximum(n_ranks, 1.0) ** (1.0 / spanned)
        busiest = length / np.where(torus.closes | (spanned <= 1.0), 8.0, 4.0)
    else:
        busiest = _pieces(n_ranks, stride, torus).busiest
    others = np.maximum(n_ranks - 1.0, 1.0) / np.maximum(n_ranks, 1.0)
    return np.maximum(busiest * share * LINKS_PER_AXIS * torus.n_axes / others, 1.0)


def _axes_share(n_ranks: Array, torus: Slice) -> Array:
    """Axes that a group lies along, between one and all: parts of an axis count as that part of its links."""
    share = np.log(np.maximum(n_ranks, 1.0)) / np.log(np.maximum(torus.n_devices, 2.0))
    return np.clip(torus.axes * share, 1.0, torus.axes)


def _pieces(n_ranks: Array, stride: Array, torus: Slice) -> _Pieces:
    shorter, n_longer = torus.doublings

    def doublings(axis: Array) -> Array:
        """Of the axis of that number."""
        return shorter + (axis < n_longer)

    def ranks_before(axis: Array) -> Array:
        return np.asarray(np.exp2(shorter * axis + np.minimum(axis, n_longer)))

    def place(ranks: Array) -> Array:
        """Where along the axes, counted from the first, that many ranks end."""
        along = np.log2(np.maximum(ranks, 1.0))
        of_longer = n_longer * (shorter + 1.0)
        found = np.where(along <= of_longer, along / (shorter + 1.0), n_longer + (along - of_longer) / shorter)
        return np.asarray(np.round(found, _DIGITS), dtype=np.float64)

    begin = place(stride)
    end = np.minimum(place(n_ranks * stride), torus.axes)
    begin = np.minimum(begin, end)
    up, down = np.ceil(begin), np.floor(end)
    inside = end <= up  # of one axis, of which others have the beginning
    begin_length, end_length = 2.0 ** doublings(np.floor(begin)), 2.0 ** doublings(down)
    apart = begin_length ** (begin - np.floor(begin))
    first = np.where(inside, n_ranks, begin_length ** (up - begin))
    rings = (np.floor(begin) < torus.closed_axes) & (~inside | (end == up))
    first_links = np.where(rings, LINKS_PER_AXIS, 1.0) / apart
    n_whole = np.where(inside, 0.0, down - up)
    n_closed = np.clip(torus.closed_axes - up, 0.0, n_whole)
    last = np.where(inside, 1.0, end_length ** (end - down))
    longest_closed = np.where(n_closed > 0, 2.0 ** doublings(up), 0.0)
    longest_open = np.where(n_whole > n_closed, 2.0 ** doublings(up + n_closed), 0.0)
    return _Pieces(
        first=first,
        first_links=first_links,
        whole=np.where(n_whole > 0, ranks_before(down) / ranks_before(up), 1.0),
        whole_links=n_whole + n_closed * (LINKS_PER_AXIS - 1.0),
        last=last,
        busiest=np.maximum.reduce([
            np.where(first > 1.0, first * apart / np.where(rings, 8.0, 4.0), 0.0),
            longest_closed / 8.0,
            longest_open / 4.0,
            np.where(last > 1.0, last / 4.0, 0.0),
        ]),
    )  # fmt: skip
