"""A study in words and tables: the same sections for a terminal and, beside their charts, for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dlcalc.report.memory_words import limit_words, need_of_usable
from dlcalc.report.plan_words import plan_words, shared_and_own
from dlcalc.report.sections import Bars, Facts, Grid, Line, Part, Section
from dlcalc.report.study_facts import (
    MeshCell,
    PlanFacts,
    PlanPoint,
    ScenarioFacts,
    StudyFacts,
    TermDifference,
    Why,
)
from dlcalc.report.study_report_more import (
    misses,
    provenance_sections,
    refusal_section,
    scenario_sections,
    sensitivity_sections,
)
from dlcalc.report.study_words import NOTHING, label, signed, times_of
from dlcalc.utils import units
from dlcalc.utils.units import SECONDS_PER_DAY

FRONT_ROWS = 12
TERMS_NAMED = 3
SMALL_DIFFERENCE = 0.05
"""Of the largest difference: smaller ones are in the table alone."""
UNCHANGED = 5e-5


def sections(facts: StudyFacts, *, is_page: bool = False) -> tuple[Section, ...]:
    """What is said, the answer first; a page also says what its charts show and where every number comes from."""
    found = [_answer(facts), *_why(facts)]
    if facts.cloud is not None:
        found += [_pareto(facts, is_page=is_page), _heat(facts)]
    if is_page and facts.mesh_best:
        found.append(_parallel(facts))
    if facts.top:
        found += _top(facts, is_page=is_page)
    if is_page and facts.plan is not None:
        found.append(_pipeline(facts))
    found += [*sensitivity_sections(facts), *scenario_sections(facts, is_page=is_page), refusal_section(facts)]
    return (*found, *provenance_sections(facts.provenance, is_page=is_page))


# ---- the answer ---------------------------------------------------------------------------------------------------


def title(facts: StudyFacts) -> str:
    """The study and its scenario."""
    return f"{facts.study}: {facts.scenario.name}"


def answer_cards(facts: StudyFacts) -> list[tuple[str, str]]:
    """Labels and numbers of the plan, the most wanted first."""
    plan, scenario = facts.plan, facts.scenario
    if plan is None:
        return [("plans", units.count(scenario.n_plans)), ("fit", "none")]
    low, high = units.duration(plan.step_time_low_s), units.duration(plan.step_time_high_s)
    cards = [
        ("MFU", units.percent(plan.mfu)),
        ("step", units.duration(plan.step_time_s, 4)),
        (f"{100 * facts.coverage:.0f} % sure", f"{low} to {high}"),
        ("tokens per day", units.short_count(_tokens_per_s(plan, scenario) * SECONDS_PER_DAY)),
        ("memory", need_of_usable(plan.memory_bytes, scenario.usable_bytes)),
    ]
    if plan.days is not None:
        cards.append(("token budget", f"{units.significant(plan.days)} days"))
    if plan.cost_usd is not None:
        cards.append(("cost", units.money(plan.cost_usd)))
    return cards


def _tokens_per_s(plan: PlanFacts, scenario: ScenarioFacts) -> float:
    return plan.tokens_per_s_per_device * scenario.devices


def plan_line(facts: StudyFacts) -> str:
    """The plan in words, with what its rank is."""
    if facts.plan is None:
        return "No plan fits."
    rank = facts.plan.rank
    head = "Best plan" if rank == 1 else f"Plan of rank {rank}"
    by = " by memory" if facts.provenance.settings.get("sort") == "memory" else ""
    return f"{head}{by}{' as placed' if facts.placed else ''}: {plan_words(facts.plan.plan)}"


def _answer(facts: StudyFacts) -> Section:
    scenario = facts.scenario
    parts: list[Part] = [Line(plan_line(facts), "answer" if facts.plan else "warning")]
    if facts.plan is None:
        parts += [Line(f"All {units.count(scenario.n_plans)} plans were refused."), *misses(facts)]
    parts.append(Facts(tuple(_answer_rows(facts))))
    if facts.why is not None:
        parts.append(Line(why_words(facts.why, facts.plan)))
    parts += [Line(text) for text in _how_sure(facts)]
    parts += [Line(f"Note: {note}.", "dim") for note in facts.notes]
    return Section("Answer", 1, tuple(parts), "answer")


def _answer_rows(facts: StudyFacts) -> Iterator[tuple[str, str]]:
    plan, scenario = facts.plan, facts.scenario
    yield (
        "question",
        (
            f"{scenario.model} on {units.count(scenario.devices)} {scenario.hardware} "
            f"({scenario.hardware_description}), "
            f"{scenario.precision}, {scenario.framework}, {units.count(scenario.global_batch)} sequences of "
            f"{units.count(scenario.seq_len)} tokens"
        ),
    )
    if plan is not None:
        yield (
            "step time",
            (
                f"{units.duration(plan.step_time_s, 4)}, {100 * facts.coverage:.0f} % sure: "
                f"{units.duration(plan.step_time_low_s)} to {units.duration(plan.step_time_high_s)}"
            ),
        )
        convention = scenario.mfu_convention.replace("_", " ")
        yield "MFU", f"{units.percent(plan.mfu)} ({convention}); HFU {units.percent(plan.hfu)}"
        yield (
            "tokens",
            (
                f"{units.significant(plan.tokens_per_s_per_device, 4)} per second and device, "
                f"{units.short_count(_tokens_per_s(plan, scenario) * SECONDS_PER_DAY)} per day"
            ),
        )
        need = need_of_usable(plan.memory_bytes, scenario.usable_bytes)
        free = f"{units.gib(plan.headroom_bytes)} free"
        yield "memory", f"{need}, {free}; {limit_words(scenario.usable_bytes, scenario.limit_bytes)}"
        if plan.days is not None and scenario.token_budget:
            yield "budget", _budget_words(plan, scenario, facts.coverage)
    kept = "" if facts.cloud is None else f"; {units.count(facts.cloud.n_rows)} rows kept"
    yield "plans", f"{units.count(scenario.n_plans)} searched, {units.count(scenario.n_fit)} fit{kept}"
    if facts.placed:
        yield "placed on", facts.placed


def _budget_words(plan: PlanFacts, scenario: ScenarioFacts, coverage: float) -> str:
    days = plan.days or 0.0
    shorter, longer = plan.step_time_low_s / plan.step_time_s, plan.step_time_high_s / plan.step_time_s
    text = (
        f"{units.short_count(scenario.token_budget or 0.0)} tokens in {units.significant(days)} days "
        f"({100 * coverage:.0f} % sure: {units.significant(days * shorter)} to {units.significant(days * longer)})"
    )
    if plan.cost_usd is None:
        return text
    price = f"at ${scenario.usd_per_device_hour:.2f} per device-hour"
    between = f"{units.money(plan.cost_usd * shorter)} to {units.money(plan.cost_usd * longer)}"
    return f"{text}, {units.money(plan.cost_usd)} ({between}) {price}"


def _how_sure(facts: StudyFacts) -> Iterator[str]:
    others = facts.n_within_2_percent - 1
    if facts.placed:
        yield "Placement apart, and so in what follows of all plans, meshes and scenarios:"
    if others > 0:
        verb = "plan is" if others == 1 else "plans are"
        yield f"{units.count(others)} more {verb} within 2 % of the best."
    if facts.n_not_told_apart > 1:
        text = f"{units.count(facts.n_not_told_apart)} plans cannot be told apart from the best by these estimates."
        if len(facts.worth_measuring) > 1:
            text += f" Worth measuring: {'; '.join(plan_words(plan) for plan in facts.worth_measuring)}."
        yield text


def why_words(why: Why, plan: PlanFacts | None) -> str:
    """What the plan trades, in two sentences with the numbers of both estimates."""
    assert plan is not None
    _, (own, others) = shared_and_own([plan.plan, why.other.plan])
    own, others = " ".join(own.split()), " ".join(others.split())
    change = why.other.step_time_s / plan.step_time_s - 1.0
    pace = (
        "as fast" if abs(change) < UNCHANGED else f"{units.percent(abs(change))} {'slower' if change > 0 else 'faster'}"
    )
    what = "the best plan of another mesh" if why.is_runner_up else "the best plan"
    step = units.duration(why.other.step_time_s, 4)
    head = f"Why: {what} runs {others} where this one runs {own}, and is {pace} ({step})."
    less, more = (_named(why.terms, sign) for sign in (-1.0, 1.0))
    trades = [f"{word} on {_listed(terms)}" for terms, word in ((less, "less"), (more, "more")) if terms]
    spent = f" This plan spends {'; '.join(trades)}." if trades else ""
    memory = plan.memory_bytes - why.other.memory_bytes
    word = "more" if memory > 0 else "less"
    return f"{head}{spent} It takes {units.gib(abs(memory))} GiB {word} memory."


def _named(terms: Sequence[TermDifference], sign: float) -> list[TermDifference]:
    """The terms of one sign that are worth a word."""
    largest = max((abs(term.more_s) for term in terms), default=0.0)
    found = [term for term in terms if term.more_s * sign > SMALL_DIFFERENCE * largest]
    return found[:TERMS_NAMED]


def _listed(terms: Sequence[TermDifference]) -> str:
    said = [f"{label(term.term)} ({units.duration(abs(term.more_s))})" for term in terms]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _why(facts: StudyFacts) -> Iterator[Section]:
    if facts.why is None or facts.plan is None:
        return
    other = "runner-up" if facts.why.is_runner_up else "best"
    shown = [term for term in facts.why.terms if max(term.plan_s, term.other_s) > 0]
    step = TermDifference("whole step", facts.plan.step_time_s, facts.why.other.step_time_s)
    rows = tuple(
        (
            label(term.term),
            units.duration(term.plan_s, 4),
            units.duration(term.other_s, 4),
            signed(term.more_s, units.duration),
        )
        for term in (*shown, step)
    )
    caption = f"{other}: {plan_words(facts.why.other.plan)}"
    table = Grid("", ("term", "this plan", other, "difference"), rows, frozenset({"term"}), caption)
    yield Section("Why this plan", 2, (table,), "why")


# ---- all plans ----------------------------------------------------------------------------------------------------


def _pareto(facts: StudyFacts, *, is_page: bool) -> Section:
    cloud = facts.cloud
    assert cloud is not None
    front = _spread(cloud.front, FRONT_ROWS)
    shared, own = shared_and_own([point.plan for point in front])
    heading, times = times_of([point.step_time_s for point in front])
    rows = tuple(
        (words, units.gib(point.memory_bytes), f"{100 * point.mfu:.1f}", step)
        for words, point, step in zip(own, front, times, strict=True)
    )
    left_out = len(cloud.front) - len(front)
    caption = f"{units.count(left_out)} plans of the front between these are left out here. " if left_out else ""
    caption += f"All with {shared}." if shared else ""
    parts: list[Part] = [
        Line(
            f"No other plan beats these {units.count(len(cloud.front))} in both memory and MFU, of all "
            f"{units.count(cloud.n_fit)} rows that fit."
        )
    ]
    if is_page and cloud.density is not None:
        beyond = f" {units.count(cloud.n_beyond)} rows lie beyond the right edge." if cloud.n_beyond else ""
        parts.append(
            Line(
                f"In the chart the front is exact; all {units.count(cloud.n_rows)} rows are counted in cells of "
                f"{units.gib(cloud.density.memory_step_bytes, 2)} GiB by {100 * cloud.density.mfu_step:.2f} % MFU "
                f"instead of being drawn one by one.{beyond}",
                "dim",
            )
        )
    header = ("plan", "memory GiB", "MFU %", heading)
    return Section("Memory against MFU", 1, (*parts, Grid("", header, rows, frozenset({"plan"}), caption)), "pareto")


def _spread(points: Sequence[PlanPoint], most: int) -> list[PlanPoint]:
    """At most so many, evenly from first to last."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _heat(facts: StudyFacts) -> Section:
    pps = sorted({cell.pp for cell in facts.heat})
    by_place = {(cell.tp, cell.pp): cell for cell in facts.heat}
    rows = tuple(
        (f"tp {tp}", *(_cell(by_place.get((tp, pp))) for pp in pps)) for tp in sorted({cell.tp for cell in facts.heat})
    )
    n_rows = sum(cell.n_rows for cell in facts.heat)
    parts = (
        Line(f"The best MFU (%) over all other knobs, of all {units.count(n_rows)} rows that fit. Empty: no row."),
        Grid("", ("", *(f"pp {pp}" for pp in pps)), rows, frozenset({""})),
    )
    return Section("Tensor by pipeline parallelism", 1, parts, "heat")


def _cell(cell: MeshCell | None) -> str:
    return NOTHING if cell is None else f"{100 * cell.best.mfu:.1f}"


def _parallel(facts: StudyFacts) -> Section:
    n_shown = len(facts.mesh_best)
    which = "every mesh" if n_shown == facts.n_meshes else f"the {n_shown} best of {units.count(facts.n_meshes)} meshes"
    text = (
        f"One line is one plan: the fastest of {which}. Darker and thicker is faster; the thick dashed line is the "
        "fastest of all. Hover over a line to follow it; click a name below to hide its lines. Knobs without an axis "
        "are the same in all."
    )
    return Section("Parallel coordinates", 1, (Line(text),), "parallel")


# ---- the best plans -----------------------------------------------------------------------------------------------


def _top(facts: StudyFacts, *, is_page: bool) -> Iterator[Section]:
    shared, own = shared_and_own([plan.plan for plan in facts.top])
    has_days = all(plan.days is not None for plan in facts.top)
    has_cost = all(plan.cost_usd is not None for plan in facts.top)
    heading, times = times_of([plan.step_time_s for plan in facts.top])
    header = ("#", "plan", heading, "MFU %", "memory GiB", *(["days"] * has_days), *(["cost"] * has_cost))
    rows = tuple(
        (
            str(plan.rank),
            words,
            step,
            f"{100 * plan.mfu:.1f}",
            units.gib(plan.memory_bytes),
            *([units.days(plan.days or 0.0)] * has_days),
            *([units.money(plan.cost_usd or 0.0)] * has_cost),
        )
        for plan, words, step in zip(facts.top, own, times, strict=True)
    )
    caption = "The best of all, and the best of further meshes." + (f" All with {shared}." if shared else "")
    yield Section("Best plans", 1, (Grid("", header, rows, frozenset({"plan"}), caption),), "top")
    plan = facts.plan
    assert plan is not None
    time_parts: list[Part] = [_terms(f"Plan #{plan.rank}", plan.time_s, lambda value: units.duration(value, 4))]
    memory_parts: list[Part] = [
        _terms(f"Plan #{plan.rank}", plan.memory_terms_bytes, lambda value: f"{units.gib(value, 2)} GiB")
    ]
    if is_page:
        time_parts.append(_term_grid(facts.top, "seconds", lambda one: one.time_s, 1.0))
        memory_parts.append(_term_grid(facts.top, "GiB", lambda one: one.memory_terms_bytes, units.GIB))
    yield Section("Where the step goes", 2, tuple(time_parts), "step_terms")
    yield Section("Where the memory goes", 2, tuple(memory_parts), "memory_terms")


def _terms(heading: str, terms: Mapping[str, float], text: Callable[[float], str]) -> Bars:
    total = sum(terms.values())
    ordered = sorted(terms.items(), key=lambda item: -item[1])
    return Bars(heading, tuple((label(name), text(value), value / total) for name, value in ordered))


def terms_by_size(plans: Sequence[PlanFacts], terms: Callable[[PlanFacts], Mapping[str, float]]) -> list[str]:
    """Every term of any of ``plans``, the largest first."""
    sums: dict[str, float] = {}
    for plan in plans:
        for name, value in terms(plan).items():
            sums[name] = sums.get(name, 0.0) + value
    return sorted(sums, key=lambda name: -sums[name])


def _term_grid(
    plans: Sequence[PlanFacts], unit: str, terms: Callable[[PlanFacts], Mapping[str, float]], scale: float
) -> Grid:
    """The numbers of the stacked bars: a column per plan."""
    rows = tuple(
        (label(name), *(units.significant(terms(plan).get(name, 0.0) / scale) for plan in plans))
        for name in terms_by_size(plans, terms)
    )
    return Grid(f"All of them, {unit}", ("term", *(f"#{plan.rank}" for plan in plans)), rows, frozenset({"term"}))


def _pipeline(facts: StudyFacts) -> Section:
    assert facts.plan is not None
    plan = facts.plan.plan
    stages = f"{plan['pp']} stages" if plan["pp"] > 1 else "one stage"
    chunks = f", {plan['vpp']} chunks each" if plan["vpp"] > 1 else ""
    text = f"One step of plan #{facts.plan.rank}: {stages}{chunks}"
    text += f", schedule {plan['schedule']}." if plan["pp"] > 1 else ", no pipeline."
    return Section("Pipeline", 1, (Line(text),), "pipeline")
