"""Megatron-Core without a device: what stands in for one, and the ways to ask it about a run."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import typing
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.megatron_jobs import plain_words

FUSED_PERMUTATIONS = (
    "fused_permute",
    "fused_permute_with_probs",
    "fused_sort_chunks_by_index",
    "fused_sort_chunks_by_index_with_probs",
    "fused_unpermute",
)


@dataclass(frozen=True)
class Verdict:
    """What Megatron makes of a command line."""

    arguments: SimpleNamespace | None
    config: object | None
    problem: str
    """Why it refuses it; empty if it does not."""


def import_megatron(patch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Import it under a Python older than it asks for, as if there were a Hopper and a Transformer Engine.

    Its parser of arguments is returned, and made but once.
    """
    typing_extensions = pytest.importorskip("typing_extensions")
    patch.setattr(typing, "override", typing_extensions.override, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("triton", reason="needs triton and megatron-core 0.19.2")
        arguments = pytest.importorskip("megatron.training.arguments", reason="needs megatron-core 0.19.2")
    import torch
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer import transformer_config
    from megatron.core.transformer.moe import moe_utils

    patch.setattr(arguments, "get_device_arch_version", lambda: 9)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for module in (arguments, transformer_config):
        patch.setattr(module, "is_te_min_version", lambda *_, **__: True)
    made = argparse.ArgumentParser(allow_abbrev=False)
    arguments.add_megatron_arguments(made)
    patch.setattr(arguments, "add_megatron_arguments", lambda parser: made)  # 800 options, made once
    logging.getLogger("megatron").setLevel(logging.ERROR)
    patch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    for name in FUSED_PERMUTATIONS:
        patch.setattr(moe_utils, name, object())
    return made


def asked(words: list[str], *, world_size: int, environment: dict[str, str], architecture: int = 9) -> Verdict:
    """Parse, validate and configure, as every rank of a run does first."""
    from megatron.training import arguments

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setenv("WORLD_SIZE", str(world_size))
        patch.setenv("RANK", "0")
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["pretrain_gpt.py", *words])
        patch.setattr(arguments, "get_device_arch_version", lambda: architecture)
        with contextlib.redirect_stderr(said):
            try:
                parsed = arguments.parse_args()
                arguments.validate_args(parsed, {})
                config = arguments.core_transformer_config_from_args(parsed)
            except (AssertionError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
                return Verdict(None, None, repr(error))
            except SystemExit:
                return Verdict(None, None, said.getvalue().strip().splitlines()[-1])
    return Verdict(parsed, config, "")


def asked_about(job, emitted) -> Verdict:
    """What Megatron makes of a job."""
    architecture = 10 if job.hardware.family == "nvidia_blackwell" else 9
    return asked(
        plain_words(emitted),
        world_size=job.devices,
        environment=dict(emitted.environment),
        architecture=architecture,
    )
