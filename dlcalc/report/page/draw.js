(function () {
  "use strict";
  const PRINT_PX = 680, NARROW_PX = 600, PX_PER_NAME = 118, PX_PER_LINE = 20;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const box = (key) => document.getElementById("chart-" + key);

  /* The layout in the reader's theme; a legend of several lines takes room of its own. */
  function layoutOf(chart, width, isDark) {
    const text = isDark ? "#ddd" : "#222", line = isDark ? "#555" : "#ddd";
    const themed = JSON.stringify(chart.layout).replaceAll('"@text"', `"${text}"`).replaceAll('"@line"', `"${line}"`);
    const layout = JSON.parse(themed);
    layout.font = { color: text, family: "system-ui, sans-serif", size: 12 };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) layout[name] = { gridcolor: line, zerolinecolor: line, ...layout[name] };
    }
    const named = chart.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const lines = Math.ceil((named * PX_PER_NAME) / Math.max(width, 240));
    if (width < NARROW_PX && lines > 1) layout.height += PX_PER_LINE * (lines - 1);
    return layout;
  }

  function dataOf(chart, isDark) {
    return JSON.stringify(chart.data).includes('"@text"')
      ? JSON.parse(JSON.stringify(chart.data).replaceAll('"@text"', isDark ? '"#ddd"' : '"#222"'))
      : chart.data;
  }

  function drawOne(key, chart, printWidth) {
    const at = box(key), isDark = dark.matches && !printWidth, width = printWidth || at.clientWidth;
    const layout = layoutOf(chart, width, isDark);
    if (printWidth) layout.width = printWidth;
    Plotly.react(at, dataOf(chart, isDark), layout, {
      responsive: !printWidth, displaylogo: false, displayModeBar: false,
    });
  }

  /* The line under the pointer, drawn again over the others. */
  function follow(key, chart) {
    const at = box(key), width = chart.layout.meta.axes;
    at.on("plotly_hover", (event) => {
      const point = event.points[0];
      if (point.curveNumber === chart.highlight) return;
      const first = Math.floor(point.pointNumber / (width + 1)) * (width + 1);
      const trace = chart.data[point.curveNumber];
      const part = (values) => [values.slice(first, first + width)];
      Plotly.restyle(at, { x: part(trace.x), y: part(trace.y), visible: true }, [chart.highlight]);
    });
    at.on("plotly_unhover", () => Plotly.restyle(at, { visible: false }, [chart.highlight]));
  }

  const entries = Object.entries(CHARTS);
  const all = (printWidth) => entries.forEach(([key, chart]) => drawOne(key, chart, printWidth));
  window.dlcalc = { drawn: 0, of: entries.length };

  /* One chart after the other, so that what stands on top can be read and scrolled meanwhile. */
  function next() {
    if (dlcalc.drawn === entries.length) return;
    const [key, chart] = entries[dlcalc.drawn];
    drawOne(key, chart, 0);
    if (chart.highlight !== undefined) follow(key, chart);
    dlcalc.drawn += 1;
    setTimeout(next, 0);
  }
  next();
  dark.addEventListener("change", () => all(0));
  addEventListener("beforeprint", () => all(PRINT_PX));
  addEventListener("afterprint", () => all(0));
})();
