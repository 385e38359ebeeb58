"""The fit finds what made-up runs were made with, moves no further than they say, and is not led astray by one."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.validation.constants import StepTimes, constants_of, prior_of
from dlcalc.validation.fit import NOISE, Prior, fit, fit_supported, fit_without
from dlcalc.validation.rows import MeasuredRun
from dlcalc.validation.runs import RunSetting
from dlcalc.validation.screening import UsableRun

LAYOUTS = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8)]


def made_up_runs(n=10, *, batch=64):
    """Plans of a small model on one node of H100s; their measured times are filled in by ``planted``."""
    hardware, profile = load_hardware("h100"), load_framework("megatron")
    recipe = Recipe(seq_len=4096, global_batch=batch, precision="bf16", framework=profile)
    model = load_model("llama3-8b")
    runs = []
    for tp, pp in LAYOUTS[:n]:
        plan = Plans.point(tp=tp, pp=pp, dp=8 // (tp * pp), micro_batch=1)
        setting = RunSetting(model, hardware, recipe, plan, None, group="all")
        runs.append(UsableRun(MeasuredRun({"framework": "megatron"}, {}), setting, 1.0))
    return runs


def planted(runs, **factors):
    """The runs as they would measure if these constants were other than shipped, and their constants."""
    constants = constants_of(runs[0].setting.hardware, runs)
    keys = [constant.key for constant in constants]
    x = np.log([constant.start for constant in constants])
    for key, factor in factors.items():
        x[keys.index(key.replace("__", "."))] += np.log(factor)
    times = StepTimes(runs, constants).step_time_s(x)
    made = [UsableRun(one.run, one.setting, float(time)) for one, time in zip(runs, times, strict=True)]
    return made, constants


def factors_found(runs, constants, **options):
    found = fit(StepTimes(runs, constants).log_errors, prior_of(constants), **options)
    return {
        constant.key: float(np.exp(x)) / constant.start for constant, x in zip(constants, found.x, strict=True)
    }, found


def test_runs_of_the_shipped_constants_move_none():
    factors, found = factors_found(*planted(made_up_runs()))
    assert list(factors.values()) == pytest.approx([1.0] * len(factors), abs=1e-9)
    assert found.log_errors == pytest.approx(np.zeros(10), abs=1e-9)


def test_a_planted_constant_is_found():
    factors, found = factors_found(*planted(made_up_runs(), training_factor__bf16=1.2))
    assert factors["training_factor.bf16"] == pytest.approx(1.2, rel=0.02)
    assert np.max(np.abs(found.log_errors)) < 0.02  # of 20 %; the priors keep the rest


def test_a_planted_constant_of_the_trainer_is_found():
    factors, found = factors_found(*planted(made_up_runs(), micro_batch_overhead_us=4.0), noise=0.01)
    assert factors["micro_batch_overhead_us"] == pytest.approx(4.0, rel=0.1)
    assert factors["training_factor.bf16"] == pytest.approx(1.0, rel=0.02)
    assert np.max(np.abs(found.log_errors)) < 0.01


def test_what_no_run_touches_stays_exactly():
    """One node and no experts: nothing says anything of the fabric, and only bf16 is there."""
    runs, constants = planted(made_up_runs(), training_factor__bf16=1.2)
    assert {constant.kind for constant in constants} == {"device", "framework"}
    untouched = [one for one in runs if float(one.setting.plan.dp) == 1.0]  # no overlap without data parallelism
    factors, found = factors_found(untouched, constants)
    position = [constant.key for constant in constants].index("overlap_slowdown")
    assert factors["overlap_slowdown"] == pytest.approx(1.0, abs=1e-12)
    assert found.support[position] == pytest.approx(0.0, abs=1e-9)


def test_more_runs_move_further():
    """One constant that every run reads off directly, 20 % off; by hand, ignoring the soft loss, n/(n + k) of it."""
    prior = Prior.of([(1.0, 0.05, 0.5, 2.0)])
    moved = [float(fit(lambda x, n=n: x[0] - np.full(n, np.log(1.2)), prior, noise=0.05).x[0]) for n in (1, 3, 10, 100)]
    assert moved == sorted(moved)
    assert 0.1 < moved[0] / np.log(1.2) < 0.5
    assert moved[-1] / np.log(1.2) == pytest.approx(1.0, abs=0.02)


def test_no_runs_is_the_prior():
    prior = Prior.of([(2.0, 0.1, 1.0, 4.0), (3.0, 0.1, 1.0, 4.0)])
    found = fit(lambda x: np.zeros(0), prior)
    assert np.exp(found.x) == pytest.approx([2.0, 3.0])
    assert found.support == pytest.approx([0.0, 0.0])


def test_one_wrong_run_does_not_drag_the_rest():
    runs, constants = planted(made_up_runs(), training_factor__bf16=1.2)
    wrong = UsableRun(runs[0].run, runs[0].setting, runs[0].measured_s * 3.0)
    factors, found = factors_found([wrong, *runs[1:]], constants)
    assert factors["training_factor.bf16"] == pytest.approx(1.2, rel=0.05)
    assert found.log_errors[0] == pytest.approx(-np.log(3.0), abs=0.1)
    assert np.median(np.abs(found.log_errors)) < 0.02


def test_a_constant_stays_within_its_bounds_and_the_others_take_up_its_share():
    prior = Prior.of([(1.0, 1.0, 0.9, 1.1), (1.0, 1.0, 0.1, 10.0)])
    found = fit(lambda x: np.full(50, x.sum() - np.log(2.0)), prior, noise=0.01)
    assert np.exp(found.x[0]) == pytest.approx(1.1)
    assert np.exp(found.x.sum()) == pytest.approx(2.0, rel=0.01)


def test_leaving_out_without_estimating_again_is_leaving_out():
    """Against fits that really lack the run."""
    runs, constants = planted(made_up_runs(), training_factor__bf16=1.15, micro_batch_overhead_us=2.0)
    noisy = [
        UsableRun(one.run, one.setting, one.measured_s * factor)
        for one, factor in zip(runs, np.exp(NOISE * np.array([1, -1, 2, 0, -2, 1, 0, -1, 1, -1])), strict=True)
    ]
    prior = prior_of(constants)
    whole = fit(StepTimes(noisy, constants).log_errors, prior)
    for outside in (0, 4, 9):
        fold = np.arange(10) == outside
        refitted = fit(StepTimes([*noisy[:outside], *noisy[outside + 1 :]], constants).log_errors, prior)
        alone = StepTimes([noisy[outside]], constants)
        short = alone.log_errors(fit_without(whole, fold))
        assert short == pytest.approx(alone.log_errors(refitted.x), abs=0.005)


def test_runs_that_say_nothing_in_common_move_nothing():
    """Half of them 30 % too long, half 30 % too short: no constant carries over to a run that was left out."""
    signs = np.array([1.0, -1.0] * 4)
    prior = Prior.of([(1.0, 0.1, 0.5, 2.0)])
    folds = [np.arange(8) == i for i in range(8)]
    found = fit_supported(lambda x: x[0] + 0.3 * signs, prior, folds)
    assert float(found.x[0]) == 0.0
    assert not np.isfinite(found.noise)
    assert fit_without(found, folds[0]) == pytest.approx(found.x)


def test_runs_that_agree_move_it_whatever_else_they_show():
    rng = np.random.default_rng(1)
    scatter = rng.normal(0.0, 0.1, 30)
    prior = Prior.of([(1.0, 0.2, 0.5, 2.0)])
    found = fit_supported(lambda x: x[0] - 0.3 + scatter, prior, [np.arange(30) == i for i in range(30)])
    assert float(found.x[0]) == pytest.approx(0.3, abs=0.06)
    assert found.support[0] > 0.5


def test_a_constant_that_the_runs_hardly_feel_does_not_drift_along():
    """The second one changes a step by a hundredth of what the first does, and may go far at little cost."""
    prior = Prior.of([(1.0, 0.1, 0.5, 2.0), (1.0, 1.0, 0.01, 100.0)])

    def log_errors(x):
        return np.full(5, x[0] + 0.01 * x[1] - 0.3)

    assert abs(float(fit(log_errors, prior).x[1])) > 0.01
    held = fit_supported(log_errors, prior, [])
    assert float(held.x[1]) == pytest.approx(0.0, abs=1e-6)
    assert held.x[0] + 0.01 * held.x[1] == pytest.approx(0.3, abs=0.06)
