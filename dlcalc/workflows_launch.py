"""The use cases behind ``dlcalc-launch``: from a plan to the files that start it. Never click, never colours."""

from __future__ import annotations

from dlcalc.costmodel.plans import KNOBS
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.errors import DlcalcError
from dlcalc.launch.chunks import chunk_layers
from dlcalc.launch.job import Job, PlanValues, Prediction
from dlcalc.search.run import Run
from dlcalc.specs.target import Target
from dlcalc.specs.uncertainty import load_uncertainty


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
    plan = PlanValues.of({knob: float(getattr(run.plan, knob)) for knob in KNOBS})
    found = run.estimate()
    step_time_s = float(found.step_time_s)
    low, high = step_time_interval_factors(run.model, run.hardware, run.recipe, run.plan, load_uncertainty())
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
        prediction=Prediction(
            step_time_s=step_time_s,
            step_time_low_s=step_time_s * float(low),
            step_time_high_s=step_time_s * float(high),
            mfu=float(found.mfu),
            tokens_per_s_per_device=float(found.tokens_per_s_per_device),
            memory_bytes=float(found.memory_bytes),
        ),
        host_devices=per_host,
        hosts=hosts,
        container=container,
    )
