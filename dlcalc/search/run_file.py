"""A run file as it stands on disk: where a what-if goes in it, and where in it a mistake stands."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from dlcalc.errors import DlcalcError, FieldError, SpecError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.resolved_run import resolved
from dlcalc.search.run import Run
from dlcalc.specs.base import Spec
from dlcalc.specs.load import load_yaml, parse_spec, spec_error
from dlcalc.specs.marked_yaml import Marks, Mistake, read_marked
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.plan import PlanSection
from dlcalc.specs.run import (
    SAME_KNOB,
    CheckpointingType,
    ClusterSection,
    CrossDcSection,
    DataSection,
    HardwareSection,
    ModelSection,
    MoeSection,
    ParallelismSection,
    PerformanceSection,
    RunSpec,
)
from dlcalc.specs.space import RecipeSpec


@dataclass(frozen=True)
class RunFile:
    """A run file as it stands on disk."""

    file: Path
    data: Any
    marks: Marks
    registry: HardwareRegistry
    model: ModelSpec | None = None
    """The model, where it is no file's and no name's: a trainer's own configuration described it."""
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """What of a trainer's own configuration no estimate reads."""

    @classmethod
    def read(cls, file: Path, registry: HardwareRegistry) -> RunFile:
        data, marks = load_yaml(file)
        return cls(file, data, marks, registry)

    def resolve(self, changes: Mapping[str, Any]) -> Run:
        """Read with ``changes`` made; a mistake in one of them is the option's, not the file's."""
        spec = parse_spec(self.data, RunSpec, file=self.file, marks=self.marks)
        if not changes:
            try:
                return self._resolved(spec, self.data)
            except DlcalcError as error:
                raise self._placed(error) from error
        data = copy.deepcopy(self.data)
        for key, value in changes.items():
            _set(data, _path_of(key, value, data), value)
        told = " ".join(f"{key}={value}" for key, value in changes.items())
        try:
            changed = parse_spec(data, RunSpec, file=self.file, marks=self.marks)
            return self._resolved(changed, data)
        except SpecError as error:
            texts = dict.fromkeys(f"{problem.field}: {problem.text}" for problem in error.problems)
            raise DlcalcError(f"--what-if {told}: " + "; ".join(texts)) from error
        except DlcalcError as error:
            raise DlcalcError(f"--what-if {told}: {error}") from error

    def _resolved(self, spec: RunSpec, data: Mapping[str, Any]) -> Run:
        own = self.model if self.model is not None and spec.model == self.model.name else None
        run = resolved(spec, self.file.stem, data, self.file.parent, self.registry, own)
        return replace(run, notes=(*self.notes, *run.notes), ignored=self.ignored)

    def _placed(self, error: DlcalcError) -> DlcalcError:
        """``error`` with the place in the file that it is about."""
        if isinstance(error, SpecError):
            return error
        kind = error.kind if isinstance(error, UnknownNameError) else ""
        paths: dict[str, tuple[tuple[str, ...], ...]] = {
            "hardware": (("hardware", "node_type"), ("hardware",)),
            "model": (("model",),),
            "framework": (("recipe", "framework"), ("performance", "framework")),
        }
        for path in paths.get(kind, ()):
            if isinstance(_at(self.data, ".".join(path)), str):
                return spec_error(self.file, self.marks, path, str(error))
        if isinstance(error, FieldError):
            section = next((one for one in ("recipe", "performance") if one in self.data), "recipe")
            return spec_error(self.file, self.marks, (section, *error.field), error.text)
        return DlcalcError(f"{self.file}: {error}")


SECTIONS: Mapping[str, type[Spec]] = {
    "parallelism": ParallelismSection,
    "performance": PerformanceSection,
    "data": DataSection,
    "plan": PlanSection,
    "recipe": RecipeSpec,
    "cluster": ClusterSection,
    "cross_dc": CrossDcSection,
    "hardware": HardwareSection,
    "model": ModelSection,
    "model.moe": MoeSection,
}
ALSO_CALLED = {
    **{knob: (section, key) for (section, key), knob in SAME_KNOB.items()},
    "seq_len": ("data", "seqlen"),
    "global_batch": ("data", "gbs"),
    "etp": ("model.moe", "expert_tp_degree"),
}
"""Words of a space file, and where a file in the other vocabulary says the same."""


def _path_of(key: str, value: object, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Where ``key`` of a what-if stands in a run file: ``parallelism.tp``, or ``tp`` alone."""
    if "." in key or key in RunSpec.model_fields:
        return tuple(key.split("."))
    for section, spec in SECTIONS.items():
        if key in spec.model_fields and isinstance(_at(data, section), dict):
            return (*section.split("."), key)
    if key in ALSO_CALLED:
        section, name = ALSO_CALLED[key]
        known_words = get_args(CheckpointingType)
        if isinstance(_at(data, section), dict) and (key != "recompute" or value in known_words):
            return (*section.split("."), name)
    if key in PlanSection.model_fields:
        return ("plan", key)
    for section in ("performance", "recipe"):
        if key in SECTIONS[section].model_fields and section not in ("recipe" if "data" in data else "performance"):
            return (section, key)
    known = {name for spec in SECTIONS.values() for name in spec.model_fields} | set(RunSpec.model_fields)
    raise UnknownNameError("--what-if key", key, known)


def _at(data: Mapping[str, Any], section: str) -> object:
    found: object = data
    for part in section.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _set(data: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Write ``value`` at ``path``; what stood in the way, such as a name where a section is wanted, gives way."""
    holder = data
    for part in path[:-1]:
        if not isinstance(holder.get(part), dict):
            holder[part] = {}
        holder = holder[part]
    holder[path[-1]] = value
    for (section, key), knob in SAME_KNOB.items():  # the other vocabulary's word for it goes
        if path == ("plan", knob) and isinstance(data.get(section), dict):
            data[section].pop(key, None)


def parse_change(text: str) -> tuple[str, Any]:
    """``key=value`` of a what-if; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise DlcalcError(f"--what-if {text}: write key=value, such as tp=4 or data.gbs=1024")
    try:
        return key.strip(), read_marked(value)[0] if value.strip() else None
    except Mistake as mistake:
        raise DlcalcError(f"--what-if {text}: {mistake.problems[0].text}") from None
