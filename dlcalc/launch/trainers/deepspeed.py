"""A job for DeepSpeed 0.19: its JSON, a model, and a training loop around its engine."""

from __future__ import annotations

import json
from typing import Any

from dlcalc.launch.job import Beside, Emitted, Job
from dlcalc.launch.trainers import transformers_model as shared

CONFIG_FILE = "ds_config.json"

SCRIPT = '''\
"""One job on DeepSpeed: a model of the right dimensions, random tokens, the time of every step."""

import json
import os
import time
from pathlib import Path

import deepspeed
import torch
import torch._dynamo  # before zero.Init puts functions in place of those that this looks at
from transformers import AutoConfig, AutoModelForCausalLM

{constants}
HERE = Path(__file__).parent
{loop}

def main():
    settings = json.loads((HERE / "{config_file}").read_text())
    config = AutoConfig.for_model(**json.loads((HERE / "{model_file}").read_text()))
    deepspeed.init_distributed()
    tp = settings.get("tensor_parallel", {{}}).get("autotp_size", 1)
    dtype = torch.bfloat16 if "bf16" in settings else torch.float16
    # ZeRO 3 shards every layer as it is made, except where tensor parallelism splits layers first.
    sharded = settings["zero_optimization"]["stage"] == 3 and tp == 1
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=sharded, dtype=dtype):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    if "activation_checkpointing" in settings:
        model.gradient_checkpointing_enable()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    tokens = batches(config, int(os.environ["RANK"]) // tp, MICRO_BATCH, SEQ_LEN)

    def one_step():
        engine.train()
        for _ in range(ACCUMULATION):
            inputs = next(tokens).to(engine.device)
            loss = engine(input_ids=inputs, labels=inputs, use_cache=False).loss
            engine.backward(loss)
            engine.step()  # the optimizer's, once a step
        return loss.detach()

    train(one_step, devices=int(os.environ["WORLD_SIZE"]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
'''


def emit(job: Job) -> Emitted:
    """What DeepSpeed is called with."""
    script = SCRIPT.format(
        constants=shared.constants(job),
        loop=shared.LOOP,
        config_file=CONFIG_FILE,
        model_file=shared.MODEL_FILE,
    )
    return Emitted(
        program=(Beside(shared.SCRIPT_FILE),),
        options=(),
        files={
            CONFIG_FILE: json.dumps(config(job), indent=2) + "\n",
            shared.MODEL_FILE: shared.model_file(job.model),
            shared.SCRIPT_FILE: script,
        },
        notes=(*shared.shared_notes(job), *_notes(job)),
    )


def config(job: Job) -> dict[str, Any]:
    """DeepSpeed's JSON."""
    plan, profile = job.plan, job.recipe.framework
    short = {2: job.recipe.precision, 4: "fp32"}  # names of types by bytes
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": job.micro_batches,
        job.recipe.precision: {"enabled": True},
        "data_types": {"grad_accum_dtype": short[profile.grad_bytes]},
        "communication_data_type": short[profile.grad_reduce_bytes],
        "gradient_clipping": 1.0,
        "steps_per_print": 2**31,
        "optimizer": _optimizer(job),
        "zero_optimization": _zero(job),
    }
    if plan.tp > 1:
        settings["tensor_parallel"] = {"autotp_size": plan.tp}
    else:  # with AutoTP, DeepSpeed checks it once against all ranks and once, at ZeRO 3, against those of dp
        settings = {"train_batch_size": job.recipe.global_batch, **settings}
    if plan.recompute == "full":
        settings["activation_checkpointing"] = {"partition_activations": False}
    return settings


def _optimizer(job: Job) -> dict[str, Any]:
    """PyTorch's own AdamW, which needs no compiler where the job runs; on the host DeepSpeed's, which is far faster."""
    own = {} if job.plan.offload_optimizer else {"torch_adam": True, "fused": True}
    return {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1, **own}}


def _zero(job: Job) -> dict[str, Any]:
    plan, profile = job.plan, job.recipe.framework
    bucket = round(profile.bucket_elements)
    zero: dict[str, Any] = {"stage": plan.zero_stage}
    if plan.zero_stage == 0:
        return zero
    zero |= {
        "overlap_comm": plan.overlap_grad,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if plan.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket if plan.overlap_param else 0
    if plan.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero


def _notes(job: Job) -> list[str]:
    plan = job.plan
    notes = [f"{CONFIG_FILE} is read by {shared.SCRIPT_FILE}; a program of your own passes it to deepspeed.initialize."]
    if 0 < plan.zero_stage < 3 and plan.overlap_param:
        notes.append(
            "Below ZeRO 3, DeepSpeed gathers updated weights at the end of the step, not behind the next forward pass."
        )
    if plan.recompute == "full":
        notes.append("Layers are recomputed by transformers' own gradient checkpointing.")
    if plan.tp > 1:
        notes += [
            "Layers are split by DeepSpeed's AutoTP; every rank first makes the whole model on the host.",
            f"train_batch_size ({job.recipe.global_batch} sequences) is left out: with AutoTP, DeepSpeed checks it"
            " against every rank, as if all were data-parallel.",
        ]
    if plan.offload_optimizer:
        notes.append("The optimizer on the host is compiled when the job starts: a C++ compiler is needed.")
    return notes
