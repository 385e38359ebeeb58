"""Which measured runs a calibration can rest on: those of the machine, that its peak and each other do not contradict.

A run that claims more than the hardware can do, or two of one setting that disagree, would teach a wrong constant; they
are left out, each with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from dlcalc.calculators.flops import model_flops_per_token_flops
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.validation.hardware_names import hardware_name
from dlcalc.validation.rows import WITHOUT_EFFECT, MeasuredRun
from dlcalc.validation.runs import RunReader, RunSetting
from dlcalc.validation.spelling import names_a_file

REPEATS_AGREE_WITHIN = 1.15
"""Longest over shortest step time of one setting; more than that is not noise."""


@dataclass(frozen=True)
class UsableRun:
    """A run to fit: what it says, and what was measured."""

    run: MeasuredRun
    setting: RunSetting
    measured_s: float

    @property
    def same_setting(self) -> Hashable:
        """Equal for runs that an estimate cannot tell apart and that describe themselves alike."""
        knobs = tuple(float(getattr(self.setting.plan, knob)) for knob in KNOBS)
        told = tuple(sorted((key, value) for key, value in self.run.extras.items() if key in WITHOUT_EFFECT))
        return self.setting.group, knobs, told


@dataclass(frozen=True)
class LeftOut:
    """A run that is not fitted, and why."""

    run: MeasuredRun
    reason: str
    is_contradiction: bool = False
    """Whether it contradicts the hardware or another run, rather than having nothing to say."""


def named(run: MeasuredRun) -> str:
    """``file:line (case)``."""
    return f"{run.where} ({run.case})" if run.case else run.where


def screened(
    runs: Iterable[MeasuredRun], reader: RunReader, hardware: HardwareSpec
) -> tuple[list[UsableRun], list[LeftOut]]:
    """The runs that can be fitted, and those that cannot."""
    usable: list[UsableRun] = []
    left_out: list[LeftOut] = []
    for run in runs:
        try:
            _must_be_of(run, hardware, reader.registry)
            usable.append(_timed(run, reader.setting(run)))
        except _ContradictionError as error:
            left_out.append(LeftOut(run, str(error), is_contradiction=True))
        except DlcalcError as error:
            left_out.append(LeftOut(run, " ".join(str(error).split())))
    disagreeing = disagreeing_runs(usable)
    left_out += disagreeing
    gone = {id(one.run) for one in disagreeing}
    return [one for one in usable if id(one.run) not in gone], left_out


class _ContradictionError(DlcalcError):
    pass


def _must_be_of(run: MeasuredRun, hardware: HardwareSpec, registry: HardwareRegistry) -> None:
    """Refuse a run of another machine."""
    written = run.text("hardware")
    if names_a_file(written):
        name: str | None = registry.load(written).name
    else:
        own = {hardware.name, *hardware.aliases}
        taken = hardware_name(written, {*own, *registry.names(aliases=True)})
        name = None if taken is None else hardware.name if taken.word in own else registry.load(taken.word).name
    if name != hardware.name:
        raise DlcalcError(f"its hardware is {written[:40]}, not {hardware.name}")


def _timed(run: MeasuredRun, setting: RunSetting) -> UsableRun:
    """The run with its step time, unless it has none or one that the device's peak forbids."""
    if run.is_part_of_a_step:
        raise DlcalcError("it timed one layer, not a step")
    measured_s = run.measured_step_time_s
    if measured_s is None:
        raise DlcalcError("it ran out of memory" if run.out_of_memory else "it has no measured step time")
    recipe, plan = setting.recipe, setting.plan
    per_token = model_flops_per_token_flops(setting.model, seq_len=float(recipe.seq_len), convention="causal_attention")
    devices = float(plan.tp * plan.cp * plan.pp * plan.dp)
    peak = setting.hardware.device.peak_flops_per_s(recipe.precision)
    mfu = float(per_token) * recipe.tokens_per_step / (devices * peak * measured_s)
    if not math.isfinite(mfu) or mfu > 1.0:
        raise _ContradictionError(
            f"a step of {measured_s:.4g} s would be {mfu:.3g} times the peak of {devices:g} {setting.hardware.name} in "
            f"{recipe.precision}: model FLOPs alone take {mfu * measured_s:.4g} s at {peak / 1e12:g} TFLOP/s each"
        )
    return UsableRun(run, setting, measured_s)


def disagreeing_runs(usable: Sequence[UsableRun]) -> list[LeftOut]:
    """Every run of a setting whose step times are further apart than noise."""
    by_setting: dict[Hashable, list[UsableRun]] = {}
    for one in usable:
        by_setting.setdefault(one.same_setting, []).append(one)
    found = []
    for members in by_setting.values():
        times = [one.measured_s for one in members]
        if max(times) <= REPEATS_AGREE_WITHIN * min(times):
            continue
        for one in members:
            others = ", ".join(f"{named(o.run)}: {o.measured_s:.4g} s" for o in members if o is not one)
            found.append(
                LeftOut(one.run, f"{one.measured_s:.4g} s, but the same setting in {others}", is_contradiction=True)
            )
    return found


def plan_words(one: UsableRun) -> str:
    """The degrees of a run's plan that are not 1."""
    degrees = {knob: value_of(knob, float(getattr(one.setting.plan, knob))) for knob in ("tp", "cp", "pp", "dp", "ep")}
    return " ".join(f"{knob}{value}" for knob, value in degrees.items() if value != 1) or "one device"
