"""A real slurmctld takes the batch scripts: names arrive as they are, placed hosts are asked for, jobs fit."""

import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings

from dlcalc.launch.bundle import bundle
from dlcalc.launch.schedulers import slurm
from dlcalc.topology.sources.hostlist import expand
from tests.launch_jobs import job
from tests.launch_parts import NAMES, emitted, names, written
from tests.slurm_cluster import MISSING, running_slurm, scontrol

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


def sbatch(folder, *options):
    return subprocess.run(
        ["sbatch", *options, "job.sbatch"],
        cwd=folder,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def shown(number):
    """What ``scontrol show job`` says, and the name as the queue shows it."""
    words = scontrol("-o", "show", "job", number).stdout.split(" ")
    name = subprocess.run(["squeue", "-h", "-j", number, "-o", "%j"], capture_output=True, check=True).stdout
    return dict(word.split("=", 1) for word in words if "=" in word), name.decode().rstrip("\n")


def submitted(folder, *options):
    ran = sbatch(folder, "--parsable", "--hold", *options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode().strip()


@pytest.mark.parametrize("name", NAMES)
def test_names_arrive_as_they_are(cluster, tmp_path, name):
    written(bundle(job("megatron-lm", dp=16, name=name), emitted(), "slurm"), tmp_path)
    number = submitted(tmp_path)
    told, found = shown(number)
    subprocess.run(["scancel", number], check=True)
    assert found == name
    assert told["NumNodes"].partition("-")[0] == "2"
    assert told["TresPerNode"] == "gres:gpu:8"
    assert (told["Requeue"], told["TimeLimit"], told["NumTasks"]) == ("1", "01:00:00", "2")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
def test_any_name_arrives(cluster, tmp_path, name):
    (tmp_path / "job.sbatch").write_text(slurm.files(job("megatron-lm", dp=8, name=name), emitted(), {})["job.sbatch"])
    number = submitted(tmp_path)
    found = shown(number)[1]
    subprocess.run(["scancel", number], check=True)
    assert found == name


def test_placed_hosts_are_asked_for(cluster, tmp_path):
    hosts = ("n6", "n1", "n08", "n3")
    written(bundle(job("megatron-lm", dp=32, hosts=hosts), emitted(), "slurm"), tmp_path)
    told, _ = shown(submitted(tmp_path))
    assert sorted(expand(told["ReqNodeList"])) == sorted(hosts)
    assert (tmp_path / "hostfile").read_text().split() == list(hosts)


@pytest.mark.parametrize(
    ("devices", "fits"),
    [(8, True), (96, True), (104, False)],  # of twelve hosts
)
def test_jobs_that_fit(cluster, tmp_path, devices, fits):
    one = job("megatron-lm", dp=devices, global_batch=devices)
    written(bundle(one, emitted(), "slurm"), tmp_path)
    ran = sbatch(tmp_path, "--test-only")
    assert (ran.returncode == 0) == fits, ran.stderr
