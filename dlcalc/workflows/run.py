"""The use case behind ``3dtrn``: one run file, or one row of a result, taken apart. Never click, never colours."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from dlcalc.calculators import flops, params
from dlcalc.calculators.references import REFERENCES
from dlcalc.costmodel.anatomy.kernels import SUBLAYERS, attention_facts, block_terms, common_block, matmul_facts
from dlcalc.costmodel.anatomy.memory import op_activations, stage_memory
from dlcalc.costmodel.anatomy.pipeline import pipeline_facts
from dlcalc.costmodel.anatomy.traffic import axis_facts
from dlcalc.costmodel.cross_dc import CrossDcFacts, across_data_centres
from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.placement import Crossing, PlacedRates
from dlcalc.costmodel.plans import KNOBS, number, value_of
from dlcalc.costmodel.prediction import Prediction
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.costmodel.timeline import CannotRunError, Timeline, n_operations, pipeline_timeline
from dlcalc.errors import DlcalcError, UnknownNameError, nearest
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.run_facts import (
    BlockFacts,
    Citation,
    Comparison,
    DataFacts,
    Difference,
    HardwareFacts,
    Interval,
    MemoryFacts,
    ModelFacts,
    Results,
    RunFacts,
)
from dlcalc.report.trace import chrome_trace
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.results.placed import KINDS
from dlcalc.results.reader import Result, open_result
from dlcalc.results.storage import Location, ObjectPath, location
from dlcalc.search.run import Knob, ResultRow, Run, RunFile, RunSource
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.utils import units
from dlcalc.utils.jsontext import to_json
from dlcalc.utils.units import SECONDS_PER_DAY, SECONDS_PER_HOUR

MOST_OPERATIONS = 500_000
"""Of a pipeline that is written as a trace: about 100 MB of JSON."""


def open_run(
    path: Location | str, *, rank: int | None = None, scenario: str | None = None, hardware_dirs: Sequence[Path] = ()
) -> RunSource:
    """A run file, or the row of rank ``rank`` (1 is the best) of the result in a directory."""
    path = location(path)
    registry = HardwareRegistry(folders=hardware_search_path(hardware_dirs))
    if isinstance(path, ObjectPath) or os.path.isdir(path):
        return row_of(open_result(path), path, rank or 1, scenario, registry)
    for option, given in (("--rank", rank), ("--scenario", scenario)):
        if given is not None:
            raise DlcalcError(f"{option} picks a row of a result; {path} is not a result directory")
    if not os.path.exists(path):
        raise DlcalcError(f"{path}: does not exist{_near(path)}")
    return RunFile.read(path, registry)


def analyse(source: RunSource, changes: Mapping[str, Any] | None = None) -> RunFacts:
    """Everything there is to say of a run."""
    run = source.resolve(changes or {})
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a plan that is refused may divide by zero
        found, cross = _estimate(run)
        return _facts(run, found, cross)


def compare(source: RunSource, changes: Mapping[str, Any]) -> Comparison:
    """A run as written, and with ``changes``."""
    before, after = analyse(source), analyse(source, changes)
    return Comparison(dict(changes), before, after, tuple(_differences(before, after)))


def as_document(facts: RunFacts, comparison: Comparison | None, cited: Sequence[Citation]) -> dict[str, Any]:
    """The object of ``--json``: the run; of a what-if, both and the differences; and the sources, if asked for."""
    if comparison is None:
        found = asdict(facts)
    else:
        found = {
            "changes": dict(comparison.changes),
            "before": asdict(comparison.before),
            "after": asdict(comparison.after),
            "differences": [asdict(row) for row in comparison.differences],
        }
    return {**found, "sources": [asdict(one) for one in cited]} if cited else found


def timeline(source: RunSource) -> tuple[Run, Estimate, Timeline]:
    """A run's pipeline, operation by operation."""
    run = source.resolve({})
    found, _ = _estimate(run)
    count = n_operations(found)
    if count > MOST_OPERATIONS:
        raise DlcalcError(
            f"--trace: about {count:,} operations in one step are more than a viewer opens ({MOST_OPERATIONS:,}); "
            f"write a run file with a smaller global batch"
        )
    try:
        return run, found, pipeline_timeline(found, run.custom_split)
    except CannotRunError as error:
        why = "; ".join(_refusals(found, memory=False)) or str(error)
        raise DlcalcError(f"--trace: this plan has no schedule to draw: {why}") from error


def drawable_timeline(source: RunSource) -> Timeline | None:
    """A run's pipeline where it can be replayed; None where its plan has no schedule or a step too many operations."""
    try:
        return timeline(source)[2]
    except DlcalcError:
        return None


def write_trace(source: RunSource, file: Path) -> None:
    """The step as a trace that Perfetto and chrome://tracing open."""
    run, found, steps = timeline(source)
    _write(file, to_json(chrome_trace(run.name, found, steps), indent=None))


def write_text(file: Path, text: str) -> None:
    """Write what a report made."""
    _write(file, text)


def citations(source: RunSource) -> tuple[Citation, ...]:
    """The sources of the equations whose results this run's estimate is made of, by observation."""
    run = source.resolve({})
    used = _equations_used(run)
    by_key: dict[str, set[str]] = {}
    for name, docstring in used.items():
        source_text = "".join(re.findall(r"Source: .*", docstring, re.DOTALL))
        for key in re.findall(r"\[(\w+)\]", source_text):
            by_key.setdefault(key, set()).add(name)
    return tuple(
        Citation(key, ref.title, ref.authors, ref.year, ref.url, tuple(sorted(by_key[key])))
        for key, ref in sorted(REFERENCES.items())
        if key in by_key
    )


# ---- estimates ----------------------------------------------------------------------------------------------------


def _estimate(run: Run) -> tuple[Estimate, CrossDcFacts | None]:
    found = run.estimate()
    if run.cross_dc is None or run.cross_dc.n_dcs == 1:
        return found, None
    return across_data_centres(found, run.cross_dc)


def _refusals(found: Estimate, *, memory: bool = True) -> list[str]:
    reasons = [reason for reason, mask in found.refused.items() if bool(np.any(mask))]
    if memory and float(found.memory_bytes) > found.capacity_bytes:
        reasons.append(OUT_OF_MEMORY)
    return reasons


def _facts(run: Run, found: Estimate, cross: CrossDcFacts | None) -> RunFacts:
    plan = {knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS}
    attention, mlp = common_block(found)
    return RunFacts(
        name=run.name,
        configuration=run.written,
        plan=plan,
        notes=run.notes,
        ignored=run.ignored,
        refused=tuple(_refusals(found)),
        hardware=_hardware(run),
        data=DataFacts(
            seq_len=run.recipe.seq_len,
            global_batch=run.recipe.global_batch,
            tokens_per_step=run.recipe.tokens_per_step,
            micro_batch=int(run.plan.micro_batch),
            micro_batches=float(run.recipe.global_batch / (run.plan.dp * run.plan.micro_batch)),
            precision=run.recipe.precision,
            framework=run.recipe.framework.name,
        ),
        model=_model(run, found),
        memory=_memory(run, found),
        matmuls=matmul_facts(found),
        attention=attention_facts(found),
        communication=axis_facts(found),
        cross_dc=cross,
        pipeline=pipeline_facts(found, run.custom_split),
        block=BlockFacts(attention, mlp, block_terms(found)),
        step={name: float(value) for name, value in found.step.terms().items()},
        results=_results(run, found),
    )


def _hardware(run: Run) -> HardwareFacts:
    hardware = run.hardware
    return HardwareFacts(
        name=hardware.name,
        description=hardware.description,
        devices=run.devices,
        devices_per_node=hardware.node.n_devices,
        nodes=run.devices / hardware.node.n_devices,
        hbm_bytes=hardware.device.hbm_bytes,
        peak_flops_per_s=hardware.device.peak_flops_per_s(run.recipe.precision),
        hbm_bytes_per_s=hardware.device.hbm_bytes_per_s,
        node_bytes_per_s=hardware.node.link_bytes_per_s,
        fabric_bytes_per_s=hardware.fabric.nic_bytes_per_s_per_device,
        fabric_latency_s=hardware.fabric.latency_s,
        is_measured=hardware.calibration.measured,
        calibration=hardware.calibration.provenance,
    )


def _model(run: Run, found: Estimate) -> ModelFacts:
    model, plan = run.model, run.plan
    held = stage_params(model, plan, found.stages)
    stage_devices = plan.tp * plan.cp * plan.dp
    mesh = {"ep": int(plan.ep), "etp": int(plan.etp), "expert_dp": float(stage_devices / (plan.ep * plan.etp))}
    return ModelFacts(
        name=model.name,
        n_layers=model.n_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        parameters_total=float(params.total_params(model)),
        parameters_active=float(params.active_params(model)),
        parameters_embedding=float(params.embedding_params(model)),
        parameters_per_device=float(np.max(held.stage_dense + held.stage_expert)),
        flops_per_token=float(
            flops.model_flops_per_token_flops(
                model, seq_len=float(run.recipe.seq_len), convention=run.recipe.mfu_convention
            )
        ),
        n_moe_layers=model.n_moe_layers,
        n_experts=model.n_experts,
        top_k=model.top_k,
        expert_ffn_hidden_size=model.expert_ffn_hidden_size,
        expert_mesh=mesh if model.is_moe else None,
    )


def _memory(run: Run, found: Estimate) -> MemoryFacts:
    stages = stage_memory(found, run.custom_split)
    activations = op_activations(found)
    block = common_block(found)
    attention = SUBLAYERS["full"] if any(op.sublayer == SUBLAYERS["full"] for op in activations) else block[0]
    return MemoryFacts(
        total_bytes=float(found.memory_bytes),
        usable_bytes=run.hardware.device.hbm_bytes,
        limit_bytes=found.capacity_bytes,
        terms={name: float(value) for name, value in found.footprint.terms_of_peak().items()},
        fullest_stage=max(stages, key=lambda stage: stage.total_bytes).stage,
        stages=stages,
        activations=activations,
        layer_activation_bytes=sum(op.kept_bytes for op in activations if op.sublayer in (attention, block[1])),
    )


def _results(run: Run, found: Estimate) -> Results:
    recipe, step_s = run.recipe, float(found.step_time_s)
    days = cost = None
    if recipe.token_budget:
        seconds = recipe.token_budget / recipe.tokens_per_step * step_s
        days = seconds / SECONDS_PER_DAY
        if run.hardware.price:
            cost = seconds / SECONDS_PER_HOUR * run.devices * run.hardware.price.usd_per_device_hour
    told = Prediction.of(found)
    return Results(
        iteration_s=step_s,
        ideal_iteration_s=float(found.mfu_seconds),
        mfu=told.mfu,
        hfu=float(found.hfu),
        mfu_convention=recipe.mfu_convention,
        tokens_per_s=recipe.tokens_per_step / step_s,
        tokens_per_s_per_device=told.tokens_per_s_per_device,
        tokens_per_day=recipe.tokens_per_step / step_s * SECONDS_PER_DAY,
        interval=Interval(told.step_time_low_s, told.step_time_high_s, load_uncertainty().coverage),
        days=days,
        cost_usd=cost,
    )


# ---- what if ------------------------------------------------------------------------------------------------------


def _differences(before: RunFacts, after: RunFacts) -> list[Difference]:
    """Quantities of both runs that say where they differ: every term of the step and of memory, and the answers."""
    rows = [
        Difference("hardware", "devices", "count", before.hardware.devices, after.hardware.devices),
        Difference(
            "hardware", "peak rate", "flops_per_s", before.hardware.peak_flops_per_s, after.hardware.peak_flops_per_s
        ),
        Difference("data", "tokens per step", "count", before.data.tokens_per_step, after.data.tokens_per_step),
        Difference("data", "micro-batches", "count", before.data.micro_batches, after.data.micro_batches),
    ]
    rows += _term_differences("MEMORY", "bytes", before.memory.terms, after.memory.terms)
    rows += [
        Difference("MEMORY", "total", "bytes", before.memory.total_bytes, after.memory.total_bytes),
        Difference("MEMORY", "limit", "bytes", before.memory.limit_bytes, after.memory.limit_bytes),
    ]
    rows += _term_differences("iteration", "s", before.step, after.step)
    for what, unit in (
        ("iteration_s", "s"),
        ("ideal_iteration_s", "s"),
        ("mfu", "fraction"),
        ("hfu", "fraction"),
        ("tokens_per_s_per_device", "count"),
        ("tokens_per_day", "count"),
        ("days", "count"),
        ("cost_usd", "usd"),
    ):
        old, new = getattr(before.results, what), getattr(after.results, what)
        if old is not None and new is not None:
            label = what.removesuffix("_s").removesuffix("_usd").replace("_per_s", "/s").replace("_", " ")
            rows.append(Difference("FINAL RESULTS", label, unit, old, new))
    return rows


def _term_differences(
    section: str, unit: str, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Difference]:
    suffix = "_bytes" if unit == "bytes" else "_s"
    return [
        Difference(
            section, name.removesuffix(suffix).replace("_", " "), unit, before.get(name, 0.0), after.get(name, 0.0)
        )
        for name in {**before, **after}
        if before.get(name) or after.get(name)
    ]


# ---- rows of a result ---------------------------------------------------------------------------------------------


def row_of(
    result: Result,
    path: Location,
    rank: int,
    scenario: str | None,
    registry: HardwareRegistry,
    *,
    by: str | None = None,
) -> ResultRow:
    """The row of rank ``rank``, as placed where it was; else by column ``by``, or as it was searched."""
    notes: list[str] = []
    name = scenario_name(result, scenario, notes)
    origin = result.origin(name)
    placed = result.placed_plans(name)
    row: Mapping[str, Any]
    if placed:
        if rank > len(placed):
            raise DlcalcError(f"{path}: --rank {rank}: {name} has {len(placed):,} placed plans")
        row = placed[rank - 1]
    else:
        row = _unplaced_row(result, path, name, rank, origin, by)
        if result.placed is not None:
            notes.append("nothing of this scenario was placed; estimated without placement")
    if not result.is_complete:
        notes.append("the search was not finished; this is the rank among what it has found so far")
    split = tuple(origin.space.get("custom_split") or ()) or None
    return ResultRow(
        name=f"{path.name} rank {rank}",
        scenario=name,
        devices=origin.devices,
        knobs={knob: float(row[knob]) if isinstance(row[knob], bool) else row[knob] for knob in KNOBS},
        model=origin.model,
        hardware=origin.hardware,
        recipe=origin.recipe,
        registry=registry,
        custom_split=split,
        memory_headroom=float(origin.space.get("memory_headroom", 0.0)),
        notes=tuple(notes),
        placed=_rates_in(row) if placed else None,
        placed_note=_placed_note(row, result) if placed else "",
    )


def _placed_note(row: Mapping[str, Any], result: Result) -> str:
    """What is to be known of a row of a placed result."""
    assert result.placed is not None
    paper = "not among the thousand best" if row["rank"] is None else f"rank {row['rank']}"
    return (
        f"placed on {result.placed.topology}: every group has the link that it crosses there; without placement "
        f"{paper}, with {units.duration(row['step_time_s'], 4)} per step"
    )


def _rates_in(row: Mapping[str, Any]) -> PlacedRates:
    """The links that a placed row was estimated with."""
    return PlacedRates(
        **{
            kind: Crossing(number(row[f"{kind}_bytes_per_s_per_device"]), number(row[f"{kind}_latency_s"]))
            for kind in KINDS
        }
    )


def _unplaced_row(
    result: Result, path: Location, scenario: str, rank: int, origin: ScenarioOrigin, by: str | None
) -> Mapping[str, Any]:
    """The row of rank ``rank`` by column ``by``, else as the search ranked it."""
    by = by or ("memory_bytes" if result.settings().get("sort") == "memory" else "step_time_s")
    capacity = origin.hardware.device.hbm_bytes * (1.0 - float(origin.space.get("memory_headroom", 0.0)))
    index, n_rows = _index_of_rank(result, scenario, rank, by, capacity)
    if index is None:
        raise DlcalcError(f"{path}: --rank {rank}: {scenario} has {n_rows:,} rows that fit")
    return _knobs_at(result, scenario, index)


def scenario_name(result: Result, wanted: str | None, notes: list[str]) -> str:
    """The scenario called so, or the only one whose name it is a part of; unless told, the first one that has rows."""
    names = result.scenarios
    if wanted is not None:
        if wanted in names:
            return wanted
        parts = [name for name in names if wanted.casefold() in name.casefold()]
        if len(parts) == 1:
            return parts[0]
        if parts:
            raise DlcalcError(f"--scenario {wanted}: is part of {len(parts)} names: {'; '.join(parts)}")
        raise UnknownNameError("scenario", wanted, names)
    for name in names:
        if any(shard.n_rows for shard in result.shards(name)):
            if len(names) > 1:
                notes.append(f"scenario 1 of {len(names)} with rows; choose another with --scenario")
            return name
    raise DlcalcError(f"{result.directory}: no plan of any scenario fits; there is no row to look at")


def _index_of_rank(result: Result, scenario: str, rank: int, by: str, capacity_bytes: float) -> tuple[int | None, int]:
    """Plan index of the rank-th best row that fits, of equals the faster one first; and how many rows fit."""
    best = np.empty((0, 3))
    n_fit = 0
    for batch in result.batches(scenario, columns=["plan_index", "step_time_s", "memory_bytes"]):
        fits = batch.column("memory_bytes").to_numpy() <= capacity_bytes
        n_fit += int(np.count_nonzero(fits))
        found = [batch.column(name).to_numpy()[fits].astype(np.float64) for name in (by, "step_time_s", "plan_index")]
        best = np.concatenate([best, np.column_stack(found)])
        best = best[np.lexsort((best[:, 2], best[:, 1], best[:, 0]))[:rank]]
    return (int(best[rank - 1, 2]) if len(best) >= rank else None), n_fit


def _knobs_at(result: Result, scenario: str, index: int) -> dict[str, Knob]:
    """Knobs of the row of plan ``index``."""
    for batch in result.batches(scenario, columns=["plan_index", *KNOBS]):
        at = np.flatnonzero(batch.column("plan_index").to_numpy() == index)
        if len(at):
            row = batch.slice(int(at[0]), 1).to_pylist()[0]
            return {knob: float(row[knob]) if isinstance(row[knob], bool) else row[knob] for knob in KNOBS}
    raise DlcalcError(f"{result.directory}: plan {index} of {scenario} is gone; was the result written anew meanwhile?")


# ---- sources ------------------------------------------------------------------------------------------------------


def _equations_used(run: Run) -> dict[str, str]:
    """Equations that return something other than zero while ``run`` is estimated, with their docstrings."""
    used: dict[str, str] = {}
    modules = {
        module.__file__: module for name, module in sys.modules.items() if name.startswith("dlcalc.calculators.")
    }

    def watch(frame: FrameType, event: str, value: Any) -> None:  # noqa: ANN401 whatever a function returns
        code = frame.f_code
        module = modules.get(code.co_filename)
        if module is None or event != "return":
            return
        function = getattr(module, code.co_name, None)
        if getattr(function, "__code__", None) is not code or code.co_name.startswith("_"):
            return
        if _is_something(value):
            used[code.co_name] = (function.__doc__ or "") if function else ""

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        found, _ = _estimate(run)
        found.step_time_s, found.memory_bytes  # noqa: B018 worked out when first asked for
    finally:
        sys.setprofile(before)
    return used


def _is_something(value: Any) -> bool:  # noqa: ANN401 whatever an equation returns
    """Whether an equation's result is anything but zero."""
    if is_dataclass(value):
        return any(_is_something(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return any(_is_something(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return any(_is_something(item) for item in value)
    return value is not None and bool(np.any(value))


# ---- files --------------------------------------------------------------------------------------------------------


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def _near(path: Path) -> str:
    """Files beside ``path`` that may have been meant; what nearly all names end in does not count."""
    try:
        names = {entry.stem: entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix}
    except OSError:
        return ""
    near = nearest(path.stem, names)
    return f"; did you mean {' or '.join(str(path.with_name(names[stem])) for stem in near)}?" if near else ""
