"""Megatron-LM: ``pretrain_gpt.py`` of its repository, told everything by flags."""

from __future__ import annotations

from dlcalc.launch.job import Emitted, Job, Variable, Word
from dlcalc.launch.megatron.describe import settings_of
from dlcalc.launch.megatron.notes import notes_of
from dlcalc.launch.megatron.options import OPTIONS, Value, words_of

CHECKOUT = Variable(
    "MEGATRON_LM_DIR", "folder of a Megatron-LM checkout", default="/opt/megatron-lm", suffix="/pretrain_gpt.py"
)
STEPS = Variable("TRAIN_STEPS", "optimizer steps to run", default="20")
SYNTHETIC: dict[str, Value] = {
    "tokenizer_type": "NullTokenizer",
    "mock_data": True,
    "split": "99,1,0",
    "create_attention_mask_in_dataloader": False,
    "lr": 3e-4,
    "min_lr": 3e-5,
    "lr_decay_style": "cosine",
    "weight_decay": 0.1,
    "clip_grad": 1.0,
    "optimizer": "adam",
    "eval_iters": 0,
    "log_interval": 1,
    "log_throughput": True,
    "manual_gc": True,  # on all ranks at once, or each stops the others in turn
    "manual_gc_interval": 100,
}
"""A run that needs no data and says after every step how long it took."""


def emit(job: Job) -> Emitted:
    """Flags of one run."""
    settings = {**settings_of(job), **SYNTHETIC, "moe_router_force_load_balancing": job.model.is_moe}
    if job.model.is_mla:  # whose options of YaRN are fewer
        settings = {name: value for name, value in settings.items() if not name.startswith("yarn_")}
    options: list[tuple[Word, ...]] = [("--train-iters", STEPS)]
    for option in OPTIONS:
        if option.name in settings and (words := words_of(option, settings[option.name])):
            options.append(words)
    return Emitted(
        program=(CHECKOUT,),
        options=tuple(options),
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": connections(job)},
        notes=notes_of(job, real_data=REAL_DATA),
    )


REAL_DATA = (
    "Data is synthetic. For real data replace --mock-data by --data-path, and NullTokenizer by your tokenizer "
    "(--tokenizer-type, --tokenizer-model); --save, --load and --save-interval keep checkpoints."
)


def connections(job: Job) -> str:
    """Hardware queues of a device: before Blackwell, one orders communication of tp and cp before compute.

    Sharded weights and overlapped experts must not have that, and nothing else needs it: all of NVIDIA's recipes for
    Blackwell have 32, those for Hopper 1 under tp or cp.

    Source: https://github.com/NVIDIA-NeMo/Megatron-Bridge/tree/v0.6.2/src/megatron/bridge/perf_recipes; asserted by
    Megatron-LM's arguments.
    """
    plan = job.plan
    ordered = (plan.tp > 1 or plan.cp > 1) and job.hardware.family != "nvidia_blackwell"
    return "1" if ordered and plan.zero_stage < 2 and not plan.overlap_ep else "32"
