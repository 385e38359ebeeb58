"""One run as a report: sections of facts, tables and bars, the same for a terminal and for a page.

``sections`` decides what is said and in which order; ``report.sections`` shows it on a console and ``run_html`` as a
page. What is shown are the terms of the estimate themselves, field by field, so that a report cannot differ from what a
search ranks.
"""

from __future__ import annotations

from dlcalc.report.run_communication import communication_sections
from dlcalc.report.run_compute import compute_section
from dlcalc.report.run_facts import RunFacts
from dlcalc.report.run_memory import memory_sections
from dlcalc.report.run_setup import configuration_section, data_section, hardware_section, model_section
from dlcalc.report.run_time import block_section, final_section, iteration_section, pipeline_section
from dlcalc.report.sections import Section


def sections(facts: RunFacts, *, verbose: bool = True) -> tuple[Section, ...]:
    """The whole report, in the order in which it is read; without ``verbose`` long lists are shortened."""
    return (
        configuration_section(facts, verbose=verbose),
        hardware_section(facts),
        data_section(facts),
        model_section(facts),
        *memory_sections(facts),
        compute_section(facts),
        *communication_sections(facts),
        pipeline_section(facts),
        block_section(facts),
        iteration_section(facts),
        final_section(facts),
    )
