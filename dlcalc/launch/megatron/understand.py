"""What options of Megatron-Core mean for a plan and a recipe: the inverse of ``describe``."""

from __future__ import annotations

from collections.abc import Iterator

from dlcalc.costmodel.quantized_weights import gathers_quantized
from dlcalc.launch.imported import Imported
from dlcalc.launch.megatron.contradictions import check
from dlcalc.launch.megatron.network import model_of
from dlcalc.launch.megatron.options import CP_COMM_TYPES, RECOMPUTED_MODULES, modules_of
from dlcalc.launch.megatron.said import Said
from dlcalc.launch.megatron.stages import pipeline_knobs
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import Precision
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Scaling
from dlcalc.specs.recompute import combined
from dlcalc.specs.target import PROFILE_OF_TARGET, Target

FSDP_STAGES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
SCALINGS: dict[str, Scaling] = {"delayed": "delayed", "blockwise": "block"}
"""Of an fp8 recipe; all others scale a tensor by its maximum of now."""
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


def imported(said: Said, source: Target, *, devices: int | None = None) -> Imported:
    """One run, as far as its options tell it."""
    check(said)
    model = model_of(said)
    pipeline, chunks = pipeline_knobs(said, model)
    ranks = said.count("tensor_model_parallel_size", 1)
    expert_ranks = said.get("expert_tensor_parallel_size")
    knobs: dict[str, int | bool | str] = {
        "tp": ranks,
        "cp": said.count("context_parallel_size", 1),
        **pipeline,
        "ep": said.count("expert_model_parallel_size", 1) if model.is_moe else 1,
        "etp": (expert_ranks if isinstance(expert_ranks, int) else ranks) if model.is_moe else 1,
        "micro_batch": said.whole("micro_batch_size"),
        **_recomputation(said, model, chunks),
        **_sharding(said),
        "sequence_parallel": said.on("sequence_parallel") and ranks > 1,
        "overlap_grad": said.on("overlap_grad_reduce"),
        "overlap_param": said.on("overlap_param_gather"),
        "overlap_tp": said.on("tp_comm_overlap"),
        "overlap_ep": said.on("overlap_moe_expert_parallel_comm"),
        **_context_exchange(said),
        "offload_optimizer": said.on("optimizer_cpu_offload"),
        "offload_layers": said.count("cpu_offloading_num_layers"),
    }
    precision, scaling = _precision(said)
    batch = said.get("global_batch_size")
    said.notes.extend(_assumed(said))
    return Imported(
        source=source,
        model=model,
        knobs=knobs,
        seq_len=said.whole("seq_length"),
        global_batch=batch if isinstance(batch, int) else None,
        precision=precision,
        scaling=scaling,
        devices=devices,
        custom_split=chunks if pipeline["split"] == "custom" else None,
        cuda_graphs=said.get("cuda_graph_impl") != "none"
        or said.on("enable_cuda_graph")
        or said.on("external_cuda_graph"),
        profile=changed_settings(profile_settings(said), source),
        ignored=(*said.ignored, *(label for label in said.effectless if label not in said.ignored)),
        notes=tuple(said.notes),
    )


def _precision(said: Said) -> tuple[Precision, Scaling]:
    """Of linear layers, and what one of its scales covers."""
    recipe = said.get("fp8_recipe")
    if said.get("fp4"):
        return "nvfp4", "tensor"
    if said.get("fp8"):
        if recipe == "mxfp8":
            return "mxfp8", "tensor"
        return "fp8", SCALINGS.get(str(recipe), "tensor")
    if said.on("fp16"):
        return "fp16", "tensor"
    return ("bf16" if said.on("bf16") else "fp32"), "tensor"


def _context_exchange(said: Said) -> dict[str, str]:
    """What ranks of one sequence exchange; Megatron's word may be one for all layers, or one a layer."""
    if said.count("context_parallel_size", 1) == 1:
        return {"cp_exchange": "ring"}
    written = said.get("cp_comm_type")
    kinds = set(written if isinstance(written, tuple) else [str(written)])
    ours = {theirs: word for word, theirs in CP_COMM_TYPES.items()} | {"allgather": "all_gather"}
    if len(kinds) == 1 and kinds <= set(ours):
        return {"cp_exchange": ours[kinds.pop()]}
    said.notes.append(f"cp_comm_type {' '.join(sorted(kinds))} is counted as a ring")
    return {"cp_exchange": "ring"}


def _recomputation(said: Said, model: ModelSpec, chunks: tuple[int, ...]) -> dict[str, int | bool | str]:
    granularity = "selective" if said.on("recompute_activations") else said.get("recompute_granularity")
    if granularity == "full":
        return _full(said, chunks)
    if granularity is None:
        return {"recompute": "none", "recompute_layers": -1}
    given = said.get("recompute_modules")
    modules = set(given) if isinstance(given, tuple) else {"core_attn"}
    modules -= model.not_to_recompute & {"mlp", "moe"}  # a layer that the model lacks is passed over
    parts = [part for part, its_modules in RECOMPUTED_MODULES.items() if modules & set(its_modules)]
    found = combined(parts) or "none"
    modules -= set(modules_of(found))
    if modules:
        said.notes.append(
            f"Recomputation of {', '.join(sorted(modules))} is not modelled: the plan has recompute = {found}, "
            f"so it needs less memory and more time than estimated."
        )
    return {"recompute": found, "recompute_layers": -1}


def _full(said: Said, chunks: tuple[int, ...]) -> dict[str, int | bool | str]:
    n_layers = said.count("recompute_num_layers", 1)
    if said.get("recompute_method") == "block":
        return {"recompute": "full", "recompute_layers": n_layers if n_layers < max(chunks) else -1}
    if n_layers > 1:
        said.notes.append(
            f"Layers are recomputed {n_layers} at a time; the estimate keeps every layer's input, which is more memory."
        )
    return {"recompute": "full", "recompute_layers": -1}


def _sharding(said: Said) -> dict[str, int | bool | str]:
    if said.on("use_megatron_fsdp"):
        stage = FSDP_STAGES[str(said.get("data_parallel_sharding_strategy"))]
    elif said.on("use_torch_fsdp2"):
        stage = 3 if said.on("torch_fsdp2_reshard_after_forward") else 2
    else:
        stage = int(said.on("use_distributed_optimizer"))
    replicas = said.count("num_distributed_optimizer_instances", 1)
    return {"zero_stage": stage, "dp_replicate": replicas if stage else 1}


def profile_settings(said: Said) -> dict[str, object]:
    """What options decide of the framework profile, whatever its own values."""
    half = said.on("fp16")
    in_32_bits = said.on("accumulate_allreduce_grads_in_fp32") if half else not said.on("grad_reduce_in_bf16")
    fused_loss = said.on("cross_entropy_loss_fusion") and said.get("cross_entropy_fusion_impl") == "te"
    found: dict[str, object] = {
        "grad_bytes": 4 if in_32_bits else 2,
        "grad_reduce_bytes": 4 if in_32_bits else 2,
        "cross_entropy": "fused" if fused_loss else "parallel",
        "fused_rope": said.on("apply_rope_fusion") and said.get("position_embedding_type") != "yarn",
        "fused_activation": said.on("bias_swiglu_fusion" if said.on("swiglu") else "bias_gelu_fusion")
        or said.on("squared_relu"),  # which has no fused kernel, whatever the switch
        "fused_residual": said.on("bias_dropout_fusion"),
        "fused_grad_accumulation": said.on("gradient_accumulation_fusion"),
        "dropout": any(said.get(name) != 0 for name in ("attention_dropout", "hidden_dropout")),
        "overlaps_stage_sends": said.on("overlap_p2p_comm"),
        "attention": _attention(said),
        "optimizer_state_bytes": sum(DTYPE_BYTES[str(said.get(f"exp_avg{name}_dtype"))] for name in ("", "_sq")),
        "master_weight_bytes": DTYPE_BYTES[str(said.get("main_params_dtype"))],
    }
    stage, offloads = int(_sharding(said)["zero_stage"]), int(said.on("optimizer_cpu_offload"))
    if gathers_quantized(_precision(said)[0], zero_stage=stage, offload_optimizer=offloads):
        found["gathers_quantized_weights"] = said.on("fp4_param_gather" if said.get("fp4") else "fp8_param_gather")
    if said.count("num_experts"):
        flexible = said.get("moe_token_dispatcher_type") == "flex" or said.on("moe_enable_deepep")
        found["dispatches_once_per_node"] = flexible and said.count("expert_model_parallel_size", 1) > 1
    capacity = said.get("moe_expert_capacity_factor")
    if isinstance(capacity, float) and capacity > 1 and said.on("moe_pad_expert_input_to_capacity"):
        found["routed_factor"] = capacity
    bucket = said.get("ddp_bucket_size")
    if isinstance(bucket, int) and bucket > 0:
        found |= {"bucket_elements": float(bucket), "bucket_elements_per_rank": 0.0}
    return found


def _attention(said: Said) -> str:
    match said.get("attention_backend"):
        case "unfused" | "local":
            return "unfused"
        case "flash":
            version = said.get("flash_attention_version")
            return "flash2" if version == 2 else "flash3"
        case _:
            return "te_flash"


def changed_settings(found: dict[str, object], source: Target) -> dict[str, object]:
    """Those that differ from the profile of the trainer."""
    usual = load_framework(PROFILE_OF_TARGET[source])
    return {name: value for name, value in found.items() if getattr(usual, name) != value}


def _assumed(said: Said) -> Iterator[str]:
    """What is run in a way that the estimate does not know."""
    if said.on("sequence_parallel") and said.count("tensor_model_parallel_size", 1) == 1:
        yield "Sequence parallelism is off, because there is no tensor parallelism."
    if said.get("global_batch_size") is None:
        yield "The global batch is not said: Megatron takes one micro-batch per data-parallel rank."
    if said.on("fp8_param_gather") or said.on("fp4_param_gather"):
        yield "Weights are gathered in low precision, which is less to send than estimated."
    if said.on("fine_grained_activation_offloading"):
        yield "Offload of single activations is not modelled: it needs less memory than estimated."
    fraction = said.get("optimizer_offload_fraction")
    if said.on("optimizer_cpu_offload") and fraction != 1.0:
        yield f"The optimizer is offloaded whole in the estimate, though only a fraction of {fraction} is."
    if said.on("use_tp_pp_dp_mapping"):
        yield "Ranks are in the order tp, cp, ep, pp, dp; the estimate has dp inside pp."
    if said.count("tensor_parallel_num_weight_shards", 1) > said.count("tensor_model_parallel_size", 1):
        yield "Weights gathered over further ranks (--tensor-parallel-num-weight-shards) are not modelled."
    if said.get("step_batch_size_schedule"):
        yield "The schedule of batch sizes is not modelled: the plan has one batch."
    if said.get("moe_latent_size"):
        yield "Experts of a latent width (--moe-latent-size) are not modelled: they are counted at the full width."
