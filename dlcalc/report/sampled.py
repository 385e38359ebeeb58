"""What a search says of how it searched, where it did not estimate every plan: trials, designs, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from rich.console import Console
from rich.text import Text

from dlcalc.report.plan_words import Knobs, shared_and_own
from dlcalc.report.summary import (
    DesignSummary,
    DryRun,
    DryRunSampling,
    DryRunVariable,
    MeasuredSummary,
    PlanRow,
    SampledSummary,
)
from dlcalc.report.tables import Column, table_of
from dlcalc.utils import units

RUNS_SHOWN = 12
MOST_VALUES = 8
"""Of a variable, that are written out."""
_LABELS: Mapping[str, tuple[str, float, int]] = {
    "step_time": ("step s", 1.0, 4),
    "mfu": ("MFU %", 100.0, 3),
    "memory": ("memory GiB", 1.0, 3),
    "cost": ("cost", 1.0, 3),
}
"""Of an objective: its header, what its value is shown in, how many digits."""


_VARIABLES = {
    "n_layers": "layers",
    "hidden_size": "hidden",
    "n_heads": "heads",
    "n_kv_heads": "KV heads",
    "n_experts": "experts",
    "ffn_hidden_size": "MLP",
    "expert_ffn_hidden_size": "expert MLP",
    "active_parameters": "active",
}
"""Short names of what many columns are needed for."""


def print_sampled(sampled: SampledSummary, console: Console) -> None:
    """How many trials found it; with several objectives, the plans that no other one beats."""
    share = 100.0 * sampled["n_plans"] / max(sampled["n_plans_of_space"], 1)
    console.print()
    console.print(
        Text(
            f"Sampled, not searched in full: {_trials(sampled)}, estimated {units.count(sampled['n_plans'])} of "
            f"{units.count(sampled['n_plans_of_space'])} plans ({units.significant(share, 2)} %)."
        )
    )
    rows = sampled["front"]
    if len(rows) < 2:
        return
    shared, own = shared_and_own([cast("Knobs", row) for row in rows])
    console.print()
    console.print(
        Text(f"{len(rows)} plans that no other one beats in {_listed(sampled['objectives'])}, all with {shared}")
    )
    columns = [Column("plan", own, "left", flexible=True)]
    columns += [_column(goal, [_value(row, goal) for row in rows]) for goal in sampled["objectives"]]
    console.print(table_of(columns, console.width))


def _value(row: PlanRow, goal: str) -> float:
    match goal:
        case "step_time":
            return row["step_time_s"]
        case "mfu":
            return row["mfu"]
        case "memory":
            return row["memory_bytes"] / units.GIB
        case _:
            return row["cost_usd"] or 0.0


def _trials(said: SampledSummary | DesignSummary) -> str:
    before = f", {units.count(said['n_trials_before'])} of them earlier" if said["n_trials_before"] else ""
    return (
        f"{units.count(said['n_trials'])} trials{before} of {said['sampler']} (seed {said['seed']}) for "
        f"{_listed(said['objectives'])}"
    )


def _listed(goals: Sequence[str]) -> str:
    words = [goal.replace("_", " ") for goal in goals]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _column(goal: str, values: Sequence[float | None]) -> Column:
    label, scale, digits = _LABELS[goal]
    if goal == "cost":
        return Column(label, ["-" if value is None else units.money(value) for value in values])
    return Column(label, ["-" if value is None else units.significant(value * scale, digits) for value in values])


def print_designs(designs: DesignSummary, console: Console) -> None:
    """The designs of one scenario that no other one beats, and what it is without any change."""
    what = designs["kind"]
    shown = len(designs["front"])
    found = f"{units.count(designs['n_front'])} {what}" if designs["n_front"] > 1 else "one of its " + what
    left_out = f" ({shown} of them shown, spread over all)" if shown < designs["n_front"] else ""
    none = "no shape is possible, or no plan can run" if "shapes" in what else "no plan can run"
    failed = f"; in {units.count(designs['n_trials_failed'])} {none}" if designs["n_trials_failed"] else ""
    console.print()
    console.print(Text(designs["scenario"], style="bold cyan"))
    console.print(
        Text(f"{_trials(designs)}, of each every plan estimated{failed}. No other design beats {found}{left_out}.")
    )
    columns = [Column("design", ["as it is", *(str(row["trial"]) for row in designs["front"])])]
    columns += _variables(designs)
    unchanged = designs["unchanged"] or {}
    for goal in designs["objectives"]:
        columns.append(_column(goal, [unchanged.get(goal), *(row["values"][goal] for row in designs["front"])]))
    console.print(table_of(columns, console.width))


def _variables(designs: DesignSummary) -> list[Column]:
    columns = []
    told = [designs["variables_unchanged"], *(row["variables"] for row in designs["front"])]
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name) for one in told]
        if len(told) > 1 and len(set(values)) == 1:
            continue  # as in every design, so in none
        is_text = any(isinstance(value, str) for value in values)
        cells = [_cell(name, value) for value in values]
        label = _VARIABLES.get(name, name.replace("_", " "))
        columns.append(Column(label, cells, "left" if is_text else "right", flexible=True))
    return columns


def _cell(name: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if name.endswith("parameters"):
        return units.short_count(value)
    return units.count(value) if value.is_integer() else units.significant(value, 4)


def print_sampling(counts: DryRun, sampling: DryRunSampling, console: Console) -> None:
    """What a study that is sampled would do."""
    trials = units.count(sampling["n_trials"])
    several = " in each scenario" if len(counts["scenarios"]) > 1 else ""
    console.print(Text(_sampling_words(sampling, trials, several)))
    for variables, points, scenarios in _alike(sampling):
        where = f"{', '.join(scenarios)}: " if len(sampling["variables"]) > 1 else ""
        size = f"{units.count(points)} points" if points is not None else "some continuous"
        console.print(Text(f"{where}{len(variables)} variables, {size}: {', '.join(map(_range, variables))}"))
    console.print(
        Text(
            f"{counts['study']}: {'at least' if sampling['kind'] == 'plans' else 'about'} "
            f"{units.duration(counts['seconds'])}{' and the runs' if sampling['command'] else ''}, at most about "
            f"{units.size(counts['result_bytes'])} in {counts['result']}; nothing was written"
        )
    )
    if sampling["kind"] == "plans" and sampling["seconds_of_all_plans"] < counts["seconds"]:
        console.print(
            Text(
                f"All {units.count(counts['n_plans'])} plans take about "
                f"{units.duration(sampling['seconds_of_all_plans'])} without the search section"
            )
        )


def _sampling_words(sampling: DryRunSampling, trials: str, several: str) -> str:
    if sampling["command"] is not None:
        timeout = units.duration(sampling["timeout_s"] or 0.0)
        return (
            f"Measured: after all plans are estimated, at most {trials} runs of {sampling['command']}{several}, of at "
            f"most {timeout} each, kept in {sampling['storage']}"
        )
    of_each = f"at most {units.count(sampling['most_plans_per_trial'])} plans estimated for each trial"
    if sampling["kind"] == "plans":
        what = "Sampled, not searched in full"
    else:
        what, of_each = f"Sampled: {sampling['kind']}", "every plan of each estimated"
    return (
        f"{what}: {trials} trials of {sampling['sampler']} for {_listed(sampling['objectives'])}{several}, "
        f"{sampling['batch']} at a time, kept in {sampling['storage']}; {of_each}"
    )


def _alike(sampling: DryRunSampling) -> list[tuple[list[DryRunVariable], int | None, list[str]]]:
    """Variables with the scenarios that share them."""
    found: list[tuple[list[DryRunVariable], int | None, list[str]]] = []
    for name, variables in sampling["variables"].items():
        same = next((scenarios for known, _, scenarios in found if known == variables), None)
        if same is None:
            found.append((variables, sampling["n_points"][name], [name]))
        else:
            same.append(name)
    return found


def _range(variable: DryRunVariable) -> str:
    values = variable["values"]
    if values is None:
        return f"{variable['name']} {variable['low']:g} to {variable['high']:g}"
    if len(values) > MOST_VALUES:
        return f"{variable['name']} {len(values)} values from {values[0]} to {values[-1]}"
    return f"{variable['name']} {'/'.join(_word(value) for value in values)}"


def _word(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:g}"


def print_measured(measured: MeasuredSummary, console: Console) -> None:
    """The runs, and whether more of them could find a faster plan."""
    rows = measured["rows"]
    if not rows:
        return
    shared, own = shared_and_own([cast("Knobs", row) for row in rows[:RUNS_SHOWN]])
    before = f", {units.count(measured['n_trials_before'])} of them earlier" if measured["n_trials_before"] else ""
    failed = f", {units.count(measured['n_trials_failed'])} without a step time" if measured["n_trials_failed"] else ""
    console.print()
    console.print(
        Text(
            f"Measured: {units.count(measured['n_trials'])} runs{before}{failed}"
            + (f"; all shown with {shared}" if shared else "")
        )
    )
    times = [row["measured_step_time_s"] for row in rows[:RUNS_SHOWN]]
    columns = [
        Column("run", [str(row["trial"]) for row in rows[:RUNS_SHOWN]]),
        Column("plan", own, "left", flexible=True),
        Column("estimated s", [units.significant(row["step_time_s"], 4) for row in rows[:RUNS_SHOWN]]),
        Column("measured s", ["-" if time is None else units.significant(time, 4) for time in times]),
    ]
    if any(row["problem"] for row in rows[:RUNS_SHOWN]):
        columns.append(Column("why not", [row["problem"] for row in rows[:RUNS_SHOWN]], "left", flexible=True))
    console.print(table_of(columns, console.width))
    ratio = measured["measured_over_estimated"]
    told = f"Runs take {units.significant(ratio, 3)} times their estimates. " if ratio else ""
    left = measured["n_open"]
    told += (
        f"{units.count(left)} plans may still be faster; more n_trials would tell."
        if left
        else "No plan that was not run can be faster, as far as the intervals go."
    )
    console.print(Text(f"{told} Runs in {measured['csv']}, for dlcalc-calibrate."))
