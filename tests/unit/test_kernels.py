"""Kernels against hand calculations: every expected number follows from the rates just above it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dlcalc.calculators import kernels
from dlcalc.calculators.kernels import (
    attended_pairs_count,
    attention_backward_time_s,
    attention_forward_time_s,
    matmul_time_s,
    memory_bound_time_s,
    score_traffic_bytes,
    sustained_time_s,
    unfused_attention_backward_time_s,
    unfused_attention_forward_time_s,
)
from dlcalc.specs.calibration import AttentionRates, MatmulRates, MemoryRates

PEAK = 100e12
HBM = 1e12
N_SMS = 100.0
DEVICE = {"peak_flops_per_s": PEAK, "hbm_bytes_per_s": HBM, "n_sms": N_SMS}
IDEAL = MatmulRates(rate_fraction=1.0, tiles=[[128, 128]], k_half=0.0, hbm_fraction=1.0, launch_us=0.0)
FLASH = AttentionRates(rate_fraction=0.5, backward_fraction=0.4, seq_half=0.0, launch_us=0.0)
MEMORY = MemoryRates(hbm_fraction=0.5, launch_us=2.0)
ONE_TILE_S = 2 * 128 * 128 * 4096 / (PEAK / N_SMS)
"""An SM has a hundredth of the peak; a 128 x 128 tile over K = 4096 keeps it busy for this long."""


def changed(rates, **update):
    return rates.model_copy(update=update)


@pytest.mark.parametrize(
    ("m", "n", "waves"),
    [
        pytest.param(1280, 1280, 1, id="100 tiles on 100 SMs"),
        pytest.param(1281, 1280, 2, id="one row more: 110 tiles, a second wave"),
        pytest.param(1, 1, 1, id="one element costs a tile"),
        pytest.param(128, 12800, 1, id="shape does not matter, tiles do"),
        pytest.param(128, 12801, 2, id="101 tiles"),
        pytest.param(2560, 2560, 4, id="400 tiles"),
    ],
)
def test_a_matmul_takes_whole_waves_of_tiles(m, n, waves):
    assert matmul_time_s(m, n, 4096.0, rates=IDEAL, **DEVICE) == pytest.approx(waves * ONE_TILE_S)


def test_the_library_picks_the_fastest_tile():
    """130 x 130: four 128-tiles in one wave, or nine 64-tiles in one wave, which are a quarter of the work each."""
    both = changed(IDEAL, tiles=((128, 128), (64, 64)))
    assert matmul_time_s(130.0, 130.0, 4096.0, rates=both, **DEVICE) == pytest.approx(ONE_TILE_S / 4)


def test_a_small_tile_loads_more_per_flop():
    """tile_half = 128: a 128-tile runs at 1 / 2 of the limit, a 64-tile at 1 / 3; the first tile is the reference."""
    both = changed(IDEAL, tiles=((128, 128), (64, 64)), tile_half=128.0)
    assert matmul_time_s(130.0, 130.0, 4096.0, rates=both, **DEVICE) == pytest.approx(ONE_TILE_S / 4 * 3 / 2)


def test_soft_waves_charge_part_of_the_idle_sms():
    """110 tiles: 1.1 waves, rounded up to 2; half softened is 1.55. Below one wave nothing can be softened."""
    soft = changed(IDEAL, wave_softness=0.5)
    assert matmul_time_s(1281.0, 1280.0, 4096.0, rates=soft, **DEVICE) == pytest.approx(1.55 * ONE_TILE_S)
    assert matmul_time_s(128.0, 128.0, 4096.0, rates=soft, **DEVICE) == pytest.approx(ONE_TILE_S)


def test_half_of_the_rate_at_k_half():
    ramp = changed(IDEAL, k_half=4096.0)
    assert matmul_time_s(1280.0, 1280.0, 4096.0, rates=ramp, **DEVICE) == pytest.approx(2 * ONE_TILE_S)


def test_groups_share_waves():
    """25 tiles each: four groups fill the 100 SMs at once, one after the other they would take four waves."""
    together = matmul_time_s(640.0, 640.0, 4096.0, groups=4.0, rates=IDEAL, **DEVICE)
    assert together == pytest.approx(ONE_TILE_S)
    assert 4 * matmul_time_s(640.0, 640.0, 4096.0, rates=IDEAL, **DEVICE) == pytest.approx(4 * ONE_TILE_S)


def test_a_thin_matmul_waits_for_its_weights():
    """One row: (1 + 12800) x 4096 two-byte inputs and 12800 outputs, at half the bandwidth, plus the floor."""
    slow = changed(IDEAL, hbm_fraction=0.5, launch_us=3.0)
    moved = 2 * (1 + 12800) * 4096 + 2 * 12800
    assert matmul_time_s(1.0, 12800.0, 4096.0, rates=slow, **DEVICE) == pytest.approx(moved / (0.5 * HBM) + 3e-6)


def test_traffic_beyond_the_cache_is_partly_exposed():
    exposed = changed(IDEAL, exposed_fraction=0.25)
    moved = 2 * (1280 + 1280) * 4096 + 2 * 1280 * 1280
    spilled = moved / (moved + 1e6)
    expected = ONE_TILE_S + 0.25 * moved / HBM * spilled
    assert matmul_time_s(1280.0, 1280.0, 4096.0, rates=exposed, l2_bytes=1e6, **DEVICE) == pytest.approx(expected)


def test_adding_to_a_buffer_is_not_hidden():
    """An fp32 buffer is read and written: 8 bytes an element, of which 2 come with any result."""
    adding = changed(IDEAL, accumulate_exposed=1.0)
    plain = matmul_time_s(1280.0, 1280.0, 4096.0, rates=adding, **DEVICE)
    assert plain == matmul_time_s(1280.0, 1280.0, 4096.0, rates=IDEAL, **DEVICE)
    added = matmul_time_s(1280.0, 1280.0, 4096.0, rates=adding, output_bytes=8.0, **DEVICE)
    assert added - plain == pytest.approx(6 * 1280**2 / HBM)


def test_a_busy_device_loses_its_boost_clock():
    """One wave takes 134 us, so alone 134 / (134 + 2500) of the loss counts; in a step what training runs say."""
    hot = changed(IDEAL, sustained_loss=0.2)
    share = ONE_TILE_S / (ONE_TILE_S + 2.5e-3)
    alone = matmul_time_s(1280.0, 1280.0, 4096.0, rates=hot, **DEVICE)
    assert alone == pytest.approx((1 + 0.2 * share) * ONE_TILE_S)
    assert sustained_time_s(kernels.SETTLING_S, loss=0.2) == pytest.approx(1.1 * kernels.SETTLING_S)
    in_a_step = matmul_time_s(1280.0, 1280.0, 4096.0, rates=hot, arithmetic_factor=1.3, **DEVICE)
    assert in_a_step == pytest.approx(1.3 * ONE_TILE_S)


def test_what_slows_arithmetic_does_not_slow_memory():
    slow = changed(IDEAL, hbm_fraction=0.05)
    one_row = matmul_time_s(1.0, 12800.0, 4096.0, rates=slow, **DEVICE)
    assert matmul_time_s(1.0, 12800.0, 4096.0, rates=slow, arithmetic_factor=1.3, **DEVICE) == one_row


REAL = MatmulRates(
    rate_fraction=0.85, tiles=[[256, 128], [128, 128], [64, 64]], tile_half=5.0, k_half=150.0, wave_softness=0.4,
    hbm_fraction=0.75, exposed_fraction=0.1, sustained_loss=0.2, launch_us=3.0,
)  # fmt: skip
sides = st.floats(1.0, 40000.0)


@given(m=sides, n=sides, k=sides, more=st.floats(1.0, 3.0))
def test_a_larger_matmul_is_never_faster(m, n, k, more):
    small = matmul_time_s(m, n, k, rates=REAL, **DEVICE)
    for larger in ((m * more, n, k), (m, n * more, k), (m, n, k * more)):
        assert matmul_time_s(*larger, rates=REAL, **DEVICE) >= small * (1 - 1e-12)


@given(m=sides, n=sides, k=sides, groups=st.integers(1, 64))
def test_no_matmul_beats_the_peak_or_the_memory(m, n, k, groups):
    seconds = matmul_time_s(m, n, k, groups=float(groups), rates=REAL, **DEVICE)
    assert seconds >= groups * 2 * m * n * k / PEAK
    assert seconds >= groups * 2 * (m * k + k * n + m * n) / HBM


@given(m=sides, n=sides, k=sides, groups=st.integers(1, 64))
def test_a_group_is_never_slower_than_its_members_in_turn(m, n, k, groups):
    """Cache aside: together they may overflow it."""
    rates = changed(REAL, exposed_fraction=0.0)
    same = {"rates": rates, "arithmetic_factor": 1.1, **DEVICE}  # alone, the longer launch would lose more to power
    together = matmul_time_s(m, n, k, groups=float(groups), **same)
    assert together <= groups * matmul_time_s(m, n, k, **same) * (1 + 1e-12)


def test_whole_waves_stay_whole():
    """7 x 34 x 150 tiles on 100 SMs are 357 waves, though 35,700 x 0.01 comes out above it."""
    one = matmul_time_s(8577.0, 19073.0, 204.0, rates=IDEAL, **DEVICE)
    assert matmul_time_s(8577.0, 19073.0, 204.0, groups=7.0, rates=IDEAL, **DEVICE) == pytest.approx(7 * one, rel=1e-9)


def test_arrays_broadcast_to_the_same_answers():
    m, n = np.array([[512.0], [4096.0]]), np.array([1000.0, 8192.0, 333.3])
    grid = matmul_time_s(m, n, 1024.0, rates=REAL, **DEVICE)
    points = [[matmul_time_s(float(a), float(b), 1024.0, rates=REAL, **DEVICE) for b in n] for a in m[:, 0]]
    assert_allclose(grid, points, rtol=1e-14)


# ---- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seq", "window"), [(512, 0), (512, 100), (512, 512), (512, 4096), (7, 3)])
def test_causal_pairs_are_those_one_can_count(seq, window):
    """Query i sees min(i, w) keys; the closed form counts half of the diagonal, hence the + 1 / 2 a query."""
    counted = sum(min(i, window or seq) for i in range(1, seq + 1))
    pairs = attended_pairs_count(float(seq), float(seq), causal=True, window=window)
    assert pairs == pytest.approx(counted, abs=0.5 * seq)


def test_context_parallel_ranks_share_the_pairs():
    whole = attended_pairs_count(8192.0, 8192.0, causal=True)
    assert 4 * attended_pairs_count(2048.0, 8192.0, causal=True) == pytest.approx(whole)
    assert attended_pairs_count(8192.0, 8192.0, causal=False) == 8192.0**2


SHAPE = {"batch": 2.0, "n_heads": 16.0, "n_kv_heads": 4.0, "qk_head_dim": 128.0, "v_head_dim": 128.0}


def test_forward_attention_is_its_flops_at_its_rate():
    """4 s^2 d flops a head, half of them masked, at half of the peak."""
    flops = 0.5 * 4 * 4096**2 * 128 * 16 * 2
    seconds = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert seconds == pytest.approx(flops / (0.5 * PEAK))


def test_backward_attention_is_five_matmuls():
    forward = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    backward = attention_backward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert backward == pytest.approx(forward * 2.5 * 0.5 / 0.4)


def test_latent_heads_have_two_widths():
    """192-wide queries and 128-wide values: (192 + 128) and 3 x 192 + 2 x 128 columns of matmul per pair."""
    wide = SHAPE | {"qk_head_dim": 192.0}
    base = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **wide, **DEVICE) == pytest.approx(base * 320 / 256)
    back = attention_backward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert attention_backward_time_s(4096.0, 4096.0, rates=FLASH, **wide, **DEVICE) == pytest.approx(back * 832 / 640)


@pytest.mark.parametrize(
    ("kernel", "pads_values", "columns"),
    [("te_flash", False, 320), ("te_flash", True, 384), ("flash3", False, 320), ("flash2", False, 384)],
)
def test_kernels_of_one_width_pad_values(kernel, pads_values, columns):
    """FlashAttention-2 works on values of 128 as on those of 192 beside queries of that width."""
    rates, wide = changed(FLASH, pads_values=pads_values), SHAPE | {"qk_head_dim": 192.0}
    base = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    padded = attention_forward_time_s(4096.0, 4096.0, rates=rates, kernel=kernel, **wide, **DEVICE)
    assert padded == pytest.approx(base * columns / 256)
    back = attention_backward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    padded = attention_backward_time_s(4096.0, 4096.0, rates=rates, kernel=kernel, **wide, **DEVICE)
    assert padded == pytest.approx(back * (832 if columns == 320 else 960) / 640)


def test_softmax_costs_narrow_heads_more():
    """Softmax worth 256 columns: heads of 128 are the reference; heads of 64 cost sqrt(128^2 + 256^2) / sqrt(2) 256."""
    rates = changed(FLASH, softmax_width=256.0)
    wide = attention_forward_time_s(4096.0, 4096.0, rates=rates, **SHAPE, **DEVICE)
    assert wide == pytest.approx(attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE))
    narrow_shape = SHAPE | {"qk_head_dim": 64.0, "v_head_dim": 64.0}
    narrow = attention_forward_time_s(4096.0, 4096.0, rates=rates, **narrow_shape, **DEVICE)
    assert narrow / wide == pytest.approx(np.hypot(128, 256) / (np.sqrt(2) * 256))


def test_half_of_the_rate_at_seq_half():
    ramp = changed(FLASH, seq_half=4096.0)
    fast = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert attention_forward_time_s(4096.0, 4096.0, rates=ramp, **SHAPE, **DEVICE) == pytest.approx(2 * fast)


def test_the_last_tiles_run_alone():
    """One tile of 128 queries against 4096 keys on one of 100 SMs."""
    tail = changed(FLASH, tail_tiles=1.0)
    extra = 2 * 256 * 128 * 4096 / (0.5 * PEAK / N_SMS)
    fast = attention_forward_time_s(4096.0, 4096.0, rates=FLASH, **SHAPE, **DEVICE)
    assert attention_forward_time_s(4096.0, 4096.0, rates=tail, **SHAPE, **DEVICE) == pytest.approx(fast + extra)


def test_other_kernels_have_their_share_of_the_rate():
    rates = changed(FLASH, kernel_fractions={"flash2": 0.5})
    measured = attention_forward_time_s(4096.0, 4096.0, rates=rates, **SHAPE, **DEVICE)
    older = attention_forward_time_s(4096.0, 4096.0, rates=rates, kernel="flash2", **SHAPE, **DEVICE)
    unknown = attention_forward_time_s(4096.0, 4096.0, rates=rates, kernel="flash9", **SHAPE, **DEVICE)
    assert older == pytest.approx(2 * measured)
    assert unknown == measured


def test_a_window_bounds_the_work():
    """A window of w keys: w a query but for the first ones; as long as the sequence, it is no window."""
    seq, window = 16384.0, 1024.0
    full = attention_forward_time_s(seq, seq, rates=FLASH, **SHAPE, **DEVICE)
    cut = attention_forward_time_s(seq, seq, window=window, rates=FLASH, **SHAPE, **DEVICE)
    assert cut / full == pytest.approx((seq * window - window**2 / 2) / (seq**2 / 2))
    whole = attention_forward_time_s(seq, seq, window=seq, rates=changed(FLASH, seq_half=300.0), **SHAPE, **DEVICE)
    assert whole == pytest.approx(
        attention_forward_time_s(seq, seq, rates=changed(FLASH, seq_half=300.0), **SHAPE, **DEVICE)
    )


def test_scores_in_memory_are_read_and_written_by_every_pass():
    """Fused: softmax reads half of 2 bytes (the mask leaves no more) and writes them, dropout reads and writes them all
    and a mask of 1; backward reads two halves; unfused: fp32 passes of their own."""
    assert score_traffic_bytes(1.0, fused_softmax=True, dropout=False, backward=False) == 2 / 2 + 2
    assert score_traffic_bytes(1.0, fused_softmax=True, dropout=True, backward=False) == 2 / 2 + 2 + (2 + 2 + 1)
    assert score_traffic_bytes(1.0, fused_softmax=True, dropout=False, backward=True) == 2 * 2 / 2 + 2
    for backward in (False, True):
        fused = score_traffic_bytes(1.0, fused_softmax=True, dropout=True, backward=backward)
        assert score_traffic_bytes(1.0, fused_softmax=False, dropout=True, backward=backward) > 2 * fused


def test_unfused_attention_is_its_matmuls_and_its_passes():
    unit = {"batch": 2.0, "n_heads": 50.0, "qk_head_dim": 128.0, "v_head_dim": 128.0, "matmul": IDEAL, "memory": MEMORY}
    options = {"fused_softmax": True, "dropout": False}
    scores = 2 * 50 * 1024**2
    one_matmul = matmul_time_s(1024.0, 1024.0, 128.0, groups=100.0, rates=IDEAL, **DEVICE)
    other = matmul_time_s(1024.0, 128.0, 1024.0, groups=100.0, rates=IDEAL, **DEVICE)
    forward = unfused_attention_forward_time_s(1024.0, 1024.0, **unit, **options, **DEVICE)
    assert forward == pytest.approx(one_matmul + other + 3 * scores / (0.5 * HBM) + 2e-6)
    backward = unfused_attention_backward_time_s(1024.0, 1024.0, **unit, **options, **DEVICE)
    assert backward == pytest.approx(one_matmul + 3 * other + 4 * scores / (0.5 * HBM) + 2e-6)


def test_a_pass_is_bytes_over_bandwidth_and_a_floor():
    assert memory_bound_time_s(1e9, rates=MEMORY, hbm_bytes_per_s=HBM) == pytest.approx(2e-3 + 2e-6)
