"""One plan taken apart: every matmul, collective, operation's activations and pipeline stage behind an estimate.

Everything here comes out of the functions that the estimate itself is the sum of; nothing is estimated a second way.
For a point, whose quantities leave this module as plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from dlcalc.calculators import context_parallel, flops, memory
from dlcalc.calculators.communication import (
    GroupLink,
    Numeric,
    all_gather_time_s,
    all_reduce_time_s,
    all_to_all_time_s,
    reduce_scatter_time_s,
    send_time_s,
)
from dlcalc.calculators.params import trained_params
from dlcalc.calculators.schedule import DUALPIPE, fill_sends_count, in_flight_micro_batches_count
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.every_stage import Chunks, chunks_of, device_times, times_of
from dlcalc.costmodel.footprint import Footprint, footprint
from dlcalc.costmodel.layer_comm import off_node_fraction, ring_link
from dlcalc.costmodel.layer_matmuls import Matmul
from dlcalc.costmodel.layer_times import Pass, Sublayer
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, number, value_of
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.costmodel.step_time import ModelTimes

Bound = Literal["compute", "memory", "launch"]
Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]
Shape = tuple[float, float, float, float]

KINDS = {
    "full": "attention",
    "windowed": "sliding-window attention",
    "dense": "MLP",
    "moe": "MoE",
    "embedding": "embedding",
    "head": "LM head",
}
"""Sublayers as a report calls them."""
ATTENTION_KINDS = ("full", "windowed")


# ---- computation --------------------------------------------------------------------------------------------------


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
            forward_s = _number(time.forward_s)
            facts.append(
                MatmulFacts(
                    sublayer=KINDS[kind],
                    name=name,
                    shape=_shape(unsplit[kind].matmuls[name][0]),
                    device_shape=shape,
                    forward_s=forward_s,
                    input_grad_s=_number(time.input_grad_s),
                    weight_grad_s=_number(time.weight_grad_s),
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
    stores_scores = kernel in memory.SCORE_BYTES
    sequences, cp, tp = _number(plan.micro_batch), _number(plan.cp), _number(plan.tp)
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
        forward_s = _number(sublayer.forward.attention_s)
        facts.append(
            AttentionFacts(
                sublayer=KINDS[kind],
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
                backward_s=_number(sublayer.backward.attention_s),
                forward_flops=work,
                forward_bytes=2.0 * widths * sequences * (heads * queries + kv_heads * keys),
                forward_flops_per_s=work / forward_s,
            )
        )
    return tuple(facts)


def block_terms(found: Estimate) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Seconds of one micro-batch in each kind of sublayer: ``{sublayer: {pass: {term: seconds}}}``."""
    return {
        KINDS[kind]: {"forward": _pass_terms(sublayer.forward), "backward": _pass_terms(sublayer.backward)}
        for kind, sublayer in _sublayers(times_of(found)).items()
    }


def common_block(found: Estimate) -> tuple[str, str]:
    """The attention and the MLP that most layers have."""
    model = found.model
    windowed, moe = sum(model.layer_is_windowed), model.n_moe_layers
    attention = "windowed" if 2 * windowed > model.n_layers else "full"
    return KINDS[attention], KINDS["moe" if 2 * moe > model.n_layers else "dense"]


def _pass_terms(one: Pass) -> dict[str, float]:
    return {field.name: _number(getattr(one, field.name)) for field in fields(one)}


def _sublayers(times: ModelTimes) -> dict[str, Sublayer]:
    return {**times.kinds, "embedding": times.embedding, "head": times.head}


def _shape(matmul: Matmul) -> Shape:
    return _number(matmul.groups), _number(matmul.tokens), _number(matmul.inner), _number(matmul.outer)


# ---- memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageMemory:
    """What one device of a pipeline stage holds at its peak."""

    stage: int
    layers: float
    has_embedding: bool
    has_head: bool
    in_flight: float
    """Micro-batches whose activations are held."""
    params: float
    """Elements, before data-parallel sharding."""
    bytes_by_term: Mapping[str, float]
    total_bytes: float


@dataclass(frozen=True)
class OpActivation:
    """What one operation of one layer keeps of one micro-batch."""

    sublayer: str
    op: str
    kept_bytes: float
    without_recompute_bytes: float


def stage_memory(found: Estimate, custom_split: tuple[int, ...] | None) -> tuple[StageMemory, ...]:
    """Every pipeline stage's peak."""
    model, plan, machine = found.model, found.plans, found.machine
    stages = chunks_of(model, plan, custom_split, machine.recipe.stage_recompute).stages
    held = stage_params(model, plan, stages)
    holds = footprint(model, plan, stages, held, machine)
    n = len(stages.stage)
    terms = {name: np.broadcast_to(array, n) for name, array in _terms(holds).items()}
    total = np.broadcast_to(holds.states_bytes + holds.passing_bytes, n)
    in_flight = in_flight_micro_batches_count(
        plan.schedule,
        pp=plan.pp,
        vpp=plan.vpp,
        n_micro_batches=machine.recipe.global_batch / (plan.dp * plan.micro_batch),
        stage=stages.stage,
    )
    in_flight = np.broadcast_to(in_flight * (0.5 if int(plan.schedule) == DUALPIPE else 1.0), n)
    params = np.broadcast_to(held.stage_dense + held.stage_expert, n)
    return tuple(
        StageMemory(
            stage=stage,
            layers=float(stages.layers[stage]),
            has_embedding=bool(stages.embeddings[stage]),
            has_head=bool(stages.heads[stage]),
            in_flight=float(in_flight[stage]),
            params=float(params[stage]),
            bytes_by_term={name: float(array[stage]) for name, array in terms.items()},
            total_bytes=float(total[stage]),
        )
        for stage in range(n)
    )


def _terms(holds: Footprint) -> dict[str, Array]:
    """Named terms on every stage, the allocator's slack among them."""
    named = {field.name: getattr(holds, field.name) for field in fields(holds) if field.name.endswith("_bytes")}
    beyond = (holds.states_bytes + holds.passing_bytes) - sum(named.values())
    return {**named, "allocator_bytes": np.asarray(beyond)}


def op_activations(found: Estimate) -> tuple[OpActivation, ...]:
    """What one layer of each kind keeps of one micro-batch, operation by operation."""
    model, plan, machine = found.model, found.plans, found.machine
    profile, recipe = machine.recipe.framework, machine.recipe
    shared: dict[str, Any] = {
        "tokens": plan.micro_batch * recipe.seq_len / plan.cp,
        "tp": plan.tp,
        "sequence_parallel": plan.sequence_parallel,
        "input_bytes": machine.linear.input_bytes if profile.keeps_low_precision_inputs else memory.ACTIVATION_BYTES,
    }
    of_kind: dict[str, Callable[[Array], memory.Activations]] = {}
    attention = "full" if not all(model.layer_is_windowed) else "windowed"
    of_kind[attention] = lambda recompute: memory.attention_activation_bytes(
        model, profile, seq_k_tokens=float(recipe.seq_len), recompute=recompute, **shared
    )
    if not all(model.layer_is_moe):
        of_kind["dense"] = lambda recompute: memory.mlp_activation_bytes(model, profile, recompute=recompute, **shared)
    if model.is_moe:
        of_kind["moe"] = lambda recompute: memory.moe_activation_bytes(
            model, profile, etp=plan.etp, recompute=recompute, routed_factor=profile.routed_factor, **shared
        )
    facts = []
    for kind, activations in of_kind.items():
        kept, whole = activations(plan.recompute).terms, activations(number(memory.NONE)).terms
        facts += [
            OpActivation(KINDS[kind], op, _number(kept[op]), _number(whole[op]))
            for op in kept
            if _number(kept[op]) or _number(whole[op])
        ]
    return tuple(facts)


# ---- communication ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectiveFacts:
    """One kind of exchange, as one call of it and over a step of an average device."""

    what: str
    operation: Operation
    size_bytes: float
    """The whole tensor that is gathered or reduced; of all-to-all and sends, what one rank holds."""
    n_ranks: float
    ranks_per_node: float
    link: Literal["node", "fabric"]
    link_bytes_per_s: float
    """Of one device inside a node; of all NICs that the group uses on one node across nodes."""
    latency_s: float
    """What an empty message takes."""
    bandwidth_s: float
    """What its bytes add to that."""
    calls_per_step: float
    off_node_fraction: float = 1.0
    """Of an all-to-all: what crosses nodes, over what would if a token went there once for each of its experts."""
    spared_s: float = 0.0
    """What that takes off a call."""

    @property
    def call_s(self) -> float:
        return self.latency_s + self.bandwidth_s

    @property
    def sent_s(self) -> float:
        return self.calls_per_step * self.call_s


@dataclass(frozen=True)
class AxisFacts:
    """All exchanges over the groups of one parallel axis; seconds of a step."""

    axis: Literal["TP", "CP", "EP", "PP", "DP"]
    degree: int
    collectives: tuple[CollectiveFacts, ...]
    sent_s: float
    exposed_s: float
    hidden_s: float
    """Sent while something else runs."""
    not_sent_s: float = 0.0
    """What would be sent on top if each token went to a node once for each of its experts there."""
    note: str = ""


def axis_facts(found: Estimate) -> tuple[AxisFacts, ...]:
    """Every axis along which this plan communicates."""
    talk = _Talk(found)
    terms = {name: _number(value) for name, value in found.step.terms().items()}
    plan = found.plans
    again = "what recomputation sends once more counts as recomputation"
    redone = again if terms.get("recompute_s") else ""
    degree = {knob: int(getattr(plan, knob)) for knob in ("tp", "cp", "ep", "etp", "pp", "dp")}
    axes = [
        _axis("TP", degree["tp"], talk.tensor(), terms["tp_comm_s"], redone),
        _axis("CP", degree["cp"], talk.context(), terms["cp_comm_s"], redone),
        _axis("EP", degree["ep"] * degree["etp"], talk.expert(), terms["ep_comm_s"], redone),
        _axis(
            "PP", degree["pp"], talk.pipeline(), terms["pp_comm_s"], "sends while filling and draining count as bubble"
        ),
        _axis("DP", degree["dp"] * degree["cp"], talk.data(), terms["grad_reduce_s"] + terms["param_gather_s"], ""),
    ]
    sent_s = _number(found.step.grad_reduce_sent_s + found.step.param_gather_sent_s)  # over a slow link, too
    axes[-1] = replace(axes[-1], sent_s=sent_s, hidden_s=max(sent_s - axes[-1].exposed_s, 0.0))
    return tuple(axis for axis in axes if axis.collectives)


def _axis(
    name: Literal["TP", "CP", "EP", "PP", "DP"],
    degree: int,
    calls: Iterable[CollectiveFacts],
    exposed_s: float,
    note: str,
) -> AxisFacts:
    collectives = tuple(call for call in calls if call.n_ranks > 1 and call.calls_per_step > 0)
    sent_s = sum(call.sent_s for call in collectives)
    spared_s = sum(call.calls_per_step * call.spared_s for call in collectives)
    return AxisFacts(name, degree, collectives, sent_s, exposed_s, max(sent_s - exposed_s, 0.0), spared_s, note)


class _Talk:
    """The exchanges of one plan, one method per axis."""

    def __init__(self, found: Estimate) -> None:
        self.found = found
        self.plan, self.model, self.recipe = found.plans, found.model, found.machine.recipe
        self.rates = found.machine.hardware.calibration
        self.links: Links = found.links
        self.micro_batches = _number(self.recipe.global_batch / (self.plan.dp * self.plan.micro_batch))
        self.tokens = _number(self.plan.micro_batch * self.recipe.seq_len / self.plan.cp)
        self.counts = _layer_counts(found)

    def call(
        self,
        what: str,
        operation: Operation,
        size_bytes: float,
        link: GroupLink,
        calls: float,
        off_node_fraction: float = 1.0,
    ) -> CollectiveFacts:
        time_s = _OPERATIONS[operation]
        rates = {"node": self.rates.node_collectives[operation], "fabric": self.rates.fabric_collectives[operation]}
        latency_s = _number(time_s(0.0, link, **rates))
        lighter = replace(link, fabric_bytes_per_s=link.fabric_bytes_per_s / off_node_fraction)
        call_s, in_full_s = (_number(time_s(size_bytes, one, **rates)) for one in (lighter, link))
        crosses = _number(link.n_nodes) > 1.0
        return CollectiveFacts(
            what=what,
            operation=operation,
            size_bytes=size_bytes,
            n_ranks=_number(link.n_ranks),
            ranks_per_node=_number(link.ranks_per_node),
            link="fabric" if crosses else "node",
            link_bytes_per_s=_number(link.fabric_bytes_per_s if crosses else link.node_bytes_per_s),
            latency_s=latency_s,
            bandwidth_s=call_s - latency_s,
            calls_per_step=calls,
            off_node_fraction=off_node_fraction,
            spared_s=in_full_s - call_s,
        )

    def per_step(self, n_in_model: float) -> float:
        """Calls of an average device for what happens so often on the way of a micro-batch through the model."""
        return self.micro_batches / _number(self.plan.pp) * n_in_model

    def tensor(self) -> Iterable[CollectiveFacts]:
        """Inputs of column-parallel and outputs of row-parallel layers."""
        size = 2.0 * self.tokens * self.model.hidden_size
        heads = 1.0 + self.model.mtp_layers
        pairs = self.counts["full"] + self.counts["windowed"] + self.counts["dense"]
        if self.model.shared_ffn_hidden_size:
            pairs += self.counts["moe"]
        link = self.links.tp
        gathered_loss = self.recipe.framework.cross_entropy == "gathered"
        if self.plan.sequence_parallel:
            yield self.call("inputs of layers, forward", "all_gather", size, link, self.per_step(pairs + heads))
            yield self.call("outputs of layers, forward", "reduce_scatter", size, link, self.per_step(pairs + 1))
            yield self.call("inputs gathered again, backward", "all_gather", size, link, self.per_step(pairs + heads))
            yield self.call("gradients of outputs, backward", "all_gather", size, link, self.per_step(pairs + 1))
            yield self.call("gradients of inputs, backward", "reduce_scatter", size, link, self.per_step(pairs + heads))
        else:
            yield self.call("outputs of layers, forward", "all_reduce", size, link, self.per_step(pairs + 1))
            yield self.call("gradients of inputs, backward", "all_reduce", size, link, self.per_step(pairs + heads))
        if gathered_loss:
            logits = 2.0 * self.tokens * self.model.vocab_size
            yield self.call("logits, forward", "all_gather", logits, link, self.per_step(heads))

    def context(self) -> Iterable[CollectiveFacts]:
        """Keys and values round the ring or gathered; or heads for parts of the sequence."""
        model, link = self.model, self.links.cp
        heads = {"kv_heads": max(model.n_kv_heads / _number(self.plan.tp), 1.0)}
        widths = {"qk_head_dim": float(model.qk_head_dim), "value_head_dim": float(model.value_head_dim)}
        layers = self.counts["full"] + self.counts["windowed"]
        exchange = _number(self.plan.cp_exchange)
        if exchange == context_parallel.ALL_TO_ALL:
            parts = context_parallel.head_exchange_bytes(
                self.tokens, heads=model.n_heads / _number(self.plan.tp), **heads, **widths
            )
            for what, size in zip(("queries", "keys", "values", "outputs"), parts, strict=True):
                yield self.call(f"{what}, both passes", "all_to_all", _number(size), link, self.per_step(2 * layers))
            return
        whole = _number(self.plan.micro_batch) * self.recipe.seq_len
        size = _number(context_parallel.key_value_bytes(whole, **heads, **widths))
        if exchange == context_parallel.RING:
            link = ring_link(link)
        yield self.call("keys and values, forward", "all_gather", size, link, self.per_step(layers))
        if exchange == context_parallel.ALL_GATHER:
            yield self.call("keys and values, backward", "all_gather", size, link, self.per_step(layers))
            yield self.call("gradients, backward", "reduce_scatter", size, link, self.per_step(layers))
            return
        yield self.call("keys, values and gradients, backward", "all_gather", size, link, self.per_step(2 * layers))

    def expert(self) -> Iterable[CollectiveFacts]:
        """Tokens on their way to their experts and back."""
        if not self.model.is_moe:
            return
        plan, hidden = self.plan, self.model.hidden_size
        shards = _number(1.0 + plan.sequence_parallel * (plan.tp - 1.0))
        size = 2.0 * self.tokens / shards * self.model.top_k * hidden
        passes = self.per_step(2.0 * self.counts["moe"])
        crossing = _number(off_node_fraction(self.model, self.links, self.recipe.framework))
        yield self.call("dispatch, both passes", "all_to_all", size, self.links.ep, passes, crossing)
        yield self.call("combine, both passes", "all_to_all", size, self.links.ep, passes, crossing)
        routed = 2.0 * self.tokens * self.model.top_k * _number(plan.etp / plan.tp) * hidden
        yield self.call("routed tokens, both passes", "all_gather", routed, self.links.etp, passes)
        yield self.call("experts' outputs, both passes", "reduce_scatter", routed, self.links.etp, passes)

    def pipeline(self) -> Iterable[CollectiveFacts]:
        """Activations and their gradients between neighbouring stages."""
        plan, where = self.plan, self.links
        shards = _number(1.0 + plan.sequence_parallel * (plan.tp - 1.0))
        size = 2.0 * self.tokens * self.model.hidden_size / shards
        crosses = bool(where.pp_crosses)
        rates = (self.rates.fabric_collectives if crosses else self.rates.node_collectives)["send"]

        def send_s(sent_bytes: float) -> float:
            return _number(
                send_time_s(
                    sent_bytes, link_bytes_per_s=where.pp_bytes_per_s, link_latency_s=where.pp_latency_s, rates=rates
                )
            )

        yield CollectiveFacts(
            what="activations and gradients, both passes",
            operation="send",
            size_bytes=size,
            n_ranks=_number(plan.pp),
            ranks_per_node=1.0 if crosses else _number(plan.pp),
            link="fabric" if crosses else "node",
            link_bytes_per_s=_number(where.pp_bytes_per_s),
            latency_s=send_s(0.0),
            bandwidth_s=send_s(size) - send_s(0.0),
            calls_per_step=2.0 * self.micro_batches * _number(plan.vpp),
        )

    def data(self) -> Iterable[CollectiveFacts]:
        """Gradients reduced and parameters gathered over the ranks that hold them."""
        plan, profile, where = self.plan, self.recipe.framework, self.links
        held = stage_params(self.model, plan, self.found.stages)
        dense, expert = _number(held.dense), _number(held.expert)
        zero = int(plan.zero_stage)
        reduce: Operation = "reduce_scatter" if zero >= 1 else "all_reduce"
        reduces = self.micro_batches if zero >= 2 else 1.0
        gathers = 0.0 if zero == 0 else 2.0 * self.micro_batches if zero == 3 else 1.0
        per_element = float(profile.grad_reduce_bytes)
        yield self.call("gradients", reduce, dense * per_element, where.shard, reduces)
        if expert:
            yield self.call("gradients of experts", reduce, expert * per_element, where.expert_shard, reduces)
        replicated = dense * per_element / _number(where.shard.n_ranks)
        yield self.call("gradients, between replicas", "all_reduce", replicated, where.replicate, 1.0)
        yield self.call("parameters", "all_gather", dense * 2.0, where.shard, gathers)
        if expert:
            yield self.call("parameters of experts", "all_gather", expert * 2.0, where.expert_shard, gathers)


def _layer_counts(found: Estimate) -> dict[str, float]:
    """Sublayers of each kind that a micro-batch meets, those of multi-token prediction included."""
    model = found.model
    windowed, moe = sum(model.layer_is_windowed), model.n_moe_layers
    counts = {"windowed": windowed, "full": model.n_layers - windowed, "moe": moe, "dense": model.n_layers - moe}
    last = ("windowed" if model.layer_is_windowed[-1] else "full", "moe" if model.layer_is_moe[-1] else "dense")
    return {kind: float(count + model.mtp_layers * (kind in last)) for kind, count in counts.items()}


_Timed = Callable[..., Numeric]
_OPERATIONS: Mapping[str, _Timed] = {
    "all_gather": all_gather_time_s,
    "reduce_scatter": reduce_scatter_time_s,
    "all_reduce": all_reduce_time_s,
    "all_to_all": all_to_all_time_s,
}


# ---- the pipeline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageWork:
    """One micro-batch on one device of a pipeline stage."""

    stage: int
    layers: float
    forward_s: float
    backward_s: float
    """What is recomputed included."""


@dataclass(frozen=True)
class PipelineFacts:
    """How well the pipeline is filled; seconds of a step."""

    schedule: str
    pp: int
    vpp: int
    split: str
    n_micro_batches: float
    stages: tuple[StageWork, ...]
    work_s: float
    """What an average stage works."""
    imbalance_s: float
    bubble_s: float
    bubble_fraction: float
    """Of the pipeline's time."""
    fill_sends: float
    pipeline_s: float
    """From the first forward to the last backward pass."""


def pipeline_facts(found: Estimate, custom_split: tuple[int, ...] | None) -> PipelineFacts:
    """The pipeline of a point."""
    plan = found.plans
    chunks: Chunks = chunks_of(found.model, plan, custom_split, found.machine.recipe.stage_recompute)
    stages = chunks.stages
    times = device_times(found, stages)
    n = len(stages.stage)
    forward, backward = (np.broadcast_to(x, n) for x in (times.forward_s, times.backward_s))
    terms = {name: _number(value) for name, value in found.step.terms().items()}
    total_s = pipeline_time_s(found)
    return PipelineFacts(
        schedule=str(value_of("schedule", float(plan.schedule))),
        pp=int(plan.pp),
        vpp=int(plan.vpp),
        split=str(value_of("split", float(plan.split))),
        n_micro_batches=_number(found.machine.recipe.global_batch / (plan.dp * plan.micro_batch)),
        stages=tuple(
            StageWork(stage, float(stages.layers[stage]), float(forward[stage]), float(backward[stage]))
            for stage in range(n)
        ),
        work_s=total_s - terms["bubble_s"] - terms["imbalance_s"],
        imbalance_s=terms["imbalance_s"],
        bubble_s=terms["bubble_s"],
        bubble_fraction=terms["bubble_s"] / total_s,
        fill_sends=_number(fill_sends_count(plan.schedule, pp=plan.pp, vpp=plan.vpp)),
        pipeline_s=total_s,
    )


BESIDE_PIPELINE = ("optimizer_s", "overhead_s", "grad_reduce_s", "param_gather_s")
"""Terms of a step before its first forward or after its last backward pass."""


def pipeline_time_s(found: Estimate) -> float:
    """From the first forward to the last backward pass of a point, by the estimate."""
    return sum(_number(value) for name, value in found.step.terms().items() if name not in BESIDE_PIPELINE)


# ---- between data centres -----------------------------------------------------------------------------------------


def model_exchange_bytes(found: Estimate) -> tuple[float, float]:
    """Gradients and weights of the whole model, as they are sent."""
    n_params = float(trained_params(found.model))
    return n_params * found.machine.recipe.framework.grad_reduce_bytes, n_params * 2.0


def bucket_bytes(found: Estimate, n_buckets: int) -> float:
    """The size of a bucket that cuts a device's gradients into ``n_buckets``."""
    held = stage_params(found.model, found.plans, found.stages)
    return _number(held.dense + held.expert) * found.machine.recipe.framework.grad_reduce_bytes / n_buckets


def n_buckets(found: Estimate) -> float:
    """Into how many pieces a device's gradients are cut for communication."""
    held = stage_params(found.model, found.plans, found.stages)
    profile = found.machine.recipe.framework
    reduced = _number(held.dense + held.expert) * profile.grad_reduce_bytes
    return float(np.ceil(reduced / profile.bucket_bytes - 1e-9))


def _number(value: Numeric) -> float:
    """A quantity of a point."""
    return float(np.asarray(value).reshape(()))
