"""Slurm's view of the fabric: topology.conf, topology.yaml, and what ``scontrol`` prints.

Text is one record a line, told by its first key: ``SwitchName`` and ``BlockName`` as in topology.conf (where ``scontrol
show topology`` adds ``Level``, and to a higher switch all the nodes below), and from ``scontrol show nodes`` and ``show
jobs`` ``NodeName`` and ``JobId``, which say what is free. So the outputs one after the other are a topology to replay.

A block is a switch; ``BlockSizes`` groups consecutive blocks under further ones. ``LinkSpeed`` has no unit in Slurm and
is not used. Switches without a common one above them stay apart: Slurm starts no job across them either.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlcalc.errors import DlcalcError, Problem, SpecError, TopologyError, suggestion
from dlcalc.specs.wording import shown
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.sources.document import Document
from dlcalc.topology.sources.hostlist import expand
from dlcalc.topology.sources.slurm_state import job_of, node_of, records

ALL_BLOCKS = "all blocks"
TIMEOUT_S = 60.0

_RECORD = re.compile(r"^[ \t]*(?:switchname|blockname|blocksizes)[ \t]*=", re.IGNORECASE | re.MULTILINE)
_KEYS = ("SwitchName", "Switches", "Nodes", "LinkSpeed", "BlockName", "BlockSizes")
_KNOWN = {key.lower() for key in _KEYS}
_PRINTED = {"level", "blockindex", "aggregatedblock"}
_CHATTER = re.compile(r"No jobs|No nodes|slurm_load|scontrol:")
_OUTPUTS = (
    ("show", "topology"),
    ("--all", "--details", "--oneliner", "show", "nodes"),
    ("--all", "--oneliner", "show", "jobs"),
)

Place = tuple[Hashable, ...]
Complain = Callable[[Place, str], DlcalcError]


@dataclass
class _Switch:
    place: Place
    switches: list[str]
    nodes: list[str]


@dataclass
class _Tree:
    """Switches by name, as they were read."""

    complain: Complain
    switches: dict[str, _Switch] = field(default_factory=dict)
    block_sizes: list[int] = field(default_factory=list)
    block_sizes_at: Place = ()

    def add(self, name: str, place: Place, *, switches: list[str], nodes: list[str]) -> None:
        if name in self.switches:
            raise self.complain(place, f"the switch {name} is there twice")
        self.switches[name] = _Switch(place, switches, nodes)

    def chains(self) -> dict[str, tuple[str, ...]]:
        """The switches above each node, closest first."""
        parents = self._parents()
        found: dict[str, tuple[str, ...]] = {}
        for name, switch in self.switches.items():
            chain = [name]
            while chain[-1] in parents:
                above = parents[chain[-1]]
                if above in chain:
                    raise self.complain(switch.place, f"the switch {above} is above itself; switches must form a tree")
                chain.append(above)
            for node in switch.nodes:
                if node in found:
                    told = f"the node {node} hangs from {found[node][0]} and from {name}"
                    raise self.complain(switch.place, f"{told}; a node has one closest switch")
                found[node] = tuple(chain)
        return found

    def _parents(self) -> dict[str, str]:
        parents: dict[str, str] = {}
        for name, switch in self.switches.items():
            for child in switch.switches:
                if child not in self.switches:
                    told = f"no switch {child} is there; {suggestion(child, self.switches)}"
                    raise self.complain(switch.place, told if len(told) < 400 else f"no switch {child} is there")
                if child in parents and parents[child] != name:
                    told = f"the switch {child} hangs from {parents[child]} and from {name}"
                    raise self.complain(switch.place, f"{told}; switches must form a tree")
                parents[child] = name
        return parents

    def group_blocks(self) -> None:
        """Put consecutive blocks under the larger ones that ``block_sizes`` names, and all under one."""
        blocks = list(self.switches)
        base, *larger = self.block_sizes or [0]
        below = {block: block for block in blocks}
        for size in larger:
            n_blocks = size // base
            if size % base or n_blocks & (n_blocks - 1):
                told = f"{size} must be the first size, {base}, times a power of two"
                raise self.complain(self.block_sizes_at, told)
            for begin in range(0, len(blocks), n_blocks):
                members = blocks[begin : begin + n_blocks]
                tops = list(dict.fromkeys(below[block] for block in members))
                if len(tops) < 2:
                    continue
                name = f"{members[0]}..{members[-1]}"
                self.add(name, self.block_sizes_at, switches=tops, nodes=[])
                below |= dict.fromkeys(members, name)
        tops = list(dict.fromkeys(below.values()))
        if len(tops) > 1:
            self.add(ALL_BLOCKS, self.block_sizes_at, switches=tops, nodes=[])


# Text


def is_slurm_text(text: str) -> bool:
    """Whether ``text`` is a topology.conf or what scontrol printed."""
    return text.lstrip()[:1] not in {"{", "["} and _RECORD.search(text) is not None


def fabric_of_text(text: str, source: Path | str, *, node_devices: int | None = None) -> Fabric:
    """The fabric in a topology.conf, or in what ``scontrol`` printed of topology, nodes and jobs."""
    reader = _TextReader(source)
    for line, content in _lines(text):
        reader.take(line, content)
    return _fabric(
        reader.chains(), reader.nodes, reader.jobs, source=str(source), remarks=(), node_devices=node_devices
    )


class _TextReader:
    """Takes records one by one."""

    def __init__(self, source: Path | str) -> None:
        self.nodes: dict[str, dict[str, str]] = {}
        self.jobs: list[dict[str, str]] = []
        self._source = source
        self._tree = _Tree(self._complain)
        self._blocks = _Tree(self._complain)
        self._printed_sizes: set[int] = set()

    def take(self, line: int, content: str) -> None:
        """Add what the record says that begins on ``line``."""
        first = content.split("=", 1)[0].strip().lower()
        if first == "nodename":
            record = records(content)
            names = self._expanded(record.get("nodename", ""), line, "NodeName")
            self.nodes |= dict.fromkeys(names, record)
        elif first == "jobid":
            self.jobs.append(records(content))
        elif first in {"switchname", "blockname", "blocksizes", "aggregatedblock"}:
            self._take_topology(first, line, _settings(content.split("#", 1)[0], line, self._complain))
        elif isinstance(self._source, Path) and not _CHATTER.match(content):
            key = content.partition("=")[0].partition(" ")[0]
            known = suggestion(key, ("SwitchName", "BlockName", "BlockSizes"))
            raise self._complain((line, shown(key)), f"no such key at the beginning of a line; {known}")

    def _take_topology(self, first: str, line: int, told: dict[str, str]) -> None:
        if first == "blocksizes":
            self._blocks.block_sizes_at = (line, "BlockSizes")
            self._blocks.block_sizes = _sizes(told[first], self._blocks.block_sizes_at, self._complain)
            return
        if "blocksize" in told:
            self._printed_sizes.update(_sizes(told["blocksize"], (line, "BlockSize"), self._complain))
        if first == "aggregatedblock":  # follows from the sizes
            return
        key = "SwitchName" if first == "switchname" else "BlockName"
        names = self._expanded(told[first], line, key)
        if len(names) != 1:
            raise self._complain((line, key), f"must be one name, not {shown(told[first])}")
        switches = self._expanded(told.get("switches", ""), line, "Switches")
        nodes = self._expanded(told.get("nodes", ""), line, "Nodes")
        if switches and "level" in told:  # scontrol repeats the nodes below
            nodes = []
        tree = self._tree if first == "switchname" else self._blocks
        tree.add(names[0], (line, key), switches=switches, nodes=nodes)

    def chains(self) -> dict[str, tuple[str, ...]]:
        """The switches above each node, once all is read."""
        if not self._blocks.switches:
            return self._tree.chains()
        if self._tree.switches:
            place = next(iter(self._blocks.switches.values())).place
            raise self._complain(place, "switches and blocks are two kinds of topology; a file holds one of them")
        self._blocks.block_sizes = self._blocks.block_sizes or sorted(self._printed_sizes)
        self._blocks.group_blocks()
        return self._blocks.chains()

    def _expanded(self, text: str, line: int, key: str) -> list[str]:
        return _expanded(text, (line, key), self._complain)

    def _complain(self, place: Place, problem: str) -> DlcalcError:
        line, key = place
        if isinstance(self._source, Path):
            return SpecError(self._source, (Problem(int(str(line)), str(key), problem),))
        return TopologyError(f"{self._source}: line {line}: {key}: {problem}")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Records with the line they begin on; a line that ends in a backslash goes on in the next."""
    begin, pending = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        begin = begin or number
        stripped = line.strip()
        if stripped.endswith("\\"):
            pending += stripped[:-1] + " "
            continue
        content = (pending + stripped).strip()
        if content and not content.startswith("#"):
            yield begin, content
        begin, pending = 0, ""
    if pending.strip():
        yield begin, pending.strip()


def _settings(content: str, line: int, complain: Complain) -> dict[str, str]:
    """``Key=value Key=value``, with keys in lower case. What Slurm prints may have keys that its files have not."""
    told: dict[str, str] = {}
    words = re.sub(r"[ \t]*=[ \t]*", "=", content.strip()).split()
    is_printed = any(word.partition("=")[0].lower() in _PRINTED for word in words)
    for word in words:
        key, separator, value = word.partition("=")
        lowered = key.lower()
        if not separator:
            raise complain((line, key), "must be Key=value, without spaces in the value")
        if lowered not in _KNOWN and not is_printed:
            raise complain((line, key), f"no such key; {suggestion(key, _KEYS)}")
        if lowered in told:
            raise complain((line, key), "this key is given twice on one line")
        told[lowered] = value.strip('"')
    return told


def _expanded(text: str, place: Place, complain: Complain) -> list[str]:
    try:
        return expand(text) if text != "(null)" else []
    except ValueError as error:
        raise complain(place, str(error)) from None


def _sizes(text: str, place: Place, complain: Complain) -> list[int]:
    words = text.split(",")
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise complain(place, f"must be sizes with commas between, such as 4,8, not {shown(text)}")
    return sorted(set(map(int, words)))


# YAML


class _Kind(NamedTuple):
    name: str
    data: Any
    path: Place


def is_slurm_yaml(data: object) -> bool:
    """Whether ``data`` is that of a topology.yaml."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "topology" in data[0]


def fabric_of_yaml(document: Document, *, node_devices: int | None = None) -> Fabric:
    """The fabric in a topology.yaml: the first topology with ``cluster_default: true``, or else the first."""
    entries = [document.mapping(entry, (index,)) for index, entry in enumerate(document.items(document.data, ()))]
    names = [document.text(entry, "topology", (index,), needed=True) for index, entry in enumerate(entries)]
    chosen = next((index for index, entry in enumerate(entries) if entry.get("cluster_default") is True), 0)
    kind = _kind(document, entries[chosen], (chosen,))
    tree = _Tree(document.error)
    if kind.name == "tree":
        _read_tree(document, kind, tree)
    elif kind.name == "block":
        _read_blocks(document, kind, tree)
    else:
        told = f"{names[chosen]} is flat, which says nothing of nodes; ask Slurm itself (--topology slurm)"
        raise document.error(kind.path, told)
    others = [name for index, name in enumerate(names) if index != chosen]
    remarks = (f"the topology {names[chosen]} was read; {', '.join(others)} not",) if others else ()
    source = f"{document.source} ({names[chosen]})"
    return _fabric(tree.chains(), {}, [], source=source, remarks=remarks, node_devices=node_devices)


def _kind(document: Document, entry: dict[str, Any], path: Place) -> _Kind:
    found = [name for name in ("tree", "block", "flat") if entry.get(name, False) not in (None, False)]
    if len(found) != 1:
        told = " and ".join(found) if found else "none"
        raise document.error(path, f"must have one of tree, block and flat, not {told}")
    return _Kind(found[0], entry[found[0]], (*path, found[0]))


def _read_tree(document: Document, kind: _Kind, tree: _Tree) -> None:
    data = document.mapping(kind.data, kind.path)
    path = (*kind.path, "switches")
    for index, item in enumerate(document.items(data.get("switches"), path)):
        place = (*path, index)
        entry = document.mapping(item, place)
        name = document.text(entry, "switch", place, needed=True)
        switches = _listed(document, entry, "children", place)
        tree.add(name, (*place, "switch"), switches=switches, nodes=_listed(document, entry, "nodes", place))


def _read_blocks(document: Document, kind: _Kind, tree: _Tree) -> None:
    data = document.mapping(kind.data, kind.path)
    path = (*kind.path, "blocks")
    for index, item in enumerate(document.items(data.get("blocks"), path)):
        place = (*path, index)
        entry = document.mapping(item, place)
        name = document.text(entry, "block", place, needed=True)
        tree.add(name, (*place, "block"), switches=[], nodes=_listed(document, entry, "nodes", place))
    tree.block_sizes_at = (*kind.path, "block_sizes")
    sizes = document.items(data.get("block_sizes"), tree.block_sizes_at)
    for index, size in enumerate(sizes):
        if type(size) is not int or size < 1:
            told = f"must be a whole number of at least 1, not {shown(size)}"
            raise document.error((*tree.block_sizes_at, index), told)
    tree.block_sizes = sorted(set(sizes))
    tree.group_blocks()


def _listed(document: Document, entry: dict[str, Any], key: str, path: Place) -> list[str]:
    return _expanded(document.text(entry, key, path), (*path, key), document.error)


# Nodes


def _fabric(
    chains: dict[str, tuple[str, ...]],
    nodes: dict[str, dict[str, str]],
    jobs: Sequence[dict[str, str]],
    *,
    source: str,
    remarks: tuple[str, ...],
    node_devices: int | None,
) -> Fabric:
    """Nodes of the topology, and those that only ``show nodes`` knows, with their state where it is known."""
    if not nodes and jobs:
        raise TopologyError(f"{source}: there are jobs but no nodes; save `scontrol -d -o show nodes` too")
    running = job_of(jobs)
    found = []
    for name in dict.fromkeys([*chains, *nodes]):
        chain = chains.get(name, ())
        if not nodes:
            found.append(FabricNode(name, chain, n_devices=node_devices or FabricNode("x").n_devices))
        elif name in nodes:
            found.append(node_of(name, chain, nodes[name], running.get(name), node_devices=node_devices))
        else:
            why = "scontrol show nodes does not list it (powered down?)"
            found.append(FabricNode(name, chain, state="unusable", why_unusable=why))
    if not nodes:
        remarks = (*remarks, "the file does not say which nodes hold jobs or are down; all are taken as free")
    return Fabric(tuple(found), source=source, remarks=remarks)


# The cluster


def read_slurm(*, node_devices: int | None = None) -> Fabric:
    """What ``scontrol`` says of the present cluster: topology, nodes, jobs."""
    if shutil.which("scontrol") is None:
        raise TopologyError(
            "slurm: scontrol is not there; run this where Slurm's commands are, or save what they print there: "
            "(scontrol show topology; scontrol -a -d -o show nodes; scontrol -a -o show jobs) > slurm.txt"
        )
    text = "\n".join(map(_printed, _OUTPUTS))
    if not is_slurm_text(text):
        return _flat(fabric_of_text(text, "slurm", node_devices=node_devices))
    return fabric_of_text(text, "slurm", node_devices=node_devices)


def _flat(fabric: Fabric) -> Fabric:
    """A cluster that Slurm has no topology of."""
    remark = "Slurm has no topology (neither topology.conf nor topology.yaml), so no node can be placed"
    return Fabric(fabric.nodes, source=fabric.source, remarks=(*fabric.remarks, remark))


def _printed(arguments: tuple[str, ...]) -> str:
    command = "scontrol " + " ".join(arguments)
    try:
        ran = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT_S, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise TopologyError(f"slurm: `{command}` did not answer within {TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise TopologyError(f"slurm: `{command}` cannot be run: {(error.strerror or str(error)).lower()}") from None
    if ran.returncode:
        told = " ".join((ran.stderr or ran.stdout).split())
        raise TopologyError(f"slurm: `{command}` failed: {told[:300] or f'exit code {ran.returncode}'}")
    return ran.stdout
