"""Checkpoints of many files: distributed, sharded, Megatron's, DeepSpeed's; and what is wrong with broken ones."""

import json
import os
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from dlcalc.checkpoint.reader import read_checkpoint
from dlcalc.errors import CheckpointError
from tests.checkpoint_samples import Calls, hostile_calls, safetensors, save, save_distributed, training_state

torch = pytest.importorskip("torch")


def named(path):
    return {tensor.name: tensor for tensor in read_checkpoint(path).contents.tensors}


def problem(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ---- torch.distributed.checkpoint


@pytest.fixture(scope="module")
def _distributed(tmp_path_factory):
    state = training_state()
    root = {"model": state["model"], "optimizer": state["optimizer"], "epoch": 3}
    return save_distributed(root, tmp_path_factory.mktemp("dcp") / "saved")


@pytest.fixture
def distributed(_distributed, tmp_path):
    """A checkpoint to break."""
    return Path(shutil.copytree(_distributed, tmp_path / "step-1000"))


def test_a_distributed_checkpoint_is_read(distributed):
    checkpoint = read_checkpoint(distributed)
    found = {tensor.name: tensor for tensor in checkpoint.contents.tensors}
    assert checkpoint.format == "torch.distributed.checkpoint"
    assert checkpoint.n_files == 2
    assert checkpoint.files_bytes == sum(file.stat().st_size for file in distributed.iterdir())
    assert (found["model.embed.weight"].shape, found["model.embed.weight"].dtype) == ((16, 4), "float32")
    assert found["optimizer.state.0.exp_avg"].shape == (16, 4)
    assert "epoch" in {value.name for value in checkpoint.contents.values}
    assert read_checkpoint(distributed / ".metadata").contents == checkpoint.contents


def write_metadata(
    folder: Path, *, ranks: int = 4, dtype=None, chunks=None, path="__{}_0.distcp", data_bytes: int = 100
):
    """A tensor of ``ranks`` rows, one on each rank, as a job of many processes leaves it."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir(exist_ok=True)
    places = [torch.Size([rank, 0]) for rank in range(ranks)]
    rows = [dcp.ChunkStorageMetadata(place, torch.Size([1, 8])) for place in places]
    tensor = dcp.TensorStorageMetadata(
        dcp.TensorProperties(dtype=dtype or torch.bfloat16),
        torch.Size([ranks, 8]),
        rows if chunks is None else rows[:chunks],
    )
    storage = {
        dcp.MetadataIndex("w", place, rank): _StorageInfo(path.format(rank), 84, 16)
        for rank, place in enumerate(places)
    }
    whole = dcp.Metadata({"w": tensor, "epoch": dcp.BytesStorageMetadata()}, {"w": ("w",)}, storage)
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    for rank in range(ranks):
        (folder / f"__{rank}_0.distcp").write_bytes(bytes(data_bytes))
    return folder


def test_shards_of_many_ranks_are_one_tensor(tmp_path):
    checkpoint = read_checkpoint(write_metadata(tmp_path / "dcp"))
    (tensor,) = checkpoint.contents.tensors
    assert (tensor.shape, tensor.dtype, tensor.size_bytes) == ((4, 8), "bfloat16", 64)
    assert checkpoint.n_files == 5
    assert checkpoint.contents.notes == ()


def test_what_is_not_stored_whole_is_noted(tmp_path):
    notes = read_checkpoint(write_metadata(tmp_path / "dcp", chunks=3)).contents.notes
    assert notes == ("w: only 24 of its 32 elements are stored",)


def test_a_missing_or_short_data_file_is_named(tmp_path):
    folder = write_metadata(tmp_path / "dcp")
    (folder / "__2_0.distcp").write_bytes(bytes(99))
    assert problem(folder) == f"{folder}: truncated: __2_0.distcp has 99 of 100 bytes; w is cut off"
    (folder / "__2_0.distcp").unlink()
    assert problem(folder) == f"{folder}: damaged: __2_0.distcp is missing, which holds w"


@pytest.mark.parametrize("path", ["/etc/passwd", "../{}", "a/../../b", "a\0b"])
def test_metadata_cannot_point_outside_of_the_checkpoint(tmp_path, path):
    assert "which is not in the checkpoint" in problem(write_metadata(tmp_path / "dcp", path=path))


def test_hostile_calls_in_metadata_are_refused_and_not_run(tmp_path, distributed):
    from torch.distributed.checkpoint import metadata as dcp

    victim = tmp_path / "ran"
    name, call = next(iter(hostile_calls(victim).items()))
    lfb = Calls(torch.storage._load_from_bytes, b"x")
    for planted in (
        call,
        dcp.Metadata(state_dict_metadata={}, planner_data={"w": call}),
        dcp.Metadata(state_dict_metadata={"w": call}),
        dcp.Metadata(state_dict_metadata={}, storage_data={dcp.MetadataIndex("w"): call}),
    ):
        (distributed / ".metadata").write_bytes(pickle.dumps(planted))
        assert f"refused: its pickle calls {name}," in problem(distributed)
    (distributed / ".metadata").write_bytes(pickle.dumps(dcp.Metadata({}, lfb)))
    assert "refused: its pickle calls torch.storage._load_from_bytes," in problem(distributed)
    assert not victim.exists()


def test_broken_metadata_is_one_line(distributed):
    from torch.distributed.checkpoint import metadata as dcp

    file = distributed / ".metadata"
    content = file.read_bytes()
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        assert "truncated: it ends in the middle of its pickle" in problem(distributed)
    file.write_bytes(pickle.dumps({"a": 1}))
    assert "not the metadata of torch.distributed.checkpoint" in problem(distributed)
    for entry in (7, dcp.TensorStorageMetadata(None, torch.Size([1]), []), dcp.TensorStorageMetadata(7, (1,), None)):
        file.write_bytes(pickle.dumps(dcp.Metadata({"w": entry})))
        assert "damaged: w " in problem(distributed)
    tensor = dcp.TensorStorageMetadata(dcp.TensorProperties(), [-1], [])
    file.write_bytes(pickle.dumps(dcp.Metadata({"w": tensor})))
    assert "shape is none" in problem(distributed)
    file.write_bytes(pickle.dumps(dcp.Metadata({}, None, {"w": 7})))
    assert "does not say where data lies" in problem(distributed)
    file.write_bytes(pickle.dumps(dcp.Metadata(None)))
    assert "has no state_dict_metadata" in problem(distributed)


def test_a_data_file_alone_points_to_its_folder(distributed):
    assert "give its folder" in problem(distributed / "__0_0.distcp")


def test_megatrons_distributed_checkpoints_have_a_common_file(tmp_path):
    folder = write_metadata(tmp_path / "iter_0000100")
    save({"iteration": 100, "args": Namespace(lr=0.1)}, folder / "common.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.path == folder
    values = {value.name: value.text for value in checkpoint.contents.values}
    assert values["common.iteration"] == "100"
    save({"x": Calls(os.system, "true")}, folder / "common.pt")
    assert "refused: its pickle calls posix.system," in problem(tmp_path)


# ---- shards with an index


def write_shards(folder: Path, weight_map: object = None, **more: object) -> Path:
    """Two safetensors shards of one tensor each, and their index."""
    for number, name in enumerate("ab", start=1):
        header = {name: {"dtype": "BF16", "shape": [number, 2], "data_offsets": [0, 4 * number]}}
        safetensors(
            folder / f"model-{number}-of-2.safetensors", header | {"__metadata__": {"format": "pt"}}, 4 * number
        )
    if weight_map is None:
        weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": weight_map} | more))
    return index


def test_shards_are_one_checkpoint(tmp_path):
    index = write_shards(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors, 2 shards"
    assert checkpoint.n_files == 3
    assert {name: tensor.shape for name, tensor in named(tmp_path).items()} == {"a": (1, 2), "b": (2, 2)}
    assert read_checkpoint(index).contents == checkpoint.contents


def test_shards_of_pytorch_are_one_checkpoint(tmp_path):
    shared = torch.zeros(2)
    save({"a": shared, "a2": shared}, tmp_path / "pytorch_model-1.bin")
    save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-2.bin", legacy=True)
    weight_map = {"a": "pytorch_model-1.bin", "a2": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = named(tmp_path)
    assert found["a"].storage == found["a2"].storage != found["b"].storage
    assert "PyTorch (legacy) and PyTorch (zip), 2 shards" in read_checkpoint(tmp_path).format


def test_a_missing_or_wrong_shard_is_named(tmp_path):
    index = write_shards(tmp_path, {"a": "model-2-of-2.safetensors"})
    assert problem(tmp_path).endswith("damaged: a is not in it, and model.safetensors.index.json says it is")
    write_shards(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert problem(tmp_path) == f"{index}: model-2-of-2.safetensors is missing, with 1 tensors"


def test_what_the_index_leaves_out_is_noted(tmp_path):
    write_shards(tmp_path)
    header = {name: {"dtype": "U8", "shape": [], "data_offsets": [at, at + 1]} for at, name in enumerate("ax")}
    safetensors(tmp_path / "model-1-of-2.safetensors", header, 2)
    assert read_checkpoint(tmp_path).contents.notes == (
        "model-1-of-2.safetensors: 1 tensors that the index does not name",
    )


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7, "a\\b", "a\0b"])
def test_an_index_cannot_point_outside_of_the_folder(tmp_path, shard):
    write_shards(tmp_path, {"a": shard})
    assert "a is said to be in a file outside of the folder" in problem(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_a_broken_index_is_one_line(tmp_path, content):
    write_shards(tmp_path).write_text(content)
    assert "the index" in problem(tmp_path)


# ---- Megatron, DeepSpeed and loose files


def write_megatron(folder: Path, ranks: int = 4) -> Path:
    """A checkpoint as Megatron writes them, one folder for each model-parallel rank."""
    for rank in range(ranks):
        own = folder / f"mp_rank_{rank:02d}"
        own.mkdir(parents=True)
        model = {"language_model.encoder.layers.0.weight": torch.zeros(4, 2, dtype=torch.bfloat16)}
        state = {"iteration": 5, "args": Namespace(params_dtype=torch.bfloat16), "model": model}
        moments = {"param": torch.zeros(8), "exp_avg": torch.zeros(8), "exp_avg_sq": torch.zeros(8)}
        save(state, own / "model_optim_rng.pt")
        save({0: {torch.bfloat16: [moments]}}, own / "distrib_optim.pt")
    return folder


def test_a_megatron_checkpoint_is_read_rank_by_rank(tmp_path):
    folder = write_megatron(tmp_path / "iter_0000005")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5\n")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.path == folder
    assert checkpoint.format == "Megatron, 4 ranks"
    assert checkpoint.n_files == 8
    found = named(tmp_path)
    assert len(found) == 4 * 4
    assert found["mp_rank_03/model.language_model.encoder.layers.0.weight"].shape == (4, 2)
    assert found["mp_rank_00/distrib_optim/0.torch.bfloat16.0.exp_avg"].shape == (8,)
    assert len({tensor.storage for tensor in found.values()}) == len(found)


def test_one_rank_is_a_checkpoint_too(tmp_path):
    folder = write_megatron(tmp_path / "iter_0000005")
    assert read_checkpoint(folder / "mp_rank_02").format == "Megatron, one rank"
    assert "model.language_model.encoder.layers.0.weight" in named(folder / "mp_rank_02")


def test_a_gap_in_the_ranks_is_noted(tmp_path):
    folder = write_megatron(tmp_path / "iter_0000005")
    shutil.rmtree(folder / "mp_rank_01")
    assert read_checkpoint(folder).contents.notes == ("no folder of mp_rank_01: ranks are missing",)


def test_a_broken_rank_is_named(tmp_path):
    folder = write_megatron(tmp_path / "iter_0000005")
    file = folder / "mp_rank_02" / "model_optim_rng.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert problem(folder).startswith(f"{file}: truncated: ")
    save({"args": Calls(eval, "1")}, file)
    assert problem(folder).startswith(f"{file}: refused: its pickle calls builtins.eval,")
    shutil.rmtree(folder / "mp_rank_02")
    (folder / "mp_rank_02").mkdir()
    assert problem(folder) == f"{folder}/mp_rank_02: damaged: no checkpoint file in this rank's folder"


def test_a_deepspeed_checkpoint_is_its_files(tmp_path):
    folder = tmp_path / "global_step5"
    folder.mkdir()
    (tmp_path / "latest").write_text("global_step5")
    save({"module": {"w": torch.zeros(3)}}, folder / "mp_rank_00_model_states.pt")
    flat = {"single_partition_of_fp32_groups": [torch.zeros(3)]}
    save({"optimizer_state_dict": flat}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert read_checkpoint(tmp_path).format == "DeepSpeed"
    assert "mp_rank_00_model_states/module.w" in named(tmp_path)


def test_safetensors_win_over_what_lies_beside_them(tmp_path):
    safetensors(tmp_path / "model.safetensors", {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1)
    save({"x": Calls(eval, "1")}, tmp_path / "training_args.bin")
    checkpoint = read_checkpoint(tmp_path)
    assert [tensor.name for tensor in checkpoint.contents.tensors] == ["a"]
    assert checkpoint.contents.notes == ("not read: training_args.bin; name one to read it",)


def test_folders_without_a_checkpoint(tmp_path):
    assert problem(tmp_path).startswith(f"{tmp_path}: holds no checkpoint; looked for .metadata, ")
    (tmp_path / "step-1").mkdir()
    write_shards(tmp_path / "step-1")
    assert problem(tmp_path) == f"{tmp_path}: holds no checkpoint; there is one in step-1"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert "holds no checkpoint" in problem(tmp_path)


@pytest.mark.parametrize("text", ["..", ".", "/etc", "../..", "\xff\xfe", ""])
def test_a_latest_file_cannot_lead_outside(tmp_path, text):
    (tmp_path / "latest").write_bytes(text.encode("latin-1"))
    assert "holds no checkpoint" in problem(tmp_path)


def test_folders_that_lead_to_each_other_end(tmp_path):
    (tmp_path / "latest").write_text("loop")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert problem(tmp_path)
