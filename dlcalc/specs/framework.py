"""What differs between trainers, one YAML file each in ``configs/frameworks``.

A profile never names a model or a machine: it says which kernels are fused, which numbers are kept in which
precision, what is overlapped by default, and what the framework itself costs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat

from dlcalc.specs.base import NonNegativeFloat, PositiveInt, Spec, TupleFromList

AttentionKernel = Literal["unfused", "megatron_fused", "flash1", "flash2", "flash3", "te_flash"]
CpExchange = Literal["ring", "all_to_all", "all_gather"]
CrossEntropy = Literal["gathered", "sharded", "chunked", "parallel", "fused"]
"""gathered: logits of the whole vocabulary on one device, in several fp32 copies; sharded: as many copies of those of a
tp rank (DTensor's loss_parallel); chunked: the same, an eighth of the tokens at a time, each with its backward pass
(torchtitan since 2026); parallel: sharded over tp, fp32
copies; fused: sharded over tp, one kernel, the gradient written over the logits."""


class FrameworkProfile(Spec):
    """A trainer: its fused kernels, numerics, defaults and overheads."""

    name: str
    description: str

    # kernels
    attention: AttentionKernel
    fused_norm: bool
    """False: an RMSNorm is many passes in fp32, whose intermediates are kept for backward."""
    norm_casts: PositiveInt = 1
    """How often an unfused norm casts its input to fp32, and keeps each copy: once for the mean square and the scaling
    together, or once for either."""
    fused_activation: bool
    """False: gate, multiply, bias and activation are separate kernels and keep their inputs."""
    fused_residual: bool
    """bias + dropout + residual in one kernel."""
    fused_rope: bool
    rotates_complex_numbers: bool = False
    """Queries and keys are rotated as complex numbers, which no compiler fuses, whatever fused_rope says."""
    fused_projections: bool = True
    """Q, K and V, and gate and up, in one matmul each; False: one per projection, each with its own exchange of the
    input's gradient."""
    fused_grad_accumulation: bool = True
    """A weight's gradient is added to its buffer inside the matmul; False: in a pass of its own."""
    copies_shards: bool = True
    """Under ZeRO 3 weights are copied out of the buffer they are gathered into, and gradients into the one they are
    scattered from; False: compiled whole, both are used where they are."""
    copies_widened_gradients: bool = False
    """In that pass a 16-bit gradient is copied to fp32 before it is added to an fp32 buffer."""
    cross_entropy: CrossEntropy
    dropout: bool = False
    score_dropout: bool = False
    """Dropout runs on stored scores although the recipe has none elsewhere: at a rate of 0 the pass, its mask and its
    copy are the same."""
    keeps_gathered_inputs: bool = False
    """Under sequence parallelism a linear layer keeps its gathered input for the backward pass, instead of gathering it
    again."""

    batch_outermost: bool = False
    """Activations lie batch by sequence: what tp ranks gather or scatter along the sequence is not contiguous, and is
    copied once more where a micro-batch has several sequences. False: sequence by batch, as in Megatron."""
    dispatches_once_per_node: bool = False
    """A token crosses to a node, and goes to a rank in it, once, however many of its experts sit there (DeepEP,
    HybridEP); False: once per expert."""
    pads_experts_apart: bool = False
    """In 8 and 4 bits tokens of each expert are copied to a padded buffer, and outputs back (Transformer Engine), but
    where the dispatcher pads."""
    keeps_low_precision_inputs: bool = True
    """A linear layer in 8 or 4 bits keeps its quantized input for the backward pass, not the 16-bit one."""
    weights_expert_outputs: bool = False
    """An expert's output is multiplied by the token's weight, and kept for its gradient, also where the activation is
    fused; False: the weight is multiplied in there."""
    routed_factor: Annotated[float, Field(ge=1)] = 1.0
    """Tokens computed by experts over those routed to them: capacity and padding."""

    # numerics
    keeps_16_bit_weights: bool = True
    """False: FSDP, whose shard is the fp32 master weight itself, cast as it is gathered."""
    caches_quantized_weights: bool = False
    """Linear layers in 8 or 4 bits keep their quantized weights, as they are and transposed, beside those in 16 bits
    from one micro-batch to the next (Transformer Engine), except where weights live in low precision alone."""
    gathers_quantized_weights: bool = True
    """Weights do so where the optimizer is sharded and on the device: --fp8-param-gather of Megatron. Read only with
    caches_quantized_weights."""
    grad_bytes: PositiveInt
    """Bytes of one element of the gradient buffer that lives through the step."""
    grad_reduce_bytes: PositiveInt
    """Bytes of one element when gradients are reduced over data parallel ranks."""
    fp16_grad_bytes: PositiveInt | None = None
    """Both of these in fp16 recipes, where they differ."""
    keeps_16_bit_gradients: bool = False
    """16-bit gradients of a whole stage live beside their fp32 sums until the backward pass is over."""
    copies_into_buckets: bool = False
    """Gradients are copied into buckets of their own to be reduced, also where the dtypes are the same (DeepSpeed)."""
    offloads_gradients: bool = False
    """With the optimizer on the host sharded gradients are there too."""
    master_weight_bytes: PositiveInt = 4
    optimizer_state_bytes: PositiveInt = 8
    """Both Adam moments together."""

    # what users of it vary, and what they leave alone
    zero_stages: Annotated[tuple[int, ...], TupleFromList, Field(min_length=1)]
    """ZeRO stages users of this framework choose from; the first is the default."""
    gathers_by_matrix: bool = False
    """ZeRO 3 gathers one matrix at a time, and not a layer: a compiler plans when each arrives (XLA)."""
    gathers_again_at_stage_2: bool = False
    """ZeRO 2 lets go of gathered weights after every backward pass, so that each micro-batch gathers them (FSDP2)."""
    all_reduces_at_stages: Annotated[tuple[int, ...], TupleFromList] = ()
    """ZeRO stages at which every rank gets whole gradients and uses its shard (DeepSpeed)."""
    exchanges_after_passes_at_stages: Annotated[tuple[int, ...], TupleFromList] = ()
    """ZeRO stages at which gradients are exchanged once all passes are done, with nothing to hide behind (nanotron)."""
    gathers_after_step: bool = False
    """Below ZeRO 3 sharded weights are gathered when the optimizer is done, with nothing to hide behind."""
    supports_pipeline: bool = True
    supports_tensor: bool = True
    supports_context: bool = True
    replicates_kv_heads: bool = True
    """False: tp must divide the KV heads."""
    offloads_in_pipeline: bool = False
    """Whether activations can go to the host under pipeline parallelism."""
    gathers_once_in_pipeline: bool = False
    """Under pipeline parallelism ZeRO 2 and 3 gather once and scatter once a step, and keep whole weights and gradients
    meanwhile."""
    accumulates_whole_gradients: Literal["never", "in_pipeline", "always"] = "never"
    """When ranks that share gradients (ZeRO 2 and 3) add up whole ones over the micro-batches, and scatter them once a
    step: never; under pipeline parallelism, after the last backward pass, with nothing to hide behind; or always,
    behind that pass."""
    shards_gradients_in_pipeline: bool = False
    """Whether ZeRO 2 and 3 run together with pipeline parallelism."""
    overlaps_stage_sends: bool = True
    """Whether interleaved schedules send to the next stage while computing."""
    sends_and_receives_in_turn: bool = False
    """A stage's transfers follow one another, four a micro-batch; False: what it sends and what it receives cross, and
    two count."""
    scatters_stage_sends: bool = False
    """Without sequence parallelism, tp ranks hand the next stage a tp-th of the activations each, gathered there."""
    sequence_parallel_default: bool = True
    overlap_grad: bool
    overlap_param: bool
    overlap_tp: bool
    """Of a plan that does not say."""
    varies_overlap_tp: bool = False
    """Whether its users choose: then a search tries it on and off wherever the trainer can do it."""
    buffers_overlapped_tp: bool = False
    """Whether overlapping tp takes buffers of its own for each linear layer (user buffers of Transformer Engine)."""
    overlap_ep: bool = False
    overlaps_input_grad: bool = True
    """Whether tp ranks exchange the gradient of a layer's input while they compute that of its weight."""
    cp_exchanges: Annotated[tuple[CpExchange, ...], TupleFromList, Field(min_length=1)] = ("ring",)
    """What context-parallel ranks can exchange; the first is the default."""
    schedules: Annotated[tuple[str, ...], TupleFromList] = ("1f1b", "interleaved")
    recompute_modes: Annotated[tuple[str, ...], TupleFromList] = ("none", "selective", "full")
    recomputes_to_the_end: bool = True
    """Full recomputation runs whole layers; False: it stops where the backward pass has all it needs, before the last
    matmul of a dense MLP and what follows (XLA leaves it out, PyTorch stops early where no graph is entered anew)."""
    recomputes_dense_activations: bool = True
    """Whether norms and activation functions of dense layers can be recomputed alone; False: those of experts."""

    # what the framework itself costs
    host_launch_us: PositiveFloat
    """Time the host needs per launch, the Python in between included; a layer is never faster than its launches."""
    unhidden_launches: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the host's launches that the device waits for however long its kernels are: the host does not run ahead
    there."""
    exchange_handover_us: NonNegativeFloat = 0.0
    """Device time of an exchange between tensor-parallel ranks beyond moving its bytes: streams that wait for each
    other, ranks that come late."""
    memory_pass_factor: PositiveFloat = 1.0
    """Bytes that memory-bound operations really move over those counted: layout changes and copies nobody lists."""
    expert_pass_ratio: PositiveFloat = 1.0
    """Traffic of a mixture of experts, between its norm and its residual, over that: on top of memory_pass_factor."""
    step_overhead_us: NonNegativeFloat = 0.0
    """Per step: data loader, logging, scheduler, gradient-norm synchronization."""
    micro_batch_overhead_us: NonNegativeFloat = 0.0
    """Per micro-batch and stage: Python of the schedule."""
    bucket_elements: PositiveFloat = 1e7
    """Gradients or parameters of one collective, where it is not a layer's (ZeRO 3, FSDP)."""
    buckets_first_chunk: bool = False
    """Only the first chunk of the first stage is cut into buckets, and only where gradients are overlapped; others
    are exchanged whole (Megatron)."""
    bucket_elements_per_rank: NonNegativeFloat = 0.0
    """A bucket holds at least so many elements for each data-parallel rank, so that messages stay large."""
    overlap_slowdown: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Compute slows by this fraction of the communication hidden behind it."""
    cuda_context_gib: NonNegativeFloat = 0.8
    """CUDA context and communicator buffers, outside the allocator."""
    allocator_slack: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fragmentation: reserved over allocated activations and working sets, minus one; states do not fragment."""
    source: str = ""

    def in_precision(self, precision: str) -> Self:
        """The profile as it runs in ``precision``."""
        size = self.fp16_grad_bytes
        if precision != "fp16" or size is None:
            return self
        return self.model_copy(update={"grad_bytes": size, "grad_reduce_bytes": size, "fp16_grad_bytes": None})

    def for_norm(self, norm: str) -> Self:
        """The profile with a model whose norms are of this kind: PyTorch itself has one kernel for LayerNorm."""
        return self.model_copy(update={"fused_norm": True}) if norm == "layernorm" and not self.fused_norm else self

    def on_device(self, lacks_attention: Collection[str]) -> Self:
        """The profile on a device for which some attention kernels do not exist."""
        if self.attention not in lacks_attention:
            return self
        return self.model_copy(update={"attention": "megatron_fused"})

    @property
    def drops_scores(self) -> bool:
        return self.dropout or self.score_dropout

    @property
    def host_launch_s(self) -> float:
        return self.host_launch_us * 1e-6

    @property
    def exchange_handover_s(self) -> float:
        return self.exchange_handover_us * 1e-6
