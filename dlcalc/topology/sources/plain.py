"""The plain file: a fabric as people write it, and as ``save_fabric`` does.

People write switches inside switches, with nodes (or a hostlist of them) in the closest. What is saved is a list of
nodes, each with the closest switch above it, and the switch above each switch: a line per node, and nothing is lost.
A file may hold both.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from dlcalc.errors import DlcalcError, TopologyError
from dlcalc.specs.base import PositiveFloat, Spec, TupleFromList
from dlcalc.specs.load import parse_spec
from dlcalc.specs.marked_yaml import MAX_VALUES, Marks
from dlcalc.topology.fabric import Fabric, FabricNode, State
from dlcalc.topology.sources.document import Document
from dlcalc.topology.sources.hostlist import expand
from dlcalc.utils.printable import without_surrogates

Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], TupleFromList]
Rates = Annotated[tuple[PositiveFloat | None, ...], TupleFromList]

MAX_DEPTH = 60


class NodeDefaults(Spec):
    """What every node is unless it says otherwise."""

    host: str = ""
    n_devices: PositiveInt = 8
    state: State = "free"
    job: str = ""
    rank: NonNegativeInt | None = None
    domain: str = ""
    instance_type: str = ""
    zone: str = ""
    region: str = ""
    why_unusable: str = ""


class NodeEntry(NodeDefaults):
    """A node, with the switches above it where it does not stand inside one."""

    name: Name
    switch: Name | None = None
    """The closest; those above it are in ``parents`` or in ``switches`` of the file."""
    switches: Names | None = None
    """All of them, closest first."""


class SwitchEntry(Spec):
    """A switch and what hangs from it."""

    switch: Name
    switches: Annotated[tuple[SwitchEntry, ...], TupleFromList] = ()
    nodes: str | Annotated[tuple[str | NodeEntry, ...], TupleFromList] = ()


class PlainFabric(Spec):
    """The whole file."""

    source: str = ""
    tier_gbit_per_s_per_node: Rates = ()
    """Closest first; null where it is not known."""
    tier_bytes_per_s_per_node: Rates = ()
    """The same in bytes, for rates that are no decimal number of Gbit/s."""
    node_defaults: NodeDefaults = NodeDefaults()
    switches: Annotated[tuple[SwitchEntry, ...], TupleFromList] = ()
    parents: dict[Name, Name] = {}
    """The switch above each switch that has one."""
    nodes: str | Annotated[tuple[str | NodeEntry, ...], TupleFromList] = ()
    remarks: Annotated[tuple[str, ...], TupleFromList] = ()


def is_plain(data: object) -> bool:
    """Whether ``data`` was meant as a plain fabric."""
    return isinstance(data, dict) and bool({"nodes", "switches", "parents", "node_defaults"} & data.keys())


def plain_fabric(document: Document, *, node_devices: int | None = None) -> Fabric:
    """The fabric in a plain file; ``node_devices`` is for nodes of which it does not say how many devices they have."""
    file = Path(document.source)
    too_deep = _depth(document.data) > MAX_DEPTH
    if too_deep:
        raise document.error(("switches",), f"switches are nested more than {MAX_DEPTH} deep")
    spec = parse_spec(document.data, PlainFabric, file=file, marks=document.marks or Marks(1))
    reader = _Reader(document, spec, node_devices)
    return Fabric(
        nodes=tuple(reader.nodes()),
        tier_bytes_per_s_per_node=_rates(document, spec),
        source=spec.source or str(file),
        remarks=spec.remarks,
    )


def _depth(data: object) -> int:
    """How many switches stand inside each other."""
    depth, level = 0, [data]
    while level and depth <= MAX_DEPTH:
        inner = [item.get("switches") for item in level if isinstance(item, dict)]
        level = [item for items in inner if isinstance(items, list) for item in items]
        depth += 1
    return depth


def _rates(document: Document, spec: PlainFabric) -> tuple[float | None, ...]:
    if spec.tier_gbit_per_s_per_node and spec.tier_bytes_per_s_per_node:
        raise document.error(("tier_gbit_per_s_per_node",), "give this or tier_bytes_per_s_per_node, not both of them")
    return spec.tier_bytes_per_s_per_node or tuple(map(_bytes_per_s, spec.tier_gbit_per_s_per_node))


def _bytes_per_s(gbit_per_s: float | None) -> float | None:
    return None if gbit_per_s is None else gbit_per_s * 1e9 / 8


class _Reader:
    """Walks a file and holds what was seen on the way, so that every mistake can be told with its place."""

    def __init__(self, document: Document, spec: PlainFabric, node_devices: int | None) -> None:
        self._document = document
        self._spec = spec
        self._parents: dict[str, str | None] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._seen: set[str] = set()
        defaults = spec.node_defaults
        unsaid = {} if node_devices is None else {"n_devices": node_devices}
        self._defaults = unsaid | {name: getattr(defaults, name) for name in defaults.model_fields_set}

    def nodes(self) -> Iterator[FabricNode]:
        """Every node, those that stand in a switch first."""
        self._note_parents()
        yield from self._in_switches(self._spec.switches, ("switches",), ())
        yield from self._listed(self._spec.nodes, ("nodes",), None)

    def _note_parents(self) -> None:
        pending: list[tuple[tuple[SwitchEntry, ...], str | None, tuple[Hashable, ...]]] = [
            (self._spec.switches, None, ("switches",))
        ]
        while pending:
            entries, parent, path = pending.pop()
            for index, entry in enumerate(entries):
                if entry.switch in self._parents:
                    raise self._error((*path, index, "switch"), f"the switch {entry.switch} is there twice")
                self._parents[entry.switch] = parent
                pending.append((entry.switches, entry.switch, (*path, index, "switches")))
        for switch, parent in self._spec.parents.items():
            known = self._parents.get(switch)
            if known is not None and known != parent:
                raise self._error(("parents", switch), f"is {parent} here, but {switch} stands inside {known}")
            self._parents[switch] = parent
        for switch in self._spec.parents:
            self._chain(switch, ("parents", switch))

    def _chain(self, switch: str, path: tuple[Hashable, ...]) -> tuple[str, ...]:
        """``switch`` and those above it."""
        if switch not in self._chains:
            chain = [switch]
            while (above := self._parents.get(chain[-1])) is not None:
                if above in self._chains:
                    chain += self._chains[above]
                    break
                if above in chain or len(chain) > MAX_DEPTH:
                    told = f"the switch {above} is above itself" if above in chain else f"more than {MAX_DEPTH} tiers"
                    raise self._error(path, f"{told}; switches must form a tree")
                chain.append(above)
            self._chains[switch] = tuple(chain)
        return self._chains[switch]

    def _in_switches(
        self, entries: tuple[SwitchEntry, ...], path: tuple[Hashable, ...], above: tuple[str, ...]
    ) -> Iterator[FabricNode]:
        for index, entry in enumerate(entries):
            place = (*path, index)
            chain = (entry.switch, *above) if above else self._chain(entry.switch, (*place, "switch"))
            yield from self._in_switches(entry.switches, (*place, "switches"), chain)
            yield from self._listed(entry.nodes, (*place, "nodes"), chain)

    def _listed(
        self, nodes: str | tuple[str | NodeEntry, ...], path: tuple[Hashable, ...], above: tuple[str, ...] | None
    ) -> Iterator[FabricNode]:
        if isinstance(nodes, str):
            for name in self._expanded(nodes, path):
                yield self._node(NodeEntry(name=name), path, above)
            return
        for index, entry in enumerate(nodes):
            place = (*path, index)
            if isinstance(entry, NodeEntry):
                yield self._node(entry, place, above)
            else:
                for name in self._expanded(entry, place):
                    yield self._node(NodeEntry(name=name), place, above)

    def _expanded(self, text: str, path: tuple[Hashable, ...]) -> list[str]:
        try:
            return expand(text)
        except ValueError as error:
            raise self._error(path, str(error)) from None

    def _node(self, entry: NodeEntry, path: tuple[Hashable, ...], above: tuple[str, ...] | None) -> FabricNode:
        if entry.name in self._seen:
            raise self._error((*path, "name"), f"the node {entry.name} is there twice")
        self._seen.add(entry.name)
        given = entry.switch is not None, entry.switches is not None, above is not None
        if sum(given) > 1:
            ways = ("switch", "switches", f"a place inside {above[0] if above else ''}")
            told = " and ".join(way for way, is_given in zip(ways, given, strict=True) if is_given)
            raise self._error((*path, "name"), f"the node {entry.name} has {told}; give one of them")
        chain = above or entry.switches or ()
        if entry.switch is not None:
            chain = self._chain(entry.switch, (*path, "switch"))
        if len(set(chain)) < len(chain):
            raise self._error((*path, "switches"), "a switch is there twice")
        said = {name: getattr(entry, name) for name in entry.model_fields_set - {"name", "switch", "switches"}}
        return FabricNode(name=entry.name, switches=chain, **{**self._defaults, **said})

    def _error(self, path: tuple[Hashable, ...], text: str) -> DlcalcError:
        return self._document.error(path, text)


# Writing


_ATTRIBUTES = tuple(field.name for field in fields(FabricNode) if field.name not in {"name", "switches"})
_STANDARD = {field.name: field.default for field in fields(FabricNode)}
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_RESERVED = re.compile(r"null|true|false", re.IGNORECASE)
_UNSAFE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def save_fabric(fabric: Fabric, path: Path | str) -> None:
    """Write ``fabric`` so that reading it gives an equal one: JSON by the suffix ``.json``, YAML otherwise.

    The name appears only once the file is whole.
    """
    path = Path(path)
    data = canonical(fabric)
    n_values = 10 * len(fabric.nodes)
    if path.suffix.lower() == ".json":
        text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))
        text = text.replace('"nodes": [{', '"nodes": [\n{').replace('}, {"name": ', '},\n{"name": ') + "\n"
    elif n_values > 2 * MAX_VALUES:
        raise TopologyError(f"{path}: {len(fabric.nodes):,} nodes are too many for a YAML file; name it .json")
    else:
        text = _as_yaml(data)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TopologyError(f"{path}: cannot be written: {reason.lower()}") from None


def canonical(fabric: Fabric) -> dict[str, Any]:
    """``fabric`` as the data of a plain file."""
    defaults = {name: value for name, value in _commonest(fabric).items() if value != _STANDARD[name]}
    data: dict[str, Any] = {"source": _text(fabric.source)}
    if fabric.tier_bytes_per_s_per_node:
        data |= _saved_rates(fabric.tier_bytes_per_s_per_node)
    if fabric.remarks:
        data["remarks"] = [_text(remark) for remark in fabric.remarks]
    if defaults:
        data["node_defaults"] = _texts(defaults)
    if fabric.parent:
        data["parents"] = {_text(switch): _text(above) for switch, above in fabric.parent.items()}
    expected = {**_STANDARD, **defaults}
    data["nodes"] = [_saved_node(node, fabric.chains[node.name], expected) for node in fabric.nodes]
    return data


def _saved_node(node: FabricNode, chain: tuple[str, ...], expected: Mapping[str, object]) -> dict[str, Any]:
    data: dict[str, Any] = {"name": _text(node.name)}
    if node.switches and node.switches == chain:
        data["switch"] = _text(node.switches[0])
    elif node.switches:
        data["switches"] = [_text(switch) for switch in node.switches]
    return data | _texts({name: value for name in _ATTRIBUTES if (value := getattr(node, name)) != expected[name]})


def _commonest(fabric: Fabric) -> dict[str, Any]:
    """The value that most nodes have of what nodes tend to share."""
    shared = ("n_devices", "instance_type", "zone", "region")
    if not fabric.nodes:
        return {}
    return {name: Counter(getattr(node, name) for node in fabric.nodes).most_common(1)[0][0] for name in shared}


def _saved_rates(rates: tuple[float | None, ...]) -> dict[str, Any]:
    """In Gbit/s where that gives the same number back to the last bit."""
    gbit = [None if rate is None else rate * 8 / 1e9 for rate in rates]
    if tuple(map(_bytes_per_s, gbit)) == rates:
        return {"tier_gbit_per_s_per_node": [_whole(rate) for rate in gbit]}
    return {"tier_bytes_per_s_per_node": list(rates)}


def _whole(rate: float | None) -> float | None:
    return int(rate) if rate is not None and math.isfinite(rate) and rate == int(rate) < 2**53 else rate


def _text(text: str) -> str:
    return without_surrogates(text)


def _texts(data: dict[str, Any]) -> dict[str, Any]:
    return {name: _text(value) if isinstance(value, str) else value for name, value in data.items()}


def _as_yaml(data: dict[str, Any]) -> str:
    lines: list[str] = []
    for key, value in data.items():
        if key == "parents":
            lines.append("parents:")
            lines += [f"  {_scalar(switch)}: {_scalar(above)}" for switch, above in value.items()]
        elif key == "nodes" and value:
            lines.append("nodes:")
            lines += [f"- {_flow(node)}" for node in value]
        elif key == "remarks":
            lines.append("remarks:")
            lines += [f"- {_scalar(remark)}" for remark in value]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case _:
            return _scalar(value)


def _scalar(value: object) -> str:
    """As YAML and this project's reader take it: quoted wherever it could be read as something else."""
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    if _BARE.fullmatch(value) and not _RESERVED.fullmatch(value):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04X}", quoted)
