"""Fit the interval of step times to runs that were left out of the fit of the constants.

    python benchmarks/fit_uncertainty.py                     # leave out, fit, print; write nothing
    python benchmarks/fit_uncertainty.py --write             # and write configs/uncertainty.yaml
    python benchmarks/fit_uncertainty.py --save errors.csv   # keep the left-out errors
    python benchmarks/fit_uncertainty.py --errors errors.csv # and fit to them again, without leaving out anew

Each source (or, where it alone covers a device or a framework, each of its models) is left out of the fit in turn and
estimated with what the others gave. Every regime then gets a spread on either side, such that one run in ten took
longer and one in ten less than the interval: the loss is that of a quantile, a source of n runs weighs sqrt(n), and
spreads add in squares. What a device without kernel measurements adds is seen by lending every device the constants of
one of another generation.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dlcalc.costmodel.uncertainty import SIXTEEN_BITS_OR_MORE
from dlcalc.specs.load import config_dir
from dlcalc.specs.uncertainty import Spread, Uncertainty

PARTS = ("base", "across_nodes", "moe", "low_precision", "unmeasured_device")
COVERAGE = 0.8
FEWEST_RUNS = 10
CANDIDATES = np.concatenate([[0.0], np.geomspace(0.005, 1.0, 120)])
"""Spreads that are tried, in logarithms."""
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


def left_out_runs() -> list[LeftOut]:
    """Every timed run of the shipped corpus, estimated by constants that were fitted without its source or model."""
    import fit_runs

    from dlcalc.hardware_registry import HardwareRegistry

    groups, registry = fit_runs.load(), HardwareRegistry()
    constants = [c for c in fit_runs.CONSTANTS if any(fit_runs.touched_by(g, c) for g in groups)]
    starts = np.array([fit_runs.start_of(c, registry) for c in constants])
    alone = fit_runs.sources_alone_on_a_device(groups)
    folds: dict[tuple[str, str], list[int]] = {}
    for position, group in enumerate(groups):
        source, model = group.sources[0], group.models[0]
        folds.setdefault((source, model if source in alone else ""), []).append(position)
    found = []
    for positions in folds.values():
        outside = [groups[position] for position in positions]
        inside = [group for position, group in enumerate(groups) if position not in positions]
        fitted = fit_runs.fit(inside, constants, starts)
        found += _as_left_out(outside, fit_runs.errors(outside, constants, fitted), lent=False)
    lent = [replace(g, setting=replace(g.setting, hardware=_lent(g.setting.hardware, registry))) for g in groups]
    return found + _as_left_out(lent, fit_runs.errors(lent, constants, starts), lent=True)


def _lent(hardware, registry):
    """``hardware`` with another device's constants; by another name, so that none of its own are put back."""
    other = registry.load(LENDERS[hardware.name]).calibration
    return hardware.model_copy(update={"calibration": other, "name": f"{hardware.name} lent"})


def _as_left_out(groups, log_errors, *, lent: bool) -> list[LeftOut]:
    found = []
    for group, error in zip(groups, log_errors, strict=True):
        setting, plans = group.setting, group.plans
        devices = plans.tp * plans.cp * plans.pp * plans.dp
        for row, value in enumerate(error):
            found.append(
                LeftOut(
                    source=group.sources[row],
                    case=group.cases[row],
                    log_error=-float(value),  # fit_runs gives estimated over measured
                    across_nodes=bool(devices[row] > setting.hardware.node.n_devices),
                    moe=setting.model.is_moe,
                    low_precision=setting.recipe.precision not in SIXTEEN_BITS_OR_MORE,
                    unmeasured_device=lent,
                )
            )
    return found


# ---- the fit


def fit_spreads(runs: Sequence[LeftOut], start: Uncertainty) -> Uncertainty:
    """Spreads of every part on both sides, at the least loss; a part that too few runs show keeps what it had."""
    errors = np.array([run.log_error for run in runs])
    applies = np.array([[True, *(getattr(run, part) for part in PARTS[1:])] for run in runs], dtype=float)
    weights = _weights(runs)
    shown = applies.sum(axis=0) >= FEWEST_RUNS
    below = np.array([-np.log1p(-getattr(start, part).shorter) for part in PARTS])
    above = np.array([np.log1p(getattr(start, part).longer) for part in PARTS])
    below = _least_loss(-errors, applies, weights, below, shown)
    above = _least_loss(errors, applies, weights, above, shown)
    factor = _to_cover(errors, applies, weights, below, above)
    spreads = {
        part: Spread(shorter=_rounded(-np.expm1(-factor * low)), longer=_rounded(np.expm1(factor * high)))
        for part, low, high in zip(PARTS, below, above, strict=True)
    }
    return Uncertainty(coverage=COVERAGE, provenance=_provenance(runs), **spreads)


def _weights(runs: Sequence[LeftOut]) -> np.ndarray:
    counts: dict[tuple[str, bool], int] = {}
    for run in runs:
        key = (run.source, run.unmeasured_device)
        counts[key] = counts.get(key, 0) + 1
    return np.array([counts[run.source, run.unmeasured_device] ** -0.5 for run in runs])


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


def covered_fraction(errors, applies, weights, below, above) -> float:
    """Weighted share of runs inside."""
    low, high = (-np.sqrt(applies @ below**2), np.sqrt(applies @ above**2))
    return float(np.sum(weights * ((low <= errors) & (errors <= high))) / np.sum(weights))


def _to_cover(errors, applies, weights, below, above) -> float:
    """The factor on all spreads at which the share inside is what the interval claims."""
    factors = np.linspace(0.3, 3.0, 271)
    shares = np.array([covered_fraction(errors, applies, weights, f * below, f * above) for f in factors])
    enough = np.flatnonzero(shares >= COVERAGE)
    return float(factors[enough[0]]) if len(enough) else float(factors[-1])


def _rounded(fraction: float) -> float:
    return round(float(fraction), 4)


def _provenance(runs: Iterable[LeftOut]) -> str:
    left, lent = ([run for run in runs if run.unmeasured_device == is_lent] for is_lent in (False, True))
    sources = len({run.source for run in left})
    return (
        f"benchmarks/fit_uncertainty.py: {len(left)} runs of {sources} sources, each left out of the fit of the "
        f"constants; {len(lent)} runs with the constants of another device"
    )


# ---- files


def save(path: Path, runs: Iterable[LeftOut]) -> None:
    rows = [asdict(run) for run in runs]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[LeftOut]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        LeftOut(
            source=row["source"],
            case=row["case"],
            log_error=float(row["log_error"]),
            **{part: row[part] == "True" for part in PARTS[1:]},
        )
        for row in rows
    ]


def as_yaml(fitted: Uncertainty) -> str:
    spreads = "\n".join(
        f"{part}: {{shorter: {spread.shorter:.4g}, longer: {spread.longer:.4g}}}"
        for part, spread in ((part, getattr(fitted, part)) for part in PARTS)
    )
    return (
        "# Between which factors of its estimate a measured step time falls: how much shorter and longer, as fractions.\n"
        "# What applies to a run adds up in squares of logarithms. Written by benchmarks/fit_uncertainty.py.\n"
        f'coverage: {fitted.coverage:g}\n{spreads}\nprovenance: "{fitted.provenance}"\n'
    )


def show(runs: Sequence[LeftOut], fitted: Uncertainty) -> None:
    """Share inside by source and by regime."""
    applies = np.array([[True, *(getattr(run, part) for part in PARTS[1:])] for run in runs], dtype=float)
    errors = np.array([run.log_error for run in runs])
    below = np.array([-np.log1p(-getattr(fitted, part).shorter) for part in PARTS])
    above = np.array([np.log1p(getattr(fitted, part).longer) for part in PARTS])
    groups = {
        f"source {source}": [r.source == source and not r.unmeasured_device for r in runs]
        for source in sorted({r.source for r in runs})
    }
    groups |= {
        part: [bool(getattr(r, part, True)) and r.unmeasured_device == (part == PARTS[-1]) for r in runs]
        for part in PARTS
    }
    groups["all left out"] = [not r.unmeasured_device for r in runs]
    print(f"{'':32s} {'runs':>5s} {'inside':>7s} {'median':>8s}")
    for name, where in groups.items():
        inside = np.array(where)
        if inside.any():
            share = covered_fraction(errors[inside], applies[inside], np.ones(inside.sum()), below, above)
            print(
                f"{name:32s} {inside.sum():5d} {100 * share:6.1f}% {100 * np.median(np.expm1(errors[inside])):+7.1f}%"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--errors", type=Path, metavar="CSV")
    parser.add_argument("--save", type=Path, metavar="CSV")
    arguments = parser.parse_args()
    from dlcalc.specs.uncertainty import load_uncertainty

    runs = read(arguments.errors) if arguments.errors else left_out_runs()
    if arguments.save:
        save(arguments.save, runs)
    fitted = fit_spreads(runs, load_uncertainty())
    show(runs, fitted)
    print(as_yaml(fitted))
    if arguments.write:
        (config_dir() / "uncertainty.yaml").write_text(as_yaml(fitted), encoding="utf-8")


if __name__ == "__main__":
    main()
