"""What is written is what is read back, by whatever reader, and nothing half-written is mistaken for a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc import __version__
from dlcalc.errors import ResultError, UnknownNameError
from dlcalc.hardware_registry import load_hardware
from dlcalc.results.files import INPUTS_NAME, MANIFEST_NAME, SUMMARY_NAME, shard_name
from dlcalc.results.manifest import ScenarioOrigin, StudyOrigin, read_manifest
from dlcalc.results.reader import open_result
from dlcalc.results.schema import BLOCK_COLUMNS, COLUMN_NAMES, COLUMNS, KNOBS, SCHEMA, WORDS
from dlcalc.results.shard import ShardWriter
from dlcalc.results.writer import open_study
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.utils.jsontext import to_json

NAMES = {
    "schedule": ("1f1b", "interleaved"),
    "recompute": ("none", "selective", "full"),
    "cp_exchange": ("ring", "all_gather"),
    "split": ("even", "embedding_and_loss"),
}
SUMMARY = {"study": "a-study", "n_plans": 7}
SPACE = "study: a-study\nmodel: llama3-8b\n"


@pytest.fixture(scope="module")
def origin():
    recipe = Recipe(seq_len=8192, global_batch=128, precision="bf16", framework=load_framework("megatron"))
    scenarios = tuple(
        ScenarioOrigin(
            name=f"llama3-8b on {devices} h100, bf16",
            devices=devices,
            model=load_model("llama3-8b"),
            hardware=load_hardware("h100"),
            recipe=recipe,
            space={"ranges": {"tp": [1, 2, 4]}, "constraints": ["tp <= node"]},
        )
        for devices in (8, 16)
    )
    return StudyOrigin(study="a-study", space_text=SPACE, settings={"keep": "feasible"}, scenarios=scenarios)


def block_of(n_rows, seed=0, first=0):
    """Plans with values of no meaning but of the right kind."""
    rng = np.random.default_rng(seed)
    made = {}
    for column in BLOCK_COLUMNS:
        if column.kind == "index":
            made[column.name] = np.arange(first, first + n_rows)
        elif column.kind == "word":
            made[column.name] = rng.integers(0, len(NAMES[column.name]), n_rows).astype(np.int8)
        elif column.kind == "switch":
            made[column.name] = rng.random(n_rows) < 0.5
        elif column.kind == "whole":
            made[column.name] = rng.integers(-1, 1024, n_rows).astype(np.float64)  # as plans hold them
        else:
            made[column.name] = rng.random(n_rows) * 1e11
    return made


def write_shard(study, scenario, shard, block, **options):
    header = study.header(scenario, NAMES)
    with ShardWriter(study.directory, header, shard, **options) as rows:
        rows.write(block)
        n_rows = len(block["plan_index"])
        rows.describe(start=0, stop=n_rows, n_plans=2 * n_rows, n_fit=n_rows, refused={"memory": n_rows})
    study.add(rows.record)


def write_study(directory, origin, n_rows=50, **options):
    """Two scenarios of two shards each."""
    with open_study(directory, origin, **options) as study:
        for scenario in (0, 1):
            for shard in (0, 1):
                write_shard(study, scenario, shard, block_of(n_rows, 10 * scenario + shard, first=shard * n_rows))
        study.finish(SUMMARY)
    return directory


@pytest.fixture
def study_dir(tmp_path, origin):
    return write_study(tmp_path / "a-study", origin)


def assert_same_rows(frame, block):
    """A data frame holds the rows of a block, words spelled out."""
    for column in BLOCK_COLUMNS:
        values = frame[column.name].to_numpy()
        expected = np.asarray(block[column.name])
        if column.kind == "word":
            expected = np.array(NAMES[column.name])[expected.astype(int)]
        assert list(values) == list(expected), column.name


# --- the schema -------------------------------------------------------------------------------------------------


def test_the_unit_of_a_quantity_is_in_its_name_and_in_its_field():
    suffixes = {"s": "_s", "B": "_bytes", "token/s": "_tokens_per_s_per_device"}
    for column in COLUMNS:
        field = SCHEMA.field(column.name)
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.metadata[b"description"]
        if column.kind == "quantity" and column.unit != "1":
            assert ("_" + column.name).endswith(suffixes[column.unit])


def test_columns_are_those_others_build_on():
    """Names in the interface of the issue; renaming one needs a new SCHEMA_VERSION."""
    assert COLUMN_NAMES[:9] == (
        "scenario", "model", "hardware", "devices", "precision", "framework", "seq_len", "global_batch", "plan_index",
    )  # fmt: skip
    assert set(KNOBS) == {
        "tp", "cp", "pp", "dp", "ep", "etp", "vpp", "schedule", "micro_batch", "recompute", "recompute_layers",
        "zero_stage", "dp_replicate", "sequence_parallel", "overlap_grad", "overlap_param", "overlap_tp", "overlap_ep",
        "cp_exchange", "offload_optimizer", "offload_layers", "split",
    }  # fmt: skip
    assert COLUMN_NAMES[-8:] == (
        "step_time_s", "step_time_low_s", "step_time_high_s",
        "mfu", "hfu", "tokens_per_s_per_device", "memory_bytes", "headroom_bytes",
    )  # fmt: skip


def test_every_knob_of_a_plan_has_its_column():
    from dlcalc.costmodel import plans

    assert set(plans.KNOBS) == set(KNOBS)
    assert set(plans.NAMES) == set(WORDS)


# --- reading back -----------------------------------------------------------------------------------------------


def test_pandas_reads_the_directory(study_dir):
    frame = pd.read_parquet(study_dir)

    assert tuple(frame.columns) == COLUMN_NAMES
    assert len(frame) == 200
    assert_same_rows(frame[frame.devices == 16].head(50), block_of(50, 10))
    assert set(frame.scenario) == {"llama3-8b on 8 h100, bf16", "llama3-8b on 16 h100, bf16"}


def test_pyarrow_reads_the_directory_as_a_dataset(study_dir):
    dataset = ds.dataset(study_dir)
    table = dataset.to_table(filter=ds.field("devices") == 8)

    assert dataset.schema.names == list(COLUMN_NAMES)
    assert_same_rows(table.slice(50).to_pandas(), block_of(50, 1, first=50))


def test_duckdb_reads_the_directory(study_dir):
    files = f"'{study_dir}/*.parquet'"
    rows = duckdb.sql(
        f"select devices, count(*), min(step_time_s) from {files} group by devices order by devices"
    ).fetchall()
    frame = duckdb.sql(f"select * from {files} where devices = 16 and plan_index < 50 order by plan_index").df()

    assert [row[:2] for row in rows] == [(8, 100), (16, 100)]
    assert rows[0][2] == min(block_of(50, seed)["step_time_s"].min() for seed in (0, 1))
    assert_same_rows(frame, block_of(50, 10))


def test_the_reader_gives_rows_of_a_scenario(study_dir):
    result = open_result(study_dir)
    rows = list(result.rows("llama3-8b on 16 h100, bf16", columns=["plan_index", "recompute", "tp", "devices"]))

    first = block_of(50, 10)
    assert len(rows) == 100
    assert [row["plan_index"] for row in rows] == list(range(100))
    assert rows[3] == {
        "plan_index": 3,
        "recompute": NAMES["recompute"][first["recompute"][3]],
        "tp": int(first["tp"][3]),
        "devices": 16,
    }
    assert sum(batch.num_rows for batch in result.batches()) == 200
    assert result.summary() == SUMMARY
    assert result.is_complete


@pytest.mark.parametrize(("by", "largest"), [("step_time_s", False), ("mfu", True), ("memory_bytes", False)])
def test_the_best_rows_are_those_a_sort_gives(study_dir, by, largest):
    scenario = "llama3-8b on 8 h100, bf16"
    frame = pd.read_parquet(study_dir)
    frame = frame[frame.scenario == scenario]
    expected = frame.sort_values(by, ascending=not largest).plan_index.head(7)

    best = open_result(study_dir).best(scenario, 7, by=by, largest=largest)

    assert [row["plan_index"] for row in best] == list(expected)
    assert tuple(best[0]) == COLUMN_NAMES


def test_equally_good_rows_come_in_the_order_of_the_space(tmp_path, origin):
    with open_study(tmp_path / "r", origin) as study:
        for shard in (1, 0):  # finished in any order
            block = block_of(90, shard, first=90 * shard)
            block["step_time_s"][:] = 1.0
            write_shard(study, 0, shard, block, row_group_rows=32)
        study.finish(SUMMARY)

    best = open_result(tmp_path / "r").best(origin.scenarios[0].name, 100)

    assert [row["plan_index"] for row in best] == list(range(100))


def test_a_result_reproduces_the_specs_that_made_it(study_dir, origin):
    result = open_result(study_dir)

    assert [result.origin(name) for name in result.scenarios] == list(origin.scenarios)
    assert result.settings() == {"keep": "feasible"}


def test_each_file_explains_itself(study_dir):
    metadata = pq.read_schema(study_dir / shard_name(1, 0)).metadata

    assert metadata[b"dlcalc.version"].decode() == __version__
    assert metadata[b"dlcalc.space"].decode() == SPACE
    scenario = json.loads(metadata[b"dlcalc.scenario"])
    assert scenario["model"]["n_layers"] == 32  # Llama 3 8B
    assert scenario["hardware"]["name"] == "h100"
    assert scenario["recipe"]["global_batch"] == 128


def test_the_manifest_has_a_line_for_each_shard(study_dir):
    lines = (study_dir / MANIFEST_NAME).read_text().splitlines()
    assert [json.loads(line.rstrip(","))["file"] for line in lines if line.startswith('  {"scenario"')] == [
        shard_name(scenario, shard) for scenario in (0, 1) for shard in (0, 1)
    ]


def test_odd_names_survive(tmp_path, origin):
    odd = origin.model_copy(update={"study": "étude: 70B/“x” [1]"})
    directory = write_study(tmp_path / "a=b [c] é*", odd)

    assert open_result(directory).manifest.study == "étude: 70B/“x” [1]"
    assert len(pd.read_parquet(directory)) == 200


def test_unknown_scenarios_and_columns_are_named(study_dir):
    result = open_result(study_dir)
    with pytest.raises(UnknownNameError, match="did you mean"):
        list(result.rows("llama3-8b on 8 h100, bf61"))
    with pytest.raises(UnknownNameError, match="did you mean step_time_s"):
        list(result.rows(columns=["step_time"]))


# --- writing ----------------------------------------------------------------------------------------------------

INT32 = st.integers(-(2**31), 2**31 - 1)
VALUES = {
    "index": st.integers(0, 2**62),
    "whole": INT32,
    "switch": st.booleans(),
    "quantity": st.floats(allow_nan=False),
}


@st.composite
def blocks(draw):
    n_rows = draw(st.integers(0, 9))
    made = {}
    for column in BLOCK_COLUMNS:
        values = st.integers(0, len(NAMES[column.name]) - 1) if column.kind == "word" else VALUES[column.kind]
        listed = draw(st.lists(values, min_size=n_rows, max_size=n_rows))
        dtypes = {"quantity": [float], "switch": [bool], "index": [np.int64], "whole": [np.int32, np.int64, float]}
        dtype = draw(st.sampled_from(dtypes.get(column.kind, [np.int8, np.int64, float])))
        made[column.name] = np.array(listed, dtype=dtype)
    return made


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(blocks(), max_size=4), row_group_rows=st.integers(1, 12))
def test_any_rows_come_back_however_they_are_cut(tmp_path_factory, origin, parts, row_group_rows):
    directory = tmp_path_factory.mktemp("rows")
    expected = {
        column.name: [value for part in parts for value in part[column.name].tolist()] for column in BLOCK_COLUMNS
    }
    with open_study(directory, origin) as study:
        with ShardWriter(directory, study.header(0, NAMES), 0, row_group_rows=row_group_rows) as rows:
            for part in parts:
                rows.write(part)
                for values in part.values():
                    values[:] = 0  # a caller may use its arrays again
            rows.describe(start=0, stop=1, n_plans=1, n_fit=1, refused={})
        study.add(rows.record)
        study.finish(SUMMARY)

    table = pa.Table.from_batches(open_result(directory).batches(), SCHEMA)
    for column in BLOCK_COLUMNS:
        values = expected[column.name]
        if column.kind == "word":
            values = [NAMES[column.name][int(code)] for code in values]
        assert table.column(column.name).to_pylist() == values, column.name


def test_writing_imports_no_pandas(tmp_path):
    """Which would take 0.2 s in every process that writes."""
    (tmp_path / "small.yaml").write_text(
        "{study: small, model: llama3-8b, hardware: h100, cluster: {devices: 8}, space: {micro_batch: 1}, "
        "recipe: {seq_len: 8192, global_batch: 128, precision: bf16, framework: megatron}}"
    )
    code = """
    import sys
    from pathlib import Path
    from dlcalc.workflows.search import run_search
    assert run_search(Path("small.yaml"), out="r", jobs=1)["n_fit"]
    assert "pyarrow.parquet" in sys.modules
    assert "pandas" not in sys.modules
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, check=True)


def test_columns_of_different_lengths_are_a_bug(tmp_path, origin):
    block = block_of(4) | {"tp": np.ones(3)}
    with (
        open_study(tmp_path / "r", origin) as study,
        pytest.raises(ValueError, match="equally long"),
        ShardWriter(study.directory, study.header(0, NAMES), 0) as rows,
    ):
        rows.write(block)
    assert not list((tmp_path / "r").glob("*.parquet"))
    assert not list((tmp_path / "r").glob(".*.partial"))


def test_a_code_without_a_word_is_a_bug(tmp_path, origin):
    block = block_of(4) | {"recompute": np.full(4, 3)}
    with (
        open_study(tmp_path / "r", origin) as study,
        pytest.raises(pa.ArrowException),
        ShardWriter(study.directory, study.header(0, NAMES), 0) as rows,
    ):
        rows.write(block)
    assert not list((tmp_path / "r").glob("*.parquet"))


# --- interrupted, resumed, replaced -----------------------------------------------------------------------------

WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import dlcalc.results.writer as writer
from test_results import NAMES, block_of, write_shard
from dlcalc.results.manifest import StudyOrigin

directory, when = Path(sys.argv[1]), sys.argv[2]
origin = StudyOrigin.model_validate_json(Path(sys.argv[3]).read_text())
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
writer._SAVE_EVERY_S = 0.0
with writer.open_study(directory, origin) as study:
    write_shard(study, 0, 0, block_of(50, 0))
    replace = Path.replace
    if when == "before the note":
        Path.replace = die
    elif when == "before the rename":
        Path.replace = lambda path, target: die() if target.suffix == ".parquet" else replace(path, target)
    elif when == "before the manifest":
        writer.write_text = die
    write_shard(study, 0, 1, block_of(50, 1, first=50))
    die()
"""


def run_python(script, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False, timeout=60, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("when", "n_finished"),
    [("before the note", 1), ("before the rename", 1), ("before the manifest", 2), ("after the manifest", 2)],
)
def test_a_killed_search_leaves_a_result_and_goes_on(tmp_path, origin, when, n_finished):
    directory = tmp_path / "killed"
    saved = tmp_path / "origin.json"
    saved.write_text(origin.model_dump_json())

    done = run_python(WRITE_AND_DIE, directory, when, saved)
    assert done.returncode == -9, done.stderr

    result = open_result(directory)
    assert not result.is_complete
    assert sum(1 for _ in result.rows()) == 50 * n_finished
    assert len(pd.read_parquet(directory)) in (50, 100)  # whole files only
    with pytest.raises(ResultError, match="not finished"):
        result.summary()

    with open_study(directory, origin) as study:  # the same study goes on without being told to
        assert set(study.finished) == {(0, shard) for shard in range(n_finished)}
        for shard in range(2):
            if (0, shard) not in study.finished:
                write_shard(study, 0, shard, block_of(50, shard, first=50 * shard))
        study.finish(SUMMARY)

    assert sorted(os.listdir(directory)) == [
        *(INPUTS_NAME, MANIFEST_NAME, SUMMARY_NAME, shard_name(0, 0), shard_name(0, 1))
    ]
    assert [row["plan_index"] for row in open_result(directory).rows()] == list(range(100))
    assert len(pd.read_parquet(directory)) == 100


def test_an_error_on_the_way_keeps_what_was_finished(tmp_path, origin):
    def interrupted():
        with open_study(tmp_path / "r", origin) as study:
            write_shard(study, 0, 0, block_of(50))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [shard.n_rows for shard in open_result(tmp_path / "r").shards()] == [50]


def test_a_complete_study_is_searched_again_unless_resumed(study_dir, origin):
    with open_study(study_dir, origin, resume=True) as study:
        assert len(study.finished) == 4
        assert study.finished[1, 0].refused == {"memory": 50}
        study.finish(SUMMARY)
    with open_study(study_dir, origin) as study:
        assert not study.finished
        write_shard(study, 0, 1, block_of(50, 1, first=50))
    result = open_result(study_dir)  # a search that stops here took nothing away
    assert not result.is_complete
    assert len(result.shards()) == 4
    result.verify()

    with open_study(study_dir, origin, overwrite=True) as study:
        assert not study.finished
    assert not list(study_dir.glob("*.parquet"))


def test_plans_whose_manifest_is_lost_are_not_replaced_unasked(study_dir, origin):
    manifest = (study_dir / MANIFEST_NAME).read_bytes()
    (study_dir / MANIFEST_NAME).unlink()
    with pytest.raises(ResultError, match=r"holds plans \(s000-000000.parquet\) but not what made them"):
        write_study(study_dir, origin)
    (study_dir / MANIFEST_NAME).write_bytes(manifest)
    open_result(study_dir).verify()


def test_another_machine_is_refused_with_the_field_that_differs(study_dir, origin):
    device = origin.scenarios[1].hardware.device
    more = device.model_copy(update={"hbm_gib": device.hbm_gib.model_copy(update={"value": 96.0})})
    hardware = origin.scenarios[1].hardware.model_copy(update={"device": more})
    scenarios = tuple(scenario.model_copy(update={"hardware": hardware}) for scenario in origin.scenarios)
    with (
        pytest.raises(ResultError) as refused,
        open_study(study_dir, origin.model_copy(update={"scenarios": scenarios}), resume=True),
    ):
        pass
    said = str(refused.value).splitlines()
    assert said[-1] == "  hardware: device.hbm_gib.value: 80.0 there, 96.0 now"  # once, though two scenarios have it
    assert "scenario llama3-8b on 8 h100, bf16: different hardware" in said[1]


def test_a_note_of_another_study_counts_for_nothing(study_dir, origin):
    """As after a kill in the middle of --overwrite: old files are there, and the manifest is the new study's."""
    note = study_dir / ".s000-000000.parquet.json"
    record = open_result(study_dir).shards()[0]
    for study_sha256, n_finished in (("of another", 0), (read_manifest(study_dir).study_sha256, 1)):
        write_study(study_dir, origin)
        text = (study_dir / MANIFEST_NAME).read_text()
        document = json.loads(text) | {"status": "running", "shards": []}
        (study_dir / MANIFEST_NAME).write_text(json.dumps(document))
        note.write_text(json.dumps({"study_sha256": study_sha256, "record": record.model_dump()}))
        assert len(open_result(study_dir).shards()) == n_finished
        with open_study(study_dir, origin) as study:
            assert len(study.finished) == n_finished
        assert len(list(study_dir.glob("*.parquet"))) == n_finished


def test_a_damaged_shard_is_searched_again(study_dir, origin):
    flip_byte(study_dir / shard_name(0, 1))
    (study_dir / shard_name(1, 0)).unlink()

    with open_study(study_dir, origin, resume=True) as study:
        assert set(study.finished) == {(0, 0), (1, 1)}


def test_another_study_is_refused_with_what_differs(study_dir, origin):
    scenario = origin.scenarios[1]
    other = origin.model_copy(
        update={
            "space_text": SPACE.replace("llama3-8b", "llama3-70b"),
            "settings": {"keep": "all"},
            "scenarios": (origin.scenarios[0], scenario.model_copy(update={"model": load_model("llama3-70b")})),
        }
    )
    before = sorted(os.listdir(study_dir))
    for flags in ({}, {"resume": True}):
        with pytest.raises(ResultError) as refused, open_study(study_dir, other, **flags):
            pass
        text = str(refused.value)
        assert "keep: feasible there, all now" in text
        assert "-model: llama3-8b" in text
        assert "+model: llama3-70b" in text
        assert "scenario llama3-8b on 16 h100, bf16: different model" in text
        assert "--overwrite" in text
    assert sorted(os.listdir(study_dir)) == before
    assert len(pd.read_parquet(study_dir)) == 200

    with open_study(study_dir, other, overwrite=True) as study:
        assert not study.finished
        write_shard(study, 0, 0, block_of(3))
        study.finish(SUMMARY)
    assert len(pd.read_parquet(study_dir)) == 3
    assert open_result(study_dir).settings() == {"keep": "all"}


def test_a_study_of_another_version_is_refused(study_dir, origin):
    newer = origin.model_copy(update={"dlcalc_version": "99.0"})
    with pytest.raises(ResultError, match=rf"dlcalc: {__version__} there, 99.0 now"), open_study(study_dir, newer):
        pass


def test_a_comment_in_the_space_file_makes_no_other_study(study_dir, origin):
    same = origin.model_copy(update={"space_text": "# a comment\n" + SPACE})
    with open_study(study_dir, same, resume=True) as study:
        assert len(study.finished) == 4


def test_files_of_others_are_never_touched(tmp_path, origin):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with (
            pytest.raises(ResultError, match=r"holds other files \(thesis.tex\)"),
            open_study(tmp_path, origin, overwrite=overwrite),
        ):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]

    study_dir = write_study(tmp_path / "study", origin)
    (study_dir / "notes.txt").write_text("mine")
    write_study(study_dir, origin, overwrite=True)
    assert (study_dir / "notes.txt").read_text() == "mine"


def test_dropping_a_scenario_deletes_its_files_alone(study_dir, origin):
    with open_study(study_dir, origin, resume=True) as study:
        study.drop(0)
        study.finish(SUMMARY)
    assert sorted(path.name for path in study_dir.glob("*.parquet")) == [shard_name(1, 0), shard_name(1, 1)]
    assert len(open_result(study_dir).manifest.shards) == 2


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from dlcalc.results.files import locked
Path(sys.argv[1]).mkdir()
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_searches_do_not_write_to_the_same_place(tmp_path, origin):
    directory = tmp_path / "r"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ResultError, match="another search is writing here"), open_study(directory, origin):
            pass
        other.stdin.close()
    write_study(directory, origin)


# --- a disk that does not do what it should ---------------------------------------------------------------------

WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from test_results import NAMES, block_of
from dlcalc.errors import ResultError
from dlcalc.results.manifest import StudyOrigin
from dlcalc.results.shard import ShardWriter
from dlcalc.results.writer import open_study

origin = StudyOrigin.model_validate_json(Path(sys.argv[2]).read_text())
try:
    with open_study(Path(sys.argv[1]), origin) as study:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with ShardWriter(study.directory, study.header(0, NAMES), 0, row_group_rows=1024) as rows:
            for seed in range(20):
                rows.write(block_of(1024, seed))
except ResultError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_is_said_in_one_line(tmp_path, origin):
    """What the system answers at a file size limit is what it answers on a full disk, but for the number."""
    saved = tmp_path / "origin.json"
    saved.write_text(origin.model_dump_json())

    done = run_python(WRITE_TOO_MUCH, tmp_path / "r", saved)

    assert done.stderr == ""
    assert "s000-000000.parquet: the file would exceed the largest size" in done.stdout
    assert done.stdout.count("\n") == 1
    assert sorted(os.listdir(tmp_path / "r")) == [INPUTS_NAME, MANIFEST_NAME]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_said_in_one_line(tmp_path, origin, monkeypatch):
    with open_study(tmp_path / "r", origin) as study:
        rows = ShardWriter(study.directory, study.header(0, NAMES), 0)
        monkeypatch.setattr(rows, "_partial", Path("/dev/full"))
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(ResultError, match=r"s000-000000\.parquet: the disk is full; free some space"), rows:
            rows.write(block_of(10))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_place_that_is_not_ours_is_said_in_one_line(tmp_path, study_dir, origin):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root:  # whom no mode stops
        os.seteuid(65534)
    try:
        with (
            pytest.raises(ResultError, match=r"cannot be written \(permission denied\)"),
            open_study(locked / "r", origin),
        ):
            pass
        if root:
            with pytest.raises(ResultError, match=r"cannot be read"):
                open_result(study_dir)
    finally:
        if root:
            os.seteuid(0)


def test_a_file_in_the_way_is_said_in_one_line(tmp_path, origin):
    (tmp_path / "r").write_text("")
    with pytest.raises(ResultError, match="a file is in the way"), open_study(tmp_path / "r", origin):
        pass
    with (
        pytest.raises(ResultError, match=r"r/s: cannot be written \(not a directory\)"),
        open_study(tmp_path / "r/s", origin),
    ):
        pass
    with pytest.raises(ResultError, match="r: a file"):
        open_result(tmp_path / "r")


# --- damaged and foreign ----------------------------------------------------------------------------------------


def flip_byte(path, share=0.3):
    flip_byte_at(path, int(path.stat().st_size * share))


def flip_byte_at(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_a_directory_that_is_no_result_is_refused(tmp_path):
    with pytest.raises(ResultError, match="no such result directory"):
        open_result(tmp_path / "nowhere")
    with pytest.raises(ResultError, match="not a result of dlcalc-search"):
        open_result(tmp_path)


def test_a_truncated_file_is_named(study_dir):
    path = study_dir / shard_name(0, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultError, match=r"s000-000001.parquet: damaged: [\d,]+ bytes instead of"):
        open_result(study_dir)


def test_a_missing_file_is_named(study_dir):
    (study_dir / shard_name(1, 1)).unlink()
    with pytest.raises(ResultError, match=r"s001-000001.parquet: missing"):
        open_result(study_dir)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_changed_byte_is_found_by_its_hash(study_dir, share):
    flip_byte(study_dir / shard_name(1, 0), share)
    with pytest.raises(ResultError, match=r"s001-000000.parquet: damaged"):
        open_result(study_dir).verify()


def test_a_changed_byte_of_a_page_is_found_on_reading(study_dir):
    path = study_dir / shard_name(1, 0)
    column = pq.ParquetFile(path).metadata.row_group(0).column(COLUMN_NAMES.index("memory_bytes"))
    flip_byte_at(path, column.data_page_offset + column.total_compressed_size - 1)  # the last byte of its only page
    result = open_result(study_dir)
    with pytest.raises(ResultError, match=r"s001-000000.parquet: damaged"):
        list(result.rows())


def test_a_broken_footer_is_named(study_dir):
    path = study_dir / shard_name(1, 0)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"\xff\xff\xff\x7f" + content[-4:])
    with pytest.raises(ResultError, match=r"s001-000000.parquet: damaged"):
        open_result(study_dir)


def test_a_footer_whose_text_is_none_is_named(study_dir):
    path = study_dir / shard_name(0, 0)
    table = pq.ParquetFile(path).read()
    metadata = {**table.schema.metadata, b"dlcalc.scenario": b"\xbd"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    document = json.loads((study_dir / MANIFEST_NAME).read_text())
    document["shards"][0]["n_bytes"] = path.stat().st_size
    (study_dir / MANIFEST_NAME).write_text(json.dumps(document))
    result = open_result(study_dir)
    with pytest.raises(ResultError, match=rf"{shard_name(0, 0)}: damaged: scenario: not text"):
        result.origin(result.scenarios[0])


def test_a_foreign_file_under_our_name_is_refused(study_dir):
    path = study_dir / shard_name(0, 0)
    pq.write_table(pa.table({"x": [1]}), path)
    document = json.loads((study_dir / MANIFEST_NAME).read_text())
    document["shards"][0]["n_bytes"] = path.stat().st_size
    (study_dir / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(
        ResultError, match=r"s000-000000.parquet: not a result of this version.*column scenario is missing"
    ):
        open_result(study_dir)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("", "not JSON"),
        ("[1]", "not the manifest of a dlcalc study"),
        (
            '{"format": "dlcalc-study", "schema_version": 99, "dlcalc_version": "9.9"}',
            "written by dlcalc 9.9 with schema 99",
        ),
        ('{"format": "dlcalc-study", "schema_version": 1}', "damaged: dlcalc_version: Field required"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_manifest_that_is_not_one_is_named(study_dir, change, problem):
    (study_dir / MANIFEST_NAME).write_text(change)
    with pytest.raises(ResultError, match=f"{MANIFEST_NAME}: .*{problem}"):
        open_result(study_dir)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("file", "../../elsewhere.parquet", "shards.0.file"),
        ("scenario", 7, "a shard belongs to no scenario"),
        ("shard", 1, "the same shard is listed twice"),
        ("n_rows", -1, "shards.0.n_rows"),
    ],
)
def test_a_manifest_that_says_nonsense_is_named(study_dir, field, value, problem):
    document = json.loads((study_dir / MANIFEST_NAME).read_text())
    document["shards"][0][field] = value
    (study_dir / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(ResultError, match=f"damaged: .*{problem}"):
        read_manifest(study_dir)


# --- JSON -------------------------------------------------------------------------------------------------------


def test_json_is_what_every_parser_reads():
    value = {
        "a": np.float64(1.5),
        "b": np.int64(3),
        "c": [np.bool_(True), float("nan")],
        "d": (float("inf"), None, "é"),
    }
    assert json.loads(to_json(value), parse_constant=pytest.fail) == {
        "a": 1.5, "b": 3, "c": [True, None], "d": [None, None, "é"],
    }  # fmt: skip
