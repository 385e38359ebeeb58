"""What a group of devices gets of the links of a torus, where each device has two links along every axis.

A job's slice is as long along every axis as along any other, and a group takes as many of the axes as its share of the
slice's logarithm says: sixteen of 256 devices in two axes one of them, all 256 both. So groups that divide a slice
among them share its axes and are never counted with more than there are. Rates here are fractions of all links of a
device together.

Ignores: slices that are longer along one axis, groups whose links cross (those of all but the innermost degree take
whole axes, as trainers lay them out), and twisted tori.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINKS_PER_AXIS = 2.0
"""One each way. A ring that closes uses both; a pair of neighbours is joined by one."""


def axes_count(n_ranks: Array, *, n_axes: int, n_devices: Array) -> Array:
    """Axes that a group of ``n_ranks`` lies along, in a slice of ``n_devices``: between one and ``n_axes``.

    ``n_axes log(n_ranks) / log(n_devices)``; parts of an axis count as that part of its links.

    Source: [derived] equally long axes; [austin2025] part 2, slices and their axes.
    """
    share = np.log(np.maximum(n_ranks, 1.0)) / np.log(np.maximum(n_devices, 2.0))
    return np.clip(n_axes * share, 1.0, float(n_axes))


def ring_links_fraction(n_ranks: Array, *, n_axes: int, n_devices: Array, closes: Array) -> Array:
    """Part of a device's links that a ring of the group uses: that of its axes, and one link for a pair.

    Where the axes do not close (``closes`` is 0) the corners of the slice have one link an axis, which is half; a ring
    around a block of it still has two.

    Source: [austin2025] part 3, all-gather over several axes, with and without wraparound.
    """
    spanned = axes_count(n_ranks, n_axes=n_axes, n_devices=n_devices)
    used = np.where(closes > 0, spanned, np.clip(spanned, 1.0, max(n_axes / 2.0, 1.0)))
    return np.where(n_ranks == 2.0, 1.0 / LINKS_PER_AXIS, used) / n_axes


def ring_steps_count(n_ranks: Array, *, n_axes: int, n_devices: Array) -> Array:
    """Steps of an all-gather that goes along one axis after the other, both ways at once: half of each axis.

    Source: [austin2025] part 3, latency of an all-gather.
    """
    spanned = axes_count(n_ranks, n_axes=n_axes, n_devices=n_devices)
    return np.where(n_ranks > 1.0, np.maximum(spanned * n_ranks ** (1.0 / spanned) / LINKS_PER_AXIS, 1.0), 0.0)


def all_to_all_hops_factor(n_ranks: Array, *, n_axes: int, n_devices: Array, closes: Array) -> Array:
    """Links that a byte of an all-to-all crosses, over those that :func:`ring_links_fraction` gives it; at least one.

    A quarter of each axis on average where they close: in a ring of n the two halves exchange n^2 / 4 shares each way
    over two links. Where they do not close the middle link of a line carries twice that; a group along one axis takes a
    ring around a block.

    Source: [austin2025] part 3, all-to-all.
    """
    spanned = axes_count(n_ranks, n_axes=n_axes, n_devices=n_devices)
    length = np.maximum(n_ranks, 1.0) ** (1.0 / spanned)
    share = ring_links_fraction(n_ranks, n_axes=n_axes, n_devices=n_devices, closes=closes)
    # seconds per byte of a rank times the rate of one link: length / 8 in a ring, length / 4 in a line
    per_link = length / np.where((closes > 0) | (spanned <= 1.0), 8.0, 4.0)
    return np.maximum(per_link * share * LINKS_PER_AXIS * n_axes, 1.0)
