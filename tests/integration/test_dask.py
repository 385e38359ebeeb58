"""Searches on a Dask cluster of real processes: the same result as here, whatever happens to the workers."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_search
from dlcalc.errors import DlcalcError
from dlcalc.results.reader import open_result
from dlcalc.results.storage import missing_from
from dlcalc.search import dask_executor, executors
from dlcalc.search.dask_executor import DaskExecutor
from dlcalc.search.executors import Shard
from dlcalc.workflows.search import run_search
from tests.clusters import CHECKOUT, CREDENTIALS, dask_cluster, s3_store
from tests.studies import FEW, SMALL

pytestmark = pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three workers that nothing happens to; they may write to a store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with dask_cluster(tmp_path_factory.mktemp("cluster"), 3) as cluster:
            yield cluster


@pytest.fixture
def space(tmp_path, monkeypatch):
    """A study of several shards."""
    monkeypatch.setattr(executors, "WORTH_A_SHARD", 1 << 11)
    file = tmp_path / "small.yaml"
    text = SMALL.format(study="small", model="llama3-8b", hardware="h100", devices="[16, 32]", space=FEW)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def here(space, tmp_path):
    """The bytes of every file of the study, searched in this process."""
    run_search(space, out=tmp_path / "here", jobs=1)
    return contents(tmp_path / "here")


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the summary, which says how long it took."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "_summary.json"}


def command(*arguments: object):
    return CliRunner().invoke(dlcalc_search.main, [str(argument) for argument in arguments])


def fail(*arguments: object) -> str:
    """What a command that ends in exit code 2 says, which is one line."""
    said = command(*arguments)
    assert said.exit_code == 2, said.output
    assert said.stderr.count("\n") == 1, said.stderr
    return said.stderr


def timeless(summary: dict) -> dict:
    return {name: value for name, value in summary.items() if name not in OF_THE_RUN}


OF_THE_RUN = ("seconds", "plans_per_s", "peak_rss_bytes", "result")


def test_workers_write_what_this_process_would(cluster, space, here, tmp_path):
    said = command(space, "-o", tmp_path / "there", "--executor", "dask", "--scheduler", cluster.address, "--json")
    assert said.exit_code == 0, said.output
    assert contents(tmp_path / "there") == here
    assert sum(name.endswith(".parquet") for name in here) > 8
    assert timeless(json.loads(said.stdout)) == timeless(json.loads((tmp_path / "here/_summary.json").read_text()))


@pytest.mark.parametrize("keep", ["all", "pareto", 50])
def test_what_is_kept_does_not_depend_on_where(cluster, space, tmp_path, keep):
    run_search(space, out=tmp_path / "here", jobs=1, keep=keep)
    run_search(space, out=tmp_path / "there", keep=keep, executor="dask", scheduler=cluster.address)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_study_that_is_counted_first(cluster, space, tmp_path, monkeypatch):
    monkeypatch.setattr("dlcalc.workflows.search.MOST_ROWS", 10)
    run_search(space, out=tmp_path / "here", jobs=1)
    run_search(space, out=tmp_path / "there", executor="dask", scheduler=cluster.address)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_workers_write_to_a_store(cluster, space, here, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_store() as store:
        run_search(space, out=store.address("study"), executor="dask", scheduler=cluster.address)
        there = store.objects("study")
        open_result(store.address("study")).verify()
    assert {name: content for name, content in there.items() if name != "_summary.json"} == here


def test_a_worker_that_is_killed_changes_nothing(space, here, tmp_path):
    killed = []

    def kill(done: int, total: int, what: str = "") -> None:
        if done and not killed:
            cluster.workers[0].kill()  # SIGKILL
            killed.append(total - done)

    with dask_cluster(tmp_path / "cluster", 2) as cluster:
        run_search(space, out=tmp_path / "there", executor="dask", scheduler=cluster.address, progress=kill)
        assert cluster.workers[0].wait(10) == -9
        assert cluster.workers[1].poll() is None
    assert killed[0] > 0
    assert contents(tmp_path / "there") == here


@pytest.mark.parametrize(
    ("victims", "says"), [("workers", "all workers were lost"), ("scheduler", "scheduler was lost")]
)
def test_a_cluster_that_is_lost_ends_the_search_and_resuming_finishes_it(
    space, here, tmp_path, monkeypatch, victims, says
):
    monkeypatch.setattr(dask_executor, "WORKERS_S", 2.0)
    monkeypatch.setattr(dask_executor, "REFRESH_S", 0.5)
    killed = []

    def kill(done: int, total: int, what: str = "") -> None:
        if done and not killed:
            for process in cluster.workers if victims == "workers" else [cluster.scheduler]:
                process.kill()
            killed.append(total - done)

    told = {"out": tmp_path / "there", "executor": "dask"}
    with (
        dask_cluster(tmp_path / "cluster", 2) as cluster,
        pytest.raises(DlcalcError, match=rf"{says}.*run again with --resume"),
    ):
        run_search(space, scheduler=cluster.address, progress=kill, **told)
    assert killed[0] > 0
    assert 0 < len(open_result(tmp_path / "there").shards()) < len(here) - 1
    run_search(space, out=tmp_path / "there", jobs=1, resume=True)
    assert contents(tmp_path / "there") == here


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("__version__ = '99.0'", "dlcalc 99.0 instead of"),
        ("raise ImportError('not here')", "dlcalc is not installed"),
    ],
)
def test_a_worker_with_another_dlcalc_is_refused(space, tmp_path, package, says):
    (tmp_path / "other/dlcalc").mkdir(parents=True)
    (tmp_path / "other/dlcalc/__init__.py").write_text(package)
    with dask_cluster(tmp_path / "cluster", 0) as cluster:
        cluster.start_worker({"PYTHONPATH": str(tmp_path / "other")})
        said = fail(space, "-o", tmp_path / "out", "--executor", "dask", "--scheduler", cluster.address)
    assert says in said
    assert "worker tcp://" in said
    assert not (tmp_path / "out").exists()


def test_a_worker_that_comes_late_is_asked_too():
    with pytest.raises(DlcalcError, match=r"worker on .*: dlcalc 0\.\S+ instead of 99\.0"):
        dask_executor._do(b"", {**dask_executor.versions(), "dlcalc": "99.0"})


def test_a_worker_that_does_not_see_the_directory_is_refused(cluster, tmp_path):
    seen = tmp_path / "study"
    seen.mkdir()
    (seen / "_manifest.json").write_text("one")
    ready = partial(missing_from, seen, "_manifest.json", "the hash of another file")
    task = Shard(0, 0, 0, 1, 1)
    with (
        DaskExecutor(cluster.address) as executor,
        pytest.raises(DlcalcError, match=rf"worker tcp://\S+: {seen}: not seen from .*; write to a file system that"),
    ):
        list(executor.run(str, [task], ready=ready))


def test_a_shard_that_was_written_elsewhere_is_missed(space, tmp_path, monkeypatch):
    """As when every worker has a directory of that name, but each its own."""
    monkeypatch.setattr("dlcalc.workflows.sweep.ARRIVAL_S", 0.2)

    class Elsewhere(executors.LocalExecutor):
        def run(self, work, tasks, *, ready=None):
            for task, (part, record) in super().run(work, tasks):
                (tmp_path / "out" / record.file).rename(tmp_path / record.file)
                yield task, (part, record)

    monkeypatch.setattr("dlcalc.workflows.search.executor_of", lambda *told: Elsewhere(1))
    with pytest.raises(DlcalcError, match="a worker says that it wrote this file, but it is not seen here"):
        run_search(space, out=tmp_path / "out")


def test_a_cluster_without_workers_is_one_line(space, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_executor, "WORKERS_S", 0.5)
    with dask_cluster(tmp_path / "cluster", 0) as cluster:
        said = fail(space, "-o", tmp_path / "out", "--executor", "dask", "--scheduler", cluster.address)
    assert f"no worker came within 0.5 s; start some with: dask worker {cluster.address}" in said


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "foo://x:1", "tcp://127.0.0.1:99999"])
def test_a_scheduler_that_is_not_there_is_one_line(space, tmp_path, monkeypatch, address):
    monkeypatch.setattr(dask_executor, "CONNECT_S", 1.0)
    said = fail(space, "-o", tmp_path / "out", "--executor", "dask", "--scheduler", address)
    assert f"--scheduler {address}: no Dask scheduler answers there within 1 s" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scheduler", "tcp://x:1"], "--scheduler goes with --executor dask"),
        (["--executor", "dask"], "--executor dask needs --scheduler"),
        (["--executor", "dask", "--scheduler", "tcp://x:1", "--jobs", "2"], "--jobs goes with --executor local"),
    ],
)
def test_options_that_do_not_go_together(space, tmp_path, options, says):
    assert says in fail(space, "-o", tmp_path / "out", *options)


SEARCH = """
import json, sys
from dlcalc.search import executors
from pathlib import Path

from dlcalc.workflows.search import run_search
executors.WORTH_A_SHARD = int(sys.argv[4])
summary = run_search(Path(sys.argv[1]), out=sys.argv[2], keep="all", executor="dask", scheduler=sys.argv[3])
print(json.dumps(summary["peak_rss_bytes"]))
"""


MANY = "{micro_batch: full, zero_stage: full, overlap_grad: full, overlap_param: full, offload_optimizer: full}"


def test_memory_does_not_grow_with_rows(cluster, tmp_path):
    """Neither that of the process that asks nor that of the scheduler: twenty times the rows, and shards."""
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    found = {}
    for name, space in (("few", FEW), ("many", MANY)):
        file = tmp_path / f"{name}.yaml"
        text = SMALL.format(study=name, model="llama3-8b", hardware="h100", devices="[16, 32]", space=space)
        file.write_text(text, encoding="utf-8")
        told = [sys.executable, script, file, tmp_path / name, cluster.address, 1 << 13]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        said = subprocess.run([str(part) for part in told], env=environment, capture_output=True, text=True, check=True)
        n_rows = sum(shard.n_rows for shard in open_result(tmp_path / name).shards())
        found[name] = n_rows, json.loads(said.stdout), psutil.Process(cluster.scheduler.pid).memory_info().rss
    (few, own_few, scheduler_few), (many, own_many, scheduler_many) = found["few"], found["many"]
    assert many > 20 * few
    assert own_many - own_few < 16e6
    assert scheduler_many - scheduler_few < 16e6
