"""What the commands share: how they end, and the options that several of them take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from dlcalc.errors import DlcalcError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def told_in_a_line(*, interrupted: str = "") -> Iterator[None]:
    """What a user got wrong is one line and an exit code, Ctrl-C a word and its own; never a traceback.

    ``interrupted``: what is left after Ctrl-C.
    """
    try:
        yield
    except DlcalcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {interrupted}" if interrupted else "interrupted", err=True)
        sys.exit(INTERRUPTED)


# ---- options of the topology commands

degree = click.IntRange(min=1)


def _all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several, in the order in which help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def job_options(*, plan_brings: str) -> Callable[[Command], Command]:
    """The degrees of a job, or a plan that has them."""
    return _all_of(
        click.option("-t", "--tp", metavar="TP", type=degree, help="Tensor parallel degree."),
        click.option("-p", "--pp", metavar="PP", type=degree, help="Pipeline parallel degree."),
        click.option("-d", "--dp", metavar="DP", type=degree, help="Data parallel degree."),
        click.option("--cp", metavar="CP", type=degree, help="Context parallel degree.  [default: 1]"),
        click.option("--ep", metavar="EP", type=degree, help="Expert parallel degree.  [default: 1]"),
        click.option("--etp", metavar="ETP", type=degree, help="Tensor parallel degree of the experts.  [default: 1]"),
        click.option(
            "-n", "--node-devices", metavar="N", type=degree, help="Devices of a node.  [default: 8, or the plan's]"
        ),
        click.option("--plan", metavar="RESULTS", type=click.Path(path_type=Path), help=plan_brings),
        click.option("--rank", metavar="N", type=degree, help="Of a result: the N-th best plan.  [default: 1]"),
        click.option("--scenario", metavar="NAME", help="Of a result: the scenario, by its name or a part of it."),
    )


JOB_PARAMETERS = ("tp", "pp", "dp", "cp", "ep", "etp", "node_devices", "plan", "rank", "scenario")


def job_of(choices: dict[str, Any]) -> dict[str, Any]:
    """What ``job_options`` put among ``choices``, taken out of them."""
    return {name: choices.pop(name) for name in JOB_PARAMETERS}


def fabric_options(
    *, default: str, source: str = "Where the fabric is read.", only: str = "Only nodes of this type."
) -> Callable[[Command], Command]:
    """Where the fabric comes from, and which of its nodes count."""
    return _all_of(
        click.option(
            "--topology",
            metavar="FILE|ec2|kubernetes|slurm",
            default=default,
            show_default=True,
            envvar="DLCALC_TOPOLOGY",
            show_envvar=True,
            help=source,
        ),
        click.option("-i", "--instance-type", metavar="TYPE", help=only),
        click.option("-r", "--region", metavar="REGION", help="Of EC2.  [default: the environment's]"),
        click.option("-a", "--zone", "--az", metavar="AZ", help="Only nodes of this availability zone."),
        click.option("--kube-context", metavar="NAME", help="Of the kubeconfig.  [default: the current one]"),
        click.option("--namespace", metavar="NAME", help="Of the jobs in Kubernetes.  [default: all]"),
    )


def save_option(command: Command) -> Command:
    """Keep the fabric that was read."""
    option = click.option(
        "--save", metavar="FILE", type=click.Path(path_type=Path), help="Keep the fabric, to be read again."
    )
    return option(command)
