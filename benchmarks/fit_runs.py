"""Fit what kernels cannot show to measured runs: overheads of frameworks, slowdown of devices inside a step.

    python benchmarks/fit_runs.py                    # fit, print errors before and after, write nothing
    python benchmarks/fit_runs.py --write            # and write the constants into configs/
    python benchmarks/fit_runs.py --leave-out        # fit without each source (or model) in turn and score it

Constants are per device or per framework, never per model or per run (``run_fit/constants.py``). Each has bounds and a
prior at its physical value, from which it moves only as far as the runs support: log errors squared, less of those far
off (``run_fit/fitting.py``), each source weighing the same (``run_fit/runs.py``), plus distances from priors squared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from run_fit.constants import CONSTANTS, today
from run_fit.fitting import errors, fit, touched_by
from run_fit.folds import left_out
from run_fit.runs import load
from run_fit.writing import save, show, summary, write

from dlcalc.hardware_registry import HardwareRegistry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--leave-out", nargs="*", metavar="SOURCE", help="score these sources (or all) left out of the fit"
    )
    parser.add_argument(
        "--save", type=Path, metavar="CSV", help="where to keep the left-out errors, for fit_uncertainty.py"
    )
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="fit and score these sources alone")
    arguments = parser.parse_args()
    groups, registry = load(), HardwareRegistry()
    if arguments.only:
        groups = [group for group in groups if group.sources[0] in arguments.only]
    constants = [c for c in CONSTANTS if any(touched_by(g, c) for g in groups)]
    before_fit = np.array([today(c, registry) for c in constants])
    show("configs as they are", summary(groups, errors(groups, constants, before_fit)))
    fitted = fit(groups, constants, steps=30)
    show("fitted", summary(groups, errors(groups, constants, fitted)))
    for constant, before, after in zip(constants, before_fit, fitted, strict=True):
        at_bound = (
            " at its bound" if min(abs(np.log(after / constant.low)), abs(np.log(constant.high / after))) < 1e-3 else ""
        )
        print(f"{constant.name:45s} {before:9.4g} -> {after:9.4g}{at_bound}   {constant.meaning}")
    if arguments.write:
        write(constants, fitted)
    if arguments.leave_out is not None:
        found, cases = left_out(groups, constants, fitted, only=arguments.leave_out)
        show("left out", found)
        if arguments.save:
            save(arguments.save, cases)


if __name__ == "__main__":
    main()
