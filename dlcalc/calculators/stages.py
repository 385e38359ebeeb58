"""Which layers sit on which pipeline stage.

A pipeline of ``pp`` stages with ``vpp`` chunks each cuts the layers into ``pp * vpp`` consecutive chunks. Chunk ``c``
sits on stage ``c mod pp`` (interleaved), except under V-shaped schedules, where stage ``s`` holds chunks ``s`` and ``2
pp - 1 - s``. How much time or memory a layer takes is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.schedule import DUALPIPE, ZB_V
from dlcalc.specs.model import ModelSpec

Array = NDArray[np.float64]

SPLITS = ("even", "embedding_and_loss", "custom", "loss")
"""even: equally many layers per chunk; embedding_and_loss: each of the two counts as one layer, and a module of
multi-token prediction with its loss as two; loss: the same without the embedding; custom: given outright. Under
dualpipe, where both ends share a device, such a module counts as nothing: what it takes too much is less than a layer
more on another device."""
EVEN, EMBEDDING_AND_LOSS, CUSTOM, LOSS = range(4)
NAMED_SPLITS = ("even", "embedding_and_loss", "loss")
"""Those that follow from a word."""
LAYER_ROWS = 7
"""Of a table of stages, those that every pipeline has."""


@dataclass(frozen=True)
class StageLayers:
    """Layers of each kind on the stages that bound all others.

    Arrays have a leading axis: the first stage, those between of which no earlier one has as many layers of every kind,
    the last. It is as long as the worst pipeline of the batch needs, 3 at least; shorter lists repeat a stage.
    """

    stage: Array
    """Index of the stage, which decides its micro-batches in flight."""
    windowed: Array
    """Layers whose attention is a sliding window."""
    full: Array
    """Layers with full attention."""
    dense: Array
    moe: Array
    embeddings: Array
    """1 where the stage holds the token embedding."""
    heads: Array
    """1 where the stage holds the LM head and the loss."""
    most_layers: Array
    """Layers on the fullest stage, and"""
    fewest_layers: Array
    """on the emptiest."""
    recomputed: Array | None = None
    """Layers that are recomputed where every stage has a number of its own; None: no stage has one."""
    recomputed_of_all: Array | None = None
    """Their sum over all stages."""

    @property
    def layers(self) -> Array:
        return self.dense + self.moe


def first_layer_count(
    n_layers: int, chunk: Array, *, n_chunks: Array | float, split: Array | float, mtp_layers: int = 0
) -> Array:
    """Layers before chunk ``chunk``: ``clip(round(c (L + e + l) / C) - e, 0, L)``.

    e and l are what embedding and loss weigh: one layer each, the loss two more for every module of multi-token
    prediction beside it; e is 0 where the loss alone counts, both are where layers alone are split.

    Assumes: chunks as equal as whole layers allow.
    Source: [derived] equal shares of L + e + l units, the outer ones of which are not layers.
    """
    embedding = 1.0 * (np.asarray(split) == EMBEDDING_AND_LOSS)
    loss = np.isin(split, (EMBEDDING_AND_LOSS, LOSS)) * (1.0 + 2.0 * mtp_layers)
    cut = np.floor(chunk * (n_layers + embedding + loss) / n_chunks + 0.5) - embedding
    return np.asarray(np.clip(cut, 0, n_layers))


def weighing_mtp_layers_count(mtp_layers: int, schedule: float) -> int:
    """Modules of multi-token prediction that a split of the layers takes into account.

    Source: [derived] 61 layers of DeepSeek-V3 over 16 stages: 2% of imbalance under dualpipe without, 12% with.
    """
    return 0 if schedule == DUALPIPE else mtp_layers


def stage_layers_count(
    model: ModelSpec,
    *,
    pp: Array,
    vpp: Array,
    schedule: Array,
    split: Array,
    custom: tuple[int, ...] | None = None,
    recomputed: tuple[int, ...] | None = None,
) -> StageLayers:
    """Layers by kind on the bounding stages, on the broadcast shape of the arguments.

    ``custom`` gives the layers of each chunk in order, read where ``split`` is CUSTOM; it must have pp * vpp entries.
    ``recomputed`` gives how many layers of a chunk each stage recomputes (all, where there are fewer): pp entries.

    Ignores: that counted recomputation of mixed layers replays an average layer, so that one cheap layer less can take
    longer; seen in drawn custom splits alone, 3% of a pass at most.
    Source: [narayanan2021] section 2.2, which stage holds which chunk of an interleaved pipeline.
    """
    pp, vpp, schedule, split = np.broadcast_arrays(pp, vpp, schedule, split)
    flat = np.stack([pp.ravel(), vpp.ravel(), schedule.ravel(), split.ravel()], axis=1)
    layouts, where = np.unique(flat, axis=0, return_inverse=True)  # few: a pipeline has few shapes
    kinds = (model.layer_is_windowed, model.layer_is_moe)
    pipelines = [_pipeline(kinds, tuple(layout), custom, recomputed, model.mtp_layers) for layout in layouts.tolist()]
    every, bounding = [held for held, _ in pipelines], [chosen for _, chosen in pipelines]
    longest = max(len(chosen) for chosen in bounding)
    table = np.array(
        [
            held[:, [*chosen[:-1], *[chosen[-2]] * (longest - len(chosen)), chosen[-1]]]
            for held, chosen in zip(every, bounding, strict=True)
        ]
    )  # (pipeline, row, stage)
    table = np.moveaxis(table[where.ravel()], 0, -1).reshape((*table.shape[1:], *pp.shape))
    layers = [held[3] + held[4] for held in every]  # dense, moe
    most, fewest = (
        np.array([extreme(counts) for counts in layers])[where.ravel()].reshape(pp.shape)
        for extreme in (np.max, np.min)
    )
    stage, windowed, full, dense, moe, embeddings, heads, *redone = table
    count = StageLayers(stage, windowed, full, dense, moe, embeddings, heads, most_layers=most, fewest_layers=fewest)
    if not redone:
        return count
    of_all = np.array([held[-1].sum() for held in every])[where.ravel()].reshape(pp.shape)
    return replace(count, recomputed=redone[0], recomputed_of_all=of_all)


def chunk_recomputed_count(stage: NDArray[np.intp], recomputed: tuple[int, ...], pp: int) -> Array:
    """Layers that each chunk is told to recompute: what its ``stage`` is told; of a device no more than it has are.

    None where another number of stages is told, which is refused elsewhere.

    Source: [derived].
    """
    return np.array(recomputed, dtype=float)[stage] if len(recomputed) == pp else np.zeros(len(stage))


@lru_cache(maxsize=1 << 14)
def _pipeline(
    kinds: tuple[tuple[bool, ...], tuple[bool, ...]],
    layout: tuple[float, ...],
    custom: tuple[int, ...] | None,
    recomputed: tuple[int, ...] | None,
    mtp_layers: int,
) -> tuple[Array, list[int]]:
    """Every stage of one pipeline, and which of them bound the others; scenarios of a study share these."""
    windowed_and_moe = np.array(kinds, dtype=float)
    before = np.concatenate([np.zeros((2, 1)), np.cumsum(windowed_and_moe, axis=1)], axis=1)  # (kind, layers + 1)
    held = _every_stage(before, layout, custom, recomputed, mtp_layers)
    held.flags.writeable = False
    return held, _bounding_stages(held)


def _every_stage(
    before: Array,
    layout: tuple[float, ...],
    custom: tuple[int, ...] | None,
    recomputed: tuple[int, ...] | None,
    mtp_layers: int,
) -> Array:
    """The arrays of :class:`StageLayers` (rows) on every stage of one pipeline (columns).

    ``before`` counts windowed and expert layers up to each. Where ``recomputed`` is given, it is a last row.
    """
    n_layers = before.shape[1] - 1
    pp, vpp, schedule, split = int(layout[0]), int(layout[1]), layout[2], layout[3]
    n_chunks = pp * vpp
    chunk = np.arange(n_chunks + 1.0)
    if split == CUSTOM and custom is not None and len(custom) == n_chunks:
        cut = np.concatenate([[0.0], np.cumsum(custom)])
    else:
        weighing = weighing_mtp_layers_count(mtp_layers, schedule)
        cut = first_layer_count(n_layers, chunk, n_chunks=n_chunks, split=split, mtp_layers=weighing)
    at = np.minimum(cut, n_layers).astype(int)
    windowed, moe = np.diff(before[:, at], axis=1)
    layers = np.diff(cut)

    holds = np.arange(n_chunks) % pp
    if schedule == ZB_V and vpp == 2:
        holds = np.minimum(np.arange(n_chunks), 2 * pp - 1 - np.arange(n_chunks))
    on_stage = holds[None, :] == np.arange(pp)[:, None]  # (stage, chunk)
    if schedule == DUALPIPE:
        on_stage = on_stage | on_stage[::-1]
    first, last = (np.arange(n_chunks) == chunk for chunk in (0, n_chunks - 1))
    per_chunk = np.stack([windowed, layers - windowed, layers - moe, moe, first, last], axis=1)
    if recomputed is not None:
        redone = chunk_recomputed_count(holds, recomputed, pp)
        per_chunk = np.concatenate([per_chunk, redone[:, None]], axis=1)
    held = (on_stage @ per_chunk).T
    if recomputed is not None:
        held[-1] = np.minimum(held[-1], held[2] + held[3])  # dense, moe
    return np.concatenate([np.arange(float(pp))[None, :], held])


def _bounding_stages(held: Array) -> list[int]:
    """Stages that take the most time or memory, whatever a layer of each kind takes, first to last; three at least.

    An earlier stage holds as many micro-batches, so one between that has no more layers of any kind than it is bounded;
    where every stage recomputes as many layers as it is told, recomputed layers and others are two kinds more.
    """
    kinds = held[1:5].T  # (stage, kind)
    if len(held) > LAYER_ROWS:
        redone = held[-1]
        kinds = np.concatenate([kinds, np.stack([redone, held[3] + held[4] - redone], axis=1)], axis=1)
    pp = len(kinds)
    chosen = [0]
    for stage in range(1, pp - 1):
        if not any(np.all(kinds[earlier] >= kinds[stage]) for earlier in chosen):
            chosen.append(stage)
    if len(chosen) == 1:
        chosen.append(1 if pp > 2 else 0)
    return [*chosen, pp - 1]
