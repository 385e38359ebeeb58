"""A real slurmctld, and scontrol as the judge of names and of the tree. Nodes are simulated: nothing runs on them."""

import os
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.errors import TopologyError
from dlcalc.topology.sources.hostlist import expand
from dlcalc.topology.sources.read import read_fabric, save_fabric
from tests.slurm_cluster import MISSING, NODES, running_slurm, scontrol

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


def told_by_scontrol(node):
    """The switches above ``node``, closest first, as ``scontrol show topology NODE`` lists them."""
    found = []
    for line in scontrol("show", "topology", node).stdout.splitlines():
        told = dict(word.split("=", 1) for word in line.split())
        found.append((int(told["Level"]), told["SwitchName"]))
    return tuple(name for _, name in sorted(found))


def test_the_tree_is_what_the_controller_says(cluster):
    live, from_file = read_fabric("slurm"), read_fabric(str(cluster / "topology.conf"))
    assert [node.name for node in live.nodes] == expand(NODES)
    for node in live.nodes:
        assert node.switches == told_by_scontrol(node.name) == from_file.by_name[node.name].switches
    assert live.by_name["n08"].switches == ("l2", "s1", "core")


def test_jobs_and_drained_nodes(cluster, tmp_path):
    assert scontrol("update", "nodename=n3", "state=drain", "reason=bad fan, see #12").returncode == 0
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep 1000\n")
    for name, options in (
        ("llama-70b", ["-N2", "-w", "n[5-6]", "--gres=gpu:8"]),
        ("small", ["-w", "n08", "--gres=gpu:2"]),
    ):
        subprocess.run(["sbatch", "-J", name, *options, str(script)], check=True, capture_output=True, cwd=tmp_path)
    for _ in range(60):
        fabric = read_fabric("slurm")
        if fabric.by_name["n08"].state == fabric.by_name["n5"].state == "busy":
            break
        time.sleep(0.5)
    assert [(node.name, node.rank) for node in fabric.of_job("llama")] == [("n5", 0), ("n6", 1)]
    assert [node.name for node in fabric.of_job("small")] == ["n08"]
    assert fabric.by_name["n3"].state == "unusable"
    assert "bad fan, see #12" in fabric.by_name["n3"].why_unusable
    assert {node.name for node in fabric.candidates()} == set(expand("n[0-2],n4,n7,n09,n[10-11]"))
    assert {node.n_devices for node in fabric.nodes} == {8}
    saved = tmp_path / "slurm.yaml"
    save_fabric(fabric, saved)
    assert read_fabric(str(saved)) == fabric


def test_a_controller_that_is_not_there(cluster, tmp_path, monkeypatch):
    conf = tmp_path / "slurm.conf"
    text = (cluster / "slurm.conf").read_text()
    conf.write_text(text.replace("SlurmctldPort=", "SlurmctldTimeout=5\nMessageTimeout=2\nSlurmctldPort=1#"))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(TopologyError, match=r"^slurm: `scontrol .*` failed: .*Unable to contact") as error:
        read_fabric("slurm")
    assert "\n" not in str(error.value)


def test_without_scontrol(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TopologyError, match="scontrol is not there; run this where Slurm's commands are, or save"):
        read_fabric("slurm")


numbers = st.integers(0, 200).map(str) | st.sampled_from(["00", "007", "018", "0"])
ranges = st.tuples(numbers, st.none() | st.integers(0, 12)).map(
    lambda pair: pair[0] if pair[1] is None else f"{pair[0]}-{int(pair[0]) + pair[1]}"
)
brackets = st.lists(ranges, min_size=1, max_size=3).map(lambda found: f"[{','.join(found)}]")
words = st.builds(
    "".join,
    st.tuples(st.sampled_from(["n", "rack-", "a1b"]), brackets | st.just(""), st.sampled_from(["", "x"]), brackets),
)


@settings(max_examples=60)
@given(st.lists(words, min_size=1, max_size=3).map(",".join))
def test_hostlists_are_what_scontrol_says(hostlists_conf, text):
    ran = subprocess.run(
        ["scontrol", "show", "hostnames", text],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SLURM_CONF": str(hostlists_conf)},
    )
    assert expand(text) == ran.stdout.split()


@pytest.fixture(scope="module")
def hostlists_conf(tmp_path_factory):
    conf = tmp_path_factory.mktemp("conf") / "slurm.conf"
    conf.write_text("ClusterName=t\nSlurmctldHost=localhost\nNodeName=n0\nPartitionName=p Nodes=ALL\n")
    return conf
