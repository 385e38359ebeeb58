"""Whatever a file holds, every loader answers with a value or one clear error, in bounded time and memory.

Fabrics have a test of their own (tests/unit/test_topology_hostile.py), checkpoints too
(tests/unit/test_checkpoint_files.py). FUZZ=20 in the environment draws twenty times as many examples.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcalc.dlcalc_launch import main as launch
from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.results.check import check_result
from dlcalc.results.files import INPUTS_NAME, MANIFEST_NAME, SUMMARY_NAME
from dlcalc.results.reader import open_result
from dlcalc.search.run_file import RunFile
from dlcalc.search.study import scenarios_of
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.huggingface import load_huggingface_config
from dlcalc.specs.load import load_spec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.imports import open_any_run
from dlcalc.workflows.results import merge, query, show
from dlcalc.workflows.validation import run_validation
from tests.studies import searched

ROOT = Path(__file__).parents[2]
FUZZ = int(os.environ.get("FUZZ", "1"))
LONGEST_S = 20.0
"""Of one core: a million values of YAML take four; whatever else, milliseconds."""

SPACE = {
    "study": "small",
    "model": ["llama3-8b", "mixtral-8x7b"],
    "hardware": "h100",
    "cluster": {"devices": [8, 16], "node_devices": 8, "usd_per_device_hour": 2.0},
    "recipe": {
        "seq_len": 4096,
        "global_batch": 128,
        "precision": ["bf16"],
        "framework": "megatron",
        "token_budget": 1e12,
    },
    "space": {"tp": [1, 2], "micro_batch": [1, 2], "recompute": ["none", "full"], "zero_stage": 1, "split": ["even"]},
    "constraints": ["tp <= node", "pp * vpp <= 16"],
    "memory_headroom": 0.05,
    "keep": {"top": 10},
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
EXPERTS = CONFIG | {
    "model_type": "qwen3_moe",
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 128,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def shipped(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def read_space(file):
    space = load_spec(file, SpaceSpec)
    for scenario in scenarios_of(space, file.parent, HardwareRegistry()):
        assert scenario.n_plans > 0


def read_run(file):
    RunFile.read(file, HardwareRegistry()).resolve({}).estimate()


LOADERS = {
    "space": (read_space, "yaml", [SPACE]),
    "run": (read_run, "yaml", [shipped("configs/example.yaml"), shipped("examples/mixtral_8x7b.yaml")]),
    "hardware": (
        lambda file: HardwareRegistry().load(str(file)),
        "yaml",
        [shipped("configs/h100.yaml"), shipped("configs/p5.48xlarge.yaml")],
    ),
    "framework": (lambda file: load_framework(str(file)), "yaml", [shipped("configs/frameworks/deepspeed.yaml")]),
    "model": (lambda file: load_model(str(file)), "yaml", [shipped("configs/models/deepseek-v3.yaml")]),
    "config.json": (load_huggingface_config, "json", [CONFIG, EXPERTS]),
}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, 1e-308, float("inf"), float("nan"), -0.0])
    | st.sampled_from(
        ["", "full", "auto", "h100", "../../etc/passwd", "/dev/null", "~", ".", "a/b.yaml", "\x00", "1e9"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(data, path=()):
    """The path of every value in ``data``."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def damage(draw, document):
    """A good document in which a few values are another, gone, there twice, or under another name."""
    data = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        inner = [path for path in places(data) if path]
        if not inner:
            break
        *way, last = draw(st.sampled_from(inner))
        holder = data
        for part in way:
            holder = holder[part]
        match draw(st.sampled_from(["other", "other", "gone", "twice", "renamed"])):
            case "gone":
                del holder[last]
            case "twice" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case "renamed" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(last)
            case _:
                holder[last] = draw(anything)
    return data


@contextmanager
def soon():
    """Fail, rather than hang, when an answer does not come."""

    def late(number, _):
        pytest.fail(f"no answer ({signal.Signals(number).name})")

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, LONGEST_S), signal.SIGALRM: (signal.ITIMER_REAL, 6 * LONGEST_S)}
    before = {number: signal.signal(number, late) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


def is_told_well(read, file):
    """A value, or an error of ours that can be printed."""
    with soon():
        try:
            read(file)
        except DlcalcError as error:
            told, code = str(error), error.exit_code
        else:
            return True
    assert code in (2, 3)
    assert told
    assert len(told) < 20_000
    assert not {"\x1b", "\x00"} & set(told)
    return True


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of its own, in which nothing appears but what a test writes."""
    folder = tmp_path_factory.mktemp("hostile")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


# --- documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
@settings(max_examples=120 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_documents_that_are_a_little_wrong(place, kind, data):
    read, suffix, documents = LOADERS[kind]
    document = damage(data.draw, data.draw(st.sampled_from(documents)))
    file = place / f"{kind.replace('.', '_')}.{suffix}"
    file.write_text(json.dumps(document, indent=1), encoding="utf-8")  # which is YAML too
    try:
        assert is_told_well(read, file)
        assert os.listdir(place) == [file.name]
    finally:
        file.unlink()


BITS = (b"\t", b"&a *a", b"!!python/object:os.system ", b"<<: ", b"{", b"]", b"---\n", b"\xef\xbb\xbf", b"%YAML 9\n")


@pytest.mark.parametrize("kind", LOADERS)
@settings(max_examples=40 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_text_that_is_cut_joined_or_not_text(place, kind, data):
    read, suffix, documents = LOADERS[kind]
    content = yaml.safe_dump(documents[0]).encode() if suffix == "yaml" else json.dumps(documents[0]).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        bits = data.draw(st.binary(max_size=4) | st.sampled_from(BITS))
        content = content[:at] + bits + content[at + data.draw(st.integers(0, 20)) :]
    file = place / f"text.{suffix}"
    file.write_bytes(content)
    try:
        assert is_told_well(read, file)
    finally:
        file.unlink()


# --- configurations of trainers ---------------------------------------------------------------------------------

WRITTEN = {
    "megatron-lm": "train.sh",
    "megatron-bridge": "megatron_bridge.yaml",
    "torchtitan": "job.toml",
    "deepspeed": "ds_config.json",
}


JOB = """
[model]
name = "llama3"
flavor = "8B"

[training]
batch_size = 1
seq_len = 4096
mixed_precision_param = "bfloat16"
compile = true

[parallelism]
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
pipeline_parallel_degree = 1

[activation_checkpoint]
mode = "full"
"""


def read_trainer(target, file):
    told = {"hardware": "h100", "devices": 16, "model": "llama3-8b", "seq_len": 4096, "global_batch": 128}
    run = open_any_run(file, source=target, rank=None, scenario=None, hardware_dirs=(), **told)
    run.resolve({}).estimate()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What dlcalc-launch writes for every trainer whose configuration can be read: folder and text by trainer."""
    folder = tmp_path_factory.mktemp("trainers")
    result = searched(folder, "small", space="{cp: 1, micro_batch: 1}")
    for target, name in WRITTEN.items():
        done = CliRunner().invoke(
            launch, [str(result), "--target", target, "--nearest", "-o", str(folder / target)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        if target == "torchtitan":  # whose configuration is a program; this is one of its older form
            (folder / target / name).write_text(JOB)
        read_trainer(target, folder / target / name)  # as it was written, it is read
    return {target: folder / target for target in WRITTEN}


@pytest.mark.parametrize("target", WRITTEN)
@settings(max_examples=60 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_configurations_of_trainers(written, target, data):
    good = written[target] / WRITTEN[target]
    words = re.split(rb"(\s+|[=:,])", good.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(st.sampled_from([*words, *BITS, b"0", b"-1", b"1e400", b"9" * 30, b"$(", b"'", b"nan"]))
    file = good.with_name(f"damaged{good.suffix}")
    file.write_bytes(b"".join(words))
    names = set(os.listdir(good.parent))
    try:
        assert is_told_well(partial(read_trainer, target), file)
    finally:
        file.unlink()
    assert set(os.listdir(good.parent)) == names - {file.name}


# --- tables of runs ---------------------------------------------------------------------------------------------

HEADER = "source,case,model,gpus,gpu,nodes,seq_len,global_batch,micro_batch,tp,pp,dp,step_time_s,mfu_pct,oom,extras"
ROW = "me,a,llama3-8b,8,h100,1,4096,128,1,1,1,8,5.1,40,no,zero=1;recompute=none"
CELLS = (
    *("", "0", "-1", "1e308", "1e400", "nan", "inf", "yes", "h100", "llama3-8b", "1,024", '"', "=", ";", "\x00"),
    *("9" * 400, "tp=8;tp=9", "zero=99", "recompute=full:3", "vpp=0", "é" * 50, "a" * 5000),
)


@settings(max_examples=100 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_tables_of_runs(place, data):
    row = ROW.split(",")
    for _ in range(data.draw(st.integers(1, 4))):
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(CELLS) | st.text(max_size=6))
    header = HEADER if data.draw(st.integers(0, 4)) else data.draw(st.text(max_size=30))
    file = place / "runs.csv"
    file.write_text("\n".join([header, ",".join(row), ROW]), encoding="utf-8")
    try:
        assert is_told_well(lambda file: run_validation([file]), file)
    finally:
        file.unlink()


# --- results ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A study on disk, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("results")
    directory = searched(folder, "small", devices="8", keep=50)
    (folder / "small.yaml").unlink()
    return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


def read_result(directory):
    found = open_result(directory)
    for scenario in found.scenarios:
        found.origin(scenario)
        found.best(scenario, 3)
    assert sum(1 for _ in found.rows()) == sum(shard.n_rows for shard in found.shards())
    if found.is_complete:
        found.summary()


READERS = (
    read_result,
    check_result,
    show,
    lambda directory: query("SELECT count(*), sum(mfu), max(tp) FROM plans, scenarios", [directory]),
    lambda directory: merge([directory, directory], directory.parent / "merged", overwrite=True),
)


@settings(max_examples=60 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_results_with_bytes_flipped_cut_or_added(result, data):
    directory, files = result
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    match data.draw(st.sampled_from(["flip", "cut", "add", "zero", "swap"])):
        case "flip":
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content))) :]
        case "add":
            content += data.draw(st.binary(min_size=1, max_size=20))
        case "zero":
            at = data.draw(st.integers(0, len(content)))
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        case _:
            content = bytearray(files[data.draw(st.sampled_from(sorted(files)))])
    (directory / name).write_bytes(content)
    try:
        for read in READERS:
            assert is_told_well(read, directory)
        if content != files[name]:
            assert check_result(directory).faults or name in (MANIFEST_NAME, SUMMARY_NAME, INPUTS_NAME)
    finally:
        (directory / name).write_bytes(files[name])
    assert {path.name for path in directory.iterdir()} == files.keys()
    assert set(os.listdir(directory.parent)) <= {"small", "merged"}


@settings(max_examples=80 * FUZZ, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_manifests_that_say_something_else(result, data):
    directory, files = result
    document = damage(data.draw, json.loads(files[MANIFEST_NAME]))
    (directory / MANIFEST_NAME).write_text(json.dumps(document), encoding="utf-8")
    try:
        for read in READERS:
            assert is_told_well(read, directory)
    finally:
        (directory / MANIFEST_NAME).write_bytes(files[MANIFEST_NAME])
    assert set(os.listdir(directory.parent)) <= {"small", "merged"}


# --- bombs ------------------------------------------------------------------------------------------------------

MOST_BYTES = 1_200 * 2**20
"""Resident, of which the program itself takes 90."""
LARGE, ALLOWED = 100 * 2**20, 18 * 10**6
"""A file that is too large for anything, and one that is just read."""

READ_EACH = """
import json, os, resource, sys
from pathlib import Path
from tests.properties.test_hostile_inputs import LOADERS, is_told_well, run_validation
from dlcalc.results.check import check_result
from dlcalc.topology.sources.read import read_fabric

readers = {kind: read for kind, (read, _, _) in LOADERS.items()}
readers["runs"] = lambda file: run_validation([file])
readers["fabric"] = lambda file: read_fabric(str(file))
readers["result"] = lambda file: check_result(file.parent)
for kind, file in json.loads(sys.argv[1]):
    child = os.fork()  # so that each has memory of its own, and modules are imported once
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
        try:
            is_told_well(readers[kind], Path(file))
        except BaseException as error:
            print(repr(error)[:500], file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]), flush=True)
"""


def laughs():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


BOMBS = {
    "laughs": laughs,
    "deep": lambda: "[" * 10**6,
    "deep_json": lambda: '{"a":' * 10**6,
    "long_list": lambda: "study: [" + "1, " * (LARGE // 3) + "1]",
    "long_list_allowed": lambda: "study: [" + "1, " * (ALLOWED // 3) + "1]",
    "json_list_allowed": lambda: '{"model_type": [' + "{}, " * (ALLOWED // 4) + "1]}",
    "long_word": lambda: "study: " + "x" * LARGE,
    "long_word_allowed": lambda: "study: " + "x" * ALLOWED,
    "blank": lambda: "\0" * LARGE,
    "many_lines": lambda: "source,model,gpus\n" + "a,llama3-8b,8\n" * (LARGE // 14),
    "many_lines_allowed": lambda: "source,model,gpus\n" + "a,llama3-8b,8\n" * (ALLOWED * 2 // 14),
    "long_line_allowed": lambda: HEADER + "\n" + "1," * (ALLOWED * 2 // 2),
}
ANY = ("laughs", "long_list")
CASES = [
    *((kind, bomb) for kind in LOADERS for bomb in ANY),
    *(
        ("space", bomb)
        for bomb in ("deep", "deep_json", "long_list_allowed", "long_word", "long_word_allowed", "blank")
    ),
    *(("config.json", bomb) for bomb in ("deep_json", "json_list_allowed", "blank")),
    *(("runs", bomb) for bomb in ("many_lines", "many_lines_allowed", "long_line_allowed", "blank")),
    *(("fabric", bomb) for bomb in (*ANY, "long_list_allowed", "deep_json", "json_list_allowed", "blank")),
    *(("result", bomb) for bomb in ("deep_json", "long_list", "json_list_allowed", "blank")),
]
NAMES = {"config.json": "config.json", "runs": "runs.csv", "fabric": "fabric.json", "result": MANIFEST_NAME}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """How every reader ended on every bomb, in seconds and bytes."""
    folder = tmp_path_factory.mktemp("bombs")
    files = []
    for bomb, text in BOMBS.items():
        (folder / bomb).write_text(text())
    for number, (kind, bomb) in enumerate(CASES):
        at = folder / f"case{number}" / NAMES.get(kind, "bomb.yaml")
        at.parent.mkdir()
        os.link(folder / bomb, at)
        files.append([kind, str(at)])
    done = subprocess.run(
        [sys.executable, "-c", READ_EACH, json.dumps(files)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    written = {path.name for path in folder.glob("case*/*")}
    assert written <= {*NAMES.values(), "bomb.yaml"}
    for bomb in BOMBS:
        (folder / bomb).unlink()
    for _, file in files:
        os.unlink(file)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True)), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures the memory of forks")
@pytest.mark.parametrize(("kind", "bomb"), CASES, ids=[f"{kind}-{bomb}" for kind, bomb in CASES])
def test_bombs_are_answered_in_bounded_time_and_memory(answers, kind, bomb):
    measured, said = answers
    status, seconds, taken = measured[kind, bomb]
    print(f"{kind} {bomb}: {seconds:.2f} s, {taken / 2**20:.0f} MiB")
    assert status == 0, said
    assert seconds < LONGEST_S
    assert taken < MOST_BYTES


# --- names that no file system takes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["n" * 5000, "n" * 300 + ".yaml", "~nobody/x.yaml", "~nobody/x.json", "a\0b.yaml", "a\0b"]
)
@pytest.mark.parametrize("key", ["model", "hardware", "framework"])
def test_names_that_cannot_be_files(place, key, name):
    space = {**SPACE, "recipe": {**SPACE["recipe"]}}
    (space["recipe"] if key == "framework" else space)[key] = name
    (place / "names.yaml").write_text(json.dumps(space))
    with pytest.raises(DlcalcError):
        read_space(place / "names.yaml")
    (place / "names.yaml").unlink()
