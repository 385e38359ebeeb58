"""Megatron-Bridge: its recipe without a model, every setting in a YAML file, and a program that joins the two."""

from __future__ import annotations

import yaml

from dlcalc.launch.job import Beside, Emitted, Job
from dlcalc.launch.megatron.bridge import Tree, put, tree_of
from dlcalc.launch.megatron.describe import settings_of
from dlcalc.launch.megatron.notes import notes_of
from dlcalc.launch.trainers.megatron_lm import STEPS, connections

SETTINGS_FILE = "megatron_bridge.yaml"
PROGRAM_FILE = "pretrain_megatron_bridge.py"
PROGRAM = '''\
"""Pretraining with Megatron-Bridge: its recipe without a model, with every setting of a YAML file put in.

Further settings may follow as GROUP.FIELD=VALUE, for example checkpoint.save=/checkpoints.
"""

import argparse

from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.mla_provider import MLAModelProvider
from megatron.bridge.recipes.gpt.vanilla_gpt import vanilla_gpt_pretrain_config
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.gpt_step import forward_step
from megatron.bridge.training.mixed_precision import bf16_mixed, fp16_mixed
from megatron.bridge.training.pretrain import pretrain
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
from megatron.core.transformer.enums import AttnBackend
from omegaconf import OmegaConf


def configured(file, overrides):
    """The whole configuration of one run."""
    settings = OmegaConf.load(file)
    config = vanilla_gpt_pretrain_config()
    config.model = MLAModelProvider() if settings.model.multi_latent_attention else GPTModelProvider()
    config.mixed_precision = fp16_mixed() if settings.mixed_precision.fp16 else bf16_mixed()
    config.comm_overlap = CommOverlapConfig(tp_comm_overlap=False)
    config = process_config_with_overrides(config, config_filepath=file, cli_overrides=overrides)
    model = config.model
    model.attention_backend = AttnBackend[settings.model.attention_backend]
    if model.window_size is not None:
        model.window_size = tuple(model.window_size)
    return config


def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="YAML file of groups and fields")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps to run")
    parser.add_argument("overrides", nargs="*", help="GROUP.FIELD=VALUE")
    given = parser.parse_args()
    config = configured(given.settings, [*given.overrides, f"train.train_iters={given.steps}"])
    pretrain(config=config, forward_step_func=forward_step)


if __name__ == "__main__":
    main()
'''
RUN = {
    "validation.eval_iters": 0,
    "train.manual_gc": True,
    "train.manual_gc_interval": 100,
    "logger.log_interval": 1,
    "logger.tensorboard_dir": None,
    "checkpoint.save": None,
    "scheduler.lr_warmup_iters": 0,
    "optimizer.clip_grad": 1.0,
    "optimizer.weight_decay": 0.1,
}
"""A run that writes nothing and says after every step how long it took."""


def emit(job: Job) -> Emitted:
    """Settings of one run, and the program that takes them."""
    balanced = {"moe_router_force_load_balancing": True} if job.model.is_moe else {}
    tree = tree_of({**settings_of(job), **balanced})
    for place, value in RUN.items():
        put(tree, place, value)
    return Emitted(
        program=(Beside(PROGRAM_FILE),),
        options=(("--settings", Beside(SETTINGS_FILE)), ("--steps", STEPS)),
        files={SETTINGS_FILE: written(tree), PROGRAM_FILE: PROGRAM},
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": connections(job)},
        notes=notes_of(job, real_data=REAL_DATA),
    )


REAL_DATA = (
    "Data is synthetic, as dataset.blend is not set. For real data set it and the tokenizer group in "
    f"{SETTINGS_FILE}, or append GROUP.FIELD=VALUE to the command; checkpoint.save and checkpoint.load are for "
    "checkpoints."
)


def written(tree: Tree) -> str:
    """The settings as YAML, short lists on one line."""
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
