"""Targets: what a trainer cannot run is refused in a search, a run and a launch, and by name."""

from __future__ import annotations

import pytest

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import HardwareRegistry, load_hardware
from dlcalc.search.exhaustive import search_block
from dlcalc.search.study import scenarios_of
from dlcalc.specs.framework_registry import framework_names, load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.space import SpaceSpec
from dlcalc.specs.target import PROFILES_OF_TARGET, TARGETS


def scenario(space_target=None, /, **recipe):
    space = {
        "study": "t",
        "model": "llama3-8b",
        "hardware": "h100",
        "cluster": {"devices": 16},
        "recipe": {"seq_len": 4096, "global_batch": 64, **recipe},
        **({"target": space_target} if space_target else {}),
    }
    (found,) = scenarios_of(SpaceSpec.model_validate(space), None, HardwareRegistry())  # type: ignore[arg-type]
    return found


def searched(one):
    rows = []
    found = search_block(
        one,
        0,
        one.shape[0],
        keep=10,
        what="feasible",
        rows=lambda columns: rows.append(dict(columns)),
    )
    return found, rows


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_brings_its_own_costs_unless_a_framework_is_named(target):
    assert scenario(target).recipe.framework.name == PROFILES_OF_TARGET[target][0]
    assert scenario(target, framework="megatron").recipe.framework.name == "megatron"
    assert scenario(target).recipe.target == target


def test_profiles_of_targets_exist():
    named = {name for names in PROFILES_OF_TARGET.values() for name in names}
    assert named <= set(framework_names())


def test_a_recipe_may_name_a_target_of_its_own():
    assert scenario("megatron-lm", target="torchtitan").recipe.target == "torchtitan"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_finds_a_plan_and_names_itself_in_what_it_refuses(target):
    found, _ = searched(scenario(target))
    assert found.n_fit > 0
    others = [name for name in TARGETS if name != target]
    assert not [reason for reason in found.refused if any(reason.startswith(f"{name} ") for name in others)]


def test_without_a_target_nothing_is_refused_for_one():
    found, _ = searched(scenario())
    assert not [reason for reason in found.refused if any(reason.startswith(f"{name} ") for name in TARGETS)]


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge"])
def test_megatron_overlaps_no_tp_in_latent_attention(target):
    """Its layers have buffers for Q, K and V, out, up and down alone, and switch the overlap off for all others."""
    recipe = Recipe(
        seq_len=4096, global_batch=64, precision="bf16", framework=load_framework("megatron"), target=target
    )
    plan = Plans.point(tp=2, dp=8, ep=8, sequence_parallel=1, overlap_tp=1)
    reason = f"{target} overlaps tp in no latent attention"
    assert reason in estimate(load_model("deepseek-v2"), load_hardware("h100"), recipe, plan).refused
    assert reason not in estimate(load_model("qwen3-30b-a3b"), load_hardware("h100"), recipe, plan).refused
