"""topoeval: how well a running job sits on its fabric."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from dlcalc import __version__
from dlcalc.errors import DlcalcError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""

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

degree = click.IntRange(min=1)


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("job_prefix")
@click.option("-t", "--tp", metavar="TP", type=degree, help="Tensor parallel degree.")
@click.option("-p", "--pp", metavar="PP", type=degree, help="Pipeline parallel degree.")
@click.option("-d", "--dp", metavar="DP", type=degree, help="Data parallel degree.")
@click.option("--cp", metavar="CP", type=degree, help="Context parallel degree.  [default: 1]")
@click.option("--ep", metavar="EP", type=degree, help="Expert parallel degree.  [default: 1]")
@click.option("--etp", metavar="ETP", type=degree, help="Tensor parallel degree of the experts.  [default: 1]")
@click.option("-n", "--node-devices", metavar="N", type=degree, help="Devices of a node.  [default: 8, or the plan's]")
@click.option(
    "--plan",
    metavar="RESULTS",
    type=click.Path(path_type=Path),
    help="Degrees and traffic of a plan instead: a result of dlcalc-search, or a run file. Then also in step time.",
)
@click.option("--rank", metavar="N", type=degree, help="Of a result: the N-th best plan.  [default: 1]")
@click.option("--scenario", metavar="NAME", help="Of a result: the scenario, by its name or a part of it.")
@click.option(
    "--topology",
    metavar="FILE|ec2|kubernetes|slurm",
    default="kubernetes",
    show_default=True,
    envvar="DLCALC_TOPOLOGY",
    show_envvar=True,
    help="Where the fabric is read.",
)
@click.option("-i", "--instance-type", metavar="TYPE", help="Only nodes of this type.")
@click.option("-r", "--region", metavar="REGION", help="Of EC2.  [default: the environment's]")
@click.option("-a", "--zone", "--az", metavar="AZ", help="Only nodes of this availability zone.")
@click.option("--kube-context", metavar="NAME", help="Of the kubeconfig.  [default: the current one]")
@click.option("--namespace", metavar="NAME", help="Of the jobs in Kubernetes.  [default: all]")
@click.option("--save", metavar="FILE", type=click.Path(path_type=Path), help="Keep the fabric, to be read again.")
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
    try:
        evaluate(job_prefix, as_json=as_json, verbose=verbose, **choices)
    except DlcalcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def evaluate(job_prefix: str, *, as_json: bool, verbose: bool, **choices: Any) -> None:  # noqa: ANN401
    """Measure, and print the outcome."""
    from dlcalc.report.terminal import make_console
    from dlcalc.report.topology import print_evaluation, waiting
    from dlcalc.report.topology_facts import evaluation_document
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.topology import evaluate_job

    with waiting("reading the fabric") as say:
        found = evaluate_job(job_prefix, **choices, say=say)
    if as_json:
        click.echo(to_json(evaluation_document(found)))
    else:
        print_evaluation(found, make_console(), verbose=verbose)


if __name__ == "__main__":
    main()
