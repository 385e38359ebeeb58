"""Studies in an object store: written, gone on with, and read, against a real S3 server."""

import json
import pickle
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import requests
from click.testing import CliRunner

from dlcalc import dlcalc_compare, dlcalc_launch, dlcalc_report, dlcalc_search, training_3d
from dlcalc.errors import ResultError
from dlcalc.results.reader import open_result
from dlcalc.results.storage import ObjectPath, location
from dlcalc.search import executors
from dlcalc.workflows.search import run_search
from tests.clusters import CREDENTIALS, s3_store
from tests.studies import FEW, SMALL

FABRIC = """
tier_gbit_per_s_per_node: [3200, 400]
switches:
  - switch: spine
    switches: [{switch: rack0, nodes: "r0n[0-1]"}, {switch: rack1, nodes: "r1n[0-1]"}]
"""


@pytest.fixture(scope="module", autouse=True)
def credentials():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def store(credentials):
    with s3_store() as store:
        yield store


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "WORTH_A_SHARD", 1 << 11)
    return space_file(tmp_path)


def space_file(folder: Path) -> Path:
    file = folder / "small.yaml"
    text = SMALL.format(study="small", model="llama3-8b", hardware="h100", devices="[16, 32]", space=FEW)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def searched(store, tmp_path_factory):
    """The address of a small study that was searched into the store."""
    file = space_file(tmp_path_factory.mktemp("space"))
    address = store.address("searched")
    run_search(file, out=address, jobs=1)
    return address


def run(door, *arguments: object):
    return CliRunner().invoke(door.main, [str(argument) for argument in arguments])


def test_a_store_holds_the_bytes_that_a_directory_would(store, space, tmp_path):
    found = run(dlcalc_search, space, "-o", store.address("two"), "--json", "--jobs", 1)
    assert found.exit_code == 0, found.output
    run_search(space, out=tmp_path / "here", jobs=1)
    there, here = store.objects("two"), {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}
    assert there.keys() == here.keys()
    shards = {name for name in here if name.endswith(".parquet")}
    assert len(shards) > 8
    assert all(there[name] == here[name] for name in shards | {"_manifest.json"})
    assert json.loads(found.stdout)["result"] == store.address("two")


def test_processes_write_to_a_store(store, space, monkeypatch):
    run_search(space, out=store.address("several"), jobs=2)
    run_search(space, out=store.address("one"), jobs=1)
    open_result(store.address("several")).verify()
    several, one = store.objects("several"), store.objects("one")
    assert {name: several[name] for name in one if name != "_summary.json"} == {
        name: one[name] for name in one if name != "_summary.json"
    }


def test_every_command_reads_from_a_store(searched, tmp_path):
    result = open_result(searched)
    rows = sorted(result.rows(result.scenarios[0]), key=lambda row: row["step_time_s"])
    plan = run(training_3d, searched, "--rank", 1, "--json")
    assert plan.exit_code == 0, plan.output
    assert json.loads(plan.stdout)["results"]["iteration_s"] == pytest.approx(rows[0]["step_time_s"])
    for door, told in (
        (dlcalc_compare, ()),
        (dlcalc_report, ()),
        (dlcalc_report, ("-o", tmp_path / "report.html")),
        (dlcalc_launch, ("--target", "megatron-lm", "-o", tmp_path / "launch")),
    ):
        said = run(door, searched, *told)
        assert said.exit_code == 0, said.output
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_pyarrow_reads_a_store_as_it_reads_a_directory(searched):
    dataset = ds.dataset(searched)
    assert dataset.count_rows() == sum(shard.n_rows for shard in open_result(searched).shards())


def test_what_is_finished_in_a_store_is_not_searched_again(store, space):
    address = store.address("again")
    run_search(space, out=address, jobs=1)
    client = store.client()
    client.delete_object(Bucket=store.bucket, Key="again/s001-000000.parquet")
    before = {one["Key"]: one["LastModified"] for one in client.list_objects_v2(Bucket=store.bucket)["Contents"]}
    whole = store.objects("two") if "two/_manifest.json" in before else None
    run_search(space, out=address, jobs=1, resume=True)
    after = {one["Key"]: one["LastModified"] for one in client.list_objects_v2(Bucket=store.bucket)["Contents"]}
    written = {key for key in after if key.startswith("again/s") and after[key] != before.get(key)}
    assert written == {"again/s001-000000.parquet"}
    open_result(address).verify()
    if whole:
        assert store.objects("again")["s001-000000.parquet"] == whole["s001-000000.parquet"]


def test_another_study_in_a_store_is_refused_and_replaced_when_told(store, space):
    address = store.address("other")
    run_search(space, out=address, jobs=1)
    space.write_text(space.read_text().replace("[16, 32]", "16"))
    with pytest.raises(ResultError, match="holds the result of another study"):
        run_search(space, out=address, jobs=1)
    run_search(space, out=address, jobs=1, overwrite=True)
    shards = {name for name in store.objects("other") if name.endswith(".parquet")}
    assert shards == {shard.file for shard in open_result(address).shards()}
    assert not any(name.startswith("s001") for name in shards)


def test_placed_plans_lie_in_a_store(store, space, tmp_path):
    (tmp_path / "fabric.yaml").write_text(FABRIC)
    address = store.address("placed")
    for _ in range(2):  # the second time the tables of the first are replaced
        run_search(space, out=address, jobs=1, topology=str(tmp_path / "fabric.yaml"))
    result = open_result(address)
    result.verify()
    assert result.placed_plans()
    assert {"_placed/plans.parquet", "_placed/placements.parquet"} <= store.objects("placed").keys()


def test_a_store_that_goes_away_ends_the_search_and_resuming_finishes_it(store, space, tmp_path):
    address = store.address("gone")

    def progress(done: int, total: int, what: str = "") -> None:
        if done and not stopped:
            store.stop()
            stopped.append(done)

    stopped: list[int] = []
    try:
        with pytest.raises(ResultError, match=r"the store does not answer .* run again with --resume"):
            run_search(space, out=address, jobs=1, progress=progress)
    finally:
        store.start()
    assert stopped
    run_search(space, out=address, jobs=1, resume=True)
    run_search(space, out=tmp_path / "here", jobs=1)
    there = store.objects("gone")
    for file in (tmp_path / "here").glob("*.parquet"):
        assert there[file.name] == file.read_bytes()


@pytest.mark.parametrize("door", [dlcalc_search, training_3d, dlcalc_compare, dlcalc_report, dlcalc_launch])
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://nobody/x?endpoint_override={endpoint}", "no bucket 'nobody'"),
        ("s3://studies/x?endpoint_overide={endpoint}", "Unexpected query parameter in S3 URI: 'endpoint_overide'"),
        ("s3://key:secret@studies/x", "credentials do not belong in an address"),
        ("s3://", "names no bucket"),
        ("ftp://host/x", "no store is known by ftp://"),
    ],
)
def test_a_mistaken_address_is_one_line(store, space, door, address, says):
    address = address.format(endpoint=store.endpoint)
    told = {dlcalc_search: (space, "-o", address), dlcalc_launch: (address, "--target", "megatron-lm")}
    said = run(door, *told.get(door, (address,)))
    assert said.exit_code == 2, said.output
    assert says in said.stderr
    assert said.stderr.count("\n") == 1
    assert "secret" not in said.stderr.replace("AWS_SECRET", "")


def test_a_prefix_without_a_result_is_said_so(store):
    said = run(training_3d, store.address("nothing"), "--rank", 1)
    assert said.exit_code == 2
    assert "not a result of dlcalc-search" in said.stderr


def test_an_endpoint_that_does_not_answer_is_one_line(space):
    said = run(dlcalc_search, space, "-o", "s3://studies/x?endpoint_override=http://127.0.0.1:1")
    assert said.exit_code == 2
    assert "the store does not answer" in said.stderr
    assert said.stderr.count("\n") == 1


def test_credentials_that_the_store_refuses_are_one_line(store, space):
    requests.post(f"{store.endpoint}/moto-api/reset-auth", data="0", timeout=30)  # from now on it looks at them
    try:
        said = run(dlcalc_search, space, "-o", store.address("secret"))
    finally:
        requests.post(f"{store.endpoint}/moto-api/reset-auth", data="inf", timeout=30)
    assert said.exit_code == 2
    assert "the store refuses the credentials" in said.stderr
    assert "AWS_ACCESS_KEY_ID" in said.stderr


def test_an_object_path_is_named_joined_and_sent(store):
    path = location("s3://bucket/a b/c/?region=eu-west-1")
    assert isinstance(path, ObjectPath)
    assert str(path / "x.parquet") == "s3://bucket/a b/c/x.parquet?region=eu-west-1"
    assert (path / "x.parquet").name == "x.parquet"
    assert pickle.loads(pickle.dumps(path)) == path
    assert location("results/x") == Path("results/x")
    assert location("file:///tmp/x") == Path("/tmp/x")
    assert location("gs://bucket/x").bucket == "bucket"


def test_trials_are_kept_beside_a_result_on_this_machine(store, space):
    space.write_text(space.read_text() + "search: {n_trials: 10, storage: journal}\n")
    said = run(dlcalc_search, space, "-o", store.address("sampled"))
    assert said.exit_code == 2
    assert "no file grows in an object store" in said.stderr
    elsewhere = run(dlcalc_search, space, "-o", "here", "--executor", "dask", "--scheduler", "tcp://127.0.0.1:1")
    assert elsewhere.exit_code == 2
    assert "leave out --executor dask" in elsewhere.stderr


# ---- sampled studies


def sampled_space(folder, **search):
    study = {
        "study": "sampled",
        "model": "llama3-8b",
        "hardware": "h100",
        "cluster": {"devices": 16},
        "recipe": {"seq_len": 4096, "global_batch": 64},
        "space": {},
        "search": {"n_trials": 12, **search},
    }
    file = folder / "sampled.yaml"
    file.write_text(json.dumps(study), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("name", "search"), [("plans", {}), ("designs", {"design": {"model": {"n_layers": [24, 32, 48]}}})]
)
def test_a_sampled_study_is_written_and_goes_on(store, tmp_path, name, search):
    """What a directory holds, a bucket holds; trials are in a database here, and the study is taken up by its name."""
    pytest.importorskip("optuna")
    file = sampled_space(tmp_path, storage=f"sqlite:///{tmp_path}/trials.db", **search)
    address = store.address(f"sampled-{name}")
    answers = []
    for place in (address, str(tmp_path / "here")):
        result = CliRunner().invoke(dlcalc_search.main, [file, "--json", "-o", place])
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout))
    there, here = answers
    assert there["result"] == address
    how = [answer["designs"][0] if "design" in search else answer["scenarios"][0]["sampled"] for answer in answers]
    assert [one["n_trials"] for one in how] == [12, 12]
    assert [one["n_trials_before"] for one in how] == [0, 12]
    assert there["scenarios"][-1]["best"] == here["scenarios"][-1]["best"]
    there, here = (list(open_result(location(place)).rows()) for place in (address, str(tmp_path / "here")))
    assert there == here
    assert len(there) > 12
    explained = CliRunner().invoke(training_3d.main, [address, "--rank", "1", "--json"])
    assert explained.exit_code == 0, explained.output


def test_a_journal_beside_the_result_needs_a_directory(store, tmp_path):
    pytest.importorskip("optuna")
    file = sampled_space(tmp_path, storage="journal")
    result = CliRunner().invoke(dlcalc_search.main, [file, "-o", store.address("never")])
    assert result.exit_code == 2
    assert "name one here, such as journal:///trials.log" in result.output
    measured = {"n_trials": 3, "objective": "measured", "command": "true"}
    result = CliRunner().invoke(dlcalc_search.main, [sampled_space(tmp_path, **measured), "-o", store.address("never")])
    assert result.exit_code == 2
    assert "runs plans beside the result" in result.output
