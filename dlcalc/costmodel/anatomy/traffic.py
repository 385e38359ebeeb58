"""Every collective of one plan, by the axis of its group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from dlcalc.calculators import context_parallel
from dlcalc.calculators.communication import (
    GroupLink,
    Numeric,
    all_gather_time_s,
    all_reduce_time_s,
    all_to_all_time_s,
    reduce_scatter_time_s,
)
from dlcalc.costmodel.anatomy.numbers import plain
from dlcalc.costmodel.data_parallel import (
    accumulates_whole,
    collectives_count,
    gathered_bytes,
    gathers_again,
    reduces_whole,
)
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.layer_comm import (
    between_stages_s,
    dispatch_link,
    dispatch_setup_s,
    gathered_element_bytes,
    off_node_fraction,
    ring_link,
)
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import number
from dlcalc.costmodel.stage_params import embedding_copies_count, stage_params
from dlcalc.costmodel.stage_times import is_mtp_kind, layer_totals
from dlcalc.costmodel.step_time import embedding_gradient_bytes

Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]


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
    """What would be sent on top if each token went to a node or device once for each of its experts there."""
    note: str = ""


def axis_facts(found: Estimate) -> tuple[AxisFacts, ...]:
    """Every axis along which this plan communicates."""
    talk = _Talk(found)
    terms = {name: plain(value) for name, value in found.step.terms().items()}
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
    sent_s = plain(found.step.grad_reduce_sent_s + found.step.param_gather_sent_s)  # over a slow link, too
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
        self.micro_batches = plain(self.recipe.global_batch / (self.plan.dp * self.plan.micro_batch))
        self.tokens = plain(self.plan.micro_batch * self.recipe.seq_len / self.plan.cp)
        self.counts = _layer_counts(found)

    def call(
        self,
        what: str,
        operation: Operation,
        size_bytes: float,
        link: GroupLink,
        calls: float,
        off_node_fraction: float = 1.0,
        handover_s: float = 0.0,
        lighter: GroupLink | None = None,
    ) -> CollectiveFacts:
        time_s = _OPERATIONS[operation]
        rates = {"node": self.rates.node_collectives[operation], "fabric": self.rates.fabric_collectives[operation]}
        latency_s = plain(time_s(0.0, link, **rates))
        call_s, in_full_s = (plain(time_s(size_bytes, one, **rates)) for one in (lighter or link, link))
        crosses = plain(link.n_nodes) > 1.0
        return CollectiveFacts(
            what=what,
            operation=operation,
            size_bytes=size_bytes,
            n_ranks=plain(link.n_ranks),
            ranks_per_node=plain(link.ranks_per_node),
            link="fabric" if crosses else "node",
            link_bytes_per_s=plain(link.fabric_bytes_per_s if crosses else link.node_bytes_per_s),
            latency_s=latency_s + handover_s,
            bandwidth_s=call_s - latency_s,
            calls_per_step=calls,
            off_node_fraction=off_node_fraction,
            spared_s=in_full_s - call_s,
        )

    def per_step(self, n_in_model: float) -> float:
        """Calls of an average device for what happens so often on the way of a micro-batch through the model."""
        return self.micro_batches / plain(self.plan.pp) * n_in_model

    def tensor(self) -> Iterable[CollectiveFacts]:
        """Inputs of column-parallel and outputs of row-parallel layers."""
        size = 2.0 * self.tokens * self.model.hidden_size
        heads = 1.0 + self.model.mtp_layers
        pairs = self.counts["full"] + self.counts["windowed"] + self.counts["dense"]
        if self.model.shared_ffn_hidden_size:
            pairs += self.counts["moe"]
        call = partial(self.call, link=self.links.tp, handover_s=self.recipe.framework.exchange_handover_s)
        gathered_loss = self.recipe.framework.cross_entropy == "gathered"
        if self.plan.sequence_parallel:
            yield from self._gathered("inputs of layers, forward", pairs, heads, call)
            yield call("outputs of layers, forward", "reduce_scatter", size, calls=self.per_step(pairs + 1))
            if not self.recipe.framework.keeps_gathered_inputs:
                yield from self._gathered("inputs gathered again, backward", pairs, heads, call)
            yield from self._gathered("gradients of outputs, backward", pairs, 1.0, call)
            yield call("gradients of inputs, backward", "reduce_scatter", size, calls=self.per_step(pairs + heads))
        else:
            yield call("outputs of layers, forward", "all_reduce", size, calls=self.per_step(pairs + 1))
            gradients = pairs + heads + self._of_projections_apart()
            yield call("gradients of inputs, backward", "all_reduce", size, calls=self.per_step(gradients))
        if gathered_loss:
            logits = 2.0 * self.tokens * self.model.vocab_size
            yield call("logits, forward", "all_gather", logits, calls=self.per_step(heads))

    def _gathered(
        self, what: str, pairs: float, outer: float, call: Callable[..., CollectiveFacts]
    ) -> Iterable[CollectiveFacts]:
        """What linear layers gather, in low precision where they take it so; embedding and head (``outer``) do not."""
        elements = self.tokens * self.model.hidden_size
        each = gathered_element_bytes(self.found.machine)
        if each == 2.0:
            yield call(what, "all_gather", 2.0 * elements, calls=self.per_step(pairs + outer))
            return
        yield call(what, "all_gather", each * elements, calls=self.per_step(pairs))
        yield call(f"{what}, embedding and head", "all_gather", 2.0 * elements, calls=self.per_step(outer))

    def _of_projections_apart(self) -> float:
        """All-reduces on top where query, key and value, or gate and up, exchange their gradients each on their own."""
        if self.recipe.framework.fused_projections:
            return 0.0
        attention = (self.counts["full"] + self.counts["windowed"]) * (0.0 if self.model.is_mla else 2.0)
        return attention + self.counts["dense"] * float(self.model.gated_mlp)

    def context(self) -> Iterable[CollectiveFacts]:
        """Keys and values round the ring or gathered; or heads for parts of the sequence."""
        model, link = self.model, self.links.cp
        heads = {"kv_heads": max(model.n_kv_heads / plain(self.plan.tp), 1.0)}
        widths = {"qk_head_dim": float(model.qk_head_dim), "value_head_dim": float(model.value_head_dim)}
        layers = self.counts["full"] + self.counts["windowed"]
        exchange = plain(self.plan.cp_exchange)
        if exchange == context_parallel.ALL_TO_ALL:
            parts = context_parallel.head_exchange_bytes(
                self.tokens, heads=model.n_heads / plain(self.plan.tp), **heads, **widths
            )
            for what, size in zip(("queries", "keys", "values", "outputs"), parts, strict=True):
                yield self.call(f"{what}, both passes", "all_to_all", plain(size), link, self.per_step(2 * layers))
            return
        whole = plain(self.plan.micro_batch) * self.recipe.seq_len
        size = plain(context_parallel.key_value_bytes(whole, **heads, **widths))
        if exchange == context_parallel.RING:
            link = ring_link(link, self.plan.tp, self.found.machine.hardware)
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
        shards = plain(1.0 + plan.sequence_parallel * (plan.tp - 1.0))
        size = 2.0 * self.tokens / shards * self.model.top_k * hidden
        passes = self.per_step(2.0 * self.counts["moe"])
        crossing = plain(off_node_fraction(self.model, self.links, self.recipe.framework))
        lighter = dispatch_link(self.model, self.links, self.recipe.framework)
        setup_s = plain(dispatch_setup_s(self.links, self.recipe.framework))
        for what in ("dispatch, both passes", "combine, both passes"):
            yield self.call(what, "all_to_all", size, self.links.ep, passes, crossing, setup_s, lighter)
        routed = 2.0 * self.tokens * self.model.top_k * plain(plan.etp / plan.tp) * hidden
        yield self.call("routed tokens, both passes", "all_gather", routed, self.links.etp, passes)
        yield self.call("experts' outputs, both passes", "reduce_scatter", routed, self.links.etp, passes)

    def pipeline(self) -> Iterable[CollectiveFacts]:
        """Activations and their gradients between neighbouring stages."""
        plan = self.plan
        shards = plain(1.0 + plan.sequence_parallel * (plan.tp - 1.0))
        size = 2.0 * self.tokens * self.model.hidden_size / shards
        sends = 2.0 * self.micro_batches * plain(plan.vpp)
        yield self.between_stages("activations and gradients, both passes", "send", size, plain(plan.pp), sends)

    def between_stages(
        self, what: str, operation: Operation, size_bytes: float, n_ranks: float, calls: float
    ) -> CollectiveFacts:
        """What ``n_ranks`` stages exchange, each call as long as one send."""
        where, machine = self.links, self.found.machine
        latency_s, call_s = (plain(between_stages_s(number(size), where, machine)) for size in (0.0, size_bytes))
        crosses = bool(where.pp_crosses)
        return CollectiveFacts(
            what=what,
            operation=operation,
            size_bytes=size_bytes,
            n_ranks=n_ranks,
            ranks_per_node=1.0 if crosses else n_ranks,
            link="fabric" if crosses else "node",
            link_bytes_per_s=plain(where.pp_bytes_per_s),
            latency_s=latency_s,
            bandwidth_s=call_s - latency_s,
            calls_per_step=calls,
        )

    def data(self) -> Iterable[CollectiveFacts]:
        """Gradients reduced and parameters gathered over the ranks that hold them."""
        plan, profile, where = self.found.kept, self.recipe.framework, self.links
        held = stage_params(self.model, plan, self.found.stages)
        dense, expert = plain(held.dense), plain(held.expert)
        zero = int(plan.zero_stage)
        scatters = zero >= 1 and not reduces_whole(plan, profile)
        reduce: Operation = "reduce_scatter" if scatters else "all_reduce"
        whole = bool(accumulates_whole(plan, profile, number(self.micro_batches)))
        reduces = self.micro_batches if zero >= 2 and not whole else 1.0
        gathers = 0.0 if zero == 0 else 2.0 * self.micro_batches if zero == 3 else 1.0
        if gathers_again(plan, profile):
            gathers = self.micro_batches
        per_element = float(profile.grad_reduce_bytes)
        parts = [("", dense, where.shard)]
        if expert:
            parts.append((" of experts", expert, where.expert_shard))
        pieces = {of: plain(collectives_count(self.model, plan, number(size), profile)) for of, size, _ in parts}
        for of, elements, link in parts:
            piece, times = elements / pieces[of], pieces[of]
            yield self.call(f"gradients{of}", reduce, piece * per_element, link, reduces * times)
            shard = piece * per_element / plain(link.n_ranks)
            yield self.call(f"gradients{of}, between replicas", "all_reduce", shard, where.replicate, times)
        if np.any(embedding_copies_count(self.model, self.found.stages)):
            size = plain(embedding_gradient_bytes(self.model, plan, where, self.recipe))
            what = "gradients of the embedding, first and last stage"
            yield self.between_stages(what, "all_reduce", size, 2.0, 1.0)
        sent = dict(zip(("", " of experts"), map(plain, gathered_bytes(plan, held, self.recipe)), strict=True))
        for of, _, link in parts:
            yield self.call(f"parameters{of}", "all_gather", sent[of] / pieces[of], link, gathers * pieces[of])


def _layer_counts(found: Estimate) -> dict[str, float]:
    """Sublayers of each kind that a micro-batch meets, those of multi-token prediction included."""
    model = found.model
    return {
        kind: float(count + model.mtp_layers * is_mtp_kind(model, kind)) for kind, count in layer_totals(model).items()
    }


_Timed = Callable[..., Numeric]
_OPERATIONS: Mapping[str, _Timed] = {
    "all_gather": all_gather_time_s,
    "reduce_scatter": reduce_scatter_time_s,
    "all_reduce": all_reduce_time_s,
    "all_to_all": all_to_all_time_s,
}
