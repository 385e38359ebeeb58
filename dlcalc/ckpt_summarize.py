"""ckpt-summarize: what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line
from dlcalc.errors import CheckpointError

if TYPE_CHECKING:
    import re

EPILOG = """
\b
Examples:
  ckpt-summarize model.safetensors
  ckpt-summarize checkpoints/step-1000 --depth 2
  ckpt-summarize consolidated.00.pth --filter 'attention\\.w[qkv]' --json
  ckpt-summarize before.pt --diff after.pt

\b
Exit code: 0 it was read, also where two differ; 2 the input is wrong, damaged, or calls what no checkpoint needs.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--depth", metavar="N", type=click.IntRange(min=1), help="Levels of the tree to show.  [default: all]")
@click.option("--filter", "pattern", metavar="REGEX", help="Only tensors in whose names REGEX is found.")
@click.option(
    "--diff",
    "other",
    metavar="OTHER",
    type=click.Path(path_type=Path),
    help="Compare names, shapes and dtypes with OTHER.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.version_option(__version__, prog_name="ckpt-summarize")
def main(path: Path, *, depth: int | None, pattern: str | None, other: Path | None, as_json: bool) -> None:
    """Say what is in the checkpoint at PATH: names, shapes, dtypes, parameters and bytes, as a tree.

    PATH is a .pt, .pth, .bin, .ckpt or .safetensors file, an index of shards, or a folder: of Megatron, of
    torch.distributed.checkpoint, or with such files in it. Its pickle is read and never run, and tensor data is not
    read.
    """
    with told_in_a_line():
        regex = compiled(pattern)
        if other is None:
            show(path, depth, regex, as_json=as_json)
        else:
            show_difference(path, other, regex, as_json=as_json)


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """The regular expression of --filter."""
    import re

    try:
        return re.compile(pattern) if pattern is not None else None
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"--filter: {pattern!r} is no regular expression: {error}") from None


def show(path: Path, depth: int | None, regex: re.Pattern[str] | None, *, as_json: bool) -> None:
    """One checkpoint on stdout."""
    from dlcalc.checkpoint.reader import read_checkpoint
    from dlcalc.checkpoint.summary import summarize
    from dlcalc.report.checkpoint_report import print_checkpoint
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json

    summary = summarize(read_checkpoint(path), regex)
    if as_json:
        click.echo(to_json(summary.as_dict(depth)))
    else:
        print_checkpoint(summary, make_console(), depth)


def show_difference(path: Path, other: Path, regex: re.Pattern[str] | None, *, as_json: bool) -> None:
    """What differs between two checkpoints, on stdout."""
    from dlcalc.checkpoint.difference import compare
    from dlcalc.checkpoint.reader import read_checkpoint
    from dlcalc.report.checkpoint_report import print_difference
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json

    found = compare(read_checkpoint(path), read_checkpoint(other), regex)
    if as_json:
        click.echo(to_json(found.as_dict()))
    else:
        print_difference(found, make_console())


if __name__ == "__main__":
    main()
