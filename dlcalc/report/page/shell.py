"""A page that is one file: it opens offline, loads nothing, and prints.

Charts are drawn by Plotly, whose script is embedded once, and is not run before the words are on the screen: it takes
longer than everything else. A browser that runs no scripts still shows every number,
because each chart stands beside the table or the bars it draws. Whatever comes from a file is text: tags are escaped,
and JSON cannot end the script it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from dlcalc import __version__
from dlcalc.errors import DlcalcError
from dlcalc.report.page.parts import navigation, section_html
from dlcalc.report.sections import Section
from dlcalc.utils.jsontext import plain

Chart = Mapping[str, Any]
"""``data`` and ``layout`` as Plotly takes them. ``min_width_px``: what it needs to be read; a narrower screen scrolls
it sideways. ``follow_axes``: how many points each line has, of lines that are followed under the pointer."""


def page_html(
    title: str, lead: str, sections: Sequence[Section], charts: Mapping[str, Chart], *, needed_by: str
) -> str:
    """The whole page. ``lead`` is HTML; ``charts`` stand in the sections of their keys.

    ``needed_by`` is the option that asked for it, for the message where Plotly is missing.
    """
    script = plotly_script(needed_by)
    shown = {section.key for section in sections}
    drawn = {key: chart for key, chart in charts.items() if key in shown}
    body = "\n".join(section_html(section, drawn.get(section.key)) for section in sections)
    return _PAGE.format(
        title=escape(title),
        lead=lead,
        navigation=navigation(sections),
        body=body,
        version=escape(__version__),
        style=resource("page.css"),
        plotly=script,
        charts=script_json(drawn),
        draw=resource("draw.js"),
    )


def require_plotly(option: str) -> None:
    """An error in one line if charts cannot be drawn here."""
    try:
        import plotly.offline  # noqa: F401
    except ImportError as error:
        raise DlcalcError(
            f"{option} draws with plotly, which is not installed; run: pip install 'dlcalc[report]'"
        ) from error


def plotly_script(option: str) -> str:
    """The script that draws, as it may stand in a page."""
    require_plotly(option)
    return _plotly_script()


@cache
def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def script_json(value: object) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def resource(name: str) -> str:
    """A file beside this one."""
    return (files("dlcalc.report.page") / name).read_text(encoding="utf-8")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{lead}
<nav>{navigation}</nav>
{body}
<footer><p>dlcalc {version}</p></footer>
<script type="text/plain" id="plotly">{plotly}</script>
<script>const CHARTS = {charts};
{draw}</script>
</body>
</html>
"""
