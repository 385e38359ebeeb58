"""A job for torchtitan 0.3: a Python module with the model, and a command line with the plan."""

from __future__ import annotations

from collections.abc import Mapping

from dlcalc.costmodel.targets.torchtitan import family_of, misfit_of
from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Beside, Emitted, Job, Variable, Word
from dlcalc.launch.trainers.torchtitan_details import details, unsaid
from dlcalc.launch.trainers.torchtitan_module import module_text
from dlcalc.specs.model import ModelSpec

MODULE = "torchtitan_job"
FILE = f"{MODULE}.py"
STEPS = Variable("TRAIN_STEPS", "steps to train", default="20")

SCHEDULES: Mapping[str, str] = {
    "1f1b": "1F1B",
    "gpipe": "GPipe",
    "interleaved": "Interleaved1F1B",
    "zb-v": "ZBVZeroBubble",
}
RECOMPUTE: Mapping[str, str] = {"none": "none", "op_sac": "selective", "full": "full"}


def emit(job: Job) -> Emitted:
    """What torchtitan is called with."""
    module = module_text(
        model=_literals(job.model),
        chunk_layers=job.chunk_layers if job.plan.pp > 1 else None,
        precision=job.recipe.precision,
        compiled=_compiles(job),
    )
    options: list[tuple[Word, ...]] = [
        ("--module", MODULE),
        ("--config", "emitted"),
        ("--training.steps", STEPS),
        *((f"--{name}", value) for name, value in _settings(job).items()),
        *((f"--{name}",) for name in _flags(job)),
    ]
    # A subcommand of the parser, hence last.
    options.append((f"activation-checkpoint:{RECOMPUTE[job.plan.recompute]}",))
    return Emitted(
        program=(Beside(FILE),),
        options=tuple(options),
        files={FILE: module},
        notes=tuple(_notes(job)),
    )


def _settings(job: Job) -> dict[str, str]:
    """Options with a value."""
    plan = job.plan
    sharded = plan.zero_stage >= 2
    replicas = plan.dp_replicate if sharded else plan.dp
    in_flight = job.micro_batches if plan.pp > 1 else 1
    settings = {
        "training.seq_len": job.recipe.seq_len,
        "training.local_batch_size": plan.micro_batch * in_flight,
        "training.global_batch_size": job.recipe.global_batch,
        "parallelism.data_parallel_replicate_degree": replicas,
        "parallelism.data_parallel_shard_degree": plan.dp // replicas,
        "parallelism.fsdp_reshard_after_forward": _reshard(job),
        "parallelism.tensor_parallel_degree": plan.tp,
        "parallelism.context_parallel_degree": plan.cp,
        "parallelism.pipeline_parallel_degree": plan.pp,
        "parallelism.expert_parallel_degree": plan.ep,
    }
    if plan.pp > 1:
        settings |= {
            "parallelism.pipeline_parallel_schedule": SCHEDULES[plan.schedule],
            "parallelism.pipeline_parallel_microbatch_size": plan.micro_batch,
        }
    return {name: str(value) for name, value in settings.items()}


def _reshard(job: Job) -> str:
    """Whether gathered weights are freed after the forward pass: ZeRO 3 if so, 2 if not.

    In a pipeline torchtitan's default is not to, so that each weight is gathered once a step; the framework profile
    says so too (``gathers_once_in_pipeline``).
    """
    if job.plan.zero_stage < 3:
        return "never"
    return "default" if job.plan.pp == 1 or job.recipe.framework.gathers_once_in_pipeline else "always"


def _flags(job: Job) -> list[str]:
    plan, recipe = job.plan, job.recipe
    flags = []
    if plan.tp > 1:
        flags.append(f"parallelism.{'' if plan.sequence_parallel else 'no-'}enable-sequence-parallel")
    if _compiles(job):
        flags.append("compile.enable")
    if plan.overlap_tp:
        flags.append("compile.enable-async-tensor-parallel")
    if plan.offload_optimizer:
        flags.append("training.enable-cpu-offload")
    if not recipe.cuda_graphs or plan.offload_optimizer:
        flags.append("training.disable-cuda-graphs")
    if job.model.is_moe:
        flags.append("debug.moe-force-load-balance")
    return flags


def _compiles(job: Job) -> bool:
    """PyTorch does not compile stages whose backward a schedule splits."""
    return job.plan.pp == 1 or job.plan.schedule != "zb-v"


COPIED = (
    "n_layers",
    "hidden_size",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "ffn_hidden_size",
    "vocab_size",
    "max_seq",
    "tied_embeddings",
    "qk_norm",
    "qkv_bias",
    "n_experts",
    "top_k",
    "expert_ffn_hidden_size",
    "n_shared_experts",
    "shared_ffn_hidden_size",
    "router_bias",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "sliding_window",
    "mtp_layers",
)
"""Fields of a model that the module holds as they are, written and read back."""


def _literals(model: ModelSpec) -> dict[str, object]:
    """What the module needs of the model, layer by layer where layers differ."""
    family = family_of(model)
    if family is None:
        raise DlcalcError(f"torchtitan has no model with {misfit_of(model)}")
    return {
        "family": family,
        "name": model.name,
        **{field: getattr(model, field) for field in COPIED},
        **details(model, family),
        "moe_layers": model.layer_is_moe,
        "windowed_layers": model.layer_is_windowed,
    }


def _notes(job: Job) -> list[str]:
    tokens = job.recipe.seq_len * job.recipe.global_batch
    notes = [
        "torchtitan 0.3.0 needs a PyTorch newer than 2.13: it calls torch.distributed.set_timeout, and hands pipelines"
        " their micro-batches by a name (arg_mbs) that 2.13 does not know.",
        f"torchtitan logs tokens per second and device (tps) each step: a step took {tokens} / (tps x {job.devices})"
        " seconds. The first steps compile.",
        f"Data are random tokens. For real ones put torchtitan's HuggingFaceTextDataLoader.Config(dataset=...) and"
        f" HuggingFaceTokenizer.Config() into emitted() in {FILE}, and add --hf_assets_path with the tokenizer's"
        " folder.",
        "Checkpoints are off: --checkpoint.enable writes them to --dump_folder.",
        *unsaid(job.model, family_of(job.model) or "llama3"),
    ]
    if job.model.is_moe:
        notes.append(
            "Tokens are dealt out to the experts evenly, as the estimate assumes (--debug.moe-force-load-balance);"
            " leave that out of real training."
        )
    if job.recipe.precision != "bf16":
        notes.append(
            f"{job.recipe.precision} needs torchao. torchtitan scales fp8 by rows; lm_head and routers stay bf16."
        )
    return notes
