"""What is known of the sources of measured runs: ``configs/measured/sources.yaml``, with their errata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated

from pydantic import Field

from dlcalc.specs.base import Spec, TupleFromList
from dlcalc.specs.load import config_dir, load_spec
from dlcalc.validation.rows import COLUMNS, MeasuredRun


class Erratum(Spec):
    """A setting that a source's own figures contradict: what it says, what is read instead, and why."""

    column: Annotated[str, Field(pattern="^(" + "|".join(COLUMNS) + ")$")]
    published: str
    meant: str
    because: Annotated[str, Field(min_length=8)]


class Source(Spec):
    """One source of measured runs."""

    title: str
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What its residuals count for in a fit, beside their number."""
    errata: Annotated[tuple[Erratum, ...], TupleFromList] = ()


class Sources(Spec):
    """All of them, by the name that rows give."""

    sources: Mapping[str, Source]


@cache
def known_sources() -> Mapping[str, Source]:
    """The shipped sources."""
    return load_spec(config_dir() / "measured" / "sources.yaml", Sources).sources


def corrected(run: MeasuredRun, remarks: list[str]) -> MeasuredRun:
    """``run`` with its source's errata; a remark for each that its row needed."""
    source = known_sources().get(run.source)
    needed = [erratum for erratum in source.errata if run.text(erratum.column) == erratum.published] if source else []
    if not needed:
        return run
    remarks += [f"{e.column} {e.published} of {run.source} taken as {e.meant}: {e.because}" for e in needed]
    return replace(run, fields={**run.fields, **{e.column: e.meant for e in needed}})
