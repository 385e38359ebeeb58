"""What our equations say of kernels that no constant was fitted to: latent attention, experts, tokens between ranks."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators import kernels
from dlcalc.calculators.communication import all_to_all_time_s
from dlcalc.costmodel.layer_comm import dispatch_link
from dlcalc.costmodel.placement import links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model_registry import load_model
from kernel_fit.sources import INPUT_BYTES

LATENT_HEADS = {"qk_head_dim": 192.0, "v_head_dim": 128.0}
"""Of DeepSeek-V3, which is what was timed."""
EXPERTS_MODEL, DISPATCHING = "deepseek-v3", "megatron_bridge"
"""A model with experts and a trainer that sends tokens once to a node: their other settings say nothing here."""


def _device(hardware: HardwareSpec, precision: str) -> dict[str, float]:
    return {
        "peak_flops_per_s": hardware.device.peak_flops_per_s(precision),
        "hbm_bytes_per_s": hardware.device.hbm_bytes_per_s,
        "n_sms": hardware.device.n_sms.value,
    }


def latent_attention_s(device: str, *, batch: Array, seq: Array, heads: Array) -> Array:
    """Causal, forward, every head with keys and values of its own; heads of 192 (queries, keys) and 128 (values)."""
    hardware = load_hardware(device)
    seconds = kernels.attention_forward_time_s(
        seq, seq, batch=batch, n_heads=heads, n_kv_heads=heads, **LATENT_HEADS,
        rates=hardware.calibration.attention["bf16"], **_device(hardware, "bf16"),
    )  # fmt: skip
    return np.asarray(seconds)


def experts_s(
    device: str, precision: str, *, tokens: Array, hidden: Array, width: Array, top_k: Array, n_experts: Array
) -> Array:
    """All experts of a layer on one device, forward: rows gathered, two grouped matmuls, the gate, rows summed.

    A pass each, as fused kernels make them: tokens read and copied for their experts, gates read and written, outputs
    read and summed.
    """
    hardware = load_hardware(device)
    routed = tokens * top_k
    bytes_each = INPUT_BYTES[precision]
    settings = {
        "groups": n_experts,
        "rates": hardware.calibration.matmul[precision],
        "input_bytes": bytes_each,
        "l2_bytes": hardware.device.l2_mib.value * 2.0**20,
        **_device(hardware, precision),
    }
    up = kernels.matmul_time_s(routed / n_experts, 2.0 * width, hidden, **settings)
    down = kernels.matmul_time_s(routed / n_experts, hidden, width, **settings)
    gathered = tokens * hidden * 2.0 + routed * hidden * bytes_each
    gated = routed * width * (4.0 + bytes_each)
    summed = routed * hidden * 2.0 + tokens * hidden * 2.0
    achieved = hardware.device.hbm_bytes_per_s * hardware.calibration.memory.hbm_fraction
    return np.asarray(up + down + (gathered + gated + summed) / achieved)


def combine_s(device: str, *, nodes: float, tokens: Array, hidden: Array, top_k: float, n_experts: float) -> Array:
    """Tokens back from their experts, in 16 bits, by a dispatcher that knows nodes; its setup left out."""
    hardware, profile = load_hardware(device), load_framework(DISPATCHING)
    model = load_model(EXPERTS_MODEL).model_copy(
        update={"top_k": int(top_k), "n_experts": int(n_experts), "expert_groups_per_token": 0}
    )
    ranks = int(nodes) * hardware.node.n_devices
    between = links(Plans.point(dp=ranks, ep=ranks), hardware)
    rates = hardware.calibration
    return np.asarray(
        all_to_all_time_s(
            2.0 * tokens * top_k * hidden,
            dispatch_link(model, between, profile),
            node=rates.node_collectives["all_to_all"],
            fabric=rates.fabric_collectives["all_to_all"],
        )
    )
