"""A job for Accelerate 1.15 with FSDP2: its YAML, the same as environment variables, a model and a training loop.

``accelerate launch`` only turns its YAML into environment variables and starts torchrun. The bundle starts torchrun
itself, as for every trainer, so those variables are written out; the YAML lies beside for whoever prefers the command.
"""

from __future__ import annotations

from typing import Any

import yaml

from dlcalc.costmodel.targets.transformers_models import model_type_of
from dlcalc.launch.job import Beside, Emitted, Job
from dlcalc.launch.trainers import transformers_model as shared

CONFIG_FILE = "accelerate.yaml"

SCRIPT = '''\
"""One job on Accelerate with FSDP2: a model of the right dimensions, random tokens, the time of every step."""

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, init_empty_weights
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, AutoModelForCausalLM

{constants}
HERE = Path(__file__).parent
{loop}

def main():
    config = AutoConfig.for_model(**json.loads((HERE / "{model_file}").read_text()))
    dtype = torch.{dtype}
    # Everything else of the plugin, and the mesh, is in the environment (FSDP_*, PARALLELISM_CONFIG_*).
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.{reduce_dtype}, output_dtype=dtype)
    accelerator = Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(mixed_precision_policy=policy))
    # Only the first rank has weights; they are scattered from there, so a host holds the model once.
    with nullcontext() if accelerator.is_main_process else init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.tie_weights()  # empty weights come apart
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    tokens = batches(config, accelerator.process_index, MICRO_BATCH, SEQ_LEN)

    def one_step():
        model.train()
        for _ in range(ACCUMULATION):  # gradients are reduced every time, so that they stay sharded
            inputs = next(tokens).to(accelerator.device)
            loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss
            accelerator.backward(loss / ACCUMULATION)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    train(one_step, devices=accelerator.num_processes)
    accelerator.end_training()


if __name__ == "__main__":
    main()
'''


def emit(job: Job) -> Emitted:
    """What Accelerate is called with."""
    script = SCRIPT.format(
        constants=shared.constants(job),
        loop=shared.LOOP,
        model_file=shared.MODEL_FILE,
        dtype={"bf16": "bfloat16", "fp16": "float16"}[job.recipe.precision],
        reduce_dtype="float32" if job.recipe.framework.grad_reduce_bytes == 4 else "bfloat16",
    )
    return Emitted(
        program=(Beside(shared.SCRIPT_FILE),),
        options=(),
        files={
            CONFIG_FILE: yaml.safe_dump(config(job), sort_keys=False),
            shared.MODEL_FILE: shared.model_file(job.model),
            shared.SCRIPT_FILE: script,
        },
        environment=environment(job),
        notes=(*shared.shared_notes(job), *_notes(job)),
    )


def config(job: Job) -> dict[str, Any]:
    """Accelerate's YAML, for the first host; machine_rank and main_process_ip are each host's own."""
    plan = job.plan
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "mixed_precision": job.recipe.precision,
        "num_machines": job.n_hosts,
        "num_processes": job.devices,
        "machine_rank": 0,
        "main_process_ip": "127.0.0.1",
        "main_process_port": 29500,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": plan.zero_stage == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": _layer_class(job),
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_activation_checkpointing": plan.recompute == "full",
            "fsdp_offload_params": plan.offload_optimizer,
        },
        "parallelism_config": {
            "parallelism_config_dp_replicate_size": plan.dp_replicate,
            "parallelism_config_dp_shard_size": plan.dp // plan.dp_replicate,
            "parallelism_config_tp_size": 1,
            "parallelism_config_cp_size": 1,
        },
    }


def environment(job: Job) -> dict[str, str]:
    """The same as variables, which is all that a program under Accelerate reads."""
    written = config(job)
    fsdp = {name.upper(): _word(value) for name, value in written["fsdp_config"].items()}
    # Accelerate's own name for this one differs between its file and its environment.
    fsdp["FSDP_TRANSFORMER_CLS_TO_WRAP"] = fsdp.pop("FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP")
    mesh = {name.upper(): _word(value) for name, value in written["parallelism_config"].items()}
    return {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "ACCELERATE_MIXED_PRECISION": job.recipe.precision,
        **fsdp,
        **mesh,
    }


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _layer_class(job: Job) -> str:
    return shared.LAYER_CLASSES[model_type_of(job.model) or "llama"]


def _notes(job: Job) -> list[str]:
    notes = [
        f"{CONFIG_FILE} says the same to accelerate launch --config_file {CONFIG_FILE} {shared.SCRIPT_FILE}, on one"
        " host; on several, set machine_rank and main_process_ip on each.",
    ]
    if job.plan.offload_optimizer:
        notes.append("Offloading is FSDP's: weights and gradients wait on the host too, not the optimizer alone.")
    return notes
