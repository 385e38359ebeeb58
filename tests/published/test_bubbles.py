"""Bubbles and micro-batches in flight of pipeline schedules, as their papers state them.

Ratios of bubble to ideal time: Narayanan et al. 2021, section 2.2: (p - 1) / m and (p - 1) / (v m). Qi et al. 2023,
with equal passes F = B = W: (p - 1) / m for 1F1B and (p - 1) / 3m for ZB-H1. Huang et al. 2019, section 2.3:
(K - 1) / (M + K - 1) of the whole time. DeepSeek-V3, table 2: (PP - 1)(F + B), (PP - 1)(F + B - 2W) and
(PP / 2 - 1)(F&B + B - 3W), holding activations of PP, PP and PP + 1 micro-batches; B is the whole backward pass.
"""

import numpy as np
import pytest

from dlcalc.calculators.schedule import (
    DUALPIPE,
    GPIPE,
    INTERLEAVED,
    ONE_F_ONE_B,
    ZB_H1,
    ZB_V,
    bubble_time_s,
    in_flight_micro_batches_count,
)


def bubble(code, *, pp, m, vpp=1, forward=1.0, backward=2.0, weight_grad=1.0):
    return float(
        bubble_time_s(
            code,
            pp=pp,
            vpp=vpp,
            n_micro_batches=m,
            forward_s=forward,
            backward_s=backward,
            weight_grad_s=weight_grad,
        )
    )


def in_flight(code, *, pp, stage=0, vpp=1, m=1000):
    return float(in_flight_micro_batches_count(code, pp=pp, vpp=vpp, n_micro_batches=m, stage=stage))


@pytest.mark.parametrize("pp", [2, 4, 8, 35])
@pytest.mark.parametrize("rounds", [1, 4, 16])
def test_narayanan2021_ratios(pp, rounds):
    m = pp * rounds
    assert bubble(ONE_F_ONE_B, pp=pp, m=m) / (3 * m) == pytest.approx((pp - 1) / m)
    for vpp in (2, 3, 8):
        assert bubble(INTERLEAVED, pp=pp, vpp=vpp, m=m) / (3 * m) == pytest.approx((pp - 1) / (vpp * m))


@pytest.mark.parametrize(("pp", "m"), [(2, 8), (8, 8), (8, 32)])
def test_huang2019_share_of_the_step(pp, m):
    waited = bubble(GPIPE, pp=pp, m=m)
    assert waited / (waited + 3 * m) == pytest.approx((pp - 1) / (m + pp - 1))


@pytest.mark.parametrize(("pp", "m"), [(4, 8), (8, 24), (16, 48)])
def test_qi2023_rates_for_equal_passes(pp, m):
    assert bubble(ONE_F_ONE_B, pp=pp, m=m) / (3 * m) == pytest.approx((pp - 1) / m)
    assert bubble(ZB_H1, pp=pp, m=m) / (3 * m) == pytest.approx((pp - 1) / (3 * m))


@pytest.mark.parametrize(("pp", "m"), [(4, 8), (8, 24), (16, 48)])
def test_qi2023_zb_v_waits_for_its_first_passes_alone(pp, m):
    """Its zero bubble lets stages begin and end one after the other; ending together costs pp - 1 half stages."""
    assert bubble(ZB_V, pp=pp, vpp=2, m=m) == pytest.approx((pp - 1) * 0.5)


@pytest.mark.parametrize("pp", [4, 8, 16])
@pytest.mark.parametrize(("forward", "backward", "weight_grad"), [(1.0, 2.0, 1.0), (1.0, 2.3, 0.9), (0.7, 1.9, 0.6)])
def test_deepseek2024v3_table_2(pp, forward, backward, weight_grad):
    passes = {"forward": forward, "backward": backward, "weight_grad": weight_grad}
    both = forward + backward  # F&B, its overlap of communication aside
    m = 4 * pp
    assert bubble(ONE_F_ONE_B, pp=pp, m=m, **passes) == pytest.approx((pp - 1) * (forward + backward))
    assert bubble(ZB_H1, pp=pp, m=m, **passes) == pytest.approx((pp - 1) * (forward + backward - 2 * weight_grad))
    assert bubble(DUALPIPE, pp=pp, m=m, **passes) == pytest.approx((pp / 2 - 1) * (both + backward - 3 * weight_grad))

    assert in_flight(ONE_F_ONE_B, pp=pp) == pp
    assert in_flight(ZB_H1, pp=pp) == pp
    assert in_flight(DUALPIPE, pp=pp) == pp + 1


@pytest.mark.parametrize(("pp", "vpp"), [(8, 3), (35, 3), (4, 2)])
def test_korthikanti2022_interleaving_holds_more(pp, vpp):
    """Section 4.2.3: by a factor of 1 + (p - 1) / (p m), m being the chunks per stage."""
    assert in_flight(INTERLEAVED, pp=pp, vpp=vpp) == pytest.approx(pp * (1 + (pp - 1) / (pp * vpp)))


def test_qi2023_memory_of_1f1b():
    """Zero bubble within the memory of 1F1B: ZB-H1 and ZB-V hold what the first stage of 1F1B does, on every stage."""
    stages = np.arange(8)
    assert in_flight(ONE_F_ONE_B, pp=8) == 8
    for code, vpp in ((ZB_H1, 1), (ZB_V, 2)):
        held = in_flight_micro_batches_count(code, pp=8, vpp=vpp, n_micro_batches=100, stage=stages)
        assert np.all(held == 8)


def test_a_pipeline_of_one_stage_waits_for_nothing():
    for code, vpp in ((ONE_F_ONE_B, 1), (INTERLEAVED, 4), (ZB_H1, 1), (ZB_V, 2), (GPIPE, 1)):
        assert bubble(code, pp=1, vpp=vpp, m=8) == 0.0
