"""Checkpoints, good and hostile, for the tests of ckpt-summarize; by PyTorch where its own writers are the point."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Calls:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def hostile_calls(victim: Path) -> dict[str, Calls]:
    """What an attacker calls, by the name that must be told. Any that ran would make ``victim``."""
    import builtins
    import functools
    import importlib
    import operator
    import subprocess

    touch = f"open({str(victim)!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Calls(os.system, f"touch {victim}"),
        "builtins.eval": Calls(eval, touch),
        "builtins.exec": Calls(exec, touch),
        "builtins.__import__": Calls(builtins.__import__, "os"),
        "builtins.compile": Calls(compile, touch, "x", "exec"),
        f"{open.__module__}.open": Calls(open, str(victim), "w"),
        "builtins.getattr": Calls(getattr, subprocess.Popen, "__init__"),
        "functools.partial": Calls(functools.partial, os.system, f"touch {victim}"),
        "operator.attrgetter": Calls(operator.attrgetter, "system"),
        "importlib.import_module": Calls(importlib.import_module, "os"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(victim)]),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {victim}"))),
    }


REFUSED_FIRST = {"builtins.getattr": "subprocess.Popen"}
"""Where an argument is refused before the call is."""


def save(root: object, file: Path, *, legacy: bool = False, protocol: int = 2) -> Path:
    """``torch.save``, silently."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(root, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return file


def save_distributed(root: dict[str, Any], folder: Path) -> Path:
    """``torch.distributed.checkpoint.save`` of one process."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(root, checkpoint_id=folder)
    return folder


def torch_zip(file: Path, pickled: bytes, storages: Mapping[str, int] = {}, method: int = zipfile.ZIP_STORED) -> Path:
    """A zip as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, size in storages.items():
            archive.writestr(f"archive/data/{key}", bytes(size))
    return file


def safetensors(file: Path, header: object, data_bytes: int) -> Path:
    """A safetensors file of ``header`` and as many (sparse) bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + data_bytes)
    return file


def training_state():
    """A small model with tied weights, its optimizer after a step, and what else people save."""
    import torch

    torch.manual_seed(0)
    embedding = torch.nn.Embedding(16, 4)
    head = torch.nn.Linear(4, 16, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleDict({"embed": embedding, "norm": torch.nn.LayerNorm(4), "head": head})
    optimizer = torch.optim.AdamW(model.parameters())
    model["head"](model["norm"](model["embed"](torch.arange(3)))).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "rng_state": torch.get_rng_state(),
    }
