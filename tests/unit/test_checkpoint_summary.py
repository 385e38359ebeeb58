"""Totals, ties, roles, the tree and the difference; on contents made by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.checkpoint.contents import DTYPE_BITS, Checkpoint, Contents, Tensor
from dlcalc.checkpoint.difference import compare, lines
from dlcalc.checkpoint.roles import role_of
from dlcalc.checkpoint.summary import alike, summarize, tree


def checkpoint(*tensors: Tensor, **more) -> Checkpoint:
    return Checkpoint(Path("x.pt"), "by hand", 1, 0, Contents(tensors, **more))


def tensor(name: str, *shape: int, dtype: str = "float32", storage: str = "", offset: int = 0) -> Tensor:
    return Tensor(name, shape, dtype, storage, (tuple(1 for _ in shape), offset))


# ---- totals and ties


def test_totals_add_up():
    summary = summarize(checkpoint(tensor("a", 2, 3), tensor("b", 5, dtype="bfloat16"), tensor("c", dtype="int8")))
    assert summary.total.as_dict() == {"tensors": 3, "parameters": 12, "bytes": 24 + 10 + 1}
    assert {dtype: count.size_bytes for dtype, count in summary.by_dtype.items()} == {
        "float32": 24,
        "bfloat16": 10,
        "int8": 1,
    }


def test_tied_tensors_count_once_and_are_named():
    whole = checkpoint(tensor("embed", 8, storage="0"), tensor("head", 8, storage="0"), storages={"0": 32})
    summary = summarize(whole)
    assert summary.total.as_dict() == {"tensors": 2, "parameters": 8, "bytes": 32}
    assert summary.ties == (("embed", "head"),)
    assert summary.shared == ()
    assert [entry.tied_to for entry in summary.entries] == ["", "embed"]
    assert tree(summary.entries, "model").inner["head"].count.parameters == 0


def test_parts_of_one_storage_are_no_ties():
    parts = [tensor("q", 8, storage="0"), tensor("k", 8, storage="0", offset=8)]
    summary = summarize(checkpoint(*parts, storages={"0": 100}))
    assert summary.total.parameters == 16
    assert summary.ties == ()
    assert summary.shared == (("q", "k"),)
    assert summary.unused_bytes == 100 - 64


def test_a_slice_drags_its_whole_storage_along():
    summary = summarize(checkpoint(tensor("w", 2, storage="0"), storages={"0": 4000}))
    assert (summary.total.size_bytes, summary.unused_bytes) == (8, 3992)


def test_empty_tensors_are_never_tied():
    summary = summarize(checkpoint(tensor("a", 0, storage="0"), tensor("b", 0, storage="0"), storages={"0": 0}))
    assert summary.ties == ()


def test_filtering_leaves_what_matches():
    whole = checkpoint(tensor("a.w", 2), tensor("b.w", 3), tensor("b.bias", 5))
    summary = summarize(whole, re.compile(r"^b\.|bias"))
    assert [entry.tensor.name for entry in summary.entries] == ["b.w", "b.bias"]
    assert summary.total.parameters == 8


@pytest.mark.parametrize(("dtype", "bits"), DTYPE_BITS.items())
def test_bytes_round_up_to_whole_ones(dtype, bits):
    assert tensor("w", 3, dtype=dtype).size_bytes == -(-3 * bits // 8)


def test_two_numbers_in_an_element_are_two_parameters():
    packed = tensor("w", 4, dtype="float4_e2m1fn_x2")
    assert (packed.parameters, packed.size_bytes) == (8, 4)


# ---- what a tensor is for


@pytest.mark.parametrize(
    ("name", "role", "kind"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model", ""),
        ("lm_head.weight", "model", ""),
        ("backbone.step.weight", "model", ""),
        ("optimizer.state.0.exp_avg", "optimizer", "first moment (Adam)"),
        ("optimizer.state.model.norm.weight.exp_avg_sq", "optimizer", "second moment (Adam)"),
        ("optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight", "optimizer", "first moment (Adam)"),
        ("chained_0.optimizer.state.fp32_param.embedding.weight", "optimizer", "master weights"),
        ("optimizer.fp32_from_fp16_params.0.0", "optimizer", "master weights"),
        ("mp_rank_00/distrib_optim/0.torch.float32.0.param", "optimizer", "master weights"),
        ("optimizer_states.0.state.5.step", "optimizer", "step counts"),
        ("state.5.step", "optimizer", "step counts"),
        ("state.5.momentum_buffer", "optimizer", "momentum (SGD, Muon)"),
        ("optimizer_state_dict.base_optimizer_state.state.0.exp_avg", "optimizer", "first moment (Adam)"),
        ("optimizer_state_dict.single_partition_of_fp32_groups.0", "optimizer", "master weights"),
        ("optim.state.0.state1", "optimizer", "first moment (8-bit)"),
        ("optimizer.param_groups.0.lr", "optimizer", "other"),
        ("bn.running_mean", "buffers", ""),
        ("rotary_emb.inv_freq", "buffers", ""),
    ],
)
def test_roles_by_name(name, role, kind):
    assert role_of(tensor(name, 2)) == (role, kind)


@pytest.mark.parametrize(
    "name", ["rng_state", "cuda_rng_state", "rng_state.0.torch_rng_state", "rng_states.cpu", "rng"]
)
def test_random_states_are_bytes_of_that_name(name):
    assert role_of(tensor(name, 5056, dtype="uint8")) == ("random state", "")
    assert role_of(tensor(name, 5056)) == ("model", "")


def test_masks_are_buffers():
    assert role_of(tensor("h.0.attn.bias", 1, 1, 8, 8, dtype="bool")) == ("buffers", "")


@pytest.mark.parametrize(
    ("leaves", "optimizer"),
    [
        (("exp_avg", "exp_avg_sq", "step"), "Adam or AdamW"),
        (("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "Adam with AMSGrad"),
        (("momentum_buffer",), "SGD with momentum, or Muon"),
        (("exp_avg_sq_row", "exp_avg_sq_col"), "Adafactor"),
        (("state1", "state2", "qmap1"), "8-bit Adam"),
        (("exp_avg",), "Lion, or Adam in part"),
        (("strange",), "unknown"),
        ((), ""),
    ],
)
def test_the_optimizer_is_recognised(leaves, optimizer):
    tensors = [tensor(f"optimizer.state.0.{leaf}", 2) for leaf in leaves]
    assert summarize(checkpoint(tensor("model.w", 2), *tensors)).optimizer == optimizer


# ---- the tree


def test_the_tree_groups_by_prefix_and_adds_up():
    entries = summarize(
        checkpoint(tensor("m.a.w", 2), tensor("m.a.b", 3), tensor("m.c", 5, dtype="int8"), tensor("rest/x", 7))
    ).entries
    root = tree(entries, "model")
    assert list(root.inner) == ["m", "rest"]
    assert root.inner["m"].count.as_dict() == {"tensors": 3, "parameters": 10, "bytes": 25}
    assert root.inner["m"].inner["a"].count.parameters == 5
    assert root.inner["m"].dtypes == {"float32": 2, "int8": 1}
    assert root.inner["rest"].inner["x"].entry.tensor.shape == (7,)


def test_a_tensor_may_be_named_like_a_group():
    root = tree(summarize(checkpoint(tensor("a", 2), tensor("a.b", 3))).entries, "model")
    assert root.inner["a"].count.parameters == 5
    assert root.inner["a"].entry.tensor.shape == (2,)


def test_names_of_the_same_parts_stand_beside_each_other():
    root = tree(summarize(checkpoint(tensor("a.b", 2), tensor("a/b", 3), tensor("a.b", 5))).entries, "model")
    assert root.inner["a"].count.parameters == 10
    assert [group.count.parameters for group in root.inner["a"].inner.values()] == [2, 3, 5]


def test_numbered_groups_are_in_the_order_of_their_numbers():
    tensors = [tensor(f"layers.{n}.w", 1) for n in (10, 2, 0, 1)]
    root = tree(summarize(checkpoint(tensor("z", 1), *tensors, tensor("a", 1))).entries, "model")
    assert list(root.inner) == ["z", "layers", "a"]
    assert list(root.inner["layers"].inner) == ["0", "1", "2", "10"]


def rows(*tensors: Tensor) -> list[tuple[str, int]]:
    groups = tree(summarize(checkpoint(*tensors)).entries, "model").inner["layers"].inner.values()
    return [(item.name, item.count.parameters) for item in alike(groups)]


def test_neighbours_that_are_alike_are_one_row_that_adds_up():
    assert rows(*(tensor(f"layers.{n}.w", 4) for n in range(32))) == [("0-31", 128)]


def test_other_shapes_gaps_and_other_dtypes_part_them():
    assert rows(*(tensor(f"layers.{n}.w", 4 + (n == 2)) for n in range(4))) == [("0-1", 8), ("2", 5), ("3", 4)]
    assert rows(*(tensor(f"layers.{n}.w", 4) for n in (0, 1, 5, 6))) == [("0-1", 8), ("5-6", 8)]
    assert rows(tensor("layers.0.w", 4), tensor("layers.1.w", 4, dtype="int8")) == [("0", 4), ("1", 4)]
    assert rows(tensor("layers.0.w", 4), tensor("layers.1.v", 4)) == [("0", 4), ("1", 4)]


def test_names_with_a_number_at_their_end_join_too():
    assert rows(*(tensor(f"layers.mp_rank_{n:02d}.w", 4) for n in range(12))) == [("mp_rank_00-11", 48)]


@given(st.lists(st.tuples(st.text("ab.01/", min_size=1, max_size=6), st.integers(0, 3)), max_size=20))
def test_any_names_add_up(drawn):
    tensors = [tensor(name, size) for name, size in dict(drawn).items()]
    summary = summarize(checkpoint(*tensors))
    root = tree(summary.entries, "model")
    assert root.count.parameters == sum(t.parameters for t in tensors)
    waiting = [root]
    while waiting:
        group = waiting.pop()
        own = group.entry.counted.parameters if group.entry else 0
        assert group.count.parameters == own + sum(inner.count.parameters for inner in group.inner.values())
        assert sum(item.count.tensors for item in alike(group.inner.values())) == sum(
            inner.count.tensors for inner in group.inner.values()
        )
        waiting.extend(group.inner.values())


def test_a_name_of_a_thousand_parts_is_no_problem():
    summary = summarize(checkpoint(tensor(".".join("a" * 2000), 3)))
    assert tree(summary.entries, "model").count.parameters == 3
    assert alike(tree(summary.entries, "model").inner.values())[0].count.parameters == 3


# ---- the difference


def test_what_differs_is_found():
    here = checkpoint(tensor("same", 2), tensor("shape", 2), tensor("dtype", 2), tensor("gone", 2))
    there = checkpoint(tensor("same", 2), tensor("shape", 3), tensor("dtype", 2, dtype="int8"), tensor("new", 2))
    found = compare(here, there)
    assert [t.name for t in found.only_here] == ["gone"]
    assert [t.name for t in found.only_there] == ["new"]
    assert [pair.here.name for pair in found.changed] == ["shape", "dtype"]
    assert found.n_same == 1
    assert not found.is_none


def test_a_checkpoint_does_not_differ_from_itself_wherever_it_is_stored():
    whole = checkpoint(tensor("a", 2, storage="0"), tensor("b", 3))
    moved = replace(whole, path=Path("y.pt"), contents=Contents((tensor("b", 3), tensor("a", 2, storage="7"))))
    assert compare(whole, moved).is_none


def test_a_filter_holds_for_both():
    here, there = checkpoint(tensor("a", 1), tensor("b", 1)), checkpoint(tensor("a", 1), tensor("c", 1))
    assert compare(here, there, re.compile("^a")).is_none


def test_names_that_differ_in_numbers_alone_are_one_line():
    found = lines([(f"layers.{n}.w", "[4]") for n in range(80)] + [("layers.80.w", "[5]"), ("norm", "[4]")])
    assert [(line.name, line.text, line.n_tensors) for line in found] == [
        ("layers.*.w", "[4]", 80),
        ("layers.80.w", "[5]", 1),
        ("norm", "[4]", 1),
    ]
