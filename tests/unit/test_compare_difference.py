"""The chain of what-ifs between two plans: in an order of which every step can run, else as if it did."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dlcalc.calculators.throughput import SECONDS_PER_DAY
from dlcalc.costmodel.plans import KNOBS, Plans, value_of
from dlcalc.hardware_registry import load_hardware
from dlcalc.report.compare_facts import OBJECTIVES, Candidate, Difference, MachineInputs, Range
from dlcalc.search.run import Run
from dlcalc.specs.base import Quoted
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.workflows.compare_difference import Contender, difference

RECIPE = Recipe(seq_len=8192, global_batch=128, precision="bf16", framework=load_framework("megatron"))
WIDE = {"tp": 8, "pp": 4, "dp": 2, "sequence_parallel": 1.0}
LEAN = {"tp": 8, "pp": 8, "dp": 1, "sequence_parallel": 1.0, "recompute": "full"}
ROOMY = {"tp": 2, "pp": 8, "dp": 4, "sequence_parallel": 1.0}


def run(machine, plan, **changes):
    model = load_model("llama3-70b")
    made = Run("a run", {}, model, load_hardware(machine), RECIPE, Plans.point(micro_batch=1, **plan))
    return replace(made, **changes)


def contender(of: Run, price: float | None = None) -> Contender:
    """As a comparison would make it; what a difference does not read is left at nothing."""
    step_s = float(of.estimate().step_time_s)
    step = Range(step_s, 0.9 * step_s, 1.1 * step_s)
    rate = of.recipe.tokens_per_step / step_s
    rates = Range(rate, rate / 1.1, rate / 0.9)
    dollars = rate / of.devices / price * 3600 if price else 0.0
    facts = Candidate(
        result="", scenario="", model=of.model.name, machine=of.hardware.name, hardware=of.hardware.name,
        devices=of.devices, precision=of.recipe.precision, framework=of.recipe.framework.name,
        seq_len=of.recipe.seq_len, global_batch=of.recipe.global_batch, n_plans=1, n_fit=1,
        plan={knob: value_of(knob, float(getattr(of.plan, knob))) for knob in KNOBS}, placed_on=None,
        step_time_s=step, time_s={}, mfu=0.0, hfu=0.0, mfu_convention="", tokens_per_s=rates,
        tokens_per_s_per_device=rates, memory_bytes=0.0, headroom_bytes=0.0, goodput=None, tokens=1e12,
        days=Range(*(1e12 / value / SECONDS_PER_DAY for value in (rates.value, rates.high, rates.low))),
        cost_usd=None, energy_j=None, tokens_per_usd=Range(dollars, dollars / 1.1, dollars / 0.9), tokens_per_j=None,
    )  # fmt: skip
    return Contender(facts, of, MachineInputs(of.hardware.name, price, "", None, None, "", True))


def explained(winner: Run, other: Run, objective="days", prices=(None, None)) -> Difference:
    found = difference(contender(winner, prices[0]), contender(other, prices[1]), OBJECTIVES[objective])
    assert found is not None
    assert math.prod(factor.factor for factor in found.factors) == pytest.approx(found.ratio, rel=1e-12)
    return found


def test_the_plan_that_fits_both_machines_goes_first_to_the_other_machine():
    found = explained(run("b200", ROOMY), run("h100", LEAN))
    assert [factor.what for factor in found.factors] == ["machine", "plan"]
    assert found.factors[0].change == "h100 -> b200"
    assert "tp 8 -> 2" in found.factors[1].change
    assert "recompute full -> none" in found.factors[1].change
    assert found.as_if is None
    by_term = {term.term: term.factor for term in found.factors[1].terms}
    assert by_term["recompute"] > 1.1  # what is not run again is time won


def test_a_plan_that_fits_one_machine_alone_leaves_before_the_machine_does():
    """ROOMY needs more than an H100 has, so on the way from it to an H100 the plan changes first."""
    assert not bool(run("h100", ROOMY).estimate().fits)
    found = explained(run("h100", LEAN), run("b200", ROOMY), "tokens_per_dollar", prices=(1.0, 90.0))
    assert [factor.what for factor in found.factors] == ["plan", "machine", "price"]
    assert found.factors[2].factor == pytest.approx(90)
    assert found.as_if is None


def test_where_no_order_can_run_the_memory_is_named_and_the_time_taken():
    winner, other = run("h100", LEAN), run("b200", ROOMY, memory_headroom=0.95)
    found = explained(winner, other, "tokens_per_dollar", prices=(1.0, 90.0))
    assert [factor.what for factor in found.factors] == ["machine", "plan", "price"]
    assert found.as_if is not None
    assert "on 64 h100 needs more memory than the device has" in found.as_if
    assert found.as_if.endswith("its time as if it ran")


def test_precisions_that_neither_machine_shares_change_with_it_at_once():
    fp8, nvfp4 = (RECIPE.model_copy(update={"precision": name}) for name in ("fp8", "nvfp4"))
    b200 = load_hardware("b200")
    peaks = {name: peak for name, peak in b200.device.peak_tflops.items() if name != "fp8"}
    only_4_bits = b200.model_copy(update={"device": b200.device.model_copy(update={"peak_tflops": peaks})})
    found = explained(run("b200", ROOMY, recipe=nvfp4, hardware=only_4_bits), run("h100", LEAN, recipe=fp8))
    assert [factor.what for factor in found.factors] == ["machine"]
    assert found.as_if == "neither machine has the other's precision: machine, recipe and plan at once"


def test_a_recipe_is_a_step_of_its_own():
    fp8 = RECIPE.model_copy(update={"precision": "fp8"})
    found = explained(run("b200", WIDE, recipe=fp8), run("h100", WIDE))
    assert [(factor.what, factor.change) for factor in found.factors] == [
        ("machine", "h100 -> b200"),
        ("recipe", "precision bf16 -> fp8"),
    ]


def test_more_devices_are_a_factor_of_their_own():
    """64 against 32: twice as many, each a little slower."""
    found = explained(run("b200", WIDE), run("b200", {**WIDE, "dp": 1}))
    plan, devices = found.factors
    assert (devices.what, devices.factor, devices.change) == ("devices", 2.0, "32 -> 64 devices")
    assert plan.change == "32 -> 64 devices, dp 1 -> 2"
    assert 0.9 < plan.factor < 1.0


def test_twice_the_peak_is_shorter_matmuls_that_hide_less():
    """The same machine but for its fp8 peak; attention runs in bf16. A gather waits for no backward matmul any more."""
    h100 = load_hardware("h100")
    peaks = dict(h100.device.peak_tflops)
    peaks["fp8"] = Quoted(value=2 * peaks["fp8"].value, source="twice the datasheet")
    faster = h100.model_copy(update={"device": h100.device.model_copy(update={"peak_tflops": peaks})})
    fp8 = RECIPE.model_copy(update={"precision": "fp8"})
    found = explained(run("h100", WIDE, recipe=fp8, hardware=faster), run("h100", WIDE, recipe=fp8))
    (machine,) = found.factors
    by_term = {term.term: term for term in machine.terms}
    assert [term.term for term in machine.terms] == ["matmul", "tp_comm", "bubble"]
    assert by_term["tp_comm"].factor < 1 < by_term["bubble"].factor
    assert by_term["matmul"].before_s / by_term["matmul"].after_s == pytest.approx(1.8, abs=0.2)


def test_intervals_that_overlap_leave_the_winner_in_doubt():
    near = explained(run("b200", WIDE), run("b200", {**WIDE, "sequence_parallel": 0.0}))
    far = explained(run("b200", WIDE), run("a100_80gb", LEAN))
    assert not near.told_apart
    assert far.told_apart
