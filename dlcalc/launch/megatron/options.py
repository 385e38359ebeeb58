"""Options of Megatron-LM that an estimate depends on, or that a launch sets: one table for writing and for reading.

An option is known by the name under which Megatron keeps it (``add_bias_linear``), which is also the field of
Megatron-Core's configuration and hence of Megatron-Bridge; its flag may say the opposite (``--disable-bias-linear``).
Defaults are those of Megatron-Core 0.19.2.

Source: https://github.com/NVIDIA/Megatron-LM/blob/core_r0.19.0/megatron/training/arguments.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dlcalc.specs.recompute import parts_of

Value = int | float | str | bool | tuple[str, ...] | None
Settings = Mapping[str, Value]
"""Values by the name of the option."""
CP_COMM_TYPES = {"ring": "p2p", "all_to_all": "a2a", "all_gather": "all_gather"}
"""What ranks of one sequence exchange, in our words and in Megatron's."""
RECOMPUTED_MODULES: Mapping[str, tuple[str, ...]] = {
    "selective": ("core_attn",),
    "norm_act": ("layernorm", "moe_act"),
    "mla_up_proj": ("mla_up_proj",),
    "mlp": ("mlp",),
    "moe": ("moe",),
}
"""What Megatron recomputes by module, by our mode."""
Kind = Literal["whole", "number", "text", "words", "on", "off"]
"""on and off: flags without a value, which set what their name says to true or to false."""


def modules_of(mode: str) -> tuple[str, ...]:
    """Megatron's modules that a recompute mode stands for; none where it recomputes otherwise, or nothing."""
    return tuple(module for part in parts_of(mode) for module in RECOMPUTED_MODULES.get(part, ()))


@dataclass(frozen=True)
class Option:
    """One option: where its value is kept, how the command line says it, what holds where it does not."""

    name: str
    kind: Kind
    default: Value
    flag: str
    choices: tuple[str, ...] = ()


def _option(
    name: str, kind: Kind, default: Value = None, *, flag: str | None = None, choices: tuple[str, ...] = ()
) -> Option:
    return Option(name, kind, default, flag or "--" + name.replace("_", "-"), choices)


def _whole(name: str, default: int | None = None, flag: str | None = None) -> Option:
    return _option(name, "whole", default, flag=flag)


def _number(name: str, default: float | None = None, flag: str | None = None) -> Option:
    return _option(name, "number", default, flag=flag)


def _text(name: str, default: str | None = None, choices: tuple[str, ...] = (), flag: str | None = None) -> Option:
    return _option(name, "text", default, flag=flag, choices=choices)


def _on(name: str, flag: str | None = None) -> Option:
    return _option(name, "on", False, flag=flag)


def _off(name: str, flag: str) -> Option:
    return _option(name, "off", True, flag=flag)


BALANCES = ("aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing", "none")
MODEL = (
    _whole("num_layers"),
    _whole("hidden_size"),
    _whole("ffn_hidden_size"),
    _whole("num_attention_heads"),
    _on("group_query_attention"),
    _whole("num_query_groups", 1),
    _whole("kv_channels"),
    _whole("max_position_embeddings"),
    _text(
        "position_embedding_type",
        "learned_absolute",
        ("learned_absolute", "rope", "yarn", "mrope", "relative", "none"),
    ),
    _on("use_rotary_position_embeddings"),
    _whole("rotary_base", 10000),
    _number("rotary_percent", 1.0),
    _whole("rotary_seq_len_interpolation_factor"),
    _on("use_rope_scaling"),
    _number("rope_scaling_factor", 8.0),
    _number("rotary_scaling_factor", 1.0),
    _number("mscale", 1.0),
    _number("mscale_all_dim", 0.0),
    _whole("yarn_original_max_position_embeddings"),
    _number("yarn_beta_fast"),
    _number("yarn_beta_slow"),
    _option("yarn_correction_range_round_to_int", "off", True, flag="--no-yarn-correction-range-round-to-int"),
    _text("normalization", "LayerNorm", ("LayerNorm", "RMSNorm")),
    _number("layernorm_epsilon", 1e-5, flag="--norm-epsilon"),
    _on("swiglu"),
    _on("squared_relu"),
    _on("quick_geglu"),
    _number("activation_func_clamp_value"),
    _number("glu_linear_offset", 0.0),
    _off("add_bias_linear", "--disable-bias-linear"),
    _on("add_qkv_bias"),
    _on("qk_layernorm"),
    _on("untie_embeddings_and_output_weights"),
    _text("softmax_type", "vanilla", ("vanilla", "off-by-one", "learnable")),
    _text("window_size"),
    _text("window_attn_skip_freq"),
    _on("attention_output_gate"),
    _text("experimental_attention_variant", None, ("gated_delta_net", "dsa")),
    _text("hybrid_layer_pattern"),
    _text("heterogeneous_layers_config_path"),
    _whole("mtp_num_layers"),
    _on("multi_latent_attention"),
    _whole("q_lora_rank"),
    _whole("kv_lora_rank", 32),
    _whole("qk_head_dim", 128),
    _whole("qk_pos_emb_head_dim", 64),
    _whole("v_head_dim", 128),
    _text("rope_type", None, ("rope", "yarn")),
    _whole("num_experts"),
    _whole("moe_ffn_hidden_size"),
    _whole("moe_router_topk", 2),
    _whole("moe_shared_expert_intermediate_size"),
    _on("moe_shared_expert_gate"),
    _text("moe_layer_freq", "1"),
    _whole("moe_router_num_groups"),
    _whole("moe_router_group_topk"),
    _text("moe_router_score_function", "softmax", ("softmax", "sigmoid", "sqrtsoftplus")),
    _on("moe_router_pre_softmax"),
    _number("moe_router_topk_scaling_factor"),
    _on("moe_router_enable_expert_bias"),
    _number("moe_router_bias_update_rate", 1e-3),
    _option("moe_router_load_balancing_type", "words", "aux_loss", choices=BALANCES),
    _option("moe_aux_loss_coeff", "words", 0.0),
    _whole("moe_latent_size"),
)
TOKENIZER = (
    _text(
        "tokenizer_type",
        None,
        (
            "BertWordPieceLowerCase",
            "BertWordPieceCase",
            "GPT2BPETokenizer",
            "SentencePieceTokenizer",
            "GPTSentencePieceTokenizer",
            "HuggingFaceTokenizer",
            "Llama2Tokenizer",
            "TikTokenizer",
            "MultimodalTokenizer",
            "NullTokenizer",
            "NullMultimodalTokenizer",
            "SFTTokenizer",
        ),
    ),
    _whole("vocab_size"),
    _whole("padded_vocab_size"),
    _whole("make_vocab_size_divisible_by", 128),
)
MESH = (
    _whole("tensor_model_parallel_size", 1),
    _whole("pipeline_model_parallel_size", 1),
    _whole("context_parallel_size", 1),
    _option("cp_comm_type", "words", ("p2p",)),
    _whole("expert_model_parallel_size", 1),
    _whole("expert_tensor_parallel_size"),
    _on("sequence_parallel"),
    _on("use_tp_pp_dp_mapping"),
    _whole("tensor_parallel_num_weight_shards"),
    _whole("num_virtual_stages_per_pipeline_rank"),
    _whole("num_layers_per_virtual_pipeline_stage"),
    _text("pipeline_model_parallel_layout"),
    _whole("decoder_first_pipeline_num_layers"),
    _whole("decoder_last_pipeline_num_layers"),
    _on("account_for_embedding_in_pipeline_split"),
    _on("account_for_loss_in_pipeline_split"),
)
BATCH = (
    _whole("micro_batch_size"),
    _whole("global_batch_size"),
    _whole("seq_length"),
    _text("step_batch_size_schedule"),
)
PRECISION = (
    _on("bf16"),
    _on("fp16"),
    _text("fp8", None, ("e4m3", "hybrid"), flag="--fp8-format"),
    _text("fp8_recipe", "delayed", ("tensorwise", "delayed", "mxfp8", "blockwise", "custom")),
    _on("fp8_param_gather"),
    _on("reuse_grad_buf_for_mxfp8_param_ag"),
    _text("fp4", None, ("e2m1",), flag="--fp4-format"),
    _text("fp4_recipe", "nvfp4", ("nvfp4", "custom")),
    _on("fp4_param_gather"),
    _on("grad_reduce_in_bf16"),
    _on("accumulate_allreduce_grads_in_fp32"),
    _on("use_precision_aware_optimizer"),
    _text("exp_avg_dtype", "fp32", ("fp32", "fp16", "bf16", "fp8")),
    _text("exp_avg_sq_dtype", "fp32", ("fp32", "fp16", "bf16", "fp8")),
    _text("main_params_dtype", "fp32", ("fp32", "fp16")),
)
MEMORY = (
    _on("recompute_activations"),
    _text("recompute_granularity", None, ("full", "selective")),
    _text("recompute_method", None, ("uniform", "block")),
    _whole("recompute_num_layers"),
    _option("recompute_modules", "words"),
    _on("use_distributed_optimizer"),
    _on("use_megatron_fsdp"),
    _text(
        "data_parallel_sharding_strategy",
        "optim_grads_params",
        ("no_shard", "optim", "optim_grads", "optim_grads_params"),
    ),
    _text("ckpt_format", "torch_dist", ("torch", "torch_dist", "torch_dcp", "fsdp_dtensor")),
    _on("init_model_with_meta_device"),
    _on("use_torch_fsdp2"),
    _off("torch_fsdp2_reshard_after_forward", "--torch-fsdp2-no-reshard-after-forward"),
    _whole("num_distributed_optimizer_instances", 1),
    _on("optimizer_cpu_offload"),
    _number("optimizer_offload_fraction", 1.0),
    _on("overlap_cpu_optimizer_d2h_h2d"),
    _whole("cpu_offloading_num_layers", 0),
    _on("fine_grained_activation_offloading"),
)
OVERLAP = (
    _on("overlap_grad_reduce"),
    _on("overlap_param_gather"),
    _on("tp_comm_overlap"),
    _on("overlap_moe_expert_parallel_comm"),
    _off("overlap_p2p_comm", "--no-overlap-p2p-communication"),
    _whole("ddp_bucket_size"),
)
KERNELS = (
    _text("attention_backend", "auto", ("flash", "fused", "unfused", "local", "auto")),
    _option("flash_attention_version", "whole", None, choices=("2", "3", "4")),
    _text("transformer_impl", "transformer_engine", ("local", "transformer_engine", "inference_optimized")),
    _on("cross_entropy_loss_fusion"),
    _text("cross_entropy_fusion_impl", "native", ("native", "te")),
    _off("apply_rope_fusion", "--no-rope-fusion"),
    _off("bias_swiglu_fusion", "--no-bias-swiglu-fusion"),
    _off("bias_gelu_fusion", "--no-bias-gelu-fusion"),
    _off("bias_dropout_fusion", "--no-bias-dropout-fusion"),
    _off("gradient_accumulation_fusion", "--no-gradient-accumulation-fusion"),
    _text("cuda_graph_impl", "none", ("none", "local", "transformer_engine", "full_iteration")),
    _option("cuda_graph_modules", "words", ()),
    _on("enable_cuda_graph"),
    _on("external_cuda_graph"),
    _number("attention_dropout", 0.1),
    _number("hidden_dropout", 0.1),
    _text("moe_token_dispatcher_type", "allgather", ("allgather", "alltoall", "flex")),
    _text("moe_flex_dispatcher_backend", "deepep", ("deepep", "hybridep", "ncclep")),
    _on("moe_enable_deepep"),
    _on("moe_grouped_gemm"),
    _on("moe_permute_fusion"),
    _text("moe_router_dtype", None, ("fp32", "fp64")),
    _on("moe_router_force_load_balancing"),
    _on("moe_router_padding_for_quantization"),
    _number("moe_expert_capacity_factor"),
    _on("moe_pad_expert_input_to_capacity"),
)
RUN = (
    _on("mock_data"),
    _text("split"),
    _whole("num_workers", 2),
    _off("create_attention_mask_in_dataloader", "--no-create-attention-mask-in-dataloader"),
    _whole("train_iters"),
    _number("lr"),
    _number("min_lr", 0.0),
    _text("lr_decay_style", "linear", ("constant", "linear", "cosine", "inverse-square-root", "WSD")),
    _number("weight_decay", 0.01),
    _number("clip_grad", 1.0),
    _text("optimizer", "adam", ("adam", "sgd", "muon", "dist_muon", "lion", "soap", "adaptive_muon")),
    _whole("eval_iters", 100),
    _whole("log_interval", 100),
    _on("log_throughput"),
    _on("manual_gc"),
    _whole("manual_gc_interval", 0),
    _off("check_for_nan_in_loss_and_grad", "--no-check-for-nan-in-loss-and-grad"),
)

OPTIONS = (*MODEL, *TOKENIZER, *MESH, *BATCH, *PRECISION, *MEMORY, *OVERLAP, *KERNELS, *RUN)
"""In the order they are written."""
BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}
BY_FLAG: Mapping[str, Option] = {option.flag: option for option in OPTIONS}
EFFECTLESS = frozenset(option.name for option in RUN)
"""Set by a launch, read by no estimate."""


def words_of(option: Option, value: Value) -> tuple[str, ...] | None:
    """The flag with its values; None where nothing needs to be said."""
    if option.kind in ("on", "off"):
        return None if value == option.default else (option.flag,)
    if value is None or value == ():
        return None
    if isinstance(value, tuple):
        return option.flag, *value
    return option.flag, f"{value:g}" if isinstance(value, float) else str(value)
