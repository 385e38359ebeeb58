"""Which layers sit on which stage, told layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.calculators.schedule import DUALPIPE, INTERLEAVED, ONE_F_ONE_B, ZB_V
from dlcalc.calculators.stages import CUSTOM, EMBEDDING_AND_LOSS, EVEN, first_layer_count, stage_layers_count
from dlcalc.specs.model_registry import load_model


def layers_of(model, *, pp, vpp=1, schedule=ONE_F_ONE_B, split=EVEN, custom=None):
    codes = {"pp": pp, "vpp": vpp, "schedule": schedule, "split": split}
    return stage_layers_count(load_model(model), **{k: np.float64(v) for k, v in codes.items()}, custom=custom)


def test_an_even_split_gives_every_chunk_as_many_layers():
    cut = first_layer_count(32, np.arange(9.0), n_chunks=8, split=EVEN)
    assert cut.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_llama3_405b_has_one_layer_less_on_its_first_and_last_chunk():
    """126 layers, embedding and loss are 128 units: two a chunk over pp = vpp = 8 (Llama 3 report, section 3.3.2)."""
    cut = first_layer_count(126, np.arange(65.0), n_chunks=64, split=EMBEDDING_AND_LOSS)
    assert np.diff(cut).tolist() == [1] + 62 * [2] + [1]
    found = layers_of("llama3-405b", pp=8, vpp=8, schedule=INTERLEAVED, split=EMBEDDING_AND_LOSS)
    assert found.layers.tolist() == [15, 16, 15]
    assert found.embeddings.tolist() == [1, 0, 0]
    assert found.heads.tolist() == [0, 0, 1]
    assert (float(found.most_layers), float(found.fewest_layers)) == (16, 15)


def test_the_first_layers_of_deepseek_are_dense():
    whole = layers_of("deepseek-v3", pp=1)
    assert (whole.dense.tolist(), whole.moe.tolist()) == ([3, 3, 3], [58, 58, 58])
    parted = layers_of("deepseek-v3", pp=9, split=EMBEDDING_AND_LOSS)  # (61 + 2) / 9 = 7
    assert parted.dense.tolist() == [3, 0, 0]
    assert parted.moe.tolist() == [3, 7, 6]
    assert parted.stage.tolist() == [0, 1, 8]


def test_windows_alternate():
    found = layers_of("gpt-oss-20b", pp=2)  # 24 layers, every other one windowed
    assert found.windowed.tolist() == [6, 6, 6]
    assert found.full.tolist() == [6, 6, 6]


def test_interleaved_chunks_go_round():
    """Chunks 0, 2 and 1, 3 of 8 layers each: the second stage has the end of the model."""
    found = layers_of("llama3-8b", pp=2, vpp=2, schedule=INTERLEAVED)
    assert found.stage.tolist() == [0, 0, 1]
    assert found.embeddings.tolist() == [1, 1, 0]
    assert found.heads.tolist() == [0, 0, 1]


def test_a_v_ends_where_it_began():
    """Stage s of zb-v holds chunks s and 2 pp - 1 - s, so that the first stage has embedding and loss."""
    found = layers_of("deepseek-v3", pp=4, vpp=2, schedule=ZB_V, split=CUSTOM, custom=(3, 8, 8, 8, 8, 8, 8, 10))
    assert found.embeddings.tolist() == [1, 0, 0]
    assert found.heads.tolist() == [1, 0, 0]
    assert found.dense.tolist() == [3, 0, 0]
    assert found.moe.tolist() == [10, 16, 16]


def test_a_device_of_dualpipe_has_a_stage_of_each_direction():
    found = layers_of("llama3-8b", pp=4, schedule=DUALPIPE)
    assert found.layers.tolist() == [16, 16, 16]
    assert found.embeddings.tolist() == [1, 0, 1]
    assert found.heads.tolist() == [1, 0, 1]


def test_a_custom_split_is_taken_as_it_is():
    found = layers_of("llama3-8b", pp=4, split=CUSTOM, custom=(5, 9, 11, 7))
    assert found.layers.tolist() == [5, 9, 11, 7]  # stage 1 has fewer layers than stage 2, but more in flight
    assert found.stage.tolist() == [0, 1, 2, 3]
    assert (float(found.most_layers), float(found.fewest_layers)) == (11, 5)


@pytest.mark.parametrize("split", [EVEN, EMBEDDING_AND_LOSS])
@pytest.mark.parametrize(("pp", "vpp", "schedule"), [(1, 1, 0), (2, 1, 0), (4, 1, 4), (4, 2, 1), (2, 8, 1), (4, 2, 3)])
def test_no_layer_is_lost(pp, vpp, schedule, split):
    """The chunks of llama3-8b hold 32 layers, and no stage more than the fullest of the three."""
    cut = first_layer_count(32, np.arange(pp * vpp + 1.0), n_chunks=pp * vpp, split=split)
    found = layers_of("llama3-8b", pp=pp, vpp=vpp, schedule=schedule, split=split)
    assert (cut[0], cut[-1]) == (0, 32)
    assert np.all(np.diff(cut) >= 0)
    assert float(found.most_layers) == found.layers.max()
    assert pp * float(found.fewest_layers) <= 32 <= pp * float(found.most_layers)


def test_a_stage_with_no_more_of_anything_than_an_earlier_one_is_bounded_by_it():
    found = layers_of("llama3-8b", pp=6, split=CUSTOM, custom=(4, 7, 6, 8, 5, 2))
    assert found.stage.tolist() == [0, 1, 3, 5]
    assert found.layers.tolist() == [4, 7, 8, 2]


def test_kinds_bound_each_on_their_own():
    """Of gpt-oss-20b's 24 alternating layers over 5 stages, 5 a chunk: 3 of one kind here, of the other there."""
    found = layers_of("gpt-oss-20b", pp=5, split=CUSTOM, custom=(4, 5, 5, 5, 5))
    assert found.windowed.tolist() == [2, 3, 2, 2]
    assert found.full.tolist() == [2, 2, 3, 3]
    assert found.stage.tolist() == [0, 1, 2, 4]  # stage 3 is stage 1 again


def test_stages_are_as_many_as_the_worst_pipeline_of_a_batch_needs():
    """Shorter lists say a stage twice, so that a batch has one shape and no pipeline gets another's stages."""
    model, one = load_model("llama3-8b"), np.float64(1)
    grid = stage_layers_count(
        model, pp=np.array([1.0, 2.0, 4.0, 11.0]), vpp=one, schedule=np.float64(0), split=np.float64(EMBEDDING_AND_LOSS)
    )
    assert grid.stage.T.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 2, 3], [0, 1, 5, 10]]
    assert grid.layers.T.tolist() == [[32, 32, 32, 32], [16, 16, 16, 16], [8, 9, 9, 7], [2, 3, 4, 2]]
    assert (grid.most_layers.tolist(), grid.fewest_layers.tolist()) == ([32, 16, 9, 4], [32, 16, 7, 2])


def test_a_grid_of_pipelines_is_each_of_them():
    model = load_model("llama3-8b")
    pp, split = np.array([[2.0], [4.0]]), np.array([0.0, 1.0])
    grid = stage_layers_count(model, pp=pp, vpp=np.float64(1), schedule=np.float64(0), split=split)
    assert grid.layers.shape == (3, 2, 2)
    for i, j in np.ndindex(2, 2):
        alone = layers_of("llama3-8b", pp=pp[i, 0], split=split[j])
        np.testing.assert_array_equal(grid.layers[:, i, j], alone.layers)
