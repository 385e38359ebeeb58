"""What a study's report says beyond its plans: more hardware, other scenarios, refusals, where it all comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlcalc.report.memory_words import limit_words
from dlcalc.report.plan_words import plan_words, shared_and_own
from dlcalc.report.sections import Facts, Grid, Line, Part, Section, Verbatim
from dlcalc.report.study_facts import (
    Provenance,
    ScenarioBest,
    Sensitivity,
    StudyFacts,
    WhatIf,
)
from dlcalc.report.study_words import NOTHING, faster, or_dash, times_of
from dlcalc.utils import units

# ---- more hardware ------------------------------------------------------------------------------------------------


def sensitivity_sections(facts: StudyFacts) -> Iterator[Section]:
    """What a tenth more of each quantity would give."""
    found = facts.sensitivity
    if found is None:
        return
    rows = tuple(_what_if(found, row) for row in found.rows)
    header = ("10 % more of", "from", "to", "same plan %", "best plan %", "plans that fit", "best plan")
    parts = (
        Line(f"How much faster a step would be. {_searched(facts, found)}"),
        Grid("", header, rows, frozenset({"10 % more of", "best plan"})),
    )
    yield Section("What 10 % more would give", 1, parts, "sensitivity")


def _searched(facts: StudyFacts, found: Sensitivity) -> str:
    placed = " Without placement." if facts.placed else ""
    if found.is_searched:
        return (
            f"The fastest plan as things are takes {units.duration(found.plan.step_time_s, 4)}. All "
            f"{units.count(found.n_plans)} plans were searched again for each row, in {units.duration(found.seconds)} "
            f"together, so that plans that would fit, or win, count.{placed}"
        )
    return (
        "The space is too large to be searched again in time: only the fastest plan was estimated anew, so more HBM, "
        f"which matters through which plans fit, shows nothing here.{placed}"
    )


def _what_if(found: Sensitivity, row: WhatIf) -> tuple[str, ...]:
    same = faster(found.plan.step_time_s, row.same_plan_step_s)
    cells = (row.what, f"{row.before:,.4g} {row.unit}", f"{row.after:,.4g} {row.unit}", f"{100 * same:.2f}")
    if row.best is None:
        return (*cells, NOTHING, NOTHING, NOTHING)
    best = faster(found.plan.step_time_s, row.best.step_time_s)
    words = "the same" if row.is_same_plan else plan_words(row.best.plan)
    return (*cells, f"{100 * best:.2f}", units.count(row.n_fit or 0), words)


# ---- the other scenarios ------------------------------------------------------------------------------------------


def scenario_sections(facts: StudyFacts, *, is_page: bool) -> Iterator[Section]:
    """All scenarios of the study beside one another; on a page with what their charts show."""
    shown = facts.scenarios
    if len(shown) < 2:
        return
    parts: tuple[Part, ...] = (_scenario_grid(shown),)
    if facts.placed:
        parts = (*parts, Line("Without placement.", "dim"))
    n_counts = len({one.devices for one in shown})
    n_machines = len({one.hardware for one in shown})
    heading = "Scaling" if n_counts > 1 else "All scenarios"
    yield Section(heading, 1, parts, "scaling")
    if not is_page:
        return
    if n_counts > 1:
        yield Section("Tokens per second", 2, (), "scaling_tokens")
        yield Section("MFU", 2, (), "scaling_mfu")
        if any(one.days is not None for one in shown):
            yield Section("Days for the token budget", 2, (), "scaling_days")
        if any(one.cost_usd is not None for one in shown):
            yield Section("Cost of the token budget", 2, (), "scaling_cost")
    if n_machines > 1:
        text = "The best plan of each machine at each device count; bars end at the estimate, lines span the interval."
        yield Section("Machines compared", 1, (Line(text),), "machines")


def _scenario_grid(shown: Sequence[ScenarioBest]) -> Grid:
    plans = [one.plan for one in shown if one.plan is not None]
    shared, own = shared_and_own(plans) if plans else ("", [])
    words = iter(own)
    has_days = any(one.days is not None for one in shown)
    has_cost = any(one.cost_usd is not None for one in shown)
    heading, times = times_of([one.step_time_s for one in shown])
    header = ("scenario", "best plan", heading, "MFU %", "tokens/s", *(["days"] * has_days), *(["cost"] * has_cost))
    rows = tuple(
        (
            one.name,
            next(words) if one.plan is not None else "no plan fits",
            step,
            or_dash(one.mfu, lambda value: f"{100 * value:.1f}"),
            or_dash(one.tokens_per_s, units.short_count),
            *([or_dash(one.days, units.days)] * has_days),
            *([or_dash(one.cost_usd, units.money)] * has_cost),
        )
        for one, step in zip(shown, times, strict=True)
    )
    caption = f"Best plans all with {shared}." if shared else ""
    return Grid("", header, rows, frozenset({"scenario", "best plan"}), caption)


# ---- what was refused, and where it all comes from ----------------------------------------------------------------


def refusal_section(facts: StudyFacts) -> Section:
    """How many plans were refused, and why."""
    found = facts.refusals
    several = " A plan may be refused for several reasons." if sum(found.reasons.values()) > found.n_refused else ""
    text = f"{units.count(found.n_refused)} of {units.count(found.n_plans)} plans were refused.{several}"
    rows = tuple(
        (units.count(number), f"{100 * number / max(found.n_plans, 1):.1f}", reason.replace("_", " "))
        for reason, number in found.reasons.items()
    )
    parts: tuple[Part, ...] = (Line(text),)
    if rows:
        parts = (*parts, Grid("", ("plans", "%", "why"), rows, frozenset({"why"})))
    return Section("Refused", 1, parts, "refusals")


def misses(facts: StudyFacts) -> Iterator[Part]:
    """Where nothing fits: the plans that need the least memory."""
    misses = facts.refusals.nearest_misses
    if not misses:
        return
    shared, own = shared_and_own(misses)
    rows = tuple(
        (words, units.gib(miss["memory_bytes"]), units.gib(max(miss["over_bytes"], 0.0)))
        for words, miss in zip(own, misses, strict=True)
    )
    caption = limit_words(facts.scenario.usable_bytes, facts.scenario.limit_bytes) + (
        f"; all with {shared}" if shared else ""
    )
    yield Grid("Nearest misses", ("plan", "needs GiB", "over GiB"), rows, frozenset({"plan"}), caption)


def provenance_sections(found: Provenance, *, is_page: bool) -> Iterator[Section]:
    """What made the result, with which numbers from where."""
    settings = ", ".join(f"{key} {value}" for key, value in found.settings.items())
    rows = [
        ("result", f"{found.result} ({found.status})"),
        ("searched by", f"dlcalc {found.result_version}" + (f"; {settings}" if settings else "")),
        ("reported by", f"dlcalc {found.report_version}"),
        ("space file", f"SHA-256 {found.space_sha256}"),
        ("calibration", f"{'measured' if found.is_measured else 'not measured on this device'}: {found.calibration}"),
        ("intervals", found.uncertainty),
        ("framework", found.framework),
    ]
    if not is_page:
        yield Section("Provenance", 1, (Facts(tuple(rows)),), "provenance")
        return
    yield Section("Provenance", 1, (Facts(tuple(rows)),), "provenance")
    sources = tuple((one.what, one.value, one.source) for one in found.hardware)
    yield Section(
        "Hardware", 2, (Grid("", ("what", "value", "source"), sources, frozenset({"what", "source"})),), "hardware"
    )
    if found.citations:
        papers = tuple(Line(f"{one.authors} ({one.year}). {one.title}. {one.url}") for one in found.citations)
        yield Section("Equations", 2, papers, "citations")
    yield Section("Space file", 2, (Verbatim(found.space_text),), "space")
