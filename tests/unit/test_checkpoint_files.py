"""Single files: what PyTorch and safetensors write is read as they read it; what is damaged is told in a line."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.checkpoint import zip_directory
from dlcalc.checkpoint.contents import Tensor
from dlcalc.checkpoint.reader import read_checkpoint
from dlcalc.errors import CheckpointError
from tests.checkpoint_samples import REFUSED_FIRST, hostile_calls, safetensors, save, torch_zip, training_state

torch = pytest.importorskip("torch")

BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def read(file):
    return read_checkpoint(file).contents


def named(contents) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in contents.tensors}


def problem(path) -> str:
    """The one line that is said of what is wrong with ``path``."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable()
    return text.removeprefix(f"{path}: ")


def written(tmp_path, content: bytes, name: str = "x.pt"):
    file = tmp_path / name
    file.write_bytes(content)
    return file


# ---- what PyTorch writes

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]
DTYPES = [*FLOATS, *INTEGERS, "complex64", "complex128"]


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_shapes_and_dtypes_are_those_that_were_saved(tmp_path, legacy, protocol):
    root = {dtype: torch.empty(3, 5, dtype=getattr(torch, dtype)) for dtype in DTYPES} | {"scalar": torch.tensor(1.0)}
    file = save(root, tmp_path / "x.pt", legacy=legacy, protocol=protocol)
    found = named(read(file))
    assert found.keys() == root.keys()
    for name, tensor in root.items():
        assert found[name].shape == tuple(tensor.shape)
        assert f"torch.{found[name].dtype}" == str(tensor.dtype)
        assert found[name].size_bytes == tensor.numel() * tensor.element_size()


@BOTH
def test_a_training_state_is_read_whole(tmp_path, legacy):
    state = training_state()
    contents = read(save(state, tmp_path / "x.ckpt", legacy=legacy))
    found = named(contents)
    for name, tensor in state["model"].items():
        assert found[f"model.{name}"].shape == tuple(tensor.shape)
    assert found["optimizer.state.0.exp_avg"].shape == (16, 4)
    assert found["model.embed.weight"].storage == found["model.head.weight"].storage != ""
    assert found["model.norm.weight"].storage != found["model.norm.bias"].storage
    values = {value.name: value.text for value in contents.values}
    assert values["epoch"] == "3"
    assert values["optimizer.param_groups.0.betas"] == "[0.9, 0.999]"


@BOTH
def test_views_know_their_place_in_their_storage(tmp_path, legacy):
    whole = torch.zeros(10, 10)
    root = {"rows": whole[2:4], "turned": whole.T, "every": torch.arange(3.0).expand(7, 3), "none": torch.zeros(0, 3)}
    contents = read(save(root, tmp_path / "x.pt", legacy=legacy))
    found = named(contents)
    assert found["rows"].place == ((10, 1), 20)
    assert found["turned"].place == ((1, 10), 0)
    assert found["rows"].storage == found["turned"].storage
    assert contents.storages[found["rows"].storage] == 400
    assert contents.storages[found["every"].storage] == 12
    assert found["none"].parameters == 0


@BOTH
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_everything_else_that_people_save_is_read(tmp_path, legacy):
    root = OrderedDict(
        parameter=torch.nn.Parameter(torch.zeros(2)),
        sparse=torch.eye(3).to_sparse(),
        compressed=torch.eye(3).to_sparse_csr(),
        meta=torch.empty(7, device="meta"),
        quantized=torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        size=torch.Size([1, 2]),
        device=torch.device("cpu"),
        layout=torch.strided,
        dtype=torch.bfloat16,
        array=np.ones((2, 3)),
        number=np.float32(3),
        state=np.random.default_rng(0).bit_generator.state,
        args=Namespace(lr=0.1, dtype=torch.float16),
        text=b"\xff",
        nested=[{"a": (torch.zeros(1), None)}],
    )
    contents = read(save(root, tmp_path / "x.pt", legacy=legacy))
    found = named(contents)
    assert found["parameter"].shape == (2,)
    assert found["sparse.indices"].shape == (2, 3)
    assert found["compressed.values"].shape == (3,)
    assert (found["meta"].shape, found["meta"].storage) == ((7,), "")
    assert found["quantized"].dtype == "qint8"
    assert found["nested.0.a.0"].shape == (1,)
    values = {value.name: (value.type, value.text) for value in contents.values}
    assert values["size"] == ("tuple", "[1, 2]")
    assert values["device"] == ("torch.device", "cpu")
    assert values["dtype"] == ("name", "torch.bfloat16")
    assert values["array"] == ("numpy array", "[2, 3]")
    assert values["args.lr"] == ("float", "0.1")
    assert values["text"] == ("bytes", "1 bytes")


@BOTH
@pytest.mark.parametrize("root", [torch.zeros(3), [torch.zeros(3)], {}, [], None, 7], ids=str)
def test_any_root_is_read(tmp_path, legacy, root):
    contents = read(save(root, tmp_path / "x.pt", legacy=legacy))
    assert len(contents.tensors) + len(contents.values) == 1


def test_a_distributed_tensor_is_the_part_that_is_in_the_file(tmp_path):
    """As FSDP2 leaves them in a state dict, here of one process."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        file = save({"w": torch.nn.Parameter(sharded)}, tmp_path / "x.pt")
    finally:
        dist.destroy_process_group()
    tensor = named(read(file))["w"]
    assert (tensor.shape, tensor.dtype) == ((4, 2), "float32")
    assert tensor.storage


def test_a_packed_zip_is_read_too(tmp_path):
    pickled = pickle.dumps({"epoch": 3}, 2)
    file = torch_zip(tmp_path / "x.pt", pickled, method=zipfile.ZIP_DEFLATED)
    assert [value.text for value in read(file).values] == ["3"]


def test_neither_pytorch_nor_numpy_is_imported(tmp_path):
    save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    safetensors(tmp_path / "b.safetensors", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4)
    program = (
        "import sys; from pathlib import Path; from dlcalc.checkpoint.reader import read_checkpoint\n"
        "for name in ('a.pt', 'b.safetensors'): assert read_checkpoint(Path(name)).contents.tensors\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'pickle'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


# ---- hostile files of PyTorch


@BOTH
def test_hostile_calls_are_refused_by_name_and_not_run(tmp_path, legacy):
    victim = tmp_path / "ran"
    for name, call in hostile_calls(victim).items():
        file = save({"weight": torch.zeros(2), "extra": call}, tmp_path / "x.pt", legacy=legacy)
        said = problem(file).replace("_pickle.", "pickle.")
        assert said.startswith(f"refused: its pickle calls {REFUSED_FIRST.get(name, name)},")
    assert not victim.exists()


def test_pytorchs_own_loader_of_bytes_is_refused(tmp_path):
    """A storage pickled without torch.save would be loaded by a further, unrestricted torch.load."""
    file = tmp_path / "x.pt"
    file.write_bytes(pickle.dumps({"w": torch.zeros(2)}, 2))
    assert "its pickle calls torch.storage._load_from_bytes," in problem(file)
    nested = torch_zip(file, pickle.dumps(torch.zeros(2), 2))
    assert "its pickle calls torch.storage._load_from_bytes," in problem(nested)


@BOTH
def test_a_whole_module_is_refused_by_its_class(tmp_path, legacy):
    file = save(torch.nn.Linear(2, 2), tmp_path / "x.pt", legacy=legacy)
    assert "its pickle calls torch.nn.modules.linear.Linear," in problem(file)


V2 = b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage(key=b"0", numel=b"K\x04", kind=b"ctorch\nFloatStorage\n"):
    return b"(X\x07\x00\x00\x00storage" + kind + b"X\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"


HUGE = b"\x8a\x09" + (2**63).to_bytes(9, "little")


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (V2 + b"(" + storage() + b"K\x00K\x05\x85K\x01\x85tR.", "reaches beyond its storage of 16 B"),
        (V2 + b"(" + storage() + b"K\x01K\x04\x85K\x01\x85tR.", "reaches beyond its storage"),
        (V2 + b"(" + storage() + b"K\x00K\x02\x85" + HUGE + b"\x85tR.", "shape is none"),
        (V2 + b"(" + storage() + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85tR.", "offset or strides are none"),
        (V2 + b"(" + storage() + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85tR.", "shape is none"),
        (V2 + b"(" + storage() + b"K\x00X\x01\x00\x00\x00xK\x01\x85tR.", "shape is none"),
        (V2 + b"(" + storage() + b"K\x00K\x01\x85)tR.", "offset or strides are none"),
        (V2 + b"(K\x01K\x00))tR.", "has no storage"),
        (V2 + b")R.", "too few arguments"),
        (storage(kind=b"ctorch\nfloat32\n") + b".", "no storage"),
        (storage(numel=HUGE) + b".", "no storage"),
        (b"K\x07Q.", "no storage"),
        (b"(" + storage() + b"0" + storage(numel=b"K\x05") + b"t.", "two sizes of one storage"),
        (
            b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n(" + b"J\xff\xff\xff\x7f" * 4 + b"ttR.",
            "2^62",
        ),
        (b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00NN)tR.", "wrong arguments"),
        (b"ctorch\nSize\n(K\x01tR.", "shape is none"),
    ],
)
def test_impossible_tensors_are_damaged(tmp_path, pickled, said):
    assert said in problem(torch_zip(tmp_path / "x.pt", b"\x80\x02" + pickled, {"0": 16}))


def test_a_storage_must_be_there_and_whole(tmp_path):
    pickled = b"\x80\x02" + V2 + b"(" + storage() + b"K\x00K\x04\x85K\x01\x85\x89NtR."
    assert len(read(torch_zip(tmp_path / "x.pt", pickled, {"0": 16})).tensors) == 1
    assert problem(torch_zip(tmp_path / "x.pt", pickled, {"1": 16})) == "damaged: the storage data/0 is missing"
    assert "data/0 has 15 of its 16 bytes" in problem(torch_zip(tmp_path / "x.pt", pickled, {"0": 15}))


# ---- damaged files of PyTorch


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_file_says_so(tmp_path, legacy, share):
    file = save(training_state(), tmp_path / "x.pt", legacy=legacy)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    said = problem(file)
    assert said == "the file is empty" if share == 0 else said.startswith(("truncated: ", "damaged: "))


@BOTH
def test_every_cut_is_noticed(tmp_path, legacy):
    file = save({"w": torch.zeros(3), "epoch": 3}, tmp_path / "x.pt", legacy=legacy)
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        problem(file)


@BOTH
@given(data=st.data())
def test_any_damage_is_one_line(tmp_path_factory, legacy, data):
    sample = io.BytesIO()
    torch.save({"w": torch.zeros(3), "n": {"epoch": 3}}, sample, _use_new_zipfile_serialization=not legacy)
    damaged = bytearray(sample.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    file = tmp_path_factory.getbasetemp() / f"damaged-{legacy}.pt"
    file.write_bytes(damaged)
    try:
        read_checkpoint(file)
    except CheckpointError as error:
        said = str(error)
    else:
        said = "it was read"
    assert said.isprintable()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n", "not a checkpoint: neither a file of torch.save nor safetensors"),
        (b"hello, world\n" * 100, "not a checkpoint: neither a file of torch.save nor safetensors"),
        (bytes(1000), "not a checkpoint: neither a file of torch.save nor safetensors"),
        (pickle.dumps({"a": 1}), "a pickle, but not of torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7), "damaged: its version is not 1001"),
        (b"PK\x03\x04" + bytes(100), "truncated: it starts as a zip file and has no whole directory at its end"),
        (b"x" * 257 + b"ustar\x0000", "a tar file of PyTorch before 0.2"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, content, said):
    assert problem(written(tmp_path, content)).startswith(said)


def test_zips_of_something_else(tmp_path):
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert problem(file) == "a zip file without data.pkl; torch.save did not write it"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02N.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    assert problem(file).startswith("a TorchScript program")
    torch_zip(file, b"\x80\x02N.", method=zipfile.ZIP_BZIP2)
    assert "packed by method 12" in problem(file)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_directory, "MAX_INFLATED_BYTES", 1 << 20)
    file = torch_zip(tmp_path / "x.pt", b"\x80\x02(" + b"N" * (4 << 20), method=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10_000
    assert problem(file) == "it unpacks to more than 1 MiB, which no checkpoint's pickle needs"


def test_a_zip_of_endless_members_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_directory, "MAX_MEMBERS", 5)
    file = torch_zip(tmp_path / "x.pt", b"\x80\x02N.", dict.fromkeys("abcdef", 1))
    assert problem(file) == "it has 7 members, which no checkpoint needs"


def test_zip64_is_read_as_zipfile_writes_it(tmp_path):
    file = tmp_path / "x.pt"
    pickled = b"\x80\x02" + V2 + b"(" + storage() + b"K\x00K\x04\x85K\x01\x85\x89NtR."
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("a/data.pkl", pickled), ("a/data/0", bytes(16))):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert [tensor.shape for tensor in read(file).tensors] == [(4,)]


# ---- safetensors

GOOD = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
    "c": {"dtype": "F32", "shape": [0, 4], "data_offsets": [20, 20]},
}


def changed(**entry: object) -> dict:
    return GOOD | {"a": GOOD["a"] | entry}


def test_what_safetensors_writes_is_read_as_it_reads_it(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    root = {name: torch.empty(3, 5, dtype=getattr(torch, name)) for name in (*FLOATS[:-1], *INTEGERS, "complex64")}
    safetensors_torch.save_file(root, tmp_path / "x.safetensors", metadata={"format": "pt"})
    contents = read(tmp_path / "x.safetensors")
    found = named(contents)
    assert found.keys() == root.keys()
    for name, tensor in root.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), name)
        assert found[name].size_bytes == tensor.numel() * tensor.element_size()
    assert [(value.name, value.text) for value in contents.values] == [("__metadata__.format", "pt")]


def test_a_good_header_is_read(tmp_path):
    found = named(read(safetensors(tmp_path / "x.safetensors", GOOD, 20)))
    assert [(tensor.shape, tensor.dtype) for tensor in found.values()] == [
        ((2, 3), "bfloat16"),
        ((), "int64"),
        ((0, 4), "float32"),
    ]
    assert read(safetensors(tmp_path / "x.safetensors", b"{}     ", 0)).tensors == ()


def test_packed_dtypes_take_less_than_a_byte(tmp_path):
    header = {"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}
    (tensor,) = read(safetensors(tmp_path / "x.safetensors", header, 4)).tensors
    assert (tensor.parameters, tensor.size_bytes) == (8, 4)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (changed(dtype="F99"), "a has an unknown dtype 'F99'"),
        (changed(dtype=7), "a has not dtype, shape and data_offsets"),
        (changed(shape=[2, -3]), "the shape of a is none"),
        (changed(shape=[2.0, 3]), "the shape of a is none"),
        (changed(shape=[True, 3]), "the shape of a is none"),
        (changed(shape=[1] * 65), "the shape of a is none"),
        (changed(shape=[2**62] * 60), "a takes"),
        (changed(shape="23"), "a has not dtype, shape and data_offsets"),
        (changed(data_offsets=[0, 11]), "a takes 12 bytes, and its header says 11"),
        (changed(data_offsets=[12, 0]), "a takes 12 bytes"),
        (changed(data_offsets=[-12, 0]), "a takes 12 bytes"),
        (changed(data_offsets=[0]), "a has not dtype, shape and data_offsets"),
        (GOOD | {"d": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, "the data of d overlaps the one before"),
        (GOOD | {"b": {"dtype": "I64", "shape": [], "data_offsets": [13, 21]}}, "b starts 1 bytes after"),
        (GOOD | {"__metadata__": 7}, "__metadata__ in its header is no mapping"),
        (GOOD | {"x" * 5000: GOOD["c"]}, "a name of 5,000 characters"),
        (GOOD | {"d": None}, "d has not dtype, shape and data_offsets"),
        ([], "its header is no JSON object"),
        (b"{", "its header is not JSON"),
        (b'{"a": 1, "a": 1}', "its header is not JSON: a key appears twice"),
        (b"\xff\xfe{}", "its header is not JSON"),
        (b'{"a":' + b"[" * 100_000, "its header is not JSON"),
        (b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 1]}}', "its header is not JSON"),
    ],
)
def test_an_impossible_header_is_told(tmp_path, header, said):
    assert said in problem(safetensors(tmp_path / "x.safetensors", header, 20))


def test_a_header_longer_than_the_file_is_truncated(tmp_path):
    file = written(tmp_path, struct.pack("<Q", 1000) + b"{}", "x.safetensors")
    assert problem(file) == "truncated: its header has 1,000 bytes, and the file only 10"
    file = written(tmp_path, struct.pack("<Q", 2**63) + b"{}", "x.safetensors")
    assert "9,223,372,036,854,775,808 bytes; 100,000,000 are the most" in problem(file)
    assert "too short" in problem(written(tmp_path, b"\x08", "x.safetensors"))


def test_data_must_end_with_the_file(tmp_path):
    assert problem(safetensors(tmp_path / "x.safetensors", GOOD, 19)) == "truncated: it has 19 of 20 bytes of data"
    assert problem(safetensors(tmp_path / "x.safetensors", GOOD, 21)) == "damaged: 1 bytes follow its last tensor"


def test_a_header_of_endless_lists_is_not_parsed(tmp_path):
    header = b'{"a":[' + b"[]," * 6_000_001 + b"[]]}"
    assert (
        problem(safetensors(tmp_path / "x.safetensors", header, 0)) == "its header holds more than a checkpoint needs"
    )


def test_names_cannot_play_tricks_on_a_terminal(tmp_path):
    header = json.dumps({"\x1b[2J\ud800": GOOD["a"] | {"dtype": "F99"}}).encode()
    assert "\\x1b[2J\\ud800 has an unknown dtype" in problem(safetensors(tmp_path / "x.safetensors", header, 12))


@given(data=st.data())
def test_any_damaged_header_is_one_line(tmp_path_factory, data):
    text = bytearray(json.dumps(GOOD).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    file = safetensors(tmp_path_factory.getbasetemp() / "damaged.safetensors", bytes(text), 20)
    try:
        read_checkpoint(file)
    except CheckpointError as error:
        said = str(error)
    else:
        said = "it was read"
    assert said.isprintable()


# ---- files that are none


def test_what_is_no_file_is_said_to_be_none(tmp_path):
    assert problem(tmp_path / "nowhere.pt") == "no such file or folder"
    os.mkfifo(tmp_path / "pipe.pt")
    assert problem(tmp_path / "pipe.pt") == "is neither a file nor a folder"
    file = written(tmp_path, b"x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read: " in problem(tmp_path / "loop")
    assert "cannot be read: " in problem(file / "below")


def test_what_has_no_permission_is_said_so(tmp_path):
    file = written(tmp_path, b"x")
    file.chmod(0)
    if not os.access(file, os.R_OK):
        assert problem(file) == "cannot be read: permission denied"
