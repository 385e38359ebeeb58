"""Does the search agree with people who tuned by hand?

    python benchmarks/tuned_recipes.py [--within 0.10]

For every tuned recipe among the measured runs (Megatron-Bridge performance recipes, trust A), the search with that
run's model, hardware, devices, batch and precision: how much slower than its own best plan it thinks the tuned plan is,
and which plan it prefers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.plans import KNOBS, Plans, value_of
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.exhaustive import search_block
from dlcalc.search.found import Found
from dlcalc.search.space import Scenario, axes_of
from dlcalc.specs.load import config_dir
from dlcalc.specs.space import KnobRanges
from dlcalc.validation.runs import RunSetting, read_models, read_runs, setting_of

SHOWN = (
    "tp",
    "cp",
    "pp",
    "dp",
    "ep",
    "vpp",
    "micro_batch",
    "recompute",
    "recompute_layers",
    "zero_stage",
    "dp_replicate",
    "offload_layers",
)


def searched(setting: RunSetting, devices: int) -> tuple[Found, Plans]:
    """The best of the space that users of the run's framework vary, and its first plan."""
    scenario = Scenario(
        name="tuned",
        model=setting.model,
        hardware=setting.hardware,
        devices=devices,
        recipe=setting.recipe,
        axes=axes_of(setting.model, setting.hardware, devices, setting.recipe, KnobRanges()),
        custom_split=setting.custom_split,
    )
    found = Found()
    for start, stop in scenario.blocks(1 << 22):
        block = search_block(scenario, start, stop, keep=3, bound=found.bound(3, "step_time"), fastest=found.fastest)
        found.add(block, keep=3, key="step_time")
    return found, scenario.rows(found.leaders.index[:1])


def words(plans: Mapping[str, float] | object) -> str:
    """The knobs that recipes vary, in one line."""
    values = {knob: value_of(knob, float(getattr(plans, knob).reshape(-1)[0])) for knob in KNOBS}
    return " ".join(f"{knob}={values[knob]}" for knob in SHOWN if values[knob] not in (1, 0, "none", -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--within", type=float, default=0.10)
    arguments = parser.parse_args()
    folder = config_dir() / "measured"
    models, registry = read_models(folder / "models.yaml"), HardwareRegistry()
    runs = [run for run in read_runs(folder / "nemo_bridge.csv") if run.extras.get("trust") == "A"]
    close = 0
    for run in runs:
        setting = setting_of(run, models, registry)
        own: Estimate = estimate(
            setting.model, setting.hardware, setting.recipe, setting.plan, custom_split=setting.custom_split
        )
        found, preferred = searched(setting, run.whole("gpus"))
        tuned, best = float(own.step_time_s), float(found.leaders.step_time_s[0])
        slower = tuned / best - 1.0
        close += slower <= arguments.within
        note = (
            ""
            if bool(own.fits)
            else f"  REFUSED: {float(own.memory_bytes) / 2**30:.1f} of {own.capacity_bytes / 2**30:.1f} GiB"
        )
        print(f"{run.case:75s} {slower * 100:+6.1f} %{note}")
        if slower > arguments.within:
            print(f"    measured {run.number('step_time_s'):.3f} s, estimated {tuned:.3f} s: {words(setting.plan)}")
            print(f"    preferred {best:.3f} s: {words(preferred)}")
    print(f"{close} of {len(runs)} tuned plans are within {arguments.within:.0%} of the search's own best")


if __name__ == "__main__":
    main()
