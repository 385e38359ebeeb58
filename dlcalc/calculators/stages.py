"""Which layers sit on which pipeline stage.

A pipeline of ``pp`` stages with ``vpp`` chunks each cuts the layers into ``pp * vpp`` consecutive chunks. Chunk ``c``
sits on stage ``c mod pp`` (interleaved), except under V-shaped schedules, where stage ``s`` holds chunks ``s`` and ``2
pp - 1 - s``. How much time or memory a layer takes is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.schedule import DUALPIPE, ZB_V
from dlcalc.specs.model import ModelSpec

Array = NDArray[np.float64]

SPLITS = ("even", "embedding_and_loss", "custom")
"""even: equally many layers per chunk; embedding_and_loss: each of the two counts as one layer; custom: given
outright."""
EVEN, EMBEDDING_AND_LOSS, CUSTOM = range(3)


@dataclass(frozen=True)
class StageLayers:
    """Layers of each kind on stages that bound all others: the first, the fullest between, the last.

    Arrays have a leading axis of 3; where a model mixes kinds of layers, of more: the fullest stage of each kind. With one
    stage all are that stage.
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

    @property
    def layers(self) -> Array:
        return self.dense + self.moe


def first_layer_count(n_layers: int, chunk: Array, *, n_chunks: Array | float, split: Array | float) -> Array:
    """Layers before chunk ``chunk``: ``clip(round(c (L + w) / C) - w / 2, 0, L)``.

    w is 2 where the embedding and the loss weigh a layer each, else 0.

    Assumes: chunks as equal as whole layers allow.
    Source: [derived] equal shares of L + w units, the outer two of which are not layers.
    """
    weight = 2.0 * (split == EMBEDDING_AND_LOSS)
    cut = np.floor(chunk * (n_layers + weight) / n_chunks + 0.5) - weight / 2
    return np.asarray(np.clip(cut, 0, n_layers))


def stage_layers_count(
    model: ModelSpec,
    *,
    pp: Array,
    vpp: Array,
    schedule: Array,
    split: Array,
    custom: tuple[int, ...] | None = None,
) -> StageLayers:
    """Layers by kind on the bounding stages, on the broadcast shape of the arguments.

    ``custom`` gives the layers of each chunk in order, read where ``split`` is CUSTOM; it must have pp * vpp entries.

    Source: [narayanan2021] section 2.2, which stage holds which chunk of an interleaved pipeline.
    """
    pp, vpp, schedule, split = np.broadcast_arrays(pp, vpp, schedule, split)
    flat = np.stack([pp.ravel(), vpp.ravel(), schedule.ravel(), split.ravel()], axis=1)
    layouts, where = np.unique(flat, axis=0, return_inverse=True)  # few: a pipeline has few shapes
    kinds = np.array([model.layer_is_windowed, model.layer_is_moe], dtype=float)
    before = np.concatenate([np.zeros((2, 1)), np.cumsum(kinds, axis=1)], axis=1)  # (kind, layers + 1)
    mixed = [kind for kind, counts in enumerate((kinds[0], kinds[1])) if 0 < counts.sum() < model.n_layers]
    columns = [_bounding_stages(before, layout, custom, mixed) for layout in layouts.tolist()]
    table = np.array(columns)[where.ravel()]  # (pipeline, row, stage)
    table = np.moveaxis(table, 0, -1).reshape((*table.shape[1:], *pp.shape))
    stage, windowed, full, dense, moe, embeddings, heads, extremes = table
    return StageLayers(
        stage, windowed, full, dense, moe, embeddings, heads, most_layers=extremes[0], fewest_layers=extremes[1]
    )


def _bounding_stages(
    before: Array, layout: tuple[float, float, float, float], custom: tuple[int, ...] | None, mixed: Sequence[int]
) -> list[list[float]]:
    """The rows of :class:`StageLayers` for one pipeline; ``before`` counts windowed and expert layers up to each.

    ``mixed`` names the kinds (0 attention, 1 MLP) of which the model has two, so that the fullest stage of each is kept.
    """
    n_layers = before.shape[1] - 1
    pp, vpp, schedule, split = int(layout[0]), int(layout[1]), layout[2], layout[3]
    n_chunks = pp * vpp
    chunk = np.arange(n_chunks + 1.0)
    if split == CUSTOM and custom is not None and len(custom) == n_chunks:
        cut = np.concatenate([[0.0], np.cumsum(custom)])
    else:
        cut = first_layer_count(n_layers, chunk, n_chunks=n_chunks, split=split)
    at = np.minimum(cut, n_layers).astype(int)
    windowed, moe = np.diff(before[:, at], axis=1)
    layers = np.diff(cut)

    holds = np.arange(n_chunks) % pp
    if schedule == ZB_V and vpp == 2:
        holds = np.minimum(np.arange(n_chunks), 2 * pp - 1 - np.arange(n_chunks))
    on_stage = holds[None, :] == np.arange(pp)[:, None]  # (stage, chunk)
    if schedule == DUALPIPE:
        on_stage = on_stage | on_stage[::-1]
    per_stage = on_stage @ np.stack([windowed, layers - windowed, layers - moe, moe], axis=1)
    embeddings = on_stage[:, 0].astype(float)
    heads = on_stage[:, -1].astype(float)

    totals = per_stage[:, 2] + per_stage[:, 3]
    between = range(1, pp - 1)
    orders: list[Array] = [totals]
    for kind in mixed:  # columns 0 and 1 are kinds of attention, 2 and 3 of MLP
        orders += [per_stage[:, 2 * kind], per_stage[:, 2 * kind + 1]]
    middles = [max(between, key=lambda s: (by[s], totals[s], -s)) if pp > 2 else 0 for by in orders]
    chosen = [0, *middles, pp - 1]
    rows = [[float(s) for s in chosen]]
    rows += [[per_stage[s, kind] for s in chosen] for kind in range(4)]
    rows += [[embeddings[s] for s in chosen], [heads[s] for s in chosen]]
    rows += [[totals.max(), totals.min(), *[0.0] * (len(chosen) - 2)]]
    return rows
