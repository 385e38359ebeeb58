"""From samples per second to tokens per day and to model FLOPs utilization (MFU).

All rates are of the whole job, over all its devices, unless the name says per device. MFU is the job's model FLOPs over
the sum of its devices' peaks; which FLOPs count is ``flops.model_flops_per_token_flops``'s business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.flops import TRAINING_PASSES

Numeric = float | NDArray[np.float64]

SECONDS_PER_DAY = 86400.0


def day_tokens(*, samples_per_s: Numeric, seq_len: Numeric, goodput_fraction: Numeric = 1.0) -> Numeric:
    """Tokens trained on in a day: ``samples per second x tokens per sample x 86,400 x goodput``.

    Goodput is the share of the day whose steps count: restarts, lost steps and idle time taken off.

    Source: [derived] definition of the quantities.
    """
    return samples_per_s * seq_len * SECONDS_PER_DAY * goodput_fraction


def six_n_token_flops(n_params: Numeric) -> Numeric:
    """Training FLOPs per token of a model of which only the size is known: ``6 N``.

    Assumes: dense, or ``n_params`` are the active ones.
    Ignores: attention's scores and values, 5 to 20 % at usual sequence lengths.
    Source: [kaplan2020] section 2.1.
    """
    return 2.0 * TRAINING_PASSES * n_params


def device_flops_per_s(
    *, samples_per_s: Numeric, seq_len: Numeric, token_flops: Numeric, n_devices: Numeric
) -> Numeric:
    """Model FLOPs that each device does in a second.

    Source: [chowdhery2022] appendix B.
    """
    return samples_per_s * seq_len * token_flops / n_devices


def mfu_fraction(*, achieved_flops_per_s: Numeric, peak_flops_per_s: Numeric) -> Numeric:
    """Model FLOPs per second over the peak of the devices that do them.

    Source: [chowdhery2022] appendix B.
    """
    return achieved_flops_per_s / peak_flops_per_s
