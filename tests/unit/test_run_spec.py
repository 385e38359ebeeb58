"""Run files: both vocabularies, what they mean, and what a mistake in one is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dlcalc.calculators.schedule import SCHEDULES
from dlcalc.calculators.stages import SPLITS
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.costmodel.stage_params import stage_params
from dlcalc.errors import DlcalcError, SpecError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.run import Run
from dlcalc.search.run_file import RunFile, parse_change
from dlcalc.specs.load import load_spec
from dlcalc.specs.plan import PlanSection, Schedule, Split
from dlcalc.specs.run import RunSpec

OLD: dict[str, Any] = {
    "model": {
        "n_layers": 32,
        "hidden_sz": 4096,
        "inter_sz": 14336,
        "n_q_heads": 32,
        "n_kv_heads": 8,
        "head_dim": 128,
        "vocab_sz": 128256,
        "glu": True,
        "rotary_embeds": True,
        "dropout": False,
        "tie_embeddings": True,
    },
    "parallelism": {"tp": 4, "pp": 2, "dp": 8, "vpp": 1, "sp": True, "zero_level": 1, "n_param_buckets": 5},
    "performance": {"activation_checkpointing_type": "selective"},
    "data": {"gbs": 128, "seqlen": 4096, "microbatch_sz": 2},
    "hardware": {"node_type": "p5.48xlarge"},
}
MOE = {
    "n_experts": 16,
    "expert_inter_sz": 1024,
    "experts_per_token": 2,
    "capacity_factor": 1.25,
    "moe_frequency": 0.5,
    "expert_tp_degree": 2,
}
NEW: dict[str, Any] = {
    "model": "llama3-8b",
    "hardware": "h100",
    "cluster": {"devices": 64},
    "plan": {"tp": 4, "pp": 2, "micro_batch": 2, "recompute": "selective"},
    "recipe": {"seq_len": 4096, "global_batch": 128},
}


def changed(base: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """``base`` with keys of its sections changed; None removes a section."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for name, keys in sections.items():
        if keys is None:
            result.pop(name)
        elif isinstance(keys, dict) and isinstance(result.get(name), dict):
            result[name] |= keys
        else:
            result[name] = keys
    return result


@pytest.fixture
def resolve(tmp_path):
    """A run from data written to a file, optionally with what-if changes."""

    def run(data: dict[str, Any], **changes: Any) -> Run:
        file = tmp_path / "my_run.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        return RunFile.read(file, HardwareRegistry()).resolve(changes)

    return run


def knobs(run: Run) -> dict[str, Any]:
    return {knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS}


# --- vocabularies ----------------------------------------------------------------------------------------------------


def test_words_are_those_of_the_cost_model():
    """The spec cannot import the cost model, so it writes its words out."""
    assert get_args(Schedule) == SCHEDULES
    assert get_args(Split) == SPLITS
    assert set(PlanSection.model_fields) == set(KNOBS)


def test_a_file_in_the_old_words(resolve):
    run = resolve(OLD)
    model = run.model
    assert (model.n_layers, model.hidden_size, model.ffn_hidden_size) == (32, 4096, 14336)
    assert (model.n_heads, model.n_kv_heads, model.head_dim, model.vocab_size) == (32, 8, 128, 128256)
    assert model.gated_mlp
    assert model.tied_embeddings
    assert not model.learned_positions
    assert (run.hardware.name, run.recipe.seq_len, run.recipe.global_batch) == ("p5.48xlarge", 4096, 128)
    plan = knobs(run)
    assert {knob: plan[knob] for knob in ("tp", "cp", "pp", "dp", "ep", "vpp")} == {
        "tp": 4, "cp": 1, "pp": 2, "dp": 8, "ep": 1, "vpp": 1,
    }  # fmt: skip
    assert (plan["sequence_parallel"], plan["zero_stage"], plan["micro_batch"]) == (True, 1, 2)
    assert (plan["recompute"], plan["schedule"], plan["split"]) == ("selective", "1f1b", "even")
    assert run.notes == ()


def test_both_vocabularies_say_the_same(resolve):
    old = resolve(changed(OLD, model="llama3-8b", hardware="h100", parallelism={"n_param_buckets": None}))
    new = resolve(NEW)
    assert knobs(old) == knobs(new)
    assert old.recipe == new.recipe
    assert old.estimate().step_time_s == new.estimate().step_time_s


def test_vocabularies_mix(resolve):
    run = resolve(changed(OLD, plan={"schedule": "zb-h1", "overlap_grad": False}))
    assert (knobs(run)["schedule"], knobs(run)["overlap_grad"], knobs(run)["overlap_param"]) == ("zb-h1", False, False)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        pytest.param({"plan": {"tp": 2}}, "parallelism.tp and plan.tp are the same thing", id="knob"),
        pytest.param(
            {"plan": {"recompute": "none"}}, "activation_checkpointing_type and plan.recompute", id="recompute"
        ),
        pytest.param({"recipe": {"seq_len": 1, "global_batch": 1}}, "either data", id="batch"),
        pytest.param({"data": None}, "either data", id="no batch"),
    ],
)
def test_nothing_is_said_twice_or_not_at_all(resolve, extra, told):
    with pytest.raises(SpecError, match=told):
        resolve(changed(OLD, **extra))


def test_older_files_give_the_size_of_a_bucket(resolve):
    run = resolve(changed(OLD, parallelism={"n_param_buckets": None, "bucket_size_mb": 250}))
    profile = run.recipe.framework
    assert profile.bucket_elements * profile.grad_reduce_bytes == pytest.approx(250e6)


def test_every_example_loads():
    folder = Path(__file__).resolve().parents[2]
    for file in (*sorted((folder / "examples").glob("*.yaml")), folder / "configs" / "example.yaml"):
        load_spec(file, RunSpec)
        RunFile.read(file, HardwareRegistry()).resolve({})


def test_every_file_in_the_documentation_loads(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "3dtrn.md").read_text()
    shown = text.split("```yaml\n")[1:]
    assert len(shown) == 2
    for block in shown:
        file = tmp_path / "shown.yaml"
        file.write_text(block.split("```")[0])
        run = RunFile.read(file, HardwareRegistry()).resolve({})
        assert not [reason for reason, mask in run.estimate().refused.items() if mask.any()]


# --- what keys mean --------------------------------------------------------------------------------------------------


def test_experts(resolve):
    run = resolve(changed(OLD, model={"moe": MOE}, parallelism={"ep": 4}))
    model = run.model
    assert (model.n_experts, model.top_k, model.expert_ffn_hidden_size) == (16, 2, 1024)
    assert model.layer_is_moe == (False, True) * 16  # a frequency of one half
    assert (knobs(run)["ep"], knobs(run)["etp"]) == (4, 2)
    assert run.recipe.framework.routed_factor == 1.25


def test_experts_that_drop_tokens_are_counted_whole_and_said_so(resolve):
    run = resolve(changed(OLD, model={"moe": MOE | {"capacity_factor": 0.5}}))
    assert run.recipe.framework.routed_factor == 1.0
    assert any("capacity_factor = 0.5" in note for note in run.notes)


def test_a_shared_expert(resolve):
    run = resolve(changed(OLD, model={"moe": MOE | {"shared_expert_inter_sz": 2048}}))
    assert (run.model.n_shared_experts, run.model.shared_ffn_hidden_size) == (1, 2048)


def test_dropout_reaches_the_trainer(resolve):
    assert resolve(changed(OLD, model={"dropout": True})).recipe.framework.dropout
    assert not resolve(OLD).recipe.framework.dropout


def test_positions_are_learned_without_rotary_embeddings(resolve):
    model = resolve(changed(OLD, model={"rotary_embeds": False})).model
    assert model.learned_positions
    assert model.max_seq == 4096


@pytest.mark.parametrize(("zero_level", "told"), [(1, 0), (3, 1)])
def test_buckets_mean_nothing_where_layers_are_exchanged_one_by_one(resolve, zero_level, told):
    parallelism = {"n_param_buckets": 5, "zero_level": zero_level, "pp": 1, "vpp": 1}
    notes = resolve(changed(OLD, parallelism=parallelism)).notes
    assert sum("layers are exchanged one by one" in note for note in notes) == told


@pytest.mark.parametrize("buckets", [1, 5, 40])
def test_buckets_cut_the_gradients_of_a_device(resolve, buckets):
    run = resolve(changed(OLD, parallelism={"n_param_buckets": buckets}))
    found = run.estimate()
    held = stage_params(run.model, run.plan, found.stages)
    assert run.recipe.framework.bucket_elements * buckets == pytest.approx(float(held.dense), rel=1e-12)


@pytest.mark.parametrize(
    ("written", "framework", "meant"),
    [
        ("none", "megatron", "none"),
        ("selective", "megatron", "selective"),
        ("full", "megatron", "full"),
        ("super-selective", "megatron", "norm_act"),  # flash attention keeps no scores anyway
        ("super-selective", "megatron_deepspeed", "selective"),  # its attention stores them
    ],
)
def test_what_is_recomputed(resolve, written, framework, meant):
    run = resolve(changed(OLD, performance={"activation_checkpointing_type": written, "framework": framework}))
    assert run.recipe.framework.attention in (
        {"te_flash"} if framework == "megatron" else {"unfused", "megatron_fused"}
    )
    assert knobs(run)["recompute"] == meant


def test_interleaving_follows_from_chunks(resolve):
    assert knobs(resolve(changed(OLD, parallelism={"vpp": 4})))["schedule"] == "interleaved"
    assert knobs(resolve(changed(NEW, plan={"schedule": "zb-v"})))["vpp"] == 2


def test_what_means_nothing_is_taken_off_and_said(resolve):
    run = resolve(changed(OLD, parallelism={"tp": 1, "pp": 1, "dp": 8, "vpp": 4, "ep": 2}))
    plan = knobs(run)
    assert (plan["sequence_parallel"], plan["vpp"], plan["ep"]) == (False, 1, 1)
    assert len(run.notes) == 3


def test_layers_that_do_not_divide_are_spread(resolve):
    run = resolve(changed(OLD, model={"n_layers": 30}, parallelism={"pp": 4, "dp": 4}))
    assert knobs(run)["split"] == "custom"
    assert run.custom_split is not None
    assert (sum(run.custom_split), max(run.custom_split) - min(run.custom_split)) == (30, 1)
    assert not any(mask.any() for mask in run.estimate().refused.values())
    assert any("do not split evenly" in note for note in run.notes)


def test_replicas_are_what_the_devices_leave(resolve):
    assert knobs(resolve(NEW))["dp"] == 8
    with pytest.raises(DlcalcError, match="does not divide the 20 devices"):
        resolve(changed(NEW, cluster={"devices": 20}))
    with pytest.raises(DlcalcError, match="the cluster has 64 devices"):
        resolve(changed(NEW, plan={"dp": 4}))
    with pytest.raises(DlcalcError, match="dp is missing"):
        resolve(changed(NEW, cluster=None))


def test_a_custom_split(resolve):
    layers = [6, 9, 9, 8]
    run = resolve(changed(NEW, plan={"pp": 4}, recipe={"custom_split": layers}))
    assert (knobs(run)["split"], run.custom_split) == ("custom", tuple(layers))
    with pytest.raises(DlcalcError, match="pp x vpp = 2"):
        resolve(changed(NEW, recipe={"custom_split": layers}))
    with pytest.raises(DlcalcError, match=r"needs recipe\.custom_split"):
        resolve(changed(NEW, plan={"split": "custom"}))


def test_the_cluster_overrides_the_machine(resolve):
    run = resolve(
        changed(NEW, cluster={"node_devices": 4, "nic_gbit_per_s_per_device": 100, "usd_per_device_hour": 2.5})
    )
    assert run.hardware.node.n_devices == 4
    assert run.hardware.fabric.nic_bytes_per_s_per_device == 12.5e9
    assert run.hardware.price is not None
    assert run.hardware.price.usd_per_device_hour == 2.5


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = """\
model:
  n_layers: 32
  hidden_size: 4096
  inter_sz: 14336
  n_q_heads: 32
  n_kv_heads: 8
  head_dim: 128
  vocab_sz: 128256
  glu: yes
parallelism: {tp: 4, pp: 2.5, dp: 8, zero_level: 4}
performance:
  activation_checkpointing_type: selectiv
data: {gbs: 128, seqlen: 4096}
hardware: {node_typ: p5.48xlarge}
"""


def test_mistakes_are_told_by_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(MISTAKES)
    with pytest.raises(SpecError) as caught:
        load_spec(file, RunSpec)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    for line, words in (
        (3, "model.hidden_size: no such key; did you mean hidden_sz?"),
        (9, "model.glu: must be true or false"),
        (10, "parallelism.pp: must be a whole number"),
        (10, "parallelism.zero_level: must be at most 3"),
        (12, "did you mean selective"),
        (14, "hardware.node_typ: no such key; did you mean node_type?"),
    ):
        assert any(told.startswith(f"{file}:{line}:") and words in told for told in lines), (words, lines)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"hardware": "h1000"}, r"my_run\.yaml:\d+: hardware: unknown hardware 'h1000'; did you mean"),
        (
            {"hardware": {"node_type": "p5.48xlarg"}},
            r"my_run\.yaml:\d+: hardware.node_type: .*did you mean p5.48xlarge",
        ),
        ({"model": "llama3-7b"}, r"my_run\.yaml:1: model: unknown model"),
        ({"performance": {"framework": "megatronn"}}, r"performance.framework: .*did you mean megatron"),
        ({"performance": {"precision": "nvfp4"}}, r"my_run\.yaml:\d+: performance.precision: .* has no nvfp4; it has"),
        ({"model": {"n_kv_heads": 5}}, "n_kv_heads = 5 must divide n_q_heads = 32"),
        ({"model": {"moe": MOE | {"moe_frequency": 0.3}}}, "is not a whole number of layers"),
        ({"parallelism": {"bucket_size_mb": 10}}, "either n_param_buckets or bucket_size_mb"),
        ({"cross_dc": {"n_dcs": 9, "interconnect_bandwidth_gbps": 1, "interconnect_latency_s": 0}}, "dp = 8"),
    ],
)
def test_what_a_mistake_is_answered_with(resolve, extra, told):
    with pytest.raises(DlcalcError, match=told):
        resolve(changed(OLD, **extra))


# --- what if ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["tp", "parallelism.tp"])
def test_a_change_by_its_short_or_its_whole_name(resolve, key):
    assert knobs(resolve(OLD, **{key: 2}))["tp"] == 2


@pytest.mark.parametrize(
    ("key", "value", "knob", "meant"),
    [
        ("micro_batch", 4, "micro_batch", 4),
        ("microbatch_sz", 4, "micro_batch", 4),
        ("sequence_parallel", False, "sequence_parallel", False),
        ("zero_stage", 0, "zero_stage", 0),
        ("recompute", "full", "recompute", "full"),
        ("recompute", "norm_act", "recompute", "norm_act"),  # a word that the section of the file does not know
        ("schedule", "zb-h1", "schedule", "zb-h1"),
        ("overlap_grad", False, "overlap_grad", False),
    ],
)
def test_a_change_in_the_words_of_a_space_file(resolve, key, value, knob, meant):
    assert knobs(resolve(OLD, **{key: value}))[knob] == meant


def test_changes_of_everything_else(resolve):
    assert resolve(OLD, hardware="h200").hardware.name == "h200"
    assert resolve(OLD, model="llama3-70b").model.name == "llama3-70b"
    assert resolve(OLD, precision="fp8").recipe.precision == "fp8"
    assert resolve(NEW, precision="fp8").recipe.precision == "fp8"
    assert resolve(OLD, global_batch=256).recipe.global_batch == 256
    assert resolve(NEW, seq_len=8192).recipe.seq_len == 8192
    assert knobs(resolve(NEW, tp=8))["dp"] == 4  # the cluster keeps its devices


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tp": 4.5}, r"--what-if tp=4.5: parallelism.tp: must be a whole number"),
        ({"parallelism.tpp": 4}, "no such key; did you mean tp"),
        ({"hardware": "h1000"}, "--what-if hardware=h1000: unknown hardware"),
    ],
)
def test_a_wrong_change_is_the_options_mistake(resolve, changes, told):
    with pytest.raises(DlcalcError, match=told):
        resolve(OLD, **changes)


def test_an_unknown_change_is_answered_with_what_was_meant(resolve):
    with pytest.raises(UnknownNameError, match="did you mean micro_batch"):
        resolve(OLD, micro_bach=1)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("tp=4", ("tp", 4)), ("a.b=1e3", ("a.b", 1000.0)), ("sp=true", ("sp", True)), ("x=h100", ("x", "h100"))],
)
def test_changes_are_read_as_yaml(text, meant):
    assert parse_change(text) == meant


@pytest.mark.parametrize("text", ["tp", "=4", "tp=[1", "tp={a: *x}"])
def test_a_change_that_is_none(text):
    with pytest.raises(DlcalcError, match="--what-if"):
        parse_change(text)
