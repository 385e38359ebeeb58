"""Time of exchanges between data centres that hold the replicas of one model.

Inside a data centre gradients are reduced as anywhere; what is left, every parameter of the model once per data centre,
goes round a ring of data centres over a link that all their devices share. How much of it hides behind a pass is not
known here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numeric = float | NDArray[np.float64]


def cross_dc_exchange_time_s(
    size_bytes: Numeric,
    *,
    n_dcs: Numeric,
    link_bytes_per_s: float,
    link_latency_s: float,
    n_buckets: Numeric,
    passes: Numeric,
) -> Numeric:
    """Time of one exchange of ``size_bytes``, the whole model's gradients or weights, between data centres.

    ``passes (n - 1) (buckets latency + size / n / rate)``: a ring of ``n`` data centres in which every step passes one
    n-th on; twice round (``passes`` 2) for an all-reduce, once for a reduce-scatter or an all-gather. The link is that
    of a whole data centre, so its devices share it, and buckets follow one another on it, each waiting for its own
    latency. Zero for one data centre.

    Assumes: replicas spread evenly over the data centres, rings inside and between them one after the other.
    Ignores: that rings inside a data centre get shorter by the number of data centres, a few per cent of their latency.
    Source: [thakur2005] sections 4.1 and 4.5; [derived] a data centre is one rank of the ring, its rate that of all its
    devices together.
    """
    step_s = n_buckets * link_latency_s + size_bytes / n_dcs / link_bytes_per_s
    return passes * (n_dcs - 1.0) * step_s
