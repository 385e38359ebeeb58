"""The use case of dlcalc-calibrate: read a user's runs, fit constants, write them. Never click, never colours."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dlcalc import __version__
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import SUFFIXES, HardwareRegistry, hardware_search_path, is_file_name
from dlcalc.report.calibration_summary import CalibrationSummary, ConstantRow, ErrorFigures, LeftOutRow, RunRow
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.load import config_dir
from dlcalc.validation.constants import (
    Constant,
    StepTimes,
    broken,
    changed_hardware,
    constants_of,
    prior_of,
    profile_settings,
    profiles_of,
)
from dlcalc.validation.fit import Array, Fitted, fit_supported, fit_without
from dlcalc.validation.models import models_of_users, read_models
from dlcalc.validation.rows import MeasuredRun, read_runs
from dlcalc.validation.runs import RunReader
from dlcalc.validation.screening import LeftOut, UsableRun, named, plan_words, screened

FEWEST_TO_LEAVE_OUT = 3
"""Different settings from which on each run is also estimated without itself."""
MOVED = 5e-3
"""Relative change of a constant that is worth writing down."""
DIGITS = 4
NAMED_MOST = 10


@dataclass(frozen=True)
class _Outcome:
    """The runs, the constants, and where the fit took them."""

    runs: Sequence[UsableRun]
    constants: Sequence[Constant]
    times: StepTimes
    fitted: Fitted
    factors: Mapping[Constant, float]
    """Of the constants that moved, as they are written: after over before."""

    @property
    def x(self) -> Array:
        """Logarithms of the constants as they are written."""
        return self.times.start + np.log([self.factors.get(constant, 1.0) for constant in self.constants])


def run_calibration(
    files: Sequence[Path],
    *,
    hardware: str,
    framework: str | None = None,
    models: Path | None = None,
    out: Path | None = None,
    hardware_dirs: Sequence[Path] = (),
) -> CalibrationSummary:
    """Fit the constants of ``hardware`` and of the runs' trainers to the runs in ``files``; write them to ``out``."""
    began = time.perf_counter()
    known = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    machine = known.load(hardware)
    if framework is not None:
        load_framework(framework)
    if out is not None:
        _check_out(out, [*files, *([models] if models else []), *_own_files(hardware, known)])
    reader = RunReader(read_models(models) if models else models_of_users(), known.with_specs(machine))
    runs = [_completed(run, machine.name, framework) for file in files for run in read_runs(file)]
    if not runs:
        raise DlcalcError(f"{', '.join(map(str, files))}: no measured run in it")
    usable, left_out = screened(runs, reader, machine)
    senseless = set(broken(usable))
    left_out += [LeftOut(usable[i].run, "the estimate of its time is no number") for i in sorted(senseless)]
    usable = [one for position, one in enumerate(usable) if position not in senseless]
    if not usable:
        raise DlcalcError(_nothing_left(runs, left_out))
    outcome = _fitted(machine, usable)
    summary = _summary(files, machine, outcome, left_out)
    if out is not None:
        base = _base_of(hardware, known, out)
        summary["hardware_file"] = str(out)
        _write(out, _hardware_yaml(out, base, machine, outcome, summary))
        for name, profile in profiles_of(usable).items():
            if any(constant.owner == name and constant.kind == "framework" for constant in outcome.factors):
                file = _framework_file(out, name)
                _write(file, _framework_yaml(file, out, profile, outcome, summary))
                summary["framework_files"][name] = str(file)
        summary["remarks"] += _left_behind(out, summary["framework_files"].values())
    summary["seconds"] = time.perf_counter() - began
    return summary


def _completed(run: MeasuredRun, hardware: str, framework: str | None) -> MeasuredRun:
    """A run that does not name its machine or trainer is of those asked for."""
    told = {"hardware": hardware, "framework": framework or ""}
    missing = {key: value for key, value in told.items() if not run.text(key)}
    return replace(run, fields={**run.fields, **missing}) if missing else run


def _nothing_left(runs: Sequence[MeasuredRun], left_out: Sequence[LeftOut]) -> str:
    lines = [f"none of {len(runs)} runs can be fitted:" if len(runs) > 1 else "the run cannot be fitted:"]
    lines += [f"  {named(one.run)}: {one.reason}" for one in left_out[:NAMED_MOST]]
    if len(left_out) > NAMED_MOST:
        lines.append(f"  and {len(left_out) - NAMED_MOST} more")
    return "\n".join(lines)


# ---- the fit


def _fitted(machine: HardwareSpec, runs: Sequence[UsableRun]) -> _Outcome:
    constants = constants_of(machine, runs)
    times = StepTimes(runs, constants)
    fitted = fit_supported(times.log_errors, prior_of(constants), _folds(runs))
    factors = {
        constant: _rounded(float(value)) / constant.start
        for constant, value in zip(constants, np.exp(fitted.x), strict=True)
        if abs(float(value) / constant.start - 1.0) > MOVED
    }
    return _Outcome(runs, constants, times, fitted, factors)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _errors_left_out(outcome: _Outcome) -> Array | None:
    """Each run's error with constants fitted to the runs of other settings; None where there are too few runs."""
    runs = outcome.runs
    errors = np.empty(len(runs))
    folds = _folds(runs)
    for fold in folds:
        alone = StepTimes([one for one, is_outside in zip(runs, fold, strict=True) if is_outside], outcome.constants)
        errors[fold] = alone.log_errors(fit_without(outcome.fitted, fold))
    return np.asarray(np.expm1(errors)) if folds else None


def _folds(runs: Sequence[UsableRun]) -> list[NDArray[np.bool_]]:
    """Which runs to leave out together: those of one setting; none where there are too few settings."""
    settings: dict[Hashable, list[int]] = {}
    for position, one in enumerate(runs):
        settings.setdefault(one.same_setting, []).append(position)
    if len(settings) < FEWEST_TO_LEAVE_OUT:
        return []
    return [np.isin(np.arange(len(runs)), members) for members in settings.values()]


def _figures(errors: Array) -> ErrorFigures:
    return {"median": float(np.median(np.abs(errors))), "worst": float(np.max(np.abs(errors)))}


def _summary(
    files: Sequence[Path], machine: HardwareSpec, outcome: _Outcome, left_out: Sequence[LeftOut]
) -> CalibrationSummary:
    measured_s = np.array([one.measured_s for one in outcome.runs])
    before_s, after_s = outcome.times.step_time_s(outcome.times.start), outcome.times.step_time_s(outcome.x)
    before, after = before_s / measured_s - 1.0, after_s / measured_s - 1.0
    without = _errors_left_out(outcome)
    rows: list[RunRow] = [
        {
            "where": one.run.where,
            "case": one.run.case,
            "plan": plan_words(one),
            "measured_s": one.measured_s,
            "before_s": float(before_s[i]),
            "after_s": float(after_s[i]),
            "error_before": float(before[i]),
            "error_after": float(after[i]),
            "error_left_out": None if without is None else float(without[i]),
        }
        for i, one in enumerate(outcome.runs)
    ]
    refused: list[LeftOutRow] = [
        {"where": one.run.where, "case": one.run.case, "reason": one.reason, "contradicts": one.is_contradiction}
        for one in left_out
    ]
    return {
        "files": [str(file) for file in files],
        "hardware": machine.name,
        "frameworks": list(profiles_of(outcome.runs)),
        "runs": len(outcome.runs),
        "before": _figures(before),
        "after": _figures(after),
        "left_out": None if without is None else _figures(without),
        "constants": _constant_rows(outcome),
        "fitted_runs": rows,
        "not_fitted": refused,
        "remarks": sorted({remark for one in outcome.runs for remark in one.setting.remarks}),
        "hardware_file": None,
        "framework_files": {},
        "seconds": 0.0,
    }


def _constant_rows(outcome: _Outcome) -> list[ConstantRow]:
    rows: list[ConstantRow] = []
    for i, constant in enumerate(outcome.constants):
        after = constant.start * outcome.factors.get(constant, 1.0)
        rows.append(
            {
                "kind": constant.kind,
                "owner": constant.owner,
                "key": constant.key,
                "before": constant.start,
                "after": after,
                "moved": constant in outcome.factors,
                "from_runs": float(outcome.fitted.support[i]),
                "at_bound": constant in outcome.factors and not constant.low * 1.001 < after < constant.high / 1.001,
                "meaning": constant.meaning,
            }
        )
    return rows


# ---- the files


def _own_files(hardware: str, registry: HardwareRegistry) -> list[Path]:
    """Files that the machine was read from."""
    return [Path(hardware)] if is_file_name(hardware) else list(registry.files(hardware))


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse, before any work, a file that could not be used or that would overwrite what it is made of."""
    if out.suffix.lower() not in SUFFIXES:
        raise DlcalcError(f"--out {out}: a hardware file ends in .yaml, so that it can be named in a study")
    for file in inputs:
        if out.resolve() == file.resolve():
            raise DlcalcError(f"--out {out}: would overwrite {file}, which it is made from; give it another name")
    if not os.path.isdir(out.parent):
        raise DlcalcError(f"--out {out}: no such folder: {out.parent}")


def _base_of(hardware: str, registry: HardwareRegistry, out: Path) -> str:
    """How the written file names the machine it extends: a built-in one by name, a user's by its path from there."""
    file = _own_files(hardware, registry)[0]
    if file.resolve().parent == config_dir().resolve():
        return registry.load(hardware).name
    relative = os.path.relpath(file.resolve(), out.resolve().parent)
    return relative if os.sep in relative else os.path.join(os.curdir, relative)


def _framework_file(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}.{_plain_name(name, out)}{out.suffix}")


def _left_behind(out: Path, written: Iterable[str]) -> list[str]:
    """Profiles of an earlier calibration of the same name, which the new machine was not fitted with."""
    beside = sorted(file for file in out.parent.glob(f"{glob.escape(out.stem)}.*{out.suffix}") if file.is_file())
    old = {str(file) for file in beside} - set(written)
    return [f"{file} is of an earlier calibration and does not belong to this one" for file in sorted(old)]


def _plain_name(name: str, out: Path) -> str:
    """Name of a profile without what an earlier calibration added."""
    return name.removesuffix(f"_{out.stem}")


def _said(summary: CalibrationSummary) -> str:
    names = ", ".join(Path(file).name for file in summary["files"])
    errors = (
        f"median error of step time {summary['before']['median']:.1%} before, {summary['after']['median']:.1%} after"
    )
    if summary["left_out"]:
        errors += f", {summary['left_out']['median']:.1%} on each run fitted without it"
    return f"dlcalc-calibrate {__version__}, {_runs(summary['runs'])} of {names}: {errors}"


def _runs(n: int) -> str:
    return f"{n} measured run{'' if n == 1 else 's'}"


def _hardware_yaml(out: Path, base: str, machine: HardwareSpec, outcome: _Outcome, summary: CalibrationSummary) -> str:
    changed = changed_hardware(machine, outcome.factors).calibration
    kinds = {constant.kind for constant in outcome.factors}
    calibration: dict[str, Any] = {"provenance": f"{_said(summary)}. Before: {machine.calibration.provenance}"}
    if "device" in kinds:
        keys = [c.key.partition(".")[2] for c in outcome.factors if c.kind == "device"]
        keys += ["attention"] if "bf16" in keys else []
        calibration["training_factor"] = {key: _rounded(changed.training_factor[key]) for key in keys}
    if "fabric" in kinds:
        calibration["fabric_collectives"] = {
            name: {"bus_fraction": _rounded(rates.bus_fraction)} for name, rates in changed.fabric_collectives.items()
        }
    content: dict[str, Any] = {
        "name": out.stem,
        "description": f"{machine.description}; calibrated on {_runs(summary['runs'])}",
        "extends": base,
    }
    if machine.price is not None:  # a machine's own; this is the same machine
        content["price"] = machine.price.model_dump()
    used = [f"framework: {_framework_file(out, name).name}" for name in _moved_profiles(outcome)]
    beside = f"# Fitted together with {', '.join(used)}; use both.\n" if used else ""
    return f"# Written by dlcalc-calibrate. What is not said here is as in {base}.\n{beside}" + _dumped(
        {**content, "calibration": calibration}
    )


def _moved_profiles(outcome: _Outcome) -> list[str]:
    return list(dict.fromkeys(c.owner for c in outcome.factors if c.kind == "framework"))


def _framework_yaml(
    file: Path, out: Path, profile: FrameworkProfile, outcome: _Outcome, summary: CalibrationSummary
) -> str:
    own = {constant: factor for constant, factor in outcome.factors.items() if constant.owner == profile.name}
    moved = {key: _rounded(value) for key, value in profile_settings(profile, own).items()}
    content = {
        **profile.model_dump(mode="json"),
        **moved,
        "name": f"{_plain_name(profile.name, out)}_{out.stem}",
        "description": f"{profile.description}; calibrated on {_runs(summary['runs'])}",
        "source": f"{_said(summary)}, which moved {', '.join(moved)}. Before: {profile.source}",
    }
    return (
        f"# Written by dlcalc-calibrate: {profile.name} with {', '.join(moved)} fitted, together with hardware: "
        f"{out.name}; use both.\n" + _dumped(content)
    )


def _dumped(content: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120))


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written: {error.strerror}") from error
