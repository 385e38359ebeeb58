"""A job in the words of Megatron-Core: the value of every option that its plan, model and recipe decide.

Megatron-LM writes them as flags, Megatron-Bridge as fields of its configuration.
"""

from __future__ import annotations

from dlcalc.calculators.stages import SPLITS
from dlcalc.costmodel.data_parallel import bucket_params
from dlcalc.costmodel.quantized_weights import gathers_quantized
from dlcalc.launch.job import Job
from dlcalc.launch.megatron.details import activation_settings, position_settings, routing_settings
from dlcalc.launch.megatron.options import CP_COMM_TYPES, Value, modules_of
from dlcalc.launch.megatron.patterns import layout_of, pattern_of
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec

FP8_RECIPES = {"tensor": "tensorwise", "delayed": "delayed", "block": "blockwise"}
USUAL_BUCKET = (40e6, 1e6)
"""Of Megatron itself: elements, or so many for each rank if that is more."""
FSDP_STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}
FULL_MODEL_GRAPH, LAYER_GRAPHS = "full_iteration", "transformer_engine"


def settings_of(job: Job) -> dict[str, Value]:
    """Options by name, those at Megatron's defaults included where the job decides them."""
    return {
        **model_settings(job),
        **_mesh(job),
        **_pipeline(job),
        "micro_batch_size": job.plan.micro_batch,
        "global_batch_size": job.recipe.global_batch,
        "seq_length": job.recipe.seq_len,
        **_precision(job),
        **_recomputation(job),
        **_sharding(job),
        **_overlaps(job),
        **_kernels(job),
        **_experts(job),
    }


def model_settings(job: Job) -> dict[str, Value]:
    """What the network is."""
    model = job.model
    latent: dict[str, Value] = {}
    if model.is_mla:
        latent = {
            "multi_latent_attention": True,
            "q_lora_rank": model.q_lora_rank or None,
            "kv_lora_rank": model.kv_lora_rank,
            "qk_head_dim": model.qk_nope_head_dim,
            "qk_pos_emb_head_dim": model.qk_rope_head_dim,
            "v_head_dim": model.v_head_dim,
        }
    grouped = model.n_kv_heads != model.n_heads and not model.is_mla
    return {
        "num_layers": model.n_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.n_heads,
        "group_query_attention": grouped,
        "num_query_groups": model.n_kv_heads if grouped else None,
        "kv_channels": model.head_dim,
        "max_position_embeddings": max(model.max_seq, job.recipe.seq_len),
        **position_settings(model),
        "normalization": "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
        "layernorm_epsilon": model.norm_epsilon,
        **activation_settings(model),
        "add_bias_linear": has_linear_biases(model),
        "add_qkv_bias": model.qkv_bias and not has_linear_biases(model),
        "qk_layernorm": model.qk_norm or model.is_mla,  # under latent attention, the norms of the latents
        "untie_embeddings_and_output_weights": not model.tied_embeddings,
        "softmax_type": "learnable" if model.attention_sinks else "vanilla",
        **_windows(model),
        **latent,
        **_mixture(job),
        "mtp_num_layers": model.mtp_layers or None,
        "vocab_size": model.vocab_size,
    }


def has_linear_biases(model: ModelSpec) -> bool:
    """Whether Megatron's one switch for the biases of linear layers is on."""
    return model.linear_bias or model.attention_bias


def _windows(model: ModelSpec) -> dict[str, Value]:
    windowed = model.layer_is_windowed
    if not any(windowed):
        return {}
    size: dict[str, Value] = {"window_size": f"{model.sliding_window - 1},0"}  # tokens before and after the query's own
    return size if all(windowed) else {**size, "window_attn_skip_freq": pattern_of(windowed)}


def _mixture(job: Job) -> dict[str, Value]:
    model = job.model
    if not model.is_moe:
        return {}
    is_moe = model.layer_is_moe
    groups = router_groups(job)
    return {
        "num_experts": model.n_experts,
        "moe_ffn_hidden_size": model.expert_ffn_hidden_size,
        "moe_router_topk": model.top_k,
        "moe_shared_expert_intermediate_size": model.shared_ffn_hidden_size or None,
        "moe_shared_expert_gate": model.shared_expert_gate,
        "moe_layer_freq": "1" if all(is_moe) else pattern_of(is_moe),
        "moe_router_num_groups": groups,
        "moe_router_group_topk": model.expert_groups_per_token if groups else None,
        **routing_settings(model),
    }


def router_groups(job: Job) -> int | None:
    """Groups of experts that a token may be sent to only some of: the model's, else one per node of the experts.

    Of the latter at least twice those that a token may reach, or there would hardly be a limit; None without one, and
    where no such number divides the experts.
    """
    model, plan = job.model, job.plan
    limit = model.expert_groups_per_token
    if not limit or model.top_k % limit:
        return None
    if model.expert_groups:
        return model.expert_groups
    fewest = max(2 * limit, plan.ep * plan.etp // job.hardware.node.devices_of_job(job.devices))
    most = model.n_experts * limit // model.top_k  # or the groups reached would have too few experts
    return next((n for n in range(fewest, most + 1) if model.n_experts % n == 0), None)


def _mesh(job: Job) -> dict[str, Value]:
    plan = job.plan
    experts: dict[str, Value] = {"expert_model_parallel_size": plan.ep, "expert_tensor_parallel_size": plan.etp}
    return {
        "tensor_model_parallel_size": plan.tp,
        "pipeline_model_parallel_size": plan.pp,
        "context_parallel_size": plan.cp,
        **_context_exchange(job),
        **(experts if job.model.is_moe else {}),
        "sequence_parallel": plan.sequence_parallel,
    }


def _context_exchange(job: Job) -> dict[str, Value]:
    """How ranks of one sequence meet each other's keys."""
    exchange = job.plan.cp_exchange
    return {"cp_comm_type": (CP_COMM_TYPES[exchange],)} if job.plan.cp > 1 and exchange != "ring" else {}


def _pipeline(job: Job) -> dict[str, Value]:
    """How layers are dealt out: by Megatron's own rule where it gives these chunks, else chunk by chunk."""
    plan, n_layers = job.plan, job.model.n_layers
    n_chunks = plan.pp * plan.vpp
    if n_chunks == 1:
        return {}
    virtual: dict[str, Value] = {"num_virtual_stages_per_pipeline_rank": plan.vpp if plan.vpp > 1 else None}
    if plan.split == SPLITS[0] and n_layers % n_chunks == 0:
        return virtual
    counted = {"embedding_and_loss": ("embedding", "loss"), "loss": ("loss",)}.get(plan.split, ())
    own_rule = (n_layers + len(counted)) % n_chunks == 0 and not job.model.mtp_layers  # of which it knows nothing
    if counted and own_rule:
        return {**virtual, **{f"account_for_{part}_in_pipeline_split": True for part in counted}}
    return {"pipeline_model_parallel_layout": layout_of(job.chunk_layers, mtp_layers=job.model.mtp_layers)}


def _precision(job: Job) -> dict[str, Value]:
    profile = job.recipe.framework
    half = job.recipe.precision == "fp16"
    low: dict[str, Value] = {}
    match job.recipe.precision:
        case "fp8":
            scaling = job.recipe.scaling
            low = {"fp8": "e4m3" if scaling == "block" else "hybrid", "fp8_recipe": FP8_RECIPES[scaling]}
        case "mxfp8":
            low = {"fp8": "e4m3", "fp8_recipe": "mxfp8"}
        case "nvfp4":
            low = {"fp4": "e2m1", "fp4_recipe": "nvfp4"}
    low |= _gathering(job)
    if low and job.model.is_moe:
        low["moe_router_padding_for_quantization"] = True
    in_16_bits = profile.grad_reduce_bytes == 2
    return {
        "bf16": not half,
        "fp16": half,
        **low,
        "grad_reduce_in_bf16": in_16_bits and not half,
        "accumulate_allreduce_grads_in_fp32": half and not in_16_bits,
        **_optimizer_numbers(job),
    }


def _gathering(job: Job) -> dict[str, Value]:
    """Weights that live in low precision alone, or those in 16 bits and quantized copies of them are both kept."""
    plan, precision = job.plan, job.recipe.precision
    kept = gathers_quantized(precision, zero_stage=plan.zero_stage, offload_optimizer=int(plan.offload_optimizer))
    if not (kept and job.recipe.framework.gathers_quantized_weights):
        return {}
    if precision == "nvfp4":
        return {"fp4_param_gather": True}
    # mxfp8 is gathered in 16 bits, in the buffer of the gradients, or in one more; Megatron-FSDP has neither
    reuses = precision == "mxfp8" and plan.zero_stage == 1
    return {"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": reuses}


def _optimizer_numbers(job: Job) -> dict[str, Value]:
    """Moments in fewer bits, and the optimizer on the host, both need the optimizer that is told precisions."""
    profile, sharded = job.recipe.framework, job.plan.zero_stage > 0
    moment = {8: "fp32", 4: "bf16", 2: "fp8"}.get(profile.optimizer_state_bytes, "fp32") if sharded else "fp32"
    precise = moment != "fp32" or job.plan.offload_optimizer
    return {
        "use_precision_aware_optimizer": precise,
        **({"exp_avg_dtype": moment, "exp_avg_sq_dtype": moment} if moment != "fp32" else {}),
    }


def _recomputation(job: Job) -> dict[str, Value]:
    plan = job.plan
    if plan.recompute == "full":
        return _fully("block", plan.recompute_layers) if plan.recompute_layers >= 0 else _fully("uniform", 1)
    modules = modules_of(plan.recompute)
    return {"recompute_granularity": "selective", "recompute_modules": modules} if modules else {}


def _fully(method: str, n_layers: int) -> dict[str, Value]:
    return {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": n_layers}


def _sharding(job: Job) -> dict[str, Value]:
    plan = job.plan
    fully = plan.zero_stage >= 2
    offload: dict[str, Value] = {"optimizer_cpu_offload": True, "overlap_cpu_optimizer_d2h_h2d": True}
    return {
        "use_distributed_optimizer": plan.zero_stage >= 1,
        "use_megatron_fsdp": fully,
        "data_parallel_sharding_strategy": FSDP_STRATEGIES[plan.zero_stage] if fully else None,
        "ckpt_format": "fsdp_dtensor" if fully else None,
        "init_model_with_meta_device": fully,  # or every device first makes all layers whole
        "num_distributed_optimizer_instances": plan.dp_replicate if plan.dp_replicate > 1 else None,
        **(offload if plan.offload_optimizer else {}),
        "cpu_offloading_num_layers": plan.offload_layers or None,
    }


def _overlaps(job: Job) -> dict[str, Value]:
    plan, profile = job.plan, job.recipe.framework
    # Megatron-Bridge has a default of its own
    usual = job.target == "megatron-lm" and (profile.bucket_elements, profile.bucket_elements_per_rank) == USUAL_BUCKET
    return {
        "overlap_grad_reduce": plan.overlap_grad,
        "overlap_param_gather": plan.overlap_param,
        "tp_comm_overlap": plan.overlap_tp,
        "overlap_moe_expert_parallel_comm": plan.overlap_ep,
        "overlap_p2p_comm": profile.overlaps_stage_sends or plan.vpp == 1 or plan.pp == 2,
        "ddp_bucket_size": None
        if usual or plan.zero_stage >= 2
        else round(float(bucket_params(plan.dp * plan.cp, profile))),
    }


def _kernels(job: Job) -> dict[str, Value]:
    profile = job.recipe.framework
    return {
        **_attention(profile),
        "cross_entropy_loss_fusion": profile.cross_entropy == "fused",
        "cross_entropy_fusion_impl": _fused_loss(job),
        "apply_rope_fusion": profile.fused_rope
        and position_settings(job.model)["position_embedding_type"] != "yarn",  # of which there is no fused kernel
        **_activation_fusion(job),
        "bias_dropout_fusion": profile.fused_residual and not (job.model.is_moe and has_linear_biases(job.model)),
        "gradient_accumulation_fusion": profile.fused_grad_accumulation and job.plan.zero_stage < 2,
        "attention_dropout": 0.1 if profile.dropout else 0.0,
        "hidden_dropout": 0.1 if profile.dropout else 0.0,
        **_graphs(job),
    }


def _activation_fusion(job: Job) -> dict[str, Value]:
    """One switch for SwiGLU and one for every other function, of which a square of ReLUs has no fused kernel."""
    fused, swiglu = job.recipe.framework.fused_activation, activation_settings(job.model)["swiglu"]
    fusable = job.model.activates_by != "relu2" or job.model.gated_mlp
    return {"bias_swiglu_fusion": fused or not swiglu, "bias_gelu_fusion": (fused and fusable) or bool(swiglu)}


def _fused_loss(job: Job) -> str | None:
    """Whose kernel: Transformer Engine's needs least memory, but Megatron-LM's arguments refuse it."""
    if job.recipe.framework.cross_entropy != "fused":
        return None
    return "te" if job.target == "megatron-bridge" else "native"


def _attention(profile: FrameworkProfile) -> dict[str, Value]:
    match profile.attention:
        case "flash1" | "flash2":
            return {"attention_backend": "flash", "flash_attention_version": 2}
        case "flash3":
            return {"attention_backend": "flash", "flash_attention_version": 3}
        case "unfused" | "megatron_fused":
            return {"attention_backend": "unfused"}
        case _:
            return {"attention_backend": "auto"}


def _graphs(job: Job) -> dict[str, Value]:
    """Graphs of layers, as far as their shapes are fixed; of the whole step where layers recompute themselves."""
    if not job.recipe.cuda_graphs:
        return {}
    if job.plan.recompute == "full":
        return {"cuda_graph_impl": FULL_MODEL_GRAPH, "check_for_nan_in_loss_and_grad": False}
    fixed = ("attn", "moe_router", "moe_preprocess") if job.model.is_moe else ("attn", "mlp")
    return {"cuda_graph_impl": LAYER_GRAPHS, "cuda_graph_modules": fixed}


def _experts(job: Job) -> dict[str, Value]:
    """How tokens reach their experts."""
    model, profile, plan = job.model, job.recipe.framework, job.plan
    if not model.is_moe:
        return {}
    flexible = profile.dispatches_once_per_node and plan.ep > 1
    rack = job.hardware.node.n_devices > 8
    padded: dict[str, Value] = {
        "moe_expert_capacity_factor": profile.routed_factor,
        "moe_pad_expert_input_to_capacity": True,
    }
    return {
        "moe_grouped_gemm": True,
        "moe_permute_fusion": True,
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "flex" if flexible else "alltoall",
        "moe_flex_dispatcher_backend": ("hybridep" if rack else "deepep") if flexible else None,
        **(padded if profile.routed_factor != 1 else {}),
    }
