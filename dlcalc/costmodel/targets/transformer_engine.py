"""What the attention kernels of Transformer Engine, which Megatron runs, know of context parallelism."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.calculators.context_parallel import ALL_GATHER, ALL_TO_ALL, RING
from dlcalc.specs.model import ModelSpec


def unknown_exchanges(model: ModelSpec) -> Mapping[str, tuple[int, ...]]:
    """Codes of the exchanges over cp that no kernel knows for ``model``, by what it has; none for most models.

    Source: its ``attn_forward_func_with_cp``, https://github.com/NVIDIA/TransformerEngine
    """
    return {
        "has attention with sinks over cp by all-to-all only": (RING, ALL_GATHER) if model.attention_sinks else (),
        "has attention windows over cp in no ring": (RING,) if model.sliding_window else (),
        "has latent attention over cp in a ring only": (ALL_TO_ALL, ALL_GATHER) if model.is_mla else (),
    }
