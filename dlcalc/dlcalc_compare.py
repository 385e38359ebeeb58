"""dlcalc-compare: the best plans of searched studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line
from dlcalc.errors import DlcalcError

if TYPE_CHECKING:
    from dlcalc.report.compare_facts import CompareFacts, Failures

STDOUT = Path("-")

EPILOG = """
\b
Examples:
  dlcalc-compare results/shootout
  dlcalc-compare results/h100 results/b200 --objective days --tokens 15T
  dlcalc-compare results/shootout --price h100=2.49 --price b200=3.99 --budget-usd 50e6
  dlcalc-compare results/shootout --by hardware --by devices --csv table.csv
  dlcalc-compare results/shootout --mtbf-hours-per-device 50000 --checkpoint-write-s 60 --restart-s 600

\b
Exit code: 0 compared; 2 the input is wrong; 3 no plan fits, or none is within the limits; 130 interrupted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["hardware", "model", "devices", "precision"]),
    help="The best plan of each; may be repeated.  [default: hardware]",
)
@click.option(
    "--objective",
    type=click.Choice(["tokens_per_dollar", "step_time", "days", "energy"]),
    help="What makes a plan best.  [default: tokens_per_dollar where every price is known, else step_time]",
)
@click.option("--tokens", metavar="N", help="Tokens of the whole run, such as 15T.  [default: the recipe's]")
@click.option("--budget-usd", metavar="N", help="What the run may cost: the fastest plan within it.")
@click.option("--deadline-days", metavar="N", help="How long it may take: the cheapest plan in time.")
@click.option(
    "--price",
    "prices",
    metavar="NAME=USD_PER_DEVICE_HOUR",
    multiple=True,
    help="Price of a machine, instead of its file's; may be repeated.",
)
@click.option(
    "--power",
    "powers",
    metavar="NAME=WATTS_PER_DEVICE",
    multiple=True,
    help="Power of a machine per device, with its share of the host, instead of the device's TDP; may be repeated.",
)
@click.option("--pue", metavar="N", help="Energy of the site over that of the devices.  [default: 1]")
@click.option("--mtbf-hours-per-device", metavar="N", help="Mean time between failures that end a job, of one device.")
@click.option("--checkpoint-write-s", metavar="N", help="Time for which writing a checkpoint stops the job.")
@click.option("--restart-s", metavar="N", help="Time from a failure to the first step after it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")
@click.option(
    "--csv", "csv_file", metavar="FILE", type=click.Path(path_type=Path), help="Write one row per scenario; - prints."
)
@click.option(
    "--parquet", "parquet_file", metavar="FILE", type=click.Path(path_type=Path), help="Write one row per scenario."
)
@click.version_option(__version__, prog_name="dlcalc-compare")
def main(
    results: tuple[str, ...],
    *,
    as_json: bool,
    csv_file: Path | None,
    parquet_file: Path | None,
    **choices: Any,  # noqa: ANN401 - what is asked, passed on by name
) -> None:
    """Compare the best plans of RESULTS, directories that dlcalc-search wrote.

    The best plan per machine and per number of devices: speed, memory, days, cost and energy with their intervals; how
    throughput scales, where the winner changes, and which terms of the step make the difference.
    """
    if as_json and csv_file == STDOUT:
        raise click.UsageError("--json and --csv - both print; give --csv a file")
    with told_in_a_line():
        compare(results, as_json=as_json, csv_file=csv_file, parquet_file=parquet_file, **choices)


def compare(
    results: tuple[str, ...],
    *,
    as_json: bool,
    csv_file: Path | None,
    parquet_file: Path | None,
    by: tuple[str, ...],
    objective: Any,  # noqa: ANN401 - one of the choices
    tokens: str | None,
    budget_usd: str | None,
    deadline_days: str | None,
    prices: tuple[str, ...],
    powers: tuple[str, ...],
    pue: str | None,
    **failures: str | None,
) -> None:
    """Read what is asked, compare, and print."""
    from dlcalc.specs.quantities import dollars, positive_number, token_count
    from dlcalc.workflows.compare import named_axes, run_compare, write_csv, write_parquet
    from dlcalc.workflows.compare_choices import nothing_within
    from dlcalc.workflows.compare_inputs import Asked, site_factor

    asked = Asked(
        by=named_axes(by),
        objective=objective,
        tokens=token_count(tokens, "--tokens") if tokens is not None else None,
        budget_usd=dollars(budget_usd, "--budget-usd", "50e6 or 50M") if budget_usd is not None else None,
        deadline_days=positive_number(deadline_days, "--deadline-days", "90") if deadline_days is not None else None,
        prices=by_name(prices, "--price", "h100=2.49", is_money=True),
        powers=by_name(powers, "--power", "h100=1300"),
        pue=site_factor(pue) if pue is not None else 1.0,
        failures=failures_of(failures),
    )
    facts = run_compare(results, asked)
    if parquet_file is not None:
        write_parquet(facts, parquet_file)
    if csv_file is not None and csv_file != STDOUT:
        write_csv(facts, csv_file)
    show(facts, as_json=as_json, as_csv=csv_file == STDOUT)
    if error := nothing_within(facts):
        raise error


def by_name(given: tuple[str, ...], option: str, example: str, *, is_money: bool = False) -> dict[str, float]:
    """``NAME=NUMBER`` as often as it was given."""
    from dlcalc.specs.quantities import named_number

    found: dict[str, float] = {}
    for text in given:
        name, value = named_number(text, option, example, is_money=is_money)
        if name in found:
            raise DlcalcError(f"{option} {name}: given twice")
        found[name] = value
    return found


def failures_of(given: dict[str, str | None]) -> Failures | None:
    """All three of the options of failures, or none."""
    from dlcalc.report.compare_facts import Failures
    from dlcalc.specs.quantities import positive_number

    examples = {"mtbf_hours_per_device": "50000", "checkpoint_write_s": "60", "restart_s": "600"}
    options = {name: f"--{name.replace('_', '-')}" for name in given}
    missing = [options[name] for name, text in given.items() if text is None]
    if len(missing) == len(given):
        return None
    if missing:
        *first, last = options.values()
        raise DlcalcError(f"{', '.join(first)} and {last} belong together; missing: {', '.join(missing)}")
    hours, write_s, restart_s = (
        positive_number(given[name] or "", options[name], example) for name, example in examples.items()
    )
    return Failures(hours * 3600.0, write_s, restart_s)


def show(facts: CompareFacts, *, as_json: bool, as_csv: bool) -> None:
    """Print the comparison."""
    from dlcalc.report.compare import print_comparison
    from dlcalc.report.compare_facts import compare_document
    from dlcalc.report.compare_rows import csv_text
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json

    if as_csv:
        click.echo(csv_text(facts), nl=False)
    elif as_json:
        click.echo(to_json(compare_document(facts)))
    else:
        print_comparison(facts, make_console())


if __name__ == "__main__":
    main()
