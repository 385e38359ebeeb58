"""Where two runs differ, quantity by quantity."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.report.run_facts import Difference, RunFacts


def differences(before: RunFacts, after: RunFacts) -> list[Difference]:
    """Quantities of both runs that say where they differ: every term of the step and of memory, and the answers."""
    rows = [
        Difference("hardware", "devices", "count", before.hardware.devices, after.hardware.devices),
        Difference(
            "hardware", "peak rate", "flops_per_s", before.hardware.peak_flops_per_s, after.hardware.peak_flops_per_s
        ),
        Difference("data", "tokens per step", "count", before.data.tokens_per_step, after.data.tokens_per_step),
        Difference("data", "micro-batches", "count", before.data.micro_batches, after.data.micro_batches),
    ]
    rows += _term_differences("MEMORY", "bytes", before.memory.terms, after.memory.terms)
    rows += [
        Difference("MEMORY", "total", "bytes", before.memory.total_bytes, after.memory.total_bytes),
        Difference("MEMORY", "limit", "bytes", before.memory.limit_bytes, after.memory.limit_bytes),
    ]
    rows += _term_differences("iteration", "s", before.step, after.step)
    for what, unit in (
        ("iteration_s", "s"),
        ("ideal_iteration_s", "s"),
        ("mfu", "fraction"),
        ("hfu", "fraction"),
        ("tokens_per_s_per_device", "count"),
        ("tokens_per_day", "count"),
        ("days", "count"),
        ("cost_usd", "usd"),
    ):
        old, new = getattr(before.results, what), getattr(after.results, what)
        if old is not None and new is not None:
            label = what.removesuffix("_s").removesuffix("_usd").replace("_per_s", "/s").replace("_", " ")
            rows.append(Difference("FINAL RESULTS", label, unit, old, new))
    return rows


def _term_differences(
    section: str, unit: str, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Difference]:
    suffix = "_bytes" if unit == "bytes" else "_s"
    return [
        Difference(
            section, name.removesuffix(suffix).replace("_", " "), unit, before.get(name, 0.0), after.get(name, 0.0)
        )
        for name in {**before, **after}
        if before.get(name) or after.get(name)
    ]
