"""What failures cost: how often to write a checkpoint, and how long a job takes that loses work at every failure.

Failures come at random, as a Poisson process, at a mean time between them of the whole job: that of one device over
the number of devices. A failure costs the restart and the work since the last checkpoint; it may strike while a
checkpoint is written, or during a restart. Times are seconds of wall clock; work is what the step time counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numeric = float | NDArray[np.float64]


def job_failure_interval_s(*, device_failure_interval_s: Numeric, n_devices: Numeric) -> Numeric:
    """Mean time between failures of a job that any one of its devices ends: that of a device over their number.

    Assumes: devices fail independently; the time counts whatever ends a job, hosts, links and software included.
    Source: [derived] rates of independent Poisson processes add.
    """
    return device_failure_interval_s / n_devices


def first_order_checkpoint_interval_s(*, checkpoint_write_s: Numeric, failure_interval_s: Numeric) -> Numeric:
    """Work between checkpoints that loses least: ``sqrt(2 x write x failure interval)``.

    Assumes: a write and an interval that are short against the time between failures.
    Source: [young1974].
    """
    return np.sqrt(2.0 * checkpoint_write_s * failure_interval_s)


def checkpoint_interval_s(*, checkpoint_write_s: Numeric, failure_interval_s: Numeric) -> Numeric:
    """Work between checkpoints that loses least, to higher order, where failures are frequent.

    ``sqrt(2 d M) (1 + 1/3 sqrt(d / 2M) + 1/9 (d / 2M)) - d`` for a write d below twice the failure interval M, else M.

    Assumes: checkpoints that cost something; the interval is 0 for a write that takes no time.
    Ignores: that the last interval of a job is shorter.
    Source: [daly2006] the perturbation solution of the complete model.
    """
    ratio = checkpoint_write_s / (2.0 * failure_interval_s)
    series = 1.0 + np.sqrt(ratio) / 3.0 + ratio / 9.0
    short = np.sqrt(2.0 * checkpoint_write_s * failure_interval_s) * series - checkpoint_write_s
    return np.where(ratio < 1.0, short, failure_interval_s)


def failure_time_factor(
    *, interval_s: Numeric, checkpoint_write_s: Numeric, restart_s: Numeric, failure_interval_s: Numeric
) -> Numeric:
    """Expected wall clock of a job over its work: checkpoints, restarts and work done twice are what is beyond 1.

    ``M / tau x exp(R / M) x (exp((tau + d) / M) - 1)``: each interval of work tau and its checkpoint d takes as many
    attempts as failures at a mean distance M make of it, and a restart R between them may itself fail.

    Infinite where failures come so fast that no interval is ever finished.

    Assumes: failures as a Poisson process, also during checkpoints and restarts; many intervals.
    Source: [daly2006] the complete model.
    """
    with np.errstate(over="ignore"):
        lost = np.exp(restart_s / failure_interval_s)
        return lost * np.expm1((interval_s + checkpoint_write_s) / failure_interval_s) * failure_interval_s / interval_s


def least_failure_interval_s(*, checkpoint_write_s: Numeric, restart_s: Numeric) -> Numeric:
    """Mean time between failures at which a job makes no progress any more: what a restart and one checkpoint take.

    Below that the expected time is one of rare long gaps between failures, and no plan to go by: at equality it is 2.7
    times the work at least, and it grows exponentially.

    Assumes: that a restart and a write are needed before any work counts.
    Source: [derived] ``R + d`` in the terms of the complete model of [daly2006].
    """
    return restart_s + checkpoint_write_s
