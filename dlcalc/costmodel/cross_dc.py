"""A plan whose data-parallel replicas sit in several data centres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlcalc.calculators.cross_dc import cross_dc_exchange_time_s
from dlcalc.costmodel.anatomy.exchanges import model_exchange_bytes, n_buckets
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.plans import Array
from dlcalc.specs.run import CrossDcSection


@dataclass(frozen=True)
class CrossDcFacts:
    """What the link between data centres costs; seconds of a step."""

    n_dcs: int
    interconnect_bandwidth_gbps: float
    interconnect_latency_s: float
    gradient_bytes: float
    """Of the whole model: what each exchange moves."""
    weight_bytes: float
    n_buckets: float
    reductions_per_step: float
    gathers_per_step: float
    gradient_sent_s: float
    weights_sent_s: float
    latency_s: float
    """Part of what is sent that an empty message would take too."""
    exposed_s: float
    hidden_s: float
    step_without_s: float
    step_with_s: float
    degradation_fraction: float
    """How much longer a step takes than in one data centre."""


def across_data_centres(found: Estimate, cross: CrossDcSection) -> tuple[Estimate, CrossDcFacts]:
    """The estimate of a point with its gradients and weights crossing the link.

    They hide behind the same passes as inside a data centre.
    """
    plan, step = found.kept, found.step
    micro_batches = float(found.machine.recipe.global_batch / (plan.dp * plan.micro_batch))
    zero = int(plan.zero_stage)
    reductions = micro_batches if zero >= 2 else 1.0
    gathers = 0.0 if zero == 0 else 2.0 * micro_batches if zero == 3 else 1.0
    gradients, weights = model_exchange_bytes(found)
    buckets = n_buckets(found)

    def exchange_s(size_bytes: float, passes: float) -> float:
        return float(
            cross_dc_exchange_time_s(
                size_bytes,
                n_dcs=float(cross.n_dcs),
                link_bytes_per_s=cross.link_bytes_per_s,
                link_latency_s=cross.interconnect_latency_s,
                n_buckets=buckets,
                passes=passes,
            )
        )

    passes = 1.0 if zero >= 1 else 2.0
    reduce_s, gather_s = reductions * exchange_s(gradients, passes), gathers * exchange_s(weights, 1.0)
    crossed = replace(
        step,
        grad_reduce_sent_s=np.asarray(step.grad_reduce_sent_s + reduce_s),
        param_gather_sent_s=np.asarray(step.param_gather_sent_s + gather_s),
        overlap=replace(
            step.overlap,
            grad_limit_s=_stretched(step.overlap.grad_limit_s, step.grad_reduce_sent_s, reduce_s),
            gather_limit_s=_stretched(step.overlap.gather_limit_s, step.param_gather_sent_s, gather_s),
        ),
    )
    result = replace(found, known_step=crossed)
    before, after = float(found.step_time_s), float(result.step_time_s)
    return result, CrossDcFacts(
        n_dcs=cross.n_dcs,
        interconnect_bandwidth_gbps=cross.interconnect_bandwidth_gbps,
        interconnect_latency_s=cross.interconnect_latency_s,
        gradient_bytes=gradients,
        weight_bytes=weights,
        n_buckets=buckets,
        reductions_per_step=reductions,
        gathers_per_step=gathers,
        gradient_sent_s=reduce_s,
        weights_sent_s=gather_s,
        latency_s=reductions * exchange_s(0.0, passes) + gathers * exchange_s(0.0, 1.0),
        exposed_s=after - before,
        hidden_s=max(reduce_s + gather_s - (after - before), 0.0),
        step_without_s=before,
        step_with_s=after,
        degradation_fraction=after / before - 1.0,
    )


def _stretched(limit_s: Array, sent_s: Array, more_s: float) -> Array:
    """What can be hidden at most, when ``more_s`` is sent in the same buckets: the same share of it."""
    share = np.divide(limit_s, sent_s, out=np.zeros_like(np.asarray(sent_s, dtype=float)), where=np.asarray(sent_s) > 0)
    return np.asarray(limit_s + share * more_s)
