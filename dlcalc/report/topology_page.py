"""A fabric as a page: switches as nested boxes by tier, nodes by what they do, the rings of a job as coloured lines.

One file that opens offline. pyvis makes nodes and edges and brings the script that draws them; ``topology_page.js``
lays them out and lets a reader fold switches, hide rings and search.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from dlcalc import __version__
from dlcalc.errors import TopologyError
from dlcalc.report.page.shell import script_json
from dlcalc.topology.fabric import Fabric, FabricNode

RING_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#332288", "#56B4E9", "#882255", "#999933")
"""Told apart by colour-blind readers (Okabe and Ito, Tol); further rings take hues in between."""
GOLDEN_ANGLE_FRACTION = 0.381966
NODE_COLOURS: Mapping[str, tuple[str, str]] = {
    "free": ("#ffffff", "#2e7d32"),
    "job": ("#d0d0d0", "#222222"),
    "other": ("#c9ced6", "#8a93a0"),
    "unusable": ("#4b4f57", "#4b4f57"),
}
"""Fill and border by what a node is to the reader; a node of the job takes the colour of its ring."""
MEANINGS = {
    "free": "free: may be given to a job",
    "job": "of the job, in the colour of its ring, with its node rank",
    "other": "holds another job",
    "unusable": "down, cordoned or of another kind",
}
TIER_COLOURS = (
    ("#f4f7fb", "#7c93b2"),
    ("#e6edf6", "#5f7ca3"),
    ("#d8e2f0", "#466692"),
    ("#cad8ea", "#2f517f"),
    ("#bccee4", "#1c3d6c"),
)
"""Shade and border of a switch by tier, closest first; the last one serves all further tiers."""
STYLE = """
html, body { height: 100%; margin: 0; font: 14px system-ui, sans-serif; color: #1d2430; background: #fff; }
body { display: grid; grid-template-columns: 1fr 270px; grid-template-rows: auto 1fr; }
header { grid-column: 1 / 3; display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; padding: 8px 14px;
  border-bottom: 1px solid #d5dae2; }
h1 { font-size: 16px; margin: 0; }
header p { margin: 0; color: #555f6d; }
#graph { min-width: 0; min-height: 0; overflow: hidden; }
aside { border-left: 1px solid #d5dae2; padding: 10px 14px; overflow: auto; }
aside h2 { font-size: 13px; margin: 14px 0 6px; }
aside ul { list-style: none; margin: 0; padding: 0; }
aside li { display: flex; gap: 8px; align-items: flex-start; margin: 3px 0; }
.key { flex: none; width: 16px; height: 14px; border-radius: 3px; border: 2px solid; margin-top: 1px; }
.line { flex: none; width: 18px; height: 0; border-top: 4px solid; margin-top: 8px; }
button, input[type=search] { font: inherit; padding: 3px 9px; border: 1px solid #b8bec8; border-radius: 5px;
  background: #fff; }
button:hover { background: #eef2f7; cursor: pointer; }
.buttons { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 8px; }
label { cursor: pointer; }
#found { color: #555f6d; }
div.vis-tooltip { position: absolute; visibility: hidden; padding: 6px 9px; white-space: pre; font: 13px system-ui,
  sans-serif; background: #fffdf3; border: 1px solid #8a8f98; border-radius: 5px; pointer-events: none; z-index: 5;
  box-shadow: 2px 2px 8px rgba(0, 0, 0, 0.15); }
"""
OPTIONS: Mapping[str, Any] = {
    "physics": {"enabled": False},
    "layout": {"improvedLayout": False},
    "interaction": {"hover": True, "tooltipDelay": 60, "dragNodes": False, "multiselect": True, "zoomSpeed": 0.7},
    "nodes": {
        "font": {"size": 12, "face": "system-ui, sans-serif"},
        "scaling": {"label": {"drawThreshold": 4}},
        "chosen": True,
        "shapeProperties": {"borderRadius": 4},
        "margin": 5,
    },
    "edges": {"smooth": {"enabled": True, "type": "curvedCW", "roundness": 0.18}, "width": 2.5, "selectionWidth": 1},
}
NODE_PIXELS = 22
RANK_PIXELS = (12, 12, 12, 10, 8, 7)
"""Font size by digits, so that a rank fits into its node."""
SEARCH = (
    "<input id=search type=search placeholder='node, host, rank, job or switch' size=28 aria-label=search>"
    "<span id=found></span>"
)


@dataclass(frozen=True)
class DrawnRing:
    """Nodes that are joined by a closed line."""

    label: str
    nodes: tuple[str, ...]
    """In ring order."""
    first_rank: int = 0
    """Node rank of the first one."""


def topology_page(fabric: Fabric, rings: Sequence[DrawnRing], *, title: str, remarks: Sequence[str] = ()) -> str:
    """The whole page, as HTML."""
    script, network = _pyvis()
    of_ring = {
        name: (position, ring, ring.first_rank + place)
        for position, ring in enumerate(rings)
        for place, name in enumerate(ring.nodes)
    }
    kinds = {node.name: kind_of(node, of_ring.keys()) for node in fabric.nodes}
    for node in fabric.nodes:
        network.add_node(f"node {node.name}", **_drawn_node(fabric, node, kinds[node.name], of_ring))
    for position, ring in enumerate(rings):
        network.edges.extend(_ring_edges(fabric, ring, position))  # its add_edge looks through all edges each time
    data = {
        "nodes": network.nodes,
        "edges": network.edges,
        "switches": _switches(fabric),
        "rings": [{"label": ring.label} for ring in rings],
        "options": OPTIONS,
    }
    behaviour = (files("dlcalc.report") / "topology_page.js").read_text(encoding="utf-8")
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(_counted(fabric, kinds))}</p>{SEARCH}</header>",
        "<main id=graph></main>",
        f"<aside>{_controls(fabric)}{_legend(fabric, rings, Counter(kinds.values()), remarks)}</aside>",
        f"<script>{script}</script>",
        f"<script>const DATA = {script_json(data)};\n{behaviour}</script>",
    ]
    head = (
        f"<head><meta charset=utf-8><title>{escape(title)}</title><link rel=icon href='data:,'>"
        f"<meta name=generator content='dlcalc {escape(__version__)}'><style>{STYLE}</style></head>"
    )
    return f"<!doctype html><html lang=en>{head}<body>{''.join(body)}</body></html>\n"


def kind_of(node: FabricNode, drawn: Iterable[str]) -> str:
    """What a node is to the reader."""
    if node.name in drawn:
        return "job"
    return {"free": "free", "busy": "other", "unusable": "unusable"}[node.state]


def ring_colour(position: int) -> str:
    """Of the ring at ``position``."""
    if position < len(RING_COLOURS):
        return RING_COLOURS[position]
    hue = position * GOLDEN_ANGLE_FRACTION % 1.0
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.42, 0.65))


def _pyvis() -> tuple[str, Any]:
    """The script that draws, and an empty network."""
    try:
        from pyvis.network import Network
    except ImportError as error:
        raise TopologyError("drawing a fabric needs pyvis: pip install 'dlcalc[topology]'") from error
    library = sorted((files("pyvis") / "lib").iterdir(), key=lambda entry: entry.name)
    folders = [entry for entry in library if entry.name.startswith("vis-")]
    if not folders:
        raise TopologyError("this version of pyvis brings no vis-network; dlcalc was tested with 0.3.2")
    script = (folders[-1] / "vis-network.min.js").read_text(encoding="utf-8")
    return script.replace("</script", "<\\/script"), Network(cdn_resources="in_line")


def _drawn_node(
    fabric: Fabric, node: FabricNode, kind: str, of_ring: Mapping[str, tuple[int, DrawnRing, int]]
) -> dict[str, Any]:
    fill, border = NODE_COLOURS[kind]
    said = [node.name]
    if node.host and node.host != node.name:
        said.append(f"host {node.host}")
    said += [f"{what} {value}" for what, value in (("instance type", node.instance_type), ("zone", node.zone)) if value]
    label, rank = " ", node.rank
    if kind == "job":
        position, ring, rank = of_ring[node.name]
        fill, label = ring_colour(position), str(rank)
        said.append(f"{ring.label}, node rank {rank}")
    if node.state == "busy":
        said.append(f"job {node.job}" + (f", its rank {node.rank}" if node.rank is not None and kind != "job" else ""))
    else:
        said.append(node.state + (f": {node.why_unusable}" if node.why_unusable else ""))
    if node.domain:
        said.append(f"NVLink domain {node.domain}")
    said.append(f"under {' < '.join(node.switches)}" if node.switches else "no topology data: cannot be placed")
    words = [node.name, node.host_name, node.job, *([f"rank {rank}", str(rank)] if rank is not None else [])]
    return {
        "label": label,
        "title": "\n".join(said),
        "color": _colours(fill, border, chosen="#ff1744"),
        "font": {"color": "#ffffff" if kind == "job" else "#222222", "size": RANK_PIXELS[min(len(label), 5)]},
        "borderWidth": 2,
        "borderWidthSelected": 5,
        "margin": 3,
        "widthConstraint": {"minimum": NODE_PIXELS - 6},
        "heightConstraint": {"minimum": NODE_PIXELS - 6},
        "parent": f"switch {node.switches[0]}" if node.switches else None,
        "kind": kind,
        "name": node.name,
        "words": sorted({word.lower() for word in words if word}),
    }


def _colours(fill: str, border: str, *, chosen: str) -> dict[str, Any]:
    """Of a box; under the pointer or found, only its border changes."""
    marked = {"background": fill, "border": chosen}
    return {"background": fill, "border": border, "hover": marked, "highlight": marked}


def _ring_edges(fabric: Fabric, ring: DrawnRing, position: int) -> list[dict[str, Any]]:
    """From every node to the next; two nodes are joined by one line, a single one by none."""
    follows = list(zip(ring.nodes, (*ring.nodes[1:], ring.nodes[0]), strict=True))
    if len(ring.nodes) < 3:
        follows = follows[:-1]
    return [
        {
            "from": f"node {a}",
            "to": f"node {b}",
            "ring": position,
            "color": {**dict.fromkeys(("color", "hover", "highlight"), ring_colour(position)), "opacity": 0.85},
            "title": f"{ring.label}: {a} - {b}, {_meeting(fabric, a, b)}",
        }
        for a, b in follows
    ]


def _meeting(fabric: Fabric, a: str, b: str) -> str:
    switch = fabric.meets_at(a, b)
    if switch is None:
        return "no common switch"
    return f"{fabric.chains[a].index(switch) + fabric.chains[b].index(switch) + 2} hops, over {switch}"


def _switches(fabric: Fabric) -> list[dict[str, Any]]:
    """Parents before children, so that boxes are drawn from the outside in."""
    known = dict.fromkeys(switch for chain in fabric.chains.values() for switch in reversed(chain))
    depth = {switch: position for chain in fabric.chains.values() for position, switch in enumerate(reversed(chain))}
    found = []
    for switch in sorted(known, key=depth.__getitem__):
        tier = fabric.tier[switch]
        shade, border = TIER_COLOURS[min(tier, len(TIER_COLOURS) - 1)]
        above = fabric.parent.get(switch)
        found.append(
            {
                "id": f"switch {switch}",
                "name": switch,
                "label": switch,
                "title": f"switch {switch}, tier {tier}",
                "tier": tier,
                "parent": None if above is None else f"switch {above}",
                "shade": shade,
                "words": [switch.lower()],
                "drawn": {
                    "color": _colours(shade, border, chosen=border),
                    "font": {"color": "#1c3d6c", "size": 12},
                },
            }
        )
    return found


def _counted(fabric: Fabric, kinds: Mapping[str, str]) -> str:
    counts = Counter(kinds.values())
    parts = [f"{counts[kind]:,} {'of the job' if kind == 'job' else kind}" for kind in NODE_COLOURS if counts[kind]]
    tiers = f"{len(fabric.tier):,} switches in {fabric.n_tiers} tier{'' if fabric.n_tiers == 1 else 's'}"
    return f"{len(fabric.nodes):,} nodes: {', '.join(parts) or 'none'}; {tiers}"


def _controls(fabric: Fabric) -> str:
    folds = "".join(
        f"<button data-tier={tier}>Fold tier {tier}</button>" for tier in range(min(fabric.n_tiers, len(TIER_COLOURS)))
    )
    return (
        f"<div class=buttons><button id=fit>Fit</button><button id=open>Open all</button>{folds}</div>"
        "<label><input id=links type=checkbox> links to switches</label>"
    )


def _legend(fabric: Fabric, rings: Sequence[DrawnRing], counts: Counter[str], remarks: Sequence[str]) -> str:
    parts = ["<h2>Nodes</h2><ul>"]
    for kind, (fill, border) in NODE_COLOURS.items():
        if counts[kind]:
            key = f"<span class=key style='background:{fill};border-color:{border}'></span>"
            parts.append(f"<li>{key}<span>{MEANINGS[kind]} ({counts[kind]:,})</span></li>")
    parts.append("</ul><h2>Switches (click one to fold it)</h2><ul>")
    for tier in range(fabric.n_tiers):
        shade, border = TIER_COLOURS[min(tier, len(TIER_COLOURS) - 1)]
        n_switches = sum(found == tier for found in fabric.tier.values())
        rate = fabric.rate_bytes_per_s_per_node(tier)
        said = f"tier {tier}{', closest' if tier == 0 else ''} ({n_switches:,})"
        said += f", {rate / 1e9:,.4g} GB/s per node" if rate else ""
        parts.append(f"<li><span class=key style='background:{shade};border-color:{border}'></span>{said}</li>")
    parts.append("</ul>")
    if rings:
        parts.append("<h2>Rings</h2><ul><li><label><input id=rings type=checkbox checked> all</label></li>")
        for position, ring in enumerate(rings):
            line = f"<span class=line style='border-color:{ring_colour(position)}'></span>"
            parts.append(
                f"<li><label><input data-ring={position} type=checkbox checked></label>{line}"
                f"<span>{escape(ring.label)} ({len(ring.nodes):,} nodes)</span></li>"
            )
        parts.append("</ul>")
    if remarks:
        parts.append("<h2>Remarks</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in remarks) + "</ul>")
    return "".join(parts)
