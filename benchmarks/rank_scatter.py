"""How near vTrain's 24 profiles a model must be to rank its plans as the rows do.

    python benchmarks/rank_scatter.py

Its rows are sums of layer times, each of one profile per hidden size, tensor-parallel degree and micro-batch. Our own
estimates, every profile multiplied by a random factor, are ranked against themselves. The residuals that are printed
hold our errors as well as the scatter of the profiles; nothing here tells the two apart.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.load import config_dir
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.validation.compare import compare_runs
from dlcalc.validation.metrics import spearman
from dlcalc.validation.models import read_models
from dlcalc.validation.rows import read_runs
from dlcalc.validation.runs import RunReader

DRAWS = 100
LEAST_PLANS = 3
"""Of a sweep: two plans are ranked right or wrong by one coin."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder = config_dir() / "measured"
    reader = RunReader(read_models(folder / "models.yaml"), HardwareRegistry())
    compared = compare_runs(read_runs(folder / "vtrain_single.csv"), reader, load_uncertainty())
    measured = np.array([one.run.measured_step_time_s for one in compared], dtype=float)
    estimated = np.array([one.step_time_s for one in compared], dtype=float)
    profiles: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sweeps: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, run in enumerate(one.run for one in compared):
        hidden = run.text("model").split("_")[1]
        profiles[hidden, run.text("tp"), run.text("micro_batch")].append(i)
        sweeps[run.text("model"), run.text("gpus"), run.text("global_batch")].append(i)
    kept = [rows for rows in sweeps.values() if len(rows) >= LEAST_PLANS]
    profile_of = np.empty(len(compared), dtype=int)
    for number, rows in enumerate(profiles.values()):
        profile_of[rows] = number

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([spearman(one[rows], other[rows]) for rows in kept]))

    residuals = np.log(estimated / measured)
    means = np.array([residuals[rows].mean() for rows in profiles.values()])
    print(f"{len(profiles)} profiles, {len(kept)} sweeps of {LEAST_PLANS} plans and more")
    left = np.std(residuals - means[profile_of])
    print(f"residuals by profile: standard deviation {means.std():.1%}; of what is left {left:.1%}")
    without = correlation(estimated / np.exp(means[profile_of]), measured)
    print(f"rank correlation with the rows: {correlation(estimated, measured):.3f}; less the residuals, {without:.3f}")
    print("our estimates against themselves, profiles scattered by")
    draw = np.random.default_rng(0)
    for scatter in (0.03, 0.04, 0.05, 0.06, 0.075):
        found = [
            correlation(estimated, estimated * np.exp(draw.normal(0.0, scatter, len(profiles))[profile_of]))
            for _ in range(DRAWS)
        ]
        print(f"  {scatter:.1%}: {np.mean(found):.3f} +- {np.std(found):.3f}")


if __name__ == "__main__":
    main()
