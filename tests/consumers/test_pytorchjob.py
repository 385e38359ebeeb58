"""A PyTorchJob as Kubeflow's own client (kubeflow-training) reads it: nothing is lost, nothing is unknown."""

import json
import warnings

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore")  # the client's own, of its age
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    kubeflow_models = pytest.importorskip("kubeflow.training.models", reason="kubeflow-training is not installed")
    kubernetes = pytest.importorskip("kubernetes.client", reason="kubernetes is not installed")

from dlcalc.launch.bundle import bundle  # noqa: E402
from tests.launch_jobs import job  # noqa: E402
from tests.launch_parts import NAMES, emitted  # noqa: E402


class Answer:
    """What the client thinks a server said."""

    def __init__(self, text):
        self.data = text


@pytest.fixture(scope="module")
def client():
    import kubernetes.client.models

    for name, model in vars(kubeflow_models).items():
        if isinstance(model, type):
            setattr(kubernetes.client.models, name, model)
    return kubernetes.client.ApiClient()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("devices", "hosts"), [(8, ()), (16, ("n1", "n2")), (64, ())])
def test_nothing_is_lost(client, name, devices, hosts):
    one = job("megatron-lm", dp=devices, name=name, container="nvcr.io/nvidia/nemo:25.09", hosts=hosts)
    made = list(yaml.safe_load_all(bundle(one, emitted(), "pytorchjob")["job.yaml"]))[1]
    read = client.deserialize(Answer(json.dumps(made)), "KubeflowOrgV1PyTorchJob")
    assert client.sanitize_for_serialization(read) == made
    assert int(made["spec"]["nprocPerNode"]) == 8
    assert sum(one["replicas"] for one in made["spec"]["pytorchReplicaSpecs"].values()) == devices // 8
