"""Context parallelism: what ranks that share a sequence exchange, so that every query meets every earlier key.

ring: blocks of keys and values go from rank to rank while attention works on the block before (``p2p`` in Megatron).
all_to_all: queries, keys and values change from a part of the sequence to a part of the heads, and outputs change back
(Ulysses). all_gather: every rank gathers all keys and values before it begins (Llama 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numeric = float | Array

CP_EXCHANGES = ("ring", "all_to_all", "all_gather")
"""In the order of their codes."""
RING, ALL_TO_ALL, ALL_GATHER = range(len(CP_EXCHANGES))
_BYTES = 2.0
"""Of an activation."""


def key_value_bytes(
    sequence_tokens: Numeric, *, kv_heads: Numeric, qk_head_dim: float, value_head_dim: float
) -> Numeric:
    """Keys and values of the whole sequence on one tensor-parallel rank: what a ring or an all-gather brings to each.

    Source: [liu2023] section 3; [llama2024] section 3.3.2.
    """
    return _BYTES * sequence_tokens * kv_heads * (qk_head_dim + value_head_dim)


def head_exchange_bytes(
    own_tokens: Numeric, *, heads: Numeric, kv_heads: Numeric, qk_head_dim: float, value_head_dim: float
) -> tuple[Numeric, Numeric, Numeric, Numeric]:
    """What a rank holds before each all-to-all of a pass: queries, keys, values, and the output on its way back.

    The backward pass exchanges the gradients of the same four.

    Assumes: heads and KV heads of a tensor-parallel rank that cp divides.
    Source: [jacobs2023] section 3.2.
    """
    of_a_head = _BYTES * own_tokens
    return (
        of_a_head * heads * qk_head_dim,
        of_a_head * kv_heads * qk_head_dim,
        of_a_head * kv_heads * value_head_dim,
        of_a_head * heads * value_head_dim,
    )


def ring_exposed_s(exchange_s: Numeric, attention_s: Numeric, *, cp: Numeric, slowdown: float = 0.0) -> Array:
    """What attention does not hide of a ring: each of ``cp`` steps hides the next block's transfer, the first has none.

    What it hides slows it by the fraction ``slowdown``.

    Ignores: that smaller blocks run attention a little slower; that the mask is split unevenly by some trainers.
    Source: [liu2023] section 3.
    """
    exposed_s = np.maximum(0.0, exchange_s - attention_s * (cp - 1.0) / cp)
    return np.asarray(exposed_s + slowdown * (exchange_s - exposed_s))


ONE_COPY = 2.0
"""Read and written."""
HEAD_EXCHANGE_COPIES = 2.0
"""Of each tensor that changes from a part of the sequence to a part of the heads: heads put outermost, and parts of the
sequence in the order of their tokens."""
MERGED = 3.0 * 0.75
"""Two partial results read and one written; under a causal mask half of the steps concern half of the tokens."""


def exchange_copies_bytes(
    own_tokens: Numeric, *, cp: Numeric, cp_exchange: Numeric, heads: Numeric, kv_heads: Numeric,
    qk_head_dim: float, value_head_dim: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Bytes of memory that each pass moves because of the exchange: layouts changed, partial results merged.

    A ring merges outputs with those of the blocks before, and gradients of queries, keys and values likewise. What was
    gathered is put in the order of its tokens, and so are its gradients once both halves of the queries are added up;
    each half's outputs are put together.

    Assumes: each rank has two parts of the sequence, an early and a late one; the sequence is outermost.
    Source: [transformer_engine] context parallelism, operand by operand.
    """
    parts = head_exchange_bytes(
        own_tokens, heads=heads, kv_heads=kv_heads, qk_head_dim=qk_head_dim, value_head_dim=value_head_dim
    )
    queries, keys, values, outputs = parts
    swapped = HEAD_EXCHANGE_COPIES * ONE_COPY * (queries + keys + values + outputs)
    whole = cp * (keys + values)
    merged = MERGED * (cp - 1.0)
    kind, shared = np.asarray(cp_exchange), np.asarray(cp) > 1.0
    kinds = [kind == RING, kind == ALL_TO_ALL, kind == ALL_GATHER]
    forward = np.select(kinds, [merged * outputs, swapped, ONE_COPY * (whole + outputs)])
    backward = np.select(
        kinds, [merged * (queries + keys + values), swapped, ONE_COPY * (whole + 2.0 * whole + queries)]
    )
    return np.asarray(shared * forward), np.asarray(shared * backward)


def gathered_key_value_bytes(key_value_bytes: Numeric, *, cp: Numeric, cp_exchange: Numeric) -> Array:
    """What an all-gather adds to a layer's working set in the backward pass: keys and values, and their gradients.

    Ignores: the block on its way round a ring, and the copies of an all-to-all, each a cp-th of this.
    Source: [derived] what was gathered lives until attention's backward pass ends, as do the gradients scattered then.
    """
    return np.asarray((cp > 1.0) * (np.asarray(cp_exchange) == ALL_GATHER) * 2.0 * key_value_bytes)
