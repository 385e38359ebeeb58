"""Asks Megatron-Bridge about runs, one JSON object a line: started by test_megatron_bridge.py in a process of its own.

What cannot be installed without a device (Transformer Engine and what only other models need) is replaced by modules
whose every name is an empty class; nothing of them takes part in a configuration.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import tempfile
import types
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace

import typing_extensions

ABSENT = (
    "transformer_engine",
    "megatron.energon",
    "megatron.bridge.diffusion",
    "diffusers",
    "modelopt",
    "nvidia_resiliency_ext",
    "peft",
)


class _Empty(abc.ABCMeta):
    """A class of which every attribute is such a class."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _EmptyModule(types.ModuleType):
    __path__ = ()
    __version__ = "2.9.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {"__module__": self.__name__})


class _EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if any(name == root or name.startswith(f"{root}.") for root in ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _EmptyModule(spec.name)

    def exec_module(self, module):
        pass


def prepare() -> None:
    """Make Megatron-Bridge importable, and let it believe in a device and a Transformer Engine."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    typing.override = typing_extensions.override
    sys.meta_path.insert(0, _EmptyModules())
    import torch

    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(major=10, minor=0, name="NVIDIA B200")
    from megatron.bridge.training import comm_overlap, config, mixed_precision
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.optimizer import optimizer_config
    from megatron.core.transformer import transformer_config
    from megatron.core.transformer.moe import moe_utils

    for module in (comm_overlap, config, mixed_precision, optimizer_config, transformer_config):
        if hasattr(module, "is_te_min_version"):
            module.is_te_min_version = lambda *_, **__: True
    rope_utils.fused_apply_rotary_pos_emb = object()
    for name in (
        "permute",
        "permute_with_probs",
        "sort_chunks_by_index",
        "sort_chunks_by_index_with_probs",
        "unpermute",
    ):
        setattr(moe_utils, f"fused_{name}", object())


def answer(case: dict, program: dict) -> dict:
    """What becomes of one run: its problem, the fields that were not taken, and the whole configuration."""
    from megatron.bridge.training import config as configs

    os.environ |= case["environment"]
    configs.get_world_size_safe = lambda: case["devices"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(case["settings"], encoding="utf-8")
        try:
            config = program["configured"](str(file), case["overrides"])
            lost = [place for place in case["places"] if not _has(config, place)]
            configs.runtime_config_update(config)
            dump = Path(folder) / "dump.yaml"
            config.to_yaml(str(dump))
        except Exception as error:
            return {"problem": repr(error), "lost": [], "dump": "", "dp": 0}
        return {"problem": "", "lost": lost, "dump": dump.read_text(), "dp": config.data_parallel_size}


def network_of(case: dict) -> dict:
    """What Megatron-Bridge's own reader of a Hugging Face configuration makes of it."""
    module, name = case["reader"]
    reader = getattr(importlib.import_module(module), name)()
    config = {"torch_dtype": "bfloat16", **case["config"]}
    found = reader.provider_bridge(SimpleNamespace(config=SimpleNamespace(**config)))
    return {field: _plain(getattr(found, field, None)) for field in case["fields"]}


def _plain(value):
    if callable(value):
        return value.__name__
    if isinstance(value, enum.Enum):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def _has(config, place: str) -> bool:
    group, field = place.split(".")
    return hasattr(getattr(config, group), field)


def main() -> None:
    """The first line is the program; every further one is a case, answered by a line."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        prepare()
        program: dict = {"__name__": "program"}
        exec(json.loads(sys.stdin.readline()), program)
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            case = json.loads(line)
            said = network_of(case) if "reader" in case else answer(case, program)
            print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
