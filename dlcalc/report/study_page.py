"""A study as one page: the sections of ``study_report`` with the charts of ``study_charts``."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from dlcalc.costmodel.timeline import Timeline
from dlcalc.report.page.parts import cards
from dlcalc.report.page.shell import page_html
from dlcalc.report.sections import Line, Section
from dlcalc.report.study_charts import charts_of
from dlcalc.report.study_facts import StudyFacts
from dlcalc.report.study_parallel import parallel_chart
from dlcalc.report.study_report import answer_cards, plan_line, sections, title
from dlcalc.report.study_timeline import timeline_chart, timeline_words


def study_page(facts: StudyFacts, timeline: Timeline | None) -> str:
    """The whole page."""
    charts = dict(charts_of(facts))
    if facts.mesh_best:
        charts["parallel"] = parallel_chart(facts.mesh_best)
    if timeline is not None and timeline.events:
        charts["pipeline"] = timeline_chart(timeline)
    style = "answer plan" if facts.plan else "warning"
    lead = f'<p class="{style}">{escape(plan_line(facts))}</p>{cards(answer_cards(facts))}'
    shown = [_with_timeline(section, timeline) for section in sections(facts, is_page=True)]
    return page_html(title(facts), lead, shown, charts, needed_by="-o")


def _with_timeline(section: Section, timeline: Timeline | None) -> Section:
    if section.key == "answer":  # the first line stands above already
        return replace(section, parts=section.parts[1:])
    if section.key == "pipeline":
        return replace(section, parts=(*section.parts, Line(timeline_words(timeline), "dim")))
    return section
