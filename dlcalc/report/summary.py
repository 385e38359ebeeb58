"""What a search answers, as one object: printed by report.search_report, by ``--json``, and kept beside the rows.

Built by ``workflows.search.run_search`` and read by programs: names here are an interface, and the same as the columns
of a result. Base units throughout; null where a thing is not known or does not apply.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from dlcalc.errors import InfeasibleSpaceError, NoPlacementError
from dlcalc.report.memory_words import need_and_limit
from dlcalc.report.plan_words import knobs_of
from dlcalc.utils import units

SortName = Literal["mfu", "step_time", "cost", "memory"]


class PlanKnobs(TypedDict):
    """Beside what a row says of a plan stand its knobs: all of ``costmodel.plans.KNOBS``, as people write them."""


class PlanRow(PlanKnobs):
    """A plan that fits, with its estimate."""

    rank: int
    step_time_s: float
    step_time_low_s: float
    """The 80 % interval of the step time, from measured runs of the same regime."""
    step_time_high_s: float
    mfu: float
    hfu: float
    tokens_per_s_per_device: float
    memory_bytes: float
    headroom_bytes: float
    """Free: usable memory less ``memory_bytes``."""
    days: float | None
    """For the recipe's token budget."""
    cost_usd: float | None
    plan_index: NotRequired[int]
    energy_kwh: NotRequired[float | None]


class Miss(PlanKnobs):
    """A plan that was refused, but not by much."""

    memory_bytes: float
    over_bytes: float
    """Beyond the limit; 0 or less when memory is not the reason."""
    reasons: list[str]


class Breakdown(TypedDict):
    """The best plan, term by term."""

    time_s: dict[str, float]
    memory_bytes: dict[str, float]


class PlacedRow(PlanKnobs):
    """A plan on its nodes: without placement, as placed, and what makes the difference."""

    plan_index: int
    rank: int | None
    """Without placement; null beyond the thousand best."""
    placed_rank: int
    placement: int
    """Number of the row of the result's placements."""
    step_time_s: float
    mfu: float
    memory_bytes: float
    headroom_bytes: float
    placed_step_time_s: float
    placed_step_time_low_s: float
    placed_step_time_high_s: float
    placed_mfu: float
    placed_hfu: float
    placed_tokens_per_s_per_device: float
    hops: float
    """Of the closed tours of all rings."""
    lower_bound_hops: float | None
    """No placement has fewer."""
    proved_optimal: bool
    added_s: dict[str, float]
    """What placing adds to each term of the step."""
    slower_links: dict[str, float]
    """By kind of group, the share of the NIC's rate that its slowest group gets, where that is less than all."""


class PlacedSummary(TypedDict):
    """The second stage of a search: the best meshes on the nodes of a fabric."""

    topology: str
    n_nodes: int
    n_free_nodes: int
    """Candidates: free, and with topology data."""
    without_data: list[str]
    """Free nodes that are no candidates, since nothing is known of the switches above them."""
    why_none: str | None
    """Why nothing of this scenario could be placed; null where something was."""
    n_meshes: int
    n_placements: int
    """Different ones; meshes whose rings are alike share one."""
    not_placed: dict[str, int]
    """Meshes that cannot be placed, by reason."""
    n_faster_on_paper: int
    """Meshes that were not tried and have a plan that is faster without placement than the best one is with it. Placing
    makes no plan faster, so with none the best plan is the best of all meshes."""
    order_changed: bool
    """Whether ``best`` would be others, or in another order, by the ranks that the placed plans have without it."""
    best: list[PlacedRow]
    first_on_paper: PlacedRow | None
    """The best plan without placement, as placed; null where its mesh cannot be."""
    breakdown: Breakdown | None
    """Of the best plan as placed."""
    rings: list[list[str]]
    """The nodes of the best plan: per ring, in ring order."""
    machines_per_node: int
    """Of these that are one node of the hardware: more than one where a part of an NVLink domain is. Hops are between
    nodes of the hardware."""


class SampledSummary(TypedDict):
    """How a scenario was searched where its plans were sampled."""

    method: str
    sampler: str
    seed: int
    objectives: list[str]
    study_name: str
    """Of the study of Optuna."""
    storage: str
    """Without its password; ``memory`` where nothing outlives the search."""
    n_trials: int
    n_trials_before: int
    """Of these, made before this search began."""
    n_trials_failed: int
    n_plans: int
    """Estimated."""
    n_plans_of_space: int
    front: list[PlanRow]
    """With several objectives: plans that no other one beats in all of them."""


class DesignRow(TypedDict):
    """A design that no other one beats in every objective; its plans are those of ``scenario``."""

    scenario: str
    trial: int
    variables: dict[str, float | str]
    values: dict[str, float]
    """By objective: s, fraction, GiB, USD."""


class DesignSummary(TypedDict):
    """How designs of one scenario were sampled; each of them with every plan estimated."""

    scenario: str
    """As it is without any change."""
    kind: str
    """``machines``, ``shapes``, ``machines and shapes`` or ``cuts into stages``."""
    sampler: str
    seed: int
    objectives: list[str]
    study_name: str
    storage: str
    n_trials: int
    n_trials_before: int
    n_trials_failed: int
    n_front: int
    front: list[DesignRow]
    """The first ones where there are many."""
    variables_unchanged: dict[str, float | str]
    """What varies, as it is without any change."""
    unchanged: dict[str, float] | None
    """The objectives without any change; null where nothing fits."""


class MeasuredRow(PlanKnobs):
    """A plan that was run."""

    plan_index: int
    trial: int
    step_time_s: float
    """As estimated."""
    measured_step_time_s: float | None
    problem: str
    """Why there is no measured time."""


class MeasuredSummary(TypedDict):
    """What a scenario's plans took when they were run."""

    command: str
    study_name: str
    storage: str
    n_trials: int
    n_trials_before: int
    n_trials_failed: int
    n_open: int
    """Plans that may still be faster than the best one measured."""
    measured_over_estimated: float | None
    """Geometric mean."""
    rows: list[MeasuredRow]
    """The fastest first, then those without a time."""
    csv: str
    """The runs as ``dlcalc-calibrate`` reads them."""


class ScenarioSummary(TypedDict):
    """One (model, hardware, device count, recipe)."""

    name: str
    model: str
    hardware: str
    devices: int
    precision: str
    framework: str
    seq_len: int
    global_batch: int
    mfu_convention: str
    n_plans: int
    n_fit: int
    refused: dict[str, int]
    """Plans by reason; a plan refused for two reasons is counted under both."""
    best: list[PlanRow]
    breakdown: Breakdown | None
    memory_usable_bytes: float
    """Of one device; ``headroom_bytes`` of a plan is what it leaves of that."""
    memory_limit_bytes: float
    """What a plan may need: usable memory less what the study keeps free."""
    n_not_told_apart: int
    """Plans, of the thousand best (or those that were kept), that may be faster than the best one for all that is
    known. 0 where plans are sorted by memory: then the thousand best are not the fastest."""
    more_not_told_apart: NotRequired[bool]
    """All of them may, so beyond them there are others."""
    worth_measuring: list[PlanRow]
    """The best plan and up to two others, of other meshes, that only a run on the cluster can rank."""
    n_within_2_percent: int
    """Plans, the fastest among them, within 2 % of the fastest."""
    within_2_percent: list[PlanRow]
    nearest_misses: list[Miss]
    placed: NotRequired[PlacedSummary]
    """Where a fabric was given."""
    sampled: NotRequired[SampledSummary]
    """Where plans were sampled."""
    measured: NotRequired[MeasuredSummary]
    """Where plans were run."""


class Summary(TypedDict):
    """A whole study."""

    study: str
    sort: SortName
    """What the best plans are the best by. At one number of devices, MFU, step time and cost give the same order."""
    n_plans: int
    n_refused: int
    n_fit: int
    seconds: float
    plans_per_s: float
    placing_s: NotRequired[float]
    peak_rss_bytes: int
    result: str | None
    scenarios: list[ScenarioSummary]
    designs: NotRequired[list[DesignSummary]]
    """Where machines, shapes or stages were sampled."""


class DryRunScenario(TypedDict):
    """What a search would look at in one scenario."""

    name: str
    model: str
    hardware: str
    devices: int
    precision: str
    n_plans: int
    axes: dict[str, int]
    """Values per axis of the space, in the order of the grid; their product is n_plans."""


class DryRunVariable(TypedDict):
    """What a sampler would choose: one of some values, or a number between two."""

    name: str
    values: list[int | float | str | bool] | None
    low: float | None
    high: float | None


class DryRunSampling(TypedDict):
    """How plans, designs or runs would be sampled, in each scenario."""

    kind: str
    """``plans``, ``runs``, or what designs are, such as ``machines``."""
    sampler: str | None
    """None: runs follow the estimates."""
    objectives: list[str]
    n_trials: int
    """Of each scenario."""
    batch: int
    storage: str
    variables: dict[str, list[DryRunVariable]]
    """By scenario; empty for runs."""
    n_points: dict[str, int | None]
    """By scenario: combinations of values; null where a variable is continuous."""
    most_plans_per_trial: int
    """Estimated for one trial."""
    seconds_of_all_plans: float
    """That a search of every plan of the scenarios as they are would take."""
    command: str | None
    timeout_s: float | None


class DryRun(TypedDict):
    """What a search would do, without doing it."""

    study: str
    n_plans: int
    seconds: float
    """Estimated."""
    result_bytes: float
    """Estimated; when every plan fits, so at most."""
    result: str
    scenarios: list[DryRunScenario]
    sampling: NotRequired[DryRunSampling]
    """Where not every plan is estimated, or more than plans are."""


class HardwareRow(TypedDict):
    """One line of --list-hardware."""

    name: str
    aliases: list[str]
    description: str
    devices_per_node: int
    hbm_gib: float
    hbm_tb_per_s: float
    bf16_tflops: float | None
    fp8_tflops: float | None
    link_gb_per_s: float
    nic_gbit_per_s: float
    usd_per_device_hour: float | None
    measured: bool
    """Whether its calibration rests on measured kernels."""


class ModelRow(TypedDict):
    """One line of --list-models."""

    name: str
    parameters_total: float
    parameters_active: float
    n_layers: int
    hidden_size: int
    n_heads: int
    n_experts: int
    vocab_size: int


def nothing_fits(summary: Summary) -> InfeasibleSpaceError | None:
    """The error of a study in which every plan of every scenario was refused, or None."""
    if summary["n_fit"]:
        return None
    counts: dict[str, int] = {}
    for scenario in summary["scenarios"]:
        for reason, number in scenario["refused"].items():
            counts[reason] = counts.get(reason, 0) + number
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    reasons = "; ".join(f"{units.count(number)} {reason}" for reason, number in ordered if number)
    head = f"none of {units.count(summary['n_plans'])} plans fits"
    misses = [miss_sentence(scenario) for scenario in summary["scenarios"]]
    lines = [f"{head}: {reasons}" if reasons else head, *(line for line in misses if line)]
    return InfeasibleSpaceError("\n".join(lines[:4]))


def nothing_placed(summary: Summary) -> NoPlacementError | None:
    """The error of a study that was to be placed, of which no scenario could be; or None."""
    placed = [scenario["placed"] for scenario in summary["scenarios"] if "placed" in scenario]
    if not placed or any(found["why_none"] is None for found in placed):
        return None
    reasons = dict.fromkeys(
        f"{scenario['name']}: {scenario['placed']['why_none']}" for scenario in summary["scenarios"]
    )
    return NoPlacementError("nothing could be placed on " + placed[0]["topology"] + ": " + "\n".join(list(reasons)[:4]))


def miss_sentence(scenario: ScenarioSummary) -> str | None:
    """The nearest miss in one line: ``nearest: tp=8 pp=4 full recompute needs 83.1 GiB, limit 75.1 GiB``."""
    if not scenario["nearest_misses"]:
        return None
    miss = scenario["nearest_misses"][0]
    knobs = knobs_of(miss)
    degrees = " ".join(f"{knob}={knobs[knob]}" for knob in ("tp", "cp", "pp", "ep") if knobs[knob] > 1) or "dp only"
    recompute = "" if knobs["recompute"] == "none" else f", {knobs['recompute']} recompute"
    plan = f"nearest in {scenario['name']}: {degrees}, micro_batch={knobs['micro_batch']}{recompute}"
    if miss["over_bytes"] <= 0:
        return f"{plan} is refused: {'; '.join(miss['reasons'])}"
    return f"{plan} needs {need_and_limit(miss['memory_bytes'], miss['memory_bytes'] - miss['over_bytes'])}"
