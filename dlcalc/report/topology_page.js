// The page of topoviz: switches as nested boxes, nodes in a grid inside them, rings as coloured lines.
// DATA is what topology_page.py made: {nodes, edges, switches, roots, rings, legend, options}. vis-network draws.
"use strict";
(() => {
  const CELL = 34, GAP = 10, HEAD = 30, FOLDED_WIDTH = 176, FOLDED_HEIGHT = 44, ASPECT = 1.5, CHARACTER = 6.6;
  const LEAST_COLUMNS = Math.floor((FOLDED_WIDTH - 2 * GAP) / CELL), MOST_TRIED = 40;
  const MANY = 3000; // nodes that are too many to open all at once
  const LOOSE = "no topology data", KINDS = ["job", "free", "other", "unusable"];

  const switches = new Map(DATA.switches.map((one) => [one.id, { ...one, children: [], leaves: [] }]));
  const nodes = new Map(DATA.nodes.map((one) => [one.id, one]));
  const folded = new Set();
  const hiddenRings = new Set();
  const boxes = new Map(); // switch -> {x, y, width, height} of what is drawn now
  let showsLinks = false;

  const tops = [];
  for (const one of switches.values()) (one.parent === null ? tops : switches.get(one.parent).children).push(one);
  for (const node of DATA.nodes) {
    if (node.parent !== null) switches.get(node.parent).leaves.push(node);
  }

  // ---- layout: every switch is as small a box as holds what is under it ------------------------------------------

  function measure(one) {
    if (folded.has(one.id)) return { one, width: FOLDED_WIDTH, height: FOLDED_HEIGHT, parts: [] };
    const parts = one.children.map(measure);
    if (one.leaves.length) parts.unshift(grid(one.leaves));
    return shelved({ one, parts }, HEAD);
  }

  function grid(leaves) {
    const rows = Math.ceil(leaves.length / Math.max(LEAST_COLUMNS, Math.ceil(Math.sqrt(leaves.length * ASPECT))));
    const columns = Math.ceil(leaves.length / rows); // as even as they come
    return { leaves, columns, width: columns * CELL, height: rows * CELL };
  }

  function shelved(box, head) { // in rows, of the length that makes the box largest when it fills a screen
    const mean = box.parts.reduce((sum, part) => sum + part.width + GAP, 0) / box.parts.length;
    let best = rowsOf(box, head, Infinity);
    best.size = Infinity;
    for (let n = 1; n <= Math.min(box.parts.length, MOST_TRIED); n += 1) {
      const tried = rowsOf(box, head, n * mean + 1);
      const size = Math.max(tried.width / ASPECT, tried.height);
      if (size < best.size) best = { ...tried, size };
    }
    best.parts = box.parts.map((part, i) => ({ ...part, ...best.places[i] }));
    return { ...box, ...best };
  }

  function rowsOf(box, head, limit) {
    let x = 0, y = head, line = 0, width = FOLDED_WIDTH - 2 * GAP;
    const places = [];
    for (const part of box.parts) {
      if (x > 0 && x + part.width > limit) [x, y, line] = [0, y + line + GAP, 0];
      places.push({ dx: x + GAP, dy: y });
      x += part.width + GAP;
      line = Math.max(line, part.height);
      width = Math.max(width, x - GAP);
    }
    return { places, width: width + 2 * GAP, height: y + line + GAP };
  }

  function settle(box, x, y, positions) {
    if (box.leaves) {
      box.leaves.forEach((leaf, i) => positions.set(leaf.id, {
        x: x + (i % box.columns + 0.5) * CELL, y: y + (Math.floor(i / box.columns) + 0.5) * CELL,
      }));
      return;
    }
    if (box.one) {
      boxes.set(box.one.id, { x, y, width: box.width, height: box.height });
      const isFolded = folded.has(box.one.id);
      positions.set(box.one.id, { x: x + box.width / 2, y: y + (isFolded ? box.height / 2 : HEAD / 2) });
    }
    for (const part of box.parts) settle(part, x + part.dx, y + part.dy, positions);
  }

  // ---- what is seen of it ----------------------------------------------------------------------------------------

  function shownFor(id) { // the outermost folded switch over a node or switch, or itself
    let shown = id;
    for (let above = (nodes.get(id) || switches.get(id)).parent; above !== null; above = switches.get(above).parent) {
      if (folded.has(above)) shown = above;
    }
    return shown;
  }

  function under(one) {
    return [...one.leaves, ...one.children.flatMap(under)];
  }

  function shortened(text, width) {
    const most = Math.max(4, Math.floor(width / CHARACTER));
    return text.length <= most ? text : "…" + text.slice(text.length - most + 1); // ids differ in their ends
  }

  function counted(one) {
    const counts = {};
    for (const leaf of under(one)) counts[leaf.kind] = (counts[leaf.kind] || 0) + 1;
    return KINDS.filter((kind) => counts[kind]).map((kind) => `${counts[kind]} ${kind}`).join(", ");
  }

  const visNodes = new vis.DataSet([]), visEdges = new vis.DataSet([]);
  const canvas = document.getElementById("graph");
  const network = new vis.Network(canvas, { nodes: visNodes, edges: visEdges }, DATA.options);

  function replaced(set, wanted) { // as few changes as possible, so that a fold of 1,000 nodes is quick
    const ids = new Set(wanted.map((one) => one.id));
    set.remove(set.getIds().filter((id) => !ids.has(id)));
    set.update(wanted);
  }

  function redraw(fit) {
    boxes.clear();
    const loose = DATA.nodes.filter((node) => node.parent === null);
    const parts = tops.map(measure);
    if (loose.length) parts.push(shelved({ one: { id: LOOSE }, parts: [grid(loose)] }, HEAD));
    const positions = new Map();
    settle({ ...shelved({ parts }, 0) }, 0, 0, positions);
    const drawn = [];
    for (const node of DATA.nodes) {
      if (positions.has(node.id)) drawn.push({ ...node, ...positions.get(node.id), shape: "box", physics: false });
    }
    for (const one of switches.values()) {
      if (!positions.has(one.id)) continue;
      const isFolded = folded.has(one.id), width = boxes.get(one.id).width - 16;
      const name = shortened(one.label, width);
      drawn.push({
        ...one.drawn, id: one.id, ...positions.get(one.id), shape: "box", physics: false,
        label: isFolded ? `▸ ${shortened(one.label, width - 14)}\n${counted(one).slice(0, 28)}` : name,
        title: `${one.title}\n${counted(one)}\n${isFolded ? "click to open" : "click to fold"}`,
        widthConstraint: isFolded ? { minimum: width + 2 } : { minimum: 0 }, borderWidth: isFolded ? 2 : 1,
      });
    }
    replaced(visNodes, drawn);
    replaced(visEdges, [...ringEdges(), ...linkEdges()]);
    document.body.classList.toggle("folded", folded.size > 0);
    if (fit) fitted();
  }

  function fitted() {
    network.fit({ animation: false, maxZoomLevel: 1.8 });
  }

  function ringEdges() {
    const merged = new Map();
    for (const edge of DATA.edges) {
      if (hiddenRings.has(edge.ring)) continue;
      const from = shownFor(edge.from), to = shownFor(edge.to);
      if (from === to) continue;
      const key = `${edge.ring} ${[from, to].sort().join(" ")}`;
      const known = merged.get(key);
      if (known) known.count += 1;
      else merged.set(key, { ...edge, id: key, from, to, count: 1 });
    }
    for (const edge of merged.values()) {
      if (edge.count > 1) [edge.title, edge.width] = [`${DATA.rings[edge.ring].label}: ${edge.count} links`, 4];
    }
    return [...merged.values()];
  }

  function linkEdges() {
    if (!showsLinks) return [];
    return visNodes.get().filter((one) => parentOf(one.id) !== null).map((one) => ({
      id: `link ${one.id}`, from: one.id, to: parentOf(one.id), color: { color: "#b8bec8" }, width: 1, smooth: false,
    }));
  }

  function parentOf(id) {
    return (nodes.get(id) || switches.get(id)).parent;
  }

  network.on("beforeDrawing", (context) => { // parents come before children in `switches`, so boxes nest
    for (const [id, box] of boxes) {
      if (folded.has(id)) continue;
      const one = switches.get(id);
      context.beginPath();
      context.roundRect(box.x, box.y, box.width, box.height, 8);
      context.fillStyle = one ? one.shade : "#ffffff";
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = one ? one.drawn.color.border : "#8a8f98";
      context.setLineDash(one ? [] : [6, 4]);
      context.stroke();
      context.setLineDash([]);
      if (!one) {
        context.fillStyle = "#444";
        context.font = "14px system-ui, sans-serif";
        context.textBaseline = "middle";
        context.fillText(LOOSE, box.x + GAP, box.y + HEAD / 2);
      }
    }
  });

  // ---- what a reader can do --------------------------------------------------------------------------------------

  function toggle(id) {
    if (folded.has(id)) folded.delete(id);
    else folded.add(id);
    redraw(false);
  }

  function foldFrom(tier) { // everything of this tier and above stays open; what is below is folded; -1: open all
    folded.clear();
    for (const one of switches.values()) if (one.tier <= tier) folded.add(one.id);
    redraw(true);
  }

  network.on("click", (event) => {
    const [id] = event.nodes;
    if (id !== undefined && switches.has(id)) {
      network.unselectAll();
      toggle(id);
    }
  });
  network.on("hoverNode", () => { canvas.style.cursor = "pointer"; });
  network.on("blurNode", () => { canvas.style.cursor = ""; });

  const box = document.getElementById("search"), found = document.getElementById("found");
  let matches = [], at = -1;

  function search(text) {
    const wanted = text.trim().toLowerCase();
    const everything = [...DATA.nodes, ...switches.values()];
    const exact = everything.filter((one) => one.words.some((word) => word === wanted));
    matches = !wanted ? [] : exact.length ? exact : everything.filter((one) => one.words.some((w) => w.includes(wanted)));
    at = -1;
    found.textContent = wanted ? (matches.length ? `${matches.length} found; Enter goes on` : "nothing found") : "";
    network.unselectAll();
    if (matches.length) network.selectNodes([...new Set(matches.map((one) => shownFor(one.id)))], false);
  }

  function next() {
    if (!matches.length) return;
    at = (at + 1) % matches.length;
    const id = matches[at].id;
    for (let shown = shownFor(id); shown !== id && folded.has(shown); shown = shownFor(id)) folded.delete(shown);
    redraw(false);
    network.selectNodes([id], false);
    network.focus(id, { scale: 1.4, animation: false });
    found.textContent = `${at + 1} of ${matches.length}: ${matches[at].name}`;
  }

  box.addEventListener("input", () => search(box.value));
  box.addEventListener("keydown", (event) => { if (event.key === "Enter") next(); });
  document.getElementById("fit").addEventListener("click", fitted);
  document.getElementById("open").addEventListener("click", () => foldFrom(-1));
  document.querySelectorAll("[data-tier]").forEach((button) => {
    button.addEventListener("click", () => foldFrom(Number(button.dataset.tier)));
  });
  document.getElementById("links").addEventListener("change", (event) => {
    showsLinks = event.target.checked;
    redraw(false);
  });
  document.querySelectorAll("[data-ring]").forEach((input) => {
    input.addEventListener("change", () => {
      if (input.checked) hiddenRings.delete(Number(input.dataset.ring));
      else hiddenRings.add(Number(input.dataset.ring));
      redraw(false);
    });
  });
  const all = document.getElementById("rings");
  if (all) {
    all.addEventListener("change", () => {
      document.querySelectorAll("[data-ring]").forEach((input) => {
        input.checked = all.checked;
        if (all.checked) hiddenRings.delete(Number(input.dataset.ring));
        else hiddenRings.add(Number(input.dataset.ring));
      });
      redraw(false);
    });
  }

  if (nodes.size > MANY) foldFrom(0);
  else redraw(true);
  window.topology = { network, nodes: visNodes, edges: visEdges, toggle, foldFrom, search, next, boxes, folded };
})();
