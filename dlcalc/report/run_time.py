"""Where the step of one run goes: pipeline, block, iteration, and what comes out."""

from __future__ import annotations

from dlcalc.report.run_facts import RunFacts
from dlcalc.report.run_words import label, refusal_lines, shares, whole
from dlcalc.report.sections import Bars, Facts, Grid, Line, Part, Section
from dlcalc.utils import units


def pipeline_section(facts: RunFacts) -> Section:
    """Stages, chunks, bubble."""
    pipe = facts.pipeline
    chunks = f", {pipe.vpp} chunks each" if pipe.vpp > 1 else ""
    parts: list[Part] = [
        Facts(
            (
                ("schedule", pipe.schedule),
                ("stages", f"{pipe.pp}{chunks}, split {pipe.split.replace('_', ' ')}"),
                ("micro-batches", whole(pipe.n_micro_batches)),
                ("pipeline time", units.duration(pipe.pipeline_s, 4)),
                ("work of an average stage", units.duration(pipe.work_s, 4)),
                ("imbalance", f"{units.duration(pipe.imbalance_s)}: what the slowest stage works beyond that"),
                ("sends to fill and drain", whole(pipe.fill_sends)),
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
                (str(row.stage), whole(row.layers), units.duration(row.forward_s), units.duration(row.backward_s))
                for row in pipe.stages
            ),
            caption="Backward includes what is recomputed.",
        ),
    ]
    return Section("PIPELINE BUBBLE", 1, tuple(parts), "pipeline")


def block_section(facts: RunFacts) -> Section:
    """The block most layers have: both sublayers, pass by pass, as shares of the whole block."""
    block = facts.block
    terms = {
        f"{way} {sublayer}: {BLOCK_WORDS.get(name, label(name, '_s'))}": value
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
                shares(terms, "_s", units.duration, by_size=False),
            ),
        ),
        "block",
    )


BLOCK_WORDS = {"attention_s": "scores and values", "latent_matmul_s": "latent matmul"}


def iteration_section(facts: RunFacts) -> Section:
    """Every term of the step."""
    return Section(
        "ITERATION TIME COMPONENTS",
        1,
        (
            Bars(
                f"One iteration: {units.duration(facts.results.iteration_s, 4)}",
                shares(facts.step, "_s", lambda value: units.duration(value, 4)),
            ),
        ),
        "iteration",
    )


def final_section(facts: RunFacts) -> Section:
    """Step time, MFU, tokens, days and cost."""
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
        *refusal_lines(facts),
    ]
    return Section("FINAL RESULTS", 1, tuple(parts), "final")


CONVENTIONS = {
    "full_attention": "all matmuls and the LM head, attention over the whole sequence (full_attention)",
    "causal_attention": "all matmuls and the LM head, attention halved by causality (causal_attention)",
    "six_n": "6 x active parameters, no attention (six_n)",
}
