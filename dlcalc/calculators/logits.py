"""Device memory of logits and loss, in bytes per device, on the stage that has the LM head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.activations import ACTIVATION_BYTES
from dlcalc.specs.framework import CrossEntropy

Numeric = float | NDArray[np.float64]

GATHERED_LOGIT_COPY_BYTES = 4.0
"""Per logit where the vocabulary is gathered over tp: the parts as they arrive, and the copy that joins them."""

LOSS_CHUNKS = 8.0
"""Into which a chunked loss cuts the tokens of a micro-batch."""

LOGIT_BYTES: Mapping[CrossEntropy, float] = {
    "gathered": 14.0,
    "sharded": 14.0,
    "chunked": 14.0 / LOSS_CHUNKS,
    "parallel": 6.0,
    "fused": 2.0,
}
"""Per logit, where the loss turns around. gathered, sharded, a part of chunked: bf16 logits, log-probabilities, their
gradient and that of the fp32 logits; parallel: bf16 logits and one fp32 copy, worked on in place; fused: bf16 logits
that become their gradient."""

WAITING_LOGIT_BYTES: Mapping[CrossEntropy, float] = {
    "gathered": 4.0,
    "sharded": 4.0,
    "chunked": 0.0,
    "parallel": 4.0,
    "fused": 2.0,
}
"""Per logit, from its loss to its backward pass."""


def logits_loss_bytes(*, tokens: Numeric, vocab_size: float, tp: Numeric, cross_entropy: CrossEntropy) -> Numeric:
    """Logits, loss and their gradients at the moment they take most, on the stage that has the LM head.

    Per token and word: gathered 14 bytes, on every rank; parallel 6 and fused 2, divided over tp. One micro-batch's
    suffices where the last stage turns around at once; ``waiting_logits_bytes`` is of others. The gathered loss adds
    the rank's own part of the logits and two copies of what arrives from the others.

    Ignores: labels, maxima and sums per token.
    Source: [derived] PyTorch's log-softmax keeps its output, its backward pass needs two more; [megatron_lm]
    cross_entropy.py works in place on one fp32 copy.
    """
    per_logit = LOGIT_BYTES[cross_entropy]
    if cross_entropy == "gathered":
        arriving = (ACTIVATION_BYTES / np.asarray(tp) + GATHERED_LOGIT_COPY_BYTES) * (np.asarray(tp) > 1)
        return np.asarray(tokens * vocab_size * (per_logit + arriving))
    return tokens * vocab_size * per_logit / tp


def chunked_loss_bytes(*, tokens: Numeric, hidden_size: float, head_params: Numeric) -> Numeric:
    """What a loss in chunks has besides: inputs' gradients in fp32 and a 16-bit copy; the head's gradient in fp32.

    Source: [derived] ``ChunkedLossWrapper`` of torchtitan's components/loss.py; gradients add up before they are sent.
    """
    return tokens * hidden_size * 6.0 + head_params * 4.0


def waiting_logits_bytes(*, tokens: Numeric, vocab_size: float, tp: Numeric, cross_entropy: CrossEntropy) -> Numeric:
    """What the loss of one micro-batch keeps until its backward pass, where those of others come in between.

    Log-probabilities in fp32; of the fused loss the gradient in 16 bits, written over the logits.

    Source: [derived] as ``logits_loss_bytes``.
    """
    parts = 1.0 if cross_entropy == "gathered" else tp
    return tokens * vocab_size * WAITING_LOGIT_BYTES[cross_entropy] / parts
