"""Nothing is lost: real searches, killed, terminated, crowded, and out of disk; at the end nobody can tell.

A study of a few dozen shards, since only the number of shards and of moments matters. Nightly: `pytest -m nightly`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dlcalc.results.check import check_result
from dlcalc.results.files import MANIFEST_NAME
from dlcalc.results.reader import open_result
from dlcalc.results.schema import COLUMN_NAMES

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as POSIX does")

SPACE = """
study: small
model: llama3-8b
hardware: h100
cluster: {devices: [16, 32]}
recipe: {seq_len: 4096, global_batch: 128, precision: bf16, framework: megatron}
space: {cp: 1}
"""

SEARCH = """
import os, sys
from dlcalc.workflows import sweep as workflows_sweep
from dlcalc.dlcalc_search import main
from dlcalc.search import executors

executors.SHARD_PLANS = executors.WORTH_A_SHARD = 4_000
evaluate = workflows_sweep._shard
log = os.open(os.environ["SHARD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def _shard(directory, what, n_kept, key, task):
    os.write(log, f"s{task.shard.scenario:03d}-{task.shard.number:06d}.parquet\\n".encode())
    return evaluate(directory, what, n_kept, key, task)

_shard.__module__, _shard.__qualname__ = "dlcalc.workflows.sweep", "_shard"
workflows_sweep._shard = _shard
main()
"""
"""dlcalc-search with small shards, and a log of those that it evaluates."""


class Search:
    """One run in ``folder`` of the study there, in a process group of its own."""

    def __init__(self, folder, *options, jobs=2, prelude=""):
        self.log, self.out, self.said = (
            folder / f"{name}-{time.monotonic_ns()}" for name in ("shards", "stdout", "stderr")
        )
        command = [sys.executable, "-c", textwrap.dedent(prelude) + SEARCH, "small.yaml", "-o", "r", "--json"]
        environment = os.environ | {"SHARD_LOG": str(self.log), "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.out.open("w") as out, self.said.open("w") as said:
            self.process = subprocess.Popen(
                [*command, "--jobs", str(jobs), *options],
                cwd=folder, env=environment, stdout=out, stderr=said, start_new_session=True,
            )  # fmt: skip

    def end(self):
        """Wait for it: exit code, answer, and what was said."""
        code = self.process.wait(timeout=120)
        out, said = self.out.read_text(), self.said.read_text()
        assert "Traceback" not in said
        return code, out, said

    def ends(self, expected=0):
        code, out, said = self.end()
        assert code == expected, said
        return out, said

    def evaluated(self):
        """Names of the shards that were evaluated, as often as they were."""
        return sorted(self.log.read_text().split()) if self.log.exists() else []

    def works(self):
        """Wait until the first shard is begun."""
        while not self.evaluated() and self.process.poll() is None:
            time.sleep(0.002)


def visible(folder):
    """What a plain reader finds of a result, at whatever moment: whole shards, or nothing."""
    names = sorted(path.name for path in folder.glob("*.parquet")) if folder.exists() else []
    for name in names:
        with pq.ParquetFile(folder / name) as file:
            file.read()
    if names:
        ds.dataset(folder).to_table()  # finds nothing else there that it would stumble over
    return names


def rows(folder):
    """The whole dataset, row for row, in the order of the space."""
    table = ds.dataset(folder).to_table(columns=list(COLUMN_NAMES))
    table = pa.table({name: table[name].cast(pa.string()) if pa.types.is_dictionary(table[name].type) else table[name]
                      for name in COLUMN_NAMES})  # fmt: skip
    return table.sort_by([("scenario", "ascending"), ("plan_index", "ascending")])


def timeless(answer):
    return {name: value for name, value in json.loads(answer).items() if name not in TIMES}


TIMES = ("seconds", "plans_per_s", "peak_rss_bytes", "result")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted study: its rows, its answer, its shards, and how long they take."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.yaml").write_text(SPACE)
    search = Search(folder)
    search.works()
    began = time.monotonic()
    answer, _ = search.ends()
    seconds = time.monotonic() - began
    names = visible(folder / "r")
    assert len(names) > 15
    assert search.evaluated() == names
    return rows(folder / "r"), timeless(answer), names, seconds


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "small.yaml").write_text(SPACE)
    return tmp_path


def is_the_whole(folder, answer, whole):
    """A study that ended well is the uninterrupted one."""
    expected, said, names, _ = whole
    assert visible(folder / "r") == names
    assert rows(folder / "r").equals(expected)
    assert timeless(answer) == said
    checked = check_result(folder / "r")
    assert checked.complete
    assert (checked.faults, checked.leftovers) == ((), ())


def rerun(folder, whole, *options):
    """The rerun evaluates exactly the shards that are not there, and then nobody can tell."""
    before = visible(folder / "r")
    search = Search(folder, *options)
    answer, said = search.ends()
    assert search.evaluated() == sorted(set(whole[2]) - set(before))
    is_the_whole(folder, answer, whole)
    return said


def gone(search):
    """Wait until the workers of a killed search have noticed."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == search.process.pid:
                process.wait(10)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass


# --- killed -----------------------------------------------------------------------------------------------------


def killed_again_and_again(folder, whole, n_kills, seed):
    """Kill -9 at random moments, rerun with --resume, kill again; each time a study ends well, begin another."""
    chance = random.Random(seed)
    kills = 0
    while kills < n_kills:
        before = visible(folder / "r")
        search = Search(folder, *(["--resume"] if kills % 2 else []), jobs=chance.choice([1, 2]))
        search.works()
        if chance.random() < 0.3:  # while it looks around, before a shard is begun or just then
            time.sleep(chance.random() * 0.01)
        else:
            time.sleep(chance.random() * whole[3])
        search.process.kill()
        search.process.wait()
        left = visible(folder / "r")  # workers may be about to end
        gone(search)
        kills += search.process.returncode == -signal.SIGKILL
        assert set(before) <= set(left) <= set(visible(folder / "r")), "a finished shard is gone"
        assert not set(search.evaluated()) & set(before), "a finished shard was searched again"
        if (folder / "r" / MANIFEST_NAME).exists():
            found = open_result(folder / "r")
            assert {path.name for path in found.files()} == set(visible(folder / "r"))
            found.verify()
            if found.is_complete:  # the kill came too late
                assert rows(folder / "r").equals(whole[0])
                shutil.rmtree(folder / "r")
    rerun(folder, whole, "--resume")


def test_a_dozen_kills_at_random_moments_lose_nothing(folder, whole):
    killed_again_and_again(folder, whole, 12, seed=int.from_bytes(os.urandom(4), "big"))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(30))
def test_hundreds_of_kills_at_random_moments_lose_nothing(folder, whole, seed):
    killed_again_and_again(folder, whole, 10, seed=seed)


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm_end_in_order(folder, whole, number, code, said):
    search = Search(folder)
    search.works()
    os.killpg(search.process.pid, number)
    _, text = search.ends(code)
    assert text == f"{said}: what was finished is kept; the same command goes on from there, with --resume or without\n"

    found = open_result(folder / "r")
    assert {path.name for path in found.files()} == set(visible(folder / "r"))
    offered = rerun(folder, whole)
    if found.files():
        assert "an earlier run was interrupted; going on as with --resume" in offered


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_workers_that_have_just_begun_leave_the_answer_to_their_parent(folder, number, code):
    search = Search(folder, prelude=SLOW_TO_BEGIN)
    while not psutil.Process(search.process.pid).children():
        time.sleep(0.002)
    os.killpg(search.process.pid, number)
    _, text = search.ends(code)
    assert text.count("\n") == 1


SLOW_TO_BEGIN = """
import time
from dlcalc.search import executors
begins = executors._serve_one_parent

def _serve_one_parent():
    time.sleep(0.5)
    begins()

executors._serve_one_parent = _serve_one_parent
"""


def test_a_lost_worker_loses_its_shard_alone(folder, whole):
    search = Search(folder, prelude=LOSE_A_WORKER)
    _, said = search.ends(2)
    assert said.startswith("error: a worker process was lost, perhaps for want of memory; what was finished is kept")
    assert "--resume" in said
    assert said.count("\n") == 1
    assert visible(folder / "r")
    rerun(folder, whole, "--resume")


LOSE_A_WORKER = """
import os, signal
from dlcalc.workflows import sweep as workflows_sweep
blocks = workflows_sweep._blocks
calls = []

def die_at_the_fifth(*arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return blocks(*arguments)

workflows_sweep._blocks = die_at_the_fifth
"""


def test_a_complete_study_that_is_searched_again_can_be_killed(folder, whole):
    """What was complete is there at every moment of the second search."""
    Search(folder).ends()
    search = Search(folder)
    search.works()
    time.sleep(whole[3] / 2)
    search.process.kill()
    search.process.wait()
    assert visible(folder / "r") == whole[2]
    gone(search)
    assert rows(folder / "r").equals(whole[0])
    rerun(folder, whole, "--resume")


# --- another study under the same name ---------------------------------------------------------------------------


def another_machine(folder):
    (folder / "machines").mkdir()
    text = (CONFIGS / "h100.yaml").read_text()
    changed = re.sub(r"^(\s*hbm_gib:.*?value: )[\d.]+", r"\g<1>96.0", text, flags=re.MULTILINE)
    assert changed != text
    (folder / "machines" / "h100.yaml").write_text(changed)
    return ["--hardware-dir", "machines"], "", "hardware: device.hbm_gib.value: 80.0 there, 96.0 now"


def another_version(folder):
    return [], "import dlcalc; dlcalc.__version__ = '99.0'", "there, 99.0 now"


def another_space(folder):
    (folder / "small.yaml").write_text(SPACE.replace("{cp: 1}", "{cp: 1, pp: 1}"))
    return [], "", "+space: {cp: 1, pp: 1}"


@pytest.mark.parametrize("another", [another_machine, another_version, another_space])
def test_another_study_does_not_go_on_with_a_half_finished_one(folder, whole, another):
    search = Search(folder)
    search.works()
    while len(visible(folder / "r")) < 2:
        time.sleep(0.001)
    search.process.kill()
    search.process.wait()
    gone(search)
    left = {path.name: path.read_bytes() for path in (folder / "r").iterdir()}

    options, prelude, differs = another(folder)
    for resume in ([], ["--resume"]):
        refused = Search(folder, *options, *resume, prelude=prelude)
        _, said = refused.ends(2)
        assert said.startswith("error: r: holds the result of another study; choose another place with -o, or replace")
        assert differs in said
        assert not refused.evaluated()
        now = {path.name: path.read_bytes() for path in (folder / "r").iterdir() if path.name != ".lock"}
        assert now == {name: content for name, content in left.items() if name != ".lock"}

    replaced = Search(folder, *options, "--overwrite", prelude=prelude)
    replaced.ends()
    assert replaced.evaluated() == visible(folder / "r")
    checked = check_result(folder / "r")
    assert (checked.complete, checked.faults, checked.leftovers) == (True, (), ())


# --- two at once ------------------------------------------------------------------------------------------------


def test_two_searches_of_one_study_do_not_get_in_each_others_way(folder, whole):
    first = Search(folder)
    first.works()
    reads = 0
    second = Search(folder)
    while first.process.poll() is None:
        visible(folder / "r")
        reads += 1
    assert reads
    code, answer, said = first.end()
    if code:  # the second was faster
        first, (code, answer, said) = second, second.end()
        assert code == 0, said
    else:
        code, _, said = second.end()
        assert code in (0, 2)
    if code == 2:
        assert re.fullmatch(r"error: r: another search (is writing here; wait for it|has just ended here).*\n", said)
    is_the_whole(folder, answer, whole)


def test_many_started_at_the_same_moment(folder, whole):
    ends = [search.end() for search in [Search(folder, jobs=1) for _ in range(4)]]
    answers = [answer for code, answer, _ in ends if code == 0]
    assert answers
    for code, _, said in ends:
        assert code == 0 or (code == 2 and said.startswith("error: r: another search ")), said
    is_the_whole(folder, answers[0], whole)


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, that can be filled."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    at = tmp_path / "disk"
    at.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("free_kb", [0, 40, 200, 500])
def test_a_full_disk_is_said_and_the_rest_follows_when_there_is_room(folder, whole, small_disk, free_kb, jobs):
    (folder / "r").symlink_to(small_disk / "r")
    (small_disk / "r").mkdir()
    other = Path(small_disk / "of_others")
    other.write_bytes(bytes((1024 - free_kb) * 1024 - 4096))

    _, said = Search(folder, jobs=jobs).ends(2)
    assert re.fullmatch(r"error: r/?[^ ]*: the disk is full; free some space \(.*--resume\), or choose .*\n", said)
    left = visible(folder / "r")
    assert not [path for path in (small_disk / "r").iterdir() if path.name.endswith(".partial") and jobs == 1]
    if free_kb >= 200:
        assert left

    other.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    rerun(folder, whole, "--resume")
