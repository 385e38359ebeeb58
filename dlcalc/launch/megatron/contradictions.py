"""Options that Megatron does not take together, found before anything is concluded from them."""

from __future__ import annotations

from dlcalc.launch.megatron.said import Said

POSITIVE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "ffn_hidden_size",
    "kv_channels",
    "seq_length",
    "micro_batch_size",
    "global_batch_size",
    "max_position_embeddings",
    "vocab_size",
    "padded_vocab_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
    "num_distributed_optimizer_instances",
)
EXCLUSIVE = (
    ("bf16", "fp16"),
    ("fp8", "fp4"),
    ("swiglu", "squared_relu"),
    ("swiglu", "quick_geglu"),
    ("multi_latent_attention", "group_query_attention"),
    ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
    ("num_layers_per_virtual_pipeline_stage", "pipeline_model_parallel_layout"),
    ("num_virtual_stages_per_pipeline_rank", "pipeline_model_parallel_layout"),
    ("decoder_first_pipeline_num_layers", "account_for_embedding_in_pipeline_split"),
    ("decoder_last_pipeline_num_layers", "account_for_loss_in_pipeline_split"),
    ("pipeline_model_parallel_layout", "decoder_first_pipeline_num_layers"),
    ("pipeline_model_parallel_layout", "decoder_last_pipeline_num_layers"),
    ("pipeline_model_parallel_layout", "account_for_embedding_in_pipeline_split"),
    ("pipeline_model_parallel_layout", "account_for_loss_in_pipeline_split"),
    ("use_torch_fsdp2", "use_distributed_optimizer"),
    ("use_torch_fsdp2", "use_megatron_fsdp"),
)
NEEDS = (
    ("overlap_param_gather", ("overlap_grad_reduce",)),
    ("overlap_param_gather", ("use_distributed_optimizer", "use_megatron_fsdp", "use_torch_fsdp2")),
    ("tp_comm_overlap", ("sequence_parallel",)),
    ("overlap_moe_expert_parallel_comm", ("num_experts",)),
    ("optimizer_cpu_offload", ("use_precision_aware_optimizer",)),
)
UNMODELLED = ("hybrid_layer_pattern", "heterogeneous_layers_config_path", "experimental_attention_variant")
"""Networks that are no plain transformer."""


def check(said: Said) -> None:
    """Refuse what no run can have; every message names the options."""
    for name in POSITIVE:
        value = said.get(name)
        if isinstance(value, int) and value < 1:
            raise said.mistake(name, f"must be at least 1, not {value}")
    for one, other in EXCLUSIVE:
        if said.get(one) and said.get(other):
            raise said.mistake(other, f"contradicts {said.label(one)}")
    for name, needed in NEEDS:
        if said.on(name) and not any(said.get(one) for one in needed):
            raise said.mistake(name, f"needs {' or '.join(said.label(one) for one in needed)}")
    for name in UNMODELLED:
        if said.get(name):
            raise said.mistake(name, "describes layers that no model of ours has")
    _check_recomputation(said)
    _check_experts(said)


def _check_recomputation(said: Said) -> None:
    granularity = "selective" if said.on("recompute_activations") else said.get("recompute_granularity")
    method, n_layers = said.get("recompute_method"), said.get("recompute_num_layers")
    if granularity == "full" and method is None:
        raise said.mistake("recompute_granularity", f"full needs {said.label('recompute_method')}")
    if granularity == "full" and n_layers is None:
        raise said.mistake("recompute_granularity", f"full needs {said.label('recompute_num_layers')}")
    if granularity == "selective" and method is not None:
        raise said.mistake("recompute_method", "belongs to full recomputation, not to selective")
    if granularity == "selective" and n_layers is not None:
        raise said.mistake("recompute_num_layers", "belongs to full recomputation, not to selective")


def _check_experts(said: Said) -> None:
    experts, ranks = said.count("num_experts"), said.count("expert_model_parallel_size", 1)
    if ranks > 1 and not experts:
        raise said.mistake("expert_model_parallel_size", f"needs {said.label('num_experts')}")
    if experts % ranks:
        raise said.mistake("expert_model_parallel_size", f"{ranks} does not divide the {experts} experts")
