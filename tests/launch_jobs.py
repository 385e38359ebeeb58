"""Jobs that launch files are written for in tests: real plans of the shipped models, estimated."""

from __future__ import annotations

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.launch.job import Job
from dlcalc.search.run import Run
from dlcalc.search.space import default_profile_knobs
from dlcalc.search.study import resolved_recipes
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import RecipeSpec
from dlcalc.workflows.launch import job_of


def job(
    target,
    model="llama3-8b",
    hardware="h100",
    *,
    seq_len=8192,
    global_batch=128,
    precision="bf16",
    framework=None,
    name="test",
    hosts=(),
    container=None,
    host_devices=None,
    custom_split=None,
    allow=None,
    **knobs,
) -> Job:
    """A job of ``target``; knobs not named take the profile's default, or the value that changes nothing.

    ``allow`` changes settings of the framework profile.
    """
    spec = RecipeSpec(
        seq_len=seq_len, global_batch=global_batch, precision=(precision,), framework=framework, target=target
    )
    (recipe,) = resolved_recipes(spec)
    if allow:
        recipe = recipe.model_copy(update={"framework": recipe.framework.model_copy(update=allow)})
    run = Run(
        name=name,
        written={},
        model=load_model(model) if isinstance(model, str) else model,
        hardware=load_hardware(hardware),
        recipe=recipe,
        plan=Plans.point(**{**default_profile_knobs(recipe.framework), **knobs}),
        custom_split=custom_split,
    )
    return job_of(run, target, name=name, hosts=hosts, container=container, host_devices=host_devices)


def refusals(one: Job) -> list[str]:
    """Why the job's plan cannot run, memory apart."""
    plan = Plans.point(**one.plan.as_dict())
    custom = one.chunk_layers if one.plan.split == "custom" else None
    found = estimate(one.model, one.hardware, one.recipe, plan, custom_split=custom)
    return [reason for reason, mask in found.refused.items() if mask.any()]
