"""dlcalc-results on results in object stores, and searches into Google's, against servers that speak as those do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_compare, dlcalc_results, dlcalc_search, training_3d
from dlcalc.errors import ResultError
from dlcalc.results.files import INPUTS_NAME, MANIFEST_NAME, SUMMARY_NAME
from dlcalc.results.reader import open_result
from dlcalc.results.storage import ObjectPath, location
from dlcalc.search import executors
from dlcalc.workflows.search import run_search
from tests.clusters import CREDENTIALS, GoogleStore, Store, google_store, s3_store
from tests.studies import FEW, SMALL, searched

FIRST = "s000-000000.parquet"
SIXTEEN = "llama3-8b on 16 h100, bf16"
STUDIES = ("small", "sixteen", "other")


@pytest.fixture(scope="module", autouse=True)
def credentials():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def s3(credentials):
    with s3_store() as store:
        yield store


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    pytest.importorskip("gcp_storage_emulator")
    with google_store(tmp_path_factory.mktemp("google")) as store:
        yield store


@pytest.fixture(scope="module", params=["s3", "google"])
def store(request) -> Store | GoogleStore:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two studies that share the scenario of 16 devices by name and content, and one that shares the name alone."""
    folder = tmp_path_factory.mktemp("studies")
    searched(folder, "small", devices="[8, 16]")
    searched(folder, "sixteen")
    searched(folder, "other", space=FEW.replace("[1, 2]", "[1, 4]"))
    return folder


@dataclass
class Kept:
    """Results in a store, and the same ones on this machine."""

    store: Store | GoogleStore
    here: Path

    def address(self, name: str) -> str:
        return self.store.address(name)

    def restore(self, name: str) -> None:
        """What was harmed, as it was."""
        there = self.store.objects(name)
        for file in there.keys() - {path.name for path in (self.here / name).iterdir()}:
            self.store.delete(f"{name}/{file}")
        for path in (self.here / name).iterdir():
            if path.is_file() and there.get(path.name) != path.read_bytes():
                self.store.put(f"{name}/{path.name}", path.read_bytes())


@pytest.fixture(scope="module")
def kept(store, here):
    kept = Kept(store, here)
    for name in STUDIES:
        kept.restore(name)
    return kept


def ran(door, *arguments, code=0):
    done = CliRunner().invoke(door.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def answer(*arguments, code=0):
    return json.loads(ran(dlcalc_results, *arguments, "--json", code=code).stdout)


# --- verify, show, query, merge -----------------------------------------------------------------------------------


def test_results_in_order_are_said_to_be(kept):
    done = ran(dlcalc_results, "verify", kept.address("small"), kept.address("other"))
    said = " ".join(done.stdout.split())
    for name, shards in (("small", 2), ("other", 1)):
        assert f"{kept.address(name)}: in order, complete: {shards} shards, " in said
    assert done.stderr == ""


def truncate(kept, content):
    kept.store.put(f"small/{FIRST}", content[:1000])


def flip(kept, content):
    at = len(content) // 3
    kept.store.put(f"small/{FIRST}", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def lose(kept, content):
    kept.store.delete(f"small/{FIRST}")


def swap(kept, content):
    kept.store.put(f"small/{FIRST}", (kept.here / "other" / FIRST).read_bytes())


def text(kept, content):
    kept.store.put(f"small/{FIRST}", b"not Parquet at all" * 10**5)


def stranger(kept, content):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    kept.store.put(f"small/{FIRST}", sink.getvalue().to_pybytes())


def extra(kept, content):
    kept.store.put("small/s001-000007.parquet", content)


def notes(kept, content):
    kept.store.put("small/notes.txt", b"mine")


def summary(kept, content):
    kept.store.put(f"small/{SUMMARY_NAME}", b"{")


def inputs(kept, content):
    kept.store.put(f"small/{INPUTS_NAME}", (kept.here / "small" / INPUTS_NAME).read_bytes().replace(b"h100", b"h200"))


def no_manifest(kept, content):
    kept.store.delete(f"small/{MANIFEST_NAME}")


@pytest.mark.parametrize(
    ("harm", "name", "problem"),
    [
        (truncate, FIRST, "truncated: 1,000 of "),
        (flip, FIRST, "damaged: not the bytes that were written"),
        (lose, FIRST, "missing, but the manifest names it"),
        (swap, FIRST, "another shard than the manifest names"),
        (text, FIRST, "foreign: not a Parquet file"),
        (stranger, FIRST, "foreign: not written by dlcalc"),
        (extra, "s001-000007.parquet", "not in the manifest; Parquet readers count its rows as well"),
        (notes, "notes.txt", "foreign: not a Parquet file"),
        (summary, SUMMARY_NAME, "damaged: not JSON"),
        (inputs, INPUTS_NAME, "damaged: 1 of "),
        (no_manifest, "", "not a result of dlcalc-search (_manifest.json is missing)"),
    ],
)
def test_what_is_wrong_is_named(kept, harm, name, problem):
    harm(kept, (kept.here / "small" / FIRST).read_bytes())
    try:
        said = answer("verify", kept.address("small"), kept.address("other"), code=2)
    finally:
        kept.restore("small")
    small, other = said
    assert [fault["file"] for fault in small["faults"]] == [kept.address(f"small/{name}".rstrip("/"))]
    assert problem in small["faults"][0]["problem"]
    assert not other["faults"]


def test_what_a_result_holds_is_shown(kept):
    there, here = answer("show", kept.address("small")), answer("show", kept.here / "small")
    assert there[0].pop("directory") == kept.address("small")
    assert here[0].pop("directory") == str(kept.here / "small")
    assert there == here
    assert "study: small" in ran(dlcalc_results, "show", kept.address("small")).stdout


def test_sql_gives_what_it_gives_of_a_directory(kept, tmp_path):
    sql = "SELECT study, scenario, count(*) AS n, min(step_time_s) AS best FROM plans GROUP BY ALL ORDER BY ALL"
    there = answer("query", sql, kept.address("small"), kept.address("other"))
    assert there == answer("query", sql, kept.here / "small", kept.here / "other")
    assert len(there) == 3
    assert answer("query", sql, kept.address("small"), kept.here / "other") == there  # and of both together
    ran(dlcalc_results, "query", "FROM plans", kept.address("small"), "--parquet", tmp_path / "all.parquet")
    assert len(pd.read_parquet(tmp_path / "all.parquet")) == ds.dataset(kept.here / "small").count_rows()


@pytest.mark.parametrize("harm", [truncate, flip, lose, text, stranger])
def test_a_harmed_object_is_named_and_not_queried(kept, harm):
    harm(kept, (kept.here / "small" / FIRST).read_bytes())
    sql = "SELECT sum(step_time_s + step_time_low_s + step_time_high_s + mfu + hfu + memory_bytes) FROM plans"
    try:
        done = ran(dlcalc_results, "query", sql, kept.address("small"), code=2)
    finally:
        kept.restore("small")
    assert done.stderr.startswith(f"error: {kept.address('small')[:10]}")
    assert FIRST in done.stderr or "dlcalc-results verify names the file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_store_and_a_directory_are_merged_into_either(kept, tmp_path):
    both = kept.address(f"both-{time.monotonic_ns()}")
    for out in (tmp_path / "both", both):
        held = answer("merge", kept.address("small"), kept.here / "other", "-o", out)
        assert [one["name"] for one in held["scenarios"]][-2:] == [SIXTEEN, f"{SIXTEEN} [other]"]
        ran(dlcalc_results, "verify", out)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "both").glob("*.parquet")}
    there = kept.store.objects(location(both).key.partition("/")[2])
    assert {name: content for name, content in there.items() if name.endswith(".parquet")} == shards


# --- searches into Google's store ---------------------------------------------------------------------------------


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "WORTH_A_SHARD", 1 << 11)
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(study="small", model="llama3-8b", hardware="h100", devices="[16, 32]", space=FEW))
    return file


def test_a_search_into_googles_store_is_that_into_a_directory(google, space, tmp_path):
    found = ran(dlcalc_search, space, "-o", google.address("one"), "--json", "--jobs", 1)
    run_search(space, out=google.address("two"), jobs=2)
    run_search(space, out=tmp_path / "here", jobs=1)
    here = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir() if file.name != SUMMARY_NAME}
    assert len(here) > 8
    for name in ("one", "two"):
        there = google.objects(name)
        assert json.loads(there.pop(SUMMARY_NAME))["study"] == "small"
        assert there == here
    assert json.loads(found.stdout)["result"] == google.address("one")


def test_what_lies_in_googles_store_is_read(google, space):
    address = google.address("read")
    run_search(space, out=address, jobs=1)
    result = open_result(address)
    assert ds.dataset(address).count_rows() == sum(shard.n_rows for shard in result.shards())
    fastest = result.best(result.scenarios[0], 1)[0]
    plan = json.loads(ran(training_3d, address, "--rank", 1, "--json").stdout)
    assert plan["results"]["iteration_s"] == pytest.approx(fastest["step_time_s"])
    ran(dlcalc_compare, address)


def test_what_is_missing_in_googles_store_alone_is_searched_again(google, space, tmp_path):
    address = google.address("again")
    run_search(space, out=address, jobs=1)
    whole = google.objects("again")
    google.delete("again/s001-000000.parquet")
    google.put("again/s000-000001.parquet", whole["s000-000001.parquet"][:-9])
    todo: list[int] = []
    run_search(space, out=address, jobs=1, resume=True, progress=lambda done, total, what="": todo.append(done))
    assert google.objects("again").keys() == whole.keys()
    assert all(google.objects("again")[name] == whole[name] for name in whole if name != SUMMARY_NAME)
    searched_again = len(todo) - 1  # the first call says what is there
    assert searched_again == 2


def test_googles_store_goes_away_and_resuming_finishes(google, space, tmp_path):
    address, stopped = google.address("gone"), []

    def progress(done: int, total: int, what: str = "") -> None:
        if done and not stopped:
            google.stop()
            stopped.append(done)

    try:
        with pytest.raises(ResultError, match=r"the store does not answer .*Could not connect.* again with --resume"):
            run_search(space, out=address, jobs=1, progress=progress)
    finally:
        google.start()
    run_search(space, out=address, jobs=1, resume=True)
    run_search(space, out=tmp_path / "here", jobs=1)
    there = google.objects("gone")
    for file in (tmp_path / "here").glob("*.parquet"):
        assert there[file.name] == file.read_bytes()


def test_another_study_in_googles_store_is_refused_and_replaced_when_told(google, space):
    address = google.address("other-study")
    run_search(space, out=address, jobs=1)
    space.write_text(space.read_text().replace("[16, 32]", "16"))
    with pytest.raises(ResultError, match="holds the result of another study"):
        run_search(space, out=address, jobs=1)
    run_search(space, out=address, jobs=1, overwrite=True)
    shards = {name for name in google.objects("other-study") if name.endswith(".parquet")}
    assert shards == {shard.file for shard in open_result(address).shards()}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gs://anonymous@nobody/x?scheme=http&endpoint_override=localhost:{port}", "no bucket 'nobody'"),
        ("gs://anonymous@studies/x?endpoint_overide=localhost:{port}", "Unexpected query parameter"),
        ("gs://key:secret@studies/x", "credentials do not belong in an address"),
        ("gs://anonymous@", "names no bucket"),
        ("gs://anonymous@studies/x?scheme=http&endpoint_override=localhost:1&retry_limit_seconds=1", "does not answer"),
    ],
)
def test_a_mistaken_address_is_one_line(google, space, address, says):
    said = ran(dlcalc_search, space, "-o", address.format(port=google.port), code=2)
    assert says in said.stderr
    assert said.stderr.count("\n") == 1
    assert "secret" not in said.stderr


@pytest.mark.parametrize("content", [None, '{"type": "unheard of"}', "{"])
def test_credentials_of_google_that_cannot_be_read_are_one_line(space, tmp_path, monkeypatch, content):
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    said = ran(dlcalc_search, space, "-o", f"gs://studies/{tmp_path.name}", code=2)
    assert "no credentials (" in said.stderr
    assert "key.json" in said.stderr
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said.stderr
    assert said.stderr.count("\n") == 1


def test_an_anonymous_address_is_said_as_it_was_given():
    path = location("gs://anonymous@bucket/a/b/?scheme=http")
    assert isinstance(path, ObjectPath)
    assert (path.bucket, path.key) == ("bucket", "bucket/a/b")
    assert str(path / "x") == "gs://anonymous@bucket/a/b/x?scheme=http"


# --- killed, and out of room, on the way to a store ----------------------------------------------------------------

SEARCH = """
from dlcalc.search import executors
from dlcalc.dlcalc_search import main
executors.WORTH_A_SHARD = 1 << 11
main()
"""


def begun(space, address, *options, **environment) -> subprocess.Popen[str]:
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", SEARCH, space.name, "-o", address, "--json", *options]
    return subprocess.Popen(
        command, cwd=space.parent, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shards_in(store, name):
    return {key for key in store.names(name) if key.endswith(".parquet")}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_search_into_a_store_that_is_killed_loses_nothing(store, space, tmp_path, jobs):
    run_search(space, out=tmp_path / "here", jobs=1)
    name = f"killed-{jobs}-{time.monotonic_ns()}"
    address = store.address(name)
    for kill_at in (1, 3, 5):
        search = begun(space, address, "--jobs", jobs)
        before = shards_in(store, name)
        while len(shards_in(store, name)) < kill_at and search.poll() is None:
            time.sleep(0.01)
        search.kill()
        search.communicate()
        left = shards_in(store, name)
        assert before <= left
        if left:  # whatever is there is whole
            assert ds.dataset(address).to_table().num_rows
    search = begun(space, address, "--jobs", jobs, "--resume")
    out, said = search.communicate(timeout=120)
    assert search.returncode == 0, said
    here = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir() if file.name != SUMMARY_NAME}
    there = store.objects(name)
    assert json.loads(there.pop(SUMMARY_NAME))["n_plans"] == json.loads(out)["n_plans"]
    assert there == here


def test_a_full_temporary_folder_is_named(store, space, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        name = f"full-{time.monotonic_ns()}"
        search = begun(space, store.address(name), "--jobs", "1", TMPDIR=str(small))
        _, said = search.communicate(timeout=120)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert search.returncode == 2
    assert f"the temporary folder {small}, where files lie on their way to the store, is full" in said
    assert said.count("\n") == 1
    run_search(space, out=store.address(name), jobs=1, resume=True)
    open_result(store.address(name)).verify()
