"""Runs of plans as trials of a study of Optuna, which several processes share and which outlives them.

A trial has every knob as a parameter, so that ``optuna-dashboard`` shows them; its value is the measured step time.
Which plan is next is not for a sampler of Optuna to say (``measuring``).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlcalc.search.sampled import Said, SampledStudy, open_sampled_study, storage_errors
from dlcalc.search.variables import Choice, Value
from dlcalc.specs.sampling import SearchSpec

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial, TrialState

INTERRUPTED = "interrupted"
ANOTHER = "another process runs it"
NOT_RUN = (INTERRUPTED, ANOTHER)
"""Reasons of trials that say nothing of their plan."""


@dataclass(frozen=True)
class PlanRun:
    """A trial whose plan was run, or is being run."""

    number: int
    plan_index: int
    step_time_s: float | None
    problem: str
    is_running: bool


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs."""

    number: int
    plan_index: int
    trial: Trial


class MeasuredStudy:
    """The runs of one scenario."""

    def __init__(self, sampled: SampledStudy, spec: SearchSpec, knobs: Sequence[Choice]) -> None:
        self._sampled, self._spec, self._knobs = sampled, spec, knobs
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self.fail_abandoned()
        self.n_before = sum(not run.is_running for run in self.runs())

    @property
    def name(self) -> str:
        return self._sampled.name

    def close(self) -> None:
        """Let go of the storage."""
        self._sampled.close()

    def runs(self) -> list[PlanRun]:
        """Every plan that was run or is being run, in order."""
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)
        found = [_run(trial, trial.state == TrialState.RUNNING) for trial in self._trials(states)]
        return [run for run in found if run.problem not in NOT_RUN]

    def _trials(self, states: tuple[TrialState, ...]) -> list[FrozenTrial]:
        with storage_errors(self._spec.storage):
            found = self._sampled.study.get_trials(deepcopy=False, states=states)
        return [trial for trial in found if "plan_index" in trial.user_attrs]

    def claim(self, plan_index: int, knobs: Mapping[str, Value], said: Said) -> Claim | None:
        """Begin a run of this plan; None where another process has begun one.

        A trial is added as one that runs: of two processes that add the same plan, the later one sees the other's.
        (To enqueue it and ask for it would not do: on SQLite, two processes may be given the same trial.)
        """
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import Trial, TrialState, create_trial

        name = f"{self._process}:{time.time_ns()}"
        with storage_errors(self._spec.storage):
            self._sampled.study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=dict(knobs),
                    distributions={knob.name: CategoricalDistribution(knob.values) for knob in self._knobs},
                    user_attrs={"plan_index": plan_index, "process": self._process, "claim": name, **said},
                )
            )
            (own,) = [one for one in self._trials((TrialState.RUNNING,)) if one.user_attrs["claim"] == name]
            claimed = Claim(own.number, plan_index, Trial(self._sampled.study, own._trial_id))  # Optuna names no other
        if any(run.plan_index == plan_index and run.number < claimed.number for run in self.runs()):
            self.fail(claimed, ANOTHER)
            return None
        return claimed

    def tell(self, claim: Claim, step_time_s: float, said: Said) -> None:
        """What the run measured."""
        with storage_errors(self._spec.storage):
            for name, value in said.items():
                claim.trial.set_user_attr(name, value)
            self._sampled.study.tell(claim.trial, step_time_s)

    def fail(self, claim: Claim, reason: str) -> None:
        """That the run measured nothing."""
        from optuna.trial import TrialState

        with storage_errors(self._spec.storage):
            claim.trial.set_user_attr("reason", reason)
            self._sampled.study.tell(claim.trial, state=TrialState.FAIL)

    def fail_abandoned(self) -> None:
        """Give up the runs of processes of this machine that are gone, so that their plans can be run again."""
        from optuna.trial import TrialState

        host, _, _ = self._process.rpartition(":")
        for trial in self._trials((TrialState.RUNNING,)):
            owner, _, pid = str(trial.user_attrs.get("process", "")).rpartition(":")
            if owner == host and not _is_alive(int(pid)):
                with storage_errors(self._spec.storage):
                    self._sampled.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _run(trial: FrozenTrial, is_running: bool) -> PlanRun:
    seconds = trial.values[0] if trial.values else None
    problem = "" if seconds is not None or is_running else str(trial.user_attrs.get("reason", INTERRUPTED))
    return PlanRun(trial.number, int(trial.user_attrs["plan_index"]), seconds, problem, is_running)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def open_measured_study(
    spec: SearchSpec, name: str, knobs: Sequence[Choice], identity: Mapping[str, object], *, journal: str
) -> MeasuredStudy:
    """The study called ``name``, new or taken up."""
    return MeasuredStudy(open_sampled_study(spec, name, (), identity, journal=journal), spec, knobs)
