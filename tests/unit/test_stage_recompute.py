"""Recomputation stage by stage: equal counts are the uniform estimate, unequal ones are their stages' own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcalc.calculators.schedule import DUALPIPE, INTERLEAVED, ONE_F_ONE_B, SCHEDULES, ZB_V
from dlcalc.calculators.stages import CUSTOM, EMBEDDING_AND_LOSS, EVEN
from dlcalc.costmodel.anatomy.memory import stage_memory
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.every_stage import chunks_of, device_times
from dlcalc.costmodel.plans import PER_STAGE, Plans
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry, load_hardware
from dlcalc.report.plan_words import plan_words
from dlcalc.search.run_file import RunFile
from dlcalc.search.stage_designs import stage_designs, stage_recompute, with_pipeline
from dlcalc.search.study import scenarios_of
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.sampling import SearchSpec
from dlcalc.specs.space import SpaceSpec
from dlcalc.specs.target import PROFILE_OF_TARGET
from dlcalc.workflows.designs import best_of
from tests.properties.test_bounding_stages import CHUNKS, MODELS, RECIPE, STAGES, assert_bounded_by
from tests.scenarios import scenario

SHARDED = {"tp": 2, "sequence_parallel": 1, "dp": 8, "zero_stage": 1, "recompute": "full"}


def estimated(model, counts=None, custom_split=None, **plan):
    """With ``counts``, layers of a chunk that each stage recomputes, or as the plan says."""
    model = load_model(model)
    recipe = RECIPE.model_copy(update={"stage_recompute": counts})
    told = {"recompute_layers": PER_STAGE} if counts is not None else {}
    point = Plans.point(**{**SHARDED, "ep": 8 if model.is_moe else 1, **told, **plan})
    return estimate(model, load_hardware("h100"), recipe, point, custom_split=custom_split)


@pytest.mark.parametrize("model", MODELS)
def test_equal_counts_are_the_uniform_estimate(model):
    """To the last bit, whatever the schedule, the chunks and the split."""
    looked_at = 0
    for pp, schedule, split in product(STAGES, range(len(SCHEDULES)), (EVEN, EMBEDDING_AND_LOSS)):
        for vpp in CHUNKS.get(schedule, (1,)):
            layers = 1 + looked_at % 3
            plan = {"pp": pp, "vpp": vpp, "schedule": schedule, "split": split, "micro_batch": (1, 4)[looked_at % 2]}
            uniform = estimated(model, **plan, recompute_layers=layers)
            if not uniform.runs or uniform.stages.fewest_layers < layers * vpp * (1 + (schedule == DUALPIPE)):
                continue
            same = estimated(model, (layers,) * pp, **plan)
            assert same.runs
            assert same.step_time_s == uniform.step_time_s
            assert same.memory_bytes == uniform.memory_bytes
            assert same.hfu == uniform.hfu
            for name, seconds in uniform.step.terms().items():
                assert same.step.terms()[name] == seconds, name
            looked_at += 1
    assert looked_at > 20


@pytest.mark.parametrize("schedule", [ONE_F_ONE_B, INTERLEAVED, ZB_V])
def test_every_stage_takes_what_it_takes_where_all_recompute_as_much(schedule):
    """Stage by stage, time and memory of the uniform estimate with its number of layers."""
    plan = {"pp": 4, "vpp": {ONE_F_ONE_B: 1}.get(schedule, 2), "schedule": schedule}
    counts = (5, 3, 1, 0)
    mixed = estimated("llama3-70b", counts, **plan)
    ours = chunks_of(mixed.model, mixed.plans, None, counts).stages
    memory, times = stage_memory(mixed, None), device_times(mixed, ours)
    for stage, layers in enumerate(counts):
        uniform = estimated("llama3-70b", **plan, recompute_layers=layers)
        its = device_times(uniform, chunks_of(uniform.model, uniform.plans).stages)
        assert times.backward_s[stage] == pytest.approx(its.backward_s[stage], rel=1e-12)
        assert memory[stage].total_bytes == pytest.approx(stage_memory(uniform, None)[stage].total_bytes, rel=1e-12)
    assert float(mixed.memory_bytes) == pytest.approx(max(stage.total_bytes for stage in memory), rel=1e-12)


def test_the_average_stage_recomputes_the_average():
    """What a step computes again is the sum over the stages, so HFU over MFU is that of 9 layers in 80."""
    mixed = estimated("llama3-70b", (5, 3, 1, 0), pp=4)
    one = estimated("llama3-70b", (9, 0, 0, 0), pp=4)
    assert float(mixed.recompute_flops_factor) == float(one.recompute_flops_factor)
    whole = estimated("llama3-70b", pp=4, recompute_layers=-1)
    assert (mixed.recompute_flops_factor - 1) == pytest.approx((whole.recompute_flops_factor - 1) * 9 / 80)


def test_a_chunk_recomputes_no_more_than_it_has():
    assert estimated("llama3-70b", (99,) * 4, pp=4).step_time_s == estimated("llama3-70b", pp=4).step_time_s


@settings(max_examples=60, deadline=None)
@given(data=st.data(), model=st.sampled_from(MODELS), pp=st.integers(2, 16))
def test_the_worst_stage_is_among_the_bounding_ones(data, model, pp):
    """Whatever the cut, and whatever each stage recomputes."""
    n_layers = load_model(model).n_layers
    assume(pp < n_layers)
    cuts = sorted(data.draw(st.sets(st.integers(1, n_layers - 1), min_size=pp - 1, max_size=pp - 1)))
    layers = tuple(np.diff([0, *cuts, n_layers]).tolist())
    counts = tuple(data.draw(st.integers(0, most)) for most in layers)
    found = estimated(model, counts, layers, pp=pp, split=CUSTOM, micro_batch=data.draw(st.sampled_from([1, 8])))
    assert found.runs
    assert_bounded_by(found, chunks_of(found.model, found.plans, layers, counts).stages)


def test_grids_and_rows_agree():
    """Beside other amounts of recomputation, on a grid and as rows."""
    base = scenario("dense")
    redo = {
        "recompute": np.array([0.0, 2.0, 2.0, 2.0]),
        "recompute_layers": np.array([-1.0, -1.0, 1.0, float(PER_STAGE)]),
        "offload_layers": np.zeros(4),
    }
    grid = Plans.grid([*base.axes[:4], redo, base.axes[5]])
    recipe = base.recipe.model_copy(update={"stage_recompute": (3, 2, 1, 0)})
    whole = estimate(base.model, base.hardware, recipe, grid)
    index = np.arange(len(grid))[::97]
    rows = estimate(base.model, base.hardware, recipe, grid.take(index))
    runs = np.broadcast_to(whole.runs, grid.shape).ravel()[index]
    np.testing.assert_array_equal(runs, np.broadcast_to(rows.runs, index.shape))
    per_stage = np.broadcast_to(grid.recompute_layers == PER_STAGE, grid.shape).ravel()[index]
    assert (per_stage & runs).any()
    for name in ("step_time_s", "memory_bytes"):
        on_grid = np.broadcast_to(getattr(whole, name), grid.shape).ravel()[index]
        np.testing.assert_allclose(on_grid[runs], getattr(rows, name)[runs], rtol=1e-12)
    part = whole.part([np.arange(1), *(np.arange(n) for n in grid.shape[1:])])
    np.testing.assert_array_equal(part.memory_bytes, np.broadcast_to(whole.memory_bytes, grid.shape)[:1])


# ---- who can run it


def test_a_pipeline_of_other_stages_is_refused():
    refused = estimated("llama3-70b", (1, 2), pp=4).refused
    assert [reason for reason, mask in refused.items() if mask.any()] == [
        "stage_recompute has another number of stages than pp"
    ]


@pytest.mark.parametrize("target", PROFILE_OF_TARGET)
def test_no_trainer_can_be_told_so(target):
    recipe = RECIPE.model_copy(update={"target": target, "stage_recompute": (2, 1)})
    plan = Plans.point(pp=2, dp=8, recompute="full", recompute_layers=PER_STAGE)
    refused = estimate(load_model("llama3-8b"), load_hardware("h100"), recipe, plan).refused
    assert refused[f"{target} recomputes as many layers on one stage as on another"].all()


# ---- in files


STUDY = {
    "study": "s",
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 8192, "global_batch": 128, "stage_recompute": [4, 0]},
    "space": {"pp": 2, "vpp": 1, "recompute": ["full"], "recompute_layers": ["all", "per_stage"]},
}


def only(study):
    return scenarios_of(SpaceSpec.model_validate(study), Path(), HardwareRegistry())[0]


def test_a_space_file_gives_the_layers_of_each_stage():
    one = only(STUDY)
    assert one.recipe.stage_recompute == (4, 0)
    assert one.axes[4]["recompute_layers"].tolist() == [-1.0, float(PER_STAGE)]
    some, every = (
        best_of(only({**STUDY, "space": {**STUDY["space"], "recompute_layers": which}}), SearchSpec())
        for which in (["per_stage"], ["all", "per_stage"])
    )
    assert some == every  # less is computed again


@pytest.mark.parametrize("which", ["recipe", "space"])
def test_words_and_numbers_need_each_other(which):
    with pytest.raises(DlcalcError, match="need each other"):
        only(
            {
                **STUDY,
                which: {
                    **STUDY[which],
                    **{"recipe": {"stage_recompute": None}, "space": {"recompute_layers": "all"}}[which],
                },
            }
        )


def test_a_run_file_gives_them_too(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: llama3-8b\nhardware: h100\ncluster: {devices: 16}\nplan: {pp: 2, tp: 2}\n"
        "recipe: {seq_len: 8192, global_batch: 128, stage_recompute: [4, 0]}\n"
    )
    run = RunFile.read(file, HardwareRegistry()).resolve({})
    assert (float(run.plan.recompute_layers), float(run.plan.recompute)) == (PER_STAGE, 2)
    file.write_text(file.read_text().replace("[4, 0]", "[4, 2, 0]"))
    with pytest.raises(DlcalcError, match=r"run\.yaml:5: recipe\.stage_recompute: 3 stages, but pp = 2"):
        RunFile.read(file, HardwareRegistry()).resolve({})
    file.write_text(file.read_text().replace("[4, 2, 0]", "[4, 17]"))
    with pytest.raises(DlcalcError, match="stage 1 recomputes 17 layers of a chunk, which has no more than 16"):
        RunFile.read(file, HardwareRegistry()).resolve({})
    file.write_text(file.read_text().replace("[4, 17]", "[4, 2, 0]"))
    file.write_text(
        file.read_text()
        .replace("stage_recompute: [4, 2, 0]", "cuda_graphs: false")
        .replace("tp: 2", "tp: 2, recompute: full, recompute_layers: per_stage")
    )
    with pytest.raises(DlcalcError, match=r"per_stage needs recipe\.stage_recompute"):
        RunFile.read(file, HardwareRegistry()).resolve({})


def test_it_is_said_in_words():
    plan = {"recompute": "full", "recompute_layers": PER_STAGE}
    others = dict.fromkeys(("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch", "dp_replicate", "zero_stage"), 1)
    flags = dict.fromkeys(("sequence_parallel", "overlap_grad", "overlap_param", "overlap_tp", "overlap_ep"), False)
    said = plan_words({**others, **flags, **plan, "offload_optimizer": False, "offload_layers": 0, "split": "even"})
    assert "full recompute stage by stage" in said


# ---- sampled


def test_counts_follow_the_memory_of_the_schedule():
    """12 layers on each of 8 stages of 1F1B: 6 of the first for 8 micro-batches are 12 of the fifth for its 4."""
    base = only({**STUDY, "model": "gpt3-175b", "space": {"pp": 8}, "recipe": {"seq_len": 2048, "global_batch": 64}})
    one = with_pipeline(base, 8, 1)
    assert stage_recompute(one, 8, 1, first=0.5, growth=1.0) == (6, 5, 4, 2, 0, 0, 0, 0)
    assert stage_recompute(one, 8, 1, first=0.5, growth=0.0) == (6,) * 8
    assert stage_recompute(one, 8, 1, first=1.0, growth=0.0) == (0,) * 8
    assert stage_recompute(one, 8, 1, first=0.0, growth=1.0) == (12,) * 8


def test_as_much_everywhere_is_what_a_grid_finds():
    base = only(
        {**STUDY, "space": {"pp": 2, "vpp": 1, "schedule": "1f1b"}, "recipe": {"seq_len": 8192, "global_batch": 128}}
    )
    made = stage_designs(base, cuts=False, recomputes=True).made({"kept_first": 0.75, "kept_growth": 0.0}, "design 0")
    assert made.recipe.stage_recompute == (4, 4)
    space = {"pp": 2, "vpp": 1, "schedule": "1f1b", "recompute": ["full"], "recompute_layers": 4}
    uniform = only({**STUDY, "space": space, "recipe": {"seq_len": 8192, "global_batch": 128}})
    assert best_of(made, SearchSpec()) == best_of(uniform, SearchSpec())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"target": "megatron-lm"}, "megatron-lm recomputes as many layers on one stage as on another"),
        ({"framework": {"recompute_modes": ("none", "selective")}}, "has no full recomputation"),
        ({"stage_recompute": (1, 1)}, "leave one of them out"),
    ],
)
def test_what_cannot_be_sampled_is_named(recipe, said):
    base = scenario("dense")
    if "framework" in recipe:
        recipe = {"framework": base.recipe.framework.model_copy(update=recipe["framework"])}
    changed = base.recipe.model_copy(update=recipe)
    with pytest.raises(DlcalcError) as caught:
        stage_designs(replace(base, recipe=changed), recomputes=True)
    assert said in str(caught.value)
