"""What ranks of one sequence exchange: bytes by counting, what attention hides, what is refused, what launches say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.calculators import context_parallel as context
from dlcalc.costmodel.anatomy.traffic import axis_facts
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.layer_times import _attention_core
from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.hardware_registry import HardwareRegistry, load_hardware
from dlcalc.search.exhaustive import evaluate, search_block
from dlcalc.search.study import scenarios_of
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.space import SpaceSpec

GROUPED, EVERY_HEAD = load_model("llama3-8b"), load_model("gpt3-175b")
HARDWARE = load_hardware("h100")


def estimated(model=GROUPED, *, seq_len=131_072, framework="megatron", **plan):
    recipe = Recipe(seq_len=seq_len, global_batch=8, precision="bf16", framework=load_framework(framework))
    return estimate(model, HARDWARE, recipe, Plans.point(**{"zero_stage": 1, **plan}))


def cp_comm_s(**settings):
    return float(np.asarray(estimated(**settings).step.cp_comm_s))


@given(st.integers(1, 2**20), st.integers(1, 128), st.integers(1, 128), st.sampled_from([64, 128]), st.integers(1, 64))
def test_heads_change_place_in_fewer_bytes_than_keys_go_round_where_cp_exceeds_their_ratio(
    tokens, kv_heads, group, width, cp
):
    """(1 + g) s / cp against s: all-to-all moves less as soon as cp exceeds one plus the queries per key."""
    widths = {"qk_head_dim": width, "value_head_dim": width}
    swapped = sum(context.head_exchange_bytes(tokens / cp, heads=kv_heads * group, kv_heads=kv_heads, **widths))
    around = context.key_value_bytes(tokens, kv_heads=kv_heads, **widths)
    assert swapped / around == pytest.approx((1 + group) / cp)


def test_bytes_of_llama_3_8b_at_128k():
    """8 KV heads of 128, keys and values in 16 bits: 4,096 bytes a token, 512 MiB a layer."""
    whole = context.key_value_bytes(131_072, kv_heads=8, qk_head_dim=128, value_head_dim=128)
    assert whole == 512 * 2**20
    query, key, value, output = context.head_exchange_bytes(
        131_072 / 8, heads=32, kv_heads=8, qk_head_dim=128, value_head_dim=128
    )
    assert (query, key, value, output) == (2**27, 2**25, 2**25, 2**27)


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        ("ring", 7 * 2.25 * 2**27, 7 * 2.25 * (2**27 + 2 * 2**25)),  # outputs merged seven times; gradients likewise
        ("all_to_all", 4 * (2 * 2**27 + 2 * 2**25), 4 * (2 * 2**27 + 2 * 2**25)),  # two copies of all four
        ("all_gather", 2 * (2**29 + 2**27), 2 * (3 * 2**29 + 2**27)),  # of 512 MiB; again, and twice of gradients
    ],
)
def test_what_llama_3_8b_copies_at_128k_over_eight(kind, forward, backward):
    moved = context.exchange_copies_bytes(
        131_072 / 8, cp=8.0, cp_exchange=context.CP_EXCHANGES.index(kind),
        heads=32, kv_heads=8, qk_head_dim=128, value_head_dim=128,
    )  # fmt: skip
    assert tuple(map(float, moved)) == (forward, backward)


@pytest.mark.parametrize("kind", context.CP_EXCHANGES)
def test_copies_take_time_where_ranks_share_a_sequence(kind):
    """In attention, and again where it is recomputed."""
    kept, again = (estimated(cp=8, dp=1, cp_exchange=kind, recompute=mode) for mode in ("none", "selective"))
    heads = {"heads": np.float64(32), "kv_heads": np.float64(8)}
    shared = {"cp": 8.0, "cp_exchange": context.CP_EXCHANGES.index(kind), "qk_head_dim": 128, "value_head_dim": 128}
    copied_f, copied_b = map(float, context.exchange_copies_bytes(131_072 / 8, **shared, **heads))
    core_f, core_b = map(float, _attention_core(GROUPED, kept.plans, kept.machine, **heads, window=0))
    rate = HARDWARE.device.hbm_bytes_per_s * HARDWARE.calibration.memory.hbm_fraction
    passes = 32 * 8  # layers, micro-batches
    attention_s, again_s = float(kept.step.attention_s), float(again.step.recompute_s)
    assert attention_s == pytest.approx(passes * (core_f + core_b + (copied_f + copied_b) / rate), rel=1e-3)
    assert again_s > passes * (core_f + copied_f / rate)


def test_a_plan_that_shares_no_sequence_takes_what_it_takes_alone():
    """Whatever is estimated beside it."""
    recipe = Recipe(seq_len=8192, global_batch=8, precision="bf16", framework=load_framework("megatron"))
    two = (Plans.point(cp=cp, dp=8 // cp, zero_stage=1) for cp in (1, 8))
    columns = [{knob: float(getattr(plan, knob)) for knob in KNOBS} for plan in two]
    plans = Plans.rows({knob: np.array([plan[knob] for plan in columns]) for knob in KNOBS})
    both = estimate(GROUPED, HARDWARE, recipe, plans)
    alone = estimate(GROUPED, HARDWARE, recipe, Plans.point(dp=8, zero_stage=1))
    assert float(both.step_time_s[0]) == float(alone.step_time_s)


def test_a_default_search_finds_the_exchange_that_wins():
    """Every head's keys over two nodes: the ring that a plan by hand takes is not the fastest."""
    spec = {
        "study": "exchange", "model": "llama2-7b", "hardware": "h100", "cluster": {"devices": 16},
        "recipe": {"seq_len": 16_384, "global_batch": 8}, "space": {"cp": 16},
    }  # fmt: skip
    case = scenarios_of(SpaceSpec.model_validate(spec), Path(), HardwareRegistry())[0]
    best = search_block(case, 0, case.shape[0], keep=1).leaders.index
    found = evaluate(case, 0, case.shape[0])
    ring = np.broadcast_to(found.plans.cp_exchange == context.RING, found.step_time_s.shape)
    assert int(case.rows(best).cp_exchange[0]) != context.RING
    assert float(found.step_time_s.ravel()[best[0]]) < float(np.min(found.step_time_s[found.fits & ring]))


def test_a_long_sequence_hides_a_ring_inside_a_node_and_no_other_exchange():
    """What is left of a ring is how much it slows attention: in three gathers' time, one forward and two backward."""
    found = estimated(cp=8, dp=1, cp_exchange="ring")
    sent = next(axis for axis in axis_facts(found) if axis.axis == "CP")
    shown = sum(call.call_s * call.calls_per_step for call in sent.collectives)
    slowed = load_framework("megatron").overlap_slowdown * shown
    assert float(np.asarray(found.step.cp_comm_s)) == pytest.approx(slowed, rel=0.02)  # a latency less
    heads, gathered = (cp_comm_s(cp=8, dp=1, cp_exchange=kind) for kind in ("all_to_all", "all_gather"))
    assert heads > slowed
    assert gathered > slowed


def test_across_nodes_short_attention_of_many_keys_is_faster_by_all_to_all():
    """Without grouped queries a ring carries keys of every head cp times as far; 2,048 tokens hide little of that."""
    plan = {"model": EVERY_HEAD, "seq_len": 16_384, "cp": 16, "tp": 1, "pp": 8, "dp": 1}
    ring, heads = (cp_comm_s(**plan, cp_exchange=kind) for kind in ("ring", "all_to_all"))
    assert heads < ring


def test_gathered_keys_are_held_while_attention_runs():
    """Keys, values and both gradients of the whole sequence: 24 heads of 128 on each of 4 tp ranks."""
    plan = {"model": EVERY_HEAD, "seq_len": 8192, "tp": 4, "cp": 2, "pp": 16, "dp": 1, "recompute": "full"}
    ring, gathered = (
        float(np.asarray(estimated(**plan, cp_exchange=kind).memory_bytes)) for kind in ("ring", "all_gather")
    )
    sequence = context.key_value_bytes(8192, kv_heads=24, qk_head_dim=128, value_head_dim=128)
    fragments = 1 + load_framework("megatron").allocator_slack
    assert gathered - ring == pytest.approx(2 * sequence * fragments)


@pytest.mark.parametrize("kind", context.CP_EXCHANGES)
def test_traffic_shown_is_the_traffic_estimated(kind):
    """Exposed is what is sent, less what a ring hides: across nodes at short sequences that is nearly nothing."""
    found = estimated(EVERY_HEAD, seq_len=2048, cp=16, pp=8, dp=1, cp_exchange=kind)
    sent = next(axis for axis in axis_facts(found) if axis.axis == "CP")
    shown = sum(call.call_s * call.calls_per_step for call in sent.collectives)
    exposed = float(np.asarray(found.step.cp_comm_s))
    assert exposed <= shown * (1 + 1e-9)
    if kind != "ring":
        assert exposed == pytest.approx(shown)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cp": 16, "dp": 1, "cp_exchange": "all_to_all"}, "all-to-all over cp needs tp x cp to divide the KV heads"),
    ],
)
def test_what_no_trainer_exchanges(settings, why):
    refused = {reason for reason, mask in estimated(**settings).refused.items() if np.any(mask)}
    assert why in refused
