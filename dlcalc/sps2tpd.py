"""sps2tpd: samples per second as tokens per day."""

from __future__ import annotations

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

EPILOG = """
\b
Examples:
  sps2tpd -t 52.4 -s 4096
  sps2tpd -t 52.4 -s 4096 -g 0.95 --json

\b
Exit code: 0 it was converted; 2 the input is wrong.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.option("-t", "--samples-per-sec", metavar="N", required=True, help="Sequences per second, of the whole job.")
@click.option("-s", "--seqlen", metavar="TOKENS", required=True, help="Tokens of a sequence.")
@click.option(
    "-g", "--goodput", metavar="SHARE", default="1", show_default=True, help="Share of the day that counts, up to 1."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
@click.version_option(__version__, prog_name="sps2tpd")
def main(samples_per_sec: str, seqlen: str, goodput: str, *, as_json: bool) -> None:
    """Convert samples per second to tokens per day."""
    with told_in_a_line():
        convert(samples_per_sec, seqlen, goodput, as_json=as_json)


def convert(samples_per_sec: str, seqlen: str, goodput: str, *, as_json: bool) -> None:
    """Tokens per day on stdout."""
    from dlcalc.report.throughput_report import report_tokens_per_day, tokens_per_day_lines
    from dlcalc.specs.quantities import fraction, positive_count, positive_number
    from dlcalc.utils.jsontext import to_json

    report = report_tokens_per_day(
        samples_per_s=positive_number(samples_per_sec, "--samples-per-sec"),
        seq_len=positive_count(seqlen, "--seqlen", "4096"),
        goodput_fraction=fraction(goodput, "--goodput"),
    )
    click.echo(to_json(report.as_dict()) if as_json else "\n".join(tokens_per_day_lines(report)))


if __name__ == "__main__":
    main()
