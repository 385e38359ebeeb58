"""Every matmul and attention of one plan: its shape, time, and what bounds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from dlcalc.calculators import activations, flops
from dlcalc.costmodel.anatomy.numbers import plain
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.every_stage import times_of
from dlcalc.costmodel.layer_matmuls import Matmul
from dlcalc.costmodel.layer_times import Pass, Sublayer
from dlcalc.costmodel.plans import number
from dlcalc.costmodel.stage_times import ModelTimes

ATTENTION_KINDS = ("full", "windowed")


Bound = Literal["compute", "memory", "launch"]
Shape = tuple[float, float, float, float]

SUBLAYERS = {
    "full": "attention",
    "windowed": "sliding-window attention",
    "dense": "MLP",
    "moe": "MoE",
    "embedding": "embedding",
    "head": "LM head",
}
"""Sublayers as a report calls them."""


@dataclass(frozen=True)
class MatmulFacts:
    """One linear layer of one micro-batch. A shape is (groups, tokens, inner, outer)."""

    sublayer: str
    name: str
    shape: Shape
    """Of the whole model and all its replicas' tokens of one micro-batch."""
    device_shape: Shape
    forward_s: float
    input_grad_s: float
    weight_grad_s: float
    forward_flops: float
    """On one device; each of the two backward matmuls takes as many."""
    forward_bytes: float
    """Operands and result."""
    forward_flops_per_s: float
    bound: Bound
    """What the forward pass waits for: arithmetic, memory, or the launch of its kernel."""


@dataclass(frozen=True)
class AttentionFacts:
    """Scores, softmax and values of one micro-batch and layer."""

    sublayer: str
    kernel: str
    sequences: float
    heads: float
    kv_heads: float
    queries: float
    keys: float
    window: int
    """0: all keys."""
    qk_head_dim: int
    v_head_dim: int
    forward_s: float
    backward_s: float
    forward_flops: float
    forward_bytes: float
    forward_flops_per_s: float


def matmul_facts(found: Estimate) -> tuple[MatmulFacts, ...]:
    """Every matmul of one layer of each kind, and the LM head."""
    plan = found.plans
    one = number(1.0)
    whole = replace(plan, tp=one, cp=one, ep=one, etp=one, sequence_parallel=0 * one, overlap_tp=0 * one)
    unsplit = _sublayers(times_of(replace(found, plans=whole)))
    facts = []
    for kind, sublayer in _sublayers(times_of(found)).items():
        for name, (matmul, time) in sublayer.matmuls.items():
            unit = found.machine.sixteen_bit if matmul.replicated_bits else found.machine.linear
            shape = _shape(matmul)
            groups, tokens, inner, outer = shape
            moved = groups * (unit.input_bytes * (tokens + outer) * inner + 2.0 * tokens * outer)
            forward_s = plain(time.forward_s)
            facts.append(
                MatmulFacts(
                    sublayer=SUBLAYERS[kind],
                    name=name,
                    shape=_shape(unsplit[kind].matmuls[name][0]),
                    device_shape=shape,
                    forward_s=forward_s,
                    input_grad_s=plain(time.input_grad_s),
                    weight_grad_s=plain(time.weight_grad_s),
                    forward_flops=2.0 * groups * tokens * inner * outer,
                    forward_bytes=moved,
                    forward_flops_per_s=2.0 * groups * tokens * inner * outer / forward_s,
                    bound=_bound(
                        forward_s, moved / (unit.hbm_bytes_per_s * unit.rates.hbm_fraction), unit.rates.launch_s
                    ),
                )
            )
    return tuple(facts)


def _bound(time_s: float, memory_s: float, launch_s: float) -> Bound:
    """What a kernel's time is mostly made of."""
    if launch_s >= 0.5 * time_s:
        return "launch"
    return "memory" if memory_s >= (time_s - launch_s) * (1.0 - 1e-9) else "compute"


def attention_facts(found: Estimate) -> tuple[AttentionFacts, ...]:
    """The attention core of one layer of each kind."""
    model, plan, recipe = found.model, found.plans, found.machine.recipe
    kernel = recipe.framework.attention
    stores_scores = kernel in activations.SCORE_BYTES
    sequences, cp, tp = plain(plan.micro_batch), plain(plan.cp), plain(plan.tp)
    queries, keys = recipe.seq_len / cp, float(recipe.seq_len)
    heads, kv_heads = model.n_heads / tp, max(model.n_kv_heads / tp, 1.0)
    widths = model.qk_head_dim + model.value_head_dim
    facts = []
    for kind, sublayer in times_of(found).kinds.items():
        if kind not in ATTENTION_KINDS:
            continue
        window = model.sliding_window if kind == "windowed" else 0
        per_token = flops.attention_scores_flops(
            model, seq_len=keys, causal=not stores_scores, window=float(window) * (not stores_scores)
        )
        work = float(per_token) * sequences * queries / tp
        forward_s = plain(sublayer.forward.attention_s)
        facts.append(
            AttentionFacts(
                sublayer=SUBLAYERS[kind],
                kernel=kernel,
                sequences=sequences,
                heads=heads,
                kv_heads=kv_heads,
                queries=queries,
                keys=keys,
                window=window,
                qk_head_dim=model.qk_head_dim,
                v_head_dim=model.value_head_dim,
                forward_s=forward_s,
                backward_s=plain(sublayer.backward.attention_s),
                forward_flops=work,
                forward_bytes=2.0 * widths * sequences * (heads * queries + kv_heads * keys),
                forward_flops_per_s=work / forward_s,
            )
        )
    return tuple(facts)


def block_terms(found: Estimate) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Seconds of one micro-batch in each kind of sublayer: ``{sublayer: {pass: {term: seconds}}}``."""
    return {
        SUBLAYERS[kind]: {"forward": _pass_terms(sublayer.forward), "backward": _pass_terms(sublayer.backward)}
        for kind, sublayer in _sublayers(times_of(found)).items()
    }


def common_block(found: Estimate) -> tuple[str, str]:
    """The attention and the MLP that most layers have."""
    model = found.model
    windowed, moe = sum(model.layer_is_windowed), model.n_moe_layers
    attention = "windowed" if 2 * windowed > model.n_layers else "full"
    return SUBLAYERS[attention], SUBLAYERS["moe" if 2 * moe > model.n_layers else "dense"]


def _pass_terms(one: Pass) -> dict[str, float]:
    return {field.name: plain(getattr(one, field.name)) for field in fields(one)}


def _sublayers(times: ModelTimes) -> dict[str, Sublayer]:
    return {**times.kinds, "embedding": times.embedding, "head": times.head}


def _shape(matmul: Matmul) -> Shape:
    return plain(matmul.groups), plain(matmul.tokens), plain(matmul.inner), plain(matmul.outer)
