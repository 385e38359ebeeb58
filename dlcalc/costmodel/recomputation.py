"""What is run again in the backward pass because its output was not kept: shares of time, launches, FLOPs and layers.

A recompute mode is a code (``specs.recompute``), an index into the tables here; a mode of several parts runs again what
any of them does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlcalc.calculators import flops, schedule
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.layer_matmuls import sum_of
from dlcalc.costmodel.layer_times import Pass, Sublayer
from dlcalc.costmodel.plans import ALL_LAYERS, PER_STAGE, Array, Plans
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import FULL, MLP, MOE, OP_SAC, codes_with, for_every_mode

REPLAYED: Mapping[str, tuple[float, ...]] = {
    # recompute mode:    none selective full norm_act mla_up op_sac
    "matmul_s": (0.0, 0.0, 1.0, 0.0, 0.0, 0.5),
    "latent_matmul_s": (0.0, 0.0, 1.0, 0.0, 1.0, 0.5),
    "attention_s": (0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    "norm_s": (0.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    "activation_s": (0.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    "other_memory_s": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "tp_comm_s": (0.0, 0.0, 1.0, 0.0, 0.0, 0.5),
    "cp_comm_s": (0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    "ep_comm_s": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
}
"""Share of each part of the forward pass that a simple recompute mode runs again."""
LAUNCHED_AGAIN = (0.0, 0.2, 1.0, 0.15, 0.1, 0.6)
"""Share of a layer's launches that each simple mode repeats, but for those below."""
REPLAYED_WHOLE = {"dense": (1.0, 0.0), "moe": (0.0, 1.0)}
"""Of a kind of sublayer, in modes mlp and moe; those of attention not at all."""
NOT_AGAIN = {"moe": ("norm_s",)}
"""What of these is kept even so: experts that run again begin after their norm."""


def _replayed_by_mode(kind: str) -> dict[str, Array]:
    whole, kept = REPLAYED_WHOLE.get(kind, (0.0, 0.0)), NOT_AGAIN.get(kind, ())
    return {
        term: np.array(for_every_mode((*shares, *((0.0, 0.0) if term in kept else whole)), max))
        for term, shares in REPLAYED.items()
    }


KINDS = ("windowed", "full", "dense", "moe")
REPLAYED_OF_KIND = {kind: _replayed_by_mode(kind) for kind in KINDS}
LAUNCHED_AGAIN_OF_KIND = {
    kind: np.minimum(for_every_mode((*LAUNCHED_AGAIN, *REPLAYED_WHOLE.get(kind, (0.0, 0.0))), sum), 1.0)
    for kind in KINDS
}

# recompute mode:                           none select full norm latent sac mlp  moe
MATMULS_AGAIN = np.array(for_every_mode((0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 0.0), max))
SCORES_AGAIN = np.array(for_every_mode((0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0), max))
"""Shares of the FLOPs of matmuls, and of those of attention scores, that a mode counts again."""


def replay_s(forward: Pass, recompute: Array, kind: str) -> Array:
    """Time of running again what ``recompute`` did not keep of a sublayer of ``kind``."""
    code = recompute.astype(np.int64)
    return sum_of(
        np.take(shares, code) * getattr(forward, term)
        for term, shares in REPLAYED_OF_KIND[kind].items()
        if np.any(getattr(forward, term))
    ) + np.zeros_like(recompute)


def layer_end_s(plans: Plans, dense: Sublayer) -> Array:
    """What is not run again of a dense MLP where recomputation stops early.

    Of a whole layer its last matmul, and the exchange after it: of two, or the only one where tp ranks hold whole
    activations. Where every other matmul is kept the last one is (half of it was counted), and so is what it exchanges.
    """
    _, down = dense.matmuls["down"]
    closing = (1.0 - 0.5 * plans.sequence_parallel) * dense.forward.tp_comm_s
    whole = np.isin(plans.recompute, (FULL, *codes_with(MLP))) * (down.forward_s + closing)
    return np.asarray(whole + (plans.recompute == OP_SAC) * (0.5 * down.forward_s))


def recompute_flops_factor(model: ModelSpec, recipe: Recipe, plans: Plans, stages: StageLayers) -> Array:
    """FLOPs of a step with recomputation over those without: of three passes, one of what is run again on top."""
    causal = recipe.mfu_convention != "full_attention"
    forward = flops.forward_token_flops(model, seq_len=float(recipe.seq_len), causal=causal)
    scores = forward.attention_scores_flops
    matmuls = forward.total_flops - scores - forward.head_flops - forward.mtp_flops
    code = plans.recompute.astype(np.int64)
    again = MATMULS_AGAIN[code] * matmuls + SCORES_AGAIN[code] * scores
    again = again + np.isin(code, codes_with(MLP)) * forward.dense_mlp_flops
    again = again + np.isin(code, codes_with(MOE)) * forward.moe_flops
    if not recipe.framework.recomputes_to_the_end:
        last = forward.dense_mlp_flops / (2.0 + model.gated_mlp)
        again = again - (np.isin(code, (FULL, *codes_with(MLP))) + 0.5 * (code == OP_SAC)) * last
    return 1.0 + mean_recomputed_fraction(model, plans, stages) * again / (3.0 * forward.total_flops)


def recomputed_fraction(plans: Plans, layers: Array, per_stage: Array | None = None) -> Array:
    """Share of a device's ``layers`` that are recomputed: ``recompute_layers`` of each of its chunks, or all.

    Trainers count per chunk: a device with vpp chunks recomputes vpp times as many. ``per_stage`` is what its stage
    recomputes of all its chunks where stages have numbers of their own.
    """
    chunks = plans.vpp * (1.0 + (plans.schedule == schedule.DUALPIPE))
    told = plans.recompute_layers * chunks
    if per_stage is not None:
        told = np.where(plans.recompute_layers == PER_STAGE, per_stage, told)
    counted = np.minimum(told, layers) / np.maximum(layers, 1.0)
    return np.where(plans.recompute_layers == ALL_LAYERS, 1.0, counted)


def mean_recomputed_fraction(model: ModelSpec, plans: Plans, stages: StageLayers) -> Array:
    """Share of an average device's layers that are recomputed."""
    per_stage = None if stages.recomputed_of_all is None else stages.recomputed_of_all / plans.pp
    return recomputed_fraction(plans, mean_layers(model, plans), per_stage)


def mean_layers(model: ModelSpec, plans: Plans) -> Array:
    """Layers of an average device; under dualpipe it holds two stages."""
    return np.asarray(model.n_layers / plans.pp * (1.0 + (plans.schedule == schedule.DUALPIPE)))
