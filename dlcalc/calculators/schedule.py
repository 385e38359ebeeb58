"""Pipeline schedules: what a step waits for, and how many micro-batches are in flight. Closed forms, no simulation.

Times are of one whole micro-batch on one stage, that is, through all ``vpp`` chunks the stage holds: ``f`` forward,
``b`` backward, of which ``w`` is the part of the weights' gradients. A step starts on its first stage and ends when the
last stage is done, because the optimizer waits for the gradient norm of all of them. A schedule is a code, the index of
its name in ``SCHEDULES``, so that a table of coefficients serves a whole axis of schedules. How long a pass takes is
not known here.

What is exact and what is a bound is said function by function, and was found by replaying each schedule operation by
operation (``tests/properties/test_schedule_simulation.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numeric = float | NDArray[np.float64]
Array = NDArray[np.float64]

SCHEDULES = ("1f1b", "interleaved", "zb-h1", "zb-v", "gpipe", "dualpipe")
ONE_F_ONE_B, INTERLEAVED, ZB_H1, ZB_V, GPIPE, DUALPIPE = range(6)
"""zb-v: two chunks a stage, placed in a V (vpp = 2). dualpipe: two stages a device, one of each direction (vpp = 1)."""

# A step waits hops / vpp * (FORWARD f + BACKWARD b - WEIGHT w), hops being pp - 1, or pp / 2 - 1 under dualpipe; zb-v
# waits for the longest of three things and has a function of its own.
# schedule:           1f1b  inter zb-h1  zb-v gpipe  dual
_FORWARD = np.array([+1.0, +1.0, +1.0, +0.0, +1.0, +1.0])
_BACKWARD = np.array([1.0, +1.0, +1.0, +0.0, +1.0, +2.0])
_WEIGHT = np.array([+0.0, +0.0, +2.0, +0.0, +0.0, +3.0])

# Sends of fill and drain: FILL_HOP (pp - 1) + FILL_CHUNK pp (vpp - 1) - FILL_LESS; of the steady state:
# STEADY (m - 1) (pp - 1) / pp.
_FILL_HOP = np.array([2.0, +2.0, +4.0, +5.0, +2.0, +1.5])
_FILL_CHUNK = np.array([0.0, 2.0, +0.0, +0.0, +0.0, +0.0])
_FILL_LESS = np.array([0.0, +0.0, +0.0, +2.0, +0.0, +1.5])
_STEADY = np.array([+2.0, +0.0, +0.0, +0.0, +0.0, +1.0])

# Chunks in flight: FROM_END (pp - stage) + WHOLE pp + ROUND (vpp - 1) pp + MORE, never more than all of them.
_FROM_END = np.array([1.0, +2.0, +0.0, +0.0, +0.0, +0.0])
_WHOLE = np.array([+0.0, +0.0, +1.0, +2.0, +0.0, +1.0])
_ROUND = np.array([+0.0, +1.0, +0.0, +0.0, +0.0, +0.0])
_MORE = np.array([+0.0, -1.0, +0.0, +0.0, 1e18, 1.0])


def bubble_time_s(
    schedule: ArrayLike,
    *,
    pp: Numeric,
    vpp: Numeric,
    n_micro_batches: Numeric,
    forward_s: Numeric,
    backward_s: Numeric,
    weight_grad_s: Numeric,
    send_s: Numeric = 0.0,
) -> Numeric:
    """Time of a step in which a stage does not compute, stages being equal.

    1f1b, gpipe: ``(pp - 1)(f + b)``. interleaved: the same ``/ vpp``. zb-h1: ``(pp - 1)(f + b - 2w)``; a backward pass
    is split, so that weight gradients fill the end. dualpipe: ``(pp / 2 - 1)(f + 2b - 3w)``. zb-v:
    ``(pp - 1) / 2 * max(b - w, 2 (b - 2w))``; in a step of m < 2 pp - 1 micro-batches, if that is longer,
    ``(pp - 1)(f + b - w) - (min(m, pp) - 1) f - max(m - pp, 0) w``.

    Assumes: whole rounds of pp micro-batches for interleaved, m >= 2 pp for dualpipe. Exact for 1f1b, gpipe and
    interleaved; for zb-h1 where w <= f and w <= b - w; for zb-v where w <= f <= b - w, but for steps just shorter than
    2 pp - 1; for dualpipe where f = b - w = w, and where w <= f <= b - w otherwise, too long by up to 3.5% of the step.
    Ignores: trainers whose stages start their next step before the others have ended this one. There zb-v waits for
    nothing where f = b - w = w: the first stage ends as much before the last one as it started before it.
    Source: [narayanan2021] section 2.2; [huang2019] section 2.3; [qi2023] section 2.3 and section 6; [deepseek2024v3]
    section 3.2.1.
    """
    code = _codes(schedule)
    saved_s = _weight_hops(code, pp, n_micro_batches) * weight_grad_s
    idle_s = _hops(code, pp) / vpp * (_FORWARD[code] * forward_s + _BACKWARD[code] * backward_s - saved_s)
    if np.any(code == ZB_V):
        waited_s = _zb_v_bubble_s(pp, n_micro_batches, forward_s, backward_s - weight_grad_s, weight_grad_s)
        idle_s = idle_s + (code == ZB_V) * waited_s
    return np.asarray(idle_s + fill_sends_count(schedule, pp=pp, vpp=vpp) * send_s)


def pipeline_time_s(
    schedule: ArrayLike,
    *,
    pp: Numeric,
    vpp: Numeric,
    n_micro_batches: Numeric,
    slowest_forward_s: Numeric,
    slowest_backward_s: Numeric,
    sum_forward_s: Numeric,
    sum_backward_s: Numeric,
    weight_grad_s: Numeric,
    send_s: Numeric = 0.0,
) -> Numeric:
    """Time from the first forward to the last backward pass of a step, stages being unequal.

    ``m slowest + bubble``: the slowest stage works through all micro-batches, and the bubble is that of
    ``bubble_time_s``, with ``(pp - 1) f`` replaced by what all other stages need together, ``sum - slowest``.

    ``slowest_*`` is what one micro-batch takes on the slowest device (on average, under dualpipe, where it meets one of
    the two stages of a device), ``sum_*`` what it takes through all stages. ``send_s`` is counted for fill and drain;
    sends of the steady state are a term of their own (``steady_sends_count``).

    Assumes: what ``bubble_time_s`` assumes. Exact for gpipe if one stage is slowest in both passes, for 1f1b if it is
    the last one. Otherwise, with n stages behind the slowest that take D together, 1f1b is too long by at most the
    smallest of n f, n b, D and n (f + b) - D; too short only where one stage is slow in forward passes and another in
    backward ones (1% of wildly unequal stages, by up to 15%). Replayed with random stages within 20% of each other,
    on average (at worst) too long by: 1f1b 1.2% (7%), interleaved 1.9% (12%), zb-h1 1.5% (4%), zb-v 1.4% (6%), dualpipe
    2.0% (12%); with only the last stage up to 30% off: 0.2%, 0.7%, 0.7%, 0.6%, 2.0%.
    Source: [derived] the slowest stage is busy from its first to its last pass; around it lie the first forward and the
    last backward passes of the others.
    """
    code = _codes(schedule)
    others = np.maximum(pp - 1.0, 1.0)
    share = _hops(code, pp) / (others * vpp)
    around = share * _FORWARD[code]
    step_s = (n_micro_batches - around) * (slowest_forward_s + slowest_backward_s)
    step_s = step_s + around * (sum_forward_s + sum_backward_s)
    step_s = step_s + fill_sends_count(schedule, pp=pp, vpp=vpp) * send_s
    if np.any(_WEIGHT[code] != 0.0):
        more = share * (_BACKWARD[code] - _FORWARD[code])
        saved = share * others * _weight_hops(code, pp, n_micro_batches)
        step_s = step_s + more * (sum_backward_s - slowest_backward_s) - saved * weight_grad_s
    if np.any(code == ZB_V):
        forward_s = (sum_forward_s - slowest_forward_s) / others
        inputs_s = (sum_backward_s - slowest_backward_s) / others - weight_grad_s
        step_s = step_s + (code == ZB_V) * _zb_v_bubble_s(pp, n_micro_batches, forward_s, inputs_s, weight_grad_s)
    return np.asarray(step_s)


def in_flight_micro_batches_count(
    schedule: ArrayLike, *, pp: Numeric, vpp: Numeric, n_micro_batches: Numeric, stage: Numeric
) -> Numeric:
    """Micro-batches of which stage ``stage`` (0 is the first) holds the activations at its peak.

    The unit is what all layers of a stage keep of one micro-batch; a stage is half of a device under dualpipe.
    1f1b: ``pp - stage``. interleaved: ``2 (pp - stage - 1) + (vpp - 1) pp + 1`` chunks of 1 / vpp. zb-h1: pp, since
    weight gradients wait. zb-v: 2 pp halves. gpipe: all. dualpipe: ``pp + 1``, on both stages of the device together.
    Never more than there are in the step.

    Assumes: chunks alike; m >= 2 pp for dualpipe. Exact; for zb-v with m < 2 pp - 1 an upper bound.
    Ignores: that micro-batches which wait for their weight gradients alone keep less (zb-h1, zb-v).
    Source: [narayanan2021] section 2.2; [korthikanti2022] section 4.2.3; [megatron_lm] schedules.py; [qi2023] section
    2.3; [deepseek2024v3] section 3.2.1.
    """
    code = _codes(schedule)
    chunks = _FROM_END[code] * (pp - stage) + _WHOLE[code] * pp + _ROUND[code] * (vpp - 1.0) * pp + _MORE[code]
    return np.asarray(np.minimum(chunks / vpp, n_micro_batches))


def fill_sends_count(schedule: ArrayLike, *, pp: Numeric, vpp: Numeric) -> Numeric:
    """Sends between stages that a step waits for while the pipeline fills and drains.

    1f1b, gpipe: ``2 (pp - 1)``, down and up. interleaved: ``2 (pp vpp - 1)``, through every chunk. zb-h1:
    ``4 (pp - 1)``. zb-v: ``5 (pp - 1) - 2``. dualpipe: ``3 (pp / 2 - 1)``.

    Assumes: stages equal, sends short. Interleaved hides all others while a send takes no longer than the forward pass
    of a chunk, f / vpp.
    Ignores: that dualpipe waits once more where pp = 2, and zb-h1 up to 2 (pp - 1) times less where m < 2 pp.
    Source: [derived] longest path through the operations of each schedule, counted in sends.
    """
    code = _codes(schedule)
    more_chunks = _FILL_CHUNK[code] * pp * (vpp - 1.0) - _FILL_LESS[code]
    return np.asarray(_FILL_HOP[code] * (pp - 1.0) + (pp > 1) * more_chunks)


def steady_sends_count(schedule: ArrayLike, *, pp: Numeric, n_micro_batches: Numeric) -> Numeric:
    """Sends between stages that a step waits for between filling and draining, if senders go on computing meanwhile.

    1f1b: ``2 (m - 1)(pp - 1) / pp``, since a micro-batch meets every stage just when the one before has left, so that
    each send delays the next. dualpipe: half of it. The others have slack: 0. Where sending keeps the sender from
    computing, every schedule waits 2 m vpp times instead.

    Assumes: stages equal; unequal ones hide sends behind the slowest. For 1f1b too many by less than 2.
    Source: [derived] the way down k stages and back advances k micro-batches and crosses 2 (k - 1) links.
    """
    return np.asarray(_STEADY[_codes(schedule)] * (n_micro_batches - 1.0) * (pp - 1.0) / pp)


def sends_count(*, pp: Numeric, vpp: Numeric, n_micro_batches: Numeric) -> Numeric:
    """Tensors that a stage inside the pipeline sends in a step: of each chunk every output and every input's gradient.

    Ignores: that the first and the last stage send half without interleaving, and that zb-v's last sends to itself.
    Source: [narayanan2021] section 3.2.
    """
    return np.asarray(2.0 * n_micro_batches * vpp * np.minimum(pp - 1.0, 1.0))


def _codes(schedule: ArrayLike) -> NDArray[np.intp]:
    return np.asarray(schedule, dtype=np.intp)


def _hops(code: NDArray[np.intp], pp: Numeric) -> Array:
    """Stages that the first micro-batch passes while the others wait."""
    return np.asarray(np.maximum(pp - 1.0 - (code == DUALPIPE) * 0.5 * pp, 0.0))


def _weight_hops(code: NDArray[np.intp], pp: Numeric, n_micro_batches: Numeric) -> Array:
    """Weight gradients that fill the bubble, per hop: fewer where zb-h1 has fewer micro-batches than stages."""
    missing = np.maximum(pp - n_micro_batches, 0.0) / np.maximum(pp - 1.0, 1.0)
    return np.asarray(_WEIGHT[code] - (code == ZB_H1) * missing)


def _zb_v_bubble_s(
    pp: Numeric, n_micro_batches: Numeric, forward_s: Numeric, inputs_s: Numeric, weight_grad_s: Numeric
) -> Array:
    """What zb-v waits for: the last gradients to go up the V, or, in a short step, a micro-batch to go all the way."""
    steady_s = 0.5 * (pp - 1.0) * np.maximum(inputs_s, 2.0 * (inputs_s - weight_grad_s))
    filled_s = (np.minimum(n_micro_batches, pp) - 1.0) * forward_s
    drained_s = np.maximum(n_micro_batches - pp, 0.0) * weight_grad_s
    short_s = (pp - 1.0) * (forward_s + inputs_s) - filled_s - drained_s
    return np.asarray((pp > 1) * np.maximum(steady_s, short_s))
