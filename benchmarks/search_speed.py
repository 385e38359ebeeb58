"""How many plans a second one core searches, where the time goes, and what a plan costs in units of a numpy multiply.

    python benchmarks/search_speed.py [--devices 1024] [--keep 1000] [--profile]

The reference study is a dense 70B model on 1,024 H100 with every knob over its whole range. Of its plans those that a
constraint refuses are counted, those that are too large are found by memory alone, those that cannot be among the kept
are found by a lower bound of time, and the rest is worked out in full; the answer is that of working out all. What
working out every plan that runs would take is measured as well. Seconds are of one core (process time), so other work
on the machine disturbs them less; the multiply is a unit that is stable across machines. The quickest of three runs
counts. Nothing is written.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, estimate
from dlcalc.costmodel.tiles import parts, tiles
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.exhaustive import BLOCK_PLANS, evaluate, search_block
from dlcalc.search.found import Found
from dlcalc.search.space import Scenario
from dlcalc.search.study import scenarios_of
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.specs.space import SpaceSpec

T = TypeVar("T")


def reference_study(devices: int) -> SpaceSpec:
    """Dense 70B, H100, space: full."""
    return SpaceSpec.model_validate(
        {
            "study": "reference",
            "model": "llama3-70b",
            "hardware": "h100",
            "cluster": {"devices": devices},
            "recipe": {
                "seq_len": 8192,
                "global_batch": 1024,
                "precision": "bf16",
                "framework": "megatron",
                "profile": {  # a trainer that can do everything, so that nothing is refused for the framework's sake
                    "schedules": list(SCHEDULES),
                    "recompute_modes": list(RECOMPUTE_MODES),
                    "zero_stages": [0, 1, 2, 3],
                    "offloads_in_pipeline": True,
                    "shards_gradients_in_pipeline": True,
                    "cp_exchanges": ["ring"],  # the others would triple the study by plans that are mostly refused
                },
            },
            "space": "full",
        }
    )


def multiply_s(length: int = 1 << 14, repeats: int = 2000) -> float:
    """Seconds of one numpy multiply per element, arrays of ``length`` in cache."""
    a, b = np.random.default_rng(0).random((2, length))
    out = np.empty(length)
    began = time.process_time()
    for _ in range(repeats):
        np.multiply(a, b, out=out)
    return (time.process_time() - began) / repeats / length


def search(scenario: Scenario, keep: int) -> Found:
    """The ``keep`` fastest plans, block by block."""
    found = Found()
    for start, stop in scenario.blocks(BLOCK_PLANS):
        known = {"bound": found.bound(keep, "step_time"), "fastest": found.fastest}
        found.add(search_block(scenario, start, stop, keep=keep, **known), keep=keep, key="step_time")
    return found


def quickest(work: Callable[[], T], times: int = 3) -> tuple[float, T]:
    """Seconds of the quickest run, and the result."""
    found = []
    for _ in range(times):
        began = time.process_time()
        result = work()
        found.append(time.process_time() - began)
    return min(found), result


def work_out_all(scenario: Scenario) -> int:
    """Totals of every plan that runs; how many these are."""
    n_run = 0
    for start, stop in scenario.blocks(BLOCK_PLANS):
        for part in parts(evaluate(scenario, start, stop), (stop - start, *scenario.shape[1:])):
            for tile in tiles(part):
                n_run += int(np.count_nonzero(np.broadcast_to(tile.runs, tile.step_time_s.shape)))
    return n_run


STEPS = {
    "refusals": "(evaluate)",
    "cutting into parts": "(parts)",
    "terms of memory": "(memory)",
    "counting what fits": "(fitting)",
    "terms of time": "(step)",
    "bounds of time": "(least_step_time_s)",
    "plans worked out": "(tile_at)",
    "the best of them": "(lead)",
}
"""Functions whose time is told, by what they are for."""


def where_time_goes(scenario: Scenario, keep: int) -> list[str]:
    """Shares of a search's time; of a step that calls another one listed, only its own."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(search, scenario, keep)
    stats = pstats.Stats(profile).get_stats_profile()
    total = stats.total_tt
    spent = {
        what: sum(one.cumtime for name, one in stats.func_profiles.items() if f"({name})" == function)
        for what, function in STEPS.items()
    }
    spent["counting what fits"] -= spent["terms of memory"]
    spent["bounds of time"] -= spent["terms of time"]
    lines = [f"  {what:20} {100 * seconds / total:4.0f} %" for what, seconds in spent.items()]
    return ["where the time goes, under cProfile:", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1024)
    parser.add_argument("--keep", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    arguments = parser.parse_args()
    (scenario,) = scenarios_of(reference_study(arguments.devices), Path(), HardwareRegistry())
    print(f"reference study: {scenario.n_plans:,} plans, axes {scenario.shape}")

    unit_s = multiply_s()
    seconds, found = quickest(lambda: search(scenario, arguments.keep))
    all_s, n_run = quickest(lambda: work_out_all(scenario))
    print(f"the best {arguments.keep:,}: {found.n_plans / seconds / 1e6:.0f} M plans/s on one core ({seconds:.2f} s)")
    print(f"  {scenario.n_plans - n_run:,} refused by a constraint, {found.refused[OUT_OF_MEMORY]:,} by memory")
    print(f"  {found.n_fit:,} fit; {found.n_estimated:,} worked out in full, the others cannot be among the best")
    print(f"  counting only those that no constraint refuses: {n_run / seconds / 1e6:.0f} M plans/s")
    print(f"  a plan costs {seconds / found.n_plans / unit_s:.1f} numpy multiplies ({unit_s * 1e9:.2f} ns each)")
    print(f"without bounds, all that no constraint refuses worked out: {scenario.n_plans / all_s / 1e6:.0f} M plans/s")
    print(f"  counting only those: {n_run / all_s / 1e6:.1f} M plans/s ({all_s:.2f} s)")

    one = [scenario.rows(np.array([i])) for i in np.linspace(0, scenario.n_plans - 1, 50).astype(np.int64)]
    began = time.process_time()
    for plans in one:
        point = estimate(scenario.model, scenario.hardware, scenario.recipe, plans)
        point.step_time_s, point.memory_bytes  # noqa: B018 computed on first use
    each_s = (time.process_time() - began) / len(one)
    print(f"one object per plan: {1 / each_s:,.0f} plans/s, {each_s / unit_s:,.0f} numpy multiplies a plan")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if arguments.profile:
        print("\n".join(where_time_goes(scenario, arguments.keep)))


if __name__ == "__main__":
    main()
