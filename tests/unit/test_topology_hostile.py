"""Whatever a file holds, reading it gives a fabric or one clear error, never a traceback."""

import copy
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.errors import DlcalcError
from dlcalc.topology.sources.read import read_fabric

EC2 = {
    "Instances": [
        {"InstanceId": "i-1", "InstanceType": "p5.48xlarge", "NetworkNodes": ["a", "b", "c"], "ZoneId": "use1-az1"},
        {
            "InstanceId": "i-2",
            "NetworkNodes": ["a", "b", "d"],
            "AvailabilityZone": "us-east-1a",
            "CapacityBlockId": None,
        },
    ],
    "Reservations": [{"OwnerId": "1", "Instances": [{"InstanceId": "i-1", "State": {"Name": "running"}}]}],
    "NextToken": None,
}
RESERVED = {
    "CapacityReservations": [
        {"CapacityReservationId": "cr-1", "State": "active", "NetworkNodes": ["a"], "AvailableInstanceCount": 2}
    ]
}
KUBERNETES = {
    "kind": "List",
    "items": [
        {
            "kind": "Node",
            "metadata": {
                "name": "n",
                "labels": {"fabric.topograph.run/tier-0": "a", "nvidia.com/gpu.clique": "u.1"},
                "annotations": {"csi.volume.kubernetes.io/nodeid": '{"x": "i-01234567"}'},
            },
            "spec": {"providerID": "kind://n", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                "capacity": {"nvidia.com/gpu": "8"},
                "allocatable": {"nvidia.com/gpu": "8"},
            },
        },
        {
            "kind": "Pod",
            "metadata": {
                "name": "p-worker-1",
                "namespace": "d",
                "labels": {"jobset.sigs.k8s.io/jobset-name": "j", "jobset.sigs.k8s.io/job-global-index": "1"},
                "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
                "ownerReferences": [{"name": "o"}],
            },
            "spec": {
                "nodeName": "n",
                "containers": [{"resources": {"requests": {"nvidia.com/gpu": "4"}}}],
                "initContainers": [{"resources": {"limits": {"nvidia.com/gpu": 2}}, "restartPolicy": "Always"}],
            },
            "status": {"phase": "Running"},
        },
    ],
}
SLURM = [
    {"topology": "t", "cluster_default": True, "tree": {"switches": [{"switch": "s", "nodes": "n[0-1]"}]}},
    {"topology": "u", "block": {"block_sizes": [2, 4], "blocks": [{"block": "b", "nodes": "m[0-1]"}]}},
]
PLAIN = {
    "source": "s",
    "tier_gbit_per_s_per_node": [400, None],
    "node_defaults": {"n_devices": 8},
    "parents": {"s": "t"},
    "switches": [{"switch": "u", "switches": [{"switch": "v", "nodes": "n[0-1]"}], "nodes": [{"name": "x"}]}],
    "nodes": [{"name": "a", "switch": "s"}, {"name": "b", "switches": ["s", "t"], "rank": 0}, "c"],
    "remarks": ["r"],
}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "n[0-3", "s", "a", "True", "[", "i-1", "1" * 50])
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


@st.composite
def damaged(draw):
    """A good answer in which a few values are another, gone, or there twice."""
    data = copy.deepcopy(draw(st.sampled_from([EC2, RESERVED, KUBERNETES, SLURM, PLAIN])))
    for _ in range(draw(st.integers(1, 3))):
        inner = [path for path in places(data) if path]
        if not inner:
            break
        *way, last = draw(st.sampled_from(inner))
        holder = data
        for part in way:
            holder = holder[part]
        match draw(st.sampled_from(["other", "gone", "twice"])):
            case "gone":
                del holder[last]
            case "twice" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case _:
                holder[last] = draw(anything)
    return data


def is_told_well(file):
    try:
        read_fabric(str(file))
    except DlcalcError as error:
        lines = str(error).splitlines()
        return error.exit_code == 2 and all(line.startswith(str(file)) and line.isprintable() for line in lines)
    return True


@settings(max_examples=400)
@given(data=damaged(), as_yaml=st.booleans())
def test_damaged_answers(tmp_path_factory, data, as_yaml):
    file = tmp_path_factory.getbasetemp() / f"hostile.{'yaml' if as_yaml else 'json'}"
    file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    assert is_told_well(file)


@pytest.mark.parametrize(
    "data", [EC2, RESERVED, KUBERNETES, SLURM, PLAIN], ids=["ec2", "reserved", "k8s", "slurm", "plain"]
)
def test_answers_that_are_cut_off(tmp_path, data):
    text = json.dumps(data)
    for end in range(1, len(text), 7):
        (tmp_path / "cut.json").write_text(text[:end])
        assert is_told_well(tmp_path / "cut.json")


@settings(max_examples=300)
@given(
    text=st.lists(
        st.sampled_from(
            [
                *("SwitchName=a", "switchname = b", " Switches=a", " Switches=b[0-1]", " Nodes=n[0-3]", " Nodes=n["),
                *("\\\n", "\n", "#", "=", " Level=1", "BlockName=x", "BlockSizes=2,4", "NodeName=n0 State=IDLE"),
                *("JobId=1 JobState=RUNNING NodeList=n[0", " ", '"', "\x85", "é", "\0", "NodeName=", "JobId="),
            ]
        ),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_any_slurm_text(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "hostile.conf"
    file.write_text("SwitchName=z Nodes=z\n" + text, encoding="utf-8")
    assert is_told_well(file)


@settings(max_examples=200)
@given(content=st.binary(max_size=60))
def test_any_bytes(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "hostile.bin"
    file.write_bytes(content)
    assert is_told_well(file)


@pytest.mark.parametrize(("service", "module"), [("ec2", "boto3"), ("kubernetes", "kubernetes")])
def test_a_client_that_is_not_installed(monkeypatch, service, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DlcalcError, match=r"is not installed; pip install 'dlcalc\[topology\]'$"):
        read_fabric(service)


def test_a_service_that_is_misspelled():
    with pytest.raises(DlcalcError, match=r"^--topology kubernets: no such file; did you mean kubernetes\?$"):
        read_fabric("kubernets")
    with pytest.raises(DlcalcError, match=r"no such file and no service \(ec2, ec2-reservations, kubernetes, slurm\)$"):
        read_fabric("xyz")


def test_a_reservation_of_more_instances_than_exist(tmp_path):
    data = copy.deepcopy(RESERVED)
    data["CapacityReservations"][0]["AvailableInstanceCount"] = 10**12
    file = tmp_path / "many.json"
    file.write_text(json.dumps(data, indent=1))
    with pytest.raises(DlcalcError, match=r"many\.json:\d+: .*AvailableInstanceCount.* 1,000,000,000,000 nodes"):
        read_fabric(str(file))
