"""What one run sends: every exchange of every parallel axis, and between data centres."""

from __future__ import annotations

from collections.abc import Iterator

from dlcalc.costmodel.anatomy.traffic import AxisFacts
from dlcalc.costmodel.cross_dc import CrossDcFacts
from dlcalc.report.run_facts import RunFacts
from dlcalc.report.run_words import rate, times, whole
from dlcalc.report.sections import Facts, Grid, Line, Section
from dlcalc.utils import units

AXIS_NAMES = {
    "TP": "Tensor parallel (TP)",
    "CP": "Context parallel (CP)",
    "EP": "Expert parallel (EP)",
    "PP": "Pipeline parallel (PP)",
    "DP": "Data parallel (DP)",
}


def communication_sections(facts: RunFacts) -> Iterator[Section]:
    """All exchanges over each axis, then one section per axis; and what crosses data centres."""
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
            f"{call.link}, {rate(call.link_bytes_per_s)}",
            units.duration(call.latency_s),
            units.duration(call.bandwidth_s),
            whole(call.calls_per_step),
            units.duration(call.sent_s),
        )
        for call in axis.collectives
    ]
    total = (
        f"{axis.axis}: {units.duration(axis.sent_s)} sent, {units.duration(axis.exposed_s)} exposed, "
        f"{units.duration(axis.hidden_s)} hidden per step"
    )
    if axis.not_sent_s:
        spared = units.duration(axis.not_sent_s)
        total += f"; {spared} not sent, as a token goes to a node or device once for all of its experts"
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
        return whole(n_ranks)
    return f"{whole(n_ranks)}, {whole(ranks_per_node)} a node"


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
                        f"{units.size(cross.gradient_bytes)} of the model, {times(cross.reductions_per_step)} a step",
                    ),
                    (
                        "weights",
                        f"{units.size(cross.weight_bytes)} of the model, {times(cross.gathers_per_step)} a step",
                    ),
                    ("buckets", whole(cross.n_buckets)),
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
