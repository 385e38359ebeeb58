"""What a sampled search is after, as one number per plan and objective, in the units that people read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import Array
from dlcalc.costmodel.prediction import budget_usd
from dlcalc.errors import DlcalcError
from dlcalc.search.sampled import MAXIMIZED
from dlcalc.search.space import Scenario
from dlcalc.specs.sampling import Goal
from dlcalc.utils.units import GIB


def check_goals(scenario: Scenario, goals: Sequence[Goal], *, is_priced: bool = False) -> None:
    """A cost can only be told where a price and an amount of training are given; ``is_priced``: by a design."""
    if "cost" not in goals:
        return
    missing = [
        what
        for what, known in (
            ("a token_budget in the recipe", scenario.recipe.token_budget),
            ("usd_per_device_hour in the cluster section, or in design", is_priced or scenario.hardware.price),
        )
        if not known
    ]
    if missing:
        raise DlcalcError(f"search: objectives: cost needs {' and '.join(missing)} ({scenario.name})")


def cost_usd(scenario: Scenario, step_time_s: Array) -> Array:
    """Price of the token budget on the devices of the scenario."""
    per_second = budget_usd(scenario.recipe, scenario.hardware, scenario.devices, 1.0)
    assert per_second is not None  # check_goals saw to it
    return per_second * step_time_s


def values_of(
    scenario: Scenario, goals: Sequence[Goal], step_time_s: Array, mfu_seconds: Array, memory_bytes: Array
) -> Array:
    """One row per plan, one column per objective."""
    columns = {"step_time": step_time_s, "mfu": mfu_seconds / step_time_s, "memory": memory_bytes / GIB}
    if "cost" in goals:
        columns["cost"] = cost_usd(scenario, step_time_s)
    return np.stack([columns[goal] for goal in goals], axis=-1)


def best_compromises(goals: Sequence[Goal], values: Array) -> NDArray[np.int64]:
    """Positions of the rows that no other row beats in every objective; of equals the first. In order of the first."""
    losses = values * [-1.0 if goal in MAXIMIZED else 1.0 for goal in goals]
    order = np.lexsort((np.arange(len(losses)), *losses.T[::-1]))
    left, front = losses[order], []
    while len(left):
        front.append(order[0])
        better = np.any(left < left[0], axis=1)
        left, order = left[better], order[better]
    return np.array(front, dtype=np.int64)
