"""Which share of what each operation keeps for its backward pass a recompute mode leaves: tables, modes in columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlcalc.specs.recompute import for_every_mode

KEPT: Mapping[str, tuple[float, ...]] = {
    # recompute mode:        none selec full norm mla sac mlp moe
    "layer_input": (1, 1, 1, 1, 1, 1, 1, 1),
    "norm_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "norm_intermediates": (1, 1, 0, 0, 1, 0, 1, 1),
    "linear_input": (1, 1, 0, 0, 1, 0, 1, 1),
    "latents": (1, 1, 0, 1, 1, 0, 1, 1),
    "query_key_value": (1, 1, 0, 1, 1, 0, 1, 1),
    "latent_query_key_value": (1, 1, 0, 1, 0, 0, 1, 1),
    "scores": (1, 0, 0, 1, 1, 0, 1, 1),
    "core_output": (1, 1, 0, 1, 1, 1, 1, 1),
    "core_output_beside_copy": (1, 0, 0, 1, 1, 1, 1, 1),
    "logsumexp": (1, 0, 0, 1, 1, 1, 1, 1),
    "projection_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "mlp_norm_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "mlp_norm_intermediates": (1, 1, 0, 0, 1, 0, 0, 1),
    "mlp_input": (1, 1, 0, 0, 1, 0, 0, 1),
    "gate_up": (1, 1, 0, 1, 1, 0, 0, 1),
    "activation": (1, 1, 0, 0, 1, 0, 0, 1),
    "routing": (1, 1, 0, 1, 1, 0, 1, 0),
    "shared_input": (1, 1, 0, 0, 1, 0, 1, 0),
    "expert_input": (1, 1, 0, 1, 1, 0, 1, 0),
    "expert_gate_up": (1, 1, 0, 1, 1, 0, 1, 0),
    "expert_activation": (1, 1, 0, 0, 1, 0, 1, 0),
    "expert_output": (1, 1, 0, 1, 1, 0, 1, 0),
    "dropout_mask": (1, 1, 0, 1, 1, 0, 1, 1),
    "every_other_matmul": (0, 0, 0, 0, 0, 1, 0, 0),
    "scattered_output": (0, 0, 0, 0, 0, 1, 0, 0),
    "exchanged": (0, 0, 0, 0, 0, 1, 0, 0),
}
"""Share of each op's bytes that is still there when the backward pass begins, by simple recompute mode. A dense MLP
that runs again begins at its norm, a mixture of experts after it, as in Megatron."""

KEPT_UNFUSED_NORM: Mapping[str, tuple[float, ...]] = {
    "layer_input": (0, 0, 1, 1, 0, 1, 0, 0),
    "norm_input": (0, 0, 0, 1, 0, 0, 0, 0),
    "mlp_norm_input": (0, 0, 0, 1, 0, 0, 1, 0),
}
"""A norm in PyTorch operations keeps what it made of its input; the input itself only where it must run again."""

KEPT_BY_MODE = {op: np.array(for_every_mode(shares, min)) for op, shares in KEPT.items()}
UNFUSED_NORM_BY_MODE = {op: np.array(for_every_mode(shares, max)) for op, shares in KEPT_UNFUSED_NORM.items()}
