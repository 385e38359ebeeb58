"""Plans as words: what sets a plan apart, and what goes without saying."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dlcalc.costmodel.plans import ALL_LAYERS, PER_STAGE

_VALUES_SHOWN = 6
_ALIGNED_MOST = 44

Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class _Facet:
    """One aspect of a plan: ``label`` and ``value`` make a token of tables, ``phrase`` the words of a sentence."""

    label: str
    value: Callable[[Knobs], str]
    usual: str = ""
    """The value that goes without saying."""
    phrase: Callable[[Knobs], str] | None = None

    def token(self, plan: Knobs) -> str:
        return self.label + self.value(plan)


def _degree(knob: str, label: str = "") -> _Facet:
    return _Facet(label or knob, lambda plan: str(plan[knob]), usual="1")


def _recompute(plan: Knobs) -> str:
    layers = plan["recompute_layers"]
    everywhere = layers == ALL_LAYERS or plan["recompute"] == "none"
    count = "per-stage" if layers == PER_STAGE else layers
    return str(plan["recompute"]) + ("" if everywhere else f":{count}")


def _recompute_phrase(plan: Knobs) -> str:
    mode, _, layers = _recompute(plan).partition(":")
    if mode == "none":
        return "no recompute"
    if layers == "per-stage":
        return f"{mode} recompute stage by stage"
    of_layers = f" of {layers} layer{'' if layers == '1' else 's'}" if layers else ""
    return f"{mode} recompute{of_layers}"


def _overlaps(plan: Knobs) -> str:
    return "+".join(what for what in ("grad", "param", "tp", "ep") if plan[f"overlap_{what}"]) or "none"


def _offload(plan: Knobs) -> str:
    what = ["optimizer"] if plan["offload_optimizer"] else []
    what += [f"{plan['offload_layers']}-layers"] if plan["offload_layers"] else []
    return "+".join(what) or "none"


_FACETS = (
    _degree("tp"),
    _degree("cp"),
    _Facet("", lambda plan: plan["cp_exchange"] if plan["cp"] > 1 else "ring", usual="ring"),
    _degree("pp"),
    _degree("vpp"),
    _degree("dp"),
    _degree("ep"),
    _degree("etp"),
    _Facet("mb", lambda plan: str(plan["micro_batch"])),
    _Facet("", lambda plan: str(plan["schedule"]) if plan["pp"] > 1 else "no-pipeline", usual="no-pipeline"),
    _Facet("zero", lambda plan: str(plan["zero_stage"])),
    _degree("dp_replicate", "replicas"),
    _Facet("", lambda plan: "sp" if plan["sequence_parallel"] else "no-sp"),
    _Facet("recompute=", _recompute, phrase=_recompute_phrase),
    _Facet("overlap=", _overlaps, phrase=lambda plan: f"overlap {_overlaps(plan).replace('none', 'of nothing')}"),
    _Facet("offload=", _offload, usual="none", phrase=lambda plan: f"offload {_offload(plan)}"),
    _Facet("split=", lambda plan: str(plan["split"]), usual="even", phrase=lambda plan: f"{plan['split']} split"),
)


def _said(facet: _Facet, plan: Knobs) -> str:
    return facet.phrase(plan) if facet.phrase else facet.token(plan)


def _sentence(facets: Sequence[_Facet], plan: Knobs) -> str:
    """Tokens first, then phrases: ``tp8 pp4 dp8 mb1 zero1 sp, full recompute``; what is usual goes without saying."""
    facets = [facet for facet in facets if facet.value(plan) != facet.usual]
    tokens = " ".join(facet.token(plan) for facet in facets if not facet.phrase)
    phrases = [_said(facet, plan) for facet in facets if facet.phrase]
    return ", ".join([*([tokens] if tokens else []), *phrases])


def plan_words(plan: Knobs) -> str:
    """A plan in one line; degrees of 1 and what is not used go without saying: ``tp8 pp4 vpp5 dp8 mb1 ...``."""
    return _sentence(_FACETS, plan)


def shared_and_own(plans: Sequence[Knobs]) -> tuple[str, list[str]]:
    """What all ``plans`` have in common, and for each what sets it apart, aligned where that is not too wide."""
    if len(plans) == 1:
        return "", [plan_words(plans[0])]
    values = [[facet.value(plan) for plan in plans] for facet in _FACETS]
    common = [facet for facet, column in zip(_FACETS, values, strict=True) if len(set(column)) == 1]
    own = [facet for facet in _FACETS if facet not in common]
    said = [[facet.token(plan) if facet.value(plan) != facet.usual else "" for plan in plans] for facet in own]
    widths = [max(map(len, column)) for column in said]
    if sum(widths) + len(widths) > _ALIGNED_MOST:
        widths = [0] * len(widths)
    return _sentence(common, plans[0]), [
        _aligned([column[row] for column in said], widths)
        or " ".join(facet.token(plan) for facet in own)
        or "(the same)"
        for row, plan in enumerate(plans)
    ]


def _aligned(words: Sequence[str], widths: Sequence[int]) -> str:
    """Words in columns; where a column has no width, an empty word takes no place."""
    cells = [word.ljust(width) for word, width in zip(words, widths, strict=True) if word or width]
    return " ".join(cells).rstrip()


def values_in_use(plans: Sequence[Knobs]) -> str:
    """Which values the knobs that vary take: ``tp4/8, mb1/2, recompute=none/selective``."""
    parts = []
    for facet in _FACETS:
        found = sorted({facet.value(plan) for plan in plans}, key=lambda value: (len(value), value))
        if len(found) > 1:
            left_out = "/..." if len(found) > _VALUES_SHOWN else ""
            parts.append(facet.label + "/".join(found[:_VALUES_SHOWN]) + left_out)
    return ", ".join(parts)


def knobs_of(row: Mapping[str, object]) -> Knobs:
    """The knobs that a row of an answer has beside its estimate."""
    return cast("Knobs", row)
