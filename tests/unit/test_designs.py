"""Machines and cuts into stages that differ from a scenario's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.calculators.stages import EMBEDDING_AND_LOSS, EVEN, LOSS, first_layer_count
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import load_hardware
from dlcalc.search.designs import designed_hardware, designs_of
from dlcalc.search.exhaustive import search_block
from dlcalc.search.found import Found
from dlcalc.search.goals import best_compromises
from dlcalc.search.stage_designs import chunk_layers, stage_designs
from dlcalc.specs.design import DesignSpec
from dlcalc.specs.space import KnobRanges
from tests.scenarios import _scenario


def best_s(scenario):
    found = Found()
    for start, stop in scenario.blocks(1 << 22):
        found.add(search_block(scenario, start, stop, keep=1), keep=1, key="step_time")
    return float(found.leaders.step_time_s[0])


# ---- machines


def test_each_variable_changes_its_own_number():
    h100 = load_hardware("h100")
    made = designed_hardware(
        h100,
        {
            "hbm_gib": 160.0,
            "hbm_tb_per_s": 5.0,
            "n_sms": 264.0,
            "peak_factor": 1.5,
            "node_devices": 72.0,
            "link_gb_per_s": 900.0,
            "nic_gbit_per_s_per_device": 800.0,
        },
        "design 1",
    )
    assert made.device.hbm_gib.value == 160
    assert made.device.hbm_bytes == pytest.approx(h100.device.hbm_bytes * 160 / h100.device.hbm_gib.value)
    assert made.device.hbm_bytes_per_s == 5e12
    twice = 264 / h100.device.n_sms.value
    assert made.device.peak_flops_per_s("bf16") == pytest.approx(h100.device.peak_flops_per_s("bf16") * twice * 1.5)
    assert (made.node.n_devices, made.node.link_bytes_per_s) == (72, 900e9)
    assert made.fabric.nic_bytes_per_s_per_device == 100e9
    assert made.name == "h100_design_1"


def test_what_is_not_varied_stays():
    h100 = load_hardware("h100")
    made = designed_hardware(h100, {"nic_gbit_per_s_per_device": 800.0}, "design 1")
    assert made.device == h100.device
    assert made.node == h100.node


def test_a_design_is_less_certain_than_a_measured_machine():
    scenario = _scenario("dense", "auto")
    made = designs_of(scenario, DesignSpec(hbm_gib=(80.0, 96.0)), KnobRanges()).made({"hbm_gib": 96.0}, "design 0")
    plans = scenario.plans(0, 1)
    _, own = step_time_interval_factors(scenario.model, scenario.hardware, scenario.recipe, plans, scenario.uncertainty)
    _, its = step_time_interval_factors(made.model, made.hardware, made.recipe, plans, made.uncertainty)
    assert float(np.min(its)) > float(np.min(own))


def test_the_price_is_what_the_user_says():
    scenario = _scenario("dense", "auto")
    spec = DesignSpec(hbm_gib=(80.0, 160.0), usd_per_device_hour="1 + 0.01 * hbm_gib + 0.1 * node_devices")
    made = designs_of(scenario, spec, KnobRanges()).made({"hbm_gib": 160.0}, "design 0")
    assert made.hardware.price.usd_per_device_hour == pytest.approx(1 + 1.6 + 0.8)  # eight devices, not varied


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ("1 + hbm_gb", "did you mean hbm_gib?"),
        ("1 +", "cannot read"),
        ("__import__('os')", "may hold numbers"),
        ("hbm_gib - 1000", "a price is above 0"),
        ("1 / (n_sms - n_sms)", "division by zero"),
    ],
)
def test_a_price_that_makes_no_sense_is_named(price, said):
    spec = DesignSpec(hbm_gib=(80.0, 96.0), usd_per_device_hour=price)
    with pytest.raises(DlcalcError, match="usd_per_device_hour") as caught:
        designs_of(_scenario("dense", "auto"), spec, KnobRanges())
    assert said in str(caught.value)


def test_half_an_sm_is_refused():
    with pytest.raises(DlcalcError, match="n_sms: its values must be whole"):
        designs_of(_scenario("dense", "auto"), DesignSpec(n_sms=(100.5, 120.0)), KnobRanges())


# ---- stages


@given(
    n_layers=st.integers(1, 130),
    pp=st.integers(2, 16),
    vpp=st.integers(1, 6),
    first=st.floats(0.1, 1.3),
    last=st.floats(0.1, 1.3),
    slope=st.floats(-0.6, 0.6),
)
def test_every_chunk_holds_a_layer_and_none_is_lost(n_layers, pp, vpp, first, last, slope):
    n_layers = max(n_layers, pp * vpp)
    cut = chunk_layers(n_layers, pp=pp, vpp=vpp, first=first, last=last, slope=slope)
    assert len(cut) == pp * vpp
    assert sum(cut) == n_layers
    assert min(cut) >= 1


@pytest.mark.parametrize(("pp", "vpp"), [(2, 1), (4, 1), (4, 5), (8, 2), (16, 1)])
def test_the_cuts_of_trainers_are_among_them(pp, vpp):
    """80 layers; with the embedding and the loss as a layer each, the outer chunks hold one fewer of 82 / chunks."""
    chunks = np.arange(pp * vpp + 1.0)
    even = np.diff(first_layer_count(80, chunks, n_chunks=pp * vpp, split=EVEN))
    assert chunk_layers(80, pp=pp, vpp=vpp, first=1.0, last=1.0, slope=0.0) == tuple(even)
    lighter = np.diff(first_layer_count(80, chunks, n_chunks=pp * vpp, split=EMBEDDING_AND_LOSS))
    end = 1.0 - pp * vpp / 82
    cut = chunk_layers(80, pp=pp, vpp=vpp, first=end, last=end, slope=0.0)
    assert np.abs(np.cumsum(cut) - np.cumsum(lighter)).max() <= 1  # where rounding falls may differ


@pytest.mark.parametrize(("n_chunks", "outer"), [(4, (16, 13)), (8, (8, 5)), (16, (4, 1)), (32, (1, 0))])
def test_the_loss_alone_may_count(n_chunks, outer):
    """DeepSeek-V3: 61 layers and three of the loss and its module are 64, as equal as can be; without it 61 and one."""
    chunks = np.arange(n_chunks + 1.0)
    layers = np.diff(first_layer_count(61, chunks, n_chunks=n_chunks, split=LOSS, mtp_layers=1))
    assert set(layers[:-2]) == {64 / n_chunks}
    assert tuple(layers[-2:]) == outer
    alone = np.diff(first_layer_count(61, chunks, n_chunks=n_chunks, split=LOSS))
    units = alone + (chunks[1:] == n_chunks)
    assert units.max() - units.min() <= 1


@pytest.mark.parametrize("n_chunks", [4, 8, 16, 32])
def test_a_module_of_multi_token_prediction_weighs_two_layers_beside_the_loss(n_chunks):
    """DeepSeek-V3's 61 layers: the last chunk has three units less, whose sum is as equal as whole layers allow."""
    chunks = np.arange(n_chunks + 1.0)
    layers = np.diff(first_layer_count(61, chunks, n_chunks=n_chunks, split=EMBEDDING_AND_LOSS, mtp_layers=1))
    assert layers.sum() == 61
    units = layers + (chunks[:-1] == 0) + 3.0 * (chunks[1:] == n_chunks)
    assert units.max() - units.min() <= 1 + (n_chunks == 32)  # of two units a chunk, three are more than its share
    even = np.diff(first_layer_count(61, chunks, n_chunks=n_chunks, split=EVEN, mtp_layers=1))
    assert even.max() - even.min() <= 1


def test_an_even_cut_takes_what_the_even_split_takes():
    scenario = _scenario("dense", "auto")
    designs = stage_designs(scenario)
    cut = designs.made({"pp": 2, "vpp": 1, "first_chunk": 1.0, "last_chunk": 1.0, "slope": 0.0}, "design 0")
    assert cut.custom_split == (16, 16)
    keep = scenario.axes[0]["pp"] == 2
    pipe = scenario.axes[2]
    even = (pipe["vpp"] == 1) & (pipe["split"] == EVEN)
    from dataclasses import replace

    same = replace(
        scenario,
        axes=(
            {knob: values[keep] for knob, values in scenario.axes[0].items()},
            scenario.axes[1],
            {knob: values[even] for knob, values in pipe.items()},
            *scenario.axes[3:],
        ),
    )
    assert best_s(cut) == pytest.approx(best_s(same), rel=1e-12)


def test_more_chunks_than_layers_are_refused():
    designs = stage_designs(_scenario("dense", "auto"))
    with pytest.raises(DlcalcError, match="more than 32 layers"):
        designs.made({"pp": 16, "vpp": 16, "first_chunk": 1.0, "last_chunk": 1.0, "slope": 0.0}, "design 0")


# ---- the front


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_front_is_what_nobody_beats(rows):
    values = np.array(rows, dtype=float)
    losses = values * [1, -1, 1]  # mfu is better when larger

    def beaten(one):
        return any(np.all(other <= one) and np.any(other < one) for other in losses)

    chosen = best_compromises(("step_time", "mfu", "memory"), values)
    expected = {tuple(row) for row in losses if not beaten(row)}
    assert {tuple(row) for row in losses[chosen]} == expected
    assert len(chosen) == len(expected)  # of equals one
