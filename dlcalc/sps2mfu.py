"""sps2mfu: samples per second as model FLOPs utilization."""

from __future__ import annotations

from pathlib import Path

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

EPILOG = """
\b
Examples:
  sps2mfu -s 52.4 -l 4096 -m 70b -n 64x8 -t 989.4
  sps2mfu -s 52.4 -l 4096 -m llama3-70b -n 512 -t h100 --precision fp8
  sps2mfu -s 52.4 -l 4096 -m path/to/config.json -n 512 -t h100 --convention causal_attention --json

\b
Exit code: 0 it was converted, also where it is above 100 %; 2 the input is wrong.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.option("-s", "--samples-per-sec", metavar="N", required=True, help="Sequences per second, of the whole job.")
@click.option("-l", "--seqlen", metavar="TOKENS", required=True, help="Tokens of a sequence.")
@click.option(
    "-m",
    "--model-size",
    metavar="SIZE|MODEL",
    required=True,
    help="350m, 70b or 1.5t; or a built-in model, a model YAML or a config.json, for exact FLOPs.",
)
@click.option("-n", "--n-accelerators", metavar="N", required=True, help="Devices: 512, or nodes x devices, 64x8.")
@click.option(
    "-t",
    "--tflops-per-accelerator",
    metavar="N|HARDWARE",
    required=True,
    help="Dense peak of a device in TFLOP/s, or the name of its hardware.",
)
@click.option("--precision", metavar="NAME", help="Precision whose peak is taken from the hardware.  [default: bf16]")
@click.option(
    "--convention",
    metavar="NAME",
    help="FLOPs that count: full_attention, causal_attention or six_n.  [default: full_attention; six_n of a size]",
)
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.version_option(__version__, prog_name="sps2mfu")
def main(
    *,
    samples_per_sec: str,
    seqlen: str,
    model_size: str,
    n_accelerators: str,
    tflops_per_accelerator: str,
    precision: str | None,
    convention: str | None,
    hardware_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Convert samples per second to model FLOPs utilization.

    A size counts 6 FLOPs per parameter and token. Of a model, the FLOPs are those of its matmuls and of attention, by a
    convention that is printed with the number, because sources differ by 5 to 20 %.
    """
    from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
    from dlcalc.report.throughput_report import (
        find_convention,
        find_peak,
        find_size,
        mfu_lines,
        mfu_warning,
        report_mfu,
    )
    from dlcalc.specs.quantities import device_count, positive_count, positive_number
    from dlcalc.utils.jsontext import to_json

    with told_in_a_line():
        size = find_size(model_size)
        report = report_mfu(
            samples_per_s=positive_number(samples_per_sec, "--samples-per-sec"),
            seq_len=positive_count(seqlen, "--seqlen", "4096"),
            size=size,
            n_devices=device_count(n_accelerators, "--n-accelerators"),
            peak=find_peak(tflops_per_accelerator, precision, HardwareRegistry(hardware_search_path(hardware_dirs))),
            convention=find_convention(convention, size),
        )
    click.echo(to_json(report.as_dict()) if as_json else "\n".join(mfu_lines(report)))
    if warning := mfu_warning(report):
        click.echo(f"warning: {warning}", err=True)


if __name__ == "__main__":
    main()
