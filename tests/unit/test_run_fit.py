"""The fit of benchmarks/fit_runs.py: its loss is what scipy takes it for, and runs weigh what they are worth."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from dlcalc.specs.load import config_dir

sys.path.append(str(config_dir().parent / "benchmarks"))

from run_fit import fitting
from run_fit.constants import CONSTANTS
from run_fit.runs import load


@pytest.fixture(scope="module")
def groups():
    return load()


def test_the_loss_comes_with_its_derivatives():
    """Of ten runs and two priors; values from nothing to far off."""
    loss = fitting.loss_of(np.geomspace(0.1, 100.0, 10))
    squared, step = np.geomspace(1e-3, 1e3, 12), 1e-6
    value, first, second = loss(squared)
    above, below = loss(squared * (1 + step)), loss(squared * (1 - step))
    assert first == pytest.approx((above[0] - below[0]) / (2 * step * squared), rel=1e-6)
    assert second == pytest.approx((above[1] - below[1]) / (2 * step * squared), rel=1e-5, abs=1e-12)
    assert np.all(value[:10] < squared[:10])
    assert value[10:] == pytest.approx(squared[10:])


def test_a_run_far_off_bends_the_constants_little(groups, monkeypatch):
    """Five runs of Megatron on A100; of one of them the time is doubled."""
    own = [group for group in groups if group.sources[0] == "narayanan2021"]
    doubled = [replace(own[0], measured_s=2.0 * own[0].measured_s), *own[1:]]
    constants = [one for one in CONSTANTS if any(fitting.touched_by(group, one) for group in own)]

    def moved() -> float:
        usual, bent = (np.log(fitting.fit(runs, constants)) for runs in (own, doubled))
        return float(np.max(np.abs(usual - bent) / [one.spread for one in constants]))

    robust = moved()
    monkeypatch.setattr(fitting, "FAR_OFF", 1e3)
    assert robust < 0.5 * moved()


def test_runs_of_one_setting_that_contradict_each_other_are_not_fitted(groups):
    """51.3 s and 28.9 s in two releases; others of their source stay."""
    cases = {case for group in groups for case in group.cases}
    assert not {case for case in cases if case.endswith(":pretrain:h100:qwen3-30b-a3b:fp8_cs:16gpu:gbs1024")}
    assert "25.11:pretrain:h100:qwen3-30b-a3b:fp8_cs:16gpu:gbs512" in cases


def test_runs_that_their_source_does_not_vouch_for_weigh_half_and_unknown_ones_nothing(groups):
    weights = {case: weight for group in groups for case, weight in zip(group.cases, group.weight, strict=True)}
    sure, unsure, unknown = (
        "26.02:pretrain:h100:llama3-70b:fp8_cs:64gpu:gbs256",
        "26.02.01:pretrain:b200:gpt-oss-120b:bf16:64gpu:gbs1280",
        "25.11:pretrain:b200:gpt-oss-120b:bf16:64gpu:gbs512",  # its layout is another release's
    )
    assert weights[unsure] == pytest.approx(0.5 * weights[sure])
    assert weights[unknown] == 0
