"""A saved topology, recognised by what it holds: a plain tree, or what EC2, Kubernetes or Slurm said."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

from dlcalc.errors import DlcalcError, Problem, SpecError, TopologyError
from dlcalc.specs.load import read_text
from dlcalc.specs.wording import shown
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.sources.document import MAX_JSON_BYTES, Document, parse_document
from dlcalc.topology.sources.ec2 import (
    fabric_of_instances,
    fabric_of_reservations,
    is_instance_topology,
    is_reservation_topology,
)
from dlcalc.topology.sources.kubernetes import fabric_of_objects, is_kubernetes
from dlcalc.topology.sources.plain import is_plain, plain_fabric
from dlcalc.topology.sources.slurm import fabric_of_text, fabric_of_yaml, is_slurm_text, is_slurm_yaml
from dlcalc.utils.printable import printable

KINDS = (
    "a plain tree (nodes, switches), the answer of `aws ec2 describe-instance-topology` (Instances) or of `kubectl get "
    "nodes -o json` (items), Slurm's topology.conf (SwitchName=, BlockName=) or topology.yaml (a list of topology:)"
)


def read_fabric_file(file: Path, *, namespace: str | None = None, node_devices: int | None = None) -> Fabric:
    """The fabric in ``file``; ``node_devices`` is taken where the file does not say how many devices nodes have."""
    with _without_collection():
        try:
            return _fabric_in(file, namespace=namespace, node_devices=node_devices)
        except SpecError as error:
            problems = tuple(
                Problem(problem.line, printable(problem.field), printable(problem.text)) for problem in error.problems
            )
            raise SpecError(error.file, problems, error.n_more) from None
        except TopologyError as error:  # what the fabric itself says knows no file
            told = printable(str(error))
            raise TopologyError(told if told.startswith(str(file)) else f"{file}: {told}") from None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Millions of small objects, none of them in a cycle: looking for cycles among them takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _fabric_in(file: Path, *, namespace: str | None, node_devices: int | None) -> Fabric:
    text = read_text(file, max_bytes=MAX_JSON_BYTES)
    if is_slurm_text(text):
        return fabric_of_text(text, file, node_devices=node_devices)
    document = parse_document(file, text)
    if is_plain(document.data):
        return plain_fabric(document, node_devices=node_devices)
    if is_slurm_yaml(document.data):
        return fabric_of_yaml(document, node_devices=node_devices)
    if is_reservation_topology(document.data):
        return fabric_of_reservations(document, node_devices=node_devices)
    if is_instance_topology(document.data):
        return fabric_of_instances(document, node_devices=node_devices)
    if is_kubernetes(document.data):
        return fabric_of_objects(document, namespace=namespace, node_devices=node_devices)
    raise _unknown(document)


def _unknown(document: Document) -> DlcalcError:
    data = document.data
    held = "keys " + ", ".join(sorted(map(str, data))[:5]) if isinstance(data, dict) else shown(data)
    return document.error((), f"is no topology: it holds {held}; what is read is {KINDS}")
