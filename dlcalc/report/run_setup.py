"""What was asked, of one run: its configuration, machine, batch and model."""

from __future__ import annotations

from collections.abc import Sequence

from dlcalc.report.plan_words import plan_words
from dlcalc.report.run_facts import RunFacts
from dlcalc.report.run_words import flops, rate, refusal_lines, said, whole
from dlcalc.report.sections import Facts, Line, Part, Section
from dlcalc.utils import units

IGNORED_SHOWN = 12
"""Options that no estimate reads, on a terminal without ``-v``."""


def configuration_section(facts: RunFacts, *, verbose: bool) -> Section:
    """What was written, what was made of it, and what was assumed."""
    rows = [(str(key), said(value)) for key, value in facts.configuration.items()]
    rows.append(("resolved plan", plan_words(facts.plan)))
    parts: list[Part] = [Facts(tuple(rows))]
    parts += [Line(f"Note: {note}.", "dim") for note in facts.notes]
    if facts.ignored:
        parts.append(Line(f"Note: no estimate reads {_listed(facts.ignored, verbose=verbose)}.", "dim"))
    parts += refusal_lines(facts)
    return Section("CONFIGURATION", 1, tuple(parts), "configuration")


def _listed(names: Sequence[str], *, verbose: bool) -> str:
    more = 0 if verbose else max(len(names) - IGNORED_SHOWN, 0)
    return ", ".join(names[: len(names) - more]) + (f" and {more} more, which -v lists" if more else "")


def hardware_section(facts: RunFacts) -> Section:
    """The machine."""
    machine = facts.hardware
    of_more = f" of {machine.node_devices}" if machine.devices_per_node < machine.node_devices else ""
    return Section(
        "Hardware",
        2,
        (
            Facts(
                (
                    ("node type", f"{machine.name}: {machine.description}"),
                    ("devices", f"{units.count(machine.devices)}, {machine.devices_per_node}{of_more} to a node"),
                    ("nodes", units.significant(machine.nodes) if machine.nodes % 1 else units.count(machine.nodes)),
                    ("device memory", f"{units.gib(machine.hbm_bytes, 2)} GiB at {rate(machine.hbm_bytes_per_s)}"),
                    ("peak rate", f"{flops(machine.peak_flops_per_s)}/s in {facts.data.precision}"),
                    ("link inside a node", f"{rate(machine.node_bytes_per_s)} per device and direction"),
                    (
                        "link between nodes",
                        f"{rate(machine.fabric_bytes_per_s)} per device and direction, "
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


def data_section(facts: RunFacts) -> Section:
    """The batch and how it is cut."""
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
                        f"{whole(data.micro_batches)} to a step and replica",
                    ),
                    ("precision", data.precision),
                    ("framework", data.framework),
                )
            ),
        ),
        "data",
    )


def model_section(facts: RunFacts) -> Section:
    """What the model is made of."""
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
            ("expert mesh", f"ep {mesh['ep']} x etp {mesh['etp']} x replicas {whole(mesh['expert_dp'])}"),
        ]
    return Section("Model Architecture", 2, (Facts(tuple(rows)),), "model")
