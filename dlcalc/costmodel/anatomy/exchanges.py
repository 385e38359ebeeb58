"""What one plan exchanges of its parameters between data centres, and in how many buckets."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators.params import trained_params
from dlcalc.costmodel.anatomy.numbers import plain
from dlcalc.costmodel.data_parallel import collectives_count
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.stage_params import stage_params


def model_exchange_bytes(found: Estimate) -> tuple[float, float]:
    """Gradients and weights of the whole model, as they are sent."""
    n_params = float(trained_params(found.model))
    return n_params * found.machine.recipe.framework.grad_reduce_bytes, n_params * 2.0


def bucket_elements(found: Estimate, n_buckets: int) -> float:
    """Of a bucket that cuts a device's gradients into ``n_buckets``."""
    held = stage_params(found.model, found.plans, found.stages)
    return plain(held.dense + held.expert) / n_buckets


def n_buckets(found: Estimate) -> float:
    """Into how many pieces a device's gradients are cut for communication."""
    held = stage_params(found.model, found.plans, found.stages)
    profile = found.machine.recipe.framework
    calls = collectives_count(found.model, found.kept, held.dense + held.expert, profile)
    return float(np.ceil(plain(calls) - 1e-9))
