"""From a space file to axes: what ``auto``, ``full`` and lists generate, and what is refused by name."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from dlcalc.calculators.context_parallel import CP_EXCHANGES
from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import SPLITS
from dlcalc.costmodel.plans import KNOBS
from dlcalc.errors import DlcalcError, SpecError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.exhaustive import evaluate
from dlcalc.search.space import constraint_names, default_profile_knobs, divisors, powers_of_two
from dlcalc.search.study import located, scenarios_of
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.load import load_spec
from dlcalc.specs.recompute import RECOMPUTE_MODES
from dlcalc.specs.space import SpaceSpec

DENSE = {
    "study": "s",
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 16},
    "recipe": {"seq_len": 8192, "global_batch": 128},
}


def scenarios(space="auto", recipe=None, cluster=None, **changes):
    spec = {
        **DENSE,
        **changes,
        "space": space,
        "recipe": {**DENSE["recipe"], **(recipe or {})},
        "cluster": {**DENSE["cluster"], **(cluster or {})},
    }
    return scenarios_of(SpaceSpec.model_validate(spec), Path(), HardwareRegistry())


def one(*args, **changes):
    (scenario,) = scenarios(*args, **changes)
    return scenario


def rows(scenario, axis):
    """The rows of one of the six axes, as tuples."""
    columns = list(scenario.axes[axis].values())
    return [tuple(row) for row in np.stack(columns, axis=1).tolist()]


# ---- auto ---------------------------------------------------------------------------------------------------------


def test_the_mesh_is_every_product_of_the_devices():
    """tp up to a node and dividing 32 heads, cp of at least 4096 tokens a rank, pp up to 32 layers, each exchange."""
    degrees = [1, 2, 4, 8, 16]
    expected = {
        (tp, cp, pp, 16 // (tp * cp * pp), 1, 1, exchange)
        for tp, cp, pp in product(degrees[:4], degrees[:2], degrees)
        for exchange in range(3 if cp > 1 else 1)
        if 16 % (tp * cp * pp) == 0
    }
    found = rows(one(), 0)
    assert set(found) == expected
    assert len({mesh[:6] for mesh in found}) == 24
    assert len(found) == len(expected) == 44


@pytest.mark.parametrize(
    ("model", "framework", "exchanges"),
    [
        ("llama3-8b", "megatron", {"ring", "all_to_all", "all_gather"}),
        ("deepseek-v2", "megatron", {"ring"}),  # of Transformer Engine's kernels, those of latent attention
        ("gpt-oss-20b", "megatron", {"all_to_all"}),  # those with sinks
        ("gpt-oss-20b", "maxtext", {"ring", "all_gather"}),  # others
        ("deepseek-v2", "torchtitan", {"all_gather"}),
    ],
)
def test_what_is_exchanged_over_cp_is_what_kernels_know(model, framework, exchanges):
    mesh = one(model=model, recipe={"framework": framework}, cluster={"devices": 64}).axes[0]
    assert {CP_EXCHANGES[int(code)] for code in mesh["cp_exchange"][mesh["cp"] > 1]} == exchanges
    own = load_framework(framework).cp_exchanges[0]
    assert {CP_EXCHANGES[int(code)] for code in mesh["cp_exchange"][mesh["cp"] == 1]} == {own}


def test_auto_follows_what_the_framework_offers():
    case = one(recipe={"framework": "megatron"})
    assert set(case.axes[1]["zero_stage"]) == {0, 1}
    assert {SCHEDULES[int(code)] for code in case.axes[2]["schedule"]} == {"1f1b", "interleaved"}
    assert rows(case, 3) == [(1,), (2,), (4,), (8,)]
    assert recomputed(case) == {"none", "selective", "mlp", "full"}
    assert rows(case, 5) == [(0, 0, 0), (1, 0, 0), (1, 1, 0)]


def recomputed(case):
    return {RECOMPUTE_MODES[int(code)] for code in case.axes[4]["recompute"]}


@pytest.mark.parametrize(
    ("model", "framework", "modes"),
    [
        ("llama3-8b", "megatron_bridge", {"none", "selective", "mlp", "full"}),  # nothing of a dense layer's norms
        ("llama3-8b", "maxtext", {"full", "selective+norm_act", "norm_act", "none"}),
        ("mixtral-8x7b", "megatron", {"none", "selective", "norm_act", "moe", "full"}),
        (
            "deepseek-v3",
            "megatron",
            {
                *("none", "selective", "norm_act", "mla_up_proj", "norm_act+mla_up_proj"),
                *("mlp", "mla_up_proj+mlp", "moe", "full"),
            },
        ),
    ],
)
def test_what_is_recomputed_is_what_the_framework_can_and_the_model_has(model, framework, modes):
    assert recomputed(one(model=model, recipe={"framework": framework})) == modes


@pytest.mark.parametrize(
    ("model", "recipe", "overlaps"),
    [
        ("llama3-8b", {"framework": "megatron"}, {0, 1}),
        ("llama3-8b", {"framework": "megatron_bridge"}, {0, 1}),
        ("llama3-8b", {"framework": "torchtitan"}, {0, 1}),
        ("qwen3-30b-a3b", {"framework": "megatron"}, {0, 1}),
        ("deepseek-v2", {"framework": "megatron"}, {0}),  # user buffers know no latent projections
        ("deepseek-v2", {"framework": "megatron_bridge"}, {0}),
        ("deepseek-v2", {"framework": "torchtitan"}, {0, 1}),
        ("llama3-8b", {"framework": "nanotron"}, {0}),
        ("llama3-8b", {"framework": "megatron_legacy"}, {0}),
    ],
)
def test_tp_is_overlapped_and_not_where_users_choose(model, recipe, overlaps):
    tensor = one(model=model, recipe=recipe).axes[5]
    assert set(tensor["overlap_tp"]) == overlaps
    assert np.all(tensor["sequence_parallel"][tensor["overlap_tp"] == 1] == 1)


def test_recipes_in_nvfp4_overlap_no_tp():
    case = one(hardware="b200", recipe={"framework": "megatron_bridge", "precision": "nvfp4"})
    assert set(case.axes[5]["overlap_tp"]) == {0}


def test_user_buffers_are_nvidias():
    for framework, overlaps in (("megatron", {0}), ("megatron_bridge", {0}), ("torchtitan", {0, 1})):
        assert set(one(hardware="mi300x", recipe={"framework": framework}).axes[5]["overlap_tp"]) == overlaps


def test_an_overlap_that_is_written_is_what_is_searched():
    assert set(one({"overlap_tp": True, "sequence_parallel": True}).axes[5]["overlap_tp"]) == {1}


def test_a_framework_without_tensor_or_pipeline_parallelism_has_data_parallelism_alone():
    case = one(recipe={"framework": "fsdp_composer"})
    assert rows(case, 0) == [(1, 1, 1, 16, 1, 1, 0)]
    assert set(case.axes[1]["zero_stage"]) == {3}
    assert set(case.axes[1]["dp_replicate"]) == {1, 2, 4, 8}
    assert [SCHEDULES[int(code)] for code in case.axes[2]["schedule"]] == ["1f1b", "1f1b"]  # of either split


@pytest.mark.parametrize(
    ("devices", "replicas"), [(2, {1}), (8, {1, 2, 4}), (24, {1, 2, 4, 8}), (64, {1, 2, 4, 8, 16, 32})]
)
def test_replicas_are_powers_of_two_up_to_half_of_the_devices(devices, replicas):
    """Of two devices at least, because a replica of one shards nothing."""
    case = one(cluster={"devices": devices}, recipe={"framework": "fsdp_composer", "global_batch": 192})
    assert set(case.axes[1]["dp_replicate"]) == replicas


def test_schedules_come_with_the_chunks_they_need():
    schedules = ["1f1b", "interleaved", "zb-v"]
    case = one(recipe={"framework": "torchtitan", "profile": {"schedules": schedules}})
    chunks = {}
    for schedule, vpp, _ in rows(case, 2):
        chunks.setdefault(SCHEDULES[int(schedule)], set()).add(vpp)
    assert chunks["1f1b"] == {1}
    assert chunks["zb-v"] == {2}
    assert chunks["interleaved"] == {v for v in range(2, 25) if 32 % v == 0 or 34 % v == 0}


def test_torchtitan_is_compiled_and_has_no_zb_v():
    assert {SCHEDULES[int(schedule)] for schedule, _, _ in rows(one(recipe={"framework": "torchtitan"}), 2)} == {
        "1f1b",
        "interleaved",
    }


def test_full_recomputation_is_also_of_some_layers():
    counts = [k for mode, k, _ in rows(one(), 4) if RECOMPUTE_MODES[int(mode)] == "full"]
    assert counts[0] == -1
    assert counts[1:] == [k for k in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24) if k < 32]


def test_latent_attention_can_recompute_its_projections():
    modes = one(model="deepseek-v2", recipe={"framework": "megatron_bridge"}, cluster={"devices": 64}).axes[4][
        "recompute"
    ]
    assert RECOMPUTE_MODES.index("mla_up_proj") in modes
    assert RECOMPUTE_MODES.index("mla_up_proj") not in one("full").axes[4]["recompute"]


def test_a_mixture_of_experts_has_every_ep_that_divides_stage_and_experts():
    case = one(model="qwen3-30b-a3b", cluster={"devices": 16})  # 128 experts
    for tp, cp, pp, dp, ep, etp, _ in rows(case, 0):
        assert etp == 1
        assert (tp * cp * dp) % ep == 0
        assert 128 % ep == 0
        assert tp * cp * pp * dp == 16
    whole_stage = {ep for tp, cp, pp, _, ep, *_ in rows(case, 0) if (tp, cp, pp) == (1, 1, 1)}
    assert whole_stage == {1, 2, 4, 8, 16}


# ---- full ---------------------------------------------------------------------------------------------------------


def test_full_is_every_knob_over_its_whole_range():
    case = one("full", model="qwen3-30b-a3b")
    meshes = rows(case, 0)
    assert {etp for *_, etp, _ in meshes} == {1, 2, 4, 8, 16}
    assert all(etp in (1, tp) for tp, *_, etp, _ in meshes)
    assert {exchange for _, cp, *_, exchange in meshes if cp > 1} == {0, 1, 2}
    assert set(case.axes[1]["zero_stage"]) == {0, 1, 2, 3}
    assert set(case.axes[1]["offload_optimizer"]) == {0, 1}
    assert {SCHEDULES[int(code)] for code in case.axes[2]["schedule"]} == set(SCHEDULES)
    assert [size for (size,) in rows(case, 3)] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert set(case.axes[4]["offload_layers"]) == {0, 1, 2, 4, 8, 16, 32}
    assert {ep for *_, ep in rows(case, 5)} == {0, 1}


@pytest.mark.parametrize("framework", ["megatron", "megatron_bridge", "torchtitan"])
@pytest.mark.parametrize("model", ["llama3-8b", "gpt-oss-20b", "deepseek-v2"])
def test_auto_is_part_of_full(framework, model):
    """Axis by axis, as sets of rows."""
    auto, full = (one(s, model=model, recipe={"framework": framework}) for s in ("auto", "full"))
    for axis in range(6):
        assert set(rows(auto, axis)) <= set(rows(full, axis)), axis


def test_nothing_twice():
    for case in (one("auto"), one("full"), one("full", model="qwen3-30b-a3b")):
        for axis in range(6):
            assert len(set(rows(case, axis))) == len(rows(case, axis)), axis


# ---- lists --------------------------------------------------------------------------------------------------------


def test_lists_are_taken_as_they_are_and_in_order():
    case = one({"tp": [8, 2, 2], "cp": 1, "pp": 1, "micro_batch": [3, 1], "recompute": "none", "offload_layers": 0})
    assert rows(case, 0) == [(2, 1, 1, 8, 1, 1, 0), (8, 1, 1, 2, 1, 1, 0)]
    assert rows(case, 3) == [(1,), (3,)]
    assert rows(case, 4) == [(0, -1, 0)]


def test_dp_restricts_the_mesh():
    case = one({"dp": [4, 8]})
    assert {dp for _, _, _, dp, *_ in rows(case, 0)} == {4, 8}
    assert all(tp * cp * pp * dp == 16 for tp, cp, pp, dp, *_ in rows(case, 0))


def test_expert_meshes_of_lists_divide_the_stage():
    case = one({"tp": 4, "cp": 1, "pp": 1, "ep": [2, 3, 4, 32], "etp": [1, 4, 3]}, model="qwen3-30b-a3b")
    assert {(ep, etp) for *_, ep, etp, _ in rows(case, 0)} == {(2, 1), (4, 1), (2, 4), (4, 4)}


def test_offload_without_zero_is_offload_alone():
    case = one({"recompute": "none", "offload_layers": [4, 8]})
    assert rows(case, 4) == [(0, -1, 4), (0, -1, 8)]


def test_switches_written_are_not_second_guessed():
    """A written overlap_tp without sequence parallelism is a plan, and refused as one."""
    case = one({"sequence_parallel": False, "overlap_tp": True})
    assert rows(case, 5) == [(0, 1, 0)]


def test_a_split_of_ones_own():
    case = one({"split": "custom", "pp": 4, "tp": 4, "cp": 1}, recipe={"custom_split": [7, 9, 9, 7]})
    assert case.custom_split == (7, 9, 9, 7)
    found = evaluate(case, 0, 1)
    of_four = found.plans.vpp.ravel() == 1
    assert set(case.axes[2]["split"]) == {SPLITS.index("custom")}
    assert found.stages.most_layers.ravel()[of_four].tolist() == [9]


@pytest.mark.parametrize(
    ("space", "recipe"), [({"split": "custom"}, {}), ({"split": "even"}, {"custom_split": [7, 9, 9, 7]})]
)
def test_a_split_of_ones_own_is_asked_for_and_given(space, recipe):
    with pytest.raises(DlcalcError, match="need each other"):
        one(space, recipe=recipe)


# ---- what is refused by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "axis"),
    [
        ({"tp": 5}, "mesh"),
        ({"dp": 7}, "mesh"),
        ({"schedule": "zb-v", "vpp": 3}, "schedule"),
        ({"zero_stage": 1, "overlap_grad": False, "overlap_param": True}, "sharding"),
        ({"recompute": ["selective"], "offload_layers": 0, "recompute_layers": "all"}, None),
    ],
)
def test_a_space_that_is_empty_says_where(space, axis):
    if axis is None:
        assert one(space).n_plans > 0
        return
    with pytest.raises(DlcalcError, match=f"no {axis} is possible"):
        one(space)


def test_a_precision_the_device_lacks():
    with pytest.raises(DlcalcError, match="h100 has no nvfp4; it has"):
        one(recipe={"precision": "nvfp4"})


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"profile": {"cross_entrpy": "fused"}}, "profile.cross_entrpy: no such setting; did you mean cross_entropy"),
        ({"profile": {"cross_entropy": "none"}}, "recipe.profile.cross_entropy: .*'parallel' or 'fused', not 'none'"),
        ({"framework": "torchtitn"}, "did you mean torchtitan"),
    ],
)
def test_a_setting_of_the_framework_is_checked(recipe, named):
    with pytest.raises(DlcalcError, match=named):
        one(recipe=recipe)


def test_a_custom_split_must_hold_the_model():
    with pytest.raises(DlcalcError, match="its chunks hold 31 layers, but llama3-8b has 32"):
        one(recipe={"custom_split": [15, 16]})


@pytest.mark.parametrize(
    ("text", "problem"),
    [("tpp <= 8", "did you mean tp"), ("schedule == 1", "names 'schedule'"), ("tp", "is not a comparison")],
)
def test_a_constraint_that_cannot_be_read_is_found_before_the_search(text, problem):
    with pytest.raises(DlcalcError, match=rf"constraints\[0\]: .*{problem}"):
        one(constraints=[text])


def test_a_constraint_may_name_knobs_and_the_scenario():
    case = one(constraints=["tp * pp <= node", "micro_batches >= pp", "layers % pp == 0"])
    names = constraint_names(case, case.plans())
    assert {
        "tp",
        "micro_batch",
        "node",
        "devices",
        "layers",
        "seq_len",
        "global_batch",
        "micro_batches",
    } <= names.keys()
    assert not names.keys() & {"schedule", "recompute", "split"}  # words have no order
    assert (names["node"], names["devices"], names["layers"]) == (8, 16, 32)
    found = evaluate(case, 0, case.shape[0])
    refused = np.broadcast_to(found.refused["not tp * pp <= node"], case.shape)
    np.testing.assert_array_equal(refused, np.broadcast_to(found.plans.tp * found.plans.pp > 8, case.shape))


# ---- studies ------------------------------------------------------------------------------------------------------


def test_a_study_is_the_product_of_its_lists():
    found = scenarios(
        model=["llama3-8b", "llama3-70b"],
        hardware=["h100", "a100_80gb"],
        cluster={"devices": [8, 16]},
    )
    assert [(s.model.name, s.hardware.name, s.devices) for s in found] == list(
        product(["llama3-8b", "llama3-70b"], ["h100", "a100_80gb"], [8, 16])
    )
    assert len({s.name for s in found}) == 8


def test_each_precision_is_a_recipe():
    found = scenarios(recipe={"precision": ["bf16", "fp8"]})
    assert [s.recipe.precision for s in found] == ["bf16", "fp8"]


def test_recipes_that_share_a_name_are_numbered():
    spec = {**DENSE, "recipe": [DENSE["recipe"], {**DENSE["recipe"], "seq_len": 4096}]}
    first, second = scenarios_of(SpaceSpec.model_validate(spec), Path(), HardwareRegistry())
    assert second.name == f"{first.name} (recipe 2)"


def test_a_batch_in_tokens_is_a_batch_in_sequences():
    case = one(recipe={"global_batch": None, "global_batch_tokens": 8192 * 96})
    assert case.recipe.global_batch == 96
    assert case.recipe.tokens_per_step == 8192 * 96


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({"global_batch_tokens": 8192}, "not both or neither"),
        ({"global_batch": None}, "not both or neither"),
        ({"global_batch": None, "global_batch_tokens": 10_000}, "must be a multiple of seq_len = 8192"),
    ],
)
def test_a_batch_is_given_once(recipe, problem):
    with pytest.raises(ValueError, match=problem):
        one(recipe=recipe)


def test_some_memory_stays_free_unless_the_study_says_otherwise():
    """Plans between 95 and 100 % of a device fit it, and are not found."""
    careful, brave = one(), one(memory_headroom=0)
    assert (careful.memory_headroom, brave.memory_headroom) == (0.05, 0)
    hbm_bytes = careful.hardware.device.hbm_bytes
    few, many = (evaluate(case, 0, case.shape[0]) for case in (careful, brave))
    tight = many.fits & (many.memory_bytes > 0.95 * hbm_bytes)
    assert np.any(tight)
    np.testing.assert_array_equal(few.fits, many.fits & ~tight)


def test_the_cluster_changes_the_machine():
    case = one(cluster={"node_devices": 4, "nic_gbit_per_s_per_device": 200.0, "usd_per_device_hour": 2.5})
    assert case.hardware.node.n_devices == 4
    assert case.hardware.fabric.nic_bytes_per_s_per_device == 25e9  # 200 Gbit/s
    assert case.hardware.price.usd_per_device_hour == 2.5
    assert max(tp for tp, *_ in rows(case, 0)) == 4  # auto keeps tp inside a node


def test_larger_clusters_than_allowed_are_left_out():
    assert [s.devices for s in scenarios(cluster={"devices": [8, 16, 32]}, max_devices=16)] == [8, 16]
    with pytest.raises(DlcalcError, match=r"all of \[16\] exceed max_devices = 8"):
        one(max_devices=8)


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert located("mine.yaml", tmp_path) == str(tmp_path / "mine.yaml")
    assert located("llama3-8b", tmp_path) == "llama3-8b"
    assert located("there/is-none.yaml", tmp_path) == "there/is-none.yaml"
    assert located(str(tmp_path / "mine.yaml"), Path("/elsewhere")) == str(tmp_path / "mine.yaml")


def test_a_mistake_in_a_space_file_has_a_line(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "study: s\nmodel: llama3-8b\nhardware: h100\ncluster: {devices: 16}\n"
        "recipe: {seq_len: 8192, global_batch: 128}\nspace: {tq: [1]}\n"
    )
    with pytest.raises(SpecError, match=r"space\.yaml:6: space.*tq"):
        load_spec(file, SpaceSpec)


# ---- small things -------------------------------------------------------------------------------------------------


def test_blocks_cover_the_mesh_once():
    case = one()
    per_row = case.n_plans // case.shape[0]
    for block_plans in (1, per_row, 5 * per_row, 10**9):
        blocks = list(case.blocks(block_plans))
        assert [start for start, _ in blocks[1:]] == [stop for _, stop in blocks[:-1]]
        assert (blocks[0][0], blocks[-1][1]) == (0, case.shape[0])
        assert all(stop - start == 1 or (stop - start) * per_row <= block_plans for start, stop in blocks)


def test_every_knob_has_one_axis():
    assert sorted(knob for axis in one("full").axes for knob in axis) == sorted(KNOBS)


def test_divisors_and_powers():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
    assert powers_of_two(9) == [1, 2, 4, 8]
    assert powers_of_two(1) == [1]


def test_a_plan_by_hand_takes_its_frameworks_defaults():
    assert default_profile_knobs(load_framework("megatron")) == {
        "zero_stage": 1,
        "overlap_grad": 1,
        "overlap_param": 1,
        "cp_exchange": 0,
    }
    assert default_profile_knobs(load_framework("torchtitan"))["cp_exchange"] == CP_EXCHANGES.index("all_gather")


def test_a_cluster_larger_than_any_is_refused_at_once():
    """The divisors of a prime near 10^12 would take seconds to find."""
    space = SpaceSpec.model_validate(
        {
            "study": "t",
            "model": "llama3-8b",
            "hardware": "h100",
            "cluster": {"devices": 10**12 - 11},
            "recipe": {"seq_len": 8192, "global_batch": 512},
        }
    )
    with pytest.raises(DlcalcError, match="more than any cluster has"):
        scenarios_of(space, Path(), HardwareRegistry())


def test_what_is_exchanged_over_cp_takes_no_plan_without_it_and_adds_none():
    """At cp = 1 there is nothing to exchange: such plans are there once, whatever exchanges are searched."""
    rings, heads, all_three = (
        evaluate(case, 0, case.shape[0])
        for case in (one({"cp": [1, 2], "cp_exchange": kinds}) for kinds in ("ring", "all_to_all", list(CP_EXCHANGES)))
    )

    def count(found, cp):
        runs = np.broadcast_to(found.runs & (found.plans.cp == cp), found.step_time_s.shape)
        return int(np.count_nonzero(runs))

    assert count(rings, 1) == count(heads, 1) == count(all_three, 1) > 0
    assert count(all_three, 2) > count(rings, 2) > 0
