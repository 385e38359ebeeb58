"""What a plan must satisfy to run at all, apart from memory: ``{reason: mask}``, True where refused.

Each mask is computed on the axes of the knobs it reads, so counting refusals of a grid costs next to nothing. A plan
may be refused for several reasons. Reasons are short sentences, because users read them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.context_parallel import ALL_TO_ALL
from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import CUSTOM, EMBEDDING_AND_LOSS, EVEN, LOSS, StageLayers, first_layer_count
from dlcalc.costmodel.plans import ALL_LAYERS, PER_STAGE, Array, Plans
from dlcalc.specs.hardware import Node
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import FULL, MLA_UP_PROJ, MLP, MOE, RECOMPUTE_MODES, codes_with

Mask = NDArray[np.bool_]
ONE_F_ONE_B, INTERLEAVED = SCHEDULES.index("1f1b"), SCHEDULES.index("interleaved")
NEEDS_TWO_CHUNKS = tuple(SCHEDULES.index(name) for name in ("zb-v",))
DUALPIPE = SCHEDULES.index("dualpipe")

NO_SCHEDULE = "the framework has no such schedule"
NO_RECOMPUTATION = "the framework has no such recomputation"
NO_ZERO_STAGE = "the framework has no such ZeRO stage"
NOT_CHOSEN = frozenset({NO_SCHEDULE, NO_RECOMPUTATION, NO_ZERO_STAGE})
"""Reasons that only say what users of a trainer choose from: a run that was measured shows more."""


def refused_by_mesh(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Refusals that the mesh alone decides."""
    stage_devices = plans.tp * plans.cp * plans.dp
    kv = float(model.n_kv_heads)
    profile = recipe.framework
    reasons = {
        "tp does not divide the attention heads": _indivisible(model.n_heads, plans.tp),
        "tp and the KV heads do not divide each other": _indivisible(kv, plans.tp) & _indivisible(plans.tp, kv)
        if profile.replicates_kv_heads
        else _indivisible(kv, plans.tp),
        "tp does not divide the MLP width": _indivisible(model.ffn_hidden_size, plans.tp),
        "the sequence does not split into 2 cp parts": (plans.cp > 1) & _indivisible(recipe.seq_len, 2 * plans.cp),
        "more pipeline stages than layers": plans.pp > model.n_layers + 2,
        "dp does not divide the global batch": _indivisible(recipe.global_batch, plans.dp),
        "the framework has no tensor parallelism": (plans.tp > 1) & (not profile.supports_tensor),
        "the framework has no context parallelism": (plans.cp > 1) & (not profile.supports_context),
        "the framework has no pipeline parallelism": (plans.pp > 1) & (not profile.supports_pipeline),
    }
    if model.is_moe:
        reasons |= {
            "ep does not divide the experts": _indivisible(model.n_experts, plans.ep),
            "etp does not divide the expert width": _indivisible(model.expert_ffn_hidden_size, plans.etp),
            "etp x ep does not divide the devices of a stage": _indivisible(stage_devices, plans.etp * plans.ep),
        }
    return reasons


def refused_by_batch(recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Refusals that the micro-batch decides."""
    return {
        "dp x micro_batch does not divide the global batch": _indivisible(
            recipe.global_batch, plans.dp * plans.micro_batch
        )
    }


def refused_by_pipeline(model: ModelSpec, recipe: Recipe, plans: Plans, stages: StageLayers) -> Mapping[str, Mask]:
    """Refusals that the schedule, the chunks and the split of layers decide."""
    chunks = plans.pp * plans.vpp
    micro_batches = recipe.global_batch / (plans.dp * plans.micro_batch)
    interleaved = plans.schedule == INTERLEAVED
    two_chunks = np.isin(plans.schedule, NEEDS_TWO_CHUNKS)
    even = plans.split == EVEN
    shared_out = np.isin(plans.split, (EMBEDDING_AND_LOSS, LOSS))
    beside = (plans.split == EMBEDDING_AND_LOSS) + shared_out * (1.0 + 2.0 * model.mtp_layers)  # layers
    return {
        "the layers do not split evenly over pp x vpp": even & _indivisible(model.n_layers, chunks),
        "splitting the embedding and the loss needs pp > 1": shared_out & (plans.pp == 1),
        "a pipeline chunk would hold nothing": (plans.split != CUSTOM) & (chunks > model.n_layers + beside)
        | (stages.fewest_layers < 0)
        | _nothing_before_the_loss(model, plans),
        "interleaving needs vpp > 1 and pp > 1": interleaved & ((plans.vpp == 1) | (plans.pp == 1)),
        "vpp > 1 needs an interleaved or V-shaped schedule": (plans.vpp > 1) & ~interleaved & ~two_chunks,
        "the schedule needs exactly two chunks per stage": two_chunks & (plans.vpp != 2),
        "the schedule needs pp > 1": (plans.schedule != ONE_F_ONE_B) & ~interleaved & (plans.pp == 1),
        "dualpipe needs an even pp": (plans.schedule == DUALPIPE) & _indivisible(plans.pp, 2.0),
        "interleaving needs micro-batches in multiples of pp": interleaved & _indivisible(micro_batches, plans.pp),
        "the schedule needs at least two micro-batches per stage": (plans.schedule == DUALPIPE)
        & (micro_batches < 2 * plans.pp),
    }


def _nothing_before_the_loss(model: ModelSpec, plans: Plans) -> Mask:
    """Where what the loss weighs beyond a layer leaves none to the chunk before the last."""
    weighs = np.isin(plans.split, (EMBEDDING_AND_LOSS, LOSS)) & (plans.schedule != DUALPIPE)
    if not model.mtp_layers or not np.any(weighs):
        return np.zeros((), dtype=bool)
    chunks = plans.pp * plans.vpp
    before, last = (
        first_layer_count(
            model.n_layers, chunks - back, n_chunks=chunks, split=plans.split, mtp_layers=model.mtp_layers
        )
        for back in (2.0, 1.0)
    )
    return np.asarray(weighs & (chunks > 2) & (last <= before))


def refused_by_recompute(model: ModelSpec, plans: Plans, stages: StageLayers) -> Mapping[str, Mask]:
    """Refusals of recomputation and of activation offload."""
    partial = plans.recompute_layers != ALL_LAYERS
    chunks = plans.vpp * (1.0 + (plans.schedule == DUALPIPE))  # of a device
    return {
        "only full recomputation counts layers": partial & (plans.recompute != FULL),
        "as many layers recomputed as a chunk holds, which is all": partial
        & (plans.recompute_layers * chunks >= stages.most_layers),
        "more layers offloaded than a stage holds": plans.offload_layers > stages.most_layers,
        "recomputing latent projections needs latent attention": np.isin(plans.recompute, codes_with(MLA_UP_PROJ))
        & (not model.is_mla),
        "recomputing dense MLPs needs some": np.isin(plans.recompute, codes_with(MLP)) & (model.n_dense_layers == 0),
        "recomputing experts needs some": np.isin(plans.recompute, codes_with(MOE)) & (model.n_moe_layers == 0),
    }


def refused_by_tensor(model: ModelSpec, recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Refusals of sequence parallelism, of what context-parallel ranks exchange, and of the overlaps inside a layer."""
    sharded = plans.sequence_parallel == 1
    reasons = {
        "sequence parallelism needs tp > 1": sharded & (plans.tp == 1),
        "sequence parallelism needs tp x cp to divide the sequence": sharded
        & _indivisible(recipe.seq_len, plans.tp * plans.cp),
        "overlapping tp needs sequence parallelism": (plans.overlap_tp == 1) & ~sharded,
        "overlapping experts needs ep > 1": (plans.overlap_ep == 1) & (plans.ep == 1),
        "all-to-all over cp needs tp x cp to divide the KV heads": (plans.cp > 1)
        & (plans.cp_exchange == ALL_TO_ALL)
        & _indivisible(model.n_kv_heads, plans.tp * plans.cp),
    }
    if model.is_moe:
        reasons["experts under tp > 1 need sequence parallelism"] = (plans.tp > 1) & ~sharded
    return reasons


def refused_by_data(recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Refusals of what is sharded over data parallel ranks, and of its overlaps."""
    ranks = plans.dp * plans.cp
    return {
        "replicas must divide dp x cp": _indivisible(ranks, plans.dp_replicate),
        "replicas of one device shard nothing": (plans.dp_replicate > 1) & (plans.dp_replicate >= ranks),
        "replicas of experts are not modelled": (plans.dp_replicate > 1) & (plans.ep > 1),
        "replicas need sharded states": (plans.dp_replicate > 1) & (plans.zero_stage == 0),
        "sharding gradients or parameters excludes a pipeline here": (plans.zero_stage >= 2)
        & (plans.pp > 1)
        & (not recipe.framework.shards_gradients_in_pipeline),
        "overlapping the parameter gather needs sharded states": (plans.overlap_param == 1) & (plans.zero_stage == 0),
        "overlapping the parameter gather needs the gradient's overlapped": (plans.overlap_param == 1)
        & (plans.overlap_grad == 0),
    }


def _indivisible(whole: Array | float, part: Array | float) -> Mask:
    return np.asarray(np.mod(whole, part) != 0)


def refused_by_framework(recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """What the recipe's framework does not do; its profile says what it does.

    Of schedules, recomputation and ZeRO stages a profile says what its users choose from. Where a target is named, its
    own rules decide instead.
    """
    profile = recipe.framework
    offload = {
        "activation offload excludes a pipeline": (plans.offload_layers > 0)
        & (plans.pp > 1)
        & (not profile.offloads_in_pipeline),
    }
    if recipe.target is not None:
        return offload
    schedules = [SCHEDULES.index(name) for name in profile.schedules]
    modes = [RECOMPUTE_MODES.index(name) for name in profile.recompute_modes]
    return {
        NO_SCHEDULE: (plans.pp > 1) & ~np.isin(plans.schedule, schedules),
        NO_RECOMPUTATION: ~np.isin(plans.recompute, modes),
        NO_ZERO_STAGE: ~np.isin(plans.zero_stage, profile.zero_stages),
        **offload,
    }


def refused_by_node(node: Node, plans: Plans) -> Mapping[str, Mask]:
    """What only works inside a node, and what one without a memory apart from its devices' cannot do.

    Overlapped chunks of tp are written straight into the neighbour's memory.
    """
    reasons = {"overlapping tp needs tp within a node": (plans.overlap_tp == 1) & (plans.tp > node.n_devices)}
    if not node.shares_host_memory:
        return reasons
    return reasons | {
        "the optimizer's states have no other memory to go to": plans.offload_optimizer == 1,
        "activations have no other memory to go to": plans.offload_layers > 0,
    }


def refused_by_custom_split(plans: Plans, custom_split: tuple[int, ...] | None) -> Mapping[str, Mask]:
    """A split given outright must have as many chunks as the pipeline."""
    n_chunks = len(custom_split or ())
    return {
        "custom_split has another number of chunks than pp x vpp": (plans.split == CUSTOM)
        & (plans.pp * plans.vpp != n_chunks)
    }


def refused_by_stage_recompute(recipe: Recipe, plans: Plans) -> Mapping[str, Mask]:
    """Layers recomputed stage by stage must be given for as many stages as the pipeline has."""
    if recipe.stage_recompute is None and not np.any(plans.recompute_layers == PER_STAGE):
        return {}
    return {
        "stage_recompute has another number of stages than pp": (plans.recompute_layers == PER_STAGE)
        & (plans.pp != len(recipe.stage_recompute or ()))
    }
