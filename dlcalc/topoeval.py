"""topoeval: how well a running job sits on its fabric."""

from __future__ import annotations

from typing import Any

import click

from dlcalc import __version__
from dlcalc.doors import fabric_options, job_of, job_options, save_option, told_in_a_line

EPILOG = """
\b
Examples:
  topoeval llama-70b -t 8 -p 4 -d 16
  topoeval llama-70b -t 8 -p 4 -d 16 --topology cluster.yaml
  topoeval llama-70b --plan results/llama3-70b-h100 --rank 1 --topology slurm
  topoeval llama-70b -t 8 -p 4 -d 16 --topology cluster.yaml --json | jq .groups

\b
Hops: links that a closed tour of a group's nodes crosses, up to where they meet and down again.
Exit code: 0 evaluated; 2 the input is wrong; 3 no placement to compare with exists; 130 interrupted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("job_prefix")
@job_options(
    plan_brings="Degrees and traffic of a plan instead: a result of dlcalc-search, or a run file. "
    "Then also in step time."
)
@fabric_options(default="kubernetes")
@save_option
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0, min_open=True),
    default=10.0,
    show_default=True,
    help="Of each of the two optimizations it is compared with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")
@click.option("-v", "--verbose", is_flag=True, help="List every group, not only the longest ones.")
@click.version_option(__version__, prog_name="topoeval")
def main(job_prefix: str, *, as_json: bool, verbose: bool, **choices: Any) -> None:  # noqa: ANN401 - what the use case reads, passed on by name
    """Measure the placement of the job whose name begins with JOB_PREFIX.

    Hops of every data-parallel, expert, context-parallel and pipeline group as placed, against the best placement on
    the same nodes, and against the best one if all nodes that are free could be used as well.
    """
    with told_in_a_line():
        evaluate(job_prefix, as_json=as_json, verbose=verbose, **choices)


def evaluate(job_prefix: str, *, as_json: bool, verbose: bool, **choices: Any) -> None:  # noqa: ANN401
    """Measure, and print the outcome."""
    from dlcalc.report.terminal import make_console
    from dlcalc.report.topology import print_evaluation, waiting
    from dlcalc.report.topology_facts import evaluation_document
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.topology.evaluate import evaluate_job
    from dlcalc.workflows.topology.jobs import JobChoice

    with waiting("reading the fabric") as say:
        found = evaluate_job(job_prefix, JobChoice(**job_of(choices)), **choices, say=say)
    if as_json:
        click.echo(to_json(evaluation_document(found)))
    else:
        print_evaluation(found, make_console(), verbose=verbose)


if __name__ == "__main__":
    main()
