"""What a design may change: numbers of the machine, and dimensions of the model at the same number of parameters."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dlcalc.specs.base import PositiveFloat, PositiveInt, Spec, TupleFromList


class Range(Spec):
    """From ``low`` to ``high``; with ``log``, as often per doubling."""

    low: PositiveFloat
    high: PositiveFloat
    log: bool = False

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be less than high = {self.high:g}")
        return self


Values = Annotated[tuple[PositiveFloat, ...], TupleFromList, Field(min_length=2)]
Span = Range | Values
"""A range, or the values themselves."""


Counts = Annotated[tuple[PositiveInt, ...], TupleFromList, Field(min_length=2)]


class ShapeSpec(Spec):
    """Shapes of the named model with as many parameters as it has, or as are given.

    Of depth, width and the MLP's share one at least is left out: the number of parameters decides it.
    """

    at_parameters: PositiveFloat | None = None
    at_active_parameters: PositiveFloat | None = None
    """Those that one token takes part in are held instead of all."""
    tolerance: Annotated[float, Field(gt=0, le=0.2)] = 0.01
    """Share by which a shape may miss the number of parameters."""
    n_layers: Span | None = None
    hidden_size: Span | None = None
    ffn_ratio: Span | None = None
    """Width of the MLP, or of one expert, over the hidden size."""
    head_dim: Counts | None = None
    n_kv_heads: Counts | None = None
    n_experts: Counts | None = None
    top_k: Counts | None = None
    hidden_multiple: PositiveInt = 128
    heads_multiple: PositiveInt = 8
    """Of the attention heads, so that as many tensor-parallel ranks can share them."""
    ffn_multiple: PositiveInt | None = None
    """None: 128 for a dense model, 32 for experts."""

    @model_validator(mode="after")
    def _is_decided_by_its_parameters(self) -> Self:
        if not self.variables:
            raise ValueError(f"give values for at least one of {', '.join(SHAPE_VARIABLES)}")
        if all(name in self.variables for name in DECIDED):
            raise ValueError(f"leave out one of {', '.join(DECIDED)}: the number of parameters decides it")
        if self.at_parameters and self.at_active_parameters:
            raise ValueError("give one of at_parameters and at_active_parameters")
        for name in (name for name in self.variables if name in ("n_layers", "hidden_size")):
            span = self.variables[name]
            ends = (span.low, span.high) if isinstance(span, Range) else span
            if not all(float(end).is_integer() for end in ends):
                raise ValueError(f"{name} must be whole numbers")
        return self

    @property
    def variables(self) -> dict[str, Span | tuple[int, ...]]:
        """What varies, by name."""
        spans = {name: getattr(self, name) for name in SHAPE_VARIABLES}
        return {name: span for name, span in spans.items() if span is not None}


DECIDED = ("n_layers", "hidden_size", "ffn_ratio")
SHAPE_VARIABLES = (*DECIDED, "head_dim", "n_kv_heads", "n_experts", "top_k")


class DesignSpec(Spec):
    """What may differ from the named hardware and model; everything else stays as it is."""

    hbm_gib: Span | None = None
    hbm_tb_per_s: Span | None = None
    n_sms: Span | None = None
    """Peaks follow in proportion."""
    peak_factor: Span | None = None
    """Peaks over those of the named hardware at the same number of SMs: clock, or wider units."""
    node_devices: Span | None = None
    """Devices in one NVLink-class domain."""
    link_gb_per_s: Span | None = None
    nic_gbit_per_s_per_device: Span | None = None
    model: ShapeSpec | None = None
    """Shapes of the model at the same number of parameters."""
    usd_per_device_hour: str | PositiveFloat | None = None
    """What such a machine costs: a number, or an expression of the names above such as
    ``1.2 + 0.01 * hbm_gib + 0.2 * hbm_tb_per_s``; the named hardware's value is taken for what is not varied."""

    @model_validator(mode="after")
    def _something_varies(self) -> Self:
        if not self.variables and self.model is None:
            raise ValueError(f"give a range for at least one of {', '.join(DESIGN_VARIABLES)}, or a model")
        return self

    @property
    def variables(self) -> dict[str, Span]:
        """What varies of the machine, by name."""
        spans = {name: getattr(self, name) for name in DESIGN_VARIABLES}
        return {name: span for name, span in spans.items() if span is not None}


DESIGN_VARIABLES = (
    "hbm_gib",
    "hbm_tb_per_s",
    "n_sms",
    "peak_factor",
    "node_devices",
    "link_gb_per_s",
    "nic_gbit_per_s_per_device",
)
WHOLE_VARIABLES = frozenset({"n_sms", "node_devices"})
