"""Bytes of memory-bound operations, counted operand by operand."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.calculators import traffic
from dlcalc.specs.framework_registry import load_framework

FUSED = load_framework(
    "megatron", {"fused_norm": True, "fused_residual": True, "fused_rope": True, "fused_activation": True}
)
UNFUSED = load_framework(
    "megatron", {"fused_norm": False, "fused_residual": False, "fused_rope": False, "fused_activation": False}
)


def test_a_fused_norm_reads_once_and_writes_once():
    """bf16: read x (2), write y (2); backward reads x, dy and x again (6), writes dx (2)."""
    assert traffic.norm_traffic_bytes(1000.0, profile=FUSED) == (1000 * (2 + 2), 1000 * (6 + 2))


def test_a_norm_of_operations_moves_an_fp32_copy_again_and_again():
    """By hand, per element: cast 6, square 8, mean 4, scale 8, cast 6, weight 4; backward see ``NORM``."""
    once, twice = (UNFUSED.model_copy(update={"fused_norm": False, "norm_casts": casts}) for casts in (1, 2))
    assert traffic.norm_traffic_bytes(1000.0, profile=once) == (36_000, 92_000)
    assert traffic.norm_traffic_bytes(1000.0, profile=twice) == (42_000, 92_000)
    assert traffic.norm_traffic_bytes(1000.0, profile=twice.model_copy(update={"fused_norm": True})) == (4000, 8000)


def test_a_fused_gate_reads_two_and_writes_one():
    """Per element of its output: read gate and up (4), write (2); backward reads three (6), writes two (4)."""
    moved = traffic.activation_traffic_bytes(1000.0, gated=True, profile=FUSED)
    assert moved == (1000 * (4 + 2), 1000 * (6 + 4))


def test_latent_heads_are_cut_apart_and_joined():
    """A read and a write each; a fused kernel leaves the query where it is."""
    assert traffic.latent_split_traffic_bytes(192.0, 320.0, profile=UNFUSED) == (192 + 320) * (2 + 2)
    assert traffic.latent_split_traffic_bytes(192.0, 320.0, profile=FUSED) == 320 * (2 + 2)


def test_rows_gathered_by_index_count_a_third_more():
    """Gathered, sorted there and back, summed: 14 bytes of a routed element, at 3/4 of the rate; 24 of a score."""
    rows = routing(np.zeros(()), np.array(3e6))
    assert rows == (pytest.approx(56e6), pytest.approx(56e6))
    assert routing(np.array(100.0), np.zeros(())) == (64 * 2400, 64 * 2400)


def routing(tokens, elements, precision="bf16", ep=8.0, **changes):
    profile = FUSED.model_copy(update=changes)
    return traffic.routing_traffic_bytes(
        tokens, elements, n_experts=64, ep=np.array(ep), profile=profile, precision=precision
    )


def test_a_dispatcher_that_knows_ranks_copies_on_arrival_alone():
    """Copied for a rank's experts and summed: 6 bytes, at 3/4 of the rate."""
    rows = routing(np.zeros(()), np.array(3e6), dispatches_once_per_node=True)
    assert rows == (pytest.approx(24e6), pytest.approx(24e6))
    alone = {"ep": 1.0, "pads_experts_apart": True}
    nothing_dispatched = routing(np.zeros(()), np.array(3e6), "fp8", dispatches_once_per_node=True, **alone)
    assert nothing_dispatched == routing(np.zeros(()), np.array(3e6), "fp8", **alone)


@pytest.mark.parametrize(
    ("precision", "once", "apart", "padded"),
    [
        ("fp8", False, True, 8),
        ("mxfp8", False, True, 8),
        ("bf16", False, True, 0),
        ("fp8", True, True, 0),
        ("fp8", False, False, 0),
    ],
)
def test_tokens_of_an_expert_are_padded_apart_in_low_precision_but_where_the_dispatcher_pads(
    precision, once, apart, padded
):
    of = {"dispatches_once_per_node": once}
    plain = routing(np.zeros(()), np.array(3e6), pads_experts_apart=False, **of)
    rows = routing(np.zeros(()), np.array(3e6), precision, pads_experts_apart=apart, **of)
    assert rows == (pytest.approx(plain[0] + padded * 3e6), pytest.approx(plain[1] + padded * 3e6))


def test_adam_moves_every_state_in_and_out():
    """fp32 gradient twice (8), master weight and both moments in and out (2 x 12), the 16-bit weight written (2)."""
    profile = FUSED.model_copy(update={"grad_bytes": 4, "master_weight_bytes": 4, "optimizer_state_bytes": 8})
    assert traffic.optimizer_traffic_bytes(1000.0, profile=profile) == 1000 * (8 + 24 + 2)


@pytest.mark.parametrize(
    "moved",
    [
        traffic.norm_traffic_bytes,
        traffic.residual_traffic_bytes,
        traffic.rope_traffic_bytes,
        lambda n, profile: traffic.activation_traffic_bytes(n, gated=True, profile=profile),
        lambda n, profile: traffic.activation_traffic_bytes(n, gated=False, profile=profile),
    ],
    ids=["norm", "residual", "rope", "gated", "ungated"],
)
def test_fused_never_moves_more(moved):
    fused, unfused = moved(1.0, profile=FUSED), moved(1.0, profile=UNFUSED)
    assert all(less <= more for less, more in zip(fused, unfused, strict=True))


def test_the_fused_cross_entropy_moves_least():
    def moved(kind):
        return sum(traffic.loss_traffic_bytes(1.0, profile=FUSED.model_copy(update={"cross_entropy": kind})))

    assert moved("fused") < min(moved("parallel"), moved("gathered"))


def test_gradients_added_inside_the_matmul_cost_no_pass():
    inside = FUSED.model_copy(update={"fused_grad_accumulation": True})
    apart = FUSED.model_copy(update={"fused_grad_accumulation": False, "grad_bytes": 4})
    assert traffic.accumulation_traffic_bytes(1000.0, profile=inside) == 0
    assert traffic.accumulation_traffic_bytes(1000.0, profile=apart) == 12_000  # bf16 written, read; fp32 read, written


@pytest.mark.parametrize(("grad_bytes", "moved"), [(4, 18_000), (2, 8_000)])
def test_a_copy_in_fp32_is_written_and_read_once_more(grad_bytes, moved):
    copies = {"fused_grad_accumulation": False, "copies_widened_gradients": True, "grad_bytes": grad_bytes}
    assert traffic.accumulation_traffic_bytes(1000.0, profile=FUSED.model_copy(update=copies)) == moved


@pytest.mark.parametrize(("copies", "moved"), [(True, 16_000), (False, 0)])
def test_weights_gathered_twice_and_gradients_scattered_once_are_copied_unless_used_where_they_are(copies, moved):
    profile = FUSED.model_copy(update={"copies_shards": copies})
    assert traffic.sharding_copy_traffic_bytes(1000.0, profile=profile, gathers=2.0, scatters=1.0) == moved


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_sixteen_bits_and_more_are_not_quantized(precision):
    assert traffic.cast_traffic_bytes(1000.0, precision=precision) == 0


@pytest.mark.parametrize("precision", ["fp8", "mxfp8", "nvfp4"])
def test_quantizing_reads_at_least_what_it_is_given(precision):
    assert traffic.cast_traffic_bytes(1000.0, precision=precision) > 2000


def test_a_scale_of_steps_before_saves_the_pass_for_the_maximum():
    now, before = (
        traffic.cast_traffic_bytes(1000.0, precision="fp8", scaling=scaling) for scaling in ("tensor", "delayed")
    )
    assert now - before == 2000  # each element, in 16 bits, once
    assert traffic.cast_traffic_bytes(1000.0, precision="mxfp8", scaling="delayed") == traffic.cast_traffic_bytes(
        1000.0, precision="mxfp8"
    )


def test_an_experts_bias_is_added_in_fp32():
    """Product written (4) and sum of bf16 and fp32 (2 + 4 + 4), one element at a time; joined (8); cast (4 + 2)."""
    slow = traffic.UNVECTORIZED_COST
    assert traffic.expert_bias_traffic_bytes(1.0)[0] == slow * (4 + 10) + 8 + 6
    assert traffic.clamp_traffic_bytes(1.0)[0] == slow * 2 * (2 + 2) + 2 * (2 + 2)  # gate and up, then both joined


def test_rotating_complex_numbers_costs_the_same_whatever_is_fused():
    turned = [profile.model_copy(update={"rotates_complex_numbers": True}) for profile in (FUSED, UNFUSED)]
    costs = {traffic.rope_traffic_bytes(1.0, profile=profile) for profile in turned}
    assert costs == {(20.0, 20.0)}  # a cast to fp32, a product of complex numbers, a cast back
