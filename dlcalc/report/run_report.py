"""One run as a report: sections of facts, tables and bars, the same for a terminal and for a page.

``sections`` decides what is said and in which order; ``report.sections`` shows it on a console and ``run_html`` as a
page. What is shown are the terms of the estimate themselves, field by field, so that a report cannot differ from what a
search ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dlcalc.costmodel.anatomy import AttentionFacts, AxisFacts, MatmulFacts, Shape
from dlcalc.costmodel.cross_dc import CrossDcFacts
from dlcalc.report.memory_words import limit_words
from dlcalc.report.plan_words import plan_words
from dlcalc.report.run_facts import Citation, Comparison, Difference, MemoryFacts, RunFacts
from dlcalc.report.sections import Bars, Facts, Grid, Line, Part, Section
from dlcalc.utils import units

IGNORED_SHOWN = 12
"""Options that no estimate reads, on a terminal without ``-v``."""
AXIS_NAMES = {
    "TP": "Tensor parallel (TP)",
    "CP": "Context parallel (CP)",
    "EP": "Expert parallel (EP)",
    "PP": "Pipeline parallel (PP)",
    "DP": "Data parallel (DP)",
}


def sections(facts: RunFacts, *, verbose: bool = True) -> tuple[Section, ...]:
    """The whole report, in the order in which it is read; without ``verbose`` long lists are shortened."""
    return (
        _configuration(facts, verbose=verbose),
        _hardware(facts),
        _data(facts),
        _model(facts),
        *_memory(facts),
        _compute(facts),
        *_communication(facts),
        _pipeline(facts),
        _block(facts),
        _iteration(facts),
        _final(facts),
    )


# ---- what was asked -----------------------------------------------------------------------------------------------


def _configuration(facts: RunFacts, *, verbose: bool) -> Section:
    rows = [(str(key), _said(value)) for key, value in facts.configuration.items()]
    rows.append(("resolved plan", plan_words(facts.plan)))
    parts: list[Part] = [Facts(tuple(rows))]
    parts += [Line(f"Note: {note}.", "dim") for note in facts.notes]
    if facts.ignored:
        parts.append(Line(f"Note: no estimate reads {_listed(facts.ignored, verbose=verbose)}.", "dim"))
    parts += _warnings(facts)
    return Section("CONFIGURATION", 1, tuple(parts), "configuration")


def _listed(names: Sequence[str], *, verbose: bool) -> str:
    more = 0 if verbose else max(len(names) - IGNORED_SHOWN, 0)
    return ", ".join(names[: len(names) - more]) + (f" and {more} more, which -v lists" if more else "")


def _said(value: object) -> str:
    """A section of a run file in one line."""
    if isinstance(value, Mapping):
        inner = (
            f"{key} ({_said(item)})" if isinstance(item, Mapping) else f"{key} {_said(item)}"
            for key, item in value.items()
        )
        return ", ".join(inner)
    if isinstance(value, (list, tuple)):
        return " ".join(_said(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _warnings(facts: RunFacts) -> list[Part]:
    """Why the plan cannot run, if it cannot."""
    if not facts.refused:
        return []
    return [Line(f"WARNING: this plan is refused: {'; '.join(facts.refused)}.", "warning")]


def _hardware(facts: RunFacts) -> Section:
    machine = facts.hardware
    return Section(
        "Hardware",
        2,
        (
            Facts(
                (
                    ("node type", f"{machine.name}: {machine.description}"),
                    ("devices", f"{units.count(machine.devices)}, {machine.devices_per_node} to a node"),
                    ("nodes", units.significant(machine.nodes) if machine.nodes % 1 else units.count(machine.nodes)),
                    ("device memory", f"{units.gib(machine.hbm_bytes, 2)} GiB at {_rate(machine.hbm_bytes_per_s)}"),
                    ("peak rate", f"{_flops(machine.peak_flops_per_s)}/s in {facts.data.precision}"),
                    ("link inside a node", f"{_rate(machine.node_bytes_per_s)} per device and direction"),
                    (
                        "link between nodes",
                        f"{_rate(machine.fabric_bytes_per_s)} per device and direction, "
                        f"{units.duration(machine.fabric_latency_s)} latency",
                    ),
                    (
                        "calibration",
                        "measured kernels" if machine.is_measured else "datasheet, other devices' fractions",
                    ),
                )
            ),
        ),
        "hardware",
    )


def _data(facts: RunFacts) -> Section:
    data = facts.data
    return Section(
        "Data",
        2,
        (
            Facts(
                (
                    (
                        "global batch",
                        f"{units.count(data.global_batch)} sequences of {units.count(data.seq_len)} tokens",
                    ),
                    ("tokens per step", units.count(data.tokens_per_step)),
                    (
                        "micro-batch",
                        f"{data.micro_batch} sequence{'s' * (data.micro_batch > 1)}, "
                        f"{_whole(data.micro_batches)} to a step and replica",
                    ),
                    ("precision", data.precision),
                    ("framework", data.framework),
                )
            ),
        ),
        "data",
    )


def _model(facts: RunFacts) -> Section:
    model = facts.model
    rows = [
        ("model", model.name),
        ("parameters", f"{units.short_count(model.parameters_total)} ({units.count(model.parameters_total)})"),
        ("of these active", units.short_count(model.parameters_active)),
        ("of these embedding", units.short_count(model.parameters_embedding)),
        ("parameters per device", f"{units.short_count(model.parameters_per_device)}, on the fullest stage, unsharded"),
        ("layers", str(model.n_layers)),
        ("hidden size", str(model.hidden_size)),
        ("MLP width", str(model.ffn_hidden_size)),
        ("attention", f"{model.n_heads} heads of {model.head_dim}, {model.n_kv_heads} KV heads"),
        ("vocabulary", units.count(model.vocab_size)),
        ("training FLOPs per token", units.short_count(model.flops_per_token)),
    ]
    if model.expert_mesh is not None:
        mesh = model.expert_mesh
        rows += [
            (
                "MoE experts",
                f"{model.top_k} of {model.n_experts} in {model.n_moe_layers} of {model.n_layers} layers, "
                f"{model.expert_ffn_hidden_size} wide",
            ),
            ("expert mesh", f"ep {mesh['ep']} x etp {mesh['etp']} x replicas {_whole(mesh['expert_dp'])}"),
        ]
    return Section("Model Architecture", 2, (Facts(tuple(rows)),), "model")


# ---- memory -------------------------------------------------------------------------------------------------------


def _memory(facts: RunFacts) -> Iterator[Section]:
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
                _shares(memory.terms, "_bytes", lambda v: f"{units.gib(v, 3)} GiB"),
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
        *(_label(name, "_bytes") for name in shown),
        "other",
        "total GiB",
    )
    rows = []
    for stage in stages:
        also = "+".join(word for word, here in (("embedding", stage.has_embedding), ("head", stage.has_head)) if here)
        rows.append(
            (
                str(stage.stage),
                _whole(stage.layers),
                also or "-",
                _whole(stage.in_flight),
                units.short_count(stage.params),
                *(units.gib(stage.bytes_by_term[name], 3) for name in shown),
                units.gib(sum(stage.bytes_by_term[name] for name in others), 3),
                units.gib(stage.total_bytes, 3),
            )
        )
    caption = "GiB of one device. In flight: micro-batches whose activations are held. Other: " + ", ".join(
        _label(name, "_bytes") for name in others
    )
    return Grid("", header, tuple(rows), frozenset({"also"}), caption)


def _activation_parts(facts: RunFacts) -> tuple[Part, ...]:
    rows = [
        (op.sublayer, op.op.replace("_", " "), units.size(op.kept_bytes), units.size(op.without_recompute_bytes))
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


# ---- computation --------------------------------------------------------------------------------------------------


def _compute(facts: RunFacts) -> Section:
    return Section(
        "COMPUTE",
        1,
        (
            Grid(
                "Matmuls of one micro-batch",
                (
                    "sublayer",
                    "matmul",
                    "shape",
                    "on a device",
                    "forward",
                    "backward",
                    "FLOPs",
                    "bytes",
                    "FLOP/s",
                    "bound by",
                ),
                tuple(_matmul_row(row) for row in facts.matmuls),
                frozenset({"sublayer", "matmul", "shape", "on a device", "bound by"}),
                "Shapes: tokens x in x out, experts x (tokens x in x out). FLOPs, bytes and rate are of the forward "
                "pass on one device; backward are the gradients of input and weight.",
            ),
            Grid(
                "Attention cores of one micro-batch",
                ("sublayer", "kernel", "heads", "queries x keys", "forward", "backward", "FLOPs", "bytes", "FLOP/s"),
                tuple(_attention_row(row) for row in facts.attention),
                frozenset({"sublayer", "kernel"}),
                "On one device; FLOPs are those the kernel runs.",
            ),
        ),
        "compute",
    )


def _matmul_row(row: MatmulFacts) -> tuple[str, ...]:
    return (
        row.sublayer,
        row.name,
        _shape(row.shape),
        _shape(row.device_shape),
        units.duration(row.forward_s),
        units.duration(row.input_grad_s + row.weight_grad_s),
        units.short_count(row.forward_flops),
        units.size(row.forward_bytes),
        units.short_count(row.forward_flops_per_s),
        row.bound,
    )


def _attention_row(row: AttentionFacts) -> tuple[str, ...]:
    window = f" (window {row.window})" if row.window else ""
    return (
        row.sublayer,
        row.kernel,
        f"{_whole(row.sequences)} x {_whole(row.heads)} ({_whole(row.kv_heads)} KV)",
        f"{_whole(row.queries)} x {_whole(row.keys)}{window}",
        units.duration(row.forward_s),
        units.duration(row.backward_s),
        units.short_count(row.forward_flops),
        units.size(row.forward_bytes),
        units.short_count(row.forward_flops_per_s),
    )


def _shape(shape: Shape) -> str:
    groups, *rest = shape
    one = "x".join(_whole(size) for size in rest)
    return one if groups == 1 else f"{_whole(groups)}x({one})"


# ---- communication ------------------------------------------------------------------------------------------------


def _communication(facts: RunFacts) -> Iterator[Section]:
    silent = () if facts.communication else (Line("One device: nothing is sent."),)
    overview = Grid(
        "",
        ("axis", "degree", "sent", "exposed", "hidden", "of the step"),
        tuple(
            (
                axis.axis,
                str(axis.degree),
                units.duration(axis.sent_s),
                units.duration(axis.exposed_s),
                units.duration(axis.hidden_s),
                units.percent(axis.exposed_s / facts.results.iteration_s),
            )
            for axis in facts.communication
        ),
        frozenset({"axis"}),
        "Per step and device, an average stage's. Of the step: what is exposed.",
    )
    yield Section("COMMUNICATION", 1, silent or (overview,), "communication")
    for axis in facts.communication:
        yield _axis(axis)
    if facts.cross_dc is not None:
        yield _cross_dc_configuration(facts.cross_dc)
        yield _cross_dc_impact(facts.cross_dc)


def _axis(axis: AxisFacts) -> Section:
    rows = [
        (
            call.what,
            call.operation.replace("_", "-"),
            units.size(call.size_bytes),
            _ranks(call.n_ranks, call.ranks_per_node),
            f"{call.link}, {_rate(call.link_bytes_per_s)}",
            units.duration(call.latency_s),
            units.duration(call.bandwidth_s),
            _whole(call.calls_per_step),
            units.duration(call.sent_s),
        )
        for call in axis.collectives
    ]
    total = (
        f"{axis.axis}: {units.duration(axis.sent_s)} sent, {units.duration(axis.exposed_s)} exposed, "
        f"{units.duration(axis.hidden_s)} hidden per step"
    )
    if axis.not_sent_s:
        total += f"; {units.duration(axis.not_sent_s)} not sent, as a token goes to a node once for all of its experts"
    return Section(
        AXIS_NAMES[axis.axis],
        2,
        (
            Grid(
                "",
                ("what", "operation", "size", "ranks", "link", "latency", "bandwidth", "calls", "sent"),
                tuple(rows),
                frozenset({"what", "operation", "link"}),
            ),
            Line(total + (f"; {axis.note}." if axis.note else ".")),
        ),
        f"axis_{axis.axis}",
    )


def _ranks(n_ranks: float, ranks_per_node: float) -> str:
    if ranks_per_node in (1, n_ranks):
        return _whole(n_ranks)
    return f"{_whole(n_ranks)}, {_whole(ranks_per_node)} a node"


def _cross_dc_configuration(cross: CrossDcFacts) -> Section:
    return Section(
        "Cross-DC Configuration",
        2,
        (
            Facts(
                (
                    ("data centres", str(cross.n_dcs)),
                    ("interconnect", f"{cross.interconnect_bandwidth_gbps:g} Gbit/s of a data centre, one direction"),
                    (
                        "latency",
                        f"{units.duration(cross.interconnect_latency_s)} ({cross.interconnect_latency_s:g} s)",
                    ),
                    (
                        "gradients",
                        f"{units.size(cross.gradient_bytes)} of the model, {_times(cross.reductions_per_step)} a step",
                    ),
                    (
                        "weights",
                        f"{units.size(cross.weight_bytes)} of the model, {_times(cross.gathers_per_step)} a step",
                    ),
                    ("buckets", _whole(cross.n_buckets)),
                )
            ),
        ),
        "cross_dc",
    )


def _cross_dc_impact(cross: CrossDcFacts) -> Section:
    sent = cross.gradient_sent_s + cross.weights_sent_s
    return Section(
        "Cross-DC Impact",
        2,
        (
            Facts(
                (
                    ("gradients sent", units.duration(cross.gradient_sent_s)),
                    ("weights sent", units.duration(cross.weights_sent_s)),
                    ("of these latency", units.duration(cross.latency_s)),
                    ("exposed", units.duration(cross.exposed_s)),
                    ("hidden", units.duration(cross.hidden_s)),
                    ("iteration in one data centre", units.duration(cross.step_without_s, 5)),
                    ("iteration across data centres", units.duration(cross.step_with_s, 5)),
                )
            ),
            Line(
                f"Cross-DC degradation: {100 * cross.degradation_fraction:.2f}% "
                f"({units.duration(sent)} sent, {units.duration(cross.exposed_s)} exposed per step)",
                "answer",
            ),
        ),
        "cross_dc_impact",
    )


# ---- where the step goes ------------------------------------------------------------------------------------------


def _pipeline(facts: RunFacts) -> Section:
    pipe = facts.pipeline
    chunks = f", {pipe.vpp} chunks each" if pipe.vpp > 1 else ""
    parts: list[Part] = [
        Facts(
            (
                ("schedule", pipe.schedule),
                ("stages", f"{pipe.pp}{chunks}, split {pipe.split.replace('_', ' ')}"),
                ("micro-batches", _whole(pipe.n_micro_batches)),
                ("pipeline time", units.duration(pipe.pipeline_s, 4)),
                ("work of an average stage", units.duration(pipe.work_s, 4)),
                ("imbalance", f"{units.duration(pipe.imbalance_s)}: what the slowest stage works beyond that"),
                ("sends to fill and drain", _whole(pipe.fill_sends)),
            )
        ),
        Line(
            f"Pipeline bubble: {units.duration(pipe.bubble_s)} ({units.percent(pipe.bubble_fraction)} of the pipeline)",
            "answer",
        ),
        Grid(
            "One micro-batch, stage by stage",
            ("stage", "layers", "forward", "backward"),
            tuple(
                (str(row.stage), _whole(row.layers), units.duration(row.forward_s), units.duration(row.backward_s))
                for row in pipe.stages
            ),
            caption="Backward includes what is recomputed.",
        ),
    ]
    return Section("PIPELINE BUBBLE", 1, tuple(parts), "pipeline")


def _block(facts: RunFacts) -> Section:
    """The block most layers have: both sublayers, pass by pass, as shares of the whole block."""
    block = facts.block
    terms = {
        f"{way} {sublayer}: {BLOCK_WORDS.get(name, _label(name, '_s'))}": value
        for sublayer in (block.attention, block.mlp)
        for way, spent in block.sublayers[sublayer].items()
        for name, value in spent.items()
    }
    whole = sum(terms.values())
    return Section(
        "TRANSFORMER BLOCK",
        1,
        (
            Bars(
                f"Components of one block ({block.attention} and {block.mlp}), one micro-batch: "
                f"{units.duration(whole, 4)}",
                _shares(terms, "_s", units.duration, by_size=False),
            ),
        ),
        "block",
    )


BLOCK_WORDS = {"attention_s": "scores and values", "latent_matmul_s": "latent matmul"}


def _iteration(facts: RunFacts) -> Section:
    return Section(
        "ITERATION TIME COMPONENTS",
        1,
        (
            Bars(
                f"One iteration: {units.duration(facts.results.iteration_s, 4)}",
                _shares(facts.step, "_s", lambda value: units.duration(value, 4)),
            ),
        ),
        "iteration",
    )


def _final(facts: RunFacts) -> Section:
    results = facts.results
    rows = [
        ("iteration time", units.duration(results.iteration_s, 5)),
        ("ideal iteration time", f"{units.duration(results.ideal_iteration_s, 5)} at the peak rate"),
        ("tokens per day", f"{units.short_count(results.tokens_per_day)} ({units.count(results.tokens_per_day)})"),
        ("tokens per second and device", units.significant(results.tokens_per_s_per_device, 4)),
    ]
    if results.days is not None:
        rows.append(("token budget", f"{units.days(results.days)} days"))
    if results.cost_usd is not None:
        rows.append(("cost", units.money(results.cost_usd)))
    parts: list[Part] = [Facts(tuple(rows))]
    if results.interval is not None:
        interval = results.interval
        parts.append(
            Line(
                f"Interval: {units.duration(interval.low_s, 4)} to {units.duration(interval.high_s, 4)} "
                f"({100 * interval.coverage_fraction:.0f} % of runs fall inside such an interval)"
            )
        )
    parts += [
        Line(f"Theoretical MFU: {100 * results.mfu:.2f}%", "answer"),
        Line(f"Theoretical HFU: {100 * results.hfu:.2f}%", "answer"),
        Line(f"Convention: {CONVENTIONS.get(results.mfu_convention, results.mfu_convention)}.", "dim"),
        *_warnings(facts),
    ]
    return Section("FINAL RESULTS", 1, tuple(parts), "final")


CONVENTIONS = {
    "full_attention": "all matmuls and the LM head, attention over the whole sequence (full_attention)",
    "causal_attention": "all matmuls and the LM head, attention halved by causality (causal_attention)",
    "six_n": "6 x active parameters, no attention (six_n)",
}


# ---- comparison and sources ---------------------------------------------------------------------------------------


def comparison_section(found: Comparison) -> Section:
    """A run as written and changed, side by side."""
    told = ", ".join(f"{key} = {_said(value)}" for key, value in found.changes.items())
    rows = tuple(_difference_row(row) for row in found.differences)
    parts: list[Part] = [
        Facts((("as written", plan_words(found.before.plan)), ("what if", plan_words(found.after.plan)))),
        Grid(
            "",
            ("section", "quantity", "as written", "what if", "difference", "%"),
            rows,
            frozenset({"section", "quantity"}),
        ),
        Line(
            f"Total Memory Required: {units.gib(found.before.memory.total_bytes, 3)} GiB per device -> "
            f"{units.gib(found.after.memory.total_bytes, 3)} GiB per device"
        ),
        Line(
            f"Theoretical MFU: {100 * found.before.results.mfu:.2f}% -> {100 * found.after.results.mfu:.2f}%",
            "answer",
        ),
    ]
    for label, facts in (("as written", found.before), ("what if", found.after)):
        parts += [Line(f"Note, {label}: {note}.", "dim") for note in facts.notes]
        if facts.refused:
            parts.append(Line(f"WARNING: {label}, the plan is refused: {'; '.join(facts.refused)}.", "warning"))
    if found.before.hardware.devices != found.after.hardware.devices:
        parts.append(
            Line(
                f"Note: {units.count(found.before.hardware.devices)} devices became "
                f"{units.count(found.after.hardware.devices)}; change dp as well to keep their number.",
                "dim",
            )
        )
    return Section(f"WHAT IF {told}", 1, tuple(parts), "what_if")


def _difference_row(row: Difference) -> tuple[str, ...]:
    text = _UNITS[row.unit]
    change = row.after - row.before
    sign = "+" if change > 0 else "-" if change < 0 else ""
    share = f"{100 * change / row.before:+.1f}" if row.before and change else "-" if not row.before else "0.0"
    moved = f"{100 * abs(change):.2f} points" if row.unit == "fraction" else text(abs(change))
    return row.section, row.what, text(row.before), text(row.after), f"{sign}{moved}" if change else "-", share


_UNITS: Mapping[str, Callable[[float], str]] = {
    "bytes": lambda value: f"{units.gib(value, 3)} GiB",
    "s": lambda value: units.duration(value, 4),
    "fraction": lambda value: units.percent(value, 2),
    "count": lambda value: units.count(value) if value == int(value) and value < 1e9 else units.short_count(value),
    "flops_per_s": lambda value: _flops(value) + "/s",
    "usd": units.money,
}


def citation_section(found: Sequence[Citation]) -> Section:
    """Papers and manuals behind the estimate."""
    parts: list[Part] = []
    for one in found:
        parts.append(Line(f"[{one.key}] {one.authors} ({one.year}). {one.title}. {one.url}"))
        parts.append(Line(f"    {', '.join(name.replace('_', ' ') for name in one.equations)}", "dim"))
    return Section("SOURCES", 1, tuple(parts), "sources")


# ---- words --------------------------------------------------------------------------------------------------------


def _shares(
    terms: Mapping[str, float], suffix: str, text: Callable[[float], str], *, by_size: bool = True
) -> tuple[tuple[str, str, float], ...]:
    """Terms that are not zero as (label, value, share of their sum)."""
    total = sum(terms.values())
    shown = [(name, value) for name, value in terms.items() if value]
    if by_size:
        shown.sort(key=lambda item: -item[1])
    return tuple((_label(name, suffix), text(value), value / total if total else 0.0) for name, value in shown)


def _label(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).replace("_", " ")


def _whole(value: float) -> str:
    """A count without digits it does not need."""
    return f"{value:.0f}" if value == round(value) else units.significant(value)


def _times(value: float) -> str:
    return "once" if value == 1 else "never" if value == 0 else f"{_whole(value)} times"


def _rate(bytes_per_s: float) -> str:
    return f"{units.short_count(bytes_per_s)}B/s"


def _flops(value: float) -> str:
    return f"{units.short_count(value)}FLOP"
