"""Real boto3 over HTTP against a moto server, to which the topology calls that it lacks are added here.

The added handlers page, refuse and throttle as the API reference says EC2 does.
"""

import json
from fnmatch import fnmatch
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import boto3
import botocore.loaders
import pytest
from click.testing import CliRunner
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses import EC2Response
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from dlcalc import topoassign
from dlcalc.errors import DlcalcError, TopologyError
from dlcalc.topology.sources.ec2 import topology_of_instances
from dlcalc.topology.sources.read import read_fabric, save_fabric

N_INSTANCES = 230
IMAGE = "ami-12c6146b"
ACCOUNT = "123456789012"  # moto's


class Calls:
    """What the handlers saw, and what they are to answer instead."""

    def __init__(self):
        self.pages = []
        self.errors = []

    def handle(self, answer):
        def handler(response):
            if self.errors:
                raise EC2ClientError(self.errors.pop(0), "told by the test")
            return ActionResult(answer(response))

        return handler

    def page(self, response, entries, *, default, largest, ids="InstanceIds"):
        """EC2's rules of paging: ids or MaxResults, never both, and at most so many of either."""
        wanted, size = response._get_param(ids, []), response._get_param("MaxResults")
        self.pages.append((len(wanted), size))
        if wanted and size:
            raise EC2ClientError("InvalidParameterCombination", f"{ids} and MaxResults")
        if len(wanted) > largest or int(size or default) > largest:
            raise EC2ClientError("InvalidParameterValue", f"at most {largest}")
        if wanted:
            unknown = set(wanted) - {entry["InstanceId"] for entry in entries}
            if unknown:
                raise EC2ClientError("InvalidInstanceID.NotFound", f"The instance IDs {sorted(unknown)} do not exist")
            return [entry for entry in entries if entry["InstanceId"] in wanted], None
        start, size = int(response._get_param("NextToken") or 0), int(size or default)
        end = start + size
        return entries[start:end], str(end) if end < len(entries) else None


calls = Calls()


def instance_topology(response):
    filters = response._filters_from_querystring()
    instances = [
        instance
        for instance in response.ec2_backend.all_instances()
        if any(fnmatch(instance.instance_type, kind) for kind in filters.get("instance-type", ["*"]))
        and any(fnmatch(instance.placement.zone, zone) for zone in filters.get("availability-zone", ["*"]))
    ]
    entries = [
        {
            "InstanceId": instance.id,
            "InstanceType": instance.instance_type,
            "GroupName": None,
            "NetworkNodes": [
                f"nn-1{position // 150}",
                f"nn-2{position // 50}",
                f"nn-3{position // 10}",
            ]
            if instance.instance_type == "p5.48xlarge" and instance.state == "running"
            else None,
            "AvailabilityZone": instance.placement.zone,
            "ZoneId": "use1-az1",
        }
        for instance in instances
        for position in [int(next(tag["value"] for tag in instance.get_tags() if tag["key"] == "position"))]
    ]
    entries.sort(key=lambda entry: entry["InstanceId"])
    found, token = calls.page(response, entries, default=20, largest=100)
    return {"Instances": found, "NextToken": token}


RESERVATIONS = [
    {
        "CapacityReservationId": f"cr-{number:02}",
        "InstanceType": "p5.48xlarge",
        "State": "active",
        "NetworkNodes": ["nn-10", f"nn-2{number // 5}"],
        "AvailabilityZone": "us-east-1a",
        "AvailabilityZoneId": "use1-az1",
    }
    for number in range(23)
]


def reservation_topology(response):
    found, token = calls.page(response, RESERVATIONS, default=10, largest=10, ids="CapacityReservationIds")
    return {"CapacityReservations": found, "NextToken": token}


def reservations(response):
    entries = [
        {
            "CapacityReservationId": entry["CapacityReservationId"],
            "OwnerId": "999999999999" if entry["CapacityReservationId"] == "cr-07" else ACCOUNT,
            "TotalInstanceCount": 4,
            "AvailableInstanceCount": number % 3,
        }
        for number, entry in enumerate(RESERVATIONS)
    ]
    found, token = calls.page(response, entries, default=100, largest=1000, ids="CapacityReservationIds")
    return {"CapacityReservations": found, "NextToken": token}


@pytest.fixture(scope="module")
def server():
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in (
            ("describe_instance_topology", instance_topology),
            ("describe_capacity_reservation_topology", reservation_topology),
            ("describe_capacity_reservations", reservations),
        ):
            patch.setattr(EC2Response, name, calls.handle(answer), raising=False)
        patch.setattr(botocore.loaders, "create_loader", cache(botocore.loaders.create_loader))  # parse models once
        started.start()
        host, port = started.get_host_and_port()
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE"):
            patch.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            patch.setenv(name, value)
        yield
        started.stop()
        started._server.server_close()


@pytest.fixture(scope="module")
def instances(server):
    """The ids, each with the network nodes that the handler gives it, closest first."""
    client = boto3.client("ec2", region_name="us-east-1")
    chains = {}
    for position in range(0, N_INSTANCES, 10):
        ran = client.run_instances(
            ImageId=IMAGE,
            MinCount=10,
            MaxCount=10,
            InstanceType="p5.48xlarge",
            Placement={"AvailabilityZone": "us-east-1a"},
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "position", "Value": str(position)}]}],
        )
        chain = (f"nn-3{position // 10}", f"nn-2{position // 50}", f"nn-1{position // 150}")
        chains |= {instance["InstanceId"]: chain for instance in ran["Instances"]}
    other = client.run_instances(
        ImageId=IMAGE,
        MinCount=1,
        MaxCount=1,
        InstanceType="m5.large",
        Placement={"AvailabilityZone": "us-east-1b"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "position", "Value": "0"}]}],
    )
    chains[other["Instances"][0]["InstanceId"]] = ()
    client.close()
    return chains


@pytest.fixture(autouse=True)
def forget():
    calls.pages.clear()
    calls.errors.clear()


def test_every_page_is_read_and_turned_round(instances):
    fabric = read_fabric("ec2")
    assert calls.pages == [(0, 100), (0, 100), (0, 100)]
    assert fabric.source == f"EC2 us-east-1 account {ACCOUNT}"
    two_tops = {name: (*chain, "us-east-1a") if chain else () for name, chain in instances.items()}
    assert {node.name: node.switches for node in fabric.nodes} == two_tops
    assert fabric.remarks == (
        "EC2 says no network nodes of 1 instances (m5.large): stopped, or a type not covered",
        "EC2 knows no jobs: every running instance is taken as free",
        "zone us-east-1a has 2 top switches; how far apart is not told",
    )
    node = next(node for node in fabric.nodes if node.switches)
    assert (node.instance_type, node.zone, node.region, node.n_devices) == ("p5.48xlarge", "us-east-1a", "us-east-1", 8)
    assert node.host_name.endswith(".ec2.internal")
    assert [node.instance_type for node in fabric.without_data()] == ["m5.large"]


def test_what_is_read_is_what_is_saved(instances, tmp_path):
    fabric = read_fabric("ec2")
    for name in ("topo.json", "topo.yaml"):
        save_fabric(fabric, tmp_path / name)
        assert read_fabric(str(tmp_path / name)) == fabric


def test_topoassign_places_on_what_ec2_says(instances):
    """8 rings of 10 nodes, and a leaf holds 10: no ring need leave its leaf, so 20 hops each."""
    where = ("-i", "p5.48xlarge", "-r", "us-east-1", "-a", "us-east-1a")
    done = CliRunner().invoke(topoassign.main, ["-t", "8", "-p", "8", "-d", "10", *where, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["cost_hops"], found["proved_optimal"]) == (160, True)
    assert all(len({instances[name][0] for name in ring}) == 1 for ring in found["rings"])
    assert all(host.endswith(".ec2.internal") for host in found["hosts"])


def test_topoassign_tells_of_a_service_that_refuses(instances):
    calls.errors[:] = ["UnauthorizedOperation"]
    done = CliRunner().invoke(topoassign.main, ["-t", "8", "-p", "1", "-d", "10", "-r", "us-east-1"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "ec2:DescribeInstanceTopology" in done.stderr


def test_filters_are_the_services(instances):
    fabric = read_fabric("ec2", instance_type="p5*", zone="us-east-1a")
    assert len(fabric.candidates()) == len(fabric.nodes) == N_INSTANCES
    with pytest.raises(
        TopologyError, match=r"DescribeInstanceTopology lists no instances, of type trn1\*, in us-east-1a"
    ):
        read_fabric("ec2", instance_type="trn1*", zone="us-east-1a")


def test_throttled_calls_are_made_again(instances):
    calls.errors += ["RequestLimitExceeded", "RequestLimitExceeded"]
    assert len(read_fabric("ec2").nodes) == N_INSTANCES + 1
    assert calls.errors == []


def test_stopped_instances_are_not_usable(instances):
    client = boto3.client("ec2", region_name="us-east-1")
    stopped = next(iter(instances))
    client.stop_instances(InstanceIds=[stopped])
    try:
        node = read_fabric("ec2").by_name[stopped]
        assert (node.state, node.why_unusable, node.switches) == ("unusable", "stopped", ())
    finally:
        client.start_instances(InstanceIds=[stopped])
        client.close()


def test_a_hundred_ids_are_asked_for_by_id_and_more_are_paged(instances):
    ids = [name for name, chain in instances.items() if chain]
    few, name = topology_of_instances(ids[:100], region="us-east-1")
    assert calls.pages == [(100, None)]
    assert name == f"EC2 us-east-1 account {ACCOUNT}"
    assert {key: tuple(reversed(entry["NetworkNodes"])) for key, entry in few.items()} == {
        key: instances[key] for key in ids[:100]
    }
    calls.pages.clear()
    many, _ = topology_of_instances(ids[:101], region="us-east-1")
    assert set(many) == set(ids[:101])
    assert calls.pages == [(0, 100), (0, 100), (0, 100)]


def test_reservations_are_capacity_of_this_account_alone(server):
    fabric = read_fabric("ec2-reservations")
    assert calls.pages == [(0, 10), (0, 10), (0, 10), (0, 100)]
    expected = {
        f"cr-{number:02}:{index}": (f"nn-2{number // 5}", "nn-10")
        for number in range(23)
        if number != 7
        for index in range(number % 3)
    }
    assert {node.name: node.switches for node in fabric.nodes} == expected
    assert fabric.remarks == ("left out, since accounts cannot be compared: cr-07 of account 999999999999",)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("UnauthorizedOperation", "EC2 us-east-1: not allowed: these credentials lack ec2:DescribeInstanceTopology"),
        ("AuthFailure", "EC2 us-east-1: the credentials were refused (AuthFailure); see `aws sts get-caller-identity`"),
        ("ExpiredToken", "EC2 us-east-1: the credentials have expired; log in again (aws sso login)"),
        ("OptInRequired", "EC2 us-east-1: DescribeInstanceTopology: OptInRequired: told by the test"),
    ],
)
def test_a_refusal_is_one_line(server, code, told):
    calls.errors.append(code)
    with pytest.raises(TopologyError) as error:
        read_fabric("ec2")
    assert str(error.value) == told
    assert error.value.exit_code == 2


def test_hosts_are_not_needed(instances, monkeypatch):
    def refuse(response):
        raise EC2ClientError("UnauthorizedOperation", "no")

    monkeypatch.setattr(EC2Response, "describe_instances", refuse)
    fabric = read_fabric("ec2")
    assert len(fabric.candidates()) == N_INSTANCES
    assert fabric.remarks[-1] == (
        "hosts are not known, so instances go by their ids "
        "(EC2 us-east-1: not allowed: these credentials lack ec2:DescribeInstances)"
    )


def test_without_credentials_region_or_network(server, monkeypatch, tmp_path):
    def message(**options):
        with pytest.raises(TopologyError) as error:
            read_fabric("ec2", **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    with monkeypatch.context() as patch:
        patch.delenv("AWS_REGION")
        assert message() == "EC2: no region is chosen; give --region, or set AWS_REGION"
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        assert message(region="us-esat-1").startswith("EC2: boto3 knows no region us-esat-1; did you mean")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nobody")
        assert "nobody" in message()
        assert message().endswith("see `aws configure list-profiles`")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert message().startswith("EC2: the AWS credentials are not whole")
        patch.delenv("AWS_ACCESS_KEY_ID")
        assert message() == (
            "EC2 us-east-1: no AWS credentials; `aws configure`, set AWS_PROFILE, or read a saved file"
        )
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        patch.setattr("dlcalc.topology.sources.ec2.MAX_ATTEMPTS", 1)
        assert message().startswith("EC2 us-east-1: cannot be reached: ")
    config = tmp_path / "config"
    config.write_text(
        "[profile dev]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\nregion = us-east-1\n"
        "[sso-session s]\nsso_start_url = https://example.invalid/start\nsso_region = us-east-1\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(config))
        patch.setenv("HOME", str(tmp_path))
        patch.setenv("AWS_PROFILE", "dev")
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "the login has expired or was never made (aws sso login)" in message()


def test_an_answer_that_is_not_from_ec2(server, monkeypatch):
    class Portal(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>please log in")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Portal) as portal:
        thread = Thread(target=portal.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{portal.server_port}")
        with pytest.raises(TopologyError, match=r"what answered is not EC2 \(a proxy, an endpoint\?\)$"):
            read_fabric("ec2")
        portal.shutdown()
        thread.join()


def saved(tmp_path, data):
    (tmp_path / "topo.json").write_text(data if isinstance(data, str) else json.dumps(data, indent=1))
    return str(tmp_path / "topo.json")


ONE = {
    "InstanceId": "i-1",
    "InstanceType": "p5.48xlarge",
    "NetworkNodes": ["a", "b", "c"],
    "AvailabilityZone": "us-east-1a",
}


def test_what_the_aws_command_printed(tmp_path):
    other = {**ONE, "InstanceId": "i-2", "NetworkNodes": ["a", "b", "c", "d"], "CapacityBlockId": "cb-1"}
    fabric = read_fabric(
        saved(tmp_path, {"Instances": [ONE, other, {**ONE, "InstanceId": "i-3", "NetworkNodes": None}]})
    )
    assert [node.switches for node in fabric.nodes] == [("c", "b", "a"), ("d", "c", "b", "a"), ()]
    assert [node.domain for node in fabric.nodes] == ["", "cb-1", ""]
    assert fabric.nodes[0].region == "us-east-1"
    (tmp_path / "topo.yaml").write_text("Instances:\n- InstanceId: i-1\n  NetworkNodes: [a, b]\n")
    assert read_fabric(str(tmp_path / "topo.yaml")).nodes[0].switches == ("b", "a")
    reserved = {"CapacityReservationId": "cr-1", "NetworkNodes": ["a"], "State": "active"}
    fabric = read_fabric(
        saved(tmp_path, {"CapacityReservations": [reserved, {**reserved, "CapacityReservationId": "cr-2"}]})
    )
    assert [node.name for node in fabric.nodes] == ["cr-1:0", "cr-2:0"]
    assert fabric.remarks == ("2 reservations do not say how many instances are available; each is one node",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"Instances": [ONE, ONE]}, "Instances[1].InstanceId: i-1 is there twice"),
        ({"Instances": [{**ONE, "NetworkNodes": ["a", None]}]}, "Instances[0].NetworkNodes[1]: must be the id of a"),
        (
            {"Instances": [{**ONE, "NetworkNodes": ["a", "a"]}]},
            "Instances[0].NetworkNodes: a network node is there twice",
        ),
        ({"Instances": [{**ONE, "NetworkNodes": "a"}]}, "Instances[0].NetworkNodes: must be a list, not 'a'"),
        ({"Instances": [{}]}, "Instances[0].InstanceId: required key is missing"),
        ({"Instances": [None]}, "Instances[0].InstanceId: required key is missing"),
        ({"Instances": [7]}, "Instances[0]: must be a mapping (key: value), not 7"),
        ({"Instances": None}, "there are no nodes"),
        (
            {"Instances": [ONE, {**ONE, "InstanceId": "i-2", "NetworkNodes": ["a", "x", "c"]}]},
            "switch c is under both b and x (node i-2): not a tree",
        ),
        (
            {
                "Instances": [ONE, {**ONE, "InstanceId": "i-2"}],
                "Reservations": [
                    {"OwnerId": "1", "Instances": [{"InstanceId": "i-1"}]},
                    {"OwnerId": "2", "Instances": [{"InstanceId": "i-2"}]},
                ],
            },
            "accounts 1 and 2 are put together here; each names network nodes in its own way",
        ),
        (json.dumps({"Instances": [ONE]}) + json.dumps({"Instances": [ONE]}), "a second document starts here"),
        (json.dumps({"Instances": [ONE]})[:-20], "the file ends here, so it may have been cut off"),
        (
            {"CapacityReservations": [{"CapacityReservationId": "c", "AvailableInstanceCount": -1}]},
            "CapacityReservations[0].AvailableInstanceCount: must be a whole number of at least 0",
        ),
    ],
)
def test_mistakes_in_a_saved_answer(tmp_path, data, told):
    with pytest.raises(DlcalcError) as error:
        read_fabric(saved(tmp_path, data))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_that_is_not_whole_is_said(tmp_path):
    fabric = read_fabric(saved(tmp_path, {"Instances": [ONE], "NextToken": "x"}))
    assert fabric.remarks == (
        "the answer ends in NextToken: there is more that the file does not hold",
        "EC2 knows no jobs: every running instance is taken as free",
    )
