"""dlcalc-search: the fastest plan for a model on a cluster."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dlcalc import __version__
from dlcalc.doors import INTERRUPTED
from dlcalc.errors import DlcalcError
from dlcalc.specs.target import READABLE, Target

TOLD = ("hardware", "devices", "model", "seq_len", "global_batch")
"""What a trainer's own configuration may leave out."""
TERMINATED = 143
"""Exit code after SIGTERM, as shells count it."""
KEPT = "what was finished is kept; the same command goes on from there, with --resume or without"

EPILOG = """
\b
Examples:
  dlcalc-search search_spaces/llama3_70b_h100.yaml
  dlcalc-search study.yaml --sort cost --top 20
  dlcalc-search study.yaml --json > answer.json
  dlcalc-search study.yaml --keep all -o results/everything --jobs 8
  dlcalc-search study.yaml --executor dask --scheduler tcp://head:8786 -o s3://bucket/study
  dlcalc-search study.yaml --dry-run
  dlcalc-search study.yaml --topology fabric.yaml --place
  dlcalc-search --from megatron-lm args.txt --hardware h100 --devices 512

\b
Exit code: 0 a plan was found; 2 the input is wrong; 3 no plan fits, or none can be placed;
130 interrupted, 143 terminated: what was finished is kept.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send before they kill: what Ctrl-C does, with another exit code."""


@contextmanager
def terminable() -> Iterator[None]:
    """Answer SIGTERM by ending in order; only a main thread can, and it gets its old answer back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_choice(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | int | None:
    """``all``, ``feasible``, ``pareto``, or a number of best plans."""
    if value is None or value in ("all", "feasible", "pareto"):
        return value
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither all, feasible, pareto nor a number of plans")


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("space_file", metavar="SPACE.yaml", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    metavar="DIR|s3://...",
    type=click.Path(),
    help="Result directory, or where in an object store.  [default: results/<study>]",
)
@click.option(
    "--keep",
    metavar="all|feasible|pareto|N",
    callback=keep_choice,
    help="Plans to write.  [default: the space file's, or all that fit up to 20 million]",
)
@click.option(
    "--top", metavar="N", default=10, show_default=True, type=click.IntRange(min=1), help="Best plans to print."
)
@click.option(
    "--sort",
    default="mfu",
    show_default=True,
    type=click.Choice(["mfu", "step_time", "cost", "memory"]),
    help="What makes a plan best.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")
@click.option("--resume", is_flag=True, help="Go on with a study: shards that are finished are not searched again.")
@click.option("--overwrite", is_flag=True, help="Replace the result of another study in the same directory.")
@click.option("--dry-run", is_flag=True, help="Count the space, estimate time and size of the result, write nothing.")
@click.option(
    "--from",
    "source",
    metavar="TRAINER",
    type=click.Choice(READABLE),
    help="SPACE.yaml is this trainer's own configuration: search all that it can run for its model and batch.",
)
@click.option("--hardware", metavar="NAME", help="With --from: the machine.")
@click.option(
    "--devices", metavar="N", type=click.IntRange(min=1), help="With --from: how many, where it does not say."
)
@click.option("--model", metavar="NAME|FILE", help="With --from: the model, in place of the one described.")
@click.option("--seq-len", metavar="N", type=click.IntRange(min=1), help="With --from: where it does not say.")
@click.option("--global-batch", metavar="N", type=click.IntRange(min=1), help="With --from: where it does not say.")
@click.option("--list-hardware", is_flag=True, help="List the hardware a space file can name.")
@click.option("--list-models", is_flag=True, help="List the built-in models.")
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.option(
    "--jobs", metavar="N", type=click.IntRange(min=1), help="Processes that search.  [default: as many as are worth it]"
)
@click.option(
    "--executor",
    default="local",
    show_default=True,
    type=click.Choice(["local", "dask"]),
    help="Where to search: processes of this machine, or the workers of a Dask cluster.",
)
@click.option("--scheduler", metavar="ADDRESS", help="With --executor dask: its scheduler, such as tcp://host:8786.")
@click.option(
    "--topology",
    metavar="FILE|ec2|kubernetes|slurm",
    help="Fabric to place the best plans on.  [default: the space file's topology]",
)
@click.option(
    "--place/--no-place",
    default=None,
    help="Place the best meshes on the fabric and rank by what is left there.  [default: where a fabric is given]",
)
@click.option(
    "--place-meshes",
    metavar="N",
    type=click.IntRange(min=1),
    help="Best meshes to place, per scenario.  [default: the space file's, or 50]",
)
@click.option("--quiet", is_flag=True, help="Neither progress nor report: only write the result.")
@click.version_option(__version__, prog_name="dlcalc-search")
def main(
    space_file: Path | None,
    *,
    as_json: bool,
    dry_run: bool,
    list_hardware: bool,
    list_models: bool,
    hardware_dirs: tuple[Path, ...],
    top: int,
    quiet: bool,
    source: Target | None,
    **choices: Any,  # noqa: ANN401 - what the search alone reads, passed on by name
) -> None:
    """Find the plan that trains fastest, among all that SPACE.yaml describes.

    Every combination of parallel degrees, micro-batch, schedule, recomputation, sharding and overlap is estimated.
    Those that fit in memory are ranked and written to a Parquet dataset, and the best are explained. With a fabric, the
    best meshes are then placed on its free nodes, and their plans ranked by the links that they really cross.
    """
    if source is None and (given := next((name for name in TOLD if choices[name] is not None), None)):
        raise click.UsageError(f"--{given.replace('_', '-')} goes with --from, a trainer's own configuration")
    if source is not None and dry_run:
        raise click.UsageError("--dry-run counts the space of a space file; leave out --from")
    if list_hardware + list_models + (space_file is not None) != 1:
        raise click.UsageError("give one of SPACE.yaml, --list-hardware and --list-models")
    try:
        if list_hardware:
            show_hardware(hardware_dirs, as_json=as_json)
        elif list_models:
            show_models(as_json=as_json)
        elif space_file is not None and dry_run:
            show_dry_run(space_file, as_json=as_json, hardware_dirs=hardware_dirs, out=choices["out"])
        elif space_file is not None:
            search(
                space_file, source=source, top=top, as_json=as_json, quiet=quiet, hardware_dirs=hardware_dirs, **choices
            )
    except DlcalcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Terminated:
        click.echo(f"terminated: {KEPT}", err=True)
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {KEPT}", err=True)
        sys.exit(INTERRUPTED)


def search(
    space_file: Path,
    *,
    source: Target | None,
    top: int,
    as_json: bool,
    quiet: bool,
    **choices: Any,  # noqa: ANN401
) -> None:
    """Search, and print the answer."""
    from dlcalc.report.search_report import print_search
    from dlcalc.report.summary import nothing_fits, nothing_placed
    from dlcalc.report.terminal import SearchProgress, make_console
    from dlcalc.utils.jsontext import to_json

    told = {name: choices.pop(name) for name in TOLD}
    with terminable(), SearchProgress(quiet=quiet) as progress:
        if source is None:
            from dlcalc.workflows.search import run_search

            summary = run_search(space_file, top=top, progress=progress, notify=progress.say, **choices)
        else:
            from dlcalc.workflows.imports import search_trainer_file

            summary = search_trainer_file(
                source, space_file, told=told, top=top, progress=progress, notify=progress.say, **choices
            )
    if as_json:
        click.echo(to_json(summary))
    elif not quiet:
        print_search(summary, make_console(), top)
    if error := nothing_fits(summary) or nothing_placed(summary):
        raise error


def show_dry_run(space_file: Path, *, as_json: bool, hardware_dirs: tuple[Path, ...], out: str | None) -> None:
    """What a search would do."""
    from dlcalc.report.listings import print_dry_run
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.dry_run import dry_run

    counts = dry_run(space_file, out=out, hardware_dirs=hardware_dirs)
    if as_json:
        click.echo(to_json(counts))
    else:
        print_dry_run(counts, make_console())


def show_hardware(hardware_dirs: tuple[Path, ...], *, as_json: bool) -> None:
    """The hardware that can be named."""
    from dlcalc.report.listings import print_hardware
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.listings import list_hardware

    rows = list_hardware(hardware_dirs=hardware_dirs)
    if as_json:
        click.echo(to_json(rows))
    else:
        print_hardware(rows, make_console())


def show_models(*, as_json: bool) -> None:
    """The models that can be named."""
    from dlcalc.report.listings import print_models
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.listings import list_models

    rows = list_models()
    if as_json:
        click.echo(to_json(rows))
    else:
        print_models(rows, make_console())


if __name__ == "__main__":
    main()
