"""EC2's view of the fabric: the network nodes above each instance, live or as ``aws ec2`` printed it.

``NetworkNodes`` runs from the farthest to the closest, three of them or more; it is null for instances that do not run
or whose type is not covered. Ids of network nodes are made up per account, so answers of two accounts are never put
together. EC2 knows no jobs: an instance that runs is free here; ``kubernetes`` and ``slurm`` know better.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlcalc.errors import DlcalcError, TopologyError, suggestion
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.sources.document import Document
from dlcalc.topology.sources.hostlist import MAX_NAMES

PAGE = 100
"""Instances that one call answers or takes by id."""
RESERVATION_PAGE = 10
MAX_ATTEMPTS = 6
"""Of one call that is throttled; the waits between them double, 31 s at most in all."""
MAX_TOLD = 5

DEVICES = {
    "p4d.24xlarge": 8,
    "p4de.24xlarge": 8,
    "p5.4xlarge": 1,
    "p5.48xlarge": 8,
    "p5e.48xlarge": 8,
    "p5en.48xlarge": 8,
    "p6-b200.48xlarge": 8,
    "p6-b300.48xlarge": 8,
    "p6e-gb200.36xlarge": 4,
    "trn1.2xlarge": 1,
    "trn1.32xlarge": 16,
    "trn1n.32xlarge": 16,
    "trn2.48xlarge": 16,
    "trn2u.48xlarge": 16,
}
"""Accelerators per instance, https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html."""

_ZONE_ID = re.compile(r"[a-z]+[0-9]+-az[0-9]+")
_NOT_ALLOWED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_REFUSED = {
    "AuthFailure",
    "InvalidClientTokenId",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled", "EC2ThrottledException"}


@dataclass(frozen=True)
class Instance:
    """What DescribeInstances says of one, as far as it matters here."""

    host: str = ""
    state: str = ""
    account: str = ""


# What was answered


def is_instance_topology(data: object) -> bool:
    """Whether ``data`` is an answer of DescribeInstanceTopology."""
    return isinstance(data, dict) and "Instances" in data


def is_reservation_topology(data: object) -> bool:
    """Whether ``data`` is an answer of DescribeCapacityReservationTopology."""
    return isinstance(data, dict) and "CapacityReservations" in data


NO_JOBS = "EC2 knows no jobs: every running instance is taken as free"


def fabric_of_instances(document: Document, *, region: str = "", node_devices: int | None = None) -> Fabric:
    """The fabric in an answer of DescribeInstanceTopology, with that of DescribeInstances (Reservations) beside it."""
    data = document.mapping(document.data, ())
    details = _details(document, data.get("Reservations"))
    nodes = []
    for index, item in enumerate(document.items(data["Instances"], ("Instances",))):
        path = ("Instances", index)
        entry = document.mapping(item, path)
        name = document.text(entry, "InstanceId", path, needed=True)
        kind = document.text(entry, "InstanceType", path)
        about = details.get(name, Instance())
        runs = about.state in {"", "running"}
        nodes.append(
            FabricNode(
                name,
                _chain(document, entry, path),
                host=about.host,
                n_devices=DEVICES.get(kind) or node_devices or FabricNode("x").n_devices,
                state="free" if runs else "unusable",
                domain=document.text(entry, "CapacityBlockId", path),
                instance_type=kind,
                zone=document.text(entry, "AvailabilityZone", path) or document.text(entry, "ZoneId", path),
                region=region or _region_of(document.text(entry, "AvailabilityZone", path)),
                why_unusable="" if runs else about.state,
            )
        )
    _check_once(document, [node.name for node in nodes], "Instances", "InstanceId")
    _check_one_account(document, [details[node.name].account for node in nodes if node.name in details])
    remarks = [*_unpaged(data), *_not_covered(nodes), NO_JOBS]
    return joined_by_zone(Fabric(tuple(nodes), source=str(document.source), remarks=tuple(remarks)))


def fabric_of_reservations(document: Document, *, region: str = "", node_devices: int | None = None) -> Fabric:
    """Reserved capacity that no instance uses yet, in an answer of DescribeCapacityReservationTopology.

    A reservation is as many nodes (``cr-...:0`` and so on) as it has instances available, or one where that is not
    said: AvailableInstanceCount comes from DescribeCapacityReservations and may be added to the file.
    """
    data = document.mapping(document.data, ())
    nodes: list[FabricNode] = []
    uncounted = 0
    accounts = []
    for index, item in enumerate(document.items(data["CapacityReservations"], ("CapacityReservations",))):
        path = ("CapacityReservations", index)
        entry = document.mapping(item, path)
        name = document.text(entry, "CapacityReservationId", path, needed=True)
        accounts.append(document.text(entry, "OwnerId", path))
        kind, state = document.text(entry, "InstanceType", path), document.text(entry, "State", path)
        n_free = entry.get("AvailableInstanceCount", 1)
        if type(n_free) is not int or n_free < 0:
            raise document.error((*path, "AvailableInstanceCount"), "must be a whole number of at least 0")
        if len(nodes) + n_free > MAX_NAMES:
            told = f"makes {len(nodes) + n_free:,} nodes, more than {MAX_NAMES:,}"
            raise document.error((*path, "AvailableInstanceCount"), told)
        uncounted += "AvailableInstanceCount" not in entry
        zone = document.text(entry, "AvailabilityZone", path)
        one = FabricNode(
            name,
            _chain(document, entry, path),
            n_devices=DEVICES.get(kind) or node_devices or FabricNode("x").n_devices,
            state="free" if state in {"", "active"} else "unusable",
            domain=document.text(entry, "CapacityBlockId", path),
            instance_type=kind,
            zone=zone or document.text(entry, "AvailabilityZoneId", path),
            region=region or _region_of(zone),
            why_unusable="" if state in {"", "active"} else f"reservation is {state}",
        )
        nodes += [replace(one, name=f"{name}:{number}") for number in range(n_free)]
    _check_once(document, [node.name for node in nodes], "CapacityReservations", "CapacityReservationId")
    _check_one_account(document, accounts)
    remarks = [*_unpaged(data)]
    if uncounted:
        remarks.append(f"{uncounted:,} reservations do not say how many instances are available; each is one node")
    return joined_by_zone(Fabric(tuple(nodes), source=str(document.source), remarks=tuple(remarks)))


def _chain(document: Document, entry: Mapping[str, Any], path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Closest first, so the other way round than EC2 says it."""
    place = (*path, "NetworkNodes")
    switches = document.items(entry.get("NetworkNodes"), place)
    for index, switch in enumerate(switches):
        if not isinstance(switch, str) or not switch:
            raise document.error((*place, index), "must be the id of a network node")
    if len(set(switches)) < len(switches):
        raise document.error(place, "a network node is there twice")
    return tuple(reversed(switches))


def _details(document: Document, reservations: object) -> dict[str, Instance]:
    found = {}
    for index, item in enumerate(document.items(reservations, ("Reservations",))):
        path = ("Reservations", index)
        reservation = document.mapping(item, path)
        account = document.text(reservation, "OwnerId", path)
        for inner, said in enumerate(document.items(reservation.get("Instances"), (*path, "Instances"))):
            place = (*path, "Instances", inner)
            entry = document.mapping(said, place)
            state = document.mapping(entry.get("State"), (*place, "State"))
            found[document.text(entry, "InstanceId", place, needed=True)] = Instance(
                host=document.text(entry, "PrivateDnsName", place),
                state=document.text(state, "Name", (*place, "State")),
                account=account,
            )
    return found


def _check_once(document: Document, names: Sequence[str], *path: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise document.error((path[0], index, path[1]), f"{name} is there twice")
        seen.add(name)


def _check_one_account(document: Document, accounts: Collection[str]) -> None:
    known = sorted(set(accounts) - {""})
    if len(known) > 1:
        told = f"accounts {' and '.join(known[:MAX_TOLD])} are put together here"
        raise document.error((), f"{told}; each names network nodes in its own way, so read one account at a time")


def _unpaged(data: Mapping[str, Any]) -> Iterator[str]:
    if data.get("NextToken"):
        yield "the answer ends in NextToken: there is more that the file does not hold"


def _not_covered(nodes: Sequence[FabricNode]) -> Iterator[str]:
    kinds = sorted({node.instance_type for node in nodes if not node.switches and node.state == "free"})
    if kinds:
        count = sum(not node.switches for node in nodes)
        yield f"EC2 says no network nodes of {count:,} instances ({', '.join(kinds)}): stopped, or a type not covered"


@functools.cache
def _region_of(zone: str) -> str:
    return re.sub(r"(?<=\d)[a-z]$", "", zone) if re.fullmatch(r"[a-z]+(-[a-z]+)+-\d[a-z]", zone) else ""


def joined_by_zone(fabric: Fabric) -> Fabric:
    """``fabric`` with the zone above the top switches of each zone that has several.

    Instances of one zone reach each other whatever top they have; only how far apart tops are is not told.
    """
    zones: dict[str, set[str]] = {}
    roots: dict[str, set[str]] = {}
    for node in fabric.nodes:
        if node.switches and node.zone:
            root = fabric.chains[node.name][-1]
            zones.setdefault(root, set()).add(node.zone)
            roots.setdefault(node.zone, set()).add(root)
    switches = {switch for chain in fabric.chains.values() for switch in chain}
    joined = {
        zone
        for zone, tops in roots.items()
        if len(tops) > 1 and zone not in switches and all(zones[top] == {zone} for top in tops)
    }
    if not joined:
        return fabric
    nodes = tuple(
        replace(node, switches=(*fabric.chains[node.name], node.zone))
        if node.zone in joined and node.switches
        else node
        for node in fabric.nodes
    )
    told = [f"zone {zone} has {len(roots[zone]):,} top switches; how far apart is not told" for zone in sorted(joined)]
    return replace(fabric, nodes=nodes, remarks=(*fabric.remarks, *told))


# The service


def read_ec2(
    *,
    region: str | None = None,
    zone: str | None = None,
    instance_type: str | None = None,
    node_devices: int | None = None,
) -> Fabric:
    """Instances of the account that the present credentials belong to, in one region."""
    with _service(region) as service:
        filters = _filters({"instance-type": instance_type, _zone_filter(zone): zone})
        instances = service.pages("describe_instance_topology", "Instances", Filters=filters, MaxResults=PAGE)
        if not instances:
            told = "".join(f", of type {instance_type}" if instance_type else "") + (f", in {zone}" if zone else "")
            raise TopologyError(f"{service.name}: DescribeInstanceTopology lists no instances{told}")
        if zone and _ZONE_ID.fullmatch(zone):
            instances = [{**entry, "AvailabilityZone": entry.get("ZoneId")} for entry in instances]
        data = {"Instances": instances, "Reservations": []}
        remarks: tuple[str, ...] = ()
        try:
            found = _filters({"instance-type": instance_type, _zone_filter(zone): zone})
            data["Reservations"] = service.pages("describe_instances", "Reservations", Filters=found, MaxResults=1000)
        except TopologyError as error:
            remarks = (f"hosts are not known, so instances go by their ids ({error})",)
        fabric = fabric_of_instances(Document(service.name, data), region=service.region, node_devices=node_devices)
    return replace(fabric, remarks=(*fabric.remarks, *remarks))


def read_ec2_reservations(
    *,
    region: str | None = None,
    zone: str | None = None,
    instance_type: str | None = None,
    node_devices: int | None = None,
) -> Fabric:
    """Reserved capacity of the account, of which no instance runs yet."""
    with _service(region) as service:
        filters = _filters({"instance-type": instance_type, "availability-zone": zone, "state": "active"})
        told = service.pages(
            "describe_capacity_reservation_topology", "CapacityReservations", Filters=filters[:-1], MaxResults=10
        )
        counts = service.pages(
            "describe_capacity_reservations", "CapacityReservations", Filters=filters, MaxResults=100
        )
        by_id = {entry["CapacityReservationId"]: entry for entry in counts}
        entries, others = [], []
        for entry in told:
            counted = by_id.get(entry["CapacityReservationId"], {})
            owner = counted.get("OwnerId", "")
            if service.account and owner and owner != service.account:
                others.append(f"{entry['CapacityReservationId']} of account {owner}")
                continue
            n_free = counted.get("AvailableInstanceCount", 0)
            entries.append({**entry, "OwnerId": owner, "AvailableInstanceCount": n_free})
        document = Document(service.name, {"CapacityReservations": entries})
        fabric = fabric_of_reservations(document, region=service.region, node_devices=node_devices)
    if not others:
        return fabric
    listed = ", ".join(others[:MAX_TOLD]) + (f" and {len(others) - MAX_TOLD:,} more" if len(others) > MAX_TOLD else "")
    return replace(fabric, remarks=(*fabric.remarks, f"left out, since accounts cannot be compared: {listed}"))


def topology_of_instances(ids: Sequence[str], *, region: str | None) -> tuple[dict[str, dict[str, Any]], str]:
    """What DescribeInstanceTopology says of these instances, by id, and the name of whom was asked.

    Up to 100 are asked for by id; beyond, every instance of the region is read, which takes no more calls.
    """
    with _service(region) as service:
        asked: dict[str, Any] = {"InstanceIds": list(ids)} if len(ids) <= PAGE else {"MaxResults": PAGE}
        entries = service.pages("describe_instance_topology", "Instances", **asked)
    wanted = set(ids)
    return {entry["InstanceId"]: entry for entry in entries if entry["InstanceId"] in wanted}, service.name


def _zone_filter(zone: str | None) -> str:
    return "zone-id" if zone and _ZONE_ID.fullmatch(zone) else "availability-zone"


def _filters(wanted: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [{"Name": name, "Values": [value]} for name, value in wanted.items() if value]


@dataclass(frozen=True)
class _Service:
    """One account in one region."""

    client: Any
    region: str
    account: str

    @property
    def name(self) -> str:
        """For people, and the source that a saved fabric goes by."""
        return f"EC2 {self.region}" + (f" account {self.account}" if self.account else "")

    def pages(self, call: str, key: str, **arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - boto3's own
        """What is under ``key`` in all pages of ``call``, which may have no paginator."""
        arguments = {name: value for name, value in arguments.items() if value}
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        token = None
        while True:
            with _told(call, self.region):
                answer = getattr(self.client, call)(**arguments, **({"NextToken": token} if token else {}))
            found += answer.get(key) or []
            token = answer.get("NextToken")
            if not token:
                return found
            if token in seen:
                raise TopologyError(f"{self.name}: {_action(call)} answers one page again and again")
            seen.add(token)


@contextlib.contextmanager
def _service(region: str | None) -> Iterator[_Service]:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError:
        raise TopologyError("EC2: boto3 is not installed; pip install 'dlcalc[topology]'") from None
    with _told("describe_instance_topology", region or ""):
        session = boto3.session.Session(
            region_name=region or os.environ.get("AWS_REGION")
        )  # boto3 itself reads no AWS_REGION
        chosen = session.region_name
        if not chosen:
            raise TopologyError("EC2: no region is chosen; give --region, or set AWS_REGION")
        _check_region(session, chosen)
        patience = Config(
            retries={"mode": "adaptive", "total_max_attempts": MAX_ATTEMPTS}, connect_timeout=5, read_timeout=60
        )
        client = session.client("ec2", config=patience)
        try:
            yield _Service(client, chosen, _account(session))
        finally:
            client.close()


def _check_region(session: Any, region: str) -> None:  # noqa: ANN401 - boto3 has no types
    """A name that resolves nowhere is told at once, not after minutes of attempts to reach it."""
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_EC2"):
        return
    known = {name for part in session.get_available_partitions() for name in session.get_available_regions("ec2", part)}
    if region not in known:
        raise TopologyError(f"EC2: boto3 knows no region {region}; {suggestion(region, known)}")


def _account(session: Any) -> str:  # noqa: ANN401 - boto3 has no types
    """The account's number, for people; empty where STS does not say."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = session.client("sts", config=Config(retries={"total_max_attempts": 2}, connect_timeout=3, read_timeout=5))
    try:
        return str(client.get_caller_identity()["Account"])
    except (BotoCoreError, ClientError):
        return ""
    finally:
        client.close()


@contextlib.contextmanager
def _told(call: str, region: str) -> Iterator[None]:
    """Whatever goes wrong with AWS inside, as one line that says what to do."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _refusal(error.response.get("Error", {}), call, region) from None
    except ResponseParserError:
        where = f"EC2 {region}".strip()
        raise TopologyError(f"{where}: {_action(call)}: what answered is not EC2 (a proxy, an endpoint?)") from None
    except BotoCoreError as error:
        raise TopologyError(_trouble(error, call, region)) from None


def _action(call: str) -> str:
    return "".join(word.capitalize() for word in call.split("_"))


def _refusal(error: Mapping[str, Any], call: str, region: str) -> DlcalcError:
    code, message = str(error.get("Code", "")), " ".join(str(error.get("Message", "")).split())
    action = _action(call)
    where = f"EC2 {region}".strip()
    if code in _NOT_ALLOWED:
        return TopologyError(f"{where}: not allowed: these credentials lack ec2:{action}")
    if code in _EXPIRED:
        return TopologyError(f"{where}: the credentials have expired; log in again (aws sso login)")
    if code in _REFUSED:
        return TopologyError(f"{where}: the credentials were refused ({code}); see `aws sts get-caller-identity`")
    if code in _THROTTLED:
        return TopologyError(f"{where}: {action} was throttled {MAX_ATTEMPTS} times in a row; try again in a minute")
    return TopologyError(f"{where}: {action}: {code}: {message}"[:400])


def _trouble(error: Exception, call: str, region: str) -> str:
    where = f"EC2 {region}".strip()
    told = " ".join(str(error).split())
    kinds: dict[str, Callable[[], str]] = {
        "NoCredentialsError": lambda: "no AWS credentials; `aws configure`, set AWS_PROFILE, or read a saved file",
        "PartialCredentialsError": lambda: f"the AWS credentials are not whole: {told}",
        "CredentialRetrievalError": lambda: f"the AWS credentials cannot be had: {told}",
        "ProfileNotFound": lambda: f"{told}; see `aws configure list-profiles`",
        "NoRegionError": lambda: "no region is chosen; give --region, or set AWS_REGION",
    }
    name = type(error).__name__
    if name in kinds:
        return f"{where}: {kinds[name]()}"
    if "Token" in name or "SSO" in name:
        return f"{where}: the login has expired or was never made (aws sso login): {told}"
    if "Connect" in name or "Timeout" in name or "SSL" in name:
        return f"{where}: cannot be reached: {told}"
    return f"{where}: {_action(call)}: {told}"[:400]
