"""dlcalc-validate: how far estimates are from measured runs."""

from __future__ import annotations

from pathlib import Path

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

EPILOG = """
\b
Examples:
  dlcalc-validate
  dlcalc-validate my_runs.csv --models my_models.yaml
  dlcalc-validate my_runs.csv --out estimates.csv --html accuracy.html
  dlcalc-validate my_runs.csv --json > accuracy.json

\b
A row that cannot be estimated is kept, with the reason. Columns: configs/measured/README.md.
Exit code: 0 the runs were compared; 2 the input is wrong.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("runs", metavar="[RUNS.csv ...]", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--models",
    metavar="MODELS.yaml",
    type=click.Path(path_type=Path),
    help="Dimensions of the models that the runs name; the built-in ones are known.  [default: the shipped runs']",
)
@click.option("--out", metavar="PRED.csv", type=click.Path(path_type=Path), help="Write one row per run, in order.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with plots (needs plotly).")
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.version_option(__version__, prog_name="dlcalc-validate")
def main(
    runs: tuple[Path, ...],
    *,
    models: Path | None,
    out: Path | None,
    as_json: bool,
    html: Path | None,
    hardware_dirs: tuple[Path, ...],
) -> None:
    """Estimate every measured run in RUNS.csv as its columns describe it, and compare.

    Without RUNS.csv the runs that come with dlcalc are compared. Per source and over all of them: errors of step time
    and of memory, whether plans that ran out of memory are refused, how well the plans of a sweep are ranked and what
    following the ranking would cost, and how many runs lie inside their interval.
    """
    with told_in_a_line():
        validate(runs, models, out=out, html=html, hardware_dirs=hardware_dirs, as_json=as_json)


def validate(
    runs: tuple[Path, ...],
    models: Path | None,
    *,
    out: Path | None,
    html: Path | None,
    hardware_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare, and print the outcome."""
    from dlcalc.report.terminal import make_console
    from dlcalc.report.validation import print_validation
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.validation import run_validation

    summary = run_validation(runs, models=models, out=out, html=html, hardware_dirs=hardware_dirs)
    if as_json:
        click.echo(to_json(summary))
    else:
        print_validation(summary, make_console())


if __name__ == "__main__":
    main()
