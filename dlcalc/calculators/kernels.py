"""Time of single kernels: matmul, attention, memory-bound passes.

A kernel is bounded by arithmetic (a fraction of the datasheet's peak, work cut into tiles that come in waves), by
memory (a fraction of the datasheet's bandwidth) and by a floor. The fractions are constants of a device and a
precision, fitted to kernel measurements (docs/kernels.md). Which kernels a layer runs is decided by the cost model;
nothing here knows a plan. Shapes are per device and may be averages, hence fractional; every argument broadcasts.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dlcalc.specs.calibration import AttentionRates, MatmulRates, MemoryRates

Numeric = float | NDArray[np.float64]

SETTLING_S = 2.5e-3
"""Busy time after which half of what power costs is lost."""

ROUNDING = 1e-9
"""More than a count of waves is off by its arithmetic, less than any fraction of a wave."""

L2_BYTES = 50e6
"""A typical last-level cache, where the hardware file names none."""


def sustained_time_s(alone_s: Numeric, *, loss: float) -> Numeric:
    """Time of arithmetic run alone, once power limits the clock: longer by half of ``loss`` after 2.5 ms.

    Assumes: one settling time for all devices; the device was idle before. Ignores: temperature.
    Source: [derived] a saturation, busy / (busy + 2.5 ms), that fits kernels of 2 us to 100 ms on seven devices.
    """
    return alone_s * (1.0 + loss * (alone_s / (alone_s + SETTLING_S)))


def arithmetic_time_s(cool_s: Numeric, *, loss: float, factor: Numeric | None) -> Numeric:
    """Time of arithmetic that would take ``cool_s`` on a cool device: run alone, or ``factor`` times that in a step.

    Kernels of up to 100 ms say little of hours: the losses fitted to them differ by a factor of 30 between devices
    whose training steps slow down alike, so inside a step training runs decide alone.

    Source: [derived] the kernel fits in docs/kernels.md against the training factors of configs.
    """
    return sustained_time_s(cool_s, loss=loss) if factor is None else cool_s * factor


def matmul_time_s(
    m: Numeric,
    n: Numeric,
    k: Numeric,
    *,
    groups: Numeric = 1.0,
    rates: MatmulRates,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    n_sms: float,
    input_bytes: Numeric = 2.0,
    output_bytes: Numeric = 2.0,
    l2_bytes: float = L2_BYTES,
    arithmetic_factor: Numeric | None = None,
) -> Numeric:
    """Time of ``groups`` independent (m, k) x (k, n) matmuls in one launch.

    The output is cut into tiles and each SM works on one at a time, so a launch takes whole waves of ``n_sms`` tiles,
    partly softened. A tile costs its flops plus a prologue worth ``k_half`` of K. The library picks the fastest tile.
    Operands beyond L2 come from memory, a share of whose time arithmetic does not hide; memory is the other bound.
    A result that is added to a buffer (``output_bytes`` of more than 2) is read and written once a tile is done.

    ``arithmetic_factor``: how much longer than on a cool device arithmetic takes inside a training step, while memory
    is as fast as ever; None: a device that runs this kernel alone.

    Assumes: all groups share waves; operands are read from memory once, L2 serves every other read.
    Ignores: split-K other than through ``wave_softness``: up to 30 % for outputs below a tenth of a wave.
    Source: [nvidia_gemm_guide] sections on tile quantization and wave quantization.
    """
    sm_flops_per_s = peak_flops_per_s * rates.rate_fraction / n_sms
    busy_sms_s: Numeric = np.inf  # per unit of K
    for rows, columns in rates.tiles:
        flops = 2.0 * rows * columns / _tile_fraction(rows, columns, rates)
        waves = np.ceil(m * (1.0 / rows)) * np.ceil(n * (1.0 / columns)) * (groups * (1.0 / n_sms))
        whole = np.ceil(waves - ROUNDING)  # 357 waves, computed as 357.00000000000006, are not 358
        waves = whole + rates.wave_softness * (np.maximum(waves, 1.0) - whole)
        busy_sms_s = np.minimum(busy_sms_s, waves * (flops / sm_flops_per_s))
    tiles_s = busy_sms_s * (k + rates.k_half)
    traffic_bytes = groups * (input_bytes * ((m + n) * k) + output_bytes * (m * n))
    memory_s = traffic_bytes * (1.0 / (hbm_bytes_per_s * rates.hbm_fraction))
    added_bytes = (groups * (m * n)) * np.maximum(output_bytes - RESULT_BYTES, 0.0)
    adding_s = added_bytes * (rates.accumulate_exposed / hbm_bytes_per_s)
    exposed_s = (rates.exposed_fraction * memory_s) * (traffic_bytes / (traffic_bytes + l2_bytes))
    cool_s = tiles_s + exposed_s
    arithmetic_s = arithmetic_time_s(cool_s, loss=rates.sustained_loss, factor=arithmetic_factor)
    return np.maximum(arithmetic_s + adding_s, memory_s) + rates.launch_s


RESULT_BYTES = 2.0
"""Of one element of a result that is only written."""


def _tile_fraction(rows: int, columns: int, rates: MatmulRates) -> float:
    """Rate of a tile over that of the first one: the smaller, the more it loads per flop."""
    first_rows, first_columns = rates.tiles[0]
    loads, first_loads = 0.5 / rows + 0.5 / columns, 0.5 / first_rows + 0.5 / first_columns
    return (1.0 + rates.tile_half * first_loads) / (1.0 + rates.tile_half * loads)


QUERY_TILE = 128.0
"""Queries that one SM works on at a time."""

BACKWARD_SEQ_FACTOR = 1.25
"""``seq_half`` of the backward kernel over the forward one's: rates against sequence length in [shah2024]."""

BACKWARD_TAIL_FACTORS = {"te_flash": 0.25}
"""``tail_tiles`` of a backward kernel over the forward one's; 1 where nobody measured. cuDNN's: between 8 and 128 heads
of 128 a device times come out evenly 6 to 22 % above those in [moorethreads2025]; with the forward tail, 13 to 61 %.
"""

BACKWARD_SOFTMAX_FACTOR = 1.75
"""Softmax work per pair of the backward kernel over the forward one's: heads of 64 against 128 in [shah2024]."""


def attended_pairs_count(seq_q: Numeric, seq_k: Numeric, *, causal: bool, window: Numeric = 0.0) -> Numeric:
    """Query-key pairs per head and sequence that the mask leaves; a window of 0 is none.

    Causal, without a window: half of all, exact for seq_q = seq_k, and for part of the queries when early and late ones
    are held equally. A causal window of w keeps w keys a query, less what the first w queries lack.

    Ignores: the diagonal itself, one pair in ``seq_k / 2``.
    Source: [derived] the sum over i <= s of min(i, w) is s w - w^2 / 2, hence w - w^2 / (2 s) a query.
    """
    reach = _reach(seq_k, window)
    if not causal:
        return seq_q * reach
    return seq_q * (reach - 0.5 * reach * reach / seq_k)


def _reach(seq_k: Numeric, window: Numeric) -> Numeric:
    """Keys that the last query attends to."""
    return np.where(np.asarray(window) > 0.0, np.minimum(window, seq_k), seq_k)


def attention_forward_time_s(
    seq_q: Numeric,
    seq_k: Numeric,
    *,
    batch: Numeric,
    n_heads: Numeric,
    n_kv_heads: Numeric,
    qk_head_dim: float,
    v_head_dim: float,
    window: Numeric = 0.0,
    causal: bool = True,
    rates: AttentionRates,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    n_sms: float,
    kernel: str = "",
    arithmetic_factor: Numeric | None = None,
) -> Numeric:
    """Time of fused attention, forward: scores, softmax and weighted values, tile by tile.

    ``kernel`` (flash1, flash2, flash3, te_flash) scales the measured rate by ``kernel_fractions``; unknown: not at all.

    Assumes: grouped-query heads cost as many flops as ordinary ones, and 16-bit inputs.
    Ignores: dropout, about 10 % where it is used.
    Source: [dao2023] section 3.1; [shah2024] section 3.
    """
    v_width = _value_width(qk_head_dim, v_head_dim, kernel, rates)
    seconds = _flash_time_s(
        attended_pairs_count(seq_q, seq_k, causal=causal, window=window),
        seq_q,
        edge_keys=0.5 * rates.seq_half,
        edges=1.0 + _is_windowed(seq_k, window),
        reach=_reach(seq_k, window),
        lanes=batch * n_heads,
        width=_width(qk_head_dim + v_width, rates.softmax_width, 256.0),
        flops_per_s=peak_flops_per_s * rates.rate_fraction * rates.kernel_fractions.get(kernel, 1.0),
        n_sms=n_sms,
        tail_tiles=rates.tail_tiles,
        rates=rates,
        arithmetic_factor=arithmetic_factor,
    )
    moved_bytes = 2.0 * (qk_head_dim + v_head_dim) * batch * (n_heads * seq_q + n_kv_heads * seq_k)
    return np.maximum(seconds, moved_bytes / hbm_bytes_per_s) + rates.launch_s


def attention_backward_time_s(
    seq_q: Numeric,
    seq_k: Numeric,
    *,
    batch: Numeric,
    n_heads: Numeric,
    n_kv_heads: Numeric,
    qk_head_dim: float,
    v_head_dim: float,
    window: Numeric = 0.0,
    causal: bool = True,
    rates: AttentionRates,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    n_sms: float,
    kernel: str = "",
    arithmetic_factor: Numeric | None = None,
) -> Numeric:
    """Time of fused attention, backward: scores once more, then gradients of values, probabilities, queries and keys.

    Five matmuls, three of the width of a query-key head and two of a value head; the forward kernel has one of each.

    Assumes: the backward kernel's rate is a constant share of the forward one's: 0.86 to 0.87 for three kernels in
    [shah2024], 0.86 on the A100 in [dao2023].
    Ignores: dropout, and what grouped-query heads save in writing dK and dV.
    Source: [dao2023] section 3.1.2; [shah2024] section 4.1; [moorethreads2025] for the tail.
    """
    v_width = _value_width(qk_head_dim, v_head_dim, kernel, rates)
    seconds = _flash_time_s(
        attended_pairs_count(seq_q, seq_k, causal=causal, window=window),
        seq_q,
        edge_keys=0.5 * BACKWARD_SEQ_FACTOR * rates.seq_half,
        edges=1.0 + _is_windowed(seq_k, window),
        reach=_reach(seq_k, window),
        lanes=batch * n_heads,
        width=_width(3.0 * qk_head_dim + 2.0 * v_width, BACKWARD_SOFTMAX_FACTOR * rates.softmax_width, 640.0),
        flops_per_s=peak_flops_per_s * rates.backward_fraction * rates.kernel_fractions.get(kernel, 1.0),
        n_sms=n_sms,
        tail_tiles=BACKWARD_TAIL_FACTORS.get(kernel, 1.0) * rates.tail_tiles,
        rates=rates,
        arithmetic_factor=arithmetic_factor,
    )
    moved_bytes = 4.0 * (qk_head_dim + v_head_dim) * batch * (n_heads * seq_q + n_kv_heads * seq_k)
    return np.maximum(seconds, moved_bytes / hbm_bytes_per_s) + 2.0 * rates.launch_s


ONE_WIDTH_KERNELS = frozenset({"flash1", "flash2"})
"""Written for heads whose queries, keys and values are equally wide."""


def _value_width(qk_head_dim: float, v_head_dim: float, kernel: str, rates: AttentionRates) -> float:
    """Columns of a value head that the kernel works on: narrower ones (latent attention) may have to be padded."""
    padded = rates.pads_values or kernel in ONE_WIDTH_KERNELS
    return max(qk_head_dim, v_head_dim) if padded else v_head_dim


def _is_windowed(seq_k: Numeric, window: Numeric) -> Numeric:
    """1 where the window cuts keys off, so that the mask has a second edge."""
    return ((np.asarray(window) > 0.0) & (np.asarray(window) < seq_k)).astype(np.float64)


def _width(matmul_width: float, softmax_width: float, reference_width: float) -> float:
    """Columns of matmul per pair, softmax included, scaled so that heads of 128 count their flops alone.

    Softmax runs beside the matmuls on other units, so the two add like the sides of a right angle, not in full.
    """
    softmax_part = np.hypot(reference_width, softmax_width) / reference_width
    return float(np.hypot(matmul_width, softmax_width) / softmax_part)


def _flash_time_s(
    pairs: Numeric,
    seq_q: Numeric,
    *,
    edge_keys: float,
    edges: Numeric,
    reach: Numeric,
    lanes: Numeric,
    width: float,
    flops_per_s: float,
    n_sms: float,
    tail_tiles: float,
    rates: AttentionRates,
    arithmetic_factor: Numeric | None,
) -> Numeric:
    """Arithmetic of all heads of all sequences over all SMs, and the last tiles, on which few SMs work."""
    pairs_per_sm = lanes * (pairs + edges * edge_keys * seq_q) * (1.0 / n_sms) + (tail_tiles * QUERY_TILE) * reach
    cool_s = pairs_per_sm * (2.0 * width * n_sms / flops_per_s)
    return arithmetic_time_s(cool_s, loss=rates.sustained_loss, factor=arithmetic_factor)


SCORE_PASS_BYTES = {
    # fused scale, causal mask and softmax: read what the mask leaves (half), write all; dropout: read, write, mask
    ("fused", "forward"): (3.0, 5.0),
    ("fused", "backward"): (4.0, 5.0),
    # scale; mask (and read the mask); cast up; softmax in fp32; cast down
    ("unfused", "forward"): (4.0 + 5.0 + 6.0 + 8.0 + 6.0, 5.0),
    # cast up; softmax in fp32 (gradient, probabilities, result); cast down; mask; scale
    ("unfused", "backward"): (6.0 + 12.0 + 6.0 + 5.0 + 4.0, 5.0),
}
"""Bytes per score that passes between the two matmuls move: (mask and softmax, dropout)."""


def score_traffic_bytes(scores: Numeric, *, fused_softmax: bool, dropout: bool, backward: bool) -> Numeric:
    """Bytes that scale, mask, softmax and dropout move where attention keeps its scores in memory.

    ``scores`` counts all of them, masked ones too: nothing is skipped.

    Assumes: 16-bit scores; softmax in fp32 inside one kernel when fused, as kernels of its own with casts when not; the
    fused kernel knows that the mask is causal and reads no masked score.
    Source: [korthikanti2022] section 4.1 for what is kept; [derived] reads and writes of each pass.
    """
    kind = "fused" if fused_softmax else "unfused"
    softmax_bytes, dropout_bytes = SCORE_PASS_BYTES[kind, "backward" if backward else "forward"]
    return scores * (softmax_bytes + dropout * dropout_bytes)


def unfused_attention_forward_time_s(
    seq_q: Numeric,
    seq_k: Numeric,
    *,
    batch: Numeric,
    n_heads: Numeric,
    qk_head_dim: float,
    v_head_dim: float,
    fused_softmax: bool,
    dropout: bool,
    matmul: MatmulRates,
    memory: MemoryRates,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    n_sms: float,
    arithmetic_factor: Numeric | None = None,
) -> Numeric:
    """Time of attention as two batched matmuls and passes over the scores between them.

    Assumes: keys and values of grouped-query heads are repeated, so that every head is ordinary.
    Source: [korthikanti2022] section 4.1, figure 2.
    """
    lanes = batch * n_heads
    time_s = partial(
        matmul_time_s,
        groups=lanes,
        rates=matmul,
        arithmetic_factor=arithmetic_factor,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        n_sms=n_sms,
    )
    matmuls_s = time_s(seq_q, seq_k, qk_head_dim) + time_s(seq_q, v_head_dim, seq_k)
    moved = score_traffic_bytes(lanes * seq_q * seq_k, fused_softmax=fused_softmax, dropout=dropout, backward=False)
    return matmuls_s + memory_bound_time_s(moved, rates=memory, hbm_bytes_per_s=hbm_bytes_per_s)


def unfused_attention_backward_time_s(
    seq_q: Numeric,
    seq_k: Numeric,
    *,
    batch: Numeric,
    n_heads: Numeric,
    qk_head_dim: float,
    v_head_dim: float,
    fused_softmax: bool,
    dropout: bool,
    matmul: MatmulRates,
    memory: MemoryRates,
    peak_flops_per_s: float,
    hbm_bytes_per_s: float,
    n_sms: float,
    arithmetic_factor: Numeric | None = None,
) -> Numeric:
    """Time of the backward pass of attention that kept its scores: four batched matmuls and passes over the scores.

    Source: [korthikanti2022] section 4.1, figure 2.
    """
    lanes = batch * n_heads
    time_s = partial(
        matmul_time_s,
        groups=lanes,
        rates=matmul,
        arithmetic_factor=arithmetic_factor,
        peak_flops_per_s=peak_flops_per_s,
        hbm_bytes_per_s=hbm_bytes_per_s,
        n_sms=n_sms,
    )
    matmuls_s = (
        time_s(seq_q, seq_k, v_head_dim)  # gradient of the probabilities
        + time_s(seq_k, v_head_dim, seq_q)  # of the values
        + time_s(seq_q, qk_head_dim, seq_k)  # of the queries
        + time_s(seq_k, qk_head_dim, seq_q)  # of the keys
    )
    moved = score_traffic_bytes(lanes * seq_q * seq_k, fused_softmax=fused_softmax, dropout=dropout, backward=True)
    return matmuls_s + memory_bound_time_s(moved, rates=memory, hbm_bytes_per_s=hbm_bytes_per_s)


def memory_bound_time_s(traffic_bytes: Numeric, *, rates: MemoryRates, hbm_bytes_per_s: float) -> Numeric:
    """Time of a kernel that only moves data: bytes read and written over achieved bandwidth, plus its floor.

    Ignores: that the last-level cache has kept part of what the kernel before wrote. Training steps measured on an A100
    (40 MB of it) with tensors of 33 to 130 MB show nothing of such a gain.
    Source: [derived] no byte moves faster than memory does.
    """
    return traffic_bytes * (1.0 / (hbm_bytes_per_s * rates.hbm_fraction)) + rates.launch_s
