"""Memory equations: against what autograd really keeps, against counts by hand, and their laws."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dlcalc.calculators.activations import (
    attention_activation_bytes,
    embedding_activation_bytes,
    head_activation_bytes,
    mlp_activation_bytes,
    moe_activation_bytes,
)
from dlcalc.calculators.kept import KEPT, KEPT_BY_MODE
from dlcalc.calculators.logits import chunked_loss_bytes, logits_loss_bytes, waiting_logits_bytes
from dlcalc.calculators.memory import (
    backward_working_set_bytes,
    bucket_buffer_bytes,
    dispatch_buffer_bytes,
    fsdp_working_set_bytes,
    gradient_bytes,
    optimizer_bytes,
    recompute_working_set_bytes,
    stage_buffer_bytes,
    tp_overlap_buffer_bytes,
    weight_gradient_working_set_bytes,
    weights_bytes,
)
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.plan import Recompute
from dlcalc.specs.recompute import (
    FULL,
    MLA_UP_PROJ,
    MLP,
    MOE,
    NONE,
    NORM_ACT,
    OP_SAC,
    PARTS,
    RECOMPUTE_MODES,
    SELECTIVE,
    SIMPLE_MODES,
    codes_with,
    combined,
    from_least_to_most,
    parts_of,
)

FUSED = FrameworkProfile(
    name="fused",
    description="every kernel fused",
    attention="flash2",
    fused_norm=True,
    fused_activation=True,
    fused_residual=True,
    fused_rope=True,
    cross_entropy="fused",
    grad_bytes=4,
    grad_reduce_bytes=4,
    zero_stages=(1,),
    overlap_grad=False,
    overlap_param=False,
    overlap_tp=False,
    host_launch_us=5.0,
)
UNFUSED = FUSED.model_copy(
    update={"name": "unfused", "attention": "unfused", "fused_norm": False, "fused_activation": False}
)
GPT_OSS = load_model("gpt-oss-120b")
LLAMA_8B = ModelSpec(
    name="llama3-8b",
    n_layers=32,
    hidden_size=4096,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_hidden_size=14336,
    vocab_size=128256,
)
DEEPSEEK_V3 = ModelSpec(
    name="deepseek-v3",
    n_layers=61,
    hidden_size=7168,
    n_heads=128,
    n_kv_heads=128,
    head_dim=128,
    ffn_hidden_size=18432,
    vocab_size=129280,
    n_experts=256,
    top_k=8,
    expert_ffn_hidden_size=2048,
    n_shared_experts=1,
    shared_ffn_hidden_size=2048,
    first_dense_layers=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
ONE_DEVICE: dict[str, Any] = {"tp": 1.0, "sequence_parallel": 0.0}


def attention(model, profile, **plan):
    return attention_activation_bytes(model, profile, seq_k_tokens=plan.pop("seq", 1.0), **ONE_DEVICE | plan)


def layer_bytes(model, profile, **plan):
    mlp = {key: value for key, value in plan.items() if key != "seq"}
    return (
        attention(model, profile, **plan).total_bytes
        + mlp_activation_bytes(model, profile, **ONE_DEVICE | mlp).total_bytes
    )


# --- what autograd keeps ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason="torch runs the layers to compare with")


def autograd_keeps_bytes(torch, run, parameters) -> int:
    """Bytes of all storages that autograd saves during ``run``, those of ``parameters`` aside."""
    storages = {}
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(storages.values())


class Layer:
    """A pre-norm transformer layer in bf16, written as trainers without fused kernels write it."""

    def __init__(self, torch, model: ModelSpec, *, flash: bool, norm_casts: int) -> None:
        self.torch, self.model, self.flash, self.norm_casts = torch, model, flash, norm_casts
        h, q = model.hidden_size, model.n_heads * model.head_dim
        kv, f = model.n_kv_heads * model.head_dim, model.ffn_hidden_size
        sizes = {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q), "gate": (f, h), "up": (f, h), "down": (h, f)}
        self.weights = {name: self.parameter(*size) for name, size in sizes.items()}
        self.gains = [self.parameter(h), self.parameter(h)]

    def parameter(self, *size):
        return self.torch.randn(*size, dtype=self.torch.bfloat16).requires_grad_()

    @property
    def parameters(self):
        return [*self.weights.values(), *self.gains]

    def linear(self, x, name):
        return self.torch.nn.functional.linear(x, self.weights[name])

    def norm(self, x, gain):
        if not self.norm_casts:
            return self.torch.nn.functional.layer_norm(x, (x.shape[-1],), gain, gain)
        x_fp32 = x.float()
        again = x_fp32 if self.norm_casts == 1 else x.float()
        scaled = x_fp32 * self.torch.rsqrt(again.pow(2).mean(-1, keepdim=True) + 1e-6)
        return scaled.type_as(x) * gain

    def rotated(self, x, cos, sin):
        first, second = x.chunk(2, dim=-1)
        return x * cos + self.torch.cat((-second, first), dim=-1) * sin

    def attend(self, q, k, v):
        functional = self.torch.nn.functional
        if self.flash:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) * self.model.head_dim**-0.5
        return functional.softmax(scores.float(), dim=-1).type_as(q) @ v

    def __call__(self, x, cos, sin):
        model, functional = self.model, self.torch.nn.functional
        batch, seq, _ = x.shape

        def heads(y):
            return y.view(batch, seq, -1, model.head_dim).transpose(1, 2)

        x = x * 1.0  # not a leaf: a tensor that nothing but the layer keeps alive
        normed = self.norm(x, self.gains[0])
        q, k, v = (heads(self.linear(normed, name)) for name in "qkv")
        out = self.attend(self.rotated(q, cos, sin), self.rotated(k, cos, sin), v)
        x = x + self.linear(out.transpose(1, 2).reshape(batch, seq, -1), "o")
        normed = self.norm(x, self.gains[1])
        activated = functional.silu(self.linear(normed, "gate")) * self.linear(normed, "up")
        return x + self.linear(activated, "down")


@pytest.mark.parametrize("flash", [False, True], ids=["scores", "flash"])
@pytest.mark.parametrize("norm_casts", [1, 2, 0], ids=["unfused-norm", "norm-of-two-casts", "fused-norm"])
def test_a_layer_keeps_what_autograd_keeps(torch, flash, norm_casts):
    """To the byte, but for the statistics of norms, which the equations leave out."""
    batch, seq = 2, 64
    model = ModelSpec(
        name="small",
        n_layers=1,
        hidden_size=96,
        n_heads=4,
        n_kv_heads=4,
        head_dim=32,
        ffn_hidden_size=160,
        vocab_size=256,
    )
    kernels = {"attention": "flash2" if flash else "unfused", "fused_norm": not norm_casts}
    profile = UNFUSED.model_copy(update={**kernels, "norm_casts": max(1, norm_casts)})
    layer = Layer(torch, model, flash=flash, norm_casts=norm_casts)
    x = torch.randn(batch, seq, model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    cos, sin = (torch.randn(seq, model.head_dim, dtype=torch.bfloat16) for _ in range(2))
    kept = autograd_keeps_bytes(torch, lambda: layer(x, cos, sin), [*layer.parameters, cos, sin])

    statistics = batch * seq * 2 * (4 if norm_casts else 2 * 2)  # mean and deviation in bf16, or one number in fp32
    estimate = layer_bytes(model, profile, tokens=float(batch * seq), seq=float(seq))
    assert kept == estimate + statistics


def test_the_gathered_loss_takes_what_autograd_takes(torch):
    """Kept: log-probabilities in fp32. Around them at the peak: bf16 logits and two gradients in fp32, 14 bytes."""
    tokens, vocab = 64, 1000
    logits = torch.randn(tokens, vocab, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,))
    kept = autograd_keeps_bytes(
        torch, lambda: torch.nn.functional.cross_entropy((logits * 1.0).float(), labels), [labels]
    )
    assert kept // (tokens * vocab) == 4
    peak = logits_loss_bytes(tokens=tokens, vocab_size=vocab, tp=1.0, cross_entropy="gathered")
    assert peak == tokens * vocab * (2 + kept // (tokens * vocab) + 4 + 4)


# --- counts by hand --------------------------------------------------------------------------------------------------


def test_llama3_8b_layer_by_op():
    """Bytes per token: hidden 4096, Q 4096, K and V 1024 each, MLP 14336."""
    assert attention(LLAMA_8B, FUSED, tokens=1.0).terms == {
        "layer_input": 2 * 4096,
        "linear_input": 2 * 4096,
        "query_key_value": 2 * (4096 + 2 * 1024),
        "core_output": 2 * 4096,
        "logsumexp": 4 * 32,
        "every_other_matmul": 0,
    }
    assert mlp_activation_bytes(LLAMA_8B, FUSED, tokens=1.0, **ONE_DEVICE).terms == {
        "mlp_norm_input": 2 * 4096,
        "mlp_input": 2 * 4096,
        "gate_up": 2 * 2 * 14336,
        "activation": 2 * 14336,
        "every_other_matmul": 0,
    }


def test_llama3_8b_layer_under_op_sac():
    """Kept: the layer's input, attention's output and logarithms, and of q k v o gate up down every other one."""
    by_hand = 2 * 4096 + (2 * 4096 + 4 * 32) + 2 * (4096 + 1024 + 14336 + 4096)
    assert layer_bytes(LLAMA_8B, FUSED, tokens=1.0, recompute=OP_SAC) == by_hand


def test_llama3_8b_layer_with_fp8_inputs():
    """Inputs of linear layers as 1-byte copies; attention's output is kept in bf16 as well."""
    bf16 = layer_bytes(LLAMA_8B, FUSED, tokens=1.0)
    fp8 = layer_bytes(LLAMA_8B, FUSED, tokens=1.0, input_bytes=1.0)
    assert fp8 == bf16 - 4096 - 4096 - 14336 + 4096


def test_deepseek_v3_attention_by_op():
    terms = attention(DEEPSEEK_V3, FUSED, tokens=1.0).terms
    assert terms["latents"] == 2 * (2 * 1536 + 2 * 512 + 64)  # before and after the norms, and the rotary key
    assert terms["latent_query_key_value"] == 2 * 128 * (192 + 192 + 128)
    assert terms["core_output"] == 2 * 128 * 128
    kept = attention(DEEPSEEK_V3, FUSED, tokens=1.0, recompute=MLA_UP_PROJ).terms
    assert kept == terms | {"latent_query_key_value": 0}


def test_deepseek_v3_experts_by_op():
    """8 of 256 experts a token and one shared, each 2048 wide."""
    plan = ONE_DEVICE | {"tokens": 1.0, "etp": 1.0}
    terms = moe_activation_bytes(DEEPSEEK_V3, FUSED, **plan).terms
    assert terms == {
        "norm_input": 2 * 7168,
        "linear_input": 2 * 7168,
        "routing": 9 * 256,
        "expert_input": 2 * 7168 * 8,
        "expert_gate_up": 2 * 2 * 2048 * (8 + 1),
        "expert_activation": 2 * 2048 * (8 + 1),
    }
    capacity = moe_activation_bytes(DEEPSEEK_V3, FUSED, routed_factor=1.25, **plan).terms
    assert capacity["expert_input"] == 1.25 * terms["expert_input"]
    unfused = moe_activation_bytes(DEEPSEEK_V3, UNFUSED, **plan).terms
    assert unfused["expert_output"] == 2 * 7168 * 8
    weighted = FUSED.model_copy(update={"weights_expert_outputs": True})
    assert moe_activation_bytes(DEEPSEEK_V3, weighted, **plan).terms == terms | {"expert_output": 2 * 7168 * 8}
    copies = moe_activation_bytes(DEEPSEEK_V3, FUSED, input_bytes=1.0, **plan).terms
    assert (copies["linear_input"], copies["shared_input"]) == (2 * 7168, 7168)  # bf16 for the router, fp8
    again = moe_activation_bytes(DEEPSEEK_V3, FUSED, input_bytes=1.0, recompute=MOE, **plan).terms
    assert {op: size for op, size in again.items() if size} == {"norm_input": 2 * 7168, "linear_input": 2 * 7168}
    assert copies["expert_input"] == 7168 * 8


@pytest.mark.parametrize("ep", [1.0, 8.0])
def test_op_by_op_recomputation_keeps_what_experts_ranks_exchanged(ep):
    """torchtitan saves all-to-alls: a tensor of every token for each of its 8 experts, there and back."""
    terms = moe_activation_bytes(DEEPSEEK_V3, FUSED, recompute=OP_SAC, ep=ep, etp=1.0, tokens=1.0, **ONE_DEVICE).terms
    assert terms.get("exchanged", 0) == (ep > 1) * 2 * 2 * 7168 * 8


def test_a_dispatcher_of_racks_has_room_for_all_tokens_on_one_rank():
    """DeepSeek-V3, 4,096 tokens from each of 64 ranks: 3.5 GiB of states and a quarter of weights, twice over racks."""
    shape = {"tokens": 4096.0, "hidden_size": 7168.0, "n_experts": 256.0}
    rack = dispatch_buffer_bytes(ep=64.0, domain_ranks=72.0, **shape)
    assert rack == 4096 * 64 * (2 * 7168 + 4 * 256) == 3.75 * 2**30
    racks = dispatch_buffer_bytes(ep=128.0, domain_ranks=64.0, **shape)
    assert racks == 2 * 4096 * 128 * (2 * 7168 + 4 * 128)
    assert dispatch_buffer_bytes(ep=1.0, domain_ranks=72.0, **shape) == 0


def test_a_loss_in_chunks_has_an_eighth_of_the_logits():
    """Llama 3 8B, two sequences of 8,192: 28 GiB of logits become 3.4, and 2.2 come with it."""
    shape = {"tokens": 16384.0, "vocab_size": 128256.0, "tp": 1.0}
    whole, part = (logits_loss_bytes(**shape, cross_entropy=kind) for kind in ("sharded", "chunked"))
    assert part == whole / 8 == pytest.approx(3.42 * 2**30, rel=0.01)
    besides = chunked_loss_bytes(tokens=16384.0, hidden_size=4096.0, head_params=128256.0 * 4096)
    assert besides == pytest.approx(2.33 * 2**30, rel=0.01)


def test_losses_before_any_backward_pass_wait():
    """32 micro-batches of nanotron's all-forward schedule: 31 times 4 bytes a logit of a tp rank."""
    waiting = waiting_logits_bytes(tokens=4096.0, vocab_size=128256.0, tp=8.0, cross_entropy="sharded")
    assert waiting == 4 * 4096 * 128256 / 8
    assert waiting_logits_bytes(tokens=1.0, vocab_size=100.0, tp=8.0, cross_entropy="gathered") == 400


def test_experts_under_tensor_parallelism():
    """tp with sequence parallelism splits tokens; all ranks of etp have the same tokens and a part of the width."""
    plan = {"tokens": 1024.0, "tp": 4.0, "sequence_parallel": 1.0}
    whole = moe_activation_bytes(DEEPSEEK_V3, FUSED, etp=1.0, **plan).terms
    split = moe_activation_bytes(DEEPSEEK_V3, FUSED, etp=4.0, **plan).terms
    assert whole["expert_input"] == 1024 / 4 * 8 * 2 * 7168
    assert split["expert_input"] == 4 * whole["expert_input"]
    assert split["expert_gate_up"] == whole["expert_gate_up"]
    assert split["routing"] == 1024 / 4 * 9 * 256


def test_kv_heads_are_copied_beyond_their_number():
    at_8, at_32 = (attention(LLAMA_8B, FUSED, tokens=1.0, tp=tp).terms["query_key_value"] for tp in (8.0, 32.0))
    assert at_8 == 2 * (4096 + 2 * 1024) / 8
    assert at_32 == 2 * (4096 / 32 + 2 * 128)


def test_norms():
    four = LLAMA_8B.model_copy(update={"norms_per_layer": 4})
    shared = LLAMA_8B.model_copy(update={"norms_per_layer": 1})
    qk_norm = LLAMA_8B.model_copy(update={"qk_norm": True})
    base = layer_bytes(LLAMA_8B, FUSED, tokens=1.0)
    assert layer_bytes(four, FUSED, tokens=1.0) == base + 2 * 2 * 4096
    assert layer_bytes(shared, FUSED, tokens=1.0) == base - 2 * 4096 - 2 * 4096  # one norm, one input for both
    assert layer_bytes(qk_norm, FUSED, tokens=1.0) == base + 2 * (4096 + 1024)
    unfused_norm = FUSED.model_copy(update={"fused_norm": False})
    assert layer_bytes(LLAMA_8B, unfused_norm, tokens=1.0) == base + 2 * (6 - 2) * 4096


def test_gathered_inputs_are_kept_whole():
    plan = {"tokens": 1.0, "tp": 8.0, "sequence_parallel": 1.0}
    gathers_again = layer_bytes(LLAMA_8B, FUSED, **plan)
    keeps = layer_bytes(LLAMA_8B, FUSED.model_copy(update={"keeps_gathered_inputs": True}), **plan)
    assert keeps - gathers_again == pytest.approx(2 * 2 * 4096 * 7 / 8)


def test_embedding_and_head():
    assert embedding_activation_bytes(LLAMA_8B, FUSED, tokens=1.0, **ONE_DEVICE) == 8
    dropout = FUSED.model_copy(update={"dropout": True})
    plan = {"tokens": 1.0, "tp": 8.0, "sequence_parallel": 1.0}
    assert embedding_activation_bytes(LLAMA_8B, dropout, **plan) == 8 + 4096 / 8
    assert head_activation_bytes(LLAMA_8B, FUSED, tokens=1.0, **ONE_DEVICE) == 4 * 4096
    assert head_activation_bytes(LLAMA_8B, UNFUSED, tokens=1.0, **ONE_DEVICE) == 8 * 4096


@pytest.mark.parametrize(
    ("cross_entropy", "tp", "per_logit"),
    [
        ("gathered", 1, 14),
        ("gathered", 4, 14 + 2 / 4 + 2 + 2),
        ("sharded", 1, 14),
        ("sharded", 4, 14 / 4),
        ("parallel", 1, 6),
        ("parallel", 4, 1.5),
        ("fused", 4, 0.5),
    ],
)
def test_logits(cross_entropy, tp, per_logit):
    logits = logits_loss_bytes(tokens=10.0, vocab_size=1000, tp=float(tp), cross_entropy=cross_entropy)
    assert logits == 10 * 1000 * per_logit


# --- laws ------------------------------------------------------------------------------------------------------------

models = st.sampled_from([LLAMA_8B, DEEPSEEK_V3])
profiles = st.sampled_from(
    [
        FUSED,
        UNFUSED,
        *(UNFUSED.model_copy(update={"attention": "megatron_fused", "dropout": on}) for on in (True, False)),
    ]
)
degrees = st.sampled_from([1.0, 2.0, 4.0, 8.0])


@given(model=models, profile=profiles, tp=degrees, mode=st.sampled_from(range(len(RECOMPUTE_MODES))))
def test_recomputation_never_keeps_more(model, profile, tp, mode):
    """Up to tp 2: beyond, op_sac keeps whole outputs of matmuls whose inputs are divided."""
    if mode == OP_SAC and tp > 2:
        return
    plan = {"tokens": 4096.0, "seq": 4096.0, "tp": tp, "sequence_parallel": float(tp > 1)}
    everything = layer_bytes(model, profile, **plan)
    kept = layer_bytes(model, profile, recompute=mode, **plan)
    assert kept <= everything
    assert recompute_working_set_bytes(everything, kept) == everything - kept
    full = layer_bytes(model, profile, recompute=FULL, **plan)
    assert full == 4096 * 2 * model.hidden_size / tp
    assert full <= kept


@given(model=models, profile=profiles, tp=degrees)
def test_selective_recomputation_drops_scores_alone(model, profile, tp):
    plan = {"tokens": 2048.0, "seq": 2048.0, "tp": tp}
    before, after = (attention(model, profile, recompute=mode, **plan).terms for mode in (NONE, SELECTIVE))
    assert {op for op in before if before[op] != after[op]} <= {"scores", "logsumexp"}
    assert after.get("scores", 0) == after.get("logsumexp", 0) == 0


def test_norm_act_drops_what_norms_and_activations_made():
    plan = ONE_DEVICE | {"tokens": 1.0}
    kept = attention(LLAMA_8B, UNFUSED, recompute=NORM_ACT, **plan).terms
    assert kept["layer_input"] == 2 * 4096  # the unfused norm runs again, from its input
    assert kept["norm_intermediates"] == kept["linear_input"] == 0
    mlp = mlp_activation_bytes(LLAMA_8B, UNFUSED, recompute=NORM_ACT, **plan).terms
    assert mlp["gate_up"] == 2 * 2 * 14336
    assert mlp["activation"] == 0
    assert mlp["mlp_norm_input"] == 2 * 4096


def test_an_mlp_that_runs_again_keeps_its_norms_input_alone():
    plan = ONE_DEVICE | {"tokens": 1.0}
    for profile in (FUSED, UNFUSED):
        terms = mlp_activation_bytes(LLAMA_8B, profile, recompute=MLP, **plan).terms
        assert {op: size for op, size in terms.items() if size} == {"mlp_norm_input": 2 * 4096}
        whole, kept = (attention(LLAMA_8B, profile, recompute=mode, **plan).terms for mode in (NONE, MLP))
        assert whole == kept
    experts = {"recompute": MLP, "etp": 1.0, **plan}
    assert (
        moe_activation_bytes(DEEPSEEK_V3, FUSED, **experts).terms
        == moe_activation_bytes(DEEPSEEK_V3, FUSED, **experts | {"recompute": NONE}).terms
    )


def test_experts_that_run_again_keep_their_norm_and_their_input():
    terms = moe_activation_bytes(DEEPSEEK_V3, FUSED, recompute=MOE, etp=1.0, tokens=1.0, **ONE_DEVICE).terms
    assert {op: size for op, size in terms.items() if size} == {"norm_input": 2 * 7168, "linear_input": 2 * 7168}


def test_experts_with_biases_keep_the_clamped_gate_as_well():
    plan = ONE_DEVICE | {"tokens": 1.0, "etp": 1.0}
    plain, biased = (
        moe_activation_bytes(GPT_OSS.model_copy(update={"expert_bias": has}), FUSED, **plan).terms
        for has in (False, True)
    )
    assert (
        biased["expert_activation"] - plain["expert_activation"] == 4 * 2 * 2880 * 2
    )  # 4 experts, gate and up in bf16


def test_recompute_modes_are_named_once():
    assert all(len(shares) == len(SIMPLE_MODES) for shares in KEPT.values())
    codes = (NONE, SELECTIVE, FULL, NORM_ACT, MLA_UP_PROJ, OP_SAC, MLP, MOE)
    assert [SIMPLE_MODES[code] for code in codes] == list(SIMPLE_MODES)
    assert len(set(RECOMPUTE_MODES)) == len(RECOMPUTE_MODES)
    assert sorted(from_least_to_most()) == sorted(RECOMPUTE_MODES)
    assert (from_least_to_most()[0], from_least_to_most()[-1]) == ("none", "full")


def test_parts_of_a_mode_may_be_written_in_any_order():
    read = TypeAdapter(Recompute).validate_python
    assert [read(mode) for mode in RECOMPUTE_MODES] == list(RECOMPUTE_MODES)
    assert read("mlp+mla_up_proj") == "mla_up_proj+mlp"
    for wrong in ("mlp+full", "mlp+", "+", "everything"):
        with pytest.raises(ValidationError):
            read(wrong)


@pytest.mark.parametrize("mode", PARTS)
def test_a_combined_mode_keeps_what_all_of_its_parts_keep(mode):
    code = RECOMPUTE_MODES.index(mode)
    assert combined(parts_of(mode)[::-1]) == mode
    for op, kept in KEPT_BY_MODE.items():
        assert kept[code] == min(KEPT[op][part] for part in PARTS[mode]), op
    for part in PARTS[mode]:
        assert code in codes_with(part)


@given(model=models, profile=profiles)
def test_sequence_parallelism_divides_what_tensor_parallelism_does_not(model, profile):
    """With both, a rank keeps one tp-th of everything, but for KV heads, which are whole here."""
    plan = {"tokens": 4096.0, "seq": 4096.0}
    alone = layer_bytes(model, profile, **plan)
    assert layer_bytes(model, profile, tp=8.0, sequence_parallel=1.0, **plan) == pytest.approx(alone / 8)
    assert layer_bytes(model, profile, tp=8.0, **plan) > alone / 8
    assert layer_bytes(model, profile, tp=1.0, sequence_parallel=1.0, **plan) == alone


@given(model=models, profile=profiles)
def test_a_grid_equals_its_points(model, profile):
    tp, sequence_parallel = np.array([1.0, 2.0, 8.0])[:, None, None], np.array([0.0, 1.0])[:, None]
    recompute, tokens = np.arange(len(RECOMPUTE_MODES)), np.array([1024.0, 4096.0])[:, None, None, None]
    plan = {"tokens": tokens, "tp": tp, "sequence_parallel": sequence_parallel, "recompute": recompute, "seq": 4096.0}
    grid = layer_bytes(model, profile, **plan)
    assert grid.shape == (2, 3, 2, len(RECOMPUTE_MODES))
    for where, value in np.ndenumerate(grid):
        point = {
            key: np.broadcast_to(array, grid.shape)[where] if isinstance(array, np.ndarray) else array
            for key, array in plan.items()
        }
        assert value == pytest.approx(layer_bytes(model, profile, **point), rel=1e-12)


# --- states, working sets, buffers -----------------------------------------------------------------------------------


def test_states_are_split_from_their_stage_on():
    stages = np.arange(4.0)
    sharding = {"zero_stage": stages, "shards": 4.0}
    assert weights_bytes(8.0, weight_bytes=2.0, **sharding).tolist() == [16, 16, 16, 4]
    assert gradient_bytes(8.0, grad_bytes=4.0, **sharding).tolist() == [32, 32, 8, 8]
    adam = optimizer_bytes(8.0, master_weight_bytes=4.0, optimizer_state_bytes=8.0, **sharding)
    assert adam.tolist() == [96, 24, 24, 24]


def test_fsdp_working_set():
    """Two layers of bf16 weights, one of bf16 gradients, one being reduced in fp32."""
    sizes = {"weight_bytes": 2.0, "grad_reduce_bytes": 4.0}
    assert fsdp_working_set_bytes(100.0, gathered_bytes=2.0, **sizes) == 100 * (2 * 2 + 2 + 4)
    assert fsdp_working_set_bytes(100.0, gathered_bytes=1.0, **sizes) == 100 * (2 * 1 + 2 + 4)
    assert fsdp_working_set_bytes(1.0, gathered_bytes=2.0, prefetched_layers=0.0, **sizes) == 8


def test_backward_working_set_of_a_dense_layer():
    """Gradients of gate and up, and of the residual; under sequence parallelism also the gathered input and its own."""
    plan = {"tokens": 1.0, "seq_k_tokens": 4096.0}
    alone = backward_working_set_bytes(LLAMA_8B, FUSED, **ONE_DEVICE, **plan)
    assert alone == 2 * (2 * 14336 + 4096)
    split = backward_working_set_bytes(LLAMA_8B, FUSED, tp=8.0, sequence_parallel=1.0, **plan)
    assert split == 2 * (2 * 14336 / 8 + 4096 / 8 + 2 * 4096)
    scores = backward_working_set_bytes(LLAMA_8B, UNFUSED, **ONE_DEVICE, **plan)
    assert scores > 2 * 2 * 32 * 4096  # the attention matrix and its gradient outweigh the MLP


def test_backward_working_set_of_experts():
    working_set = backward_working_set_bytes(DEEPSEEK_V3, FUSED, tokens=1.0, seq_k_tokens=4096.0, **ONE_DEVICE)
    routed = 8 * (2 * 2048 + 2 * 7168)
    assert working_set == 2 * (routed + 2 * 2048 + 7168)


def test_buffers():
    assert weight_gradient_working_set_bytes(10.0) == 20
    plan = {"tokens": 10.0, "tp": 8.0, "sequence_parallel": 1.0}
    pp, vpp = np.array([1.0, 4.0, 4.0]), np.array([1.0, 1.0, 2.0])
    tensor = 10 * 2 * 4096 / 8
    received = stage_buffer_bytes(LLAMA_8B, pp=pp, vpp=vpp, **plan)
    assert received.tolist() == [0, 2 * tensor, 4 * tensor]
    in_place, widened = (
        FUSED.model_copy(update={"grad_bytes": 4, "grad_reduce_bytes": size, "copies_into_buckets": False})
        for size in (4, 2)
    )
    anyway = in_place.model_copy(update={"copies_into_buckets": True})
    bucket = {"bucket_bytes": 100.0}
    assert bucket_buffer_bytes(1e6, profile=in_place, overlap=1.0, **bucket) == 0
    assert bucket_buffer_bytes(1e6, profile=widened, overlap=1.0, **bucket) == 200
    assert bucket_buffer_bytes(10.0, profile=widened, overlap=0.0, **bucket) == 20
    stages = np.array([2.0, 3.0])  # at 3 a layer is a bucket, counted where layers are; DeepSpeed's is one buffer
    assert bucket_buffer_bytes(1e6, profile=widened, overlap=1.0, zero_stage=stages, **bucket).tolist() == [200, 0]
    assert bucket_buffer_bytes(1e6, profile=anyway, overlap=1.0, zero_stage=stages, **bucket).tolist() == [200, 100]
    overlapped = {"tokens": 10.0, "overlap_tp": np.array([0.0, 1.0])}
    in_16_bits = tp_overlap_buffer_bytes(LLAMA_8B, gathered_element_bytes=2.0, **overlapped)
    assert in_16_bits.tolist() == [0, 10 * 10 * 2 * 4096]
    assert tp_overlap_buffer_bytes(LLAMA_8B, gathered_element_bytes=1.0, **overlapped)[1] == 10 * (6 + 8) * 4096
