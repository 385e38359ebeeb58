"""Stages and chunks of a pipeline, as options of Megatron-Core give them."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators.stages import NAMED_SPLITS, SPLITS, first_layer_count
from dlcalc.launch.megatron.patterns import PatternError, chunks_of
from dlcalc.launch.megatron.said import Said
from dlcalc.specs.model import ModelSpec

Knobs = dict[str, int | bool | str]


def pipeline_knobs(said: Said, model: ModelSpec) -> tuple[Knobs, tuple[int, ...]]:
    """pp, vpp, schedule and split; and the layers of every chunk."""
    pp = said.count("pipeline_model_parallel_size", 1)
    chunks = _laid_out(said, model, pp) or _dealt_out(said, model, pp)
    vpp = len(chunks) // pp
    named = [name for name in NAMED_SPLITS if chunks == _chunks(model, pp * vpp, name)]
    if said.on("account_for_loss_in_pipeline_split"):
        both = said.on("account_for_embedding_in_pipeline_split")
        named.sort(key=lambda name: name != ("embedding_and_loss" if both else "loss"))
    split = named[0] if named else "custom"
    schedule = "interleaved" if vpp > 1 else "1f1b"
    knobs: Knobs = {"pp": pp, "vpp": vpp, "schedule": schedule, "split": split}
    return knobs, chunks


def _chunks(model: ModelSpec, n_chunks: int, split: str) -> tuple[int, ...] | None:
    if split == "even" and model.n_layers % n_chunks:
        return None
    before = first_layer_count(
        model.n_layers,
        np.arange(n_chunks + 1.0),
        n_chunks=float(n_chunks),
        split=float(SPLITS.index(split)),
        mtp_layers=model.mtp_layers,
    )
    return tuple(int(count) for count in np.diff(before))


def _laid_out(said: Said, model: ModelSpec, pp: int) -> tuple[int, ...] | None:
    """Layers of chunks that are listed."""
    name = "pipeline_model_parallel_layout"
    text = said.get(name)
    if text is None:
        return None
    try:
        chunks = chunks_of(str(text))
    except PatternError as error:
        raise said.mistake(name, str(error)) from None
    if len(chunks) % pp:
        raise said.mistake(name, f"{len(chunks)} chunks are no multiple of the {pp} stages")
    letters = "".join(chunks)
    for letter, meaning, count in (
        ("E", "embeddings", 1),
        ("L", "losses", 1),
        ("t", "layers", model.n_layers),
        ("m", "multi-token-prediction modules", model.mtp_layers),
    ):
        if letters.count(letter) != count:
            raise said.mistake(name, f"has {letters.count(letter)} {meaning} ({letter}), where there must be {count}")
    if "m" in letters and "m" not in chunks[-1]:
        said.notes.append(
            "Multi-token-prediction modules have a stage of their own; the estimate has them on the last."
        )
    return tuple(chunk.count("t") for chunk in chunks)


def _dealt_out(said: Said, model: ModelSpec, pp: int) -> tuple[int, ...]:
    """Layers of chunks that follow from numbers of stages and layers."""
    first, last = said.get("decoder_first_pipeline_num_layers"), said.get("decoder_last_pipeline_num_layers")
    embedding, loss = (int(said.on(f"account_for_{part}_in_pipeline_split")) for part in ("embedding", "loss"))
    units = model.n_layers + embedding + loss
    middle = pp
    if isinstance(first, int):
        units, middle = units - first, middle - 1
    if isinstance(last, int):
        units, middle = units - last, middle - 1
    if middle < 0 or units < 0 or (units % middle if middle else units):
        name = "pipeline_model_parallel_size"
        raise said.mistake(name, f"{units} layers do not divide evenly over {max(middle, 0)} stages")
    each = units // middle if middle else 0
    ranks = [each] * pp
    if isinstance(first, int):
        ranks[0] = first
    if isinstance(last, int):
        ranks[-1] = last
    vpp = _virtual_stages(said, each)
    if any(layers % vpp for layers in ranks):
        raise said.mistake("num_virtual_stages_per_pipeline_rank", f"{vpp} do not divide the {ranks} layers of stages")
    chunks = [layers // vpp for _ in range(vpp) for layers in ranks]
    chunks[0] -= embedding
    chunks[-1] -= loss
    return tuple(chunks)


def _virtual_stages(said: Said, stage_layers: int) -> int:
    per_chunk = said.get("num_layers_per_virtual_pipeline_stage")
    if not isinstance(per_chunk, int):
        return said.count("num_virtual_stages_per_pipeline_rank", 1)
    if stage_layers % per_chunk:
        raise said.mistake(
            "num_layers_per_virtual_pipeline_stage", f"{per_chunk} does not divide the {stage_layers} layers of a stage"
        )
    return stage_layers // per_chunk
