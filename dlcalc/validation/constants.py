"""The constants that whole steps can teach: of a device, of its fabric, of a trainer; and estimates with them changed.

Each constant starts at the value in use and is changed by a factor, so that what a row itself says of its trainer
(launches replayed from a graph, another fabric) stays in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.validation.fit import Array, Prior
from dlcalc.validation.runs import RunSetting
from dlcalc.validation.screening import UsableRun
from dlcalc.validation.spelling import names_a_file

TRAINING_FACTOR_SPREAD = {True: 0.12, False: 0.25}
"""By whether kernels were measured on this very device: elsewhere less is known."""
TRAINING_FACTOR_RANGE = (0.4, 3.0)
FABRIC_SPREAD = 0.25
LEAST_FABRIC_FACTOR = 0.2


@dataclass(frozen=True)
class Constant:
    """One number: where it lives, what it is now, how far it may go, how far without good reason."""

    kind: Literal["device", "fabric", "framework"]
    owner: str
    """Name of the machine or of the profile."""
    key: str
    start: float
    spread: float
    """Standard deviation of the prior, in logarithms."""
    low: float
    high: float
    meaning: str

    @property
    def name(self) -> str:
        return f"{self.owner}: {self.key}"

    def scaled(self, value: float, factor: float) -> float:
        """``value``, which is this constant or a row's variant of it, changed by ``factor``.

        An overhead that is 0 in the profile grows from the least that the fit starts at.
        """
        return value * factor if value > 0 else max(0.0, self.start * (factor - 1.0))


PROFILE_CONSTANTS = (
    ("host_launch_us", 0.3, 1.0, 200.0, 1.0, "host time per launch"),
    ("memory_pass_factor", 0.3, 0.5, 4.0, 0.5, "memory traffic over that counted"),
    ("micro_batch_overhead_us", 1.0, 1.0, 50_000.0, 100.0, "host time per micro-batch"),
    ("step_overhead_us", 1.0, 10.0, 1_000_000.0, 1000.0, "host time per step"),
    ("overlap_slowdown", 0.5, 0.005, 0.95, 0.02, "slowing of compute by communication behind it"),
)
"""Key, spread, least, most, what it starts at where the profile says 0, meaning."""


def constants_of(hardware: HardwareSpec, runs: Sequence[UsableRun]) -> list[Constant]:
    """What these runs can say anything about."""
    calibration = hardware.calibration
    spread = TRAINING_FACTOR_SPREAD[calibration.measured]
    precisions = sorted({key for one in runs for key in precisions_of(one.setting.recipe)})
    found = [
        _constant(
            "device", hardware.name, f"training_factor.{key}", calibration.slowing_in_training(key), spread,
            *TRAINING_FACTOR_RANGE, "time of matmuls and attention inside a step over alone",
        )
        for key in precisions
    ]  # fmt: skip
    if any(crosses_nodes(one.setting) for one in runs):
        most = 1.0 / max(rates.bus_fraction for rates in calibration.fabric_collectives.values())
        found.append(
            _constant(
                "fabric", hardware.name, "fabric bus_fraction factor", 1.0, FABRIC_SPREAD,
                LEAST_FABRIC_FACTOR, max(most, 1.0), "rate between nodes over that assumed",
            )
        )  # fmt: skip
    for name, profile in profiles_of(runs).items():
        for key, spread_of, low, high, least, meaning in PROFILE_CONSTANTS:
            start = float(getattr(profile, key)) or least
            found.append(_constant("framework", name, key, start, spread_of, low, high, meaning))
    return found


def _constant(
    kind: Literal["device", "fabric", "framework"], owner: str, key: str, start: float, spread: float,
    low: float, high: float, meaning: str,
) -> Constant:  # fmt: skip
    return Constant(kind, owner, key, start, spread, min(low, start), max(high, start), meaning)


def prior_of(constants: Iterable[Constant]) -> Prior:
    """The constants as they are now."""
    return Prior.of([(c.start, c.spread, c.low, c.high) for c in constants])


def precisions_of(recipe: Recipe) -> set[str]:
    """Training factors that a recipe's step depends on: its linear layers', and that of what stays in 16 bits."""
    own = "bf16" if recipe.precision == "fp16" else recipe.precision
    return {own, "bf16"}


def crosses_nodes(setting: RunSetting) -> bool:
    """Whether a run takes more devices than a node has."""
    plan = setting.plan
    return float(plan.tp * plan.cp * plan.pp * plan.dp) > setting.hardware.node.n_devices


def profiles_of(runs: Iterable[UsableRun]) -> dict[str, FrameworkProfile]:
    """The profiles of the runs' trainers by name, as they are in their files."""
    found: dict[str, FrameworkProfile] = {}
    for one in runs:
        name, written = one.setting.recipe.framework.name, one.run.text("framework")
        if name not in found:
            found[name] = load_framework(written if names_a_file(written) else name)
    return found


# ---- estimates with changed constants


@dataclass(frozen=True)
class _Group:
    """Runs that differ in their plan alone, estimated together."""

    setting: RunSetting
    plans: Plans
    positions: tuple[int, ...]
    touched_by: tuple[int, ...]
    """Positions of the constants that its estimate may depend on."""


@dataclass
class StepTimes:
    """Estimated step times of measured runs as a function of the logs of some constants."""

    runs: Sequence[UsableRun]
    constants: Sequence[Constant]
    _groups: list[_Group] = field(init=False)
    _known: dict[tuple[int, tuple[float, ...]], Array] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        by_group: dict[object, list[int]] = {}
        for position, one in enumerate(self.runs):
            by_group.setdefault(one.setting.group, []).append(position)
        self._groups = [_group(self.runs, members, self.constants) for members in by_group.values()]

    @property
    def start(self) -> Array:
        return np.log([constant.start for constant in self.constants])

    def log_errors(self, x: Array) -> Array:
        """Log of estimated over measured step time, in the order of the runs."""
        measured_s = np.array([one.measured_s for one in self.runs])
        errors: Array = np.log(self.step_time_s(x) / measured_s)
        return errors

    def step_time_s(self, x: Array) -> Array:
        """At the logs ``x`` of the constants; a group whose constants have not changed is not estimated again."""
        times = np.empty(len(self.runs))
        for number, group in enumerate(self._groups):
            key = number, tuple(float(x[i]) for i in group.touched_by)
            if key not in self._known:
                factors = {self.constants[i]: float(np.exp(x[i]) / self.constants[i].start) for i in group.touched_by}
                self._known[key] = _step_time_s(group, factors)
            times[list(group.positions)] = self._known[key]
        return times


def _group(runs: Sequence[UsableRun], members: Sequence[int], constants: Sequence[Constant]) -> _Group:
    settings = [runs[position].setting for position in members]
    first = settings[0]
    touched = tuple(
        position
        for position, constant in enumerate(constants)
        if (constant.kind == "device" and constant.key.partition(".")[2] in precisions_of(first.recipe))
        or (constant.kind == "fabric" and any(map(crosses_nodes, settings)))
        or (constant.kind == "framework" and constant.owner == first.recipe.framework.name)
    )
    rows = {knob: [float(getattr(setting.plan, knob)) for setting in settings] for knob in KNOBS}
    return _Group(first, Plans.rows(rows), tuple(members), touched)


def _step_time_s(group: _Group, factors: Mapping[Constant, float]) -> Array:
    setting = group.setting
    hardware = changed_hardware(setting.hardware, factors)
    profile = setting.recipe.framework.model_copy(update=profile_settings(setting.recipe.framework, factors))
    recipe = setting.recipe.model_copy(update={"framework": profile})
    with np.errstate(all="ignore"):  # nonsense shows in the numbers
        found = estimate(setting.model, hardware, recipe, group.plans, custom_split=setting.custom_split)
    return np.array(np.broadcast_to(found.step_time_s, len(group.positions)))


def changed_hardware(hardware: HardwareSpec, factors: Mapping[Constant, float]) -> HardwareSpec:
    """The machine with its own constants changed."""
    calibration = hardware.calibration
    training = dict(calibration.training_factor)
    fabric = dict(calibration.fabric_collectives)
    for constant, factor in factors.items():
        if constant.kind == "device":
            key = constant.key.partition(".")[2]
            training[key] = calibration.slowing_in_training(key) * factor
            if key == "bf16":  # attention runs in 16 bits; a few runs cannot tell the two apart
                training["attention"] = calibration.slowing_in_training("attention") * factor
        elif constant.kind == "fabric":
            fabric = {
                name: rates.model_copy(update={"bus_fraction": min(1.0, rates.bus_fraction * factor)})
                for name, rates in fabric.items()
            }
    changes = {"training_factor": training, "fabric_collectives": fabric}
    return hardware.model_copy(update={"calibration": calibration.model_copy(update=changes)})


def profile_settings(profile: FrameworkProfile, factors: Mapping[Constant, float]) -> dict[str, Any]:
    """Settings of a profile as the factors change them."""
    return {
        constant.key: constant.scaled(float(getattr(profile, constant.key)), factor)
        for constant, factor in factors.items()
        if constant.kind == "framework"
    }


def broken(runs: Sequence[UsableRun]) -> Iterator[int]:
    """Positions of the runs whose estimate is no number, whatever the constants are."""
    times = StepTimes(runs, ()).step_time_s(np.zeros(0))
    yield from np.flatnonzero(~(np.isfinite(times) & (times > 0))).tolist()
