"""From a run file, or a row of a result, to one plan: names resolved, defaults filled in, what-if changes applied."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np

from dlcalc.calculators.stages import EVEN, first_layer_count
from dlcalc.costmodel.anatomy.exchanges import bucket_bytes
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import KNOBS, LAYER_WORDS, PER_STAGE, Plans
from dlcalc.errors import DlcalcError, FieldError, SpecError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.space import default_profile_knobs
from dlcalc.search.study import adapted, located, resolved_recipes
from dlcalc.specs.base import Spec
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.load import load_yaml, parse_spec, spec_error
from dlcalc.specs.marked_yaml import Marks, Mistake, read_marked
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.plan import PlanSection
from dlcalc.specs.recipe import MfuConvention, Recipe
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
from dlcalc.specs.space import DEFAULT_FRAMEWORK, Cluster, RecipeSpec

MIB = 2.0**20
Knob = float | str


@dataclass(frozen=True)
class Run:
    """Everything one estimate needs, and what was done to get there."""

    name: str
    written: Mapping[str, Any]
    """What the user wrote, or the row that was picked."""
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    plan: Plans
    custom_split: tuple[int, ...] | None = None
    memory_headroom: float = 0.0
    cross_dc: CrossDcSection | None = None
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Options of a trainer's own configuration that no estimate reads."""
    placed: PlacedRates | None = None
    """The links of the nodes it is placed on."""

    def estimate(self) -> Estimate:
        """What the cost model says, as the search would: in one data centre."""
        return estimate(
            self.model,
            self.hardware,
            self.recipe,
            self.plan,
            custom_split=self.custom_split,
            memory_headroom=self.memory_headroom,
            placed=self.placed,
        )

    @property
    def devices(self) -> int:
        plan = self.plan
        return int(plan.tp * plan.cp * plan.pp * plan.dp)


class RunSource(Protocol):
    """Something a run can be read from."""

    def resolve(self, changes: Mapping[str, Any]) -> Run:
        """The run, with ``changes`` by key."""


# ---- run files ----------------------------------------------------------------------------------------------------


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


def resolved(
    spec: RunSpec,
    name: str,
    written: Mapping[str, Any],
    folder: Path,
    registry: HardwareRegistry,
    model: ModelSpec | None = None,
) -> Run:
    """What ``spec`` stands for; ``model`` where it is known already."""
    notes: list[str] = []
    model = model or _model_of(spec, name, folder)
    wanted = spec.hardware.node_type if isinstance(spec.hardware, HardwareSection) else spec.hardware
    cluster = spec.cluster or ClusterSection()
    hardware = adapted(
        registry.load(located(wanted, folder)),
        Cluster(
            devices=(cluster.devices or 1,),
            node_devices=cluster.node_devices,
            nic_gbit_per_s_per_device=cluster.nic_gbit_per_s_per_device,
            usd_per_device_hour=cluster.usd_per_device_hour,
        ),
    )
    recipe = _recipe_of(spec, folder, notes).on(hardware)
    knobs = _knobs_of(spec, model, recipe.framework, notes)
    knobs, custom_split = _split_of(spec, model, knobs, notes)
    most = custom_split or (-(-model.n_layers // int(float(knobs["pp"]) * float(knobs["vpp"]))),)
    knobs = _recompute_by_stage(recipe.stage_recompute, knobs, most)
    run = Run(
        name=name,
        written=written,
        model=model,
        hardware=hardware,
        recipe=recipe,
        plan=Plans.point(**knobs),
        custom_split=custom_split,
        memory_headroom=spec.memory_headroom,
        cross_dc=spec.cross_dc,
    )
    if spec.cross_dc is not None and spec.cross_dc.n_dcs > float(knobs["dp"]):
        raise DlcalcError(
            f"cross_dc: {spec.cross_dc.n_dcs} data centres need at least as many data-parallel replicas; "
            f"dp = {knobs['dp']:g}"
        )
    if spec.cross_dc is not None and float(knobs["dp"]) % spec.cross_dc.n_dcs:
        notes.append(f"dp = {knobs['dp']:g} does not spread evenly over {spec.cross_dc.n_dcs} data centres")
    return replace(_with_buckets(run, spec), notes=tuple(notes))


def _model_of(spec: RunSpec, name: str, folder: Path) -> ModelSpec:
    if isinstance(spec.model, str):
        return load_model(located(spec.model, folder))
    given = spec.model
    seq_len = spec.data.seqlen if spec.data else spec.recipe.seq_len if spec.recipe else 1
    moe: dict[str, Any] = {}
    if given.moe is not None:
        shared = given.moe.shared_expert_inter_sz
        moe = {
            "n_experts": given.moe.n_experts,
            "top_k": given.moe.experts_per_token,
            "expert_ffn_hidden_size": given.moe.expert_inter_sz,
            "n_shared_experts": int(shared > 0),
            "shared_ffn_hidden_size": shared,
            "moe_pattern": _spread(given.n_layers, round(given.moe.moe_frequency * given.n_layers)),
        }
    return ModelSpec(
        name=name,
        n_layers=given.n_layers,
        hidden_size=given.hidden_sz,
        n_heads=given.n_q_heads,
        n_kv_heads=given.n_kv_heads,
        head_dim=given.head_dim,
        ffn_hidden_size=given.inter_sz,
        vocab_size=given.vocab_sz,
        max_seq=seq_len,
        gated_mlp=given.glu,
        tied_embeddings=given.tie_embeddings,
        learned_positions=not given.rotary_embeds,
        **moe,
    )


def _spread(n_layers: int, n_moe: int) -> tuple[bool, ...]:
    """Which of the layers are mixtures of experts: the last of every so many."""
    return tuple((layer + 1) * n_moe // n_layers > layer * n_moe // n_layers for layer in range(n_layers))


def _recipe_of(spec: RunSpec, folder: Path, notes: list[str]) -> Recipe:
    profile_changes: dict[str, Any] = {}
    if isinstance(spec.model, ModelSection):
        profile_changes["dropout"] = spec.model.dropout
        if spec.model.moe is not None:
            capacity = spec.model.moe.capacity_factor
            profile_changes["routed_factor"] = max(1.0, float(capacity))
            if capacity < 1:
                notes.append(f"capacity_factor = {capacity:g} drops tokens; counted as 1, as if none were dropped")
    if spec.recipe is not None:
        merged = spec.recipe.model_copy(update={"profile": {**profile_changes, **spec.recipe.profile}})
        return resolved_recipes(merged, folder)[0]
    assert spec.data is not None
    performance = spec.performance or PerformanceSection()
    precision: Precision = performance.precision or "bf16"
    convention: MfuConvention = performance.mfu_convention or "full_attention"
    return Recipe(
        seq_len=spec.data.seqlen,
        global_batch=spec.data.gbs,
        precision=precision,
        framework=load_framework(located(performance.framework or DEFAULT_FRAMEWORK, folder), profile_changes),
        mfu_convention=convention,
    )


# ---- knobs --------------------------------------------------------------------------------------------------------

DEGREES = ("tp", "cp", "pp", "ep", "etp", "vpp", "micro_batch", "dp_replicate")


def _knobs_of(spec: RunSpec, model: ModelSpec, profile: FrameworkProfile, notes: list[str]) -> dict[str, Knob]:
    """Every knob: what is written, in either vocabulary, then the framework's default."""
    said = _said(spec, profile, notes)
    knobs: dict[str, Knob] = {**dict.fromkeys(DEGREES, 1), **default_profile_knobs(profile), **said}
    _no_experts(model, knobs, notes)
    knobs["dp"] = _replicas(spec, knobs)
    tp, pp, vpp = (int(float(knobs[knob])) for knob in ("tp", "pp", "vpp"))
    if vpp > 1 and pp == 1:
        notes.append(f"vpp = {vpp} means nothing without a pipeline; counted as 1")
        knobs["vpp"] = vpp = 1
    knobs.setdefault("schedule", "interleaved" if vpp > 1 else "1f1b")
    if knobs["schedule"] == "zb-v" and "vpp" not in said:
        knobs["vpp"] = 2
    if said.get("sequence_parallel") and tp == 1:
        notes.append("sequence parallelism means nothing at tp = 1; counted as off")
        knobs["sequence_parallel"] = 0
    knobs.setdefault("sequence_parallel", float(profile.sequence_parallel_default and tp > 1))
    if "overlap_param" not in said:
        knobs["overlap_param"] = float(
            profile.overlap_param and bool(knobs["zero_stage"]) and bool(knobs["overlap_grad"])
        )
    knobs.setdefault("overlap_tp", float(profile.overlap_tp and bool(knobs["sequence_parallel"])))
    knobs.setdefault("overlap_ep", float(profile.overlap_ep and float(knobs["ep"]) > 1))
    return knobs


def _said(spec: RunSpec, profile: FrameworkProfile, notes: list[str]) -> dict[str, Knob]:
    """Knobs that the file names, by the words of a plan."""
    said: dict[str, Knob] = {}
    for (section, key), knob in SAME_KNOB.items():
        written = getattr(spec, section)
        if written is not None and key in written.model_fields_set and knob != "recompute":
            value = getattr(written, key)
            said |= {} if value is None else {knob: value}
    if spec.performance is not None:
        said["recompute"] = _recompute_of(spec.performance.activation_checkpointing_type, profile, notes)
    if isinstance(spec.model, ModelSection) and spec.model.moe is not None:
        said["etp"] = spec.model.moe.expert_tp_degree
    if spec.plan is not None:
        given = spec.plan.model_dump(exclude_none=True)
        said |= {knob: LAYER_WORDS.get(value, value) for knob, value in given.items()}
    return {knob: float(value) if isinstance(value, bool) else value for knob, value in said.items()}


def _recompute_of(kind: CheckpointingType, profile: FrameworkProfile, notes: list[str]) -> str:
    """Our word for what is recomputed.

    super-selective keeps neither scores nor the outputs of norms and activation functions. Flash attention keeps no
    scores whatever is recomputed, so what is left is ``norm_act``; where attention stores its scores, they are by far
    the larger part: ``selective``.
    """
    if kind != "super-selective":
        return kind
    stores_scores = profile.attention in ("unfused", "megatron_fused")
    meant = "selective" if stores_scores else "norm_act"
    notes.append(f"super-selective recomputation is estimated as {meant}")
    return meant


def _no_experts(model: ModelSpec, knobs: dict[str, Knob], notes: list[str]) -> None:
    for knob in ("ep", "etp"):
        if not model.is_moe and float(knobs[knob]) > 1:
            notes.append(f"{knob} = {knobs[knob]} means nothing without experts; counted as 1")
            knobs[knob] = 1


def _replicas(spec: RunSpec, knobs: Mapping[str, Knob]) -> int:
    """``dp`` as written, or what the devices leave for it."""
    apart = int(float(knobs["tp"]) * float(knobs["cp"]) * float(knobs["pp"]))
    devices = spec.cluster.devices if spec.cluster else None
    dp = knobs.get("dp")
    if dp is None:
        if devices is None:
            raise DlcalcError(
                "dp is missing; give it, or cluster: {devices: ...}, of which it is what tp, cp and pp leave"
            )
        if devices % apart:
            raise DlcalcError(f"tp x cp x pp = {apart} does not divide the {devices} devices of the cluster")
        return devices // apart
    if devices is not None and int(float(dp)) * apart != devices:
        raise DlcalcError(
            f"tp x cp x pp x dp = {int(float(dp)) * apart}, but the cluster has {devices} devices; "
            f"leave out dp or devices"
        )
    return int(float(dp))


def _recompute_by_stage(
    given: tuple[int, ...] | None, knobs: dict[str, Knob], chunk_layers: tuple[int, ...]
) -> dict[str, Knob]:
    """Layers recomputed stage by stage, where the recipe gives them and the plan does not say otherwise.

    ``chunk_layers`` are the layers of every chunk, or of the largest.
    """
    knobs = {**({"recompute": "full", "recompute_layers": PER_STAGE} if given is not None else {}), **knobs}
    if knobs.get("recompute_layers") != PER_STAGE:
        return knobs
    if given is None:
        raise DlcalcError("recompute_layers: per_stage needs recipe.stage_recompute, the layers of each stage")
    if len(given) != knobs["pp"]:
        raise FieldError(("stage_recompute",), f"{len(given)} stages, but pp = {knobs['pp']}")
    for stage, count in enumerate(given):
        most = max(chunk_layers[stage :: len(given)] or chunk_layers)
        if count > most:
            text = f"stage {stage} recomputes {count} layers of a chunk, which has no more than {most}"
            raise FieldError(("stage_recompute", stage), text)
    return knobs


def _split_of(
    spec: RunSpec, model: ModelSpec, knobs: dict[str, Knob], notes: list[str]
) -> tuple[dict[str, Knob], tuple[int, ...] | None]:
    """How layers are cut into chunks: as told, else evenly, else as evenly as whole layers allow."""
    n_chunks = int(float(knobs["pp"]) * float(knobs["vpp"]))
    custom = spec.recipe.custom_split if spec.recipe else None
    split = knobs.get("split", "custom" if custom else None)
    if split == "custom":
        if custom is None:
            raise DlcalcError("split: custom needs recipe.custom_split, the layers of each chunk")
        if len(custom) != n_chunks or sum(custom) != model.n_layers:
            raise DlcalcError(
                f"custom_split: {len(custom)} chunks of {sum(custom)} layers in all, "
                f"but pp x vpp = {n_chunks} and {model.name} has {model.n_layers} layers"
            )
        return {**knobs, "split": "custom"}, custom
    if split is not None or model.n_layers % n_chunks == 0 or n_chunks > model.n_layers:
        return {**knobs, "split": split or "even"}, None
    chunk = np.arange(n_chunks + 1.0)
    cut = first_layer_count(model.n_layers, chunk, n_chunks=n_chunks, split=EVEN)
    nearly_even = tuple(int(n) for n in np.diff(cut))
    few, many = min(nearly_even), max(nearly_even)
    notes.append(f"{model.n_layers} layers do not split evenly over {n_chunks} pipeline chunks: {few} or {many} each")
    return {**knobs, "split": "custom"}, nearly_even


def _with_buckets(run: Run, spec: RunSpec) -> Run:
    """Buckets as large as the file says: a number of them, or their size."""
    wanted = spec.parallelism
    if wanted is None or (wanted.n_param_buckets is None and wanted.bucket_size_mb is None):
        return run
    if wanted.bucket_size_mb is not None:
        mib = wanted.bucket_size_mb * 1e6 / MIB
    else:
        mib = bucket_bytes(run.estimate(), int(wanted.n_param_buckets or 1)) / MIB
    profile = run.recipe.framework.model_copy(update={"bucket_mib": mib})
    return replace(run, recipe=run.recipe.model_copy(update={"framework": profile}))


# ---- rows of a result ---------------------------------------------------------------------------------------------


SITS_BY = ("tp", "cp", "pp", "dp", "ep", "etp", "dp_replicate", "vpp")
"""Knobs that decide who talks to whom."""


@dataclass(frozen=True)
class ResultRow:
    """A row of a result, with everything that made it."""

    name: str
    scenario: str
    devices: int
    knobs: Mapping[str, Knob]
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    registry: HardwareRegistry
    custom_split: tuple[int, ...] | None = None
    memory_headroom: float = 0.0
    notes: Sequence[str] = field(default_factory=tuple)
    placed: PlacedRates | None = None
    placed_note: str = ""
    """What is to be known of a plan that is placed."""

    def resolve(self, changes: Mapping[str, Any]) -> Run:
        """The plan of the row; changed degrees leave the number of devices as it is, unless dp is among the changes."""
        model, hardware, recipe = self.model, self.hardware, self.recipe
        knobs: dict[str, Knob] = dict(self.knobs)
        recipe_changes: dict[str, Any] = {}
        for key, value in changes.items():
            match key.removeprefix("plan.").removeprefix("recipe."):
                case "model":
                    model = load_model(str(value))
                case "hardware":
                    hardware = self.registry.load(str(value))
                case "framework":
                    recipe_changes["framework"] = load_framework(str(value))
                case name if name in KNOBS:
                    knobs[name] = _checked_knob(name, value)
                case name if name in Recipe.model_fields:
                    recipe_changes[name] = value
                case name:
                    raise UnknownNameError(
                        "--what-if key", name, {*KNOBS, *Recipe.model_fields, "model", "hardware", "framework"}
                    )
        if recipe_changes:
            recipe = _changed_recipe(recipe, recipe_changes)
        if recipe.precision not in hardware.precisions:
            raise DlcalcError(f"--what-if: {hardware.name} has no {recipe.precision}")
        if "dp" not in changes and changes.keys() & {"tp", "cp", "pp", "plan.tp", "plan.cp", "plan.pp"}:
            apart = int(float(knobs["tp"]) * float(knobs["cp"]) * float(knobs["pp"]))
            if self.devices % apart:
                raise DlcalcError(f"--what-if: tp x cp x pp = {apart} does not divide the {self.devices} devices")
            knobs["dp"] = self.devices // apart
        written = {
            "result": self.name,
            "scenario": self.scenario,
            "plan": {knob: knobs[knob] for knob in KNOBS},
            **({"what_if": dict(changes)} if changes else {}),
        }
        placed, placed_note = self.placed, self.placed_note
        if placed is not None and (hardware is not self.hardware or any(knobs[k] != self.knobs[k] for k in SITS_BY)):
            placed, placed_note = None, "its groups would sit elsewhere; estimated without placement"
        return Run(
            name=self.name,
            written=written,
            model=model,
            hardware=hardware,
            recipe=recipe,
            plan=Plans.point(**knobs),
            custom_split=self.custom_split,
            memory_headroom=self.memory_headroom,
            notes=(*self.notes, *([placed_note] if placed_note else [])),
            placed=placed,
        )


def _checked_knob(knob: str, value: object) -> Knob:
    """``value`` where a plan section would take it."""
    try:
        checked = PlanSection.model_validate({knob: value})
    except ValueError as error:
        raise DlcalcError(f"--what-if: {knob}: {value!r} is not possible") from error
    found = getattr(checked, knob)
    if found is None:
        raise DlcalcError(f"--what-if: {knob}: give a value")
    return float(found) if isinstance(found, bool) else LAYER_WORDS.get(found, found)


def _changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate({**{name: getattr(recipe, name) for name in Recipe.model_fields}, **changes})
    except ValueError as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in changes.items())
        raise DlcalcError(f"--what-if: {told} is not possible") from error
