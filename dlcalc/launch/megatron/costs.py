"""The framework profile of a job as Megatron runs it: the trainer's own, with what the written options change."""

from __future__ import annotations

from pathlib import Path

from dlcalc.launch.job import Job
from dlcalc.launch.megatron.bridge import DEFAULTS
from dlcalc.launch.megatron.describe import settings_of
from dlcalc.launch.megatron.said import Said
from dlcalc.launch.megatron.understand import changed_settings, profile_settings
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.target import PROFILE_OF_TARGET


def profile_as_written(job: Job) -> FrameworkProfile:
    """What reading the job's own options back would estimate it with."""
    defaults = DEFAULTS if job.target == "megatron-bridge" else {}
    said = Said(Path(), values=dict(settings_of(job)), defaults=defaults)
    return load_framework(PROFILE_OF_TARGET[job.target]).model_copy(
        update=changed_settings(profile_settings(said), job.target)
    )
