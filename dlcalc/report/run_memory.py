"""Where the memory of one run goes: by term, by pipeline stage, by operation."""

from __future__ import annotations

from collections.abc import Iterator

from dlcalc.report.memory_words import limit_words
from dlcalc.report.run_facts import MemoryFacts, RunFacts
from dlcalc.report.run_words import label, shares, whole
from dlcalc.report.sections import Bars, Grid, Line, Part, Section
from dlcalc.utils import units


def memory_sections(facts: RunFacts) -> Iterator[Section]:
    """The peak by term, every pipeline stage, and what a layer keeps."""
    memory = facts.memory
    fullest = memory.stages[memory.fullest_stage]
    where = f"stage {fullest.stage}" if len(memory.stages) > 1 else "every device"
    verdict = Line(_room(memory), "plain" if memory.total_bytes <= memory.limit_bytes else "warning")
    yield Section(
        "MEMORY",
        1,
        (
            Bars(
                f"Peak on {where}, by what it holds",
                shares(memory.terms, "_bytes", lambda v: f"{units.gib(v, 3)} GiB"),
            ),
            Line(f"Total Memory Required: {units.gib(memory.total_bytes, 3)} GiB per device", "answer"),
            verdict,
        ),
        "memory",
    )
    yield Section("Memory per pipeline stage", 2, (_stage_grid(facts),), "memory_stages")
    yield Section("Activations per layer", 2, _activation_parts(facts), "activations")


def _room(memory: MemoryFacts) -> str:
    """What a device has, what of it stays free, and where the limit is where something is to be kept free."""
    free_bytes, over_bytes = memory.usable_bytes - memory.total_bytes, memory.total_bytes - memory.limit_bytes
    room = f"{units.gib(free_bytes, 3)} GiB free" if free_bytes >= 0 else f"{units.gib(-free_bytes, 3)} GiB too much"
    said = (
        f"Usable memory of a device: {units.gib(memory.usable_bytes, 3)} GiB, {room}"
        f" ({units.percent(memory.total_bytes / memory.usable_bytes)} used)"
    )
    if memory.limit_bytes < memory.usable_bytes:
        said += f"; {limit_words(memory.usable_bytes, memory.limit_bytes)}"
        said += f": {units.gib(over_bytes, 3)} GiB beyond" if over_bytes > 0 else ""
    return said


def _stage_grid(facts: RunFacts) -> Grid:
    stages = facts.memory.stages
    terms = [name for name in stages[0].bytes_by_term if any(stage.bytes_by_term[name] for stage in stages)]
    shown = [
        name for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes") if name in terms
    ]
    others = [name for name in terms if name not in shown]
    header = (
        "stage",
        "layers",
        "also",
        "in flight",
        "params",
        *(label(name, "_bytes") for name in shown),
        "other",
        "total GiB",
    )
    rows = []
    for stage in stages:
        also = "+".join(word for word, here in (("embedding", stage.has_embedding), ("head", stage.has_head)) if here)
        rows.append(
            (
                str(stage.stage),
                whole(stage.layers),
                also or "-",
                whole(stage.in_flight),
                units.short_count(stage.params),
                *(units.gib(stage.bytes_by_term[name], 3) for name in shown),
                units.gib(sum(stage.bytes_by_term[name] for name in others), 3),
                units.gib(stage.total_bytes, 3),
            )
        )
    caption = "GiB of one device. In flight: micro-batches whose activations are held. Other: " + ", ".join(
        label(name, "_bytes") for name in others
    )
    return Grid("", header, tuple(rows), frozenset({"also"}), caption)


def _activation_parts(facts: RunFacts) -> tuple[Part, ...]:
    rows = [
        (
            op.sublayer,
            op.op.removeprefix("mlp_").replace("_", " "),
            units.size(op.kept_bytes),
            units.size(op.without_recompute_bytes),
        )
        for op in facts.memory.activations
    ]
    return (
        Grid(
            "",
            ("sublayer", "operation", "kept", "without recomputation"),
            tuple(rows),
            frozenset({"sublayer", "operation"}),
            "Of one layer and one micro-batch on one device, until its backward pass.",
        ),
        Line(f"Activations per layer and micro-batch: {units.size(facts.memory.layer_activation_bytes)}"),
    )
