"""How far measured step times lie from estimates: ``configs/uncertainty.yaml``, from runs left out of other fits."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from dlcalc.specs.base import Spec
from dlcalc.specs.load import config_dir, load_spec


class Spread(Spec):
    """How much shorter and longer than its estimate a step may be, as fractions of it."""

    shorter: Annotated[float, Field(ge=0, lt=1)]
    longer: Annotated[float, Field(ge=0, le=10)]


class Uncertainty(Spec):
    """An interval of step times by regime: spreads that apply to a run add to ``base``, in squares of logarithms."""

    coverage: Annotated[float, Field(gt=0, lt=1)]
    """Share of runs whose measured time lies inside."""
    base: Spread
    """Inside a node, dense, 16 bits, on a device whose kernels were measured."""
    across_nodes: Spread
    moe: Spread
    low_precision: Spread
    """Linear layers in 8 bits or fewer."""
    unmeasured_device: Spread
    """Calibration taken from another device."""
    provenance: str


@cache
def load_uncertainty() -> Uncertainty:
    """The shipped intervals."""
    return load_spec(config_dir() / "uncertainty.yaml", Uncertainty)
