"""A torchtitan job in our words: its command line, a dump of its configuration (JSON), or the TOML of up to 0.2."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcalc.errors import Problem, SpecError
from dlcalc.launch.imported import Imported
from dlcalc.launch.readers.launcher import COUNTS, OTHERS, count_said, devices_of, options_of
from dlcalc.launch.readers.options import Options, flatten
from dlcalc.launch.readers.shell_words import Word, shell_words
from dlcalc.launch.readers.torchtitan_model import (
    literals_beside,
    model_of_dump,
    model_of_literals,
    named_model,
)
from dlcalc.launch.readers.torchtitan_plan import knobs_of
from dlcalc.specs.hardware import Precision
from dlcalc.specs.load import parse_yaml
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.wording import shown

RECOMPUTE = {"none": "none", "selective": "op_sac", "full": "full"}
SUBCOMMAND, PROGRAM = "activation-checkpoint:", "torchtitan.train"
OUTPUT = re.compile(r"[ \t](?:\d?>|\|)[^'\"\n]*$", re.MULTILINE)
"""Where what a command prints goes, at the end of a line: no values of an option."""
KINDS = ("none", "selective", "full", "memory-budget")
OLD_NAMES = {
    "training.batch_size": "training.local_batch_size",
    **{
        f"{section}.{name}": f"parallelism.{name}"
        for section in ("training", "experimental")
        for name in [
            "data_parallel_replicate_degree",
            "data_parallel_shard_degree",
            "tensor_parallel_degree",
            "context_parallel_degree",
            "pipeline_parallel_degree",
            "pipeline_parallel_schedule",
            "pipeline_parallel_microbatch_size",
        ]
    },
    "experimental.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
    "parallelism.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
    "compile.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
}
"""Where options of older releases went."""


@dataclass(frozen=True)
class Source:
    """What one of the three ways of writing a job says."""

    options: Options
    model: ModelSpec | None
    precision: Precision
    recompute: str
    chunk_layers: tuple[int, ...] | None
    """Where they are written out."""
    has_cuda_graphs: bool
    """Whether the release replays graphs unless told not to."""
    devices: int | None = None
    """As torchrun is told."""


def read(text: str, file: Path) -> Imported:
    """What the configuration tells torchtitan to do."""
    source = _source(text, file)
    options, model = source.options, source.model
    plan = knobs_of(options, model, source.chunk_layers)
    local = options.whole("training.local_batch_size", 1)
    wanted = options.given("training.global_batch_size")
    apart = math.prod(int(plan.knobs[degree]) for degree in ("tp", "cp", "pp"))
    dp = plan.knobs.get("dp")
    if dp is None and source.devices is not None and source.devices % apart == 0:
        dp = source.devices // apart
    # -1, the default, is one accumulation step.
    global_batch = (local * int(dp) if dp else None) if wanted in (None, -1, "-1") else _global_batch(options)
    knobs = {**plan.knobs, "recompute": source.recompute}
    graphs = source.has_cuda_graphs and not options.flag("training.disable_cuda_graphs", False)
    notes = [*plan.notes, *_drains(knobs, local, global_batch)]
    if model is None:
        notes.append("The model is not told by the file: name it.")
    return Imported(
        source="torchtitan",
        model=model,
        knobs=knobs,
        seq_len=options.whole("training.seq_len", 2048),
        global_batch=global_batch,
        precision=_precision(options, source.precision),
        devices=int(dp) * apart if dp else source.devices,
        custom_split=plan.custom_split,
        cuda_graphs=graphs and knobs["pp"] == 1,
        profile=plan.profile,
        ignored=tuple(name for name in options.left_over() if not name.startswith("model_spec.")),
        notes=tuple(notes),
    )


def _global_batch(options: Options) -> int:
    return options.whole("training.global_batch_size", 1)


def _drains(knobs: Mapping[str, int | bool | str], local: int, global_batch: int | None) -> list[str]:
    dp = knobs.get("dp")
    if int(knobs["pp"]) == 1 or not dp or not global_batch or global_batch == local * int(dp):
        return []
    return [f"The pipeline is filled and drained every {local} sequences; the estimate does so once a step."]


def _precision(options: Options, converted: Precision) -> Precision:
    types = ("bfloat16", "float32")
    options.word("training.dtype", "float32", types)
    return "fp32" if options.word("training.mixed_precision_param", "bfloat16", types) == "float32" else converted


def _source(text: str, file: Path) -> Source:
    dumped = re.search(r"^[^\n{]*Running with configs:\s*(?=\{)", text, re.MULTILINE)
    if dumped:  # a log; lines keep their numbers
        text = "\n" * text.count("\n", 0, dumped.end()) + text[dumped.end() :]
        return _from_dump(_first_mapping(text), file)
    if text.lstrip().startswith("{"):
        return _from_dump(text, file)
    if re.search(r"(^|\s)--\w", text):
        return _from_command(text, file)
    return _from_toml(text, file)


def _first_mapping(text: str) -> str:
    """The text up to the line that closes the mapping, which a log prints in the first column."""
    end = re.search(r"^\}", text, re.MULTILINE)
    return text[: end.end()] if end else text


def _from_dump(text: str, file: Path) -> Source:
    data, marks = parse_yaml(text, file=file.with_suffix(".json"))
    if not isinstance(data, dict):
        raise SpecError(file, (Problem(1, file.name, f"must be a mapping, not {shown(data)}"),))
    spec, kind = data.get("model_spec"), data.get("activation_checkpoint")
    kept = {key: value for key, value in data.items() if key not in ("model_spec", "activation_checkpoint")}
    values: dict[str, Any] = {}
    paths: dict[str, tuple[Hashable, ...]] = {}
    flatten(kept, (), values, paths)
    options = Options(file, values, lambda name: marks.line_of(paths.get(name, tuple(name.split(".")))))
    parts = values.get("parallelism.module_fqns_per_model_part")
    model = model_of_dump(spec, file, marks.within(("model_spec",))) if isinstance(spec, dict) else None
    return Source(
        options=options,
        model=model,
        precision="fp8" if "_torchao_config" in text else "bf16",
        recompute=_dumped_recompute(kind, options),
        chunk_layers=_chunks(parts, options),
        has_cuda_graphs=True,
    )


def _dumped_recompute(kind: object, options: Options) -> str:
    """The dump has a policy's settings, not its name."""
    if not isinstance(kind, dict):
        return "none"
    if "mode" in kind:  # releases to 0.2
        return _recompute(str(kind["mode"]), options)
    if "memory_budget" in kind:
        return _recompute("memory-budget", options)
    return "op_sac" if "force_recompute_mm_shapes_by_fqns" in kind else "full"


def _recompute(kind: str, options: Options) -> str:
    if kind not in RECOMPUTE:
        known = ", ".join(RECOMPUTE)
        text = f"{shown(kind)} is not modelled" if kind in KINDS else f"no such mode: {shown(kind)}; known: {known}"
        raise options.error("activation_checkpoint", text)
    return RECOMPUTE[kind]


def _chunks(parts: object, options: Options) -> tuple[int, ...] | None:
    """Layers of each list of modules."""
    options.asked.add("parallelism.module_fqns_per_model_part")
    if parts is None:
        return None
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        raise options.error("parallelism.module_fqns_per_model_part", "must be a list of lists of module names")
    return tuple(sum(str(name).startswith("layers.") for name in part) for part in parts)


def _from_command(text: str, file: Path) -> Source:
    """A command line, or a script that has one: options may stand in an array before the program that takes them."""
    values, lines, kind, counts = _options(text, file)
    options = Options(file, values, lambda name: lines.get(name, 1))
    module, config = str(options.given("module") or ""), str(options.given("config") or "")
    literals = literals_beside(file, module)
    model = model_of_literals(literals["MODEL"], file) if "MODEL" in literals else named_model(module, config)
    chunks = literals.get("CHUNK_LAYERS")
    return Source(
        options=options,
        model=model,
        precision=_known_precision(literals.get("PRECISION", "bf16"), file),
        recompute=_recompute(kind, options),
        chunk_layers=_counts(chunks),
        has_cuda_graphs=True,
        devices=devices_of(counts),
    )


def _options(text: str, file: Path) -> tuple[dict[str, Any], dict[str, int], str, dict[str, int]]:
    """Options with their lines, the kind of recomputation, and what torchrun is told of hosts and processes."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    words = shell_words(OUTPUT.sub("", text), file)
    kinds = [word.text.split(":", 1)[1] for word in words if word.text.startswith(SUBCOMMAND)]
    for given in options_of(words, ends=(SUBCOMMAND,)):
        if given.flag in COUNTS:
            counts |= count_said(given.flag, given.words)
            continue
        value = " ".join(_said_by(word) for word in given.words)
        if value == PROGRAM or (given.flag != "--module" and OTHERS.fullmatch(given.flag)):
            continue  # torchrun's
        name = _plain(given.flag[2:])
        if name in values:
            raise SpecError(file, (Problem(given.line, name, "is given twice"),))
        values[name], lines[name] = (value if given.words else True), given.line
    return _switched_off(values, lines), lines, kinds[-1] if kinds else "selective", counts


def _said_by(word: Word) -> str:
    return f"${word.unset[0]}" if word.unset else word.text


def _counts(chunks: object) -> tuple[int, ...] | None:
    if not isinstance(chunks, tuple | list) or not all(isinstance(count, int) and count >= 0 for count in chunks):
        return None
    return tuple(chunks)


def _known_precision(word: object, file: Path) -> Precision:
    match word:
        case "bf16" | "fp8" | "mxfp8" | "nvfp4":
            return word
    raise SpecError(file, (Problem(1, "PRECISION", f"no such precision: {shown(word)}"),))


def _plain(name: str) -> str:
    """Dashes and underscores are the same to torchtitan's parser."""
    return name.replace("-", "_")


def _switched_off(values: dict[str, Any], lines: dict[str, int]) -> dict[str, Any]:
    """``--a.no-b`` is ``--a.b`` switched off."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        section, dot, last = name.rpartition(".")
        if value is True and last.startswith("no_"):
            name = f"{section}{dot}{last[3:]}"  # noqa: PLW2901 (the same option)
            lines[name], value = lines[f"{section}{dot}{last}"], False  # noqa: PLW2901
        plain[name] = value
    return plain


def _from_toml(text: str, file: Path) -> Source:
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        found = re.search(r"at line (\d+)", str(error))
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(" (at")[0].lower()
        problem = Problem(int(found[1]) if found else 1, "syntax", f"neither a command line, JSON nor TOML: {what}")
        raise SpecError(file, (problem,)) from None
    written: dict[str, Any] = {}
    flatten(data, (), written, {})
    values = {OLD_NAMES.get(name, name): value for name, value in written.items()}
    options = Options(file, values, lambda name: _toml_line(text, name))
    kind = str(options.given("activation_checkpoint.mode") or "selective")
    option = str(options.given("activation_checkpoint.selective_ac_option") or "op")
    if kind == "selective" and option != "op":
        raise options.error("activation_checkpoint.selective_ac_option", f"{shown(option)} is not modelled; op is")
    converters = options.given("model.converters") or []
    family, flavor = options.given("model.name"), options.given("model.flavor")
    return Source(
        options=options,
        model=named_model(str(family), str(flavor)),
        precision=_converted(converters),
        recompute=_recompute(kind, options),
        chunk_layers=None,
        has_cuda_graphs=False,
    )


def _converted(converters: object) -> Precision:
    words = [str(word) for word in converters] if isinstance(converters, list) else [str(converters)]
    if any("mx" in word for word in words):
        return "mxfp8"
    return "fp8" if any("float8" in word for word in words) else "bf16"


def _toml_line(text: str, name: str) -> int:
    """Line of ``section.key``; old names stand where they stood."""
    meant = {name, *(old for old, new in OLD_NAMES.items() if new == name)}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        heading = re.match(r"\s*\[([^\]]+)\]", line)
        section = heading[1].strip() if heading else section
        key = re.match(r"\s*([\w.-]+)\s*=", line)
        if key and f"{section}.{key[1]}".lstrip(".") in meant:
            return number
    return 1
