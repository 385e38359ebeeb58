"""topoassign: which node each rank goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dlcalc import __version__
from dlcalc.doors import degree, fabric_options, job_of, job_options, save_option, told_in_a_line

FORMATS = ("text", "json", "nodes", "rankfile", "slurm", "torchrun", "kubernetes")

EPILOG = """
\b
Examples:
  topoassign -t 8 -p 4 -d 16 --topology cluster.yaml
  topoassign -t 8 -p 4 -d 16 -i p5.48xlarge -r us-east-1 -a us-east-1a
  topoassign --plan results/llama3-70b-h100 --rank 2 --topology slurm --out launch
  topoassign -t 8 -p 2 -d 4 --topology cluster.yaml --exclude node-07 --exclude @broken.txt
  topoassign -t 8 -p 2 -d 4 --topology cluster.yaml --format slurm > hosts
  topoassign -t 8 -p 2 -d 4 --topology cluster.yaml --json | jq .rings

\b
The same input gives the same output. Formats: nodes (a host a line, by node rank), rankfile (Open MPI),
slurm (SLURM_HOSTFILE, --distribution=arbitrary), torchrun (a script), kubernetes (affinity per index).
Exit code: 0 placed; 2 the input is wrong; 3 the free nodes do not hold the job; 130 interrupted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@job_options(plan_brings="Degrees of a plan instead: a result of dlcalc-search, or a run file.")
@fabric_options(default="ec2", source="Where the fabric is read; ec2-reservations: capacity that is reserved.")
@click.option(
    "--exclude",
    metavar="NODE|@FILE",
    multiple=True,
    help="A node that must not be used, or a file with one a line; may be repeated.",
)
@save_option
@click.option(
    "--objective",
    type=click.Choice(["hops", "worst-ring", "seconds"]),
    default="hops",
    show_default=True,
    help="What is minimised: hops of all rings, hops of the longest ring, or time on the links (needs --plan).",
)
@click.option(
    "--keep-together",
    type=click.Choice(["none", "domain", "switch"]),
    default="none",
    show_default=True,
    help="Where the nodes of an expert group must be: anywhere, in one NVLink domain, under one closest switch.",
)
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0, min_open=True),
    default=10.0,
    show_default=True,
    help="Of the optimization; the best found by then is given, and how far from optimal it can be.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="What to print.")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Write every format to this folder.")
@click.option(
    "--rank-cores", metavar="N", type=degree, default=1, show_default=True, help="Cores per rank in the rankfile."
)
@click.option("-v", "--verbose", is_flag=True, help="Say why each node is no candidate.")
@click.version_option(__version__, prog_name="topoassign")
def main(*, form: str, as_json: bool, out: Path | None, rank_cores: int, verbose: bool, **choices: Any) -> None:  # noqa: ANN401 - what the use case reads, passed on by name
    """Choose nodes for a job among the free ones, and give every rank its node.

    Nodes of one pipeline stage form a ring, along which data-parallel groups reduce. Rings are chosen and ordered so
    that they cross as few links as possible, and the answer says how far from optimal it can be.
    """
    if as_json and form not in ("text", "json"):
        raise click.UsageError(f"give --json or --format {form}, not both; --out DIR writes every format")
    with told_in_a_line():
        assign("json" if as_json else form, out, rank_cores=rank_cores, verbose=verbose, **choices)


def assign(form: str, out: Path | None, *, rank_cores: int, verbose: bool, **choices: Any) -> None:  # noqa: ANN401
    """Place, and print the answer."""
    from dlcalc.report.terminal import make_console
    from dlcalc.report.topology import print_assignment, waiting
    from dlcalc.workflows.topology.assign import assign_nodes, launch_text, write_launch_files
    from dlcalc.workflows.topology.jobs import JobChoice

    with waiting("reading the fabric") as say:
        found = assign_nodes(JobChoice(**job_of(choices)), **choices, say=say)
    if out is not None:
        write_launch_files(found, out, rank_cores=rank_cores)
        click.echo(f"launch files in {out}", err=True)
    if form == "text":
        print_assignment(found, make_console(), verbose=verbose)
    else:
        click.echo(launch_text(found, form, rank_cores=rank_cores), nl=False)


if __name__ == "__main__":
    main()
