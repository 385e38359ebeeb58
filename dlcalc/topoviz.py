"""topoviz: the fabric and what runs on it, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dlcalc import __version__
from dlcalc.doors import degree, fabric_options, save_option, told_in_a_line

EPILOG = """
\b
Examples:
  topoviz
  topoviz llama-70b -p 4 -o llama.html
  topoviz --topology cluster.yaml -o cluster.html
  topoviz --topology ec2 -r us-east-1 --save today.yaml
  topoviz --topology cluster.yaml --placement launch/placement.json

\b
The page is one file that opens offline. Click a switch to fold it; hover to see instance, zone and rank.
Exit code: 0 written; 2 the input is wrong; 130 interrupted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("job_prefix", required=False)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default="graph.html",
    show_default=True,
    help="Page to write.",
)
@click.option(
    "-p", "--pp", metavar="PP", type=degree, help="Pipeline stages of the job, a ring each.  [default: one ring]"
)
@click.option(
    "--placement",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw a planned job: what topoassign --json printed.",
)
@fabric_options(default="kubernetes", only="Only nodes of this type are free.")
@save_option
@click.option("--json", "as_json", is_flag=True, help="Print what was drawn as one JSON object.")
@click.version_option(__version__, prog_name="topoviz")
def main(job_prefix: str | None, *, as_json: bool, **choices: Any) -> None:  # noqa: ANN401 - what the use case reads, passed on by name
    """Draw switches and nodes, and the rings of the jobs whose names begin with JOB_PREFIX.

    Nodes are told apart by what they do: free, of the job, of another job, unusable. Those without topology data
    stand apart.
    """
    if job_prefix is not None and choices["placement"] is not None:
        raise click.UsageError("give JOB_PREFIX or --placement, not both")
    with told_in_a_line():
        draw(job_prefix, as_json=as_json, **choices)


def draw(job_prefix: str | None, *, as_json: bool, out: Path, **choices: Any) -> None:  # noqa: ANN401
    """Write the page, and say what is in it."""
    from dlcalc.report.terminal import make_console
    from dlcalc.report.topology import print_drawing, waiting
    from dlcalc.report.topology_facts import drawing_document
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.topology.draw import draw_fabric

    with waiting("reading the fabric"):
        found = draw_fabric(job_prefix, out=out, **choices)
    if as_json:
        click.echo(to_json(drawing_document(found)))
    else:
        print_drawing(found, make_console())


if __name__ == "__main__":
    main()
