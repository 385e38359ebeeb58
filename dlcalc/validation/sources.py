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

CORRECTED = tuple(column for column in COLUMNS if column not in ("source", "case", "model", "extras", "citation"))
"""What an erratum may be about: settings in columns, once the model is known."""


class Erratum(Spec):
    """A setting that a source's own words or figures contradict or give without naming it: what is read, and why."""

    column: Annotated[str, Field(pattern="^(" + "|".join(CORRECTED) + ")$")]
    published: str
    """What its rows say; empty where they do not say."""
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


def corrected(run: MeasuredRun, n_layers: int, remarks: list[str]) -> MeasuredRun:
    """``run``, of a model of so many layers, with its source's errata; a remark for each that its row needed."""
    source = known_sources().get(run.source)
    needed = [erratum for erratum in source.errata if _concerns(erratum, run, n_layers)] if source else []
    if not needed:
        return run
    remarks += [
        f"{e.column} {e.published}{' ' if e.published else ''}of {run.source} taken as {e.meant}: {e.because}"
        for e in needed
    ]
    return replace(run, fields={**run.fields, **{e.column: e.meant for e in needed}})


def _concerns(erratum: Erratum, run: MeasuredRun, n_layers: int) -> bool:
    """Whether the row says what is wrong; chunks of a stage (vpp) where there are stages whose layers divide so."""
    if run.text(erratum.column) != erratum.published:
        return False
    if erratum.column != "vpp":
        return True
    stages = run.whole("pp", 1)
    return stages > 1 and n_layers % (stages * int(erratum.meant)) == 0
