"""What a few runs teach about plans that were not run, and running a command."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlcalc.errors import DlcalcError
from dlcalc.search.measuring import CHOICES_APART, REPEATABILITY, SHARED_VARIANCE, belief
from dlcalc.search.runner import arguments, run_command
from dlcalc.specs.sampling import SearchSpec

CHOICES = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
ESTIMATES = np.array([1.0, 1.1, 1.6])
INTERVAL = (ESTIMATES / 1.2, ESTIMATES * 1.2)
WIDE = math.log(1.2) / 1.2815515655446004  # of 80 %


def after(measured, seconds):
    index = np.array(measured, dtype=np.int64)
    return belief(CHOICES, ESTIMATES, INTERVAL, index, np.array(seconds, dtype=float), coverage=0.8)


def test_before_any_run_the_estimates_are_believed():
    known = after([], [])
    assert np.exp(known.log_time) == pytest.approx(ESTIMATES)
    assert known.low_s == pytest.approx(INTERVAL[0])
    assert np.argmax(known.gain(math.inf)) == 0


def test_one_run_moves_the_others_by_what_they_share():
    """Of a measured error, share x variance over variance and noise."""
    known = after([0], [1.15])
    for other, differing in ((1, 1), (2, 2)):
        shared = SHARED_VARIANCE + (1 - SHARED_VARIANCE) * math.exp(-differing / CHOICES_APART)
        moved = shared * WIDE**2 / (WIDE**2 + REPEATABILITY**2) * math.log(1.15)
        assert known.log_time[other] == pytest.approx(math.log(ESTIMATES[other]) + moved)
        assert known.spread[other] < WIDE
    assert math.exp(known.log_time[0]) == pytest.approx(1.15, rel=2e-3)


def test_a_plan_whose_interval_ends_above_the_best_time_cannot_win():
    known = after([0], [1.0])
    assert known.can_win(1.0).tolist()[2] is False
    assert known.can_win(2.0).all()


def test_the_largest_gain_is_not_the_plan_that_was_run():
    known = after([0], [1.3])  # much slower than estimated: so, by as much, is what is like it
    assert np.argmax(np.where([False, True, True], known.gain(1.3), -np.inf)) == 1


# ---- the command

SPEC = SearchSpec.model_validate({"objective": "measured", "command": "x"})


def run(tmp_path, *words, timeout_s=20.0, pattern=SPEC.pattern):
    return run_command(
        [sys.executable, "-c", *words],
        plan=tmp_path / "plan.json",
        log=tmp_path / "log",
        folder=tmp_path,
        timeout_s=timeout_s,
        pattern=pattern,
    )


def test_a_path_cannot_become_another_word():
    words = arguments("run --plan={plan} -- {trial}", {"plan": "/tmp/a b; rm -rf x", "trial": "3"})
    assert words == ["run", "--plan=/tmp/a b; rm -rf x", "--", "3"]


@pytest.mark.parametrize(
    ("command", "said"), [("run {plna}", "did you mean plan?"), ("run 'x", "cannot be read: no closing quotation")]
)
def test_a_command_that_cannot_be_meant_is_named(command, said):
    with pytest.raises(DlcalcError, match="search: command") as caught:
        arguments(command, {"plan": "p", "trial": "1"})
    assert said in str(caught.value)


def test_the_last_step_time_counts(tmp_path):
    outcome = run(
        tmp_path, "import os; print('step_time_s=3.5'); print('step_time_s = 2.25', os.environ['DLCALC_PLAN'])"
    )
    assert (outcome.step_time_s, outcome.problem) == (2.25, "")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys; print('CUDA out of memory', file=sys.stderr); sys.exit(7)", "exit code 7: CUDA out of memory"),
        ("print('done')", "the output has no match of "),
        ("print('step_time_s=0')", "a step of 0 s is not possible"),
        ("print('step_time_s=1e')", "'1e' is no step time"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_a_run_without_a_step_time_says_why(tmp_path, code, problem):
    outcome = run(tmp_path, code)
    assert outcome.step_time_s is None
    assert outcome.problem.startswith(problem)


def test_a_pattern_of_ones_own(tmp_path):
    pattern = SearchSpec.model_validate(
        {"objective": "measured", "command": "x", "step_time_pattern": r"took (\d+) ms"}
    ).pattern
    assert run(tmp_path, "print('took 12 ms')", pattern=pattern).step_time_s == 12


def test_what_does_not_end_is_ended_with_all_it_started(tmp_path):
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    began = time.monotonic()
    outcome = run(tmp_path, code, timeout_s=1.5)
    assert outcome.problem == "no end within 1.5 s"
    assert time.monotonic() - began < 10
    child = int((tmp_path / "log").read_text())
    for _ in range(50):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or " Z " in status.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the command's child still runs")


def test_a_program_that_is_not_there_ends_the_search(tmp_path):
    with pytest.raises(DlcalcError, match="no such program"):
        run_command(
            ["./nothing"],
            plan=tmp_path / "p",
            log=tmp_path / "log",
            folder=tmp_path,
            timeout_s=1,
            pattern=SPEC.pattern,
        )
