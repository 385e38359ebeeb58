"""Shapes of a model at one number of parameters: depth against width, heads, the MLP's share, experts.

Of depth (``n_layers``), width (``hidden_size``) and ``ffn_ratio`` one is left to the number of parameters. Since depth
and width come in coarse steps, the MLP's width then makes up the rest, so that a shape misses the number by less than
its tolerance or is refused. What else a model has (vocabulary, norms, positions, routing) stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

from pydantic import ValidationError

from dlcalc.calculators import params
from dlcalc.errors import DlcalcError
from dlcalc.search.variables import Choice, Interval, Point, Variable
from dlcalc.specs.base import MAX_LAYERS
from dlcalc.specs.design import Range, ShapeSpec, Span
from dlcalc.specs.model import ModelSpec

Decided = Literal["n_layers", "hidden_size", "ffn_ratio"]

NEIGHBOURS = 2
"""Steps of depth or width to each side of the best one, in which a ratio nearer to the one asked for may lie."""
ROUNDING = 1e-9
MOST_STEPS = 1 << 20
"""Of a width that is looked for."""
DENSE_MULTIPLE, EXPERT_MULTIPLE = 128, 32
WHERE = "search: design: model"


@dataclass(frozen=True)
class Shapes:
    """The shapes of ``base`` that ``spec`` asks for."""

    base: ModelSpec
    spec: ShapeSpec

    def __post_init__(self) -> None:
        base, spec = self.base, self.spec
        if not base.is_moe and (spec.n_experts or spec.top_k or spec.at_active_parameters):
            named = "n_experts" if spec.n_experts else "top_k" if spec.top_k else "at_active_parameters"
            raise DlcalcError(f"{WHERE}: {named}: {base.name} has no experts")
        if base.is_mla and (spec.head_dim or spec.n_kv_heads):
            named = "head_dim" if spec.head_dim else "n_kv_heads"
            raise DlcalcError(f"{WHERE}: {named}: {base.name} has latent attention, whose heads have neither")

    @cached_property
    def target(self) -> float:
        """Parameters that every shape has."""
        return self.spec.at_active_parameters or self.spec.at_parameters or float(self.count(self.base))

    def count(self, model: ModelSpec) -> int:
        """The parameters that are held."""
        return params.active_params(model) if self.spec.at_active_parameters else params.total_params(model)

    @cached_property
    def decided(self) -> Decided:
        """What the number of parameters decides; its nearest relative where several are left to it."""
        varied = self.spec.variables
        if "hidden_size" in varied and "n_layers" not in varied:
            return "n_layers"
        if "ffn_ratio" in varied or ("n_layers" in varied and "hidden_size" not in varied):
            return "hidden_size"
        return "ffn_ratio"

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """What a sampler chooses."""
        return tuple(self._variable(name, span) for name, span in self.spec.variables.items())

    def _variable(self, name: str, span: Span | tuple[int, ...]) -> Variable:
        if name == "hidden_size":
            return Choice(name, self._widths(span))
        if isinstance(span, Range):
            return Interval(name, span.low, span.high, log=span.log, whole=name == "n_layers")
        return Choice(name, tuple(sorted(set(span))))

    def _widths(self, span: Span) -> tuple[int, ...]:
        """Hidden sizes that are asked for; of a range those that heads can fill."""
        heads = {"head_dim": self.spec.head_dim, "n_kv_heads": self.spec.n_kv_heads}
        varied = {name: values for name, values in heads.items() if values}
        step = min(self.hidden_step(dict(zip(varied, one, strict=True))) for one in product(*varied.values()))
        if not isinstance(span, Range):
            return tuple(sorted({int(value) for value in span}))
        widths = tuple(range(math.ceil(span.low / step) * step, int(span.high) + 1, step))
        if len(widths) < 2:
            raise DlcalcError(
                f"{WHERE}: hidden_size: {span.low:g} to {span.high:g} holds {len(widths)} multiples of {step}; at "
                "least 2 are needed"
            )
        return widths

    @cached_property
    def heads_fill(self) -> bool:
        """Whether the heads together are as wide as the hidden size, as in most models."""
        return not self.base.is_mla and self.base.n_heads * self.base.head_dim == self.base.hidden_size

    def heads_step(self, given: Point) -> int:
        """Attention heads are multiples of this."""
        grouped = self.base.n_kv_heads < self.base.n_heads and not self.base.is_mla
        return math.lcm(self.spec.heads_multiple, int(given.get("n_kv_heads", self.base.n_kv_heads if grouped else 1)))

    def hidden_step(self, given: Point) -> int:
        """Hidden sizes are multiples of this."""
        step = self.spec.hidden_multiple
        if not self.heads_fill:
            return step
        return math.lcm(step, int(given.get("head_dim", self.base.head_dim)) * self.heads_step(given))

    def at(self, point: Point, name: str) -> ModelSpec:
        """The shape at ``point``, called ``name``; refused where none comes near enough to the number of parameters."""
        asked = _Asked(self, point)
        shapes = [shape for shape in asked.shapes() if abs(self.count(shape) / self.target - 1.0) <= self.tolerance]
        in_range = [shape for shape in shapes if self._may_have(_ratio(shape))]
        if not in_range:
            raise DlcalcError(self._why_not(shapes))
        nearest = min(in_range, key=lambda shape: abs(math.log(_ratio(shape) / asked.ratio)))
        written = nearest.model_dump() | {"name": name, "aliases": (), "source": f"{self.base.name}, reshaped"}
        try:
            return ModelSpec.model_validate(written)
        except ValidationError as error:
            raise DlcalcError(
                "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
            ) from error

    @property
    def tolerance(self) -> float:
        return self.spec.tolerance

    def _may_have(self, ratio: float) -> bool:
        """Whether an MLP may be so wide: a range that is given holds."""
        span = self.spec.ffn_ratio
        return not isinstance(span, Range) or span.low - ROUNDING <= ratio <= span.high + ROUNDING

    def _why_not(self, near: list[ModelSpec]) -> str:
        if near:
            ratios = ", ".join(f"{_ratio(shape):.3g}" for shape in near)
            return f"only with an ffn_ratio of {ratios} it has {self.target:.4g} parameters"
        return f"no MLP brings it within {100 * self.tolerance:g} % of {self.target:.4g} parameters"


@dataclass(frozen=True)
class _Asked:
    """One point of a sampler."""

    shapes_of: Shapes
    point: Point

    @property
    def ratio(self) -> float:
        """MLP over hidden size, as asked for; the model's own where nothing is."""
        return float(self.point.get("ffn_ratio", _ratio(self.shapes_of.base)))

    @property
    def heads(self) -> Mapping[str, int]:
        """What is given of heads and experts."""
        return {
            name: int(self.point[name])
            for name in ("head_dim", "n_kv_heads", "n_experts", "top_k")
            if name in self.point
        }

    def shapes(self) -> Iterator[ModelSpec]:
        """The shapes that the point may stand for, each with the MLP that brings it nearest to the number wanted."""
        of, target = self.shapes_of, self.shapes_of.target
        layers = int(self.point.get("n_layers", of.base.n_layers))
        hidden = int(self.point.get("hidden_size", of.base.hidden_size))
        step = of.hidden_step(self.point)
        if of.decided == "hidden_size":
            sizes = [(layers, step * n) for n in _around(lambda n: self._count(layers, step * n), target)]
        elif hidden % step:
            raise DlcalcError(f"hidden_size = {hidden} is no multiple of {step}, which its heads need")
        elif of.decided == "n_layers":
            sizes = [(n, hidden) for n in _around(lambda n: self._count(n, hidden), target, most=MAX_LAYERS)]
        else:
            sizes = [(layers, hidden)]
        for size in sizes:
            yield self._with_mlp(*size)

    def _count(self, layers: int, hidden: int) -> float:
        return self.shapes_of.count(self._shape(layers, hidden, self._width(self.ratio * hidden)))

    def _width(self, wanted: float) -> int:
        step = self._width_step
        return max(1, round(wanted / step)) * step

    @property
    def _width_step(self) -> int:
        of = self.shapes_of
        return of.spec.ffn_multiple or (EXPERT_MULTIPLE if of.base.is_moe else DENSE_MULTIPLE)

    def _with_mlp(self, layers: int, hidden: int) -> ModelSpec:
        """The shape whose MLP brings it nearest to the number of parameters."""
        step, of = self._width_step, self.shapes_of
        n = _nearest(lambda n: of.count(self._shape(layers, hidden, step * n)), of.target, most=MOST_STEPS)
        return self._shape(layers, hidden, step * n)

    def _shape(self, layers: int, hidden: int, width: int) -> ModelSpec:
        """The model of these dimensions; heads fill the same share of the hidden size as in the named model."""
        base = self.shapes_of.base
        given = dict(self.heads)
        step = self.shapes_of.heads_step(self.point)
        head_dim = given.get("head_dim", base.head_dim)
        filled = base.n_heads * (1 if base.is_mla else base.head_dim) / base.hidden_size
        per_head = 1 if base.is_mla else head_dim
        n_heads = max(1, round(filled * hidden / per_head / step)) * step
        own = base.n_kv_heads if base.n_kv_heads < base.n_heads else n_heads
        sizes = given | {
            "n_layers": layers,
            "hidden_size": hidden,
            "n_heads": n_heads,
            "n_kv_heads": given.get("n_kv_heads", own),
        }
        return base.model_copy(update=sizes | self._mlp(width))

    def _mlp(self, width: int) -> dict[str, Any]:
        """Every MLP of the model, in its own proportions, where that of an expert or of a layer is ``width``."""
        base, step = self.shapes_of.base, self._width_step
        if not base.is_moe:
            return {"ffn_hidden_size": width}
        scale = width / base.expert_ffn_hidden_size

        def scaled(own: int) -> int:
            return max(1, round(own * scale / step)) * step if own else 0

        return {
            "expert_ffn_hidden_size": width,
            "ffn_hidden_size": scaled(base.ffn_hidden_size),
            "shared_ffn_hidden_size": scaled(base.shared_ffn_hidden_size),
        }


def described(model: ModelSpec) -> Mapping[str, float | str]:
    """The dimensions of a shape, named as a model file names them."""
    names = ["n_layers", "hidden_size", "n_heads"]
    names += [] if model.is_mla else ["n_kv_heads", "head_dim"]
    names += ["n_experts", "top_k", "expert_ffn_hidden_size"] if model.is_moe else ["ffn_hidden_size"]
    counts = {"parameters": float(params.total_params(model))}
    counts |= {"active_parameters": float(params.active_params(model))} if model.is_moe else {}
    return {name: float(getattr(model, name)) for name in names} | counts


def _ratio(model: ModelSpec) -> float:
    width = model.expert_ffn_hidden_size if model.is_moe else model.ffn_hidden_size
    return width / model.hidden_size


def _around(count: Callable[[int], float], target: float, most: int = MOST_STEPS) -> range:
    """The whole number whose count is nearest to ``target``, and its neighbours."""
    best = _nearest(count, target, most=most)
    return range(max(1, best - NEIGHBOURS), min(most, best + NEIGHBOURS) + 1)


def _nearest(count: Callable[[int], float], target: float, *, most: int) -> int:
    """The whole number from 1 to ``most`` whose count, which grows with it, is nearest to ``target``."""
    high = 1
    while count(high) < target and high < most:
        high = min(2 * high, most)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda n: abs(count(n) - target))
