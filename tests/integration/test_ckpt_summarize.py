"""ckpt-summarize as its users meet it: files in; a tree, a JSON document or one line of error out."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from dlcalc.ckpt_summarize import main
from dlcalc.utils.units import GIB, MIB
from tests.checkpoint_samples import Calls, hostile_calls, safetensors, save, save_distributed, training_state

torch = pytest.importorskip("torch")

HUGE_BYTES = 20 * int(GIB)


def run(*arguments: object, exit_code: int = 0, **environment: str):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment, catch_exceptions=False)
    assert done.exit_code == exit_code, done.stderr
    return done


def answer(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json").stdout)


def refused(*arguments: object) -> str:
    done = run(*arguments, exit_code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    return done.stderr


@pytest.fixture(scope="module")
def state():
    return training_state()


@pytest.fixture
def file(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(state, tmp_path / "x.ckpt")
    return "x.ckpt"


def transformer(n_layers: int = 4) -> dict:
    """Names and shapes of a small model, as Hugging Face calls them."""
    weights = {"model.embed_tokens.weight": torch.zeros(32, 8, dtype=torch.bfloat16)}
    for layer in range(n_layers):
        for name in "qkvo":
            weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = torch.zeros(8, 8, dtype=torch.bfloat16)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = torch.zeros(8)
    return weights


# ---- what is printed


def test_a_tree_of_groups_that_adds_up(tmp_path):
    """4 layers of 4 x 64 + 8, and an embedding of 32 x 8."""
    text = run(save(transformer(), tmp_path / "x.pt")).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["model", "21", "1,312", "1.31", "k", "2,688", "2.62", "KiB"] in lines
    assert ["in", "bfloat16", "17", "1,280", "1.28", "k", "2,560", "2.50", "KiB"] in lines
    assert ["├──", "embed_tokens.weight", "1", "256", "512", "B", "bfloat16", "[32,", "8]"] in lines
    assert ["└──", "0-3", "20", "1.06", "k", "2.12", "KiB", "bfloat16", "+1"] in lines
    assert ["│", "├──", "q_proj.weight", "4", "256", "512", "B", "bfloat16", "4", "x", "[8,", "8]"] in lines
    assert ["└──", "input_layernorm.weight", "4", "32", "128", "B", "float32", "4", "x", "[8]"] in lines


def test_totals_ties_and_the_optimizer(file):
    text = run(file).stdout
    assert text.startswith("x.ckpt: PyTorch (zip), 1 file of ")
    assert "first moment (Adam)" in text
    assert "Optimizer state, by the names of its tensors: Adam or AdamW." in text
    assert "Tied, the same memory and counted once:\n  model.embed.weight = model.head.weight\n" in text
    assert "random state" in text
    assert "  epoch = 3\n" in text


def test_json_has_everything(file, state):
    """A model of 16 x 4 tied weights and a norm of 4 + 4; two moments of each; a step count per parameter."""
    found = answer(file)
    assert {"path": "x.ckpt", "format": "PyTorch (zip)", "files": 1}.items() <= found.items()
    assert found["file_bytes"] == os.stat(file).st_size
    assert found["model_parameters"] == 72
    assert found["roles"]["model"] == {"tensors": 4, "parameters": 72, "bytes": 288}
    assert found["roles"]["optimizer"] == {"tensors": 9, "parameters": 2 * 72 + 3, "bytes": 4 * 147}
    assert found["optimizer_state"]["second moment (Adam)"]["parameters"] == 72
    assert found["optimizer"] == "Adam or AdamW"
    assert found["tied"] == [["model.embed.weight", "model.head.weight"]]
    assert sum(role["bytes"] for role in found["roles"].values()) == found["bytes"]
    assert sum(dtype["bytes"] for dtype in found["dtypes"].values()) == found["bytes"]
    by_name = {tensor["name"]: tensor for tensor in found["tensor_list"]}
    for name, tensor in state["model"].items():
        assert by_name[f"model.{name}"]["shape"] == list(tensor.shape)
        assert by_name[f"model.{name}"]["dtype"] == "float32"
    assert by_name["model.head.weight"]["tied_to"] == "model.embed.weight"
    assert {"name": "epoch", "type": "int", "text": "3"} in found["values"]


def test_depth_cuts_the_tree_and_leaves_the_sums(file):
    whole, top = run(file).stdout, run(file, "--depth", 1).stdout
    assert "embed.weight" in whole.split("Optimizer state")[0]
    assert "embed.weight" not in top.split("Optimizer state")[0]
    assert whole.splitlines()[2] == top.splitlines()[2]
    groups = answer(file, "--depth", 1)["groups"]["model"]
    assert groups["groups"][0]["name"] == "model"
    assert "groups" not in groups["groups"][0]
    deeper = answer(file, "--depth", 2)["groups"]["model"]["groups"][0]["groups"]
    assert [group["name"] for group in deeper] == ["embed", "norm", "head"]


def test_filter_shows_what_matches(file):
    assert [tensor["name"] for tensor in answer(file, "--filter", r"^model\.norm")["tensor_list"]] == [
        "model.norm.weight",
        "model.norm.bias",
    ]
    text = run(file, "--filter", "exp_avg$").stdout
    assert "only names in which exp_avg$ is found" in text
    assert "embed" not in text
    assert "no tensors of such a name" in run(file, "--filter", "nothing").stdout
    assert "is no regular expression" in refused(file, "--filter", "(")


def test_diff_says_what_differs(file, state):
    model = {name: tensor.bfloat16() if "norm" in name else tensor for name, tensor in state["model"].items()}
    save(state | {"model": model, "ema": torch.zeros(2)}, "y.ckpt")
    assert "The same names, shapes and dtypes: 14 tensors." in run(file, "--diff", file).stdout
    text = run(file, "--diff", "y.ckpt").stdout
    assert "+ ema  float32 [2]\n" in text
    assert "~ model.norm.weight  float32 [4] -> bfloat16 [4]\n" in text
    found = answer(file, "--diff", "y.ckpt")
    assert (found["same"], found["tensors_alike"]) == (False, 12)
    assert found["only_here"] == []
    assert [tensor["name"] for tensor in found["only_there"]] == ["ema"]
    assert found["changed"][0] == {"name": "model.norm.weight", "shape": [[4], [4]], "dtype": ["float32", "bfloat16"]}
    assert answer("y.ckpt", "--diff", file, "--filter", "ema")["only_here"][0]["name"] == "ema"
    assert answer(file, "--diff", file)["same"] is True


def test_formats_may_be_compared(tmp_path, state):
    from safetensors.torch import save_file

    model = {name: tensor.clone() for name, tensor in state["model"].items()}
    save_file(model, tmp_path / "x.safetensors")
    save(model, tmp_path / "x.pt")
    save(model, tmp_path / "old.pt", legacy=True)
    save_distributed(model, tmp_path / "dcp")
    for other in ("x.pt", "old.pt", "dcp"):
        assert answer(tmp_path / "x.safetensors", "--diff", tmp_path / other)["same"] is True


def test_no_colour_and_no_boxes_but_plain_text_in_a_pipe(file):
    assert "\x1b" not in run(file).stdout
    narrow = run(file, COLUMNS="60").stdout
    assert max(map(len, narrow.split("Optimizer state")[0].splitlines()[1:])) <= 62


def test_long_lists_are_cut_short_and_still_add_up(tmp_path):
    shapes = {f"{n}.w": torch.zeros(n + 1) for n in range(40)}
    text = run(save(shapes, tmp_path / "x.pt")).stdout
    assert "(17 more)" in text
    assert len(text.splitlines()) < 50
    assert len(answer(tmp_path / "x.pt")["tensor_list"]) == 40


def test_names_cannot_play_tricks_on_the_terminal(tmp_path):
    save({"\x1b[2J\nevil\u202e": torch.zeros(2), "a\ud800": 1}, tmp_path / "x.pt", protocol=4)
    text = run(tmp_path / "x.pt").stdout
    assert "\\x1b[2J\\nevil\\u202e" in text
    assert "\x1b" not in text
    assert answer(tmp_path / "x.pt")["tensor_list"][0]["name"].startswith("\x1b[2J")


# ---- 20 GB


def huge_safetensors(folder):
    header = {"w": {"dtype": "BF16", "shape": [HUGE_BYTES // 2**14, 2**13], "data_offsets": [0, HUGE_BYTES]}}
    return safetensors(folder / "x.safetensors", header, HUGE_BYTES)


def huge_zip(folder):
    """Sparse, as PyTorch writes a file whose data is to follow; zip64 throughout."""
    root = {f"layers.{n}.w": torch.empty(2**15, 2**14, dtype=torch.bfloat16) for n in range(20)}
    with torch.serialization.skip_data():
        return save(root, folder / "x.pt")


def huge_legacy(folder):
    numel = HUGE_BYTES // 2
    storage = b"(X\x07\x00\x00\x00storagectorch\nBFloat16Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += b"\x8a\x08" + struct.pack("<q", numel) + b"NtQ"
    shape = b"\x8a\x08" + struct.pack("<q", numel) + b"\x85"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"K\x01\x85\x89NtR"
    file = folder / "x.pt"
    with file.open("wb") as stream:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            stream.write(pickle.dumps(part, 2))
        stream.write(
            b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s." + pickle.dumps(["0"], 2) + struct.pack("<q", numel)
        )
        stream.truncate(stream.tell() + HUGE_BYTES)
    return file


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
"""
"""Runs a command and says its peak memory. What a process is forked from counts as its own, so this must be small."""


@pytest.mark.parametrize("make", [huge_safetensors, huge_zip, huge_legacy])
def test_twenty_gigabytes_take_neither_time_nor_memory(tmp_path, make):
    file = make(tmp_path)
    assert file.stat().st_size >= HUGE_BYTES
    assert file.stat().st_blocks * 512 < MIB
    start = time.perf_counter()
    command = [sys.executable, "-m", "dlcalc.ckpt_summarize", str(file), "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    took_s = time.perf_counter() - start
    assert json.loads(done.stdout)["bytes"] == HUGE_BYTES
    assert took_s < 2
    assert int(done.stderr) < 500 * MIB


# ---- what bad input gets


def test_hostile_files_are_refused_in_one_line_and_not_run(tmp_path):
    victim = tmp_path / "ran"
    call = Calls(*next(iter(hostile_calls(victim).values())).__reduce__()[:1], f"touch {victim}")
    save({"w": torch.zeros(2), "x": call}, tmp_path / "x.pt")
    save({"w": torch.zeros(2)}, tmp_path / "good.pt")
    said = refused(tmp_path / "x.pt")
    assert said.startswith(f"error: {tmp_path}/x.pt: refused: its pickle calls posix.system, which is not on the list ")
    assert refused(tmp_path / "good.pt", "--diff", tmp_path / "x.pt") == said
    folder = save_distributed({"w": torch.zeros(2)}, tmp_path / "dcp")
    (folder / ".metadata").write_bytes(pickle.dumps(call))
    assert "refused: its pickle calls posix.system," in refused(folder)
    assert not victim.exists()


def test_no_option_makes_it_run_a_pickle():
    assert "unsafe" not in run("--help").stdout
    assert "No such option" in run("x.pt", "--unsafe", exit_code=2).stderr


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin", "x.ckpt", "x.safetensors", ".metadata", "x.index.json"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"garbage", bytes(64), b"\xff" * 64, b"{" * 99])
def test_broken_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path) in refused(tmp_path / name)


@pytest.mark.parametrize("path", ["nowhere", "", "x" * 5000, "/dev/null", "/"])
def test_paths_of_no_checkpoint_are_one_line(path):
    refused(path)


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("a", "--depth", "0"), ("a", "--depth", "x"), ("a", "--what")])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments, exit_code=2).stdout == ""
