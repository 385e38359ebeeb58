"""A placement in the words of launchers; each text is read back by what would read it, where that is installed."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from dlcalc.errors import TopologyError
from dlcalc.launch.ranks import (
    host_names,
    kubernetes_affinities,
    node_list,
    open_mpi_rankfile,
    rank_to_node,
    slurm_hostfile,
    torchrun_script,
)
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape, Placement

JOB = JobShape(tp=2, pp=2, dp=4, node_devices=4)  # two rings of two nodes
RINGS = (("i-3", "i-1"), ("i-0", "i-2"))
FABRIC = Fabric(tuple(FabricNode(f"i-{n}", ("leaf",), host=f"ip-10-0-0-{n}.ec2.internal") for n in range(4)))
PLACED = Placement(JOB, RINGS, "hops", 8, 8, 8, 8, proved_optimal=True)
HOSTS = host_names(PLACED, FABRIC)


def test_hosts_are_in_the_order_of_node_ranks():
    assert list(HOSTS) == [f"ip-10-0-0-{n}.ec2.internal" for n in (3, 1, 0, 2)]
    assert node_list(HOSTS).splitlines() == list(HOSTS)


def test_every_rank_has_the_node_that_its_ring_says():
    ranks = rank_to_node(PLACED)
    assert sorted(ranks) == list(range(16))
    assert [ranks[rank] for rank in range(0, 16, 4)] == ["i-3", "i-1", "i-0", "i-2"]
    assert ranks[7] == "i-1"


def test_a_rankfile_binds_every_rank_to_cores_of_its_own():
    lines = open_mpi_rankfile(HOSTS, node_devices=4, rank_cores=12).splitlines()
    assert lines[0] == "rank 0=ip-10-0-0-3.ec2.internal slot=0-11"
    assert lines[5] == "rank 5=ip-10-0-0-1.ec2.internal slot=12-23"
    assert [re.fullmatch(r"rank (\d+)=\S+ slot=\d+-\d+", line)[1] for line in lines] == [str(n) for n in range(16)]
    assert open_mpi_rankfile(["a"], node_devices=2).splitlines() == ["rank 0=a slot=0", "rank 1=a slot=1"]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed here")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two cores")
def test_a_real_open_mpi_binds_as_the_rankfile_says(tmp_path):
    (tmp_path / "rankfile").write_text(open_mpi_rankfile(["localhost"], node_devices=2))
    ran = subprocess.run(
        ["mpirun", "-np", "2", "--rankfile", str(tmp_path / "rankfile"), "--report-bindings", "true"],
        env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    cores = dict(re.findall(r"rank (\d+) bound to socket \d+\[core (\d+)\[", ran.stderr))
    assert cores == {"0": "0", "1": "1"}


def test_a_slurm_hostfile_repeats_a_host_for_each_of_its_tasks():
    assert slurm_hostfile(["b", "a"], node_tasks=2).splitlines() == ["b", "b", "a", "a"]


def run_script(script, tmp_path, name):
    """What the script starts on the host called ``name``; torchrun is replaced by a program that prints its arguments.

    The script is what is tested; a real torchrun would wait for the other nodes.
    """
    program = tmp_path / "torchrun"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    (tmp_path / "run.sh").write_text(script)
    return subprocess.run(
        ["sh", str(tmp_path / "run.sh"), "train.py", "--lr=1 e"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NODE_NAME": name},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["ip-10-0-0-0.ec2.internal", "ip-10-0-0-0"])
def test_the_torchrun_script_finds_its_node_rank(tmp_path, name):
    ran = run_script(torchrun_script(HOSTS, node_devices=4), tmp_path, name)
    assert ran.stdout.splitlines() == [
        "--nnodes=4",
        "--nproc-per-node=4",
        "--node-rank=2",
        "--master-addr=ip-10-0-0-3.ec2.internal",
        "--master-port=29500",
        "train.py",
        "--lr=1 e",
    ]


def test_a_stranger_is_told_so(tmp_path):
    ran = run_script(torchrun_script(HOSTS, node_devices=4), tmp_path, "elsewhere")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "elsewhere is not a node of this placement\n"


def test_names_of_hosts_are_never_patterns_or_commands(tmp_path):
    script = torchrun_script(["a*", "$(touch${IFS}here)", "b"], node_devices=8)
    assert run_script(script, tmp_path, "abc").returncode == 2
    assert "--node-rank=1" in run_script(script, tmp_path, "$(touch${IFS}here)").stdout
    assert not (tmp_path / "here").exists()


def test_addresses_have_no_short_names(tmp_path):
    script = torchrun_script(["10.0.0.1", "10.0.0.2"], node_devices=8)
    assert "--node-rank=1" in run_script(script, tmp_path, "10.0.0.2").stdout
    assert run_script(script, tmp_path, "10").returncode == 2


@pytest.mark.skipif(shutil.which("torchrun") is None, reason="torch is not installed here")
def test_a_real_torchrun_takes_the_script(tmp_path):
    (tmp_path / "train.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path(__file__).with_name('rank' + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])\n"
    )
    script = torchrun_script(["localhost"], node_devices=2, port=0)
    (tmp_path / "run.sh").write_text(script)
    ran = subprocess.run(
        ["sh", str(tmp_path / "run.sh"), str(tmp_path / "train.py")],
        env={"PATH": f"{shutil.which('torchrun').rpartition('/')[0]}:/usr/bin:/bin", "NODE_NAME": "localhost"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert {file.name: file.read_text() for file in tmp_path.glob("rank*")} == {"rank0": "2", "rank1": "2"}


def test_an_affinity_is_one_that_the_client_of_kubernetes_knows():
    client = pytest.importorskip("kubernetes.client", reason="the client of Kubernetes is not installed here")
    entries = yaml.safe_load(kubernetes_affinities(HOSTS))
    assert [entry["index"] for entry in entries] == [0, 1, 2, 3]
    affinity = client.ApiClient().deserialize(json.dumps(entries[2]["affinity"]), "V1Affinity", "application/json")
    required = affinity.node_affinity.required_during_scheduling_ignored_during_execution
    (match,) = required.node_selector_terms[0].match_fields
    assert (match.key, match.operator, match.values) == ("metadata.name", "In", ["ip-10-0-0-0.ec2.internal"])


@pytest.mark.parametrize("host", ["a b", "a\nrank 0=evil", "a\x1b[31m", "a=b", "#a"])
def test_a_name_that_would_break_a_file_is_refused(host):
    fabric = Fabric((FabricNode("x", ("leaf",), host=host),))
    placed = Placement(JobShape(tp=8, pp=1, dp=1), (("x",),), "hops", 0, 0, 0, 0, proved_optimal=True)
    with pytest.raises(TopologyError, match="cannot be written to a launch file"):
        host_names(placed, fabric)
