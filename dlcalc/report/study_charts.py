"""The charts of a study, as Plotly takes them, by the key of the section that each stands in.

Everything is told apart without colour, too: by pattern, dash, symbol, brightness or a label; and every number is in a
table beside its chart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from dlcalc.report.page.charts import DASHES, PALETTE, SYMBOLS, TEXT, TOP_PX, bar, labelled, layout, pattern
from dlcalc.report.page.shell import Chart
from dlcalc.report.plan_words import plan_words
from dlcalc.report.study_facts import Cloud, Density, PlanFacts, PlanPoint, ScenarioBest, StudyFacts, WhatIf
from dlcalc.report.study_report import terms_by_size
from dlcalc.report.study_words import faster, label
from dlcalc.utils import units
from dlcalc.utils.units import GIB

DENSITY_SCALE = [[0.0, "#d9e4ee"], [1.0, "#1f4e79"]]
HOVER_WIDTH = 46
MOST_TERMS_SHOWN = 10


def charts_of(facts: StudyFacts) -> Iterator[tuple[str, Chart]]:
    """Charts by the key of their section; the pipeline is ``study_timeline``'s."""
    if facts.cloud is not None:
        yield "pareto", _pareto(facts, facts.cloud)
    if facts.heat:
        yield "heat", _heat(facts)
    if facts.top:
        yield "step_terms", _stacked(facts.top, lambda one: one.time_s, 1.0, "s", "seconds per step")
        memory = _stacked(facts.top, lambda one: one.memory_terms_bytes, GIB, "GiB", "GiB on the fullest device")
        yield "memory_terms", _with_line(memory, facts.scenario.limit_bytes / GIB)
    if facts.sensitivity is not None:
        yield "sensitivity", _sensitivity(facts)
    if len(facts.scenarios) > 1:
        yield from _scaling(facts.scenarios)
        yield "machines", _machines(facts.scenarios)
    if facts.refusals.reasons:
        yield "refusals", _refusals(facts)


def hover_words(plan: Mapping[str, Any]) -> str:
    """A plan in lines that fit a label."""
    return "<br>".join(wrap(plan_words(plan), HOVER_WIDTH, break_long_words=False, break_on_hyphens=False))


def point_words(point: PlanPoint) -> str:
    """A plan and what comes out of it."""
    return (
        f"{hover_words(point.plan)}<br>{units.duration(point.step_time_s, 4)}, {units.percent(point.mfu)} MFU, "
        f"{units.gib(point.memory_bytes)} GiB"
    )


# ---- all plans ----------------------------------------------------------------------------------------------------


def _pareto(facts: StudyFacts, cloud: Cloud) -> Chart:
    """Memory against MFU: all rows, the front, the plan."""
    plan = facts.plan
    assert plan is not None
    traces = [_density(cloud.density)] if cloud.density is not None else [_points(cloud.points)]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "no plan beats these in both",
            "x": [point.memory_bytes / GIB for point in cloud.front],
            "y": [100 * point.mfu for point in cloud.front],
            "text": [point_words(point) for point in cloud.front],
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": PALETTE[5], "width": 1.5, "shape": "hv"},
            "marker": {"color": PALETTE[5], "size": 7, "symbol": "diamond"},
        }
    )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": f"plan #{plan.rank}",
            "x": [plan.memory_bytes / GIB],
            "y": [100 * plan.mfu],
            "text": [f"#{plan.rank}"],
            "textposition": "top center",
            "hovertext": [hover_words(plan.plan)],
            "hovertemplate": "%{hovertext}<br>%{y:.1f} % MFU, %{x:.1f} GiB<extra></extra>",
            "marker": {"color": TEXT, "size": 15, "symbol": "star"},
        }
    )
    frame = labelled("MFU against the memory of the fullest device", 460, "GiB per device", "MFU %")
    frame["hovermode"] = "closest"
    chart = {"data": traces, "layout": frame}
    return _with_line(chart, facts.scenario.limit_bytes / GIB)


def _points(points: Sequence[PlanPoint]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "plans",
        "x": [point.memory_bytes / GIB for point in points],
        "y": [100 * point.mfu for point in points],
        "text": [point_words(point) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": PALETTE[4], "size": 5, "opacity": 0.55},
    }


def _density(density: Density) -> dict[str, Any]:
    """Cells by how many plans they hold; the brightness goes by the logarithm."""
    n_columns = len(density.counts[0])
    return {
        "type": "heatmap",
        "name": "plans",
        "x": [(column + 0.5) * density.memory_step_bytes / GIB for column in range(n_columns)],
        "y": [(row + 0.5) * 100 * density.mfu_step for row in range(len(density.counts))],
        "z": [[round(math.log10(count), 3) if count else None for count in row] for row in density.counts],
        "customdata": [list(row) for row in density.counts],
        "hoverongaps": False,
        "hovertemplate": "%{customdata:,} plans<br>about %{x:.1f} GiB, %{y:.1f} % MFU<extra></extra>",
        "colorscale": DENSITY_SCALE,
        "colorbar": _colour_bar("plans", [0, 1, 2, 3, 4, 5], ["1", "10", "100", "1 k", "10 k", "100 k"]),
        "showlegend": False,
    }


def _colour_bar(title: str, values: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "top", "font": {"size": 11}},
        "thickness": 10,
        "len": 0.8,
        "tickvals": list(values),
        "ticktext": list(texts),
        "outlinewidth": 0,
    }


def _with_line(chart: Chart, gib: float) -> Chart:
    """A dashed line where a plan no longer fits."""
    frame = dict(chart["layout"])
    line = {"type": "line", "x0": gib, "x1": gib, "y0": 0, "y1": 1, "yref": "paper"}
    frame["margin"] = {**frame["margin"], "t": TOP_PX + 16}
    frame["shapes"] = [*frame.get("shapes", ()), {**line, "line": {"dash": "dash", "width": 2, "color": "#888"}}]
    note = {"x": gib, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "right", "showarrow": False}
    frame["annotations"] = [*frame.get("annotations", ()), {**note, "text": f"limit {gib:.1f} GiB"}]
    return {**chart, "layout": frame}


def _heat(facts: StudyFacts) -> Chart:
    """The best MFU of every tp and pp."""
    tps, pps = sorted({cell.tp for cell in facts.heat}), sorted({cell.pp for cell in facts.heat})
    by_place = {(cell.tp, cell.pp): cell for cell in facts.heat}
    grid = [[by_place.get((tp, pp)) for pp in pps] for tp in tps]
    trace = {
        "type": "heatmap",
        "x": [f"pp {pp}" for pp in pps],
        "y": [f"tp {tp}" for tp in tps],
        "z": [[cell and 100 * cell.best.mfu for cell in row] for row in grid],
        "text": [[f"{100 * cell.best.mfu:.1f}" if cell else "" for cell in row] for row in grid],
        "texttemplate": "%{text}",
        "customdata": [
            [f"{point_words(cell.best)}<br>best of {units.count(cell.n_rows)} plans" if cell else "" for cell in row]
            for row in grid
        ],
        "hovertemplate": "%{customdata}<extra>%{y}, %{x}</extra>",
        "hoverongaps": False,
        "colorscale": "Cividis",
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": "MFU %", "side": "top", "font": {"size": 11}},
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
    frame = layout("Best MFU (%) over all other knobs", 130 + 42 * len(tps))
    frame["xaxis"] = {"type": "category", "automargin": True, "showgrid": False}
    frame["yaxis"] = {"type": "category", "automargin": True, "showgrid": False, "ticksuffix": " "}
    frame["yaxis"]["autorange"] = "reversed"
    return {"data": [trace], "layout": frame}


# ---- the best plans -----------------------------------------------------------------------------------------------


def _stacked(
    plans: Sequence[PlanFacts], terms: Callable[[PlanFacts], Mapping[str, float]], scale: float, unit: str, title: str
) -> Chart:
    """One bar per plan, its terms end to end; the smallest terms of many are one."""
    names = terms_by_size(plans, terms)
    shown = names[:MOST_TERMS_SHOWN] if len(names) > MOST_TERMS_SHOWN + 1 else names
    rest = names[len(shown) :]
    categories = [f"#{plan.rank}" for plan in plans]
    columns = [(label(name), [terms(plan).get(name, 0.0) / scale for plan in plans]) for name in shown]
    if rest:
        left = [sum(terms(plan).get(name, 0.0) for name in rest) / scale for plan in plans]
        columns.append((f"{len(rest)} smaller", left))
    traces = []
    for position, (name, values) in enumerate(columns):
        trace = bar(name, "", categories, values, position, unit, ".3f")
        trace["marker"]["pattern"] = pattern(position)
        trace["text"] = [name] * len(categories)
        trace["textposition"] = "inside"
        trace["insidetextanchor"] = "middle"
        trace["textangle"] = 0
        trace["customdata"] = [hover_words(plan.plan) for plan in plans]
        trace["hovertemplate"] = f"{name}: %{{x:.3f}} {unit}<br>%{{customdata}}<extra>%{{y}}</extra>"
        traces.append(trace)
    frame = layout(title, 150 + 30 * len(plans))
    frame["yaxis"].update(autorange="reversed", type="category")
    frame["uniformtext"] = {"mode": "hide", "minsize": 9}
    return {"data": traces, "layout": frame}


# ---- more hardware ------------------------------------------------------------------------------------------------


def _sensitivity(facts: StudyFacts) -> Chart:
    found = facts.sensitivity
    assert found is not None
    names = [row.what for row in found.rows]

    def gain(after_s: float) -> float:
        return 100 * faster(found.plan.step_time_s, after_s)

    same = bar("the same plan", "", names, [gain(row.same_plan_step_s) for row in found.rows], 0, "% faster", ".2f")
    traces = [same]
    if found.is_searched:
        best_s = [row.best.step_time_s if row.best else row.same_plan_step_s for row in found.rows]
        best = bar("the best plan then", "", names, map(gain, best_s), 1, "% faster", ".2f")
        best["marker"]["pattern"] = pattern(1)
        best["customdata"] = [_then(row) for row in found.rows]
        best["hovertemplate"] = "best plan then: %{x:.2f} % faster<br>%{customdata}<extra>%{y}</extra>"
        traces.append(best)
    for trace in traces:
        trace |= {"text": [f"{value:.1f} %" for value in trace["x"]], "textposition": "outside", "cliponaxis": False}
    frame = layout("% more tokens per second from 10 % more", 150 + 44 * len(names))
    frame |= {"barmode": "group", "bargap": 0.25}
    frame["yaxis"].update(autorange="reversed")
    frame["margin"]["r"] = 40
    return {"data": traces, "layout": frame}


def _then(row: WhatIf) -> str:
    if row.best is None or row.is_same_plan:
        return "the same plan"
    return hover_words(row.best.plan)


# ---- the other scenarios ------------------------------------------------------------------------------------------


def _scaling(shown: Sequence[ScenarioBest]) -> Iterator[tuple[str, Chart]]:
    """Curves over the number of devices, one per machine, model and recipe."""
    if len({one.devices for one in shown}) < 2:
        return
    yield "scaling_tokens", _curves(shown, "tokens per second", lambda one: one.tokens_per_s, "rate", is_log=True)
    yield "scaling_mfu", _curves(shown, "MFU %", lambda one: one.mfu and 100 * one.mfu, "rate")
    yield "scaling_days", _curves(shown, "days", lambda one: one.days, "time", is_log=True)
    yield "scaling_cost", _curves(shown, "USD", lambda one: one.cost_usd, "time")


def series_of(shown: Sequence[ScenarioBest]) -> dict[str, list[ScenarioBest]]:
    """Scenarios that differ in their devices alone, named by what sets them apart from the others."""
    fields = ("model", "hardware", "precision", "framework", "seq_len", "global_batch")
    varied = [name for name in fields if len({getattr(one, name) for one in shown}) > 1]
    found: dict[str, list[ScenarioBest]] = {}
    for one in shown:
        if one.plan is not None:
            name = ", ".join(f"{getattr(one, field)}" for field in varied) or one.hardware
            found.setdefault(name, []).append(one)
    return {name: sorted(members, key=lambda one: one.devices) for name, members in found.items()}


def _curves(
    shown: Sequence[ScenarioBest],
    quantity: str,
    value: Callable[[ScenarioBest], float | None],
    kind: str,
    *,
    is_log: bool = False,
) -> Chart:
    """One line per series, each point with its interval; a rate falls as the time of a step grows."""
    traces = []
    for position, (name, every) in enumerate(series_of(shown).items()):
        members = [one for one in every if value(one) is not None]
        values = [value(one) or 0.0 for one in members]
        shorter, longer = _interval(members)
        if kind == "rate":
            shorter, longer = [1 / factor for factor in longer], [1 / factor for factor in shorter]
        colour = PALETTE[position % len(PALETTE)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(name),
                "x": [one.devices for one in members],
                "y": values,
                "error_y": _error(values, shorter, longer),
                "text": [hover_words(one.plan or {}) for one in members],
                "hovertemplate": f"%{{x}} devices: %{{y:,.4g}} {quantity}<br>%{{text}}<extra>{escape(name)}</extra>",
                "line": {"color": colour, "dash": DASHES[position % len(DASHES)]},
                "marker": {"color": colour, "symbol": SYMBOLS[position % len(SYMBOLS)], "size": 9},
            }
        )
    counts = sorted({one.devices for one in shown})
    frame = labelled("", 360, "devices", quantity)
    frame["xaxis"] |= {"type": "log", "tickvals": counts, "ticktext": [f"{n:,}" for n in counts]}
    frame["yaxis"] |= _log_ticks(traces) if is_log else {"rangemode": "tozero"}
    frame["legend"]["itemwidth"] = 40
    return {"data": traces, "layout": frame}


def _log_ticks(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5, written in full."""
    values = [value for trace in traces for value in trace["y"] if value > 0]
    low, high = (min(values) / 2, max(values) * 2) if values else (1.0, 10.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    return {"type": "log", "tickvals": shown, "ticktext": [units.short_count(tick) for tick in shown]}


def _interval(shown: Sequence[ScenarioBest]) -> tuple[list[float], list[float]]:
    """Factors between the estimate of a step's time and the ends of its interval."""
    times = [(one.step_time_s or 1.0, one.step_time_low_s or 1.0, one.step_time_high_s or 1.0) for one in shown]
    return [low / step for step, low, _ in times], [high / step for step, _, high in times]


def _error(values: Sequence[float], lowest: Sequence[float], highest: Sequence[float]) -> dict[str, Any]:
    """An interval given by factors of its value."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [value * (factor - 1) for value, factor in zip(values, highest, strict=True)],
        "arrayminus": [value * (1 - factor) for value, factor in zip(values, lowest, strict=True)],
        "thickness": 1,
        "width": 4,
    }


def _machines(shown: Sequence[ScenarioBest]) -> Chart:
    """Tokens per second and device, by device count and machine."""
    found = [one for one in shown if one.tokens_per_s is not None]
    found.sort(key=lambda one: (one.devices, one.hardware, one.precision))
    many = len({one.precision for one in found}) > 1
    names = [f"{one.devices:,} {escape(one.hardware)}{', ' + one.precision if many else ''}" for one in found]
    machines = list(dict.fromkeys(one.hardware for one in found))
    traces = []
    for position, machine in enumerate(machines):
        members = [(name, one) for name, one in zip(names, found, strict=True) if one.hardware == machine]
        values = [(one.tokens_per_s or 0.0) / one.devices for _, one in members]
        trace = bar(escape(machine), "", [name for name, _ in members], values, position, "tokens/s per device", ",.4g")
        trace["marker"]["pattern"] = pattern(position)
        trace["text"] = [units.significant(value) for value in values]
        trace["textposition"] = "inside"
        trace["insidetextanchor"] = "start"
        shorter, longer = _interval([one for _, one in members])
        trace["error_x"] = _error(values, [1 / factor for factor in longer], [1 / factor for factor in shorter])
        traces.append(trace)
    frame = layout("tokens per second and device", 150 + 28 * len(found))
    frame["yaxis"] |= {"categoryorder": "array", "categoryarray": names[::-1]}
    return {"data": traces, "layout": frame}


def _refusals(facts: StudyFacts) -> Chart:
    found = list(facts.refusals.reasons.items())
    names = ["<br>".join(wrap(escape(reason.replace("_", " ")), 34)) for reason, _ in found]
    trace = bar("plans", "", names, [number for _, number in found], 7, "plans", ",")
    total = max(facts.refusals.n_plans, 1)
    trace |= {
        "text": [f"{100 * number / total:.1f} %" for _, number in found],
        "textposition": "auto",
        "cliponaxis": False,
    }
    trace["showlegend"] = False
    frame = layout("plans refused, and their share of all", 110 + 40 * len(found))
    frame["yaxis"].update(autorange="reversed")
    frame["margin"]["r"] = 50
    frame["xaxis"] |= {"nticks": 4, "tickangle": 0}
    return {"data": [trace], "layout": frame}
