"""The use cases behind ``dlcalc-launch``: from a plan to the files that start it. Never click, never colours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.costmodel.plans import KNOBS, Plans, code_of, written_of
from dlcalc.costmodel.prediction import Prediction
from dlcalc.errors import DlcalcError, ResultError, TargetError
from dlcalc.launch.bundle import bundle
from dlcalc.launch.chunks import chunk_layers
from dlcalc.launch.hosts import hosts_of_placement
from dlcalc.launch.job import Job, OtherCosts, PlanValues
from dlcalc.launch.megatron.costs import profile_as_written
from dlcalc.launch.schedulers.write import Scheduler, start_command
from dlcalc.launch.trainers.write import emitted
from dlcalc.report.launch import LaunchFacts
from dlcalc.report.plan_words import plan_words
from dlcalc.results.reader import open_result
from dlcalc.results.storage import Location, is_directory, location
from dlcalc.search.alternatives import Alternative, alternatives, changed, scenario_around
from dlcalc.search.result_row import ResultRow
from dlcalc.search.run import Run, RunSource
from dlcalc.search.space import Scenario
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import framework_names, load_framework
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.space import KnobRanges
from dlcalc.specs.target import PROFILE_OF_TARGET, PROFILES_OF_TARGET, SETTINGS_OF_TARGET, Target
from dlcalc.utils import units
from dlcalc.workflows.run import open_run

MOST_PLANS = 50_000_000
"""Of a study's own space that is searched for the nearest plan; of a larger one, what users vary."""


def plan_launch(
    path: Location | str,
    *,
    target: Target,
    scheduler: Scheduler,
    rank: int | None = None,
    scenario: str | None = None,
    nearest: bool = False,
    name: str | None = None,
    nodes_from: Path | None = None,
    host_devices: int | None = None,
    container: str | None = None,
    folder: Path,
    hardware_dirs: Sequence[Path] = (),
) -> LaunchFacts:
    """The files that start a plan: of a run file, or the row of rank ``rank`` of a result."""
    path = location(path)
    source = open_run(path, rank=rank, scenario=scenario, hardware_dirs=hardware_dirs)
    asked = source.resolve({})
    notes = list(asked.notes)
    run = replace(asked, recipe=_for_target(asked.recipe, target, notes))
    if refusals := _refusals(run):
        plans = alternatives(_scenario(run, source, path), _values(run).as_dict())
        if not nearest or not plans:
            raise TargetError(_refused_text(asked, run, target, refusals, plans))
        chosen = plans[0]
        notes.append(f"not the plan that was asked for, which {target} cannot run ({'; '.join(refusals)})")
        run = replace(run, plan=Plans.point(**{knob: code_of(knob, value) for knob, value in chosen.knobs.items()}))
    job = job_of(run, target, name=name or _default_name(path, run), host_devices=host_devices, container=container)
    if nodes_from is not None:
        hosts = hosts_of_placement(_json(nodes_from), nodes_from, job.plan, job.host_devices)
        job = replace(job, hosts=hosts)
    job = replace(job, told=tuple(notes), other_costs=_other_costs(asked, run, job))
    part = emitted(job)
    said = (*notes, *(_cost_words(other) for other in job.other_costs), *part.notes)
    return _facts(job, bundle(job, part, scheduler), scheduler, folder, said)


def job_of(
    run: Run,
    target: Target,
    *,
    name: str,
    host_devices: int | None = None,
    hosts: tuple[str, ...] = (),
    container: str | None = None,
) -> Job:
    """A run as it is to be launched by ``target``, with what the cost model says of it."""
    plan = _values(run)
    node = run.hardware.node
    per_host = host_devices or min(node.n_host_devices or node.n_devices, plan.devices)
    if plan.devices % per_host:
        raise DlcalcError(f"--host-devices: {per_host} devices of a host do not divide the {plan.devices} of the plan")
    return Job(
        name=name,
        target=target,
        model=run.model,
        hardware=run.hardware,
        recipe=run.recipe,
        plan=plan,
        chunk_layers=chunk_layers(run.model, plan, run.custom_split),
        prediction=Prediction.of(run.estimate()),
        host_devices=per_host,
        hosts=hosts,
        container=container,
    )


def write_bundle(files: Mapping[str, str], folder: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write the files into ``folder``, which is made; one that holds anything else is left alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(entry.name for entry in folder.iterdir())
        if there and not overwrite:
            raise ResultError(f"{folder}: holds {there[0]} already; give --overwrite, or another place with -o")
        written = []
        for name, text in files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8", newline="")
            path.chmod(0o755 if text.startswith("#!") else 0o644)
            written.append(path)
        return tuple(written)
    except OSError as error:
        raise DlcalcError(f"{folder}: cannot be written ({(error.strerror or str(error)).lower()})") from error


# ---- plans that cannot run ----------------------------------------------------------------------------------------


def _values(run: Run) -> PlanValues:
    return PlanValues.of({knob: float(getattr(run.plan, knob)) for knob in KNOBS})


def _for_target(recipe: Recipe, target: Target, notes: list[str]) -> Recipe:
    """The recipe in the hands of ``target``, whose costs replace those of another built-in trainer."""
    own = recipe.framework.name
    if own in framework_names() and own not in PROFILES_OF_TARGET[target]:
        profile = PROFILE_OF_TARGET[target]
        notes.append(f"estimated with the costs of {profile}, not of {own}, since {target} is to run it")
        recipe = recipe.model_copy(update={"framework": load_framework(profile)})
    if recipe.target != target:  # or what a target takes is there, but for what the user said otherwise
        settings = SETTINGS_OF_TARGET.get(target, {})
        recipe = recipe.model_copy(update={"framework": recipe.framework.model_copy(update=dict(settings))})
    return recipe.model_copy(update={"target": target})


def _other_costs(asked: Run, run: Run, job: Job) -> tuple[OtherCosts, ...]:
    """The plan under a second profile: the one it was searched with, or the target's own where that is another.

    Of Megatron the latter is as the written options make it, so that what they cannot say of the searched one shows.
    """
    found = _second_costs(asked, run, job)
    told = job.prediction
    if found is None or (found.step_time_s, found.memory_bytes) == (told.step_time_s, told.memory_bytes):
        return ()
    return (found,)


def _second_costs(asked: Run, run: Run, job: Job) -> OtherCosts | None:
    searched, used, target = asked.recipe.framework, run.recipe.framework, job.target
    if searched != used:
        meaning = f"With those of {searched.name}, for which the plan was chosen"
        return _costs_with(searched, run, meaning)
    if used.name not in framework_names():
        return None
    if target in ("megatron-lm", "megatron-bridge"):
        own = profile_as_written(job)
        return _costs_with(own, run, f"As {target} runs the options written here, with its own costs ({own.name})")
    if used.name == PROFILE_OF_TARGET[target]:
        return None
    own = load_framework(PROFILE_OF_TARGET[target])
    return _costs_with(own, run, f"With {target}'s own costs ({own.name})")


def _costs_with(profile: FrameworkProfile, run: Run, meaning: str) -> OtherCosts:
    found = replace(run, recipe=run.recipe.model_copy(update={"framework": profile})).estimate()
    memory_bytes = float(found.memory_bytes)
    fits = memory_bytes <= found.capacity_bytes
    return OtherCosts(profile.name, meaning, float(found.step_time_s), memory_bytes, fits)


def _cost_words(other: OtherCosts) -> str:
    step, memory = units.duration(other.step_time_s, 4), other.memory_bytes / units.GIB
    full = "" if other.fits else ", more than a device holds: expect it to run out of memory"
    return f"{other.meaning}: {step} a step, {memory:.1f} GiB{full}"


def _refusals(run: Run) -> list[str]:
    found = run.estimate()
    reasons = [reason for reason, mask in found.refused.items() if bool(mask.any())]
    if float(found.memory_bytes) > found.capacity_bytes:
        reasons.append(OUT_OF_MEMORY)
    own = [reason for reason in reasons if not reason.startswith("the framework ")]
    return own or reasons  # a profile that has no such thing stands beside a target that has no such thing


def _scenario(run: Run, source: RunSource, path: Location) -> Scenario:
    """The space that the plan came from; of a run file, what users vary."""
    if not isinstance(source, ResultRow):
        return scenario_around(run)
    asked = open_result(path).origin(source.scenario).space
    own = scenario_around(run, KnobRanges.model_validate(asked["ranges"]), asked.get("constraints") or ())
    return own if own.n_plans <= MOST_PLANS else scenario_around(run, None, own.constraints)


def _refused_text(asked: Run, run: Run, target: Target, refusals: Sequence[str], plans: Sequence[Alternative]) -> str:
    values = _values(run).as_dict()
    lines = [f"{target} cannot run {plan_words(values)}: {'; '.join(refusals)}"]
    if not plans:
        return f"{lines[0]}; and no other plan that it can run fits"
    nearest, fastest = plans[0], min(plans, key=lambda plan: plan.step_time_s)
    step = units.duration(float(run.estimate().step_time_s), 4)
    ours, theirs = asked.recipe.framework.name, run.recipe.framework.name
    if ours != theirs:
        step += (
            f" ({units.duration(float(asked.estimate().step_time_s), 4)} with the costs of {ours} instead of {theirs})"
        )
    before, after = (
        {knob: written_of(knob, code_of(knob, value)) for knob, value in plan.items()}
        for plan in (values, nearest.knobs)
    )
    changes = ", ".join(f"{knob} {before[knob]} -> {after[knob]}" for knob in changed(values, nearest.knobs))
    lines.append(
        f"the nearest plan it can run takes {units.duration(nearest.step_time_s, 4)} a step instead of {step}: "
        f"{changes}; --nearest writes that one"
    )
    if fastest is not nearest:
        lines.append(
            f"the fastest it can run takes {units.duration(fastest.step_time_s, 4)}: {plan_words(fastest.knobs)}"
        )
    return "\n".join(lines)


def _facts(
    job: Job, files: Mapping[str, str], scheduler: Scheduler, folder: Path, notes: tuple[str, ...]
) -> LaunchFacts:
    return LaunchFacts(
        name=job.name,
        target=job.target,
        scheduler=scheduler,
        model=job.model.name,
        hardware=job.hardware.name,
        devices=job.devices,
        hosts=job.n_hosts,
        plan=job.plan.as_dict(),
        **asdict(job.prediction),
        folder=str(folder),
        files=files,
        start=start_command(scheduler, folder),
        notes=notes,
    )


# ---- files --------------------------------------------------------------------------------------------------------


def _default_name(path: Location, run: Run) -> str:
    return f"{run.model.name}-{run.devices}x{run.hardware.name}" if is_directory(path) else path.stem


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:
        raise DlcalcError(f"{file}: not JSON: what topoassign --json prints is wanted") from error
