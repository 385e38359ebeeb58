"""The transformer's dimensions: data that knows nothing of parallelism, time or memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlcalc.specs.base import Depth, NonNegativeInt, PositiveFloat, PositiveInt, Spec, TupleFromList
from dlcalc.specs.model_details import Activation, Rotary, Router


class ModelSpec(Spec):
    """Dimensions of a decoder-only transformer. Counts are elements, never bytes.

    A layer is one attention sublayer (full or sliding-window; MHA, GQA or MLA) and one MLP sublayer
    (dense or mixture of experts).
    """

    name: str
    aliases: Annotated[tuple[str, ...], TupleFromList] = ()
    """Other names people write for it."""
    n_layers: Depth
    hidden_size: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    ffn_hidden_size: PositiveInt
    vocab_size: PositiveInt
    max_seq: PositiveInt = 4096

    gated_mlp: bool = True
    tied_embeddings: bool = False
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_bias: bool | None = None
    """Bias of a LayerNorm; None: yes for layernorm, no for rmsnorm."""
    learned_positions: bool = False
    alibi: bool = False
    embedding_norm: bool = False
    linear_bias: bool = False
    """Biases on every linear layer of attention and MLP."""
    qkv_bias: bool = False
    """Biases on the Q, K and V projections only (qwen2)."""
    attention_bias: bool = False
    """Biases on all four attention projections, not on the MLP (gpt-oss); with latent attention on the two
    down-projections and the output projection."""
    mlp_bias: bool = False
    """Biases on the dense MLP and the shared experts, not on attention."""
    head_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: Literal[1, 2, 4] = 2
    """2 = pre-norm; 4 = also after each sublayer (gemma 2 and 3); 1 = one shared by both sublayers."""
    attention_sinks: bool = False
    """One learned logit per head (gpt-oss)."""

    # mixture of experts; n_experts = 0 is a dense model
    n_experts: NonNegativeInt = 0
    top_k: NonNegativeInt = 0
    expert_ffn_hidden_size: NonNegativeInt = 0
    n_shared_experts: NonNegativeInt = 0
    shared_ffn_hidden_size: NonNegativeInt = 0
    """Width of all shared experts together."""
    first_dense_layers: NonNegativeInt = 0
    moe_layer_freq: PositiveInt = 1
    """After the first dense layers, one layer in this many is a mixture of experts."""
    moe_pattern: Annotated[tuple[bool, ...], TupleFromList] = ()
    """Which layers are mixtures of experts, repeated over the layers; when given, first_dense_layers and
    moe_layer_freq are not read."""
    expert_groups_per_token: NonNegativeInt = 0
    """Groups of experts, laid out by node, that the router may send one token to; 0 = no limit."""
    expert_groups: NonNegativeInt = 0
    """Groups that the router divides the experts into; 0 = not known. No estimate reads it, a launch does."""
    expert_bias: bool = False
    router_bias: bool = False
    shared_expert_gate: bool = False
    """A hidden -> 1 gate on the shared expert (qwen2-moe)."""

    # multi-head latent attention; kv_lora_rank = 0 is ordinary attention
    q_lora_rank: NonNegativeInt = 0
    kv_lora_rank: NonNegativeInt = 0
    qk_nope_head_dim: NonNegativeInt = 0
    qk_rope_head_dim: NonNegativeInt = 0
    v_head_dim: NonNegativeInt = 0

    sliding_window: NonNegativeInt = 0
    """Tokens a windowed layer attends to; 0 = every layer attends to all."""
    window_pattern: Annotated[tuple[bool, ...], TupleFromList, Field(min_length=1)] = (True,)
    """Which layers are windowed, repeated over the layers; read only when sliding_window > 0."""

    mtp_layers: NonNegativeInt = 0
    """Multi-token-prediction modules, each a further layer with its own projection."""
    # what no estimate reads and a launch writes
    rotary: Rotary = Rotary()
    router: Router = Router()
    norm_epsilon: PositiveFloat | None = None
    """None: not known."""
    activation: Activation | None = None
    """Of MLPs; None: not known, which is silu where there is a gate and gelu where there is none."""
    activation_limit: PositiveFloat | None = None
    """Inputs of a gated activation are clamped to it (gpt-oss)."""
    activation_offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Added to what the gate is multiplied with (gpt-oss)."""
    source: str = ""

    @model_validator(mode="after")
    def _heads_share_kv_evenly(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads = {self.n_kv_heads} must divide n_heads = {self.n_heads}, "
                f"so that every KV head serves the same number of query heads"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_complete(self) -> Self:
        if not self.n_experts:
            return self
        if not 0 < self.top_k <= self.n_experts:
            raise ValueError(f"top_k = {self.top_k} must lie between 1 and n_experts = {self.n_experts}")
        if not self.expert_ffn_hidden_size:
            raise ValueError("expert_ffn_hidden_size must be given when n_experts > 0")
        if self.n_shared_experts and not self.shared_ffn_hidden_size:
            raise ValueError("shared_ffn_hidden_size must be given when n_shared_experts > 0")
        if self.first_dense_layers > self.n_layers:
            raise ValueError(f"first_dense_layers = {self.first_dense_layers} exceeds n_layers = {self.n_layers}")
        return self

    @model_validator(mode="after")
    def _latent_attention_is_complete(self) -> Self:
        if self.kv_lora_rank and not (self.qk_nope_head_dim and self.v_head_dim):
            raise ValueError("latent attention (kv_lora_rank > 0) needs qk_nope_head_dim and v_head_dim")
        return self

    @property
    def activates_by(self) -> Activation:
        """The activation of MLPs, the usual one where it is not known."""
        return self.activation or ("silu" if self.gated_mlp else "gelu")

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def qk_head_dim(self) -> int:
        """Width of one query (or key) head in the score matmul."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def value_head_dim(self) -> int:
        """Width of one value head, hence of one head of the attention output."""
        return self.v_head_dim if self.is_mla else self.head_dim

    @property
    def layer_is_windowed(self) -> tuple[bool, ...]:
        """Per layer, whether its attention sees only the sliding window."""
        pattern = self.window_pattern if self.sliding_window else (False,)
        return _repeated(tuple(pattern), self.n_layers)

    @property
    def layer_is_moe(self) -> tuple[bool, ...]:
        """Per layer, whether its MLP is a mixture of experts."""
        if not self.is_moe:
            return _repeated((False,), self.n_layers)
        if self.moe_pattern:
            return _repeated(tuple(self.moe_pattern), self.n_layers)
        return _from_first(self.first_dense_layers, self.moe_layer_freq, self.n_layers)

    @property
    def n_moe_layers(self) -> int:
        return sum(self.layer_is_moe)

    @property
    def not_to_recompute(self) -> frozenset[str]:
        """Simple recompute modes of parts that no layer has."""
        has = {"mla_up_proj": self.is_mla, "mlp": self.n_dense_layers > 0, "moe": self.n_moe_layers > 0}
        return frozenset(mode for mode, there in has.items() if not there)

    @property
    def n_dense_layers(self) -> int:
        return self.n_layers - self.n_moe_layers


@lru_cache
def _repeated(pattern: tuple[bool, ...], n_layers: int) -> tuple[bool, ...]:
    """The pattern over and over; the equations ask for it often."""
    return tuple(pattern[layer % len(pattern)] for layer in range(n_layers))


@lru_cache
def _from_first(first: int, every: int, n_layers: int) -> tuple[bool, ...]:
    """The last of every so many layers, after the ``first`` ones."""
    every = max(every, 1)
    return tuple(layer >= first and (layer - first) % every == every - 1 for layer in range(n_layers))
