"""What somebody who starts a job with Megatron must know, because no option says it."""

from __future__ import annotations

from collections.abc import Iterator

from dlcalc.launch.job import Job
from dlcalc.launch.megatron.describe import router_groups
from dlcalc.launch.megatron.details import position_settings, unsaid
from dlcalc.specs.recompute import parts_of


def notes_of(job: Job, *, real_data: str) -> tuple[str, ...]:
    """Sentences for the README of a bundle."""
    return (real_data, *_of_model(job), *_of_profile(job), *_of_plan(job))


def _of_model(job: Job) -> Iterator[str]:
    model = job.model
    yield from unsaid(model, job.target)
    if not model.gated_mlp and model.activation is None:
        yield "MLPs use GELU, as the model does not name its activation."
    if model.learned_positions and job.recipe.seq_len > model.max_seq:
        yield f"Learned positions were extended from {model.max_seq} to the sequence of {job.recipe.seq_len} tokens."
    if model.is_moe:
        router = model.router
        how = " and choose how the load is balanced" if not (router.balance_loss or router.bias_update) else ""
        yield (
            "The router is forced to send equally many tokens to every expert, as the estimate assumes; before real "
            f"training take that option (moe_router_force_load_balancing) out{how}."
        )
    if model.expert_groups_per_token and router_groups(job) is None:
        yield "The limit on groups of experts per token was left out: no number of groups fits the experts."
    elif model.expert_groups_per_token:
        yield f"Experts form {router_groups(job)} groups, of which a token reaches {model.expert_groups_per_token}."


def _of_profile(job: Job) -> Iterator[str]:
    profile, plan = job.recipe.framework, job.plan
    if profile.fused_rope and position_settings(job.model)["position_embedding_type"] == "yarn":
        yield "Rotary positions stretched by YaRN have no fused kernel outside latent attention."
    if profile.fused_activation and job.model.activates_by == "relu2":
        yield "The square of a ReLU has no fused kernel: it takes somewhat longer than estimated."
    if profile.cross_entropy == "gathered":
        yield "The cross-entropy is parallel over the vocabulary, not gathered: it needs less memory than estimated."
    if profile.cross_entropy == "fused" and job.target == "megatron-lm":
        yield "Megatron-LM's own fused cross-entropy keeps an fp32 copy of the logits: more memory than estimated."
    if profile.attention == "megatron_fused":
        yield "Attention runs without a fused softmax, which Transformer Engine does not have."
    if profile.grad_reduce_bytes == 2 and profile.grad_bytes != 2:
        yield "Gradients that are reduced in 16 bits are also kept in 16 bits, which is less memory than estimated."
    if not profile.overlaps_stage_sends and plan.vpp > 1 and plan.pp == 2:
        yield "Two interleaved stages always send while computing."


def _of_plan(job: Job) -> Iterator[str]:
    if "norm_act" in parts_of(job.plan.recompute) and job.model.n_dense_layers:
        yield "Activations of the dense layers are kept: only those of experts can be recomputed by themselves."
    if job.plan.recompute == "full" and job.recipe.cuda_graphs:
        yield "The whole step is one graph, because layers that recompute themselves cannot be graphs of their own."
