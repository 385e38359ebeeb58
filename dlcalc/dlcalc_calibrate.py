"""dlcalc-calibrate: constants of a machine and a trainer from a user's own runs."""

from __future__ import annotations

from pathlib import Path

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

EPILOG = """
\b
Examples:
  dlcalc-calibrate my_runs.csv --hardware h100
  dlcalc-calibrate my_runs.csv --hardware h100 --framework megatron --out my_h100.yaml
  dlcalc-calibrate my_runs.csv --hardware h100 --models my_models.yaml --json > fit.json

\b
The written file is used as hardware: my_h100.yaml; what was fitted of the trainer stands beside it and is used as
framework: my_h100.megatron.yaml. Columns of the runs: configs/measured/README.md; more: docs/calibration.md.
Exit code: 0 constants were fitted; 2 the input is wrong, or no run of it can be fitted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("runs", metavar="RUNS.csv ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--hardware", metavar="NAME", required=True, help="The machine the runs are of: a name or a YAML file.")
@click.option(
    "--framework", metavar="NAME", help="Trainer of the runs that name none: a profile's name or its YAML file."
)
@click.option(
    "--models",
    metavar="MODELS.yaml",
    type=click.Path(path_type=Path),
    help="Dimensions of the models that the runs name; the built-in ones are known.",
)
@click.option(
    "--out", metavar="FILE.yaml", type=click.Path(path_type=Path), help="Write the machine with its fitted constants."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.version_option(__version__, prog_name="dlcalc-calibrate")
def main(
    runs: tuple[Path, ...],
    *,
    hardware: str,
    framework: str | None,
    models: Path | None,
    out: Path | None,
    as_json: bool,
    hardware_dirs: tuple[Path, ...],
) -> None:
    """Fit constants to your own measured runs, starting from the shipped ones.

    One run helps, five are good. A constant moves only as far as the runs outweigh what was known of it; one that no
    run touches stays. Runs that claim more than the hardware's peak, or disagree with a run of the same setting by more
    than 15 %, are named and left out.
    """
    with told_in_a_line():
        calibrate(runs, hardware, framework, models, out=out, hardware_dirs=hardware_dirs, as_json=as_json)


def calibrate(
    runs: tuple[Path, ...],
    hardware: str,
    framework: str | None,
    models: Path | None,
    *,
    out: Path | None,
    hardware_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Fit, write, and print the outcome."""
    from dlcalc.report.calibration import print_calibration
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.calibration import run_calibration

    summary = run_calibration(
        runs, hardware=hardware, framework=framework, models=models, out=out, hardware_dirs=hardware_dirs
    )
    if as_json:
        click.echo(to_json(summary))
    else:
        print_calibration(summary, make_console())


if __name__ == "__main__":
    main()
