"""A job for nanotron: its YAML, for the ``run_train.py`` of a checkout.

Written for the configuration classes of 2026 (commit 2411b02); the release on PyPI, 0.4 of March 2024, is older than
several of these keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from dlcalc.costmodel.targets.nanotron import misfit_of
from dlcalc.errors import DlcalcError
from dlcalc.launch.job import Beside, Emitted, Job, Variable
from dlcalc.specs.model import ModelSpec
from dlcalc.utils.units import MIB

CONFIG_FILE = "nanotron.yaml"
STEPS = 20
ROPE_THETA = 5e5
"""Of Llama 3, where a model does not say."""


def emit(job: Job) -> Emitted:
    """What nanotron is called with."""
    if misfit := misfit_of(job.model):
        raise DlcalcError(f"nanotron has no model with {misfit}")
    return Emitted(
        program=(Variable("NANOTRON_DIR", "a checkout of nanotron", suffix="/run_train.py"),),
        options=(("--config-file", Beside(CONFIG_FILE)),),
        files={CONFIG_FILE: yaml.safe_dump(config(job), sort_keys=False)},
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},  # nanotron stops without it under tensor parallelism
        notes=(
            "run_train.py is in nanotron's repository, not in its package: set NANOTRON_DIR to a checkout.",
            f"The file trains {STEPS} steps (tokens.train_steps) on random tokens; for real ones fill in"
            " data_stages[0].data.dataset and tokenizer.tokenizer_name_or_path.",
            "nanotron shares layers out over pipeline stages by what they compute, the LM head included; there is no"
            " option for it.",
            "nanotron reduces gradients behind the backward pass at ZeRO 0, and after all passes at ZeRO 1; there is no"
            " option for it.",
            *_unsaid(job.model),
        ),
    )


def _unsaid(model: ModelSpec) -> Iterator[str]:
    """Parts of the model that no key says, and what is trained instead."""
    rotary = model.rotary
    if rotary.base is None:
        yield f"The model does not say its rotary base: {ROPE_THETA:g} is Llama 3's."
    if rotary.scaling is not None or rotary.fraction != 1:
        yield "Positions turn all dimensions and are not stretched: nanotron's Llama has nothing else."
    if model.activates_by != "silu" or model.activation_limit:
        yield "MLPs use SwiGLU, as nanotron's Llama does."


def config(job: Job) -> dict[str, Any]:
    """Nanotron's YAML."""
    plan, recipe = job.plan, job.recipe
    return {
        "general": {"project": "dlcalc", "run": job.name, "seed": 42, "ignore_sanity_checks": True},
        "parallelism": {
            "dp": plan.dp,
            "tp": plan.tp,
            "pp": plan.pp,
            "expert_parallel_size": 1,
            "context_parallel_size": 1,
            "pp_engine": {"1f1b": "1f1b", "gpipe": "afab"}[plan.schedule],
            "tp_mode": "REDUCE_SCATTER" if plan.sequence_parallel else "ALL_REDUCE",
            "tp_linear_async_communication": plan.overlap_tp,
            "recompute_layer": plan.recompute == "full",
        },
        "model": {
            "dtype": {"bf16": "bfloat16", "fp16": "float16"}[recipe.precision],
            "ddp_bucket_cap_mb": round(recipe.framework.bucket_elements * recipe.framework.grad_reduce_bytes / MIB),
            "make_vocab_size_divisible_by": 1,
            "init_method": {"std": 0.02},
            "model_config": _model(job),
        },
        "tokenizer": {"tokenizer_name_or_path": None},
        "tokens": {
            "sequence_length": recipe.seq_len,
            "micro_batch_size": plan.micro_batch,
            "batch_accumulation_per_replica": job.micro_batches,
            "train_steps": STEPS,
        },
        "optimizer": _optimizer(job),
        "data_stages": [
            {
                "name": "random tokens",
                "start_training_step": 1,
                "data": {"dataset": None, "seed": 42, "num_loading_workers": 1},
            }
        ],
        "checkpoints": {"checkpoints_path": "checkpoints", "checkpoint_interval": 10**9},
        "logging": {"log_level": "info", "iteration_step_info_interval": 1},
    }


def _model(job: Job) -> dict[str, Any]:
    model = job.model
    return {
        "is_llama_config": True,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "max_position_embeddings": max(model.max_seq, job.recipe.seq_len),
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "rms_norm_eps": model.norm_epsilon or 1e-05,
        "rope_theta": model.rotary.base or ROPE_THETA,
        "rope_interleaved": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    }


def _optimizer(job: Job) -> dict[str, Any]:
    return {
        "zero_stage": job.plan.zero_stage,
        "weight_decay": 0.1,
        "clip_grad": 1.0,
        "accumulate_grad_in_fp32": job.recipe.framework.grad_bytes == 4,
        "optimizer_factory": {
            "name": "adamW",
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_eps": 1e-08,
            "torch_adam_is_fused": True,
        },
        "learning_rate_scheduler": {
            "learning_rate": 1e-4,
            "lr_warmup_steps": 2,
            "lr_warmup_style": "linear",
            "lr_decay_style": "cosine",
            "min_decay_lr": 1e-5,
        },
    }
