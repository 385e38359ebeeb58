"""What a source says of constants that were fitted without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from run_fit.constants import Constant
from run_fit.fitting import errors, fit, touched_by
from run_fit.runs import Array, Group


def left_out(
    groups: Sequence[Group], constants: Sequence[Constant], fitted: Array, *, only: Sequence[str] = ()
) -> tuple[dict[str, Array], list[tuple[str, str, float]]]:
    """Errors on each source when it was not fitted; where it alone covers a device or framework, on each model.

    Every fit starts where the whole one ended; a constant that has no runs left goes back to its prior.
    """
    found: dict[str, Array] = {}
    cases: list[tuple[str, str, float]] = []
    alone = sources_alone_on_a_device(groups)
    for source in sorted({s for g in groups for s in g.sources if not only or s in only}):
        models = sorted({g.models[0] for g in groups if g.sources[0] == source})
        folds = [(source, model) for model in models] if source in alone and len(models) > 1 else [(source, None)]
        values: list[float] = []
        for of, model in folds:
            outside = [g for g in groups if g.sources[0] == of and model in (None, g.models[0])]
            inside = [g for g in groups if g not in outside]
            again = [i for i, c in enumerate(constants) if any(touched_by(g, c) for g in outside)]
            near = [g for g in inside if any(touched_by(g, constants[i]) for i in again)]
            joined = [i for i, c in enumerate(constants) if i in again or any(touched_by(g, c) for g in near)]
            chosen = [constants[i] for i in joined]
            priors = np.array([c.prior for c in chosen])
            refitted = fit(near, chosen, start=fitted[joined], steps=8) if near else priors
            for group, error in zip(outside, errors(outside, chosen, refitted), strict=True):
                values += [float(v) for v in np.expm1(error)]
                cases += [(source, case, float(np.exp(v))) for case, v in zip(group.cases, error, strict=True)]
        found[source] = np.array(values)
        print(f"left out {source}: median {np.median(np.abs(found[source])) * 100:.1f} %", flush=True)
    return found, cases


def sources_alone_on_a_device(groups: Sequence[Group]) -> set[str]:
    by_device: dict[str, set[str]] = {}
    for group in groups:
        by_device.setdefault(group.setting.hardware.name, set()).update(group.sources)
    by_framework: dict[str, set[str]] = {}
    for group in groups:
        by_framework.setdefault(group.setting.recipe.framework.name, set()).update(group.sources)
    return {next(iter(s)) for table in (by_device, by_framework) for s in table.values() if len(s) == 1}
