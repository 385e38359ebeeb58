"""Small scenarios that several tests search."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.space import Scenario
from dlcalc.search.study import scenarios_of
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.specs.space import SpaceSpec

DENSE = {
    "study": "dense",
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 8192, "global_batch": 128, "framework": "megatron"},
}
MOE = {
    "study": "moe",
    "model": "qwen3-30b-a3b",
    "hardware": "b200",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 4096, "global_batch": 256, "framework": "megatron_bridge", "precision": "mxfp8"},
}
LATENT = {
    "study": "latent",
    "model": "deepseek-v2",
    "hardware": "h100",
    "cluster": {"devices": 64},
    "recipe": {"seq_len": 4096, "global_batch": 512, "framework": "megatron_bridge", "precision": "fp8"},
}
WINDOWED = {
    "study": "windowed",
    "model": "gpt-oss-20b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 8192, "global_batch": 128, "framework": "torchtitan"},
}


EVERYTHING = {
    "schedules": SCHEDULES,
    "recompute_modes": RECOMPUTE_MODES,
    "zero_stages": (0, 1, 2, 3),
    "offloads_in_pipeline": True,
    "shards_gradients_in_pipeline": True,
}
"""A trainer that refuses nothing which the cost model knows."""


@cache
def _scenario(study: str, space: str) -> Scenario:
    spec = {"dense": DENSE, "moe": MOE, "latent": LATENT, "windowed": WINDOWED}[study]
    if space == "full":
        spec = {**spec, "recipe": {**spec["recipe"], "profile": EVERYTHING}}
    return scenarios_of(SpaceSpec.model_validate({**spec, "space": space}), Path(), HardwareRegistry())[0]


def scenario(study: str = "dense", space: str = "auto") -> Scenario:
    """One of the small scenarios, over its automatic space, or its full one in a trainer that does everything."""
    return _scenario(study, space)
