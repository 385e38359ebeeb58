"""The ``search`` section of a space file: a space too large for a grid is sampled, or plans are measured."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dlcalc.errors import suggestion
from dlcalc.specs.base import PositiveFloat, PositiveInt, Spec, TupleFromList
from dlcalc.specs.design import DesignSpec
from dlcalc.specs.plan import PlanSection

Sampler = Literal["tpe", "gp", "nsga2", "cmaes", "random"]
Goal = Literal["step_time", "mfu", "memory", "cost"]

PLAN_SAMPLER: Sampler = "nsga2"
"""Where no sampler is named: for plans, of which thousands are estimated in the time that another takes to think."""
DESIGN_SAMPLER: Sampler = "tpe"
"""For designs, few and mostly continuous."""
DEFAULT_TRIALS = 2000
DEFAULT_RUNS = 20
"""Trials where each is a run on a cluster."""
DEFAULT_TIMEOUT_S = 3600.0
STEP_TIME_PATTERN = r"step_time_s\s*=\s*([0-9.eE+-]+)"
STORAGES = ("sqlite", "postgresql", "journal")


def _tuple_of_one(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, tuple) else (value,)


class SearchSpec(Spec):
    """How a study is searched, where not every plan is to be estimated."""

    method: Literal["optuna"] = "optuna"
    objective: Literal["estimated", "measured"] = "estimated"
    sampler: Sampler | None = None
    n_trials: PositiveInt | None = None
    """Of the study in all, whoever made them."""
    batch: PositiveInt | None = None
    """Trials that are asked for, estimated and told together."""
    seed: Annotated[int, Field(ge=0)] | None = None
    objectives: Annotated[tuple[Goal, ...], BeforeValidator(_tuple_of_one), Field(min_length=1)] | None = None
    storage: str | None = None
    study_name: Annotated[str, Field(min_length=1)] | None = None
    warm_start: Annotated[tuple[PlanSection, ...], TupleFromList] = ()
    """Plans known to be good, tried first; knobs left out are sampled."""
    design: DesignSpec | None = None
    uneven_stages: bool = False
    """Sample how many layers each pipeline chunk holds."""
    recompute_per_stage: bool = False
    """Sample how many layers each pipeline stage recomputes."""

    command: Annotated[str, Field(min_length=1)] | None = None
    """Run once per trial; ``{plan}`` becomes the path of a JSON file with the plan."""
    timeout_s: PositiveFloat | None = None
    step_time_pattern: str | None = None
    """Regular expression whose first group is the step time in seconds; its last match in the output counts."""

    @field_validator("storage")
    @classmethod
    def _storage_is_known(cls, storage: str | None) -> str | None:
        if storage is None or storage == "journal":
            return storage
        kind, colon, rest = storage.partition("://")
        dialect = kind.partition("+")[0]
        if dialect not in STORAGES or not colon:
            near = suggestion(dialect, STORAGES) if dialect else ""
            raise ValueError(
                f"{storage!r} is none of sqlite:///FILE, postgresql://USER@HOST/DATABASE, journal:///FILE and journal; "
                f"{near}"
            )
        if dialect in ("sqlite", "journal") and not rest.removeprefix("/"):
            raise ValueError(f"{storage!r} names no file; write {dialect}:///FILE")
        return storage

    @field_validator("step_time_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if groups < 1:
            raise ValueError(f"{pattern!r} needs a group around the number, such as 'step_time_s=([0-9.]+)'")
        return pattern

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        given = self.model_fields_set
        if self.measured:
            if self.command is None:
                raise ValueError("objective: measured needs command, such as './run_trial.sh {plan}'")
            unused = ("sampler", "batch", "seed", "objectives", "design", "uneven_stages", "recompute_per_stage")
            if named := [key for key in unused if key in given]:
                raise ValueError(
                    f"{named[0]} means nothing with objective: measured, whose trials follow the estimates"
                )
        elif named := [key for key in ("command", "timeout_s", "step_time_pattern") if key in given]:
            raise ValueError(f"{named[0]} needs objective: measured")
        if self.design is not None and self.varies_stages:
            stages = "uneven_stages" if self.uneven_stages else "recompute_per_stage"
            raise ValueError(f"give one of design and {stages}")
        if self.varies_scenario and self.warm_start:
            raise ValueError("warm_start lists plans; of designs and stages every plan is estimated anyway")
        if len(set(self.goals)) < len(self.goals):
            raise ValueError("objectives: one is given twice")
        if self.sampler == "cmaes" and len(self.goals) > 1:
            raise ValueError("sampler: cmaes has one objective; use tpe, nsga2, gp or random for several")
        return self

    @property
    def measured(self) -> bool:
        return self.objective == "measured"

    @property
    def varies_scenario(self) -> bool:
        """Whether a trial is a machine, a model or how stages differ, of which every plan is estimated."""
        return self.design is not None or self.varies_stages

    @property
    def varies_stages(self) -> bool:
        return self.uneven_stages or self.recompute_per_stage

    @property
    def samples_plans(self) -> bool:
        return not self.measured and not self.varies_scenario

    @property
    def goals(self) -> tuple[Goal, ...]:
        return self.objectives or ("step_time",)

    @property
    def sampler_name(self) -> Sampler:
        return self.sampler or (DESIGN_SAMPLER if self.varies_scenario else PLAN_SAMPLER)

    @property
    def trials(self) -> int:
        return self.n_trials or (DEFAULT_RUNS if self.measured else DEFAULT_TRIALS)

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.step_time_pattern or STEP_TIME_PATTERN)
