"""Kernels of a layer, counted one by one."""

from __future__ import annotations

import pytest

from dlcalc.calculators.launches import (
    attention_launches_count,
    mlp_launches_count,
    moe_launches_count,
    replayed_launches_fraction,
)
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model

FUSED = load_framework(
    "megatron",
    {
        **dict.fromkeys(("fused_norm", "fused_residual", "fused_rope", "fused_activation"), True),
        "attention": "te_flash",
    },
)
LLAMA = load_model("llama3-8b")


def test_a_fused_attention_of_llama():
    """qkv, out; one norm; rotary of q and of k; flash with two reshapes; residual; three reshapes; two collectives."""
    count = attention_launches_count(LLAMA, FUSED, n_matmuls=2, collectives=2, casts=0)
    assert count == 2 + 1 + 2 + 3 + 1 + 3 + 2


def test_a_fused_mlp_of_llama():
    """up, down; activation; norm; residual; a reshape; an all-reduce."""
    assert mlp_launches_count(LLAMA, FUSED, collectives=1, casts=0) == 2 + 1 + 1 + 1 + 1 + 1


@pytest.mark.parametrize("fused", ["fused_norm", "fused_residual", "fused_rope"])
def test_fusing_never_launches_more(fused):
    def counted(profile):
        return attention_launches_count(LLAMA, profile, n_matmuls=2, collectives=0, casts=0)

    assert counted(FUSED) <= counted(FUSED.model_copy(update={fused: False}))


def test_quantizing_launches_with_every_matmul():
    plain = mlp_launches_count(LLAMA, FUSED, collectives=0, casts=0)
    assert mlp_launches_count(LLAMA, FUSED, collectives=0, casts=2) == plain + 2 * 2


def test_every_local_expert_has_its_own_matmuls():
    model = load_model("qwen3-30b-a3b")
    few, many = (moe_launches_count(model, FUSED, local_experts=n, collectives=0, casts=0) for n in (8, 16))
    assert many - few == 2 * 8


def test_a_graph_of_a_module_replays_its_launches():
    """Attention 12, MLP 6."""
    usual = {"local_experts": 0.0, "casts": 0.0}
    assert replayed_launches_fraction(LLAMA, FUSED, {"attn"}, **usual) == pytest.approx(12 / 18)
    assert replayed_launches_fraction(LLAMA, FUSED, {"attn", "mlp"}, **usual) == 0.99
    assert replayed_launches_fraction(LLAMA, FUSED, {"moe_router", "unheard of"}, **usual) == 0


def test_routing_alone_is_little_of_a_layer_with_many_local_experts():
    model = load_model("qwen3-30b-a3b")
    routing = {"moe_router", "moe_preprocess"}
    few, many = (replayed_launches_fraction(model, FUSED, routing, local_experts=n, casts=2.0) for n in (1.0, 16.0))
    assert many < 0.08 < few
    whole = replayed_launches_fraction(model, FUSED, {"moe"}, local_experts=16.0, casts=2.0)
    assert (
        replayed_launches_fraction(model, FUSED, {"moe", *routing}, local_experts=16.0, casts=2.0) == whole
    )  # not twice
