"""Options of Megatron-Core as fields of Megatron-Bridge's configuration: ``group.field`` of every option.

Megatron-Bridge keeps most options under their own names in ``model``; the others are listed here.

Source: megatron-bridge 0.6.2, https://github.com/NVIDIA-NeMo/Megatron-Bridge/tree/v0.6.2/src/megatron/bridge
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dlcalc.launch.megatron import options
from dlcalc.launch.megatron.details import FUNCTION, GATE
from dlcalc.launch.megatron.options import Settings, Value
from dlcalc.launch.megatron.patterns import kinds_of

Tree = dict[str, dict[str, object]]
"""Groups and their fields."""

ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("model.num_moe_experts",),
    "num_virtual_stages_per_pipeline_rank": ("model.virtual_pipeline_model_parallel_size",),
    "decoder_first_pipeline_num_layers": ("model.num_layers_in_first_pipeline_stage",),
    "decoder_last_pipeline_num_layers": ("model.num_layers_in_last_pipeline_stage",),
    "use_rope_scaling": ("model.rope_scaling",),
    "rotary_seq_len_interpolation_factor": ("model.seq_len_interpolation_factor",),
    "seq_length": ("model.seq_length", "dataset.seq_length"),
    "vocab_size": ("model.vocab_size", "tokenizer.vocab_size"),
    "micro_batch_size": ("train.micro_batch_size",),
    "global_batch_size": ("train.global_batch_size",),
    "bf16": ("mixed_precision.bf16",),
    "fp16": ("mixed_precision.fp16",),
    "fp8": ("mixed_precision.fp8",),
    "fp8_recipe": ("mixed_precision.fp8_recipe",),
    "fp8_param_gather": ("mixed_precision.fp8_param_gather",),
    "reuse_grad_buf_for_mxfp8_param_ag": ("mixed_precision.reuse_grad_buf_for_mxfp8_param_ag",),
    "fp4": ("mixed_precision.fp4",),
    "fp4_recipe": ("mixed_precision.fp4_recipe",),
    "fp4_param_gather": ("mixed_precision.fp4_param_gather",),
    "use_precision_aware_optimizer": ("optimizer.use_precision_aware_optimizer",),
    "exp_avg_dtype": ("optimizer.exp_avg_dtype",),
    "exp_avg_sq_dtype": ("optimizer.exp_avg_sq_dtype",),
    "main_params_dtype": ("optimizer.main_params_dtype",),
    "optimizer_cpu_offload": ("optimizer.optimizer_cpu_offload",),
    "optimizer_offload_fraction": ("optimizer.optimizer_offload_fraction",),
    "overlap_cpu_optimizer_d2h_h2d": ("optimizer.overlap_cpu_optimizer_d2h_h2d",),
    "use_distributed_optimizer": ("ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"),
    "use_megatron_fsdp": ("ddp.use_megatron_fsdp", "dist.use_megatron_fsdp"),
    "use_torch_fsdp2": ("dist.use_torch_fsdp2",),
    "use_tp_pp_dp_mapping": ("dist.use_tp_pp_dp_mapping",),
    "data_parallel_sharding_strategy": ("ddp.data_parallel_sharding_strategy",),
    "num_distributed_optimizer_instances": ("ddp.num_distributed_optimizer_instances",),
    "ckpt_format": ("checkpoint.ckpt_format",),
    "overlap_grad_reduce": ("ddp.overlap_grad_reduce", "comm_overlap.overlap_grad_reduce"),
    "overlap_param_gather": ("ddp.overlap_param_gather", "comm_overlap.overlap_param_gather"),
    "ddp_bucket_size": ("ddp.bucket_size", "comm_overlap.bucket_size"),
    "tp_comm_overlap": ("comm_overlap.tp_comm_overlap",),
    "overlap_p2p_comm": ("comm_overlap.overlap_p2p_comm",),
    "overlap_moe_expert_parallel_comm": ("comm_overlap.overlap_moe_expert_parallel_comm",),
}
"""Fields that are not ``model.<name of the option>``; several where all of them must be set."""
DERIVED = frozenset(
    {
        "swiglu",
        "squared_relu",
        "quick_geglu",
        "untie_embeddings_and_output_weights",
        "group_query_attention",
        "grad_reduce_in_bf16",
        "accumulate_allreduce_grads_in_fp32",
        "bias_swiglu_fusion",
        "bias_gelu_fusion",
        "num_layers_per_virtual_pipeline_stage",
        "max_position_embeddings",
        "use_rotary_position_embeddings",
        "recompute_activations",
        "torch_fsdp2_reshard_after_forward",
        "tokenizer_type",
        "padded_vocab_size",
        "hybrid_layer_pattern",
        "heterogeneous_layers_config_path",
        "step_batch_size_schedule",
        "rotary_scaling_factor",
        "mscale",
        "mscale_all_dim",
        "yarn_original_max_position_embeddings",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_correction_range_round_to_int",
    }
)
"""Options that no field holds as they are; :func:`tree_of` and the reader treat them one by one."""
LATENT_YARN = {
    "rotary_scaling_factor": "rotary_scaling_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "yarn_original_max_position_embeddings": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
PLAIN_YARN = {option: f"yarn_{option.removeprefix('yarn_')}" for option in LATENT_YARN} | {
    "yarn_correction_range_round_to_int": "yarn_correction_range_round_to_int"
}
FUNCTIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""Activations by other names than ours."""
FUSED = ("silu", "gelu", "quick_gelu")
"""Activations with a fused kernel."""
SAME_NAME = tuple(
    option.name
    for option in options.OPTIONS
    if option.name not in options.EFFECTLESS and option.name not in DERIVED and option.name not in ELSEWHERE
)
PLACES: Mapping[str, tuple[str, ...]] = {**{name: (f"model.{name}",) for name in SAME_NAME}, **ELSEWHERE}
"""Fields of every option that has one of its own."""
SAID_AS_NULL = frozenset({"ddp_bucket_size", "q_lora_rank"})
"""Options whose fields have a default, so that none must be said."""
DEFAULTS: Mapping[str, Value] = {
    "cross_entropy_loss_fusion": True,
    "apply_rope_fusion": False,
    "bias_swiglu_fusion": False,
    "bias_gelu_fusion": False,
    "bias_dropout_fusion": False,
    "fp8_recipe": "tensorwise",
    "kv_lora_rank": 512,
    "q_lora_rank": 512,
    "use_distributed_optimizer": False,
    "rope_scaling_factor": 1.0,
}
"""Where they differ from those of Megatron-LM's arguments."""


def tree_of(settings: Settings) -> Tree:
    """Groups and fields that say what the options say."""
    tree: Tree = {}
    for name, value in settings.items():
        if value is None and name not in SAID_AS_NULL:
            continue
        for place in PLACES.get(name, ()):
            put(tree, place, _as_field(name, value))
    for place, derived in _derived(settings):
        put(tree, place, derived)
    return tree


def put(tree: Tree, place: str, value: object) -> None:
    """Set ``group.field``."""
    group, _, field = place.partition(".")
    tree.setdefault(group, {})[field] = value


def _as_field(name: str, value: Value) -> object:
    """The value in the type of the field: lists for what the command line has in short forms."""
    if name in ("moe_layer_freq", "window_attn_skip_freq"):
        return int(str(value)) if str(value).isdigit() else [int(kind) for kind in kinds_of(str(value))]
    if name == "window_size":
        return [int(number) for number in str(value).split(",")]
    if name in ("cp_comm_type", "moe_router_load_balancing_type") and isinstance(value, tuple):
        return value[0]
    if name == "moe_aux_loss_coeff" and isinstance(value, tuple):
        return float(value[0])
    if name.endswith("_dtype") and name.startswith("exp_avg"):
        return {"bf16": "torch.bfloat16", "fp8": "torch.uint8"}.get(str(value), "torch.float32")
    return list(value) if isinstance(value, tuple) else value


def _yarn(settings: Settings) -> Iterator[tuple[str, object]]:
    """YaRN's fields, which have other names under latent attention."""
    names = LATENT_YARN if settings.get("multi_latent_attention") else PLAIN_YARN
    for option, field in names.items():
        if settings.get(option) is not None:
            yield f"model.{field}", settings[option]


def _derived(settings: Settings) -> Iterator[tuple[str, object]]:
    """Fields that follow from several options, or say the opposite of one."""
    function = str(settings[FUNCTION])
    yield "model.gated_linear_unit", bool(settings[GATE])
    yield "model.activation_func", FUNCTIONS.get(function, function)
    fused = settings["bias_swiglu_fusion"] if settings["swiglu"] else settings["bias_gelu_fusion"]
    fusable = function in FUSED and (settings[GATE] or bool(settings["add_bias_linear"]))
    yield "model.bias_activation_fusion", bool(fused) and fusable
    yield from _yarn(settings)
    yield "model.share_embeddings_and_output_weights", not settings["untie_embeddings_and_output_weights"]
    yield "model.should_pad_vocab", True
    yield "model.multi_latent_attention", bool(settings.get("multi_latent_attention"))
    if settings.get("fp16"):
        in_32_bits = bool(settings["accumulate_allreduce_grads_in_fp32"])
    else:
        in_32_bits = not settings["grad_reduce_in_bf16"]
    yield "mixed_precision.grad_reduce_in_fp32", in_32_bits
    yield "ddp.grad_reduce_in_fp32", in_32_bits
    if settings.get("cpu_offloading_num_layers"):
        yield "model.cpu_offloading", True
    if settings.get("cuda_graph_impl", "none") != "none":
        yield "rng.te_rng_tracker", True
    if settings.get("cuda_graph_impl") == "full_iteration":
        yield "rerun_state_machine.check_for_nan_in_loss", False
        yield "ddp.check_for_nan_in_grad", False
