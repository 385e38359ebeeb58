"""Draw the accuracy of step times as docs/accuracy.svg and docs/accuracy-by-knob.svg.

    python benchmarks/accuracy_plot.py [--out FOLDER]

Every shipped run that was timed is a dot. The same estimates give the same bytes: positions are rounded, and dots of
one column are spread by their order.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from dlcalc.report.validation_summary import Point
from dlcalc.workflows.validation import run_points

ROOT = Path(__file__).parent.parent
KNOBS = {
    "tp": "tensor parallel size",
    "pp": "pipeline stages",
    "dp": "data parallel size",
    "micro_batch": "micro-batch (sequences)",
    "seq_len": "sequence length (tokens)",
    "gpus": "devices",
    "precision": "precision",
}
PRECISIONS = ("bf16", "fp16", "fp8", "mxfp8", "nvfp4")
COLOURS = ("#999999", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart also by people who see no red or no green: Okabe and Ito's, grey for the largest source."""
SHAPES = {
    "circle": '<circle r="3"/>',
    "square": '<path d="M-2.8-2.8h5.6v5.6h-5.6z"/>',
    "triangle": '<path d="M0-3.8L3.6 2.7h-7.2z"/>',
    "diamond": '<path d="M0-4L4 0 0 4-4 0z"/>',
    "cross": '<path d="M-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z"/>',
}
BAND = 0.1
INK, MUTED, GRID, BAND_FILL = "#1b1f24", "#57606a", "#e4e8ec", "#eaf1e4"


# ---- what is drawn


@dataclass(frozen=True)
class Run:
    """One dot."""

    source: str
    measured_s: float
    estimated_s: float
    knobs: dict[str, str]

    @property
    def error(self) -> float:
        """Estimated over measured, minus one."""
        return self.estimated_s / self.measured_s - 1.0


def timed_runs(points: Iterable[Point]) -> list[Run]:
    """Every run with two step times to compare, sources with most runs first."""
    runs = [
        Run(point["source"], point["measured_s"], point["estimated_s"], {k: point["knobs"].get(k, "") for k in KNOBS})
        for point in points
        if point["measured_s"] and point["estimated_s"]
    ]
    counts = {run.source: sum(other.source == run.source for other in runs) for run in runs}
    return sorted(runs, key=lambda run: (-counts[run.source], run.source))


def by_source(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {source: list(members) for source, members in groupby(runs, lambda run: run.source)}


def by_column(runs: Sequence[Run], knob: str) -> dict[str, list[Run]]:
    """Runs of each column of a knob's panel, in order: of each word, or of each doubling of a number."""
    in_order = sorted(runs, key=lambda run: _place(run.knobs[knob]))
    columns = [list(members) for _, members in groupby(in_order, lambda run: _place(run.knobs[knob])[0])]
    return {_label(members[0].knobs[knob], members[-1].knobs[knob], knob): members for members in columns}


def _place(value: str) -> tuple[float, float, str]:
    """Column and place within it: 5 to 8 share one, words have one each, after the numbers."""
    if value.isdecimal() and int(value) > 0:
        return math.ceil(math.log2(int(value))), int(value), value
    known = PRECISIONS.index(value) if value in PRECISIONS else len(PRECISIONS)
    return 100.0 + known, 0.0, value


def _label(first: str, last: str, knob: str) -> str:
    """The values of a column; tokens in units of 1024 where they are multiples."""
    if knob == "seq_len":
        first, last = (
            f"{int(value) // 1024}k" if value.isdecimal() and int(value) % 1024 == 0 else value
            for value in (first, last)
        )
    return (first if first == last else f"{first}–{last}") or "none"


# ---- how it is drawn


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if abs(value) >= 0.05 else "0"


def _text(x: float, y: float, words: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> str:
    return f'<path class="{style}" d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}"/>'


def _dot(source: int, x: float, y: float) -> str:
    return f'<use href="#s{source}" x="{_n(x)}" y="{_n(y)}"/>'


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def _mark(source: int, size: float) -> str:
    """Shape and colour of a source; grey is the first's alone."""
    colour = COLOURS[source if source < len(COLOURS) else 1 + (source - len(COLOURS)) % (len(COLOURS) - 1)]
    shape = list(SHAPES.values())[source % len(SHAPES)]
    return f'<g id="s{source}" fill="{colour}" transform="scale({_n(size)})">{shape}</g>'


def page(
    width: float, height: float, title: str, sources: Sequence[str], body: Iterable[str], *, size: float = 1.0
) -> str:
    marks = "".join(_mark(source, size) for source in range(len(sources)))
    style = (
        f"text{{font:13px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:{INK}}}"
        f".small{{font-size:11px;fill:{MUTED}}}.tiny{{font-size:10px;fill:{MUTED}}}.title{{font-size:15px;font-weight:600}}"
        f".grid{{stroke:{GRID};fill:none}}.axis{{stroke:{MUTED};fill:none}}"
        f".one{{stroke:{INK};stroke-width:1.2;fill:none}}.edge{{stroke:#7a9a5e;stroke-dasharray:4 3;fill:none}}"
        f".box{{stroke:{INK};fill:#fff;fill-opacity:.75}}.median{{stroke:{INK};stroke-width:2.4;fill:none}}"
        ".dots{fill-opacity:.65;stroke:#fff;stroke-width:.35}"
    )
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
        f"<defs><style>{style}</style>{marks}</defs>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{lines}\n</svg>\n'
    )


def _legend(sources: dict[str, list[Run]], x: float, y: float) -> list[str]:
    """Sources with their number of runs and errors."""
    small = ' class="small"'
    parts = [
        _text(x + 16, y, "source", more=small),
        _text(x + 192, y, "runs", anchor="end", more=small),
        _text(x + 250, y, "median", anchor="end", more=small),
        _text(x + 326, y, "90th perc.", anchor="end", more=small),
    ]
    for position, (source, members) in enumerate(sources.items()):
        at = y + 22 + 21 * position
        errors = np.abs([run.error for run in members])
        parts += [
            _dot(position, x + 4, at - 4.5),
            _text(x + 16, at, source),
            _text(x + 192, at, f"{len(members)}", anchor="end"),
            _text(x + 250, at, f"{100 * np.median(errors):.1f} %", anchor="end"),
            _text(x + 326, at, f"{100 * np.quantile(errors, 0.9):.1f} %", anchor="end"),
        ]
    return parts


def _dots(members: Sequence[Run], sources: Sequence[str], x: Sequence[float], y: Sequence[float]) -> str:
    dots = "".join(_dot(sources.index(run.source), *at) for run, *at in zip(members, x, y, strict=True))
    return f'<g class="dots">{dots}</g>'


def _error_axis(scale: Scale, left: float, right: float, errors: Iterable[float]) -> list[str]:
    """Grid, labels and the band of errors in percent."""
    parts = [
        f'<rect x="{_n(left)}" y="{_n(scale(100 * BAND))}" width="{_n(right - left)}" '
        f'height="{_n(scale(-100 * BAND) - scale(100 * BAND))}" fill="{BAND_FILL}"/>'
    ]
    for error in errors:
        parts += [
            _line(left, scale(error), right, scale(error), "one" if error == 0 else "grid"),
            _text(left - 7, scale(error) + 4, f"{error:+g}" if error else "0", anchor="end", more=' class="small"'),
        ]
    return parts


def _error_limit(runs: Sequence[Run]) -> float:
    """Half the height of an axis of errors, in percent: the worst, rounded up to tens."""
    return 10 * math.ceil(max(abs(run.error) for run in runs) * 10 + 0.1)


def _error_ticks(limit: float) -> list[float]:
    step = 20.0 if limit > 30 else 10.0
    return [step * i for i in range(-int(limit // step), int(limit // step) + 1)]


SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


def against(runs: Sequence[Run]) -> str:
    """Estimated against measured step time, and below it the error of the same dots."""
    sources = by_source(runs)
    names = list(sources)
    times = [time for run in runs for time in (run.measured_s, run.estimated_s)]
    low, high = min(times) / 1.15, max(times) * 1.15
    left, right, top, bottom, error_top, error_bottom = 74.0, 594.0, 44.0, 564.0, 604.0, 794.0
    x, y = Scale(low, high, left, right, is_log=True), Scale(low, high, bottom, top, is_log=True)
    limit = _error_limit(runs)
    z = Scale(-limit, limit, error_bottom, error_top)
    ticks = [second for second in SECONDS if low <= second <= high]
    up, down = 1.0 + BAND, 1.0 - BAND
    corners = ((low, low * up), (high / up, high), (high, high), (high, high * down), (low / down, low), (low, low))
    band = "".join(f"{'L' if i else 'M'}{_n(x(a))} {_n(y(b))}" for i, (a, b) in enumerate(corners))
    parts = [
        _text(left, 26, f"Step time: estimated against measured, {len(runs):,} runs", more=' class="title"'),
        f'<path d="{band}z" fill="{BAND_FILL}"/>',
    ]
    for second in ticks:
        parts += [
            _line(left, y(second), right, y(second)),
            _line(x(second), top, x(second), bottom),
            _line(x(second), error_top, x(second), error_bottom),
            _text(left - 7, y(second) + 4, f"{second:g}", anchor="end", more=' class="small"'),
        ]
    parts += [
        _line(x(low), y(low * up), x(high / up), y(high), "edge"),
        _line(x(low / down), y(low), x(high), y(high * down), "edge"),
        _line(x(low), y(low), x(high), y(high), "one"),
        *_error_axis(z, left, right, _error_ticks(limit)),
        *(_line(x(second), error_bottom, x(second), error_bottom + 4, "axis") for second in ticks),
        *(
            _text(x(second), error_bottom + 18, f"{second:g}", anchor="middle", more=' class="small"')
            for second in ticks
        ),
        f'<path class="axis" d="M{_n(left)} {_n(top)}V{_n(bottom)}H{_n(right)}"/>',
        f'<path class="axis" d="M{_n(left)} {_n(error_top)}V{_n(error_bottom)}H{_n(right)}"/>',
        _dots(runs, names, [x(run.measured_s) for run in runs], [y(run.estimated_s) for run in runs]),
        _dots(runs, names, [x(run.measured_s) for run in runs], [z(100 * run.error) for run in runs]),
        _text((left + right) / 2, error_bottom + 40, "measured step time (s)", anchor="middle"),
        _upright(26, (top + bottom) / 2, "estimated step time (s)"),
        _upright(26, (error_top + error_bottom) / 2, "error (%)"),
        *_legend(sources, right + 28, top + 14),
    ]
    errors = np.abs([run.error for run in runs])
    notes_y = top + 14 + 22 + 21 * len(sources) + 14
    within = 100 * float(np.mean(errors <= BAND))
    parts += [
        _text(right + 44, notes_y, f"{within:.0f} % of the runs are within 10 %."),
        _line(right + 28, notes_y + 23, right + 58, notes_y + 23, "one"),
        _text(right + 66, notes_y + 27, "estimated as measured", more=' class="small"'),
        f'<rect x="{_n(right + 28)}" y="{_n(notes_y + 38)}" width="30" height="12" fill="{BAND_FILL}"/>',
        _line(right + 28, notes_y + 38, right + 58, notes_y + 38, "edge"),
        _line(right + 28, notes_y + 50, right + 58, notes_y + 50, "edge"),
        _text(right + 66, notes_y + 48, "within 10 % of the measured time", more=' class="small"'),
        _text(right + 28, notes_y + 76, "Error: estimated over measured, minus one;", more=' class="small"'),
        _text(right + 28, notes_y + 92, "above zero where the estimate is too slow.", more=' class="small"'),
    ]
    return page(960, 848, "Estimated against measured step time of every measured run", names, parts)


def _upright(x: float, y: float, words: str) -> str:
    return _text(x, y, words, anchor="middle", more=f' transform="rotate(-90 {_n(x)} {_n(y)})"')


FEWEST_BOXED = 8


def by_knob(runs: Sequence[Run]) -> str:
    """The error of step time against every knob, one panel each."""
    names = list(by_source(runs))
    limit = _error_limit(runs)
    title = f"Error of estimated step time by knob, {len(runs):,} runs"
    parts = [_text(56, 26, title, more=' class="title"')]
    panel_width, panel_height, across, down = 406.0, 190.0, 474.0, 260.0
    for position, (knob, label) in enumerate(KNOBS.items()):
        left, top = 56.0 + across * (position % 2), 50.0 + down * (position // 2)
        scale = Scale(-limit, limit, top + panel_height, top)
        parts += _error_axis(scale, left, left + panel_width, _error_ticks(limit))
        parts.append(f'<path class="axis" d="M{_n(left)} {_n(top)}V{_n(top + panel_height)}h{_n(panel_width)}"/>')
        columns = by_column(runs, knob)
        shares = np.array([max(len(value), 3) + 1.0 for value in columns])
        steps = panel_width * shares / shares.sum()
        middles, under = left + np.cumsum(steps) - steps / 2, top + panel_height
        for (value, members), middle, step in zip(columns.items(), middles, steps, strict=True):
            parts += [
                *_column(members, names, middle, step, scale),
                _text(middle, under + 14, value, anchor="middle", more=f' class="{_size(columns)}"'),
                _text(middle, under + 27, f"{len(members)}", anchor="middle", more=' class="tiny"'),
            ]
        parts += [
            _text(left - 7, top + panel_height + 27, "runs", anchor="end", more=' class="tiny"'),
            _text(left + panel_width / 2, top + panel_height + 45, label, anchor="middle"),
            _upright(left - 40, top + panel_height / 2, "error (%)"),
        ]
    left, top = 56.0 + across, 50.0 + down * 3
    for place, source in enumerate(names):
        x, y = left + 205 * (place % 2), top + 10 + 21 * (place // 2)
        parts += [_dot(place, x + 4, y - 4.5), _text(x + 16, y, source)]
    y = top + 10 + 21 * ((len(names) + 1) // 2) + 14
    for words in (
        "Above zero: estimated too slow. Below: too fast. Green: within 10 %.",
        f"Boxes: median, quartiles, 10th and 90th percentile ({FEWEST_BOXED} runs or more).",
        "Other knobs differ between the columns of a panel.",
    ):
        parts.append(_text(left, y, words, more=' class="small"'))
        y += 17
    return page(960, 44 + down * 4, title, names, parts, size=0.8)


def _column(members: Sequence[Run], names: Sequence[str], middle: float, step: float, scale: Scale) -> list[str]:
    """Dots of one value, spread sideways by their order, and their quantiles."""
    errors = [100 * run.error for run in members]
    spread = min(0.36 * step, 26.0) if len(members) > 3 else 0.0
    golden = (math.sqrt(5) - 1) / 2
    x = [middle + 2 * spread * ((place * golden) % 1.0 - 0.5) if spread else middle for place in range(len(members))]
    parts = [_dots(members, names, x, [scale(error) for error in errors])]
    if len(members) >= FEWEST_BOXED:
        tenth, first, median, third, ninetieth = (
            scale(float(v)) for v in np.quantile(errors, (0.1, 0.25, 0.5, 0.75, 0.9))
        )
        half = min(0.2 * step, 9.0)
        parts += [
            _line(middle, tenth, middle, first, "axis"),
            _line(middle, third, middle, ninetieth, "axis"),
            f'<rect class="box" x="{_n(middle - half)}" y="{_n(third)}" width="{_n(2 * half)}" '
            f'height="{_n(first - third)}"/>',
            _line(middle - half, median, middle + half, median, "median"),
        ]
    return parts


def _size(columns: Collection[str]) -> str:
    """The class of labels that fit side by side."""
    return "small" if len(columns) < 11 else "tiny"


# ---- writing


def write(folder: Path, points: Iterable[Point]) -> list[Path]:
    runs = timed_runs(points)
    drawings = {"accuracy.svg": against(runs), "accuracy-by-knob.svg": by_knob(runs)}
    for name, drawing in drawings.items():
        (folder / name).write_text(drawing, encoding="utf-8")
    return [folder / name for name in drawings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write to")
    for path in write(parser.parse_args().out, run_points()):
        print(path)


if __name__ == "__main__":
    main()
