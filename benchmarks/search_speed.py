"""How many plans a second one core estimates in full, and what a plan costs in units of one numpy multiply.

    python benchmarks/search_speed.py [--devices 1024] [--blocks 40]

The reference study is a dense 70B model on 1,024 H100 with every knob over its whole range. A plan counts when it was
estimated in full (time and memory) or refused by a constraint computed for it. Nothing is written.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from dlcalc.calculators.memory import RECOMPUTE_MODES
from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.costmodel.estimate import estimate
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.exhaustive import BLOCK_PLANS, search_block
from dlcalc.search.found import Found
from dlcalc.search.study import scenarios_of
from dlcalc.specs.space import SpaceSpec


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
                },
            },
            "space": "full",
        }
    )


def multiply_s(length: int, repeats: int = 200) -> float:
    """Seconds of one numpy multiply per element, arrays of ``length`` in cache."""
    a, b = np.random.default_rng(0).random((2, length))
    out = np.empty(length)
    began = time.perf_counter()
    for _ in range(repeats):
        np.multiply(a, b, out=out)
    return (time.perf_counter() - began) / repeats / length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1024)
    parser.add_argument("--keep", type=int, default=1000)
    arguments = parser.parse_args()
    (scenario,) = scenarios_of(reference_study(arguments.devices), __import__("pathlib").Path(), HardwareRegistry())
    print(f"reference study: {scenario.n_plans:,} plans, axes {scenario.shape}")

    found = Found()
    began = time.perf_counter()
    for start, stop in scenario.blocks(BLOCK_PLANS):
        bound = found.bound(arguments.keep, "step_time")
        block = search_block(scenario, start, stop, keep=arguments.keep, bound=bound, fastest=found.fastest)
        found.add(block, keep=arguments.keep, key="step_time")
    seconds = time.perf_counter() - began
    rate = found.n_plans / seconds
    unit = multiply_s(1 << 16)
    print(f"vectorized: {rate / 1e6:.1f} M plans/s on one core ({seconds:.2f} s)")
    print(f"  {found.n_estimated:,} estimated in full, the others refused by a constraint; {found.n_fit:,} fit")
    print(f"  counting only those estimated in full: {found.n_estimated / seconds / 1e6:.1f} M plans/s")
    print(f"a plan costs {1 / rate / unit:.1f} numpy multiplies ({unit * 1e9:.2f} ns each)")

    one = [scenario.rows(np.array([i])) for i in np.linspace(0, scenario.n_plans - 1, 50).astype(np.int64)]
    began = time.perf_counter()
    for plans in one:
        point = estimate(scenario.model, scenario.hardware, scenario.recipe, plans)
        point.step_time_s, point.memory_bytes  # noqa: B018 computed on first use
    each = (time.perf_counter() - began) / len(one)
    print(f"one object per plan: {1 / each:,.0f} plans/s, {each / unit:,.0f} numpy multiplies a plan")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
