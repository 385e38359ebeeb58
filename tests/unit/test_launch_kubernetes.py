"""Manifests, judged by the schemas of Kubernetes and by the models of Kubeflow's own client."""

import re
import warnings

import pytest
import yaml
from hypothesis import given, settings

from dlcalc.errors import DlcalcError
from dlcalc.launch.bundle import bundle
from dlcalc.launch.job import Variable
from dlcalc.launch.schedulers.kubernetes import NAME_ANNOTATION, resource_name
from tests.launch_jobs import job
from tests.launch_parts import NAMES, emitted, names

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
kubeflow = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")

IMAGE = "nvcr.io/nvidia/nemo:25.09"
KINDS = ("trainjob", "jobset", "pytorchjob")
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def documents(kind, part=None, **of_job):
    """The ConfigMap and the job of a manifest."""
    given = {"dp": 16, "container": IMAGE, "name": "$(rm -rf ~)", **of_job}
    return list(yaml.safe_load_all(bundle(job("megatron-lm", **given), part or emitted(), kind)["job.yaml"]))


def must_be_valid(document):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of importlib.resources
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def pods(kind, made):
    """Every pod template of a job."""
    spec = made["spec"]
    if kind == "jobset":
        return [one["template"]["spec"]["template"] for one in spec["replicatedJobs"]]
    return [one["template"] for one in spec["pytorchReplicaSpecs"].values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [8, 32])
def test_what_the_operator_does_not_own_is_what_kubernetes_knows(kind, devices):
    config, made = documents(kind, dp=devices)
    must_be_valid(config)
    if kind == "jobset":
        for one in made["spec"]["replicatedJobs"]:
            must_be_valid({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **one["template"]})
    if kind != "trainjob":
        for pod in pods(kind, made):
            must_be_valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]})
            must_be_valid({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod})


@pytest.mark.parametrize("name", [*NAMES, "plain"])
@pytest.mark.parametrize("hosts", [(), ("n1", "n2")])
def test_a_job_set_is_what_the_client_reads(name, hosts):
    _, made = documents("jobset", name=name, hosts=hosts)
    assert kubeflow.JobsetV1alpha2JobSet.from_dict(made).to_dict() == made


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(("devices", "hosts"), [(8, ()), (8, ("n1",)), (64, ())])
def test_a_train_job_is_what_the_client_reads(image, devices, hosts):
    _, made = documents("trainjob", dp=devices, container=image, hosts=hosts)
    assert kubeflow.TrainerV1alpha1TrainJob.from_dict(made).to_dict() == made
    assert made["spec"]["trainer"]["numNodes"] * made["spec"]["trainer"]["numProcPerNode"] == devices
    (patch,) = made["spec"]["runtimePatches"]
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    must_be_valid({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {**pod, "containers": [{"image": "a", **pod["containers"][0]}]},
    })  # fmt: skip
    assert not any(one["name"].startswith("PET_") for one in made["spec"]["trainer"]["env"])  # the controller's own


@pytest.mark.parametrize("kind", KINDS)
def test_pods_find_the_files(kind):
    part = emitted(files={"config.yaml": "a: 1\n", "conf/deep.yaml": "tab\there\nmodèle: 'x'\n"})
    config, made = documents(kind, part)
    files = bundle(job("megatron-lm", dp=16, container=IMAGE, name="$(rm -rf ~)"), part, kind)
    spec = made["spec"]
    pod = (
        spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
            "template"
        ]["spec"]
        if kind == "trainjob"
        else pods(kind, made)[0]["spec"]
    )
    (volume,) = [one for one in pod["volumes"] if one["name"] == "bundle"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    mounted = {item["path"]: config["data"][item["key"]] for item in volume["configMap"]["items"]}
    assert mounted == {name: files[name] for name in ("train.sh", "config.yaml", "conf/deep.yaml")}
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "bundle"]
    assert mount == {"name": "bundle", "mountPath": "/dlcalc", "readOnly": True}


@pytest.mark.parametrize("hosts", [(), ("n7", "n1", "n4", "n2")])
def test_ranks_of_a_job_set(hosts):
    _, made = documents("jobset", dp=32, name="a", hosts=hosts)
    jobs = made["spec"]["replicatedJobs"]
    envs = [
        {one["name"]: one.get("value", one.get("valueFrom")) for one in pod["spec"]["containers"][0]["env"]}
        for pod in pods("jobset", made)
    ]
    if not hosts:
        (spec,) = [one["template"]["spec"] for one in jobs]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
        path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        assert envs[0]["PET_NODE_RANK"] == {"fieldRef": {"fieldPath": path}}
        assert envs[0]["PET_MASTER_ADDR"] == "a-node-0-0.a"
        return
    assert [env["PET_NODE_RANK"] for env in envs] == ["0", "1", "2", "3"]
    assert {env["PET_MASTER_ADDR"] for env in envs} == {"a-node-0-0-0.a"}
    assert [one["name"] for one in jobs] == [f"node-{rank}" for rank in range(4)]
    for pod, host in zip(pods("jobset", made), hosts, strict=True):
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert required["nodeSelectorTerms"][0]["matchFields"][0]["values"] == [host]


def test_two_placed_hosts_are_a_master_and_a_worker():
    _, made = documents("pytorchjob", hosts=("n7", "n1"))
    assert [one["replicas"] for one in made["spec"]["pytorchReplicaSpecs"].values()] == [1, 1]
    assert ["n7" in str(pod["spec"]["affinity"]) for pod in pods("pytorchjob", made)] == [True, False]


@pytest.mark.parametrize(("kind", "devices"), [("trainjob", 16), ("pytorchjob", 24)])
def test_what_one_template_cannot_place(kind, devices):
    hosts = tuple(f"n{rank}" for rank in range(devices // 8))
    with pytest.raises(DlcalcError, match=rf"{kind} makes its pods from one template .* --scheduler jobset can"):
        documents(kind, dp=devices, global_batch=devices, hosts=hosts)


@pytest.mark.parametrize(
    ("hardware", "resources"),
    [
        ("h100", {"nvidia.com/gpu": "8"}),
        ("mi300x", {"amd.com/gpu": "8"}),
        ("p5.48xlarge", {"nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32"}),
        ("gb200_nvl72", {"nvidia.com/gpu": "4"}),
    ],
)
def test_resources(hardware, resources):
    _, made = documents("jobset", hardware=hardware)
    container = pods("jobset", made)[0]["spec"]["containers"][0]
    assert container["resources"] == {"requests": resources, "limits": resources}
    readme = bundle(job("megatron-lm", hardware=hardware, dp=16, container=IMAGE), emitted(), "jobset")["README.md"]
    assert ("falls back to TCP" in " ".join(readme.split())) == ("vpc.amazonaws.com/efa" not in resources)


def test_dollars_are_no_references():
    _, made = documents("jobset", emitted(("--x", Variable("X", "x", "$(HOSTNAME) $$ $y"))))
    (env,) = [one for one in pods("jobset", made)[0]["spec"]["containers"][0]["env"] if one["name"] == "X"]
    assert env["value"] == "$$(HOSTNAME) $$$$ $$y"


@pytest.mark.parametrize("kind", ["jobset", "pytorchjob"])
def test_an_image_is_needed(kind):
    with pytest.raises(DlcalcError, match=rf"--scheduler {kind}: give --container, the image that holds megatron-lm"):
        documents(kind, container=None)


def test_what_a_config_map_cannot_hold():
    documents("jobset", emitted(files={"config.yaml": "x" * 1_000_000}))
    with pytest.raises(DlcalcError, match=r"the files of the job are 1,\d{3},\d{3} bytes, more than a ConfigMap holds"):
        documents("jobset", emitted(files={"config.yaml": "é" * 525_000}))


def test_what_etcd_cannot_hold():
    hosts = tuple(f"n{rank}" for rank in range(1024))
    with pytest.raises(DlcalcError, match=r"1,024 placed hosts make an object of .* take --scheduler slurm"):
        documents("jobset", dp=8192, global_batch=8192, hosts=hosts)


# ---- names


@settings(max_examples=200)
@given(names)
def test_any_name_becomes_a_label(name):
    label = resource_name(name)
    assert LABEL.fullmatch(label)
    assert len(f"{label}-node-99999-0-99999") <= 63
    assert (label == name) == bool(LABEL.fullmatch(name) and len(name) <= 40 and "--" not in name)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("llama3-70b", "llama3-70b"),
        ("Llama 3 70B", "llama-3-70b-8b9c2d4a"),
        ("7b", "b-"),
        ("模型", "job-"),
        ("a" * 50, "a" * 31 + "-"),
    ],
)
def test_labels(name, label):
    found = resource_name(name)
    assert found.startswith(label.rpartition("-")[0])
    assert resource_name(name + "x") != found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_kept(kind, name):
    config, made = documents(kind, name=name)
    assert (
        made["metadata"]["annotations"][NAME_ANNOTATION] == config["metadata"]["annotations"][NAME_ANNOTATION] == name
    )
    assert config["metadata"]["name"] == f"{made['metadata']['name']}-files"
