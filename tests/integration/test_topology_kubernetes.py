"""The real Kubernetes client with a real kubeconfig, over TLS, against answers written by hand.

The server pages by limit and continue, checks the token, and applies the selectors it is sent, as the API reference
says an API server does; it is no API server.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dlcalc import topoeval, topoviz
from dlcalc.errors import TopologyError
from dlcalc.topology.sources import kubernetes as source
from dlcalc.topology.sources.read import read_fabric, save_fabric

TOKEN = "a-token"
N_NODES = 25
TYPE = "node.kubernetes.io/instance-type"


def node(index):
    labels = {f"topology.k8s.aws/network-node-layer-{layer}": f"nn-{layer}{index // size}" for layer, size in LAYERS}
    labels |= {"topology.kubernetes.io/zone": "us-east-1a", "topology.kubernetes.io/region": "us-east-1"}
    labels[TYPE] = "p5.48xlarge" if index < 20 else "p4d.24xlarge"
    return {
        "metadata": {"name": f"ip-{index}", "labels": labels},
        "spec": {"providerID": f"aws:///us-east-1a/i-{index:017x}"},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "capacity": {"nvidia.com/gpu": "8"},
            "allocatable": {"nvidia.com/gpu": "8"},
        },
    }


LAYERS = ((1, 96), (2, 12), (3, 4))


def pod(index, on, *, namespace="ml", phase="Running"):
    return {
        "metadata": {
            "name": f"llama-{index}",
            "namespace": namespace,
            "labels": {
                "batch.kubernetes.io/job-name": "llama",
                "batch.kubernetes.io/job-completion-index": str(index),
            },
        },
        "spec": {"nodeName": on, "containers": [{"resources": {"requests": {"nvidia.com/gpu": "8"}}}]},
        "status": {"phase": phase},
    }


DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "nodes", "singularName": "", "namespaced": False, "kind": "Node", "verbs": ["get", "list"]},
            {"name": "pods", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]},
        ],
    },
}
"""What kubectl asks before anything else."""


class Cluster:
    """What the server holds, and how it is to behave."""

    def __init__(self):
        self.nodes = [node(index) for index in range(N_NODES)]
        self.pods = [pod(index, f"ip-{index * 2}") for index in range(4)]
        self.pods += [pod(9, "ip-19", phase="Succeeded"), pod(10, None, phase="Pending")]
        self.forbidden = set()
        self.errors = []
        self.requests = []
        self.is_portal = False

    def answer(self, path, query):
        """Status and body."""
        if path in DISCOVERY:
            return 200, DISCOVERY[path]
        self.requests.append((path, query))
        if self.is_portal:
            return 200, "<html>please log in"
        if self.errors and (status := self.errors.pop(0)):
            return status, {"kind": "Status", "message": "told by the test", "code": status}
        kind = path.rsplit("/", 1)[-1]
        if path in self.forbidden:
            told = (
                f'{kind} is forbidden: User "alice" cannot list resource "{kind}" in API group "" at the cluster scope'
            )
            return 403, {"kind": "Status", "message": told, "reason": "Forbidden", "code": 403}
        found = self.nodes if kind == "nodes" else self.pods
        if "/namespaces/" in path:
            found = [item for item in found if item["metadata"]["namespace"] == path.split("/")[-2]]
        found = [item for item in found if self._is_selected(item, query)]
        start, limit = int(query.get("continue", 0)), int(query.get("limit", len(found) or 1))
        following = str(start + limit) if start + limit < len(found) else None
        metadata = {"resourceVersion": "1", **({"continue": following} if following else {})}
        return 200, {
            "kind": f"{kind[:-1].title()}List",
            "apiVersion": "v1",
            "metadata": metadata,
            "items": found[start : start + limit],
        }

    def _is_selected(self, item, query):
        for clause in filter(None, query.get("labelSelector", "").split(",")):
            key, value = clause.split("=")
            if item["metadata"]["labels"].get(key) != value:
                return False
        fields = {"spec.nodeName": item["spec"].get("nodeName") or "", "status.phase": item["status"].get("phase")}
        for clause in filter(None, query.get("fieldSelector", "").split(",")):
            key, value = clause.split("!=")
            if fields[key] == value:
                return False
        return True


def self_signed():
    """A key and a certificate for localhost that vouches for itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret, built.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    secret, public = self_signed()
    (folder / "server.pem").write_bytes(secret + public)
    (folder / "ca.pem").write_bytes(public)
    (folder / "other.pem").write_bytes(self_signed()[1])
    return folder


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def server(certificate, cluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            told = self.headers.get("Authorization")
            if told == f"Bearer {TOKEN}":
                status, body = cluster.answer(parts.path, query)
            elif told is None:
                message = 'nodes is forbidden: User "system:anonymous" cannot list resource "nodes"'
                status, body = 403, {"kind": "Status", "message": message, "code": 403}
            else:
                status, body = 401, {"kind": "Status", "message": "Unauthorized", "code": 401}
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.handle_error = lambda *_: None  # a client that trusts nobody hangs up
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"https://localhost:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def kubeconfig(server, certificate, tmp_path, monkeypatch):
    """Writes a kubeconfig and points to it; ``user`` and ``cluster`` replace what is in it."""

    def write(user=None, **cluster):
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "prod",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {"server": server, "certificate-authority": str(certificate / "ca.pem"), **cluster},
                }
            ],
            "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
            "contexts": [
                {"name": "prod", "context": {"cluster": "c", "user": "u"}},
                {"name": "staging", "context": {"cluster": "c", "user": "u"}},
            ],
        }
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(file))
        return file

    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_REGION",
        "KUBERNETES_SERVICE_HOST",
        "HTTPS_PROXY",
        "https_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    write()
    return write


def message(**options):
    with pytest.raises(TopologyError) as error:
        read_fabric("kubernetes", **options)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nodes_and_pods_page_by_page(kubeconfig, cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(source, "PAGE", 10)
    fabric = read_fabric("kubernetes")
    nodes = [query for path, query in cluster.requests if path == "/api/v1/nodes"]
    assert [query.get("continue") for query in nodes] == [None, "10", "20"]
    assert {query["limit"] for query in nodes} == {"10"}
    assert fabric.source == "kubernetes prod"
    assert {each.name: each.switches for each in fabric.nodes} == {
        f"i-{index:017x}": (f"nn-3{index // 4}", f"nn-2{index // 12}", "nn-10") for index in range(N_NODES)
    }
    assert [(each.host_name, each.job, each.rank) for each in fabric.of_job("lla")] == [
        (f"ip-{index * 2}", "llama", index) for index in range(4)
    ]
    assert len(fabric.candidates()) == N_NODES - 4
    assert fabric.remarks == ()
    save_fabric(fabric, tmp_path / "k.yaml")
    assert read_fabric(str(tmp_path / "k.yaml")) == fabric


def test_the_commands_ask_the_cluster(kubeconfig, tmp_path):
    """Nodes 0, 2, 4 and 6, four under a leaf: 2 x (4 + 2 leaves) = 12 hops. Four under one leaf would do with 2 x 4."""
    done = CliRunner().invoke(topoeval.main, ["lla", "-t", "8", "-p", "1", "-d", "4", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["job_name"] == "llama"
    assert [found["cost_hops"]] + [found[best]["cost_hops"] for best in ("best_on_own", "best_on_free")] == [12, 12, 8]
    page = tmp_path / "g.html"
    done = CliRunner().invoke(topoviz.main, ["lla", "-o", str(page), "--json"])
    assert json.loads(done.stdout)["rings"] == {"llama": [f"i-{index:017x}" for index in (0, 2, 4, 6)]}
    done = CliRunner().invoke(topoeval.main, ["gpt", "-t", "8", "-p", "1", "-d", "4"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no job begins with gpt; there are llama" in done.stderr


def test_the_service_selects(kubeconfig, cluster):
    fabric = read_fabric("kubernetes", instance_type="p4d.24xlarge", zone="us-east-1a")
    assert len(fabric.nodes) == 5
    assert cluster.requests[0][1]["labelSelector"] == f"{TYPE}=p4d.24xlarge,topology.kubernetes.io/zone=us-east-1a"
    assert cluster.requests[1][1]["fieldSelector"] == source.RUNNING_PODS
    fabric = read_fabric("kubernetes", instance_type="p5*")
    assert sum(each.state == "unusable" for each in fabric.nodes) == 5
    assert "no node is of instance type trn1; there are p5.48xlarge (20), p4d.24xlarge (5)" in message(
        instance_type="trn1"
    )


def test_a_page_that_has_expired(kubeconfig, cluster, monkeypatch):
    monkeypatch.setattr(source, "PAGE", 10)
    cluster.errors += [None, 410]
    assert len(read_fabric("kubernetes").nodes) == N_NODES
    cluster.errors += [None, 410, None, 410]
    assert "the list of nodes changes faster than it can be read; try again" in message()


def test_a_busy_server_is_asked_again(kubeconfig, cluster, monkeypatch):
    waits = []
    monkeypatch.setattr(source.time, "sleep", waits.append)
    cluster.errors += [429, 503]
    assert len(read_fabric("kubernetes").nodes) == N_NODES
    assert waits == [1.0, 2.0]
    cluster.errors += [503] * source.ATTEMPTS
    assert message() == "kubernetes prod: cannot list nodes (503): told by the test"


def test_refusals(kubeconfig, cluster):
    kubeconfig({"token": "stale"})
    assert message() == "kubernetes prod: the credentials were refused (401); log in again"
    kubeconfig({})
    assert message() == "kubernetes prod: the kubeconfig gives no credentials, and nobody may list nodes (403)"
    kubeconfig()
    cluster.forbidden.add("/api/v1/nodes")
    assert message(kube_context="staging") == (
        'kubernetes staging: not allowed to list nodes (403): nodes is forbidden: User "alice" cannot list resource '
        '"nodes" in API group "" at the cluster scope'
    )


def test_pods_of_one_namespace_where_others_are_forbidden(kubeconfig, cluster):
    cluster.forbidden.add("/api/v1/pods")
    told = message()
    assert told.startswith("kubernetes prod: not allowed to list pods (403): pods is forbidden")
    assert told.endswith("; without them nodes that hold jobs look free. Ask for it, or give --namespace to count the "
                         "pods of one namespace alone")  # fmt: skip
    fabric = read_fabric("kubernetes", namespace="ml")
    assert len(fabric.of_job("llama")) == 4
    assert fabric.remarks == ("only pods of ml can be seen; nodes that other namespaces use look free",)
    cluster.forbidden.add("/api/v1/namespaces/ml/pods")
    assert message(namespace="ml").startswith("kubernetes prod: not allowed to list pods in ml (403)")


def test_who_answers_is_no_cluster(kubeconfig, cluster, certificate):
    cluster.is_portal = True
    assert message() == "kubernetes prod: what answers is no Kubernetes API server"
    cluster.is_portal = False
    kubeconfig(server="https://localhost:1")
    assert message().startswith("kubernetes prod: cannot be reached: ")
    assert "refused" in message()
    kubeconfig(**{"certificate-authority": str(certificate / "other.pem")})
    assert "its certificate is not what the kubeconfig trusts" in message()


def test_kubeconfigs_that_are_none(kubeconfig, tmp_path, monkeypatch):
    assert message(kube_context="prd") == f"kubernetes: no context prd in {tmp_path}/kubeconfig; did you mean prod?"
    for text in ("[1, 2]", "a: [", "", "current-context: x", "{current-context: prod, contexts: [{name: prod}]}"):
        kubeconfig().write_text(text)
        assert message().startswith(f"kubernetes: {tmp_path}/kubeconfig: ")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    assert message() == f"kubernetes: no kubeconfig at {tmp_path}/nothing; set KUBECONFIG, or read a saved file"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert message().startswith("kubernetes: in this pod: ")


def login(code):
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-c", code],
            "interactiveMode": "Never",
        }
    }


def test_a_login_command(kubeconfig):
    told = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": TOKEN}}
    kubeconfig(login(f"print({json.dumps(told)!r})"))
    assert len(read_fabric("kubernetes").nodes) == N_NODES
    kubeconfig(login("import sys; sys.exit('the SSO session has expired')"))
    assert message() == (
        "kubernetes prod: the login that the kubeconfig names failed: "
        "exec: process returned 1. the SSO session has expired"
    )


@pytest.fixture
def ec2(monkeypatch):
    """What DescribeInstanceTopology says, without the service: that is tested in test_topology_ec2.py."""
    chains = {f"i-{index:017x}": [f"nn-{layer}{index // size}" for layer, size in LAYERS] for index in range(N_NODES)}

    def answer(ids, *, region):
        asked.append((len(ids), region))
        known = [{"InstanceId": name, "NetworkNodes": chains[name]} for name in ids if name in chains]
        return {entry["InstanceId"]: entry for entry in known}, "EC2 us-east-1 account 1"

    asked = []
    monkeypatch.setattr(source, "topology_of_instances", answer)
    return chains, asked


def without_layers(cluster, indices):
    for index in indices:
        labels = cluster.nodes[index]["metadata"]["labels"]
        for layer, _ in LAYERS:
            del labels[f"topology.k8s.aws/network-node-layer-{layer}"]


def test_ec2_fills_in_what_labels_do_not_say(kubeconfig, cluster, ec2):
    expected = read_fabric("kubernetes")
    without_layers(cluster, range(5, N_NODES))
    assert read_fabric("kubernetes").nodes == expected.nodes
    without_layers(cluster, range(5))
    found = read_fabric("kubernetes")
    assert found.nodes == expected.nodes
    assert found.remarks[-1] == "EC2 us-east-1 account 1 said the network nodes of 25 instances"
    assert ec2[1] == [(N_NODES, "us-east-1")] * 2


def test_another_account_is_not_merged(kubeconfig, cluster, ec2):
    """EC2 knows the silent nodes, but gives a labelled one other network nodes, or does not know it."""
    without_layers(cluster, [3, 4])
    ec2[0][f"i-{0:017x}"] = ["nn-x", "nn-y", "nn-z"]
    for _ in range(2):
        fabric = read_fabric("kubernetes")
        assert [each.host_name for each in fabric.nodes if not each.switches] == ["ip-3", "ip-4"]
        assert fabric.remarks[-1] == (
            "EC2 us-east-1 account 1 is not the account whose network nodes the labels name; 2 instances have none"
        )
        ec2[0].pop(f"i-{0:017x}", None)


def test_ec2_that_cannot_be_asked(kubeconfig, cluster, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    without_layers(cluster, [3])
    fabric = read_fabric("kubernetes")
    assert fabric.remarks[-1] == (
        "1 instances have no labels of network nodes, and EC2 us-east-1: no AWS credentials; `aws configure`, set "
        "AWS_PROFILE, or read a saved file"
    )
    assert len(fabric.without_data()) == 1


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_what_kubectl_saves_is_what_is_read(kubeconfig, cluster, tmp_path):
    live = read_fabric("kubernetes")
    ran = subprocess.run(
        ["kubectl", "get", "nodes,pods", "-A", "-o", "json", "--chunk-size=10", f"--cache-dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    (tmp_path / "k.json").write_text(ran.stdout)
    assert read_fabric(str(tmp_path / "k.json")).nodes == live.nodes


def test_nothing_is_printed(kubeconfig, cluster, tmp_path):
    """Neither the client nor its login command writes to the terminal."""
    program = (
        "from dlcalc.errors import DlcalcError\nfrom dlcalc.topology.sources.read import read_fabric\n"
        "try: read_fabric('kubernetes')\nexcept DlcalcError as error: print(error)"
    )
    kubeconfig(login("import sys; print('please log in', file=sys.stderr); sys.exit(1)"))
    failed_login = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kubeconfig(server="https://localhost:1")
    unreachable = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for ran in (failed_login, unreachable):
        assert ran.stderr == ""
        assert ran.stdout.count("\n") == 1
