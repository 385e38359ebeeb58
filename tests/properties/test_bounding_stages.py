"""The few stages that an estimate looks at take what the worst of all stages takes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcalc.calculators.schedule import INTERLEAVED, SCHEDULES, ZB_V
from dlcalc.calculators.stages import CUSTOM, EMBEDDING_AND_LOSS, EVEN
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.every_stage import chunks_of, device_times
from dlcalc.costmodel.footprint import footprint
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from tests.scenarios import EVERYTHING

MODELS = ("llama3-8b", "llama3-70b", "llama3-405b", "deepseek-v2", "deepseek-v3", "gpt-oss-20b", "gpt-oss-120b")
RECIPE = Recipe(
    seq_len=4096, global_batch=512, precision="bf16", framework=load_framework("megatron_bridge", EVERYTHING)
)
STAGES = (2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32)
CHUNKS = {INTERLEAVED: (2, 3, 5), ZB_V: (2,)}
KEPT = (
    {},
    {"recompute": "selective"},
    {"recompute": "full"},
    {"recompute": "full", "recompute_layers": 1},
    {"recompute": "full", "recompute_layers": 2},
    {"recompute": "mlp"},
    {"recompute": "moe"},
)


def estimated(model, custom_split=None, **plan) -> Estimate:
    sharded = {"tp": 2, "sequence_parallel": 1, "dp": 8, "zero_stage": 1, "ep": 8 if load_model(model).is_moe else 1}
    point = Plans.point(**{**sharded, **plan})
    return estimate(load_model(model), load_hardware("h100"), RECIPE, point, custom_split=custom_split)


def assert_bounded(found: Estimate, custom_split=None):
    """Time, memory and parameters of the worst of the bounding stages are those of the worst of all."""
    assert_bounded_by(found, chunks_of(found.model, found.plans, custom_split).stages)


def assert_bounded_by(found: Estimate, every):
    ours, all_ = device_times(found, found.stages), device_times(found, every)
    held, held_by_all = (stage_params(found.model, found.plans, stages) for stages in (found.stages, every))
    memory = footprint(found.model, found.plans, every, held_by_all, found.machine).peak_bytes
    worst = {
        "forward": (ours.forward_s, all_.forward_s),
        "backward": (ours.backward_s, all_.backward_s),
        "both passes": (ours.forward_s + ours.backward_s, all_.forward_s + all_.backward_s),
        "weight gradients": (ours.weight_grad_s, all_.weight_grad_s),
        "parameters": (held.stage_dense, held_by_all.stage_dense),
        "expert parameters": (held.stage_expert, held_by_all.stage_expert),
        "memory": (found.memory_bytes, memory),
        "layers": (found.stages.layers, every.layers),
    }
    for what, (bound, truth) in worst.items():
        np.testing.assert_allclose(np.max(bound), np.max(truth), rtol=1e-12, err_msg=what)
    assert float(found.stages.most_layers) == np.max(every.layers)
    assert float(found.stages.fewest_layers) == np.min(every.layers)


@pytest.mark.parametrize("model", MODELS)
def test_the_worst_stage_is_among_the_bounding_ones(model):
    """Every schedule and split over few and many stages; micro-batches small and large, so that all parts matter."""
    looked_at = 0
    for pp, schedule, split in product(STAGES, range(len(SCHEDULES)), (EVEN, EMBEDDING_AND_LOSS)):
        for vpp in CHUNKS.get(schedule, (1,)):
            kept, size = KEPT[looked_at % len(KEPT)], (1, 4)[looked_at % 2]
            plan = {"pp": pp, "vpp": vpp, "schedule": schedule, "split": split, "micro_batch": size, **kept}
            found = estimated(model, **plan)
            rounds = found.refused["interleaving needs micro-batches in multiples of pp"]
            enough = found.refused["the schedule needs at least two micro-batches per stage"]
            if found.runs or rounds or enough:  # the layers can be cut so
                assert_bounded(found)
                looked_at += 1
    assert looked_at > 50


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        pytest.param("llama3-8b", {"pp": 11, "tp": 8, "dp": 1}, id="2, 3, 3, 3, 3, 4 layers ..."),
        pytest.param("llama3-70b", {"pp": 9, "recompute": "full", "recompute_layers": 2}, id="9, 10 layers"),
        pytest.param("deepseek-v3", {"pp": 8}, id="7, 8 ... 9 layers, three of them dense on the first stage"),
    ],
)
def test_more_in_flight_outweighs_a_layer_more(model, plan):
    """Of these the stage with the most layers is not the one with the most bytes."""
    found = estimated(model, split=EMBEDDING_AND_LOSS, micro_batch=8, **plan)
    assert_bounded(found)
    fullest = np.argmax(found.footprint.states_bytes + found.footprint.passing_bytes, axis=0)
    assert found.stages.layers[fullest] < found.stages.most_layers


@settings(max_examples=60, deadline=None)
@given(data=st.data(), model=st.sampled_from(MODELS), pp=st.integers(2, 24), kept=st.sampled_from(KEPT[:3]))
def test_whatever_the_split(data, model, pp, kept):
    """A custom split may be as uneven as it likes."""
    n_layers = load_model(model).n_layers
    assume(pp < n_layers)
    cuts = sorted(data.draw(st.sets(st.integers(1, n_layers - 1), min_size=pp - 1, max_size=pp - 1)))
    layers = tuple(np.diff([0, *cuts, n_layers]).tolist())
    size = data.draw(st.sampled_from([1, 8]))
    found = estimated(model, layers, pp=pp, split=CUSTOM, micro_batch=size, **kept)
    assert found.runs
    assert_bounded(found, layers)
