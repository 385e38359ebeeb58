(function () {
  "use strict";
  const PRINT_PX = 680, NARROW_PX = 600, PX_PER_NAME = 118, PX_PER_LINE = 20;
  const LIGHT = { text: "#222", line: "#ddd", back: "rgba(255,255,255,0.8)" };
  const DARK = { text: "#ddd", line: "#555", back: "rgba(18,18,18,0.8)" };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const box = (key) => document.getElementById("chart-" + key);

  /* A copy with the colours of the theme in place of their names. */
  function themed(value, isDark) {
    const colours = isDark ? DARK : LIGHT;
    return JSON.parse(JSON.stringify(value).replace(/"@(text|line|back)"/g, (_, name) => `"${colours[name]}"`));
  }

  /* The layout in the reader's theme; a legend of several lines takes room of its own. */
  function layoutOf(chart, width, isDark) {
    const layout = themed(chart.layout, isDark);
    const { text, line } = isDark ? DARK : LIGHT;
    layout.font = { color: text, family: "system-ui, sans-serif", size: 12 };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) layout[name] = { gridcolor: line, zerolinecolor: line, ...layout[name] };
    }
    const named = chart.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const lines = Math.ceil((named * PX_PER_NAME) / Math.max(width, 240));
    if (width < NARROW_PX && lines > 1) layout.height += PX_PER_LINE * (lines - 1);
    return layout;
  }

  function drawOne(key, chart, printWidth) {
    const at = box(key), isDark = dark.matches && !printWidth, width = printWidth || at.clientWidth;
    const layout = layoutOf(chart, width, isDark);
    if (printWidth) layout.width = Math.max(printWidth, chart.min_width_px || 0);
    at.style.zoom = printWidth ? printWidth / layout.width : "";
    Plotly.react(at, themed(chart.data, isDark), layout, {
      responsive: !printWidth, displaylogo: false, displayModeBar: false,
    });
  }

  /* The whole line of the plan under the pointer, drawn over the others. */
  function follow(at, nAxes) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("class", "followed");
    at.on("plotly_hover", ({ points: [point] }) => {
      const first = Math.floor(point.pointNumber / (nAxes + 1)) * (nAxes + 1), { xaxis, yaxis, data } = point;
      const places = data.x.slice(first, first + nAxes).map((x, i) =>
        [xaxis._offset + xaxis.l2p(x), yaxis._offset + yaxis.l2p(data.y[first + i])].join(" "));
      line.setAttribute("d", "M" + places.join("L"));
      at.querySelector(".main-svg").append(line);
    });
    at.on("plotly_unhover", () => line.remove());
  }

  const entries = Object.entries(CHARTS);
  entries.sort(([a], [b]) => (box(a).compareDocumentPosition(box(b)) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
  const all = (printWidth) => entries.forEach(([key, chart]) => drawOne(key, chart, printWidth));

  /* Plotly's own script lies in the page as text: to run it takes longer than to show all words. */
  function load() {
    const text = document.getElementById("plotly");
    if (!text) return;
    const script = document.createElement("script");
    script.textContent = text.textContent;
    text.remove();
    document.head.append(script);
  }

  /* One chart after the other, from the top, so that the page can be read and scrolled meanwhile. */
  let drawn = 0;
  function next() {
    load();
    if (drawn === entries.length) {
      document.documentElement.dataset.drawn = String(drawn);
      performance.mark("drawn");
      return;
    }
    const [key, chart] = entries[drawn];
    drawOne(key, chart, 0);
    if (chart.follow_axes) follow(box(key), chart.follow_axes);
    drawn += 1;
    setTimeout(next, 0);
  }
  addEventListener("load", () => setTimeout(next, 20));
  dark.addEventListener("change", () => drawn === entries.length && all(0));
  addEventListener("beforeprint", () => { load(); all(PRINT_PX); });
  addEventListener("afterprint", () => all(0));
})();
