"""Nodes and pods as ``kubectl -o json`` prints them: labels to switches, pods to free devices, jobs and ranks."""

import json

import pytest

from dlcalc.errors import DlcalcError
from dlcalc.topology.sources.labels import chains_of, domain_of
from dlcalc.topology.sources.read import read_fabric


def node(name, labels=None, *, devices=8, resource="nvidia.com/gpu", ready="True", allocatable=None, **spec):
    count = {} if devices is None else {resource: str(devices)}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels or {"topology.kubernetes.io/zone": "z"}},
        "spec": spec,
        "status": {
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
            "capacity": {"cpu": "96", **count},
            "allocatable": count if allocatable is None else {resource: str(allocatable)},
        },
    }


def container(devices, **more):
    return {"resources": {"limits": {"nvidia.com/gpu": str(devices)}} if devices else {}, **more}


def pod(name, on, devices=8, labels=None, *, phase="Running", namespace="ml", init=(), annotations=None, **metadata):
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels or {},
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {"nodeName": on, "containers": [container(devices), container(0)], "initContainers": list(init)},
        "status": {"phase": phase},
    }


def fabric(tmp_path, *items, kind="List", **options):
    file = tmp_path / "k.json"
    file.write_text(json.dumps({"kind": kind, "items": list(items)}, indent=1))
    return read_fabric(str(file), **options)


def ranks(tmp_path, *pods, **options):
    """Job and rank of the nodes that ``pods`` are on."""
    names = dict.fromkeys(each["spec"]["nodeName"] for each in pods)
    found = fabric(tmp_path, *[node(name) for name in names], *pods, **options)
    return {each.name: (each.job, each.rank) for each in found.nodes if each.state == "busy"}


# Labels


@pytest.mark.parametrize(
    ("labels", "chain"),
    [
        (
            {f"topology.k8s.aws/network-node-layer-{n}": f"nn-{n}" for n in (1, 2, 3, 4)},
            ("nn-4", "nn-3", "nn-2", "nn-1"),
        ),
        ({f"fabric.topograph.run/tier-{n}": f"t{n}" for n in (10, 0, 2)}, ("t0", "t2", "t10")),
        (
            {f"network.topology.nvidia.com/{name}": name for name in ("core", "spine", "leaf", "accelerator")},
            ("leaf", "spine", "core"),
        ),
        (
            {f"network.topology.kubernetes.io/{name}": name for name in ("datacenter", "spine", "block")},
            ("block", "spine", "datacenter"),
        ),
        (
            {f"cloud.google.com/gce-topology-{name}": name for name in ("block", "subblock", "host")},
            ("subblock", "block"),
        ),
        (
            {"oci.oraclecloud.com/host.network_block_id": "net", "oci.oraclecloud.com/host.rack_id": "rack"},
            ("rack", "net"),
        ),
        (
            {f"oci.oraclecloud.com/rdma.{name}_id": name for name in ("hpc_island", "local_block", "network_block")},
            ("local_block", "network_block", "hpc_island"),
        ),
        ({"nvidia.com/gpu.clique": "uuid.7", "topology.kubernetes.io/zone": "a"}, ("uuid.7",)),
        ({"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r"}, ("a", "r")),
        ({"nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0"}, ()),
        ({"kubernetes.io/hostname": "x"}, ()),
    ],
)
def test_every_family_runs_from_the_closest_to_the_farthest(labels, chain):
    (found,), _ = chains_of([labels])
    assert found == chain


def test_a_cluster_is_read_by_the_family_of_most_nodes():
    aws = {"topology.k8s.aws/network-node-layer-1": "top", "topology.kubernetes.io/zone": "z"}
    tiers = {"fabric.topograph.run/tier-0": "leaf"}
    chains, family = chains_of([aws, aws, tiers])
    assert chains == [("top",), ("top",), ()]
    assert family.name == "topology.k8s.aws/network-node-layer-*"
    assert chains_of([aws, tiers])[0] == [(), ("leaf",)]


def test_a_host_is_a_switch_only_where_it_holds_several_nodes():
    labels = [
        {
            f"cloud.google.com/gce-topology-{name}": value
            for name, value in zip(("block", "subblock", "host"), row, strict=True)
        }
        for row in (("b", "s", "h1"), ("b", "s", "h1"), ("b", "s", "h2"))
    ]
    assert chains_of(labels)[0] == [("h1", "s", "b"), ("h1", "s", "b"), ("h2", "s", "b")]
    assert chains_of(labels[1:])[0] == [("s", "b"), ("s", "b")]


def test_values_that_repeat_below_others_are_told_apart():
    labels = [
        {"cloud.google.com/gce-topology-block": block, "cloud.google.com/gce-topology-subblock": subblock}
        for block, subblock in (("1", "1"), ("1", "2"), ("2", "1"), ("2", "x"))
    ]
    assert chains_of(labels)[0] == [("1/1", "1"), ("1/2", "1"), ("2/1", "2"), ("x", "2")]


@pytest.mark.parametrize(
    ("labels", "domain"),
    [
        ({"nvidia.com/gpu.clique": "u.1", "topology.k8s.aws/ultraserver-id": "us"}, "u.1"),
        (
            {
                "nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0",
                "topology.k8s.aws/ultraserver-id": "us",
            },
            "us",
        ),
        ({"topology.k8s.aws/capacity-block-id": "cb"}, "cb"),
        ({"accelerator.topograph.run/domain": "d"}, "d"),
        ({"network.topology.nvidia.com/accelerator": "nvl1"}, "nvl1"),
        ({}, ""),
    ],
)
def test_nvlink_domains(labels, domain):
    assert domain_of(labels) == domain


# Free and busy


def test_what_makes_a_node_free(tmp_path):
    found = fabric(
        tmp_path,
        node("free"),
        node("down", ready="Unknown"),
        node("cordoned", unschedulable=True),
        node("gpu-taint", taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]),
        node("lost", taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]),
        node("sick", allocatable=7),
        node("full"),
        node("ended"),
        node("two-used"),
        node("leaving", unschedulable=True),
        node("cpu", devices=None),
        node("neuron", resource="aws.amazon.com/neuron", devices=16),
        pod("a", "full"),
        pod("b", "ended", phase="Succeeded"),
        pod("c", "ended", phase="Failed"),
        pod("d", "two-used", devices=2),
        pod("e", "leaving"),
        pod("f", "free", devices=0),
        pod("g", None),
    )
    assert {each.name: (each.state, each.why_unusable) for each in found.nodes} == {
        "free": ("free", ""),
        "down": ("unusable", "not ready"),
        "cordoned": ("unusable", "cordoned"),
        "gpu-taint": ("free", ""),
        "lost": ("unusable", "tainted node.kubernetes.io/unreachable"),
        "sick": ("unusable", "7 of 8 devices are healthy"),
        "full": ("busy", ""),
        "ended": ("free", ""),
        "two-used": ("busy", ""),
        "leaving": ("busy", ""),
        "neuron": ("free", ""),
    }
    assert found.by_name["neuron"].n_devices == 16
    assert found.remarks[0] == "1 nodes without devices are left out"


def test_enough_devices_is_what_is_asked_for(tmp_path):
    items = [node("a"), node("b", devices=4), pod("p", "a", devices=3)]
    found = fabric(tmp_path, *items, node_devices=5)
    assert [(each.name, each.state) for each in found.nodes] == [("a", "free"), ("b", "unusable")]
    assert fabric(tmp_path, *items, node_devices=6).by_name["a"].state == "busy"


@pytest.mark.parametrize(
    ("init", "main", "state_with_8", "needed"),
    [
        ([container(8)], 0, "busy", 1),  # runs before, with all of them
        ([container(4)], 4, "free", 4),  # one after the other: 4, not 8
        ([container(4, restartPolicy="Always")], 4, "busy", 1),  # side by side: 8
        ([container(2, restartPolicy="Always"), container(6)], 1, "busy", 1),  # 2 + 6 before, 2 + 1 after
        ([container(6), container(2, restartPolicy="Always")], 1, "free", 2),
    ],
)
def test_init_containers(tmp_path, init, main, state_with_8, needed):
    """https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers."""
    found = fabric(tmp_path, node("a"), pod("p", "a", devices=main, init=init), node_devices=needed)
    assert found.nodes[0].state == state_with_8
    if state_with_8 == "free":
        assert (
            fabric(tmp_path, node("a"), pod("p", "a", main, init=init), node_devices=needed + 1).nodes[0].state
            == "busy"
        )


def test_instance_ids(tmp_path):
    aws = "aws:///us-east-1a/i-0123456789abcdef0"
    csi = {"csi.volume.kubernetes.io/nodeid": json.dumps({"fsx.csi": "x", "ebs.csi.aws.com": "i-0fedcba9876543210"})}
    by_csi = node("ip-2")
    by_csi["metadata"]["annotations"] = csi
    broken = node("ip-3")
    broken["metadata"]["annotations"] = {"csi.volume.kubernetes.io/nodeid": "{"}
    found = fabric(
        tmp_path,
        node("ip-1", providerID=aws),
        by_csi,
        broken,
        node("fargate", providerID="aws:///us-east-1a/0123/fargate-ip-1"),
        node("gke", providerID="gce://project/zone/name"),
    )
    assert [(each.name, each.host_name) for each in found.nodes] == [
        ("i-0123456789abcdef0", "ip-1"),
        ("i-0fedcba9876543210", "ip-2"),
        ("ip-3", "ip-3"),
        ("fargate", "fargate"),
        ("gke", "gke"),
    ]
    twice = fabric(tmp_path, node("old", providerID=aws, ready="False"), node("new", providerID=aws))
    assert [each.name for each in twice.nodes] == ["old", "new"]


# Jobs and ranks

BATCH, JOBSET = "batch.kubernetes.io/", "jobset.sigs.k8s.io/"
KUBEFLOW, LWS = "training.kubeflow.org/", "leaderworkerset.sigs.k8s.io/"


def indexed(index, **more):
    return {BATCH + "job-name": "llama", BATCH + "job-completion-index": str(index), **more}


def test_indexed_job(tmp_path):
    assert ranks(tmp_path, pod("x", "n1", labels=indexed(1)), pod("y", "n0", labels=indexed(0))) == {
        "n1": ("llama", 1),
        "n0": ("llama", 0),
    }
    by_annotation = pod("x", "n3", labels={"job-name": "llama"}, annotations={BATCH + "job-completion-index": "3"})
    assert ranks(tmp_path, by_annotation) == {"n3": ("llama", 3)}


def jobset(job, index, *, overall=True, name="workers"):
    labels = {JOBSET + "jobset-name": "llama", JOBSET + "replicatedjob-name": name, JOBSET + "job-index": str(job)}
    if overall:
        labels[JOBSET + "job-global-index"] = str(job)
    return {**labels, **indexed(index), BATCH + "job-name": f"llama-{name}-{job}"}


@pytest.mark.parametrize("overall", [True, False])
def test_jobset_ranks_count_through_its_jobs(tmp_path, overall):
    found = ranks(
        tmp_path,
        *[
            pod(f"p{job}{index}", f"n{job}{index}", labels=jobset(job, index, overall=overall))
            for job in (1, 0, 3)  # no pod of job 2 has a node yet
            for index in (1, 0)
        ],
    )
    assert found == {f"n{job}{index}": ("llama", 2 * job + index) for job in (0, 1, 3) for index in (0, 1)}


def test_a_launcher_without_devices_has_no_rank(tmp_path):
    launcher = pod("launcher", "n9", 0, labels={**jobset(0, 0, name="launcher")})
    workers = [pod(f"w{index}", f"n{index}", labels={**jobset(1, index)}) for index in (0, 1)]
    assert ranks(tmp_path, launcher, *workers) == {"n0": ("llama", 0), "n1": ("llama", 1)}


def kubeflow(role, index):
    return {KUBEFLOW + "job-name": "llama", KUBEFLOW + "replica-type": role, KUBEFLOW + "replica-index": str(index)}


def test_pytorchjob_puts_the_master_first(tmp_path):
    workers = [pod(f"w{index}", f"n{index}", labels=kubeflow("worker", index)) for index in (0, 1)]
    master = pod("m", "nm", labels=kubeflow("Master", 0))
    assert ranks(tmp_path, *workers, master) == {"n0": ("llama", 1), "n1": ("llama", 2), "nm": ("llama", 0)}
    assert ranks(tmp_path, *workers) == {"n0": ("llama", 0), "n1": ("llama", 1)}


def test_leaderworkerset_volcano_and_statefulset(tmp_path):
    lws = [
        pod(f"p{group}{index}", f"n{group}{index}", labels={
            LWS + "name": "l", LWS + "group-index": str(group), LWS + "worker-index": str(index)
        })
        for group in (0, 1) for index in (0, 1)
    ]  # fmt: skip
    assert ranks(tmp_path, *lws) == {"n00": ("l", 0), "n01": ("l", 1), "n10": ("l", 2), "n11": ("l", 3)}
    volcano = {"volcano.sh/job-name": "v", "volcano.sh/task-spec": "worker", "volcano.sh/task-index": "4"}
    assert ranks(tmp_path, pod("x", "n", labels=volcano)) == {"n": ("v", 4)}
    assert ranks(tmp_path, pod("trainer-5", "n", labels={"apps.kubernetes.io/pod-index": "5"})) == {"n": ("trainer", 5)}


def test_names_that_end_in_worker_n(tmp_path):
    pods = [pod("llama-70b-worker-1", "n1"), pod("llama-70b-worker-0", "n0"), pod("llama-70b-master-0", "nm")]
    assert ranks(tmp_path, *pods) == {"n1": ("llama-70b", 2), "n0": ("llama-70b", 1), "nm": ("llama-70b", 0)}
    assert ranks(tmp_path, *pods[:2]) == {"n1": ("llama-70b", 1), "n0": ("llama-70b", 0)}


def test_pods_of_no_known_kind(tmp_path):
    assert ranks(tmp_path, pod("x-7f9", "n", ownerReferences=[{"name": "x"}])) == {"n": ("x", None)}
    assert ranks(tmp_path, pod("alone", "n")) == {"n": ("alone", None)}


def test_several_pods_of_a_job_on_one_node(tmp_path):
    """Nodes are in the order of the first pod of each."""
    pods = [pod(f"p{index}", f"n{3 - index // 4}", 2, labels=indexed(index)) for index in range(16)]
    assert ranks(tmp_path, *pods) == {"n3": ("llama", 0), "n2": ("llama", 1), "n1": ("llama", 2), "n0": ("llama", 3)}


def test_a_pod_that_is_replaced_gives_up_its_rank(tmp_path):
    old = pod("old", "n1", labels=indexed(0), deletionTimestamp="2026-01-01T00:00:00Z")
    assert ranks(tmp_path, old, pod("new", "n2", labels=indexed(0))) == {"n1": ("llama", None), "n2": ("llama", 0)}


def test_namespaces(tmp_path):
    pods = [pod("a", "n1", labels=indexed(0)), pod("b", "n2", labels=indexed(0), namespace="other")]
    assert ranks(tmp_path, *pods) == {"n1": ("llama (ml)", 0), "n2": ("llama (other)", 0)}
    assert ranks(tmp_path, *pods, namespace="ml") == {"n1": ("llama", 0), "n2": ("", None)}
    assert [
        each.name for each in fabric(tmp_path, node("n1"), *pods, job_prefix="lla", namespace="ml").of_job("l")
    ] == ["n1"]


def test_the_job_with_most_devices_names_the_node(tmp_path):
    pods = [pod("small-worker-0", "n", 2), pod("large-worker-3", "n", 6)]
    assert ranks(tmp_path, *pods) == {"n": ("large", 3)}


# Files


def test_what_kubectl_prints_without_pods(tmp_path):
    bare = node("a")
    del bare["kind"]
    assert fabric(tmp_path, bare, kind="NodeList").remarks == (
        "pods are not in the file, so nodes that hold jobs look free; save `kubectl get nodes,pods -A -o json`",
    )
    file = tmp_path / "k.yaml"
    file.write_text(
        "apiVersion: v1\nkind: List\nitems:\n- kind: Node\n  metadata: {name: a}\n"
        "  status: {capacity: {nvidia.com/gpu: '8'}, conditions: [{type: Ready, status: 'True'}]}\n"
    )
    assert [each.name for each in read_fabric(str(file)).without_data()] == ["a"]


def broken(path, value):
    whole = {"kind": "List", "items": [node("a"), pod("p", "a")]}
    holder = whole
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"kind": "List", "items": []}, "holds no nodes, but nothing; save `kubectl get nodes,pods -A -o json`"),
        ({"kind": "PodList", "items": [{}]}, "holds no nodes, but 1 Pod; save"),
        ({"kind": "List", "items": None}, "holds no nodes, but nothing"),
        (broken(["items"], 7), "items: must be a list, not 7"),
        (broken(["items", 0], 7), "items[0]: must be a mapping (key: value), not 7"),
        (broken(["items", 0, "metadata"], []), "items[0].metadata: must be a mapping (key: value), not a list"),
        (broken(["items", 0, "metadata", "name"], None), "items[0].metadata.name: must not be null"),
        (broken(["items", 0, "metadata", "labels", "x"], 1), "items[0].metadata.labels.x: must be text, not 1"),
        (broken(["items", 0, "status", "conditions", 0], "x"), "items[0].status.conditions[0]: must be a mapping"),
        (broken(["items", 0, "spec", "providerID"], 5), "items[0].spec.providerID: must be text, not 5"),
        (broken(["items", 0, "spec", "taints"], 5), "items[0].spec.taints: must be a list, not 5"),
        (broken(["items", 0, "status", "capacity"], {"nvidia.com/gpu": "x"}), None),
        (
            broken(["items", 1, "spec", "containers", 0, "resources"], 1),
            "spec.containers[0].resources: must be a mapping",
        ),
        (
            broken(["items", 1, "metadata", "ownerReferences"], 1),
            "items[1].metadata.ownerReferences: must be a list, not 1",
        ),
        (
            {"kind": "List", "items": [node("a", devices=None)]},
            "none of 1 nodes has devices (capacity of nvidia.com/gpu, ",
        ),
        ({"kind": "List", "items": [node("a"), node("a")]}, "node a is there twice"),
        (
            {
                "kind": "List",
                "items": [
                    node("a", {"fabric.topograph.run/tier-0": "x", "fabric.topograph.run/tier-1": "y"}),
                    node("b", {"fabric.topograph.run/tier-0": "x", "fabric.topograph.run/tier-1": "z"}),
                ],
            },
            "switch x is under both y and z (node b): not a tree",
        ),
    ],
)
def test_odd_objects(tmp_path, data, told):
    (tmp_path / "k.json").write_text(json.dumps(data, indent=1))
    if told is None:
        assert read_fabric(str(tmp_path / "k.json")).nodes[0].n_devices == 8  # allocatable says so
        return
    with pytest.raises(DlcalcError) as error:
        read_fabric(str(tmp_path / "k.json"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
