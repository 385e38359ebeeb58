"""From a trainer's own configuration to a run, or to the study of which it is one plan."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dlcalc.costmodel.plans import written_of
from dlcalc.errors import DlcalcError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.launch.imported import Imported
from dlcalc.launch.readers.beside import FILE as BUNDLE_FILE
from dlcalc.launch.readers.beside import told_beside
from dlcalc.launch.readers.read import read_trainer_file
from dlcalc.report.summary import Summary
from dlcalc.search.alternatives import ranges_around
from dlcalc.search.run import RunSource
from dlcalc.search.run_file import RunFile
from dlcalc.search.study import located
from dlcalc.specs.marked_yaml import Marks
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import KnobRanges
from dlcalc.specs.target import PROFILE_OF_TARGET, Target
from dlcalc.workflows.run import open_run
from dlcalc.workflows.search import run_search

MEANT = {
    "--devices": "how many devices there are",
    "--seq-len": "how long a sequence is",
    "--global-batch": "how many sequences a step has",
}
"""By option, what a configuration may leave out."""


@dataclass(frozen=True)
class TrainerFile:
    """A trainer's configuration, with what it does not say itself."""

    file: Path
    said: Imported
    model: ModelSpec
    hardware: str
    devices: int
    recipe: dict[str, Any]
    """As a space file has it."""


def open_trainer_file(
    source: Target,
    file: Path,
    *,
    hardware: str | None,
    devices: int | None,
    hardware_dirs: Sequence[Path] = (),
    model: str | None = None,
    seq_len: int | None = None,
    global_batch: int | None = None,
) -> TrainerFile:
    """Read ``file``; what it leaves out must be given, what it says must not be contradicted."""
    said = _with_neighbour(read_trainer_file(source, file), file, devices, model, seq_len, global_batch)
    if hardware is None:
        raise DlcalcError(f"--from {source}: a trainer's configuration names no machine; give --hardware")
    try:
        HardwareRegistry(folders=hardware_search_path(hardware_dirs)).load(located(hardware, Path()))
    except UnknownNameError as error:
        raise DlcalcError(f"--hardware: {error}") from error
    n_devices = _given_once("--devices", devices, said.devices, file)
    own = load_model(model) if model is not None else said.model
    if own is None:
        raise DlcalcError(f"{file}: says nothing of the model; give --model NAME, a model YAML or a config.json")
    recipe = {
        "seq_len": _given_once("--seq-len", seq_len, said.seq_len, file),
        "global_batch": _given_once("--global-batch", global_batch, said.global_batch, file),
        "precision": said.precision,
        "framework": PROFILE_OF_TARGET[source],
        "target": source,
        "cuda_graphs": said.cuda_graphs,
        "scaling": said.scaling,
        **({"profile": dict(said.profile)} if said.profile else {}),
        **({"custom_split": list(said.custom_split)} if said.custom_split else {}),
    }
    return TrainerFile(file, said, own, hardware, n_devices, recipe)


def _with_neighbour(
    said: Imported, file: Path, devices: int | None, model: str | None, seq_len: int | None, global_batch: int | None
) -> Imported:
    """With what ``launch.json`` of the same bundle says, where neither the file nor an option does."""
    beside = told_beside(file, said.source)
    taken = {
        name: getattr(beside, name)
        for name, given in (
            ("devices", devices),
            ("seq_len", seq_len),
            ("global_batch", global_batch),
            ("model", model),
        )
        if given is None and getattr(said, name) is None and getattr(beside, name) is not None
    }
    if not taken:
        return said
    words = [name if name == "model" else f"{name} {value}" for name, value in taken.items()]
    return replace(said, **taken, notes=(*said.notes, f"{BUNDLE_FILE} beside the file says {', '.join(words)}."))


def open_any_run(
    path: Path | str,
    *,
    source: Target | None,
    rank: int | None,
    scenario: str | None,
    hardware_dirs: Sequence[Path],
    **told: Any,  # noqa: ANN401 - what a trainer's configuration leaves out
) -> RunSource:
    """A run file, a row of a result, or with ``source`` a trainer's own configuration."""
    if source is None:
        refuse_alone(told)
        return open_run(path, rank=rank, scenario=scenario, hardware_dirs=hardware_dirs)
    for option, value in (("--rank", rank), ("--scenario", scenario)):
        if value is not None:
            raise DlcalcError(f"{option} picks a row of a result; {path} is read as a configuration of {source}")
    return run_of(open_trainer_file(source, Path(path), hardware_dirs=hardware_dirs, **told), hardware_dirs)


def refuse_alone(told: Mapping[str, Any]) -> None:
    """What a trainer's configuration leaves out is asked for only where there is one."""
    if given := next((name for name, value in told.items() if value is not None), None):
        raise DlcalcError(f"--{given.replace('_', '-')}: goes with --from, a trainer's own configuration")


def _given_once(option: str, given: int | None, said: int | None, file: Path) -> int:
    if given is not None and said is not None and given != said:
        raise DlcalcError(f"{option} {given}: {file} says {said}; leave the option out, or change the file")
    value = given if given is not None else said
    if value is None:
        raise DlcalcError(f"{file}: does not say {MEANT[option]}; give {option}")
    return value


def run_of(trainer_file: TrainerFile, hardware_dirs: Sequence[Path] = ()) -> RunFile:
    """The run as ``3dtrn`` takes it apart."""
    knobs: dict[str, Any] = dict(trainer_file.said.knobs)
    if "recompute_layers" in knobs:
        knobs["recompute_layers"] = written_of("recompute_layers", knobs["recompute_layers"])
    data = {
        "model": trainer_file.model.name,
        "hardware": trainer_file.hardware,
        "cluster": {"devices": trainer_file.devices},
        "recipe": trainer_file.recipe,
        "plan": knobs,
    }
    return RunFile(
        file=trainer_file.file,
        data=data,
        marks=Marks(1),
        registry=HardwareRegistry(folders=hardware_search_path(hardware_dirs)),
        model=trainer_file.model,
        notes=trainer_file.said.notes,
        ignored=trainer_file.said.ignored,
    )


def search_trainer_file(
    source: Target,
    file: Path,
    *,
    hardware_dirs: Sequence[Path],
    told: Mapping[str, Any],
    **choices: Any,  # noqa: ANN401 - of the search
) -> Summary:
    """Search every plan of a trainer's own model, batch and cluster that it can run."""
    found = open_trainer_file(source, file, hardware_dirs=hardware_dirs, **told)
    with tempfile.TemporaryDirectory() as folder:
        space, model = Path(folder) / "space.yaml", Path(folder) / "model.yaml"
        space.write_text(yaml.safe_dump(study_of(found, hardware_dirs), sort_keys=False), encoding="utf-8")
        dimensions = found.model.model_dump(mode="json", exclude_defaults=True)
        model.write_text(yaml.safe_dump(dimensions, sort_keys=False), encoding="utf-8")
        return run_search(space, hardware_dirs=hardware_dirs, **choices)


def study_of(trainer_file: TrainerFile, hardware_dirs: Sequence[Path] = ()) -> dict[str, Any]:
    """The study of every plan of that model, batch and cluster which the trainer can run, as a space file says it.

    The run itself is among them, with its own split of the layers and whatever else nobody usually varies.
    """
    run = run_of(trainer_file, hardware_dirs).resolve({})
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in trainer_file.file.stem)
    return {
        "study": name.lstrip("._-")[:100] or "imported",
        "model": "model.yaml",
        "hardware": trainer_file.hardware,
        "cluster": {"devices": trainer_file.devices},
        "recipe": {**trainer_file.recipe, **({"custom_split": list(run.custom_split)} if run.custom_split else {})},
        "space": ranges_around(run, KnobRanges()).model_dump(mode="json"),
    }
