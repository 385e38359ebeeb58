"""dlcalc-launch: everything a plan needs to run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line
from dlcalc.specs.target import TARGETS

EPILOG = """
\b
Examples:
  dlcalc-launch results/llama3-70b-h100 --target megatron-lm --scheduler slurm
  dlcalc-launch results/mine --rank 3 --target torchtitan --scheduler torchrun -o launch
  dlcalc-launch results/mine --target megatron-lm --scheduler slurm --nodes-from placement.json
  dlcalc-launch results/mine --target megatron-bridge --scheduler kubernetes --container nvcr.io/nvidia/nemo:25.09
  dlcalc-launch run.yaml --target deepspeed --scheduler torchrun --nearest

\b
Exit code: 0 written; 2 the input is wrong; 3 the trainer cannot run the plan (the answer names the nearest one).
"""
SCHEDULERS = ("slurm", "kubernetes", "torchrun")
KINDS = ("trainjob", "jobset", "pytorchjob")


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("plan", metavar="RESULTS|RUN", type=click.Path())
@click.option("--rank", metavar="N", type=click.IntRange(min=1), help="Of a result: the N-th best plan.  [default: 1]")
@click.option("--scenario", metavar="NAME", help="Of a result: the scenario, by its name or a part of it.")
@click.option("--target", required=True, type=click.Choice(TARGETS), help="The trainer.")
@click.option(
    "--scheduler", default="torchrun", show_default=True, type=click.Choice(SCHEDULERS), help="What starts the job."
)
@click.option(
    "--kind", default=KINDS[0], show_default=True, type=click.Choice(KINDS), help="Of the job, on Kubernetes."
)
@click.option("--nearest", is_flag=True, help="If the trainer cannot run the plan, write the nearest one that it can.")
@click.option(
    "--nodes-from",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Hosts by node rank: what topoassign --json printed for this plan.",
)
@click.option("--host-devices", metavar="N", type=click.IntRange(min=1), help="Devices of a host.  [default: a node's]")
@click.option("--container", metavar="IMAGE", help="Image that the processes run in.")
@click.option("--name", metavar="TEXT", help="Of the job.  [default: model, devices and hardware]")
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder.  [default: launch-<target>]")
@click.option("--overwrite", is_flag=True, help="Write into a folder that holds other files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the job, the files, their texts.")
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.version_option(__version__, prog_name="dlcalc-launch")
def main(
    plan: str,
    *,
    scheduler: str,
    kind: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,  # noqa: ANN401 - read by the use case
) -> None:
    """Write what starts a plan: the trainer's configuration, the scheduler's job, the environment, and what to expect.

    RESULTS is the result directory of a search, of which --rank picks a plan; RUN is a run file. The folder's README
    says how to start the job, and what its first steps should show.
    """
    with told_in_a_line():
        chosen = kind if scheduler == "kubernetes" else scheduler
        launch(
            plan, chosen, out or Path(f"launch-{choices['target']}"), overwrite=overwrite, as_json=as_json, **choices
        )


def launch(plan: str, scheduler: str, out: Path, *, overwrite: bool, as_json: bool, **choices: Any) -> None:  # noqa: ANN401
    """Write, and say what was written."""
    from dlcalc.report.launch import print_launch
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.launch import plan_launch, write_bundle

    found = plan_launch(plan, scheduler=scheduler, folder=out, **choices)  # type: ignore[arg-type] # click checks words
    write_bundle(found.files, out, overwrite=overwrite)
    if as_json:
        click.echo(to_json(asdict(found)))
    else:
        print_launch(found, make_console())


if __name__ == "__main__":
    main()
