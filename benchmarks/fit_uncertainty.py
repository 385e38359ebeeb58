"""Fit the interval of step times to runs that were left out of the fit of the constants.

    python benchmarks/fit_runs.py --leave-out --save left_out.csv
    python benchmarks/fit_uncertainty.py left_out.csv            # print; write nothing
    python benchmarks/fit_uncertainty.py left_out.csv --write    # and write configs/uncertainty.yaml

Every regime gets a spread on either side, such that one run in ten took longer and one in ten less than the interval:
the loss is that of a quantile, a source of n runs weighs sqrt(n) (a simulator's a fifth of that), and spreads add in
squares. What a device without
kernel measurements adds is seen by lending every device the constants of one of another generation.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dlcalc.costmodel.uncertainty import SIXTEEN_BITS_OR_MORE
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.load import config_dir
from dlcalc.specs.uncertainty import Spread, Uncertainty, load_uncertainty
from dlcalc.validation.compare import Comparison, compare_runs
from dlcalc.validation.models import read_models
from dlcalc.validation.rows import MeasuredRun, read_runs
from dlcalc.validation.runs import RunReader, RunSetting

PARTS = ("base", "across_nodes", "moe", "low_precision", "unmeasured_device")
COVERAGE = 0.8
COVERAGE_BY_NUMBER = 0.76
"""The least share of runs, whatever their source: one source has two thirds of them."""
NOT_MEASURED = {"vtrain_single": 0.2}
"""What a source weighs whose rows a simulator made: how they scatter says little of how runs do."""
FEWEST_RUNS = 10
CANDIDATES = np.concatenate([[0.0], np.geomspace(0.005, 0.3, 100)])
"""Spreads that are tried, in logarithms; where a regime seems to need more, physics is missing."""
LENDERS = {
    "a100_80gb": "h100",
    "h100": "a100_80gb",
    "h100_96gb_500w": "a100_80gb",
    "b200": "h100",
    "gb200_nvl72": "h100",
}
"""Whose constants a device is lent, to see what it is to have none of its own."""


@dataclass(frozen=True)
class LeftOut:
    """A run that no fit has seen: log of its measured over its estimated step time, and its regime."""

    source: str
    case: str
    log_error: float
    across_nodes: bool
    moe: bool
    low_precision: bool
    unmeasured_device: bool


def left_out_runs(path: Path, reader: RunReader) -> list[LeftOut]:
    """The shipped runs whose left-out errors ``path`` holds."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = {(run.source, run.case): run for run in shipped_runs()}
    found = []
    for row in rows:
        run = runs[row["source"], row["case"]]
        found.append(left_out(run, reader.setting(run), -math.log(float(row["estimated_over_measured"])), lent=False))
    return found


def shipped_runs() -> list[MeasuredRun]:
    return [run for file in sorted((config_dir() / "measured").glob("*.csv")) for run in read_runs(file)]


def left_out(run: MeasuredRun, setting: RunSetting, log_error: float, *, lent: bool) -> LeftOut:
    plan = setting.plan
    devices = float(plan.tp * plan.cp * plan.pp * plan.dp)
    return LeftOut(
        source=run.source,
        case=run.case,
        log_error=log_error,
        across_nodes=devices > setting.hardware.node.n_devices,
        moe=setting.model.is_moe,
        low_precision=setting.recipe.precision not in SIXTEEN_BITS_OR_MORE,
        unmeasured_device=lent,
    )


@dataclass
class LendingReader(RunReader):
    """Reads runs with the constants of another device."""

    def setting(self, run: MeasuredRun) -> RunSetting:
        found = super().setting(run)
        lender = LENDERS[found.hardware.name]
        other = self._once(("lender", lender), lambda: self.registry.load(lender)).calibration
        return replace(found, hardware=found.hardware.model_copy(update={"calibration": other}))


def lent_runs(reader: LendingReader) -> list[LeftOut]:
    """Every timed run, estimated with another device's constants."""
    compared = compare_runs(shipped_runs(), reader, load_uncertainty())
    return [
        left_out(one.run, one.setting, _log_error(one), lent=True) for one in compared if one.setting and one.is_timed
    ]


def _log_error(one: Comparison) -> float:
    return -math.log1p(one.time_error)


# ---- the fit


def fit_spreads(runs: Sequence[LeftOut], start: Uncertainty) -> Uncertainty:
    """Spreads of every part on both sides, at the least loss; a part that too few runs show keeps what it had.

    What a device without measurements adds comes last, on runs with lent constants, beside what the others have got.
    """
    sides = np.array([spreads_of(getattr(start, part)) for part in PARTS]).T  # side x part
    own = [run for run in runs if not run.unmeasured_device]
    if own:
        errors, applies = _table(own)
        sides = _fitted(own, sides)
        sides = _to_cover(errors, applies, _weights(own), sides)
    lent = [run for run in runs if run.unmeasured_device]
    if lent:
        sides = _fitted(lent, sides, only=PARTS[-1])
    spreads = {
        part: Spread(shorter=_rounded(-np.expm1(-low)), longer=_rounded(np.expm1(high)))
        for part, low, high in zip(PARTS, *sides, strict=True)
    }
    return Uncertainty(coverage=COVERAGE, provenance=_provenance(runs), **spreads)


def spreads_of(spread: Spread) -> tuple[float, float]:
    """Both sides in logarithms."""
    return -math.log1p(-spread.shorter), math.log1p(spread.longer)


def _table(runs: Sequence[LeftOut]) -> tuple[np.ndarray, np.ndarray]:
    """Errors, and which parts apply."""
    applies = [[True, *(getattr(run, part) for part in PARTS[1:])] for run in runs]
    return np.array([run.log_error for run in runs]), np.array(applies, dtype=float)


def _fitted(runs: Sequence[LeftOut], sides: np.ndarray, only: str = "") -> np.ndarray:
    """Both sides of the parts that ``runs`` show often enough, or of one part."""
    errors, applies = _table(runs)
    shown = applies.sum(axis=0) >= FEWEST_RUNS
    if only:
        shown &= np.array([part == only for part in PARTS])
    weights = _weights(runs)
    return np.array(
        [_least_loss(sign * errors, applies, weights, side, shown) for sign, side in zip((-1, 1), sides, strict=True)]
    )


def _weights(runs: Sequence[LeftOut]) -> np.ndarray:
    counts: dict[tuple[str, bool], int] = {}
    for run in runs:
        key = (run.source, run.unmeasured_device)
        counts[key] = counts.get(key, 0) + 1
    return np.array([
        counts[run.source, run.unmeasured_device] ** -0.5 * NOT_MEASURED.get(run.source, 1.0) for run in runs
    ])  # fmt: skip


def quantile_loss(beyond: np.ndarray, weights: np.ndarray) -> float:
    """Loss whose least value leaves one tenth beyond, as COVERAGE asks of either side."""
    tail = (1.0 - COVERAGE) / 2
    return float(np.sum(weights * np.where(beyond > 0, (1.0 - tail) * beyond, -tail * beyond)))


def _least_loss(errors, applies, weights, start, shown) -> np.ndarray:
    """Spreads of one side, one at a time until none gets better; ``errors`` are positive on that side."""
    spreads = start.copy()
    for _ in range(30):
        before = spreads.copy()
        for part in np.flatnonzero(shown):
            others = applies @ np.where(np.arange(len(PARTS)) == part, 0.0, spreads**2)
            losses = [
                quantile_loss(errors - np.sqrt(others + applies[:, part] * candidate**2), weights)
                for candidate in CANDIDATES
            ]
            spreads[part] = CANDIDATES[int(np.argmin(losses))]
        if np.array_equal(before, spreads):
            break
    return spreads


def covered_fraction(errors, applies, weights, sides) -> float:
    """Weighted share of runs inside."""
    low, high = -np.sqrt(applies @ sides[0] ** 2), np.sqrt(applies @ sides[1] ** 2)
    return float(np.sum(weights * ((low <= errors) & (errors <= high))) / np.sum(weights))


def _to_cover(errors, applies, weights, sides) -> np.ndarray:
    """The spreads, by the least factor larger at which the interval holds what it claims.

    On all of them by weight; and on the base alone, which is all that most runs have, nearly so by number.
    """
    factors = np.linspace(0.3, 3.0, 271)
    by_number = np.ones(len(errors))
    scaled = sides
    for factor in factors:
        scaled = np.concatenate([factor * sides[:, :-1], sides[:, -1:]], axis=1)
        if covered_fraction(errors, applies, weights, scaled) >= COVERAGE:
            break
    for factor in factors[factors >= 1.0]:
        wider = np.concatenate([factor * scaled[:, :1], scaled[:, 1:]], axis=1)
        if covered_fraction(errors, applies, by_number, wider) >= COVERAGE_BY_NUMBER:
            return wider
    return scaled


def _rounded(fraction: float) -> float:
    return round(float(fraction), 4)


def _provenance(runs: Iterable[LeftOut]) -> str:
    left, lent = ([run for run in runs if run.unmeasured_device == is_lent] for is_lent in (False, True))
    sources = len({run.source for run in left})
    return (
        f"{len(left)} runs of {sources} sources, each left out of the fit of the "
        f"constants; {len(lent)} runs with the constants of another device"
    )


# ---- what comes out


def as_yaml(fitted: Uncertainty) -> str:
    spreads = "\n".join(
        f"{part}: {{shorter: {spread.shorter:g}, longer: {spread.longer:g}}}"
        for part, spread in ((part, getattr(fitted, part)) for part in PARTS)
    )
    return (
        "# Where a measured step time falls beside its estimate: how much shorter and longer, as fractions.\n"
        "# What applies to a run adds up in squares of logarithms. Written by benchmarks/fit_uncertainty.py.\n"
        f'coverage: {fitted.coverage:g}\n{spreads}\nprovenance: "{fitted.provenance}"\n'
    )


def show(runs: Sequence[LeftOut], fitted: Uncertainty) -> None:
    """Share inside by source and by regime."""
    errors, applies = _table(runs)
    sides = np.array([spreads_of(getattr(fitted, part)) for part in PARTS]).T
    own = np.array([not run.unmeasured_device for run in runs])
    groups = {
        f"source {source}": own & np.array([run.source == source for run in runs])
        for source in sorted({run.source for run in runs})
    }
    groups |= {part: own & (applies[:, column] > 0) for column, part in enumerate(PARTS[:-1])}
    groups["constants of another device"] = ~own
    print(f"{'':32s} {'runs':>5s} {'inside':>7s} {'median':>8s}")
    for name, where in groups.items():
        if where.any():
            share = covered_fraction(errors[where], applies[where], np.ones(where.sum()), sides)
            print(f"{name:32s} {where.sum():5d} {100 * share:6.1f}% {100 * np.median(np.expm1(errors[where])):+7.1f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left_out", type=Path, metavar="LEFT_OUT.csv")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    models, registry = read_models(config_dir() / "measured" / "models.yaml"), HardwareRegistry()
    runs = left_out_runs(arguments.left_out, RunReader(models, registry)) + lent_runs(LendingReader(models, registry))
    fitted = fit_spreads(runs, load_uncertainty())
    show(runs, fitted)
    print(as_yaml(fitted))
    if arguments.write:
        (config_dir() / "uncertainty.yaml").write_text(as_yaml(fitted), encoding="utf-8")


if __name__ == "__main__":
    main()
